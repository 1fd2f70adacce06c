/*-------------------------------------------------------------------------
 *
 * cipher.c
 *	  AES by pgcrypto, HMAC and SHA-256 by the server.
 *
 * pgcrypto's C functions are called by address, so it does not matter in which
 * schema the extension is, nor which other objects there have the same names.
 * They copy the key and free the copies as they are; so each call is followed
 * by wiping what it has freed.  An error of theirs is held back until the
 * codec has wiped what it had in hand: CipherFail raises it.  So it is where the
 * statement is cancelled: the next step fails.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "cipher.h"
#include "common/cryptohash.h"
#include "common/hmac.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

StaticAssertDecl(FERNET_CIPHER_ROOM == VARHDRSZ,
				 "blocks and the room before them are a bytea");

#define HMAC_STEP_LEN (1024 * 1024) /* before it is asked whether to go on */

/* Sixteen bytes, and the same as a bytea */
typedef struct ByteaBlock
{
	int32		header;
	uint8		bytes[FERNET_BLOCK_LEN];
} ByteaBlock;

typedef struct Cipher
{
	FernetCipher methods;
	pg_hmac_ctx *hmac;			/* has the signing key */
	ByteaBlock	key;			/* for AES */
	MemoryContextCallback wipe;
} Cipher;

#if defined(__has_attribute)
#if __has_attribute(zero_call_used_regs)
#define CLEARS_REGISTERS __attribute__((zero_call_used_regs("all")))
#endif
#endif
#ifndef CLEARS_REGISTERS
#define CLEARS_REGISTERS
#endif

static PGFunction pgcrypto_encrypt = NULL;
static PGFunction pgcrypto_decrypt = NULL;

/* What a call of pgcrypto allocates, and the error that it raised. */
static MemoryContext call_context = NULL;
static ErrorData *held_error = NULL;

/* Why an HMAC or a hash has failed, in the words of the server's library. */
static const char *held_reason = NULL;

/*
 * The server frees HMAC and hash contexts with the resource owner of their
 * creation.  This one is never released: whoever has made them frees them.
 */
static ResourceOwner owner = NULL;

/* Finds a function of pgcrypto's library, wherever its extension is. */
static PGFunction
find_function(const char *name)
{
	MemoryContext context = CurrentMemoryContext;
	PGFunction	function = NULL;

	PG_TRY();
	{
		function = (PGFunction) load_external_function("$libdir/pgcrypto",
													   name, true, NULL);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		error->hint = pstrdup("Encryption needs the library of the extension pgcrypto: install PostgreSQL's contrib modules.");
		ReThrowError(error);
	}
	PG_END_TRY();
	return function;
}

/* Makes what all ciphers share, once in the life of a process. */
static void
prepare_process(void)
{
	if (call_context == NULL)
		call_context = AllocSetContextCreate(TopMemoryContext,
											 "extension_storage pgcrypto call",
											 ALLOCSET_SMALL_SIZES);
	if (pgcrypto_decrypt == NULL)
	{
		pgcrypto_encrypt = find_function("pg_encrypt_iv");
		pgcrypto_decrypt = find_function("pg_decrypt_iv");
	}
}

/* Makes our resource owner the current one; returns the one that was. */
static ResourceOwner
use_own_resource_owner(void)
{
	ResourceOwner old_owner = CurrentResourceOwner;

	if (owner == NULL)
		owner = ResourceOwnerCreate(NULL, "extension_storage ciphers");
	CurrentResourceOwner = owner;
	return old_owner;
}

/* Makes an HMAC context, which whoever calls this frees. */
static pg_hmac_ctx *
create_hmac(void)
{
	ResourceOwner old_owner = use_own_resource_owner();
	pg_hmac_ctx *hmac = NULL;

	PG_TRY();
	{
		hmac = pg_hmac_create(PG_SHA256);
	}
	PG_FINALLY();
	{
		CurrentResourceOwner = old_owner;
	}
	PG_END_TRY();
	return hmac;
}

/*
 * Wipes the chunk that was freed last among those of about this size: the next
 * one that is allocated gets it.  Source: the free lists of
 * src/backend/utils/mmgr/aset.c.  test/t/012_keys_wiped.pl searches for what
 * would be missed.
 */
static void
wipe_freed(MemoryContext context, Size size)
{
	void	   *chunk = MemoryContextAlloc(context, size);

	explicit_bzero(chunk, size);
	pfree(chunk);
}

/*
 * Wipes the stack below the caller's frame, and the registers that a called
 * function may change.
 *
 * OpenSSL copies the state of an HMAC through vector registers and leaves it
 * there.  Where the server is not linked with -z now, the dynamic linker saves
 * them on the stack when it next looks up a function.
 */
static pg_noinline CLEARS_REGISTERS void
wipe_stack(void)
{
	uint8		below[8192];

	explicit_bzero(below, sizeof(below));
}

/*
 * CipherWipe
 *		Wipes a copy of a key, and what copying it has left in registers.
 */
void
CipherWipe(void *key, Size size)
{
	explicit_bzero(key, size);
	wipe_stack();
}

/*
 * Wipes what a call of pgcrypto has freed: the key padded to 32 bytes, by
 * combo_init() in contrib/pgcrypto/px.c, and an OSSLCipher in
 * TopMemoryContext, of 120 or 136 bytes, in contrib/pgcrypto/openssl.c.
 * OpenSSL wipes what that points to.
 */
static void
wipe_call(void)
{
	wipe_stack();
	wipe_freed(call_context, 32);
	wipe_freed(TopMemoryContext, 128);
	wipe_freed(TopMemoryContext, 256);
}

/* Is the statement to end, by an error that CHECK_FOR_INTERRUPTS() raises? */
static inline bool
is_cancelled(void)
{
	return INTERRUPTS_PENDING_CONDITION() && INTERRUPTS_CAN_BE_PROCESSED() &&
#if PG_VERSION_NUM >= 170000
		(QueryCancelPending || ProcDiePending || TransactionTimeoutPending);
#else
		(QueryCancelPending || ProcDiePending);
#endif
}

/* Runs blocks through a function of pgcrypto, as FernetCrypt describes. */
static bool
call_pgcrypto(PGFunction function, Cipher *cipher, const uint8 *iv,
			  uint8 *blocks, size_t len)
{
	/* "aes-cbc/pad:none", as text */
	static struct
	{
		int32		header;
		char		name[16];
	}			algorithm = {0, {'a', 'e', 's', '-', 'c', 'b', 'c', '/',
	'p', 'a', 'd', ':', 'n', 'o', 'n', 'e'}};
	bytea	   *data = (bytea *) (blocks - VARHDRSZ);
	ByteaBlock	iv_copy;
	MemoryContext old_context;
	volatile bool done = false;

	if (is_cancelled())
	{
		explicit_bzero(blocks, len);
		return false;
	}
	old_context = MemoryContextSwitchTo(call_context);
	SET_VARSIZE(&algorithm, sizeof(algorithm));
	SET_VARSIZE(&iv_copy, sizeof(iv_copy));
	memcpy(iv_copy.bytes, iv, FERNET_IV_LEN);
	SET_VARSIZE(data, VARHDRSZ + len);
	PG_TRY();
	{
		bytea	   *result;

		result = DatumGetByteaP(DirectFunctionCall4(function,
													PointerGetDatum(data),
													PointerGetDatum(&cipher->key),
													PointerGetDatum(&iv_copy),
													PointerGetDatum(&algorithm)));
		/* before anything else of their sizes is freed */
		wipe_call();
		done = VARSIZE(result) == VARHDRSZ + len;
		if (done)
			memcpy(blocks, VARDATA(result), len);
		if (function == pgcrypto_decrypt)
			explicit_bzero(VARDATA(result), VARSIZE(result) - VARHDRSZ);
		pfree(result);
	}
	PG_CATCH();
	{
		/*
		 * There is no plaintext to wipe: pgcrypto's last error is before the
		 * blocks are decrypted.
		 */
		MemoryContextSwitchTo(call_context);
		wipe_call();
		MemoryContextReset(call_context);
		held_error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old_context);
	if (!done)
		explicit_bzero(blocks, len);
	return done;
}

static bool
encrypt_blocks(void *context, const uint8 *iv, uint8 *blocks, size_t len)
{
	return call_pgcrypto(pgcrypto_encrypt, context, iv, blocks, len);
}

static bool
decrypt_blocks(void *context, const uint8 *iv, uint8 *blocks, size_t len)
{
	return call_pgcrypto(pgcrypto_decrypt, context, iv, blocks, len);
}

/* Was a step of an HMAC done?  If not, keeps the reason for CipherFail. */
static inline bool
hmac_succeeded(pg_hmac_ctx *hmac, int result)
{
	held_reason = result < 0 ? pg_hmac_error(hmac) : NULL;
	return result >= 0;
}

/*
 * Begins an HMAC with the key that the context has: OpenSSL's HMAC_Init_ex()
 * keeps it where it is given none, which takes a third of the time.  pgcrypto
 * is only there if the server uses OpenSSL; CipherCreate makes sure that it
 * does as it should.
 */
static bool
restart_hmac(void *context)
{
	Cipher	   *cipher = context;

	return hmac_succeeded(cipher->hmac, pg_hmac_init(cipher->hmac, NULL, 0));
}

/* A stored token may have a gigabyte, and a hundred keys may be tried on it. */
static bool
update_hmac(void *context, const uint8 *data, size_t len)
{
	Cipher	   *cipher = context;
	bool		done = true;

	while (len > 0 && done)
	{
		size_t		step = Min(len, HMAC_STEP_LEN);

		done = !is_cancelled() &&
			hmac_succeeded(cipher->hmac,
						   pg_hmac_update(cipher->hmac, data, step));
		data += step;
		len -= step;
	}
	return done;
}

static bool
finish_hmac(void *context, uint8 *mac)
{
	Cipher	   *cipher = context;
	bool		done = hmac_succeeded(cipher->hmac,
									  pg_hmac_final(cipher->hmac, mac,
													FERNET_MAC_LEN));

	wipe_stack();
	return done;
}

/* Wipes a cipher, when the memory that it is in is freed. */
static void
wipe_cipher(void *arg)
{
	Cipher	   *cipher = arg;

	pg_hmac_free(cipher->hmac);
	cipher->hmac = NULL;
	CipherWipe(&cipher->key, sizeof(cipher->key));
}

/*
 * CipherCreate
 *		Makes the cipher of a key, which is wiped with the memory context.
 */
const FernetCipher *
CipherCreate(MemoryContext context, const FernetKey *key)
{
	Cipher	   *cipher;
	uint8		first[FERNET_MAC_LEN];
	uint8		second[FERNET_MAC_LEN];

	prepare_process();
	cipher = MemoryContextAllocZero(context, sizeof(Cipher));
	cipher->methods = (FernetCipher)
	{
		.context = cipher,
			.encrypt = encrypt_blocks,
			.decrypt = decrypt_blocks,
			.hmac_init = restart_hmac,
			.hmac_update = update_hmac,
			.hmac_final = finish_hmac
	};
	cipher->hmac = create_hmac();
	cipher->wipe.func = wipe_cipher;
	cipher->wipe.arg = cipher;
	MemoryContextRegisterResetCallback(context, &cipher->wipe);

	SET_VARSIZE(&cipher->key, sizeof(cipher->key));
	memcpy(cipher->key.bytes, key->encryption, sizeof(key->encryption));
	if (!hmac_succeeded(cipher->hmac,
						pg_hmac_init(cipher->hmac, key->signing,
									 sizeof(key->signing))) ||
		!finish_hmac(cipher, first) ||
		!restart_hmac(cipher) ||
		!finish_hmac(cipher, second) ||
		memcmp(first, second, FERNET_MAC_LEN) != 0)
		CipherFail();
	return &cipher->methods;
}

/*
 * CipherFail
 *		Raises the error because of which a cipher has returned false, be it that
 *		the statement is cancelled, or a key has not been made of its secret.
 */
void
CipherFail(void)
{
	ErrorData  *error = held_error;
	const char *reason = held_reason;

	held_error = NULL;
	held_reason = NULL;
	wipe_stack();
	if (error != NULL)
		ReThrowError(error);
	if (reason == NULL)
		CHECK_FOR_INTERRUPTS();
	ereport(ERROR,
			(errcode(ERRCODE_INTERNAL_ERROR),
			 errmsg("could not compute an HMAC or a hash"),
			 reason != NULL ? errdetail_internal("%s", reason) : 0));
}

/*
 * CipherHmac
 *		Writes the FERNET_MAC_LEN bytes of the HMAC of data under any key.
 */
void
CipherHmac(const void *key, size_t key_len, const char *data, size_t len,
		   uint8 *mac)
{
	pg_hmac_ctx *hmac = create_hmac();
	bool		done;

	done = hmac_succeeded(hmac, pg_hmac_init(hmac, key, key_len)) &&
		hmac_succeeded(hmac, pg_hmac_update(hmac, (const uint8 *) data, len)) &&
		hmac_succeeded(hmac, pg_hmac_final(hmac, mac, FERNET_MAC_LEN));
	pg_hmac_free(hmac);
	wipe_stack();
	if (!done)
		CipherFail();
}

/*
 * FernetKeyFromSecret
 *		Makes the key of a secret: the SHA-256 of its bytes.
 *
 * A setting is checked outside of transactions too, where there is no
 * resource owner.
 */
FernetStatus
FernetKeyFromSecret(const char *secret, size_t len, FernetKey *key)
{
	ResourceOwner old_owner = use_own_resource_owner();
	pg_cryptohash_ctx *hash = NULL;
	bool		done;

	PG_TRY();
	{
		hash = pg_cryptohash_create(PG_SHA256);
	}
	PG_FINALLY();
	{
		CurrentResourceOwner = old_owner;
	}
	PG_END_TRY();
	done = pg_cryptohash_init(hash) >= 0 &&
		pg_cryptohash_update(hash, (const uint8 *) secret, len) >= 0 &&
		pg_cryptohash_final(hash, (uint8 *) key, sizeof(*key)) >= 0;
	held_reason = done ? NULL : pg_cryptohash_error(hash);
	pg_cryptohash_free(hash);
	wipe_stack();
	return done ? FERNET_OK : FERNET_CIPHER_FAILED;
}
