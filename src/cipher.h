/*-------------------------------------------------------------------------
 *
 * cipher.h
 *	  AES-128 in CBC mode over whole blocks, without padding.
 *
 * cipher.c does it through pgcrypto; the unit test and the fuzzer, which run
 * without a server, link an implementation over OpenSSL instead.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CIPHER_H
#define CIPHER_H

#define CIPHER_BLOCK_LEN 16
#define CIPHER_KEY_LEN 16

/*
 * How much one call takes at most: small enough that a piece stays in the
 * processor's cache on its way through cipher, HMAC and base64, and a
 * multiple of 48, so that both AES blocks and base64 groups come out even.
 */
#define CIPHER_PIECE_LEN (24 * 1024)

extern void CipherEncrypt(const uint8 *key, const uint8 *iv,
						  const uint8 *in, size_t len, uint8 *out);
extern void CipherDecrypt(const uint8 *key, const uint8 *iv,
						  const uint8 *in, size_t len, uint8 *out);

#endif							/* CIPHER_H */
