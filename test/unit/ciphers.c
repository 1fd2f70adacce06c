/*-------------------------------------------------------------------------
 *
 * ciphers.c
 *	  The codec's ciphers for programs that run without a server.
 *
 * In a server they are pgcrypto's and the server's own, which cannot be linked
 * with a program.  These are written from the standards and short rather than
 * fast, so that unit test and fuzzer need no cryptographic library, and the
 * codec is held against a second implementation: FIPS 197 (AES), FIPS 180-4
 * (SHA-256), RFC 2104 (HMAC).  test_fernet.c checks them by the examples of the
 * standards.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe.h"

#include "ciphers.h"

static uint8 sbox[256];
static uint8 inverse_sbox[256];
static uint8 mixed[256][4];
static uint8 unmixed[256][4];

/* ---------------------------------------------------------------------------
 * AES-128
 */

/* Multiplies in the field of FIPS 197, section 4.2. */
static uint8
multiply(uint8 a, uint8 b)
{
	uint8		product = 0;

	for (; b != 0; b >>= 1)
	{
		if (b & 1)
			product ^= a;
		a = (uint8) (a << 1 ^ (a & 0x80 ? 0x1b : 0));
	}
	return product;
}

/* Fills the tables of section 5.1.1: the inverse, then an affine map. */
static void
fill_sboxes(void)
{
	for (int i = 0; i < 256; i++)
	{
		uint8		inverse = 0;
		uint8		mapped;

		for (int j = 1; j < 256 && inverse == 0; j++)
			if (multiply((uint8) i, (uint8) j) == 1)
				inverse = (uint8) j;
		mapped = 0x63;
		for (int turn = 0; turn < 5; turn++)
			mapped ^= (uint8) (inverse << turn | inverse >> (8 - turn));
		sbox[i] = mapped;
		inverse_sbox[mapped] = (uint8) i;
	}
}

static void
expand_key(TestCipher *cipher, const uint8 *key)
{
	uint8	   *words = cipher->round_keys[0];
	uint8		constant = 1;

	memcpy(words, key, FERNET_BLOCK_LEN);
	for (int i = FERNET_BLOCK_LEN; i < (AES_ROUNDS + 1) * FERNET_BLOCK_LEN; i += 4)
	{
		uint8		word[4];

		memcpy(word, words + i - 4, 4);
		if (i % FERNET_BLOCK_LEN == 0)
		{
			uint8		first = word[0];

			word[0] = sbox[word[1]] ^ constant;
			word[1] = sbox[word[2]];
			word[2] = sbox[word[3]];
			word[3] = sbox[first];
			constant = multiply(constant, 2);
		}
		for (int j = 0; j < 4; j++)
			words[i + j] = words[i + j - FERNET_BLOCK_LEN] ^ word[j];
	}
}

static void
add_block(uint8 *block, const uint8 *other)
{
	for (int i = 0; i < FERNET_BLOCK_LEN; i++)
		block[i] ^= other[i];
}

/* What each byte comes to in a column, multiplied by a polynomial. */
static void
fill_products(uint8 (*products)[4], uint8 a0, uint8 a1, uint8 a2, uint8 a3)
{
	for (int i = 0; i < 256; i++)
	{
		products[i][0] = multiply((uint8) i, a0);
		products[i][1] = multiply((uint8) i, a1);
		products[i][2] = multiply((uint8) i, a2);
		products[i][3] = multiply((uint8) i, a3);
	}
}

/* Multiplies each column by a polynomial, given by its products. */
static void
mix_columns(uint8 *block, uint8 (*products)[4])
{
	for (int column = 0; column < FERNET_BLOCK_LEN; column += 4)
	{
		uint8		old[4];

		memcpy(old, block + column, 4);
		for (int i = 0; i < 4; i++)
			block[column + i] = products[old[0]][i] ^
				products[old[1]][(i + 3) % 4] ^
				products[old[2]][(i + 2) % 4] ^ products[old[3]][(i + 1) % 4];
	}
}

static void
encrypt_block(const TestCipher *cipher, uint8 *block)
{
	uint8		old[FERNET_BLOCK_LEN];

	add_block(block, cipher->round_keys[0]);
	for (int round = 1; round <= AES_ROUNDS; round++)
	{
		memcpy(old, block, FERNET_BLOCK_LEN);
		for (int i = 0; i < FERNET_BLOCK_LEN; i++)
			block[i] = sbox[old[(i + i % 4 * 4) % 16]];
		if (round < AES_ROUNDS)
			mix_columns(block, mixed);
		add_block(block, cipher->round_keys[round]);
	}
}

static void
decrypt_block(const TestCipher *cipher, uint8 *block)
{
	uint8		old[FERNET_BLOCK_LEN];

	for (int round = AES_ROUNDS; round >= 1; round--)
	{
		add_block(block, cipher->round_keys[round]);
		if (round < AES_ROUNDS)
			mix_columns(block, unmixed);
		memcpy(old, block, FERNET_BLOCK_LEN);
		for (int i = 0; i < FERNET_BLOCK_LEN; i++)
			block[(i + i % 4 * 4) % 16] = inverse_sbox[old[i]];
	}
	add_block(block, cipher->round_keys[0]);
}

/* ---------------------------------------------------------------------------
 * SHA-256
 */

static const uint32 sha256_constants[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
	0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
	0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
	0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
	0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
	0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
	0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
	0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
	0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2
};

static uint32
rotate(uint32 word, int bits)
{
	return word >> bits | word << (32 - bits);
}

static void
sha256_begin(Sha256 *sha)
{
	static const uint32 initial[8] = {
		0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c,
		0x1f83d9ab, 0x5be0cd19
	};

	memcpy(sha->state, initial, sizeof(initial));
	sha->len = 0;
}

static void
sha256_block(Sha256 *sha)
{
	uint32		w[64];
	uint32		s[8];

	memcpy(s, sha->state, sizeof(s));
	for (int t = 0; t < 64; t++)
	{
		uint32		sum;

		if (t < 16)
			w[t] = (uint32) sha->block[t * 4] << 24 |
				(uint32) sha->block[t * 4 + 1] << 16 |
				(uint32) sha->block[t * 4 + 2] << 8 | sha->block[t * 4 + 3];
		else
			w[t] = w[t - 16] + w[t - 7] +
				(rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ w[t - 15] >> 3) +
				(rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ w[t - 2] >> 10);
		sum = s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25)) +
			((s[4] & s[5]) ^ (~s[4] & s[6])) + sha256_constants[t] + w[t];
		s[7] = s[6];
		s[6] = s[5];
		s[5] = s[4];
		s[4] = s[3] + sum;
		sum += (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22)) +
			((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
		s[3] = s[2];
		s[2] = s[1];
		s[1] = s[0];
		s[0] = sum;
	}
	for (int i = 0; i < 8; i++)
		sha->state[i] += s[i];
}

static void
sha256_add(Sha256 *sha, const uint8 *data, size_t len)
{
	while (len > 0)
	{
		size_t		used = sha->len % 64;
		size_t		part = Min(len, 64 - used);

		memcpy(sha->block + used, data, part);
		data += part;
		len -= part;
		sha->len += part;
		if (used + part == 64)
			sha256_block(sha);
	}
}

static void
sha256_end(Sha256 *sha, uint8 *hash)
{
	static const uint8 padding[64] = {0x80};
	uint64		nbits = sha->len * 8;
	uint8		end[8];

	for (int i = 0; i < 8; i++)
		end[i] = (uint8) (nbits >> (56 - 8 * i));
	sha256_add(sha, padding, 1 + (119 - sha->len % 64) % 64);
	sha256_add(sha, end, sizeof(end));
	for (int i = 0; i < 32; i++)
		hash[i] = (uint8) (sha->state[i / 4] >> (24 - i % 4 * 8));
}

/*
 * Sha256Hash
 *		Writes the 32 bytes of the SHA-256 of data.
 */
void
Sha256Hash(const void *data, size_t len, uint8 *hash)
{
	Sha256		sha;

	sha256_begin(&sha);
	sha256_add(&sha, data, len);
	sha256_end(&sha, hash);
}

/*
 * TestKey
 *		Makes the key of a secret, as fernet_derive_key() does.
 */
FernetKey
TestKey(const char *secret)
{
	FernetKey	key;

	Sha256Hash(secret, strlen(secret), (uint8 *) &key);
	return key;
}

/* ---------------------------------------------------------------------------
 * What the codec calls
 */

/* Counts a call down to the one that is to fail. */
static bool
succeeds(TestCipher *cipher)
{
	if (cipher->fails_after == 0)
		return false;
	if (cipher->fails_after > 0)
		cipher->fails_after--;
	return true;
}

/*
 * Does what a real one may do: demands alignment, and overwrites the room
 * before the blocks.
 */
static bool
begin_blocks(TestCipher *cipher, uint8 *blocks, size_t len)
{
	cipher->calls++;
	if ((uintptr_t) blocks % 4 != 0 || len == 0 ||
		len % FERNET_BLOCK_LEN != 0 || len > FERNET_PIECE_LEN)
		abort();
	memset(blocks - FERNET_CIPHER_ROOM, 0xA5, FERNET_CIPHER_ROOM);
	if (succeeds(cipher))
		return true;
	memset(blocks, 0, len);
	return false;
}

static bool
encrypt(void *context, const uint8 *iv, uint8 *blocks, size_t len)
{
	TestCipher *cipher = context;
	uint8		previous[FERNET_BLOCK_LEN];

	memcpy(previous, iv, FERNET_BLOCK_LEN);
	if (!begin_blocks(cipher, blocks, len))
		return false;
	for (uint8 *block = blocks; block < blocks + len; block += FERNET_BLOCK_LEN)
	{
		add_block(block, previous);
		encrypt_block(cipher, block);
		memcpy(previous, block, FERNET_BLOCK_LEN);
	}
	return true;
}

static bool
decrypt(void *context, const uint8 *iv, uint8 *blocks, size_t len)
{
	TestCipher *cipher = context;
	uint8		previous[FERNET_BLOCK_LEN];

	memcpy(previous, iv, FERNET_BLOCK_LEN);
	if (!begin_blocks(cipher, blocks, len))
		return false;
	for (uint8 *block = blocks; block < blocks + len; block += FERNET_BLOCK_LEN)
	{
		uint8		this[FERNET_BLOCK_LEN];

		memcpy(this, block, FERNET_BLOCK_LEN);
		decrypt_block(cipher, block);
		add_block(block, previous);
		memcpy(previous, this, FERNET_BLOCK_LEN);
	}
	return true;
}

static bool
begin_hmac(void *context)
{
	TestCipher *cipher = context;

	cipher->running = cipher->inner;
	return succeeds(cipher);
}

static bool
add_to_hmac(void *context, const uint8 *data, size_t len)
{
	TestCipher *cipher = context;

	sha256_add(&cipher->running, data, len);
	return succeeds(cipher);
}

static bool
end_hmac(void *context, uint8 *mac)
{
	TestCipher *cipher = context;
	Sha256		outer = cipher->outer;

	sha256_end(&cipher->running, mac);
	sha256_add(&outer, mac, FERNET_MAC_LEN);
	sha256_end(&outer, mac);
	return succeeds(cipher);
}

/* Begins a hash with a key of HMAC, padded to a block. */
static void
begin_keyed(Sha256 *sha, const uint8 *key, size_t len, uint8 pad)
{
	uint8		block[64] = {0};

	memcpy(block, key, len);
	for (int i = 0; i < 64; i++)
		block[i] ^= pad;
	sha256_begin(sha);
	sha256_add(sha, block, sizeof(block));
}

/*
 * TestCipherInit
 *		Makes the cipher of a key, with which no call fails.
 */
const FernetCipher *
TestCipherInit(TestCipher *cipher, const FernetKey *key)
{
	if (sbox[0] == 0)
	{
		fill_sboxes();
		fill_products(mixed, 2, 1, 1, 3);
		fill_products(unmixed, 14, 9, 13, 11);
	}
	expand_key(cipher, key->encryption);
	begin_keyed(&cipher->inner, key->signing, sizeof(key->signing), 0x36);
	begin_keyed(&cipher->outer, key->signing, sizeof(key->signing), 0x5c);
	cipher->calls = 0;
	cipher->fails_after = -1;
	cipher->methods = (FernetCipher)
	{
		.context = cipher,
			.encrypt = encrypt,
			.decrypt = decrypt,
			.hmac_init = begin_hmac,
			.hmac_update = add_to_hmac,
			.hmac_final = end_hmac
	};
	return &cipher->methods;
}
