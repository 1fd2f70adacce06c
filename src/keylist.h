/*-------------------------------------------------------------------------
 *
 * keylist.h
 *	  Secrets out of the text of a key list or a key file.
 *
 * Pure functions over bytes, so that they can be tested and fuzzed without a
 * server.
 *
 *-------------------------------------------------------------------------
 */
#ifndef KEYLIST_H
#define KEYLIST_H

typedef enum KeyListStatus
{
	KEYLIST_SECRET,				/* a secret was found */
	KEYLIST_END,				/* there is none left */
	KEYLIST_EMPTY_ITEM,			/* nothing between two commas or quotes */
	KEYLIST_UNCLOSED_QUOTE,
	KEYLIST_STRAY_QUOTE,		/* a quote that does not enclose an item */
	KEYLIST_NUL_BYTE,
	KEYLIST_NOT_UTF8,
	KEYLIST_BYTE_ORDER_MARK,
	KEYLIST_HIDDEN_TEXT			/* what is shown in place of secrets;
								 * keyring.c says so */
} KeyListStatus;

/* Where a parser stands; the text belongs to the caller. */
typedef struct KeyListParser
{
	char	   *next;
	char	   *end;
	int			ordinal;		/* of the item or line read last, from 1 */
	bool		comma;			/* was a comma read, after which an item must
								 * follow? */
	char	   *secret;			/* points into the text, not terminated */
	size_t		len;
} KeyListParser;

extern void KeyListStart(KeyListParser *parser, char *text, size_t len);
extern KeyListStatus KeyListNextItem(KeyListParser *parser);
extern KeyListStatus KeyListNextLine(KeyListParser *parser);
extern const char *KeyListStatusText(KeyListStatus status);

#endif							/* KEYLIST_H */
