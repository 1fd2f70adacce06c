/*-------------------------------------------------------------------------
 *
 * secrets.h
 *	  Where the keys come from: settings and key file.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SECRETS_H
#define SECRETS_H

#include "cipher.h"
#include "utils/guc.h"

/* Where a key comes from. */
typedef struct SecretOrigin
{
	const struct SecretSource *source;
	int			place;			/* of its secret in the source, from 1 */
} SecretOrigin;

typedef struct SecretKey
{
	FernetKey	key;
	SecretOrigin origin;
} SecretKey;

extern const char *SecretsSetting(size_t n, GucContext *context);
extern void SecretsInit(void (*changed) (void));
extern SecretKey *SecretsLoad(int *nkeys, bool *encrypts);
extern char *SecretOriginText(const SecretOrigin *origin);
extern char *SecretToUtf8(const char *secret, size_t len, size_t *utf8_len);

#endif							/* SECRETS_H */
