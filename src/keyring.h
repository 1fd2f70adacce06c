/*-------------------------------------------------------------------------
 *
 * keyring.h
 *	  The configured keys, and what they seal and open.
 *
 * The keys are known by their ordinals, from 0; the first one encrypts where
 * KeyringEncrypts() says so, all decrypt.  A setting can change them whenever
 * SQL runs, in a policy's function for example, so nobody gets a pointer to
 * them, and ordinals that are kept while SQL runs are good as long as
 * KeyringGeneration() is the same.
 *
 *-------------------------------------------------------------------------
 */
#ifndef KEYRING_H
#define KEYRING_H

#if PG_VERSION_NUM >= 160000
#include "varatt.h"				/* before 16, in postgres.h */
#endif

#define KEYRING_FINGERPRINT_LEN 8	/* hex digits */

/* Instead of an ordinal, where there is no key */
#define KEYRING_UNKNOWN_KEY (-1)
#define KEYRING_NO_TOKEN (-2)

/* A token among many, and what is found out about it */
typedef struct KeyringItem
{
	bytea	   *token;			/* not toasted */
	int			ordinal;		/* of the key that made it, or one of the
								 * above */
	uint64		timestamp;		/* seconds since 1970, if it is a token */
	bytea	   *result;			/* the message, or the new token, or NULL */
} KeyringItem;

extern void KeyringInit(void);
extern int	KeyringCount(void);
extern bool KeyringEncrypts(void);
extern uint64 KeyringGeneration(void);
extern bytea *KeyringSeal(const char *message, size_t len, uint64 timestamp);
extern int	KeyringFind(Datum token, uint64 *timestamp);
extern void KeyringFindMany(const Datum *tokens, int ntokens, int *ordinals,
							uint64 *timestamps);
extern bytea *KeyringOpen(bytea *token);
extern void KeyringOpenMany(KeyringItem *items, int nitems);
extern void KeyringReseal(KeyringItem *items, int nitems);
extern void KeyringFingerprint(int ordinal, char *fingerprint);
extern char *KeyringSource(int ordinal);
extern const char *KeyringProblem(int ordinal);

#endif							/* KEYRING_H */
