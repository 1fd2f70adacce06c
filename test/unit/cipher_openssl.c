/*-------------------------------------------------------------------------
 *
 * cipher_openssl.c
 *	  AES-128-CBC over OpenSSL, for what runs without a server.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe.h"

#include <openssl/evp.h>

#include "cipher.h"

/* OpenSSL takes the same buffer twice, but not two that overlap otherwise. */
static void
run_openssl(int encrypt, const uint8 *key, const uint8 *iv, const uint8 *in,
			size_t len, uint8 *out)
{
	uint8		copy[CIPHER_PIECE_LEN];
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	int			nout = 0;

	if (len > sizeof(copy) || len % CIPHER_BLOCK_LEN != 0)
	{
		fprintf(stderr, "piece of %zu bytes\n", len);
		abort();
	}
	memcpy(copy, in, len);
	if (ctx == NULL ||
		EVP_CipherInit_ex(ctx, EVP_aes_128_cbc(), NULL, key, iv, encrypt) !=
		1 ||
		EVP_CIPHER_CTX_set_padding(ctx, 0) != 1 ||
		EVP_CipherUpdate(ctx, out, &nout, copy, (int) len) != 1 ||
		(size_t) nout != len)
	{
		fprintf(stderr, "OpenSSL failed\n");
		abort();
	}
	EVP_CIPHER_CTX_free(ctx);
}

void
CipherEncrypt(const uint8 *key, const uint8 *iv, const uint8 *in, size_t len,
			  uint8 *out)
{
	run_openssl(1, key, iv, in, len, out);
}

void
CipherDecrypt(const uint8 *key, const uint8 *iv, const uint8 *in, size_t len,
			  uint8 *out)
{
	run_openssl(0, key, iv, in, len, out);
}
