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
 * A call of the cipher costs as much as some hundred bytes do, so tokens of one
 * key share calls: to CBC, IV and ciphertext of one token after those of
 * another are one ciphertext.  It decrypts block by block, each with the one
 * before it, and what comes out in the places of the IVs is thrown away.
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
#define FERNET_MIN_LEN (FERNET_HEADER_LEN + FERNET_BLOCK_LEN + FERNET_MAC_LEN)

StaticAssertDecl(FERNET_HEADER_LEN == FERNET_IV_AT + FERNET_IV_LEN,
				 "the header of a token ends with the IV");

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
 * one, no bit set in what padding leaves over.  dst has room for three bytes
 * per group and may be text.  Returns the number of bytes, or -1.
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
 *		The most bytes that the message in a decoded token can have.  It may
 *		have up to 15 fewer, which only decryption can tell.
 */
size_t
FernetMaxMessageLen(const FernetToken *token)
{
	return token->len - FERNET_HEADER_LEN - FERNET_MAC_LEN - 1;
}

/*
 * What goes through a cipher, with room before it for the header of a token,
 * which gives the cipher its room too.
 */
typedef struct Piece
{
	uint8		room[FERNET_BLOCK_LEN];
	uint8		blocks[FERNET_PIECE_LEN];
} Piece;

StaticAssertDecl(offsetof(Piece, blocks) >= FERNET_IV_AT &&
				 offsetof(Piece, blocks) >= FERNET_CIPHER_ROOM,
				 "a header fits before the blocks");

/* Writes the start of a token, up to its IV. */
static void
put_header(uint8 *header, uint64 timestamp)
{
	header[0] = FERNET_VERSION;
	for (int i = 0; i < 8; i++)
		header[FERNET_TIMESTAMP_AT + i] = (uint8) (timestamp >> (56 - 8 * i));
}

/* Copies the end of a message, with padding; returns its length with that. */
static size_t
put_padded(uint8 *dst, const uint8 *src, size_t len)
{
	int			npad = FERNET_BLOCK_LEN - len % FERNET_BLOCK_LEN;

	if (len > 0)
		memcpy(dst, src, len);
	memset(dst + len, npad, npad);
	return len + npad;
}

/* Signs and encodes a part of a token. */
static bool
put_signed(const FernetCipher *cipher, Base64Writer *writer, const uint8 *src,
		   size_t len)
{
	base64_put(writer, src, len);
	return cipher->hmac_update(cipher->context, src, len);
}

/* Ends a token with its HMAC. */
static bool
put_mac(const FernetCipher *cipher, Base64Writer *writer)
{
	uint8		mac[FERNET_MAC_LEN];

	if (!cipher->hmac_final(cipher->context, mac))
		return false;
	base64_put(writer, mac, sizeof(mac));
	base64_finish(writer);
	return true;
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
FernetSeal(const FernetCipher *cipher, uint64 timestamp, const uint8 *iv,
		   const uint8 *message, size_t message_len, char *token)
{
	Base64Writer writer = {.dst = token};
	Piece		piece;
	uint8		header[FERNET_HEADER_LEN];
	uint8		previous[FERNET_BLOCK_LEN];
	bool		last = false;

	fill_tables();
	put_header(header, timestamp);
	memcpy(header + FERNET_IV_AT, iv, FERNET_IV_LEN);
	if (!cipher->hmac_init(cipher->context) ||
		!put_signed(cipher, &writer, header, sizeof(header)))
		return FERNET_CIPHER_FAILED;

	memcpy(previous, iv, FERNET_IV_LEN);
	while (!last)
	{
		size_t		len = FERNET_PIECE_LEN;

		last = message_len < FERNET_PIECE_LEN;
		if (last)
			len = put_padded(piece.blocks, message, message_len);
		else
		{
			memcpy(piece.blocks, message, FERNET_PIECE_LEN);
			message += FERNET_PIECE_LEN;
			message_len -= FERNET_PIECE_LEN;
		}
		if (!cipher->encrypt(cipher->context, previous, piece.blocks, len) ||
			!put_signed(cipher, &writer, piece.blocks, len))
			return FERNET_CIPHER_FAILED;
		memcpy(previous, piece.blocks + len - FERNET_BLOCK_LEN,
			   FERNET_BLOCK_LEN);
	}
	return put_mac(cipher, &writer) ? FERNET_OK : FERNET_CIPHER_FAILED;
}

/* What a message and its IV take of a piece. */
static size_t
sealed_len(const FernetMessage *message)
{
	return FERNET_IV_LEN +
		(message->len / FERNET_BLOCK_LEN + 1) * FERNET_BLOCK_LEN;
}

/* Makes tokens of messages that fit a piece together. */
static FernetStatus
seal_piece(const FernetCipher *cipher, const FernetMessage *messages,
		   int nmessages)
{
	static const uint8 zero_iv[FERNET_IV_LEN] = {0};
	Piece		piece;
	uint8	   *at = piece.blocks;

	for (int i = 0; i < nmessages; i++)
	{
		memcpy(at, messages[i].seed, FERNET_IV_LEN);
		at += FERNET_IV_LEN;
		at += put_padded(at, messages[i].bytes, messages[i].len);
	}
	if (!cipher->encrypt(cipher->context, zero_iv, piece.blocks,
						 at - piece.blocks))
		return FERNET_CIPHER_FAILED;

	/* the header goes where the end of the token before was */
	at = piece.blocks;
	for (int i = 0; i < nmessages; i++)
	{
		Base64Writer writer = {.dst = messages[i].token};
		size_t		len = sealed_len(&messages[i]);

		put_header(at - FERNET_IV_AT, messages[i].timestamp);
		if (!cipher->hmac_init(cipher->context) ||
			!put_signed(cipher, &writer, at - FERNET_IV_AT,
						FERNET_IV_AT + len) ||
			!put_mac(cipher, &writer))
			return FERNET_CIPHER_FAILED;
		at += len;
	}
	return FERNET_OK;
}

/*
 * FernetSealMany
 *		Makes tokens of many messages with few calls of the cipher.
 *
 * Each IV is its message's seed, encrypted after whatever precedes it.  That
 * is a permutation of uniformly random bytes, so it is as random and as
 * unpredictable as the seed itself.  Source: NIST SP 800-38A, appendix C,
 * which makes an IV by the cipher from a nonce.  A message that does not fit a
 * piece has its seed as IV.
 */
FernetStatus
FernetSealMany(const FernetCipher *cipher, const FernetMessage *messages,
			   int nmessages)
{
	FernetStatus status = FERNET_OK;
	int			next;

	fill_tables();
	for (int i = 0; i < nmessages && status == FERNET_OK; i = next)
	{
		size_t		used = sealed_len(&messages[i]);

		next = i + 1;
		if (used > FERNET_PIECE_LEN)
		{
			status = FernetSeal(cipher, messages[i].timestamp,
								messages[i].seed, messages[i].bytes,
								messages[i].len, messages[i].token);
			continue;
		}
		while (next < nmessages &&
			   used + sealed_len(&messages[next]) <= FERNET_PIECE_LEN)
			used += sealed_len(&messages[next++]);
		status = seal_piece(cipher, &messages[i], next - i);
	}
	return status;
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

/* Do two MACs differ?  Takes the same time wherever they do. */
static bool
mac_differs(const uint8 *left, const uint8 *right)
{
	uint64		left_words[FERNET_MAC_LEN / sizeof(uint64)];
	uint64		right_words[lengthof(left_words)];
	uint64		differs = 0;

	memcpy(left_words, left, sizeof(left_words));
	memcpy(right_words, right, sizeof(right_words));
	for (size_t i = 0; i < lengthof(left_words); i++)
		differs |= left_words[i] ^ right_words[i];
	return differs != 0;
}

/*
 * FernetCheckMac
 *		Checks that the cipher's key made the token.
 */
FernetStatus
FernetCheckMac(const FernetToken *token, const FernetCipher *cipher)
{
	size_t		signed_len = token->len - FERNET_MAC_LEN;
	uint8		mac[FERNET_MAC_LEN];

	if (!cipher->hmac_init(cipher->context) ||
		!cipher->hmac_update(cipher->context, token->bytes, signed_len) ||
		!cipher->hmac_final(cipher->context, mac))
		return FERNET_CIPHER_FAILED;
	return mac_differs(mac, token->bytes + signed_len) ?
		FERNET_BAD_MAC : FERNET_OK;
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
 * FernetGetTail
 *		Copies what the padding of a token depends on.
 */
void
FernetGetTail(const FernetToken *token, FernetTail *tail)
{
	memcpy(tail->blocks, token->bytes + token->len - FERNET_MAC_LEN -
		   sizeof(tail->blocks), sizeof(tail->blocks));
}

/*
 * FernetCheckPadding
 *		Checks that tokens of one key decrypt, with few calls of the cipher.
 *
 * The key must have been checked by FernetCheckMac.  CBC decryption can fail in
 * the padding alone, so the last block decides, and no other plaintext is made.
 * Sets the status of each tail to FERNET_OK or FERNET_BAD_PADDING.
 */
FernetStatus
FernetCheckPadding(FernetTail **tails, int ntails, const FernetCipher *cipher)
{
	static const uint8 no_iv[FERNET_IV_LEN] = {0};
	const size_t tail_len = sizeof(tails[0]->blocks);
	Piece		piece;
	int			n;

	for (int i = 0; i < ntails; i += n)
	{
		n = Min(ntails - i, (int) (FERNET_PIECE_LEN / tail_len));
		for (int j = 0; j < n; j++)
			memcpy(piece.blocks + j * tail_len, tails[i + j]->blocks, tail_len);
		if (!cipher->decrypt(cipher->context, no_iv, piece.blocks, n * tail_len))
			return FERNET_CIPHER_FAILED;
		for (int j = 0; j < n; j++)
			tails[i + j]->status =
				padding_len(piece.blocks + j * tail_len + FERNET_BLOCK_LEN) > 0 ?
				FERNET_OK : FERNET_BAD_PADDING;
		explicit_bzero(piece.blocks, n * tail_len);
	}
	return FERNET_OK;
}

/*
 * FernetVerify
 *		Checks that the cipher's key made the token, and that it decrypts.
 */
FernetStatus
FernetVerify(const FernetToken *token, const FernetCipher *cipher)
{
	FernetStatus status = FernetCheckMac(token, cipher);
	FernetTail	tail;
	FernetTail *tails = &tail;

	if (status != FERNET_OK)
		return status;
	FernetGetTail(token, &tail);
	status = FernetCheckPadding(&tails, 1, cipher);
	return status == FERNET_OK ? tail.status : status;
}

/*
 * FernetCheckAge
 *		Checks a verified token's timestamp against now (seconds since 1970)
 *		and ttl (seconds), as step 3 of "Verifying" requires.
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

/* Length of a token's ciphertext. */
static size_t
ciphertext_len(const FernetToken *token)
{
	return token->len - FERNET_HEADER_LEN - FERNET_MAC_LEN;
}

/* Tells message and padding apart in the decrypted bytes. */
static void
end_message(FernetToken *token)
{
	size_t		len = ciphertext_len(token);
	int			npad = padding_len(token->bytes + len - FERNET_BLOCK_LEN);

	/* the padding is not for the caller, nor is a message without any */
	token->status = npad > 0 ? FERNET_OK : FERNET_BAD_PADDING;
	token->message_len = npad > 0 ? len - npad : 0;
	explicit_bzero(token->bytes + token->message_len,
				   len - token->message_len);
}

/* Decrypts one token, piece by piece. */
static bool
decrypt_large(FernetToken *token, const FernetCipher *cipher)
{
	const uint8 *in = token->bytes + FERNET_HEADER_LEN;
	size_t		total = ciphertext_len(token);
	Piece		piece;
	uint8		iv[FERNET_IV_LEN];
	uint8		next_iv[FERNET_IV_LEN];
	size_t		len;

	memcpy(next_iv, in - FERNET_IV_LEN, FERNET_IV_LEN);
	for (size_t done = 0; done < total; done += len)
	{
		len = Min(total - done, FERNET_PIECE_LEN);
		/* what is read lies under what is written */
		memcpy(piece.blocks, in + done, len);
		memcpy(iv, next_iv, FERNET_IV_LEN);
		memcpy(next_iv, piece.blocks + len - FERNET_BLOCK_LEN, FERNET_IV_LEN);
		if (!cipher->decrypt(cipher->context, iv, piece.blocks, len))
		{
			explicit_bzero(token->bytes, done);
			explicit_bzero(&piece, sizeof(piece));
			return false;
		}
		memcpy(token->bytes + done, piece.blocks, len);
	}
	explicit_bzero(piece.blocks, Min(total, FERNET_PIECE_LEN));
	end_message(token);
	return true;
}

/* Decrypts tokens that fit a piece together, with their IVs. */
static bool
decrypt_piece(FernetToken **tokens, int ntokens, const FernetCipher *cipher)
{
	static const uint8 no_iv[FERNET_IV_LEN] = {0};
	Piece		piece;
	uint8	   *at = piece.blocks;

	for (int i = 0; i < ntokens; i++)
	{
		size_t		len = FERNET_IV_LEN + ciphertext_len(tokens[i]);

		memcpy(at, tokens[i]->bytes + FERNET_IV_AT, len);
		at += len;
	}
	if (!cipher->decrypt(cipher->context, no_iv, piece.blocks,
						 at - piece.blocks))
		return false;

	at = piece.blocks;
	for (int i = 0; i < ntokens; i++)
	{
		size_t		len = ciphertext_len(tokens[i]);

		memcpy(tokens[i]->bytes, at + FERNET_IV_LEN, len);
		at += FERNET_IV_LEN + len;
		end_message(tokens[i]);
	}
	explicit_bzero(piece.blocks, at - piece.blocks);
	return true;
}

/*
 * FernetDecryptMany
 *		Decrypts tokens of one key, with few calls of the cipher.
 *
 * The key must have been checked by FernetCheckMac.  Each token gets a status,
 * FERNET_OK or FERNET_BAD_PADDING, and the message replaces the start of its
 * bytes.  Returns FERNET_OK, or FERNET_CIPHER_FAILED with no message left
 * anywhere.
 */
FernetStatus
FernetDecryptMany(FernetToken **tokens, int ntokens, const FernetCipher *cipher)
{
	bool		done = true;
	int			next;

	for (int i = 0; i < ntokens && done; i = next)
	{
		size_t		used = FERNET_IV_LEN + ciphertext_len(tokens[i]);

		next = i + 1;
		if (used > FERNET_PIECE_LEN)
		{
			done = decrypt_large(tokens[i], cipher);
			continue;
		}
		while (next < ntokens &&
			   used + FERNET_IV_LEN + ciphertext_len(tokens[next]) <=
			   FERNET_PIECE_LEN)
			used += FERNET_IV_LEN + ciphertext_len(tokens[next++]);
		done = decrypt_piece(&tokens[i], next - i, cipher);
	}
	if (done)
		return FERNET_OK;
	for (int i = 0; i < ntokens; i++)
		explicit_bzero(tokens[i]->bytes, tokens[i]->len);
	return FERNET_CIPHER_FAILED;
}

/*
 * FernetOpen
 *		Decrypts a token, if the cipher's key made it.
 *
 * The message replaces the start of the token's bytes, and its length is in
 * the token.  They are left alone where the key is another, so that the next
 * key can be tried.
 */
FernetStatus
FernetOpen(FernetToken *token, const FernetCipher *cipher)
{
	FernetStatus status = FernetCheckMac(token, cipher);

	if (status == FERNET_OK)
		status = FernetDecryptMany(&token, 1, cipher);
	return status == FERNET_OK ? token->status : status;
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
		case FERNET_CIPHER_FAILED:
			return "cipher failed";
	}
	return "unknown";
}
