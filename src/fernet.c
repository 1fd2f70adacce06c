/*-------------------------------------------------------------------------
 *
 * fernet.c
 *	  Fernet tokens.
 *
 * A token is the base64url text, padded, of
 *
 *		version (0x80)		 1 byte
 *		timestamp			 8 bytes, seconds since 1970, big-endian
 *		IV					16 bytes
 *		ciphertext			AES-128-CBC, PKCS #7 padding
 *		HMAC				32 bytes, SHA-256 over all of the above
 *
 * Source: the Fernet specification, sections "Key Format", "Token Format",
 * "Generating" and "Verifying".  Base64url: RFC 4648, section 5.
 *
 * A message goes through cipher, HMAC and base64 in pieces that fit the
 * processor's cache, so a large one costs one buffer, that of the result.
 *
 *-------------------------------------------------------------------------
 */
#ifdef FRONTEND
#include "postgres_fe.h"
#else
#include "postgres.h"
#endif

#include "fernet.h"
#include "port/pg_bswap.h"

#define FERNET_VERSION 0x80
#define FERNET_TIMESTAMP_AT 1
#define FERNET_IV_AT 9
#define FERNET_HEADER_LEN (FERNET_IV_AT + FERNET_IV_LEN)
#define FERNET_MAC_LEN 32
#define FERNET_MIN_LEN (FERNET_HEADER_LEN + FERNET_BLOCK_LEN + FERNET_MAC_LEN)

static const char base64url[] =
"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/*
 * Lookup tables, filled on first use: two characters for each 12 bits, and
 * the bits of a character at each of the four places of a group, with
 * NOT_BASE64 for what is no character of the alphabet.
 */
#define NOT_BASE64 UINT32_C(0x80000000)

static char encode_pair[4096][2];
static uint32 decode_char[4][256];

/* Where base64 text is written, and the bytes that wait for a third. */
typedef struct Base64Writer
{
	char	   *dst;
	uint8		pending[3];
	int			npending;
} Base64Writer;

static void
fill_tables(void)
{
	static bool filled = false;

	if (filled)
		return;
	for (int i = 0; i < 4096; i++)
	{
		encode_pair[i][0] = base64url[i >> 6];
		encode_pair[i][1] = base64url[i & 63];
	}
	for (int place = 0; place < 4; place++)
	{
		for (int c = 0; c < 256; c++)
			decode_char[place][c] = NOT_BASE64;
		for (int i = 0; i < 64; i++)
			decode_char[place][(uint8) base64url[i]] =
				(uint32) i << (18 - 6 * place);
	}
	filled = true;
}

/* Writes the four characters of three bytes. */
static inline void
base64_put_group(char *dst, const uint8 *src)
{
	memcpy(dst, encode_pair[src[0] << 4 | src[1] >> 4], 2);
	memcpy(dst + 2, encode_pair[(src[1] & 15) << 8 | src[2]], 2);
}

/* Encodes len bytes; up to two stay pending for the next call. */
static void
base64_put(Base64Writer *writer, const uint8 *src, size_t len)
{
	const uint8 *end = src + len;
	char	   *dst = writer->dst;

	while (writer->npending > 0 && src < end)
	{
		writer->pending[writer->npending++] = *src++;
		if (writer->npending == 3)
		{
			base64_put_group(dst, writer->pending);
			dst += 4;
			writer->npending = 0;
		}
	}
	/* two groups at a time, as long as eight bytes can be read */
	for (; end - src >= 8; src += 6, dst += 8)
	{
		uint64		bits;

		memcpy(&bits, src, sizeof(bits));
		bits = pg_ntoh64(bits);
		memcpy(dst, encode_pair[bits >> 52], 2);
		memcpy(dst + 2, encode_pair[(bits >> 40) & 4095], 2);
		memcpy(dst + 4, encode_pair[(bits >> 28) & 4095], 2);
		memcpy(dst + 6, encode_pair[(bits >> 16) & 4095], 2);
	}
	for (; end - src >= 3; src += 3, dst += 4)
		base64_put_group(dst, src);
	while (src < end)
		writer->pending[writer->npending++] = *src++;
	writer->dst = dst;
}

/* Encodes what is pending, with padding. */
static void
base64_finish(Base64Writer *writer)
{
	if (writer->npending == 0)
		return;
	for (int i = writer->npending; i < 3; i++)
		writer->pending[i] = 0;
	base64_put_group(writer->dst, writer->pending);
	memset(writer->dst + writer->npending + 1, '=', 3 - writer->npending);
}

/* Returns the three bytes of a group, or something with NOT_BASE64 in it. */
static inline uint32
decode_group(const uint8 *src)
{
	return decode_char[0][src[0]] | decode_char[1][src[1]] |
		decode_char[2][src[2]] | decode_char[3][src[3]];
}

/*
 * Decodes strict base64url: whole groups, '=' only as the padding of the last
 * one, no bit set in what padding leaves over.  dst has room for three bytes a
 * group and may be text.  Returns the number of bytes, or -1.
 */
static ssize_t
base64_decode(const char *text, size_t len, uint8 *dst)
{
	const uint8 *src = (const uint8 *) text;
	const uint8 *last;
	uint8	   *start = dst;
	uint32		bits;
	uint32		seen = 0;
	int			npad;

	if (len == 0 || len % 4 != 0)
		return -1;
	fill_tables();

	last = src + len - 4;

	/* two groups at a time: the two bytes too many are written over later */
	for (; last - src >= 8; src += 8, dst += 6)
	{
		uint32		first = decode_group(src);
		uint32		second = decode_group(src + 4);
		uint64		both = pg_hton64((uint64) first << 40 |
									 (uint64) second << 16);

		seen |= first | second;
		memcpy(dst, &both, sizeof(both));
	}
	for (; src < last; src += 4)
	{
		bits = decode_group(src);
		seen |= bits;
		*dst++ = (uint8) (bits >> 16);
		*dst++ = (uint8) (bits >> 8);
		*dst++ = (uint8) bits;
	}

	npad = last[3] != '=' ? 0 : last[2] != '=' ? 1 : 2;
	bits = decode_char[0][last[0]] | decode_char[1][last[1]];
	if (npad < 2)
		bits |= decode_char[2][last[2]];
	if (npad < 1)
		bits |= decode_char[3][last[3]];
	seen |= bits;
	if ((seen & NOT_BASE64) != 0 || (bits & ((1U << (8 * npad)) - 1)) != 0)
		return -1;
	*dst++ = (uint8) (bits >> 16);
	if (npad < 2)
		*dst++ = (uint8) (bits >> 8);
	if (npad < 1)
		*dst++ = (uint8) bits;
	return dst - start;
}

/*
 * FernetTokenLen
 *		Length of the token of a message of message_len bytes.
 */
size_t
FernetTokenLen(size_t message_len)
{
	size_t		padded = (message_len / FERNET_BLOCK_LEN + 1) * FERNET_BLOCK_LEN;

	return (FERNET_HEADER_LEN + padded + FERNET_MAC_LEN + 2) / 3 * 4;
}

/*
 * FernetDecodedLen
 *		Room that a token of len characters needs when it is decoded.
 */
size_t
FernetDecodedLen(size_t len)
{
	return len / 4 * 3;
}

/*
 * FernetMaxMessageLen
 *		Length that the message in a decoded token has at most; it has at
 *		least 15 bytes less, which only decryption can tell.
 */
size_t
FernetMaxMessageLen(const FernetToken *token)
{
	return token->len - FERNET_HEADER_LEN - FERNET_MAC_LEN - 1;
}

/* Makes a context that encrypts or decrypts with an AES key, or NULL. */
static EVP_CIPHER_CTX *
make_cipher(const uint8 *key, int encrypt)
{
	EVP_CIPHER_CTX *cipher = EVP_CIPHER_CTX_new();

	if (cipher != NULL &&
		(EVP_CipherInit_ex(cipher, EVP_aes_128_cbc(), NULL, key, NULL,
						   encrypt) != 1 ||
		 EVP_CIPHER_CTX_set_padding(cipher, 0) != 1))
	{
		EVP_CIPHER_CTX_free(cipher);
		cipher = NULL;
	}
	return cipher;
}

/*
 * FernetPrepare
 *		Makes the context of a key, which holds the key until FernetRelease.
 *
 * The memory is OpenSSL's, so no error may be raised in between unless the
 * context is where it will be found again.
 */
FernetStatus
FernetPrepare(FernetContext *context, const FernetKey *key)
{
	context->hmac = HMAC_CTX_new();
	context->encrypt = make_cipher(key->encryption, 1);
	context->decrypt = make_cipher(key->encryption, 0);
	if (context->hmac != NULL && context->encrypt != NULL &&
		context->decrypt != NULL &&
		HMAC_Init_ex(context->hmac, key->signing, sizeof(key->signing),
					 EVP_sha256(), NULL) == 1)
		return FERNET_OK;
	FernetRelease(context);
	return FERNET_LIBRARY_FAILED;
}

/*
 * FernetRelease
 *		Wipes and frees what FernetPrepare made; a context of zeros holds
 *		nothing.
 */
void
FernetRelease(FernetContext *context)
{
	HMAC_CTX_free(context->hmac);
	EVP_CIPHER_CTX_free(context->encrypt);
	EVP_CIPHER_CTX_free(context->decrypt);
	memset(context, 0, sizeof(*context));
}

/* Runs len bytes through a cipher; out is in, or does not overlap it. */
static bool
run_cipher(EVP_CIPHER_CTX *cipher, const uint8 *in, size_t len, uint8 *out)
{
	int			outlen;

	return EVP_CipherUpdate(cipher, out, &outlen, in, (int) len) == 1 &&
		(size_t) outlen == len;
}

/* Starts anew with the key that a context holds. */
static bool
restart_hmac(HMAC_CTX *hmac)
{
	return HMAC_Init_ex(hmac, NULL, 0, NULL, NULL) == 1;
}

static bool
restart_cipher(EVP_CIPHER_CTX *cipher, const uint8 *iv)
{
	return EVP_CipherInit_ex(cipher, NULL, NULL, NULL, iv, -1) == 1;
}

/*
 * FernetSeal
 *		Makes a token ("Generating" in the specification).
 *
 * timestamp is in seconds since 1970; iv has FERNET_IV_LEN bytes, which must
 * be random and used once; token has room for FernetTokenLen(message_len)
 * characters and gets no terminator.
 */
FernetStatus
FernetSeal(const FernetContext *context, uint64 timestamp, const uint8 *iv,
		   const uint8 *message, size_t message_len, char *token)
{
	Base64Writer writer = {.dst = token};
	uint8		piece[FERNET_PIECE_LEN];
	uint8		mac[FERNET_MAC_LEN];
	bool		last = false;

	fill_tables();
	piece[0] = FERNET_VERSION;
	for (int i = 0; i < 8; i++)
		piece[FERNET_TIMESTAMP_AT + i] = (uint8) (timestamp >> (56 - 8 * i));
	memcpy(piece + FERNET_IV_AT, iv, FERNET_IV_LEN);
	if (!restart_hmac(context->hmac) ||
		!restart_cipher(context->encrypt, iv) ||
		HMAC_Update(context->hmac, piece, FERNET_HEADER_LEN) != 1)
		return FERNET_LIBRARY_FAILED;
	base64_put(&writer, piece, FERNET_HEADER_LEN);

	while (!last)
	{
		size_t		len = Min(message_len, FERNET_PIECE_LEN);
		const uint8 *in = message;

		if (len < FERNET_PIECE_LEN)
		{
			int			npad = FERNET_BLOCK_LEN - len % FERNET_BLOCK_LEN;

			if (len > 0)
				memcpy(piece, message, len);
			memset(piece + len, npad, npad);
			in = piece;
			message_len -= len;
			len += npad;
			last = true;
		}
		else
		{
			message += len;
			message_len -= len;
		}
		if (!run_cipher(context->encrypt, in, len, piece) ||
			HMAC_Update(context->hmac, piece, len) != 1)
		{
			explicit_bzero(piece, sizeof(piece));
			return FERNET_LIBRARY_FAILED;
		}
		base64_put(&writer, piece, len);
	}

	if (HMAC_Final(context->hmac, mac, NULL) != 1)
		return FERNET_LIBRARY_FAILED;
	base64_put(&writer, mac, sizeof(mac));
	base64_finish(&writer);
	return FERNET_OK;
}

/*
 * FernetDecode
 *		Takes a token apart.
 *
 * bytes has room for FernetDecodedLen(len) bytes and may be text.  Checks the
 * form of the token only.  Nobody has vouched for the timestamp until
 * FernetVerify or FernetOpen has.
 */
FernetStatus
FernetDecode(const char *text, size_t len, uint8 *bytes, FernetToken *token)
{
	ssize_t		nbytes = base64_decode(text, len, bytes);

	if (nbytes < 0)
		return FERNET_BAD_BASE64;
	if (nbytes < FERNET_MIN_LEN ||
		(nbytes - FERNET_MIN_LEN) % FERNET_BLOCK_LEN != 0 ||
		bytes[0] != FERNET_VERSION)
		return FERNET_BAD_FORMAT;

	token->bytes = bytes;
	token->len = nbytes;
	token->timestamp = 0;
	for (int i = 0; i < 8; i++)
		token->timestamp = token->timestamp << 8 | bytes[FERNET_TIMESTAMP_AT + i];
	return FERNET_OK;
}

/* Checks that the context's key made the token. */
static FernetStatus
check_mac(const FernetToken *token, const FernetContext *context)
{
	size_t		signed_len = token->len - FERNET_MAC_LEN;
	uint8		mac[FERNET_MAC_LEN];

	if (!restart_hmac(context->hmac) ||
		HMAC_Update(context->hmac, token->bytes, signed_len) != 1 ||
		HMAC_Final(context->hmac, mac, NULL) != 1)
		return FERNET_LIBRARY_FAILED;
	return CRYPTO_memcmp(mac, token->bytes + signed_len, FERNET_MAC_LEN) == 0 ?
		FERNET_OK : FERNET_BAD_MAC;
}

/* Length of the PKCS #7 padding in the last block of a plaintext, or 0. */
static int
padding_len(const uint8 *block)
{
	int			npad = block[FERNET_BLOCK_LEN - 1];

	if (npad < 1 || npad > FERNET_BLOCK_LEN)
		return 0;
	for (int i = 1; i <= npad; i++)
		if (block[FERNET_BLOCK_LEN - i] != npad)
			return 0;
	return npad;
}

/*
 * FernetVerify
 *		Checks that the context's key made the token, and that it decrypts.
 *
 * CBC decryption can fail in the padding alone, so the HMAC and the last
 * block decide; no other plaintext is made.  Sets the length of the message.
 */
FernetStatus
FernetVerify(const FernetToken *token, const FernetContext *context,
			 size_t *message_len)
{
	FernetStatus status = check_mac(token, context);
	size_t		signed_len = token->len - FERNET_MAC_LEN;
	const uint8 *last = token->bytes + signed_len - FERNET_BLOCK_LEN;
	uint8		block[FERNET_BLOCK_LEN];
	int			npad;

	if (status != FERNET_OK)
		return status;
	if (!restart_cipher(context->decrypt, last - FERNET_BLOCK_LEN) ||
		!run_cipher(context->decrypt, last, FERNET_BLOCK_LEN, block))
		return FERNET_LIBRARY_FAILED;
	npad = padding_len(block);
	explicit_bzero(block, sizeof(block));
	if (npad == 0)
		return FERNET_BAD_PADDING;
	*message_len = signed_len - FERNET_HEADER_LEN - npad;
	return FERNET_OK;
}

/*
 * FernetCheckAge
 *		Checks a verified token's timestamp against now (seconds since 1970)
 *		and ttl (seconds), as step 3 of "Verifying" says.
 */
FernetStatus
FernetCheckAge(const FernetToken *token, int64 now, int64 ttl)
{
	if (token->timestamp > PG_INT64_MAX ||
		(int64) token->timestamp - FERNET_MAX_CLOCK_SKEW > now)
		return FERNET_FROM_FUTURE;
	if (now - (int64) token->timestamp > ttl)
		return FERNET_EXPIRED;
	return FERNET_OK;
}

/*
 * FernetOpen
 *		Decrypts a token, if the context's key made it.
 *
 * message has room for FernetMaxMessageLen(token) + 1 bytes, and may be the
 * token's own buffer, or any place before it in the same one.  It is left
 * alone where the key is another, so that the next key can be tried.
 */
FernetStatus
FernetOpen(const FernetToken *token, const FernetContext *context,
		   uint8 *message, size_t *message_len)
{
	FernetStatus status = check_mac(token, context);
	const uint8 *in = token->bytes + FERNET_HEADER_LEN;
	size_t		total = token->len - FERNET_HEADER_LEN - FERNET_MAC_LEN;
	uint8		piece[FERNET_PIECE_LEN];
	int			npad;

	if (status != FERNET_OK)
		return status;
	if (!restart_cipher(context->decrypt, token->bytes + FERNET_IV_AT))
		return FERNET_LIBRARY_FAILED;
	for (size_t done = 0; done < total;)
	{
		size_t		len = Min(total - done, FERNET_PIECE_LEN);

		/* what is read may lie under what is written */
		memcpy(piece, in + done, len);
		if (!run_cipher(context->decrypt, piece, len, message + done))
		{
			explicit_bzero(message, done + len);
			return FERNET_LIBRARY_FAILED;
		}
		done += len;
	}

	npad = padding_len(message + total - FERNET_BLOCK_LEN);
	if (npad == 0)
	{
		explicit_bzero(message, total);
		return FERNET_BAD_PADDING;
	}
	/* what follows the message is padding, not for the caller */
	*message_len = total - npad;
	memset(message + *message_len, 0, npad);
	return FERNET_OK;
}

/*
 * FernetKeyFromText
 *		Reads a key: the base64url text, padded, of 32 bytes.
 */
FernetStatus
FernetKeyFromText(const char *text, size_t len, FernetKey *key)
{
	uint8		bytes[FERNET_KEY_TEXT_LEN];
	FernetStatus status = FERNET_BAD_BASE64;

	if (len == FERNET_KEY_TEXT_LEN &&
		base64_decode(text, len, bytes) == FERNET_KEY_LEN)
	{
		memcpy(key, bytes, FERNET_KEY_LEN);
		status = FERNET_OK;
	}
	explicit_bzero(bytes, sizeof(bytes));
	return status;
}

/*
 * FernetKeyToText
 *		Writes a key as FERNET_KEY_TEXT_LEN characters, without terminator.
 */
void
FernetKeyToText(const FernetKey *key, char *text)
{
	Base64Writer writer = {.dst = text};

	fill_tables();
	base64_put(&writer, (const uint8 *) key, FERNET_KEY_LEN);
	base64_finish(&writer);
	explicit_bzero(&writer, sizeof(writer));
}

/*
 * FernetKeyFromSecret
 *		Makes the key of a secret: the SHA-256 of its bytes.
 */
FernetStatus
FernetKeyFromSecret(const char *secret, size_t len, FernetKey *key)
{
	return EVP_Digest(secret, len, (uint8 *) key, NULL, EVP_sha256(), NULL) == 1 ?
		FERNET_OK : FERNET_LIBRARY_FAILED;
}

/*
 * FernetStatusText
 *		Says for the log what was wrong; users are not told which it was.
 */
const char *
FernetStatusText(FernetStatus status)
{
	switch (status)
	{
		case FERNET_OK:
			return "valid";
		case FERNET_BAD_BASE64:
			return "not base64url";
		case FERNET_BAD_FORMAT:
			return "wrong length or version";
		case FERNET_BAD_MAC:
			return "signed with another key, or damaged";
		case FERNET_BAD_PADDING:
			return "wrong padding";
		case FERNET_EXPIRED:
			return "expired";
		case FERNET_FROM_FUTURE:
			return "made in the future";
		case FERNET_LIBRARY_FAILED:
			return "cryptographic library failed";
	}
	return "unknown";
}
