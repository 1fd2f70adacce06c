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

/*
 * A rotation needs two keys, and each token that no key reads is tried with
 * all of them.  A hundred are more than anybody has use for, and few enough
 * that a text of any length is read in well under a millisecond.
 */
#define KEYLIST_MAX_SECRETS 100
#define KEYLIST_MAX_BYTES 65536

typedef enum KeyListStatus
{
	KEYLIST_SECRET,				/* a secret was found */
	KEYLIST_END,				/* there is none left */
	KEYLIST_EMPTY_ITEM,			/* nothing between two commas or quotes */
	KEYLIST_UNCLOSED_QUOTE,
	KEYLIST_STRAY_QUOTE,		/* a quote that does not enclose an item */
	KEYLIST_OUTER_BLANK,		/* a line with a blank at an end */
	KEYLIST_COMMENT,			/* a line that starts with # */
	KEYLIST_CARRIAGE_RETURN,	/* a line with one that does not end it */
	KEYLIST_NUL_BYTE,
	KEYLIST_NOT_UTF8,
	KEYLIST_BYTE_ORDER_MARK,
	KEYLIST_TOO_MANY			/* more than KEYLIST_MAX_SECRETS */
} KeyListStatus;

/* The state of a parser; the text belongs to the caller. */
typedef struct KeyListParser
{
	char	   *next;
	char	   *end;
	int			nsecrets;		/* how many were found */
	int			ordinal;		/* of the item or line read last, from 1 */
	bool		comma;			/* was a comma read, after which an item must
								 * follow? */
	size_t		full_line;		/* length of the line before, if it is one
								 * that base64 programs break off at */
	bool		continues;		/* does the line read last look like the rest
								 * of that one? */
	char	   *secret;			/* points into the text, not terminated */
	size_t		len;
} KeyListParser;

extern void KeyListStart(KeyListParser *parser, char *text, size_t len);
extern KeyListStatus KeyListNextItem(KeyListParser *parser);
extern KeyListStatus KeyListNextLine(KeyListParser *parser);
extern const char *KeyListStatusText(KeyListStatus status);

#endif							/* KEYLIST_H */
