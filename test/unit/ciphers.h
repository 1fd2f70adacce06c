/*-------------------------------------------------------------------------
 *
 * ciphers.h
 *	  The codec's ciphers for programs that run without a server.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CIPHERS_H
#define CIPHERS_H

#include "fernet.h"

#define AES_ROUNDS 10			/* with a key of 128 bits */

typedef struct Sha256
{
	uint32		state[8];
	uint64		len;
	uint8		block[64];
} Sha256;

typedef struct TestCipher
{
	FernetCipher methods;
	uint8		round_keys[AES_ROUNDS + 1][FERNET_BLOCK_LEN];
	Sha256		inner;			/* of HMAC, after the key */
	Sha256		outer;
	Sha256		running;
	int			calls;			/* of AES, so far */
	int			fails_after;	/* calls of any kind that succeed yet, or -1 */
} TestCipher;

extern void Sha256Hash(const void *data, size_t len, uint8 *hash);
extern FernetKey TestKey(const char *secret);
extern const FernetCipher *TestCipherInit(TestCipher *cipher,
										  const FernetKey *key);

#endif							/* CIPHERS_H */
