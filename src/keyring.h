/*-------------------------------------------------------------------------
 *
 * keyring.h
 *	  The configured keys, and what they seal and open.
 *
 *-------------------------------------------------------------------------
 */
#ifndef KEYRING_H
#define KEYRING_H

#include "secrets.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"				/* before 16, in postgres.h */
#endif

#define KEYRING_FINGERPRINT_LEN 8	/* hex digits */

/* What KeyringFind says where it finds no key */
#define KEYRING_UNKNOWN_KEY (-1)
#define KEYRING_NO_TOKEN (-2)

typedef struct KeyringKey
{
	FernetKey	key;
	FernetContext context;
	SecretOrigin origin;
} KeyringKey;

/* All keys decrypt, the first one encrypts if encrypts. */
typedef struct Keyring
{
	int			nkeys;
	bool		encrypts;
	KeyringKey	keys[FLEXIBLE_ARRAY_MEMBER];
} Keyring;

extern void KeyringInit(void);
extern const Keyring *KeyringGet(void);
extern bytea *KeyringSeal(const Keyring *keyring, const char *message,
						  size_t len, uint64 timestamp);
extern int	KeyringFind(const Keyring *keyring, Datum token,
						uint64 *timestamp);
extern bytea *KeyringOpen(const Keyring *keyring, bytea *token, bool in_place,
						  int *ordinal, uint64 *timestamp);
extern void KeyringFingerprint(const FernetKey *key, char *fingerprint);

#endif							/* KEYRING_H */
