/*-------------------------------------------------------------------------
 *
 * fernet.h
 *	  Fernet tokens: bytes in, bytes out, a status back.
 *
 * The codec knows neither SPI nor settings, draws no randomness, reads no
 * clock and raises no error.  The ciphers come from its caller, as a
 * FernetCipher: in a server these are pgcrypto's and the server's, which
 * exist nowhere else.  So every test vector of the specification, and a fuzzer,
 * can be run against the codec without a server.
 *
 * Source: the Fernet specification, github.com/fernet/spec (Spec.md).
 *
 *-------------------------------------------------------------------------
 */
#ifndef FERNET_H
#define FERNET_H

#define FERNET_KEY_LEN 32		/* signing key, then encryption key */
#define FERNET_KEY_TEXT_LEN 44	/* the same in base64url */
#define FERNET_IV_LEN 16
#define FERNET_BLOCK_LEN 16		/* of AES */
#define FERNET_MAC_LEN 32		/* of HMAC-SHA-256 */
#define FERNET_HEADER_LEN 25	/* version, time and IV of a token */
#define FERNET_MAX_CLOCK_SKEW 60	/* seconds, where a TTL is checked */

/*
 * How much goes through cipher, HMAC and base64 at a time: small enough to stay
 * in the processor's cache on its way, and a multiple of 48, so that both AES
 * blocks and base64 groups come out even.
 */
#define FERNET_PIECE_LEN (48 * 1024)

typedef struct FernetKey
{
	uint8		signing[16];
	uint8		encryption[16];
} FernetKey;

/*
 * Runs len bytes of whole blocks, FERNET_PIECE_LEN at most, through AES-128 in
 * CBC mode, without padding.  The result replaces the blocks.  They are
 * aligned to four bytes, and the FERNET_CIPHER_ROOM bytes before them may be
 * overwritten.  The iv may lie within the blocks.  Returns false on failure,
 * and then has wiped the blocks.
 */
typedef bool (*FernetCrypt) (void *context, const uint8 *iv, uint8 *blocks,
							 size_t len);

#define FERNET_CIPHER_ROOM 4

/* AES and HMAC with one key.  Each function returns false if it has failed. */
typedef struct FernetCipher
{
	void	   *context;		/* handed to each */
	FernetCrypt encrypt;
	FernetCrypt decrypt;
	/* HMAC-SHA-256: start over, add bytes, write FERNET_MAC_LEN bytes */
	bool		(*hmac_init) (void *context);
	bool		(*hmac_update) (void *context, const uint8 *data, size_t len);
	bool		(*hmac_final) (void *context, uint8 *mac);
} FernetCipher;

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
	FERNET_CIPHER_FAILED		/* the cipher returned false */
} FernetStatus;

/* A token that has been decoded; the bytes belong to the caller. */
typedef struct FernetToken
{
	uint8	   *bytes;
	size_t		len;
	uint64		timestamp;		/* seconds since 1970 */
	FernetStatus status;		/* how decryption ended */
	size_t		message_len;	/* of the message that it left in bytes */
} FernetToken;

/* The last block of a token's ciphertext, and the one before it. */
typedef struct FernetTail
{
	uint8		blocks[2 * FERNET_BLOCK_LEN];
	FernetStatus status;		/* of its padding, once that has been checked */
} FernetTail;

/* A message that is to become a token. */
typedef struct FernetMessage
{
	const uint8 *bytes;
	size_t		len;
	uint64		timestamp;		/* seconds since 1970 */
	uint8		seed[FERNET_IV_LEN];	/* random, and used once */
	char	   *token;			/* room for FernetTokenLen(len) characters */
} FernetMessage;

extern size_t FernetTokenLen(size_t message_len);
extern size_t FernetDecodedLen(size_t len);
extern size_t FernetMaxMessageLen(const FernetToken *token);
extern FernetStatus FernetSeal(const FernetCipher *cipher, uint64 timestamp,
							   const uint8 *iv, const uint8 *message,
							   size_t message_len, char *token);
extern FernetStatus FernetSealMany(const FernetCipher *cipher,
								   const FernetMessage *messages,
								   int nmessages);
extern FernetStatus FernetDecode(const char *text, size_t len, uint8 *bytes,
								 FernetToken *token);
extern FernetStatus FernetCheckMac(const FernetToken *token,
								   const FernetCipher *cipher);
extern void FernetGetTail(const FernetToken *token, FernetTail *tail);
extern FernetStatus FernetCheckPadding(FernetTail **tails, int ntails,
									   const FernetCipher *cipher);
extern FernetStatus FernetVerify(const FernetToken *token,
								 const FernetCipher *cipher);
extern FernetStatus FernetCheckAge(const FernetToken *token, int64 now,
								   int64 ttl);
extern FernetStatus FernetOpen(FernetToken *token, const FernetCipher *cipher);
extern FernetStatus FernetDecryptMany(FernetToken **tokens, int ntokens,
									  const FernetCipher *cipher);
extern FernetStatus FernetKeyFromText(const char *text, size_t len,
									  FernetKey *key);
extern void FernetKeyToText(const FernetKey *key, char *text);
extern const char *FernetStatusText(FernetStatus status);

#endif							/* FERNET_H */
