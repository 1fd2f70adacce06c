/*-------------------------------------------------------------------------
 *
 * test_fernet.c
 *	  The Fernet codec, the parsers of key texts and the check of MIME types,
 *	  without a server.
 *
 * Reads the specification's vectors from test/fernet-spec below the current
 * folder, as github.com/fernet/spec has them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe.h"

#include <time.h>

#include "ciphers.h"
#include "keylist.h"
#include "mime.h"

#define BASE64URL                                                             \
	"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

static int	passed = 0;
static int	failed = 0;

static TestCipher test_cipher;
static TestCipher other_cipher;
static const uint8 test_iv[FERNET_IV_LEN] = {
	0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
};

/* Counts a test, and says which one has failed. */
static void check(bool ok, const char *format,...) pg_attribute_printf(2, 3);

static void
check(bool ok, const char *format,...)
{
	va_list		args;

	if (ok)
	{
		passed++;
		return;
	}
	failed++;
	va_start(args, format);
	printf("failed: ");
	vprintf(format, args);
	printf("\n");
	va_end(args);
}

/* Stops the test: it cannot go on. */
static void
die(const char *what, const char *name)
{
	fprintf(stderr, "test_fernet: %s: %s\n", what, name);
	exit(1);
}

static char *
new_buffer(size_t len)
{
	char	   *buffer = malloc(len + 1);

	if (buffer == NULL)
		die("out of memory", "buffer");
	return buffer;
}

/* Makes len bytes that are different for each seed, and the same each time. */
static uint8 *
new_message(size_t len, uint32 seed)
{
	uint8	   *message = (uint8 *) new_buffer(len);
	uint32		state = seed * 2654435761u + 1;

	for (size_t i = 0; i < len; i++)
	{
		state = state * 1664525u + 1013904223u;
		message[i] = (uint8) (state >> 24);
	}
	return message;
}

/* A token in a buffer that ends where the token does. */
static char *
new_token(const uint8 *message, size_t len)
{
	char	   *token = new_buffer(FernetTokenLen(len));

	if (FernetSeal(&test_cipher.methods, 1700000000, test_iv, message, len,
				   token) != FERNET_OK)
		die("cannot seal", "message");
	return token;
}

/* Decodes and verifies a token, in place and into another buffer. */
static FernetStatus
try_token(const char *token, size_t len, TestCipher *cipher)
{
	char	   *copy = new_buffer(len);
	uint8	   *bytes = (uint8 *) new_buffer(FernetDecodedLen(len) - 1);
	FernetToken decoded;
	FernetToken apart;
	FernetStatus status = FernetDecode(token, len, bytes, &apart);

	memcpy(copy, token, len);
	check(FernetDecode(copy, len, (uint8 *) copy, &decoded) == status &&
		  (status != FERNET_OK ||
		   (apart.len == decoded.len && apart.timestamp == decoded.timestamp &&
			memcmp(apart.bytes, decoded.bytes, apart.len) == 0)),
		  "decoding in place what gives %d elsewhere", status);
	if (status == FERNET_OK)
	{
		status = FernetVerify(&apart, &cipher->methods);
		check(FernetOpen(&decoded, &cipher->methods) == status,
			  "opening what verification says %d of", status);
	}
	free(bytes);
	free(copy);
	return status;
}

/* Seals a message and opens it again, in the token's own buffer. */
static void
check_round_trip(size_t len)
{
	uint8	   *message = new_message(len, (uint32) len);
	size_t		token_len = FernetTokenLen(len);
	char	   *token = new_token(message, len);
	FernetToken decoded;

	check(memcmp(token, "gAAAA", 5) == 0, "start of the token of %zu bytes",
		  len);
	check(try_token(token, token_len, &other_cipher) == FERNET_BAD_MAC,
		  "token of %zu bytes under another key", len);
	if (FernetDecode(token, token_len, (uint8 *) token, &decoded) != FERNET_OK ||
		FernetVerify(&decoded, &test_cipher.methods) != FERNET_OK)
	{
		check(false, "token of %zu bytes: not read", len);
		free(token);
		free(message);
		return;
	}
	check(decoded.timestamp == 1700000000, "timestamp of %zu bytes", len);
	check(FernetMaxMessageLen(&decoded) - len < 16,
		  "largest length of %zu bytes", len);

	check(FernetOpen(&decoded, &test_cipher.methods) == FERNET_OK &&
		  decoded.message_len == len, "opening %zu bytes", len);
	check(memcmp(token, message, len) == 0, "message of %zu bytes", len);
	for (size_t i = len; i <= FernetMaxMessageLen(&decoded); i++)
		if (token[i] != 0)
		{
			check(false, "padding stays behind %zu bytes", len);
			break;
		}
	free(token);
	free(message);
}

static void
test_round_trips(void)
{
	for (size_t len = 0; len <= 100; len++)
		check_round_trip(len);

	/* around the borders of pieces, blocks and base64 groups */
	for (size_t pieces = 1; pieces <= 3; pieces++)
		for (int off = -49; off <= 49; off++)
			check_round_trip(pieces * FERNET_PIECE_LEN + off);
	for (size_t len = 48; len <= 48 * 40; len += 48)
	{
		check_round_trip(len - 1);
		check_round_trip(len);
		check_round_trip(len + 1);
	}
	check_round_trip(16777215);
}

/* Compares bytes with their hexadecimal digits. */
static void
check_hex(const uint8 *bytes, const char *hex, const char *name)
{
	size_t		len = strlen(hex) / 2;
	bool		same = true;

	for (size_t i = 0; i < len; i++)
	{
		unsigned int byte;

		same = same && sscanf(hex + 2 * i, "%2x", &byte) == 1 && byte == bytes[i];
	}
	check(same, "%s", name);
}

/*
 * The ciphers of this test, by the examples of FIPS 197, appendix C.1, and of
 * FIPS 180-4; the HMAC of a key of sixteen bytes is what Python's hmac gives.
 */
static void
test_ciphers(void)
{
	static const uint8 zero_iv[FERNET_IV_LEN] = {0};
	FernetKey	key;
	TestCipher	cipher;
	uint8		hash[32];
	struct
	{
		uint32		room;
		uint8		blocks[2 * FERNET_BLOCK_LEN];
	}			piece;

	for (int i = 0; i < 16; i++)
	{
		key.encryption[i] = (uint8) i;
		key.signing[i] = (uint8) i;
		piece.blocks[i] = (uint8) (i << 4 | i);
	}
	TestCipherInit(&cipher, &key);
	check(cipher.methods.encrypt(&cipher, zero_iv, piece.blocks, 16), "AES");
	check_hex(piece.blocks, "69c4e0d86a7b0430d8cdb78070b4c55a",
			  "example C.1 of FIPS 197");
	check(cipher.methods.decrypt(&cipher, zero_iv, piece.blocks, 16), "AES back");
	check_hex(piece.blocks, "00112233445566778899aabbccddeeff",
			  "example C.1 of FIPS 197, back");

	Sha256Hash("abc", 3, hash);
	check_hex(hash,
			  "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
			  "SHA-256 of abc");
	Sha256Hash("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56,
			   hash);
	check_hex(hash,
			  "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
			  "SHA-256 of two blocks");
	check(cipher.methods.hmac_init(&cipher) &&
		  cipher.methods.hmac_update(&cipher, (const uint8 *) "what do ya want ",
									 16) &&
		  cipher.methods.hmac_update(&cipher, (const uint8 *) "for nothing?", 12) &&
		  cipher.methods.hmac_final(&cipher, hash), "HMAC");
	check_hex(hash,
			  "d1bcfcaaf1aef8add294bca7adb4ae2fb4abdcada6c1295b422f7b9afee374dc",
			  "HMAC-SHA-256");
}

/* Lengths of messages that go through the cipher together. */
static const size_t many_lens[] = {
	0, 1, 15, 16, 17, 100, FERNET_PIECE_LEN - 33, FERNET_PIECE_LEN - 32,
	FERNET_PIECE_LEN - 17, FERNET_PIECE_LEN - 16, FERNET_PIECE_LEN, 12000, 12000,
	12000, 5, 3 * FERNET_PIECE_LEN + 1, 7, 300, 300, 0
};

#define NMANY ((int) lengthof(many_lens))

/* Messages of these lengths, and room for their tokens. */
static void
new_messages(FernetMessage *messages)
{
	for (int i = 0; i < NMANY; i++)
	{
		messages[i].len = many_lens[i];
		messages[i].bytes = new_message(many_lens[i], (uint32) i + 7);
		messages[i].timestamp = 1700000000 + i;
		messages[i].token = new_buffer(FernetTokenLen(many_lens[i]));
		for (int j = 0; j < FERNET_IV_LEN; j++)
			messages[i].seed[j] = (uint8) (i + j * 16);
	}
}

static void
free_messages(FernetMessage *messages)
{
	for (int i = 0; i < NMANY; i++)
	{
		free((void *) messages[i].bytes);
		free(messages[i].token);
	}
}

/*
 * Checks the paddings of more tokens than fit one call; every third one has
 * another last block, which is as good as no padding.
 */
static void
check_tails(FernetToken **tokens)
{
	FernetTail	tails[FERNET_PIECE_LEN / 32 + NMANY];
	FernetTail *pointers[lengthof(tails)];
	int			ntails = (int) lengthof(tails);

	for (int i = 0; i < ntails; i++)
	{
		FernetGetTail(tokens[i % NMANY], &tails[i]);
		if (i % 3 == 0)
			memset(tails[i].blocks + FERNET_BLOCK_LEN, i, FERNET_BLOCK_LEN);
		pointers[i] = &tails[i];
	}
	test_cipher.calls = 0;
	check(FernetCheckPadding(pointers, ntails, &test_cipher.methods) ==
		  FERNET_OK && test_cipher.calls == 2, "many paddings");
	for (int i = 0; i < ntails; i++)
		check(i % 3 == 0 || tails[i].status == FERNET_OK, "padding %d of many", i);
	check(tails[0].status == FERNET_BAD_PADDING &&
		  tails[3].status == FERNET_BAD_PADDING, "wrong ones among many");
}

/* Tokens that are made together are the same as those made one by one. */
static void
test_many(void)
{
	FernetMessage messages[NMANY];
	FernetToken decoded[NMANY];
	FernetToken *tokens[NMANY];
	uint8		ivs[NMANY][FERNET_IV_LEN];

	new_messages(messages);
	test_cipher.calls = 0;
	check(FernetSealMany(&test_cipher.methods, messages, NMANY) == FERNET_OK,
		  "sealing many");
	check(test_cipher.calls < NMANY, "many take %d calls", test_cipher.calls);
	for (int i = 0; i < NMANY; i++)
	{
		size_t		len = FernetTokenLen(messages[i].len);
		char	   *alone = new_buffer(len);
		FernetToken alone_decoded;

		check(FernetDecode(messages[i].token, len, (uint8 *) messages[i].token,
						   &decoded[i]) == FERNET_OK &&
			  decoded[i].timestamp == messages[i].timestamp,
			  "token %d of many", i);
		memcpy(ivs[i], decoded[i].bytes + 9, FERNET_IV_LEN);
		for (int j = 0; j < i; j++)
			check(memcmp(ivs[i], ivs[j], FERNET_IV_LEN) != 0,
				  "IVs %d and %d of many", i, j);
		check(FernetSeal(&test_cipher.methods, messages[i].timestamp, ivs[i],
						 messages[i].bytes, messages[i].len, alone) ==
			  FERNET_OK &&
			  FernetDecode(alone, len, (uint8 *) alone, &alone_decoded) ==
			  FERNET_OK &&
			  memcmp(alone, decoded[i].bytes, decoded[i].len) == 0,
			  "token %d of many is what it is alone", i);
		free(alone);
		check(FernetCheckMac(&decoded[i], &test_cipher.methods) == FERNET_OK,
			  "signature %d of many", i);
		tokens[i] = &decoded[i];
	}

	check_tails(tokens);
	test_cipher.calls = 0;
	check(FernetDecryptMany(tokens, NMANY, &test_cipher.methods) == FERNET_OK,
		  "opening many");
	check(test_cipher.calls < NMANY, "many take %d calls", test_cipher.calls);
	for (int i = 0; i < NMANY; i++)
		check(decoded[i].status == FERNET_OK &&
			  decoded[i].message_len == messages[i].len &&
			  memcmp(decoded[i].bytes, messages[i].bytes, messages[i].len) == 0,
			  "message %d of many", i);
	free_messages(messages);
	check(FernetSealMany(&test_cipher.methods, NULL, 0) == FERNET_OK &&
		  FernetDecryptMany(NULL, 0, &test_cipher.methods) == FERNET_OK,
		  "none at all");
}

/* Is there a run of a message in a buffer? */
static bool
holds(const void *buffer, size_t len, const FernetMessage *message)
{
	return message->len >= 16 &&
		memmem(buffer, len, message->bytes, 16) != NULL;
}

/*
 * Whichever call of the cipher fails, it is said, and no plaintext is left
 * where the caller would not look for it.
 */
static void
test_failures(void)
{
	FernetMessage messages[NMANY];
	FernetToken decoded[NMANY];
	FernetToken *tokens[NMANY];
	FernetStatus status = FERNET_CIPHER_FAILED;
	int			nfailed = 0;

	new_messages(messages);
	for (int n = 0; status != FERNET_OK; n++)
	{
		test_cipher.fails_after = n;
		status = FernetSealMany(&test_cipher.methods, messages, NMANY);
		check(status == FERNET_OK || status == FERNET_CIPHER_FAILED,
			  "sealing with failure of call %d", n);
		nfailed += status == FERNET_CIPHER_FAILED;
	}
	/* three calls at least are a token's HMAC */
	check(nfailed > 3 * NMANY, "sealing failed at %d calls", nfailed);
	status = FERNET_CIPHER_FAILED;
	for (int n = 0; status != FERNET_OK; n++)
	{
		char	   *copies[NMANY];

		test_cipher.fails_after = -1;
		for (int i = 0; i < NMANY; i++)
		{
			size_t		len = FernetTokenLen(messages[i].len);

			copies[i] = new_buffer(len);
			memcpy(copies[i], messages[i].token, len);
			if (FernetDecode(copies[i], len, (uint8 *) copies[i],
							 &decoded[i]) != FERNET_OK)
				die("cannot decode", "token");
			tokens[i] = &decoded[i];
		}
		test_cipher.fails_after = n;
		status = FernetDecryptMany(tokens, NMANY, &test_cipher.methods);
		check(status == FERNET_OK || status == FERNET_CIPHER_FAILED,
			  "opening with failure of call %d", n);
		for (int i = 0; i < NMANY; i++)
		{
			if (messages[i].len >= 16)
				check(holds(copies[i], FernetTokenLen(messages[i].len),
							&messages[i]) == (status == FERNET_OK),
					  "plaintext %d after failure of call %d", i, n);
			free(copies[i]);
		}
	}

	/* one token, with each function that takes one */
	if (FernetDecode(messages[5].token, FernetTokenLen(100),
					 (uint8 *) messages[5].token, &decoded[5]) != FERNET_OK)
		die("cannot decode", "token");
	for (int n = 0; n < 4; n++)
	{
		char		sealed[256];

		test_cipher.fails_after = n;
		check(FernetVerify(&decoded[5], &test_cipher.methods) ==
			  FERNET_CIPHER_FAILED,
			  "verification with failure of call %d", n);
		test_cipher.fails_after = n;
		check(FernetSeal(&test_cipher.methods, 0, test_iv, messages[5].bytes,
						 messages[5].len, sealed) == FERNET_CIPHER_FAILED,
			  "sealing one with failure of call %d", n);
		test_cipher.fails_after = n;
		check(FernetOpen(&decoded[5], &test_cipher.methods) ==
			  FERNET_CIPHER_FAILED,
			  "opening with failure of call %d", n);
	}
	test_cipher.fails_after = -1;
	free_messages(messages);
}

/* No change of a single byte, and no missing end, goes unnoticed. */
static void
test_damage(void)
{
	uint8	   *message = new_message(50, 1);
	size_t		len = FernetTokenLen(50);
	char	   *token = new_token(message, 50);

	check(try_token(token, len, &test_cipher) == FERNET_OK, "undamaged token");
	for (size_t i = 0; i < len; i++)
	{
		char		original = token[i];

		for (int c = 0; c < 256; c++)
		{
			if ((char) c == original)
				continue;
			token[i] = (char) c;
			check(try_token(token, len, &test_cipher) != FERNET_OK,
				  "byte %zu of a token changed to %d", i, c);
		}
		token[i] = original;
	}
	for (size_t i = 0; i < len; i++)
	{
		check(try_token(token, i, &test_cipher) != FERNET_OK,
			  "token cut to %zu characters", i);
		check(try_token(token + len - i, i, &test_cipher) != FERNET_OK,
			  "last %zu characters of a token", i);
	}
	free(token);
	free(message);
}

/* Only one text stands for given bytes. */
static void
test_base64(void)
{
	static const char *const not_base64[] = {
		"", "g", "gA", "gAA", "gAAA=", "gA==gAAA", "====", "g===", "gA=A",
		"gAA=gAAA", "gAA gAAA", "gAA\n", " gAA", "gA+A", "gA/A", "=AAA"
	};
	char		longer[512];
	uint8		message[3] = {'a', 'b', 'c'};

	for (size_t i = 0; i < lengthof(not_base64); i++)
		check(try_token(not_base64[i], strlen(not_base64[i]), &test_cipher) ==
			  FERNET_BAD_BASE64,
			  "\"%s\" as base64url", not_base64[i]);
	check(try_token("gAAA", 4, &test_cipher) == FERNET_BAD_FORMAT,
		  "token of three bytes");

	/*
	 * A token has 73 + 16 n bytes: the last group of base64 has two, one or
	 * none of padding, and the bits that padding leaves over must be zero.
	 */
	for (size_t len = 0; len <= 32; len += 16)
	{
		uint8	   *text = new_message(len, 2);
		size_t		token_len = FernetTokenLen(len);
		char	   *token = new_token(text, len);
		char	   *end = token + token_len;
		int			npad = (end[-1] == '=') + (end[-2] == '=');
		char	   *last = end - npad - 1;
		char		original = *last;
		int			nfree = 1 << (2 * npad);

		check((size_t) npad == (2 + len / 16 * 2) % 3,
			  "padding of the token of %zu bytes", len);
		for (int i = 1; i < nfree; i++)
		{
			*last = BASE64URL[(strchr(BASE64URL, original) - BASE64URL) + i];
			check(try_token(token, token_len, &test_cipher) == FERNET_BAD_BASE64,
				  "token of %zu bytes with spare bits %d", len, i);
		}
		*last = original;
		check(try_token(token, token_len, &test_cipher) == FERNET_OK,
			  "token of %zu bytes with no spare bits", len);
		if (npad > 0)
			check(try_token(token, token_len - npad, &test_cipher) ==
				  FERNET_BAD_BASE64,
				  "token of %zu bytes without padding", len);

		memcpy(longer, token, token_len);
		memcpy(longer + token_len, token, token_len);
		check(try_token(longer, 2 * token_len, &test_cipher) != FERNET_OK,
			  "token of %zu bytes twice", len);
		memcpy(longer + token_len, "AAAA", 4);
		check(try_token(longer, token_len + 4, &test_cipher) != FERNET_OK,
			  "token of %zu bytes and more", len);
		longer[token_len] = '\0';
		check(try_token(longer, token_len + 1, &test_cipher) != FERNET_OK,
			  "token of %zu bytes and a NUL byte", len);
		free(token);
		free(text);
	}

	/* a NUL byte is a byte like any other that is not of the alphabet */
	{
		char	   *token = new_token(message, sizeof(message));

		token[20] = '\0';
		check(try_token(token, FernetTokenLen(sizeof(message)), &test_cipher) ==
			  FERNET_BAD_BASE64,
			  "NUL byte in a token");
		free(token);
	}
}

/*
 * Signs a token of our own making: version, one block of plaintext as it is to
 * be, and nextra bytes more.
 */
static FernetStatus
try_signed(uint8 version, const uint8 *block, int nextra)
{
	uint8		bytes[128] = {version};
	uint8	   *end = bytes + 9;
	char		text[256];
	char	   *at = text;
	const FernetCipher *cipher = &test_cipher.methods;
	struct
	{
		uint32		room;
		uint8		block[FERNET_BLOCK_LEN];
	}			piece;

	memcpy(piece.block, block, FERNET_BLOCK_LEN);
	if (!cipher->encrypt(cipher->context, test_iv, piece.block, FERNET_BLOCK_LEN))
		die("cannot encrypt", "block");
	memcpy(end, test_iv, FERNET_IV_LEN);
	end += FERNET_IV_LEN;
	memcpy(end, piece.block, FERNET_BLOCK_LEN);
	end += FERNET_BLOCK_LEN + nextra;
	if (!cipher->hmac_init(cipher->context) ||
		!cipher->hmac_update(cipher->context, bytes, end - bytes) ||
		!cipher->hmac_final(cipher->context, end))
		die("cannot sign", "token");
	end += FERNET_MAC_LEN;

	for (const uint8 *group = bytes; group < end; group += 3)
	{
		*at++ = BASE64URL[group[0] >> 2];
		*at++ = BASE64URL[(group[0] & 3) << 4 | group[1] >> 4];
		*at++ = group + 1 < end
			? BASE64URL[(group[1] & 15) << 2 | group[2] >> 6]
			: '=';
		*at++ = group + 2 < end ? BASE64URL[group[2] & 63] : '=';
	}
	return try_token(text, at - text, &test_cipher);
}

/* A right signature does not make a wrong form right. */
static void
test_signed(void)
{
	uint8		block[FERNET_BLOCK_LEN];

	for (int npad = 0; npad < 256; npad++)
	{
		bool		valid = npad >= 1 && npad <= FERNET_BLOCK_LEN;

		memset(block, npad, sizeof(block));
		check(try_signed(0x80, block, 0) ==
			  (valid ? FERNET_OK : FERNET_BAD_PADDING),
			  "padding %d", npad);
		for (int i = 0; i < FERNET_BLOCK_LEN && valid; i++)
		{
			block[i] ^= 0x40;
			check(try_signed(0x80, block, 0) ==
				  (i < FERNET_BLOCK_LEN - npad ? FERNET_OK
				   : FERNET_BAD_PADDING),
				  "padding %d with byte %d wrong", npad, i);
			block[i] ^= 0x40;
		}
	}

	memset(block, 1, sizeof(block));
	for (int version = 0; version < 256; version++)
		check(try_signed((uint8) version, block, 0) ==
			  (version == 0x80 ? FERNET_OK : FERNET_BAD_FORMAT),
			  "version %d", version);
	for (int nextra = -FERNET_BLOCK_LEN; nextra < FERNET_BLOCK_LEN; nextra++)
		check(try_signed(0x80, block, nextra) ==
			  (nextra == 0 ? FERNET_OK : FERNET_BAD_FORMAT),
			  "ciphertext of %d bytes", FERNET_BLOCK_LEN + nextra);
}

static void
test_keys(void)
{
	static const char text[] = "XYZd6uBvvTT-nOhI8-X8Q2jy9hKxiu9H8p8hZFY6AUA=";
	static const char message[] = "{\"token\":\"abc123\"}";
	static const char token[] =
	"gAAAAABlU_EAAAECAwQFBgcICQoLDA0ODxoCqNNrt09qZCxT1Z47ojE6JB6_JBVpXVy7"
	"GBv2xbej3iui6exnwa5uYr1R2e3UxMCK8khggMpcCSwVYmmdOV0=";
	char		written[FERNET_KEY_TEXT_LEN];
	char		changed[FERNET_KEY_TEXT_LEN];
	char	   *sealed;
	FernetKey	derived = TestKey("old-secret");
	FernetKey	read;
	TestCipher	cipher;

	FernetKeyToText(&derived, written);
	check(memcmp(written, text, FERNET_KEY_TEXT_LEN) == 0,
		  "text of the key of a secret");
	check(FernetKeyFromText(text, FERNET_KEY_TEXT_LEN, &read) == FERNET_OK &&
		  memcmp(&read, &derived, sizeof(read)) == 0,
		  "key from its text");

	sealed = new_buffer(FernetTokenLen(strlen(message)));
	check(FernetTokenLen(strlen(message)) == strlen(token) &&
		  FernetSeal(TestCipherInit(&cipher, &derived), 1700000000, test_iv,
					 (const uint8 *) message, strlen(message),
					 sealed) == FERNET_OK &&
		  memcmp(sealed, token, strlen(token)) == 0,
		  "token that Python's cryptography makes");
	free(sealed);

	for (size_t len = 0; len < FERNET_KEY_TEXT_LEN; len++)
		check(FernetKeyFromText(text, len, &read) != FERNET_OK,
			  "key text of %zu characters", len);
	check(FernetKeyFromText("XYZd6uBvvTT-nOhI8-X8Q2jy9hKxiu9H8p8hZFY6AUAAXYZd",
							48, &read) != FERNET_OK,
		  "key text of 36 bytes");
	check(FernetKeyFromText("XYZd6uBvvTT-nOhI8-X8Q2jy9hKxiu9H8p8hZFY6AUAA", 44,
							&read) != FERNET_OK,
		  "key text of 33 bytes");
	check(FernetKeyFromText("XYZd6uBvvTT-nOhI8-X8Q2jy9hKxiu9H8p8hZFY6AQ==", 44,
							&read) != FERNET_OK,
		  "key text of 31 bytes");
	check(FernetKeyFromText("XYZd6uBvvTT-nOhI8-X8Q2jy9hKxiu9H8p8hZFY6AUB=", 44,
							&read) != FERNET_OK,
		  "key text with a spare bit");
	for (size_t i = 0; i < FERNET_KEY_TEXT_LEN; i++)
	{
		memcpy(changed, text, FERNET_KEY_TEXT_LEN);
		changed[i] = '+';
		check(FernetKeyFromText(changed, FERNET_KEY_TEXT_LEN, &read) !=
			  FERNET_OK,
			  "key text with '+' at %zu", i);
	}
}

/* What step 3 of "Verifying" says, at its edges. */
static void
test_age(void)
{
	static const struct
	{
		uint64		timestamp;
		int64		now;
		int64		ttl;
		FernetStatus status;
	}			cases[] = {
		{1000, 1000, 0, FERNET_OK},
		{1000, 1001, 0, FERNET_EXPIRED},
		{1000, 1060, 60, FERNET_OK},
		{1000, 1061, 60, FERNET_EXPIRED},
		{1060, 1000, 60, FERNET_OK},
		{1061, 1000, 60, FERNET_FROM_FUTURE},
		{0, 1000, 1000, FERNET_OK},
		{0, 1000, 999, FERNET_EXPIRED},
		{UINT64_C(0x7FFFFFFFFFFFFFFF), 1000, 60, FERNET_FROM_FUTURE},
		{UINT64_C(0x8000000000000000), 1000, 60, FERNET_FROM_FUTURE},
		{UINT64_C(0xFFFFFFFFFFFFFFFF), 1000, 60, FERNET_FROM_FUTURE},
		{1000, 1000, PG_INT64_MAX, FERNET_OK},
	};

	for (size_t i = 0; i < lengthof(cases); i++)
	{
		FernetToken token = {.timestamp = cases[i].timestamp};

		check(FernetCheckAge(&token, cases[i].now, cases[i].ttl) ==
			  cases[i].status,
			  "age, case %zu", i);
	}
}

/* A timestamp fills its eight bytes, the highest first. */
static void
test_timestamps(void)
{
	static const uint64 timestamps[] = {
		0, 1, UINT64_C(0x0102030405060708), UINT64_C(0xFFFFFFFFFFFFFFFF)
	};

	for (size_t i = 0; i < lengthof(timestamps); i++)
	{
		char		token[256];
		FernetToken decoded;

		check(FernetSeal(&test_cipher.methods, timestamps[i], test_iv,
						 (const uint8 *) "x", 1, token) == FERNET_OK &&
			  FernetDecode(token, FernetTokenLen(1), (uint8 *) token, &decoded) ==
			  FERNET_OK &&
			  FernetVerify(&decoded, &test_cipher.methods) ==
			  FERNET_OK &&
			  decoded.timestamp == timestamps[i],
			  "timestamp, case %zu", i);
	}
}

/* ---------------------------------------------------------------------------
 * The vectors of the specification
 */

static char *
read_file(const char *path)
{
	FILE	   *file = fopen(path, "rb");
	char	   *text = new_buffer(65536);
	size_t		len;

	if (file == NULL)
		die("cannot open", path);
	len = fread(text, 1, 65536, file);
	if (len == 0 || !feof(file))
		die("empty, too large or not readable", path);
	text[len] = '\0';
	fclose(file);
	return text;
}

/*
 * Finds the value of a member of the object at text.  The objects are flat and
 * their strings have no escapes, which is checked.
 */
static const char *
member(const char *text, const char *name)
{
	const char *end = strchr(text, '}');
	char		quoted[32];
	const char *at;

	snprintf(quoted, sizeof(quoted), "\"%s\": ", name);
	at = strstr(text, quoted);
	if (at == NULL || end == NULL || at > end)
		die("no member in vector", name);
	return at + strlen(quoted);
}

static char *
string_member(const char *text, const char *name)
{
	const char *start = member(text, name) + 1;
	size_t		len = strcspn(start, "\"\\");
	char	   *value = new_buffer(len);

	if (start[-1] != '"' || start[len] != '"')
		die("no plain string in vector", name);
	memcpy(value, start, len);
	value[len] = '\0';
	return value;
}

/* Reads a time like 1985-10-26T01:20:00-07:00. */
static int64
time_member(const char *text, const char *name)
{
	char	   *value = string_member(text, name);
	struct tm	tm = {0};
	char		sign;
	int			hours;
	int			minutes;
	int64		offset;

	if (sscanf(value, "%d-%d-%dT%d:%d:%d%c%d:%d", &tm.tm_year, &tm.tm_mon,
			   &tm.tm_mday, &tm.tm_hour, &tm.tm_min, &tm.tm_sec, &sign, &hours,
			   &minutes) != 9)
		die("no time in vector", value);
	tm.tm_year -= 1900;
	tm.tm_mon -= 1;
	offset = hours * 3600 + minutes * 60;
	free(value);
	return (int64) timegm(&tm) - (sign == '-' ? -offset : offset);
}

static void
key_member(TestCipher *cipher, const char *text, const char *name)
{
	char	   *value = string_member(text, name);
	FernetKey	key;

	if (FernetKeyFromText(value, strlen(value), &key) != FERNET_OK)
		die("no key in vector", value);
	free(value);
	TestCipherInit(cipher, &key);
}

static void
check_generate(const char *text)
{
	TestCipher	cipher;
	char	   *message = string_member(text, "src");
	char	   *token = string_member(text, "token");
	int64		now = time_member(text, "now");
	const char *list = member(text, "iv");
	uint8		iv[FERNET_IV_LEN];
	char	   *made = new_buffer(FernetTokenLen(strlen(message)));

	key_member(&cipher, text, "secret");
	for (int i = 0; i < FERNET_IV_LEN; i++)
		iv[i] = (uint8) strtol(list + 1, (char **) &list, 10);
	check(strlen(token) == FernetTokenLen(strlen(message)) &&
		  FernetSeal(&cipher.methods, (uint64) now, iv, (const uint8 *) message,
					 strlen(message), made) == FERNET_OK &&
		  memcmp(made, token, strlen(token)) == 0,
		  "vector generate.json");
	free(made);
	free(message);
	free(token);
}

/* Reads a vector's token as fernet_decrypt() does. */
static FernetStatus
open_vector(const char *text, char *message, size_t *len)
{
	TestCipher	cipher;
	int64		now = time_member(text, "now");
	int64		ttl = strtol(member(text, "ttl_sec"), NULL, 10);
	char	   *token = string_member(text, "token");
	FernetToken decoded;
	FernetStatus status = FernetDecode(token, strlen(token), (uint8 *) token,
									   &decoded);

	key_member(&cipher, text, "secret");
	if (status == FERNET_OK)
		status = FernetOpen(&decoded, &cipher.methods);
	if (status == FERNET_OK)
		status = FernetCheckAge(&decoded, now, ttl);
	if (status == FERNET_OK)
	{
		*len = decoded.message_len;
		memcpy(message, token, *len);
	}
	free(token);
	return status;
}

static void
check_verify(const char *text)
{
	char	   *message = string_member(text, "src");
	char		opened[256];
	size_t		len;

	check(open_vector(text, opened, &len) == FERNET_OK &&
		  len == strlen(message) && memcmp(opened, message, len) == 0,
		  "vector verify.json");
	free(message);
}

/* The reason must be the one that the vector is about. */
static void
check_invalid(const char *text)
{
	static const struct
	{
		const char *desc;
		FernetStatus status;
	}			reasons[] = {
		{"incorrect mac", FERNET_BAD_MAC},
		{"too short", FERNET_BAD_FORMAT},
		{"invalid base64", FERNET_BAD_BASE64},
		{"payload size not multiple of block size", FERNET_BAD_FORMAT},
		{"payload padding error", FERNET_BAD_PADDING},
		{"far-future TS (unacceptable clock skew)", FERNET_FROM_FUTURE},
		{"expired TTL", FERNET_EXPIRED},
		{"incorrect IV (causes padding error)", FERNET_BAD_PADDING},
	};
	char	   *desc = string_member(text, "desc");
	char		opened[256];
	size_t		len;
	FernetStatus status = open_vector(text, opened, &len);
	bool		known = false;

	for (size_t i = 0; i < lengthof(reasons); i++)
		if (strcmp(desc, reasons[i].desc) == 0)
		{
			known = true;
			check(status == reasons[i].status, "vector invalid.json, %s: %s",
				  desc, FernetStatusText(status));
		}
	check(known && status != FERNET_OK, "vector invalid.json, %s", desc);
	free(desc);
}

static void
test_vectors(void)
{
	static const struct
	{
		const char *path;
		void		(*check_vector) (const char *text);
	}			files[] = {
		{"test/fernet-spec/generate.json", check_generate},
		{"test/fernet-spec/verify.json", check_verify},
		{"test/fernet-spec/invalid.json", check_invalid},
	};
	int			nvectors = 0;

	for (size_t i = 0; i < lengthof(files); i++)
	{
		char	   *text = read_file(files[i].path);

		for (char *at = text; (at = strchr(at, '{')) != NULL; at++)
		{
			files[i].check_vector(at);
			nvectors++;
		}
		free(text);
	}
	check(nvectors == 10, "%d vectors were read", nvectors);
}

/* ---------------------------------------------------------------------------
 * Key texts
 */

typedef struct KeyTextCase
{
	const char *text;
	size_t		len;
	const char *secrets;		/* each followed by a bar */
	KeyListStatus end;
	int			ordinal;		/* of the last item or line */
} KeyTextCase;

#define TEXT(s) s, sizeof(s) - 1

static void
check_key_text(const KeyTextCase *test, const char *kind,
			   KeyListStatus (*next) (KeyListParser *parser))
{
	/* a buffer that ends with the text shows reads behind it */
	char	   *text = malloc(Max(test->len, 1));
	char		secrets[256];
	size_t		at = 0;
	KeyListParser parser;
	KeyListStatus status;

	if (text == NULL)
		die("out of memory", kind);
	memcpy(text, test->text, test->len);
	KeyListStart(&parser, text, test->len);
	while ((status = next(&parser)) == KEYLIST_SECRET)
	{
		if (at + parser.len + 1 >= sizeof(secrets))
			die("too many secrets", test->text);
		memcpy(secrets + at, parser.secret, parser.len);
		at += parser.len;
		secrets[at++] = '|';
	}
	secrets[at] = '\0';
	check(status == test->end, "%s <%s> ends: %s", kind, test->text,
		  KeyListStatusText(status));
	check(strcmp(secrets, test->secrets) == 0, "%s <%s> gives <%s>", kind,
		  test->text, secrets);
	check(parser.ordinal == test->ordinal, "%s <%s> ends at %d", kind,
		  test->text, parser.ordinal);
	free(text);
}

static void
test_key_lists(void)
{
	static const KeyTextCase lists[] = {
		{TEXT(""), "", KEYLIST_END, 0},
		{TEXT(" \t\r\n"), "", KEYLIST_END, 0},
		{TEXT("a"), "a|", KEYLIST_END, 1},
		{TEXT("a,b,c"), "a|b|c|", KEYLIST_END, 3},
		{TEXT(" a , b\t,\nc\r\n"), "a|b|c|", KEYLIST_END, 3},
		{TEXT("a b, c d"), "a b|c d|", KEYLIST_END, 2},
		{TEXT("\"a\""), "a|", KEYLIST_END, 1},
		{TEXT("\"a,b\",c"), "a,b|c|", KEYLIST_END, 2},
		{TEXT(" \" a \" , b"), " a |b|", KEYLIST_END, 2},
		{TEXT("\"a\"\"b\""), "a\"b|", KEYLIST_END, 1},
		{TEXT("\"\"\"\""), "\"|", KEYLIST_END, 1},
		{TEXT("\"\"\"a\"\"\",b"), "\"a\"|b|", KEYLIST_END, 2},
		{TEXT("a'b,c\\d"), "a'b|c\\d|", KEYLIST_END, 2},
		{TEXT("gr\xC3\xBC\xC3\x9F,\xE2\x82\xAC"),
		"gr\xC3\xBC\xC3\x9F|\xE2\x82\xAC|", KEYLIST_END, 2},
		{TEXT(","), "", KEYLIST_EMPTY_ITEM, 1},
		{TEXT("a,"), "a|", KEYLIST_EMPTY_ITEM, 2},
		{TEXT("a, "), "a|", KEYLIST_EMPTY_ITEM, 2},
		{TEXT("a,,b"), "a|", KEYLIST_EMPTY_ITEM, 2},
		{TEXT("\"\""), "", KEYLIST_EMPTY_ITEM, 1},
		{TEXT("a,\"\""), "a|", KEYLIST_EMPTY_ITEM, 2},
		{TEXT("\"a"), "", KEYLIST_UNCLOSED_QUOTE, 1},
		{TEXT("\""), "", KEYLIST_UNCLOSED_QUOTE, 1},
		{TEXT("a,\"b\"\""), "a|", KEYLIST_UNCLOSED_QUOTE, 2},
		{TEXT("a\"b"), "", KEYLIST_STRAY_QUOTE, 1},
		{TEXT("\"a\"b"), "", KEYLIST_STRAY_QUOTE, 1},
		{TEXT("\"a\" b,c"), "", KEYLIST_STRAY_QUOTE, 1},
		{TEXT("a,b\""), "a|", KEYLIST_STRAY_QUOTE, 2},
		{TEXT("a\0b"), "", KEYLIST_NUL_BYTE, 1},
		{TEXT("a,\"b\0\""), "a|", KEYLIST_NUL_BYTE, 2},
		{TEXT("a\xFF"), "", KEYLIST_NOT_UTF8, 1},
		{TEXT("a,\xC3"), "a|", KEYLIST_NOT_UTF8, 2},
		{TEXT("\"\xED\xA0\x80\""), "", KEYLIST_NOT_UTF8, 1},
		{TEXT("\xC0\x80"), "", KEYLIST_NOT_UTF8, 1},
	};
	static const KeyTextCase lines[] = {
		{TEXT(""), "", KEYLIST_END, 0},
		{TEXT("\n"), "", KEYLIST_END, 1},
		{TEXT("\n\r\n\n"), "", KEYLIST_END, 3},
		{TEXT("a"), "a|", KEYLIST_END, 1},
		{TEXT("a\n"), "a|", KEYLIST_END, 1},
		{TEXT("a\nb\n"), "a|b|", KEYLIST_END, 2},
		{TEXT("a\r\nb\r\n"), "a|b|", KEYLIST_END, 2},
		{TEXT("a\nb\r"), "a|b|", KEYLIST_END, 2},
		{TEXT("a\r\rb\n"), "", KEYLIST_CARRIAGE_RETURN, 1},
		{TEXT("a\nb\r\r\n"), "a|", KEYLIST_CARRIAGE_RETURN, 2},
		{TEXT("a\rb\r"), "", KEYLIST_CARRIAGE_RETURN, 1},
		{TEXT("\n\na\n\nb"), "a|b|", KEYLIST_END, 5},
		{TEXT("a b\nc\td"), "a b|c\td|", KEYLIST_END, 2},
		{TEXT("a\nb \nc"), "a|", KEYLIST_OUTER_BLANK, 2},
		{TEXT("a\n\n b\n"), "a|", KEYLIST_OUTER_BLANK, 3},
		{TEXT("a\t\r\n"), "", KEYLIST_OUTER_BLANK, 1},
		{TEXT("\ta"), "", KEYLIST_OUTER_BLANK, 1},
		{TEXT("a\n  \nb"), "a|", KEYLIST_OUTER_BLANK, 2},
		{TEXT("\"a\" \n"), "", KEYLIST_OUTER_BLANK, 1},
		{TEXT("a\n#b\n"), "a|", KEYLIST_COMMENT, 2},
		{TEXT("# a\nb\n"), "", KEYLIST_COMMENT, 1},
		{TEXT("a#b\n\"#c\"\n"), "a#b|#c|", KEYLIST_END, 2},
		{TEXT("a,b\n\"c\"\n"), "a,b|c|", KEYLIST_END, 2},
		{TEXT("\" a \"\r\n\"\"\"b\"\"\"\n"), " a |\"b\"|", KEYLIST_END, 2},
		{TEXT("a\n\"\"\n"), "a|", KEYLIST_EMPTY_ITEM, 2},
		{TEXT("a\n\"b\n\"\n"), "a|", KEYLIST_UNCLOSED_QUOTE, 2},
		{TEXT("a\"b\n"), "", KEYLIST_STRAY_QUOTE, 1},
		{TEXT("\"a\"b\n"), "", KEYLIST_STRAY_QUOTE, 1},
		{TEXT("\xC3\xBC\n\xF0\x9F\x94\x91"), "\xC3\xBC|\xF0\x9F\x94\x91|",
		KEYLIST_END, 2},
		{TEXT("\xEF\xBB\xBF"
			  "a\n"),
		"", KEYLIST_BYTE_ORDER_MARK, 1},
		{TEXT("\xEF\xBB\xBF"), "", KEYLIST_BYTE_ORDER_MARK, 1},
		{TEXT("\xEF\xBB"), "", KEYLIST_NOT_UTF8, 1},
		{TEXT("a\nb\0c\n"), "a|", KEYLIST_NUL_BYTE, 2},
		{TEXT("\0"), "", KEYLIST_NUL_BYTE, 1},
		{TEXT("a\n\xFF\xFE\n"), "a|", KEYLIST_NOT_UTF8, 2},
		{TEXT("a\nb\xE2\x82\n\xAC"), "a|", KEYLIST_NOT_UTF8, 2},
	};

	for (size_t i = 0; i < lengthof(lists); i++)
		check_key_text(&lists[i], "list", KeyListNextItem);
	for (size_t i = 0; i < lengthof(lines); i++)
		check_key_text(&lines[i], "file", KeyListNextLine);
}

static void
test_mime_types(void)
{
	static const char *const good[] = {
		"text/plain", "x-a!#$&^_.+-/y", "a/b;c=d", "a/b ; c=d; e=\"f\"",
		"a/b; c=\"\"", "a/b; c=\" \\\" ; , \\\\\"", "a/b; c=\"~ !\""
	};
	static const char *const bad[] = {
		"", "text", "/", "a/", "/b", "a/b/c", "a b/c", "a/b c", "a/b;", "a/b;c",
		"a/b;c=", "a/b;=d", "a/b;c=\"", "a/b;c=\"d", "a/b;c=\"\\", "a/b;c=\"d\"e",
		" a/b", "a/b ", "a/b;\tc=d", "a/b;c=\"\t\"", "a/b\r\nX: y", "a/b\x7f",
		"a/b;c=\"\x7f\"", "a/b;c=\"\xE6\x97\xA5\"", "a/\xC3\xA9", "a/b;c=\"\\\xE9\""
	};

	for (size_t i = 0; i < lengthof(good); i++)
		check(MimeTypeIsValid(good[i], strlen(good[i])), "MIME type %s", good[i]);
	for (size_t i = 0; i < lengthof(bad); i++)
		check(!MimeTypeIsValid(bad[i], strlen(bad[i])), "no MIME type: %s", bad[i]);
	check(!MimeTypeIsValid("a/b\0c", 5), "a NUL byte in a MIME type");
	check(!MimeTypeIsValid("a/b;c=\"\0\"", 9), "a NUL byte in a quoted string");
	check(MimeTypeIsValid("text/plain; x", 10), "a MIME type that is not terminated");
}

/* As many secrets as are allowed, and one more. */
static void
test_number_of_keys(char separator, const char *kind,
					KeyListStatus (*next) (KeyListParser *parser))
{
	for (int n = KEYLIST_MAX_SECRETS; n <= KEYLIST_MAX_SECRETS + 1; n++)
	{
		char		text[2 * KEYLIST_MAX_SECRETS + 1];
		char		secrets[2 * KEYLIST_MAX_SECRETS + 1];
		bool		too_many = n > KEYLIST_MAX_SECRETS;
		KeyTextCase test = {
			text, 2 * n - 1, secrets,
			too_many ? KEYLIST_TOO_MANY : KEYLIST_END, n
		};

		for (int i = 0; i < KEYLIST_MAX_SECRETS; i++)
		{
			text[2 * i] = secrets[2 * i] = 'a';
			text[2 * i + 1] = separator;
			secrets[2 * i + 1] = '|';
		}
		text[2 * KEYLIST_MAX_SECRETS] = 'a';
		secrets[2 * KEYLIST_MAX_SECRETS] = '\0';
		check_key_text(&test, kind, next);
	}
}

#define BASE64_24 "/bcdefghijklmnopqrstuv=="
#define BASE64_32 "+0123456789012345678901234567890"
#define BASE64_64 BASE64_32 BASE64_32
#define BASE64_76 BASE64_64 "ABCDEFGHIJKL"

/* Lines that a program has broken off, and such as only look alike. */
static void
test_broken_lines(void)
{
	static const struct
	{
		const char *text;
		bool		continues;	/* does the last line? */
	}			files[] = {
		{BASE64_64 "\n" BASE64_24 "\n", true},
		{BASE64_64 "\r\n" BASE64_24, true},
		{BASE64_76 "\n" BASE64_24, true},
		{"old-secret\n" BASE64_64 "\n" BASE64_24, true},
		{BASE64_64, false},
		{BASE64_64 "\n\n" BASE64_24, false},
		{BASE64_64 "\n" BASE64_24 "\n" BASE64_24, false},
		{BASE64_64 "\n\"" BASE64_24 "\"\n", false},
		{BASE64_64 "\n" BASE64_32, false},
		{BASE64_64 "\n" BASE64_64, false},
		{BASE64_64 "\nold-secret\n", false},
		{BASE64_64 "\n" BASE64_24 "=\n", false},
		{BASE64_64 "\nold\n", false},
		{BASE64_24 "\n" BASE64_24, false},
		{BASE64_32 BASE64_24 "abcdefg=\n" BASE64_24, false},
		{BASE64_32 BASE64_24 "abc-efgh\n" BASE64_24, false},
	};

	for (size_t i = 0; i < lengthof(files); i++)
	{
		char	   *text = strdup(files[i].text);
		KeyListParser parser;

		if (text == NULL)
			die("out of memory", files[i].text);
		KeyListStart(&parser, text, strlen(text));
		while (KeyListNextLine(&parser) == KEYLIST_SECRET)
			;
		check(parser.continues == files[i].continues, "<%s> ends with %s",
			  files[i].text, parser.continues ? "a rest" : "a secret");
		free(text);
	}
}

int
main(void)
{
	FernetKey	test_key = TestKey("test");
	FernetKey	other_key = TestKey("other");

	TestCipherInit(&test_cipher, &test_key);
	TestCipherInit(&other_cipher, &other_key);

	test_ciphers();
	test_vectors();
	test_round_trips();
	test_many();
	test_failures();
	test_damage();
	test_base64();
	test_signed();
	test_keys();
	test_age();
	test_timestamps();
	test_key_lists();
	test_mime_types();
	test_number_of_keys(',', "list", KeyListNextItem);
	test_number_of_keys('\n', "file", KeyListNextLine);
	test_broken_lines();

	printf("%d passed, %d failed\n", passed, failed);
	return failed == 0 ? 0 : 1;
}
