/*-------------------------------------------------------------------------
 *
 * fuzz_keylist.c
 *	  Feeds the parsers of key lists and key files.
 *
 * The text has no byte behind it, so that the address sanitizer sees a read
 * too far.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe.h"

#include "keylist.h"
#include "mb/pg_wchar.h"

extern int	LLVMFuzzerTestOneInput(const uint8 *data, size_t size);

static void
require(bool condition, const char *what)
{
	if (condition)
		return;
	fprintf(stderr, "not so: %s\n", what);
	abort();
}

/*
 * Parses a list or a file.  Where all of it is good, writes its secrets as a
 * list with every item quoted to quoted, and returns the length of that.
 */
static size_t
parse(const char *data, size_t size, bool is_file, char *quoted)
{
	KeyListParser parser;
	KeyListStatus status;
	char	   *text = malloc(Max(size, 1));
	const char *last = text;
	char	   *to = quoted;
	size_t		nsecrets = 0;

	require(text != NULL, "there is memory");
	if (size > 0)
		memcpy(text, data, size);
	KeyListStart(&parser, text, size);
	while ((status = is_file ? KeyListNextLine(&parser) :
			KeyListNextItem(&parser)) == KEYLIST_SECRET)
	{
		require(parser.len > 0 && parser.secret >= last &&
				parser.secret + parser.len <= text + size,
				"a secret is a part of the text, behind the one before");
		require(memchr(parser.secret, '\0', parser.len) == NULL &&
				pg_encoding_verifymbstr(PG_UTF8, parser.secret,
										(int) parser.len) == (int) parser.len,
				"a secret is UTF-8");
		last = parser.secret + parser.len;
		nsecrets++;

		if (to > quoted)
			*to++ = ',';
		*to++ = '"';
		for (size_t i = 0; i < parser.len; i++)
		{
			if (parser.secret[i] == '"')
				*to++ = '"';
			*to++ = parser.secret[i];
		}
		*to++ = '"';
	}
	require(nsecrets <= (size + 1) / 2, "each secret but the last has an end");
	/* what secrets.c allocates for a source */
	require(nsecrets <= KEYLIST_MAX_SECRETS, "there are not too many");
	require((size_t) parser.nsecrets == nsecrets, "each of them is counted");
	require((size_t) parser.ordinal >= nsecrets, "each has a place of its own");
	require(KeyListStatusText(status)[0] != '\0', "a status has a text");
	free(text);
	return status == KEYLIST_END ? to - quoted : 0;
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	char	   *quoted;
	char	   *again;
	size_t		len;

	if (size == 0)
		return 0;
	quoted = malloc(size * 4);
	again = malloc(size * 8);
	require(quoted != NULL && again != NULL, "there is memory");

	len = parse((const char *) data + 1, size - 1, data[0] % 2, quoted);
	if (len > 0)
		require(parse(quoted, len, false, again) == len &&
				memcmp(quoted, again, len) == 0,
				"secrets that are quoted in a list come out as they were");
	free(quoted);
	free(again);
	return 0;
}
