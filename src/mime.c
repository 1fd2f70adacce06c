/*-------------------------------------------------------------------------
 *
 * mime.c
 *	  MIME types.
 *
 * A pure function over bytes, so that it can be tested and fuzzed without a
 * server.
 *
 *-------------------------------------------------------------------------
 */
#ifdef FRONTEND
#include "postgres_fe.h"
#else
#include "postgres.h"
#endif

#include "mime.h"

/* The text that is left. */
typedef struct MimeText
{
	const char *next;
	const char *end;
} MimeText;

/* Takes a character if it comes next. */
static bool
take_char(MimeText *text, char c)
{
	if (text->next == text->end || *text->next != c)
		return false;
	text->next++;
	return true;
}

/* Skips spaces; the tabs of the RFC are of no use to anybody here. */
static void
skip_spaces(MimeText *text)
{
	while (take_char(text, ' '))
		;
}

/* Takes a token; false if there is none.  Source: RFC 9110, section 5.6.2. */
static bool
take_token(MimeText *text)
{
	const char *start = text->next;

	while (text->next < text->end && *text->next > ' ' &&
		   *text->next < '\x7f' &&
		   strchr("\"(),/:;<=>?@[\\]{}", *text->next) == NULL)
		text->next++;
	return text->next > start;
}

/*
 * Takes what follows the opening quote of a quoted string, of visible ASCII and
 * spaces alone.  RFC 9110, section 5.6.4, allows other bytes as well, but no
 * two programs agree on what they mean in a header.
 */
static bool
take_quoted(MimeText *text)
{
	while (text->next < text->end)
	{
		char		c = *text->next++;

		if (c == '"')
			return true;
		if (c == '\\' && text->next < text->end)
			c = *text->next++;
		if (c < ' ' || c > '~')
			return false;
	}
	return false;
}

/*
 * MimeTypeIsValid
 *		Checks that len bytes are a MIME type, with or without parameters, in
 *		ASCII.
 *
 * Source: RFC 9110, section 8.3.1 (media-type).
 */
bool
MimeTypeIsValid(const char *text, size_t len)
{
	MimeText	rest = {text, text + len};

	if (!take_token(&rest) || !take_char(&rest, '/') || !take_token(&rest))
		return false;
	while (rest.next < rest.end)
	{
		skip_spaces(&rest);
		if (!take_char(&rest, ';'))
			return false;
		skip_spaces(&rest);
		if (!take_token(&rest) || !take_char(&rest, '='))
			return false;
		if (!(take_char(&rest, '"') ? take_quoted(&rest) : take_token(&rest)))
			return false;
	}
	return true;
}
