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

extern const FernetCipher *CipherCreate(MemoryContext context,
										const FernetKey *key);
extern void CipherFail(void) pg_attribute_noreturn();
extern void CipherHmac(const void *key, size_t key_len, const char *data,
					   size_t len, uint8 *mac);
extern FernetStatus FernetKeyFromSecret(const char *secret, size_t len,
										FernetKey *key);

#endif							/* CIPHER_H */
