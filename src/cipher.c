/*-------------------------------------------------------------------------
 *
 * cipher.c
 *	  AES-128-CBC through the functions of pgcrypto.
 *
 * pgcrypto's library is loaded by name, so it does not matter in which
 * schema its SQL functions are.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "cipher.h"
#include "fmgr.h"
#include "utils/memutils.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* pgcrypto is loaded once a session: a lookup a call would cost more. */
static PGFunction pgcrypto_encrypt_iv = NULL;
static PGFunction pgcrypto_decrypt_iv = NULL;

/* Wraps len bytes into the varlena at dst, which has room for them. */
static Datum
make_bytea(void *dst, const void *data, size_t len)
{
	SET_VARSIZE(dst, VARHDRSZ + len);
	memcpy(VARDATA(dst), data, len);
	return PointerGetDatum(dst);
}

/*
 * Wipes what was freed last of the chunks that serve a request of this size:
 * the allocator gives it out again first.
 */
static void
wipe_freed(MemoryContext context, Size size)
{
	pfree(MemoryContextAllocZero(context, size));
}

/*
 * Runs one of the two pgcrypto functions over one piece.
 *
 * What pgcrypto frees are an array as long as the longest AES key, and its
 * cipher object, whose size depends on the version of PostgreSQL.
 */
static void
run_pgcrypto(PGFunction *function, const char *symbol, const uint8 *key,
			 const uint8 *iv, const uint8 *in, size_t len, uint8 *out)
{
	static const char method[] = "aes-cbc/pad:none";
	union
	{
		int32		header;
		char		bytes[VARHDRSZ + CIPHER_PIECE_LEN];
	}			data;
	union
	{
		int32		header;
		char		bytes[VARHDRSZ + 32];
	}			key_arg,
				iv_arg,
				method_arg;
	bytea	   *result;

	Assert(len <= CIPHER_PIECE_LEN && len % CIPHER_BLOCK_LEN == 0);

	if (*function == NULL)
		*function = (PGFunction) load_external_function("$libdir/pgcrypto",
														symbol, true, NULL);

	result = DatumGetByteaPP(DirectFunctionCall4(*function,
												 make_bytea(&data, in, len),
												 make_bytea(&key_arg, key, CIPHER_KEY_LEN),
												 make_bytea(&iv_arg, iv, CIPHER_BLOCK_LEN),
												 make_bytea(&method_arg, method, sizeof(method) - 1)));

	/* pgcrypto frees its copies of the key without wiping them */
	wipe_freed(CurrentMemoryContext, 32);
	wipe_freed(TopMemoryContext, 128);
	wipe_freed(TopMemoryContext, 256);
	explicit_bzero(&key_arg, sizeof(key_arg));

	if (VARSIZE_ANY_EXHDR(result) != len)
		elog(ERROR, "pgcrypto returned %zu bytes for %zu",
			 (size_t) VARSIZE_ANY_EXHDR(result), len);
	memcpy(out, VARDATA_ANY(result), len);
	pfree(result);
}

/*
 * CipherEncrypt
 *		Encrypts len bytes with AES-128-CBC.
 *
 * key and iv have 16 bytes each; len is a multiple of 16 and at most
 * CIPHER_PIECE_LEN; in and out may overlap.  Longer data goes in pieces: the
 * last block of one piece's ciphertext is the IV of the next.
 */
void
CipherEncrypt(const uint8 *key, const uint8 *iv, const uint8 *in, size_t len,
			  uint8 *out)
{
	run_pgcrypto(&pgcrypto_encrypt_iv, "pg_encrypt_iv", key, iv, in, len, out);
}

/*
 * CipherDecrypt
 *		Decrypts len bytes, the counterpart of CipherEncrypt.
 */
void
CipherDecrypt(const uint8 *key, const uint8 *iv, const uint8 *in, size_t len,
			  uint8 *out)
{
	run_pgcrypto(&pgcrypto_decrypt_iv, "pg_decrypt_iv", key, iv, in, len, out);
}
