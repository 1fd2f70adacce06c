/*-------------------------------------------------------------------------
 *
 * fernet.h
 *	  Fernet tokens: bytes in, bytes out, a status back.
 *
 * The codec knows neither SPI nor settings, draws no randomness, reads no
 * clock and raises no error, so that every test vector of the specification
 * can be run against it without a server.  AES, HMAC and SHA-256 are OpenSSL's.
 *
 * Source: the Fernet specification, github.com/fernet/spec (Spec.md).
 *
 *-------------------------------------------------------------------------
 */
#ifndef FERNET_H
#define FERNET_H

#include <openssl/evp.h>
#include <openssl/hmac.h>

#define FERNET_KEY_LEN 32		/* signing key, then encryption key */
#define FERNET_KEY_TEXT_LEN 44	/* the same in base64url */
#define FERNET_IV_LEN 16
#define FERNET_BLOCK_LEN 16		/* of AES */
#define FERNET_MAX_CLOCK_SKEW 60	/* seconds, where a TTL is checked */

/*
 * How much goes through cipher, HMAC and base64 at a time: small enough to stay
 * in the processor's cache on its way, and a multiple of 48, so that both AES
 * blocks and base64 groups come out even.
 */
#define FERNET_PIECE_LEN (24 * 1024)

typedef struct FernetKey
{
	uint8		signing[16];
	uint8		encryption[16];
} FernetKey;

typedef enum FernetStatus
{
	FERNET_OK,
	FERNET_BAD_BASE64,			/* not strict base64url with padding */
	FERNET_BAD_FORMAT,			/* too short, not in blocks, or no version
								 * 0x80 */
	FERNET_BAD_MAC,				/* the key did not sign this */
	FERNET_BAD_PADDING,			/* signed, but not padded by PKCS #7 */
	FERNET_EXPIRED,				/* older than the TTL */
	FERNET_FROM_FUTURE,			/* further ahead than the clock skew */
	FERNET_LIBRARY_FAILED		/* out of memory, or the library said no */
} FernetStatus;

/*
 * A key as OpenSSL works with it.  To set a context up costs twice what a short
 * token does.
 */
typedef struct FernetContext
{
	HMAC_CTX   *hmac;
	EVP_CIPHER_CTX *encrypt;
	EVP_CIPHER_CTX *decrypt;
} FernetContext;

/* A token that has been decoded; the bytes belong to the caller. */
typedef struct FernetToken
{
	uint8	   *bytes;
	size_t		len;
	uint64		timestamp;		/* seconds since 1970 */
} FernetToken;

extern FernetStatus FernetPrepare(FernetContext *context, const FernetKey *key);
extern void FernetRelease(FernetContext *context);
extern size_t FernetTokenLen(size_t message_len);
extern size_t FernetDecodedLen(size_t len);
extern size_t FernetMaxMessageLen(const FernetToken *token);
extern FernetStatus FernetSeal(const FernetContext *context, uint64 timestamp,
							   const uint8 *iv, const uint8 *message,
							   size_t message_len, char *token);
extern FernetStatus FernetDecode(const char *text, size_t len, uint8 *bytes,
								 FernetToken *token);
extern FernetStatus FernetVerify(const FernetToken *token,
								 const FernetContext *context,
								 size_t *message_len);
extern FernetStatus FernetCheckAge(const FernetToken *token, int64 now,
								   int64 ttl);
extern FernetStatus FernetOpen(const FernetToken *token,
							   const FernetContext *context, uint8 *message,
							   size_t *message_len);
extern FernetStatus FernetKeyFromText(const char *text, size_t len,
									  FernetKey *key);
extern void FernetKeyToText(const FernetKey *key, char *text);
extern FernetStatus FernetKeyFromSecret(const char *secret, size_t len,
										FernetKey *key);
extern const char *FernetStatusText(FernetStatus status);

#endif							/* FERNET_H */
