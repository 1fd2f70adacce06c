/*-------------------------------------------------------------------------
 *
 * keylist.c
 *	  Secrets out of the text of a key list or a key file.
 *
 *-------------------------------------------------------------------------
 */
#ifdef FRONTEND
#include "postgres_fe.h"
#else
#include "postgres.h"
#endif

#include "keylist.h"
#include "mb/pg_wchar.h"

static inline bool
is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/*
 * KeyListStart
 *		Sets a parser to the start of len bytes of text.
 *
 * The parser writes into the text where it undoubles quotes.
 */
void
KeyListStart(KeyListParser *parser, char *text, size_t len)
{
	*parser = (KeyListParser)
	{
		.next = text,
			.end = text + len
	};
}

/*
 * Reads a secret that starts at start: in double quotes, in which "" is a
 * quote, else up to end or a separator, without the blanks at its end.  Sets
 * *next to what follows it and the blanks after it.
 */
static KeyListStatus
read_secret(KeyListParser *parser, char *start, char *end, char separator,
			char **next)
{
	char	   *from = start;
	char	   *to;

	if (from < end && *from == '"')
	{
		start = to = ++from;
		for (;;)
		{
			if (from == end)
				return KEYLIST_UNCLOSED_QUOTE;
			if (*from == '"')
			{
				from++;
				if (from == end || *from != '"')
					break;
			}
			*to++ = *from++;
		}
		while (from < end && is_blank(*from))
			from++;
		if (from < end && *from != separator)
			return KEYLIST_STRAY_QUOTE;
	}
	else
	{
		for (; from < end && *from != separator; from++)
			if (*from == '"')
				return KEYLIST_STRAY_QUOTE;
		for (to = from; to > start && is_blank(to[-1]); to--)
			;
	}

	*next = from;
	if (to == start)
		return KEYLIST_EMPTY_ITEM;
	if (memchr(start, '\0', to - start) != NULL)
		return KEYLIST_NUL_BYTE;
	if (pg_encoding_verifymbstr(PG_UTF8, start, (int) (to - start)) != to - start)
		return KEYLIST_NOT_UTF8;
	if (parser->nsecrets == KEYLIST_MAX_SECRETS)
		return KEYLIST_TOO_MANY;
	parser->nsecrets++;
	parser->secret = start;
	parser->len = to - start;
	return KEYLIST_SECRET;
}

/*
 * KeyListNextItem
 *		Reads the next item of a comma-separated list.
 *
 * Blanks around an item do not count.  An item with a comma, a quote or blanks
 * at its ends is written in double quotes, in which "" is a quote.  Text of
 * nothing but blanks is an empty list; an empty item is an error.
 */
KeyListStatus
KeyListNextItem(KeyListParser *parser)
{
	char	   *start = parser->next;
	char	   *next;
	KeyListStatus status;

	while (start < parser->end && is_blank(*start))
		start++;
	if (start == parser->end && !parser->comma)
		return KEYLIST_END;
	parser->ordinal++;

	status = read_secret(parser, start, parser->end, ',', &next);
	if (status == KEYLIST_SECRET)
	{
		parser->comma = next < parser->end;
		parser->next = parser->comma ? next + 1 : next;
	}
	return status;
}

/* Is a line nothing but base64, padded or not? */
static bool
is_base64(const char *line, size_t len)
{
	size_t		padding = 0;

	while (padding < 2 && padding < len && line[len - padding - 1] == '=')
		padding++;
	for (size_t i = 0; i < len - padding; i++)
		if (!((line[i] >= 'A' && line[i] <= 'Z') ||
			  (line[i] >= 'a' && line[i] <= 'z') ||
			  (line[i] >= '0' && line[i] <= '9') ||
			  line[i] == '+' || line[i] == '/'))
			return false;
	return len % 4 == 0;
}

/*
 * Sets parser->continues for a line: openssl breaks base64 off after 64
 * characters, base64(1) after 76, and what is left over is not a secret of its
 * own.  A rest of half a line or more may well be one, so it does not count.
 */
static void
look_for_broken_line(KeyListParser *parser, const char *line, size_t len)
{
	bool		base64 = is_base64(line, len);

	parser->continues = base64 && len < parser->full_line / 2;
	parser->full_line = base64 && line[len - 1] != '=' &&
		(len == 64 || len == 76) ? len : 0;
}

/*
 * KeyListNextLine
 *		Reads the next secret of a key file.
 *
 * A line is a secret, without the line end (LF or CR LF); empty lines do not
 * count.  The rule is that of a list's items: what contains a quote or has
 * blanks at its ends is written in double quotes.  Bare blanks at the ends of
 * a line are an error all the same: in a list they are only spacing, but here
 * they may have been meant, and a wrong guess would silently make another key.
 * The same is true of a # that starts a line.
 */
KeyListStatus
KeyListNextLine(KeyListParser *parser)
{
	while (parser->next < parser->end)
	{
		char	   *start = parser->next;
		char	   *stop = memchr(start, '\n', parser->end - start);
		char	   *next;

		if (stop == NULL)
			parser->next = stop = parser->end;
		else
			parser->next = stop + 1;
		parser->ordinal++;

		if (parser->ordinal == 1 && stop - start >= 3 &&
			memcmp(start, "\xEF\xBB\xBF", 3) == 0)
			return KEYLIST_BYTE_ORDER_MARK;
		if (stop > start && stop[-1] == '\r')
			stop--;
		if (stop == start)
		{
			parser->full_line = 0;
			continue;
		}
		if (memchr(start, '\r', stop - start) != NULL)
			return KEYLIST_CARRIAGE_RETURN;
		if (is_blank(*start) || is_blank(stop[-1]))
			return KEYLIST_OUTER_BLANK;
		if (*start == '#')
			return KEYLIST_COMMENT;
		look_for_broken_line(parser, start, stop - start);
		return read_secret(parser, start, stop, '\n', &next);
	}
	return KEYLIST_END;
}

/*
 * KeyListStatusText
 *		Describes what is wrong with an item or a line, for an error's detail.
 */
const char *
KeyListStatusText(KeyListStatus status)
{
	switch (status)
	{
		case KEYLIST_SECRET:
		case KEYLIST_END:
			break;
		case KEYLIST_EMPTY_ITEM:
			return "it is empty";
		case KEYLIST_UNCLOSED_QUOTE:
			return "its double quote is not closed";
		case KEYLIST_STRAY_QUOTE:
			return "it contains a double quote that does not enclose the whole of it";
		case KEYLIST_OUTER_BLANK:
			return "it starts or ends with a blank and is not in double quotes";
		case KEYLIST_COMMENT:
			return "it starts with \"#\" and is not in double quotes";
		case KEYLIST_CARRIAGE_RETURN:
			return "it contains a carriage return";
		case KEYLIST_NUL_BYTE:
			return "it contains a NUL byte";
		case KEYLIST_NOT_UTF8:
			return "it is not valid UTF-8";
		case KEYLIST_BYTE_ORDER_MARK:
			return "it starts with a byte order mark";
		case KEYLIST_TOO_MANY:
			return "only " CppAsString2(KEYLIST_MAX_SECRETS) " secrets are allowed";
	}
	return "it is valid";
}
