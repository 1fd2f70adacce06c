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
 * KeyListNextItem writes into the text where it undoubles quotes.
 */
void
KeyListStart(KeyListParser *parser, char *text, size_t len)
{
	parser->next = text;
	parser->end = text + len;
	parser->ordinal = 0;
	parser->comma = false;
	parser->secret = NULL;
	parser->len = 0;
}

/* Checks that what was read is text, and hands it out. */
static KeyListStatus
found(KeyListParser *parser, char *secret, size_t len)
{
	if (memchr(secret, '\0', len) != NULL)
		return KEYLIST_NUL_BYTE;
	if (pg_encoding_verifymbstr(PG_UTF8, secret, (int) len) != (int) len)
		return KEYLIST_NOT_UTF8;
	parser->secret = secret;
	parser->len = len;
	return KEYLIST_SECRET;
}

/*
 * KeyListNextItem
 *		Reads the next item of a comma-separated list.
 *
 * Blanks around an item do not count.  An item with a comma, a quote or
 * blanks at its ends stands in double quotes, in which "" is a quote.  Text of
 * nothing but blanks is an empty list; an empty item is an error.
 */
KeyListStatus
KeyListNextItem(KeyListParser *parser)
{
	char	   *next = parser->next;
	char	   *end = parser->end;
	char	   *start;
	char	   *stop;

	while (next < end && is_blank(*next))
		next++;
	if (next == end && !parser->comma)
		return KEYLIST_END;
	parser->ordinal++;

	if (next < end && *next == '"')
	{
		start = stop = ++next;
		for (;;)
		{
			if (next == end)
				return KEYLIST_UNCLOSED_QUOTE;
			if (*next == '"')
			{
				next++;
				if (next == end || *next != '"')
					break;
			}
			*stop++ = *next++;
		}
		while (next < end && is_blank(*next))
			next++;
		if (next < end && *next != ',')
			return KEYLIST_STRAY_QUOTE;
	}
	else
	{
		start = next;
		while (next < end && *next != ',')
		{
			if (*next == '"')
				return KEYLIST_STRAY_QUOTE;
			next++;
		}
		for (stop = next; stop > start && is_blank(stop[-1]); stop--)
			;
	}

	parser->comma = next < end;
	parser->next = parser->comma ? next + 1 : end;
	if (stop == start)
		return KEYLIST_EMPTY_ITEM;
	return found(parser, start, stop - start);
}

/*
 * KeyListNextLine
 *		Reads the next secret of a key file.
 *
 * A line is a secret as it stands, but for the line end (LF or CR LF); empty
 * lines do not count.
 */
KeyListStatus
KeyListNextLine(KeyListParser *parser)
{
	while (parser->next < parser->end)
	{
		char	   *start = parser->next;
		char	   *stop = memchr(start, '\n', parser->end - start);

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
		if (stop > start)
			return found(parser, start, stop - start);
	}
	return KEYLIST_END;
}

/*
 * KeyListStatusText
 *		Says what is wrong with an item or a line, for an error's detail.
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
			return "a double quote does not enclose all of it";
		case KEYLIST_NUL_BYTE:
			return "it contains a NUL byte";
		case KEYLIST_NOT_UTF8:
			return "it is not valid UTF-8";
		case KEYLIST_BYTE_ORDER_MARK:
			return "it starts with a byte order mark";
		case KEYLIST_HIDDEN_TEXT:
			return "it is the text that is shown in place of a secret";
	}
	return "it is valid";
}
