/*-------------------------------------------------------------------------
 *
 * cipher.h
 *	  AES by pgcrypto, HMAC and SHA-256 by the server.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CIPHER_H
#define CIPHER_H

#include "fernet.h"

#if PG_VERSION_NUM < 180000
#define pg_noreturn __attribute__((noreturn))	/* c.h has it from 18 on */
#endif

extern const FernetCipher *CipherCreate(MemoryContext context,
										const FernetKey *key);
pg_noreturn extern void CipherFail(void);
extern void CipherWipe(void *key, Size size);
extern void CipherHmac(const void *key, size_t key_len, const char *data,
					   size_t len, uint8 *mac);
extern FernetStatus FernetKeyFromSecret(const char *secret, size_t len,
										FernetKey *key);

#endif							/* CIPHER_H */
