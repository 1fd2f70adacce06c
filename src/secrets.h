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

extern void SecretsInit(void (*changed) (void));
extern FernetKey *SecretsLoad(int *nkeys);
extern char *SecretToUtf8(const char *secret, size_t len, size_t *utf8_len);

#endif							/* SECRETS_H */
