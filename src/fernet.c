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

#include "cipher.h"
#include "common/cryptohash.h"
#include "common/hmac.h"
#include "fernet.h"
#include "port/pg_bswap.h"

#define FERNET_VERSION 0x80
#define FERNET_TIMESTAMP_AT 1
#define FERNET_IV_AT 9
#define FERNET_HEADER_LEN (FERNET_IV_AT + FERNET_IV_LEN)
#define FERNET_MAC_LEN 32
#define FERNET_MIN_LEN (FERNET_HEADER_LEN + CIPHER_BLOCK_LEN + FERNET_MAC_LEN)

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
 * one, no bit set in what padding leaves over.  dst has room for len bytes and
 * may be src.  Returns the number of bytes, or -1.
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

/* Compares two MACs in a time that does not depend on where they differ. */
static bool
mac_equal(const uint8 *a, const uint8 *b)
{
	volatile uint8 difference = 0;

	for (int i = 0; i < FERNET_MAC_LEN; i++)
		difference |= a[i] ^ b[i];
	return difference == 0;
}

/*
 * FernetTokenLen
 *		Length of the token of a message of message_len bytes.
 */
size_t
FernetTokenLen(size_t message_len)
{
	size_t		padded = (message_len / CIPHER_BLOCK_LEN + 1) * CIPHER_BLOCK_LEN;

	return (FERNET_HEADER_LEN + padded + FERNET_MAC_LEN + 2) / 3 * 4;
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

/*
 * FernetSeal
 *		Makes a token ("Generating" in the specification).
 *
 * timestamp is in seconds since 1970; iv has FERNET_IV_LEN bytes, which must
 * be random and used once; token has room for FernetTokenLen(message_len)
 * characters and gets no terminator.
 */
FernetStatus
FernetSeal(const FernetKey *key, uint64 timestamp, const uint8 *iv,
		   const uint8 *message, size_t message_len, char *token)
{
	FernetStatus status = FERNET_LIBRARY_FAILED;
	Base64Writer writer = {.dst = token};
	uint8		piece[CIPHER_PIECE_LEN];
	uint8		chain[FERNET_IV_LEN];
	uint8		mac[FERNET_MAC_LEN];
	pg_hmac_ctx *hmac;
	bool		last = false;

	fill_tables();
	hmac = pg_hmac_create(PG_SHA256);
	if (hmac == NULL ||
		pg_hmac_init(hmac, key->signing, sizeof(key->signing)) < 0)
		goto leave;

	piece[0] = FERNET_VERSION;
	for (int i = 0; i < 8; i++)
		piece[FERNET_TIMESTAMP_AT + i] = (uint8) (timestamp >> (56 - 8 * i));
	memcpy(piece + FERNET_IV_AT, iv, FERNET_IV_LEN);
	memcpy(chain, iv, FERNET_IV_LEN);
	if (pg_hmac_update(hmac, piece, FERNET_HEADER_LEN) < 0)
		goto leave;
	base64_put(&writer, piece, FERNET_HEADER_LEN);

	while (!last)
	{
		size_t		len = Min(message_len, CIPHER_PIECE_LEN);
		const uint8 *in = message;

		if (len < CIPHER_PIECE_LEN)
		{
			int			npad = CIPHER_BLOCK_LEN - len % CIPHER_BLOCK_LEN;

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
		CipherEncrypt(key->encryption, chain, in, len, piece);
		memcpy(chain, piece + len - FERNET_IV_LEN, FERNET_IV_LEN);
		if (pg_hmac_update(hmac, piece, len) < 0)
			goto leave;
		base64_put(&writer, piece, len);
	}

	if (pg_hmac_final(hmac, mac, sizeof(mac)) < 0)
		goto leave;
	base64_put(&writer, mac, sizeof(mac));
	base64_finish(&writer);
	status = FERNET_OK;

leave:
	pg_hmac_free(hmac);
	return status;
}

/*
 * FernetDecode
 *		Takes a token apart, in place: text holds the bytes afterwards.
 *
 * Checks the form of the token only.  Nobody has vouched for the timestamp
 * until FernetVerify or FernetOpen has.
 */
FernetStatus
FernetDecode(char *text, size_t len, FernetToken *token)
{
	uint8	   *bytes = (uint8 *) text;
	ssize_t		nbytes = base64_decode(text, len, bytes);

	if (nbytes < 0)
		return FERNET_BAD_BASE64;
	if (nbytes < FERNET_MIN_LEN ||
		(nbytes - FERNET_MIN_LEN) % CIPHER_BLOCK_LEN != 0 ||
		bytes[0] != FERNET_VERSION)
		return FERNET_BAD_FORMAT;

	token->bytes = bytes;
	token->len = nbytes;
	token->timestamp = 0;
	for (int i = 0; i < 8; i++)
		token->timestamp = token->timestamp << 8 | bytes[FERNET_TIMESTAMP_AT + i];
	return FERNET_OK;
}

/* Checks that key made the token. */
static FernetStatus
check_mac(const FernetToken *token, const FernetKey *key)
{
	FernetStatus status = FERNET_LIBRARY_FAILED;
	size_t		signed_len = token->len - FERNET_MAC_LEN;
	uint8		mac[FERNET_MAC_LEN];
	pg_hmac_ctx *hmac = pg_hmac_create(PG_SHA256);

	if (hmac != NULL &&
		pg_hmac_init(hmac, key->signing, sizeof(key->signing)) == 0 &&
		pg_hmac_update(hmac, token->bytes, signed_len) == 0 &&
		pg_hmac_final(hmac, mac, sizeof(mac)) == 0)
		status = mac_equal(mac, token->bytes + signed_len) ?
			FERNET_OK : FERNET_BAD_MAC;
	pg_hmac_free(hmac);
	return status;
}

/* Length of the PKCS #7 padding in the last block of a plaintext, or 0. */
static int
padding_len(const uint8 *block)
{
	int			npad = block[CIPHER_BLOCK_LEN - 1];

	if (npad < 1 || npad > CIPHER_BLOCK_LEN)
		return 0;
	for (int i = 1; i <= npad; i++)
		if (block[CIPHER_BLOCK_LEN - i] != npad)
			return 0;
	return npad;
}

/*
 * FernetVerify
 *		Checks that key made the token, and that it decrypts.
 *
 * CBC decryption can fail in the padding alone, so the HMAC and the last
 * block decide; no other plaintext is made.  Sets the length of the message.
 */
FernetStatus
FernetVerify(const FernetToken *token, const FernetKey *key,
			 size_t *message_len)
{
	FernetStatus status = check_mac(token, key);
	size_t		signed_len = token->len - FERNET_MAC_LEN;
	const uint8 *last = token->bytes + signed_len - CIPHER_BLOCK_LEN;
	uint8		block[CIPHER_BLOCK_LEN];
	int			npad;

	if (status != FERNET_OK)
		return status;
	CipherDecrypt(key->encryption, last - CIPHER_BLOCK_LEN, last,
				  CIPHER_BLOCK_LEN, block);
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
 *		Decrypts a token, if key made it.
 *
 * message has room for FernetMaxMessageLen(token) + 1 bytes, and may be the
 * token's own buffer, or any place before it in the same one.  It is left
 * alone where the key is another, so that the next key can be tried.
 */
FernetStatus
FernetOpen(const FernetToken *token, const FernetKey *key, uint8 *message,
		   size_t *message_len)
{
	FernetStatus status = check_mac(token, key);
	const uint8 *in = token->bytes + FERNET_HEADER_LEN;
	size_t		total = token->len - FERNET_HEADER_LEN - FERNET_MAC_LEN;
	uint8		chain[FERNET_IV_LEN];
	int			npad;

	if (status != FERNET_OK)
		return status;
	memcpy(chain, token->bytes + FERNET_IV_AT, FERNET_IV_LEN);
	for (size_t done = 0; done < total;)
	{
		size_t		len = Min(total - done, CIPHER_PIECE_LEN);
		uint8		next[FERNET_IV_LEN];

		memcpy(next, in + done + len - FERNET_IV_LEN, FERNET_IV_LEN);
		CipherDecrypt(key->encryption, chain, in + done, len, message + done);
		memcpy(chain, next, FERNET_IV_LEN);
		done += len;
	}

	npad = padding_len(message + total - CIPHER_BLOCK_LEN);
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
	FernetStatus status = FERNET_LIBRARY_FAILED;
	pg_cryptohash_ctx *hash = pg_cryptohash_create(PG_SHA256);

	if (hash != NULL &&
		pg_cryptohash_init(hash) == 0 &&
		pg_cryptohash_update(hash, (const uint8 *) secret, len) == 0 &&
		pg_cryptohash_final(hash, (uint8 *) key, FERNET_KEY_LEN) == 0)
		status = FERNET_OK;
	pg_cryptohash_free(hash);
	return status;
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
