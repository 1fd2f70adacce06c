/*-------------------------------------------------------------------------
 *
 * fernet_sql.c
 *	  The fernet_* functions of SQL, which take their key as an argument.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "cipher.h"
#include "entry.h"
#include "errors.h"
#include "fmgr.h"
#include "secrets.h"
#include "token.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

PG_FUNCTION_INFO_V1(fernet_encrypt);
PG_FUNCTION_INFO_V1(fernet_decrypt);
PG_FUNCTION_INFO_V1(fernet_generate_key);
PG_FUNCTION_INFO_V1(fernet_derive_key);
PG_FUNCTION_INFO_V1(fernet_timestamp);

enum
{
	ENCRYPT_ARG_MESSAGE,
	ENCRYPT_ARG_KEY,
	NUM_ENCRYPT_ARGS
};

static const ArgumentInfo encrypt_arguments[] = {
	[ENCRYPT_ARG_MESSAGE] = {"message", BYTEAOID, 0, true},
	[ENCRYPT_ARG_KEY] = {"key", TEXTOID, 0, true}
};

enum
{
	DECRYPT_ARG_TOKEN,
	DECRYPT_ARG_KEY,
	DECRYPT_ARG_TTL,
	NUM_DECRYPT_ARGS
};

static const ArgumentInfo decrypt_arguments[] = {
	[DECRYPT_ARG_TOKEN] = {"token", TEXTOID, 0, true},
	[DECRYPT_ARG_KEY] = {"key", TEXTOID, 0, true},
	[DECRYPT_ARG_TTL] = {"ttl", INTERVALOID, 0, false}
};

enum
{
	DERIVE_KEY_ARG_SECRET,
	NUM_DERIVE_KEY_ARGS
};

static const ArgumentInfo derive_key_arguments[] = {
	[DERIVE_KEY_ARG_SECRET] = {"secret", TEXTOID, 0, true}
};

enum
{
	TIMESTAMP_ARG_TOKEN,
	NUM_TIMESTAMP_ARGS
};

static const ArgumentInfo timestamp_arguments[] = {
	[TIMESTAMP_ARG_TOKEN] = {"token", TEXTOID, 0, true}
};

/* Wipes and frees the copy of an argument that was toasted. */
static void
wipe_copy(FunctionCallInfo fcinfo, int argno, void *copy)
{
	if (copy == PG_GETARG_POINTER(argno))
		return;
	explicit_bzero(copy, VARSIZE_ANY(copy));
	pfree(copy);
}

/* The cipher of the last call's key, kept as long as the calling query */
typedef struct KeptCipher
{
	FernetKey	key;
	const FernetCipher *cipher;
	MemoryContextCallback wipe;
} KeptCipher;

static void
wipe_kept(void *arg)
{
	KeptCipher *kept = arg;

	CipherWipe(&kept->key, sizeof(kept->key));
}

/* Makes a cipher to keep. */
static KeptCipher *
make_kept(MemoryContext parent, const FernetKey *key)
{
	MemoryContext context = AllocSetContextCreate(parent, "Fernet key",
												  ALLOCSET_SMALL_SIZES);
	KeptCipher *kept = MemoryContextAllocZero(context, sizeof(KeptCipher));

	kept->wipe.func = wipe_kept;
	kept->wipe.arg = kept;
	MemoryContextRegisterResetCallback(context, &kept->wipe);
	kept->cipher = CipherCreate(context, key);
	kept->key = *key;
	return kept;
}

/* Returns the cipher of the argument that is a key. */
static const FernetCipher *
key_argument(FunctionCallInfo fcinfo, const ArgumentInfo *arguments, int argno)
{
	FernetKey	key;
	FmgrInfo   *flinfo = fcinfo->flinfo;
	KeptCipher *kept = flinfo->fn_extra;
	text	   *arg;

	RequireArgument(fcinfo, arguments, argno);
	arg = DatumGetTextPP(ArgumentValue(fcinfo, arguments, argno, TEXTOID));
	if (FernetKeyFromText(VARDATA_ANY(arg), VARSIZE_ANY_EXHDR(arg), &key) != FERNET_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid Fernet key"),
				 errdetail("A Fernet key is the base64url text, with padding, of 32 bytes."),
				 errhint("fernet_generate_key() makes one, fernet_derive_key(secret) makes one from a secret.")));
	if (kept == NULL || memcmp(&kept->key, &key, sizeof(key)) != 0)
	{
		flinfo->fn_extra = NULL;
		if (kept != NULL)
			MemoryContextDelete(GetMemoryChunkContext(kept));
		PG_TRY();
		{
			flinfo->fn_extra = make_kept(flinfo->fn_mcxt, &key);
		}
		PG_FINALLY();
		{
			explicit_bzero(&key, sizeof(key));
		}
		PG_END_TRY();
		kept = flinfo->fn_extra;
	}
	explicit_bzero(&key, sizeof(key));
	wipe_copy(fcinfo, argno, arg);
	return kept->cipher;
}

/* One message for every token that cannot be read, whatever the reason. */
static void
report_bad_token(FernetStatus status)
{
	if (status == FERNET_CIPHER_FAILED)
		CipherFail();
	elog(DEBUG1, "Fernet token refused: %s", FernetStatusText(status));
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid Fernet token")));
}

/* A TTL in whole seconds, with months of 30 days. */
static int64
ttl_argument(FunctionCallInfo fcinfo, int argno)
{
	Interval   *ttl = DatumGetIntervalP(ArgumentValue(fcinfo, decrypt_arguments,
													  argno, INTERVALOID));
	int64		seconds = ((int64) ttl->month * DAYS_PER_MONTH + ttl->day) *
	SECS_PER_DAY + ttl->time / USECS_PER_SEC;

	if (seconds < 0 || (seconds == 0 && ttl->time < 0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ttl must not be negative")));
	return seconds;
}

/* Writes a key as text and wipes it. */
static text *
key_to_text(FernetKey *key)
{
	text	   *result = palloc(VARHDRSZ + FERNET_KEY_TEXT_LEN);

	SET_VARSIZE(result, VARHDRSZ + FERNET_KEY_TEXT_LEN);
	FernetKeyToText(key, VARDATA(result));
	CipherWipe(key, sizeof(*key));
	return result;
}

/*
 * fernet_encrypt(message bytea, key text) returns text
 *		The token of a message, made now with a random IV.
 */
Datum
fernet_encrypt(PG_FUNCTION_ARGS)
{
	ErrorContextCallback hidden;
	const FernetCipher *cipher;
	bytea	   *message;
	text	   *token;
	uint8		iv[FERNET_IV_LEN];

	HideStatementBegin(&hidden);
	CheckArguments(fcinfo, encrypt_arguments, NUM_ENCRYPT_ARGS);
	RequireArgument(fcinfo, encrypt_arguments, ENCRYPT_ARG_MESSAGE);
	cipher = key_argument(fcinfo, encrypt_arguments, ENCRYPT_ARG_KEY);
	message = DatumGetByteaPP(ArgumentValue(fcinfo, encrypt_arguments,
											ENCRYPT_ARG_MESSAGE, BYTEAOID));
	token = FernetNewToken(VARSIZE_ANY_EXHDR(message), iv);
	if (FernetSeal(cipher, FernetNow(), iv,
				   (const uint8 *) VARDATA_ANY(message),
				   VARSIZE_ANY_EXHDR(message), VARDATA(token)) != FERNET_OK)
		CipherFail();
	wipe_copy(fcinfo, ENCRYPT_ARG_MESSAGE, message);
	HideStatementEnd(&hidden);
	PG_RETURN_TEXT_P(token);
}

/*
 * fernet_decrypt(token text, key text, ttl interval) returns bytea
 *		The message of a token.
 *
 * With a ttl, a token that is older than it, or more than a minute ahead of
 * the clock, is as invalid as one that another key has made.
 */
Datum
fernet_decrypt(PG_FUNCTION_ARGS)
{
	ErrorContextCallback hidden;
	const FernetCipher *cipher;
	FernetToken decoded;
	FernetStatus status;
	text	   *token;
	bytea	   *result;
	int64		ttl = 0;

	HideStatementBegin(&hidden);
	CheckArguments(fcinfo, decrypt_arguments, NUM_DECRYPT_ARGS);
	RequireArgument(fcinfo, decrypt_arguments, DECRYPT_ARG_TOKEN);
	cipher = key_argument(fcinfo, decrypt_arguments, DECRYPT_ARG_KEY);
	if (!PG_ARGISNULL(DECRYPT_ARG_TTL))
		ttl = ttl_argument(fcinfo, DECRYPT_ARG_TTL);
	token = DatumGetTextPP(ArgumentValue(fcinfo, decrypt_arguments,
										 DECRYPT_ARG_TOKEN, TEXTOID));
	result = palloc(VARHDRSZ + FernetDecodedLen(VARSIZE_ANY_EXHDR(token)));

	/* decrypted where it is decoded to */
	status = FernetDecode(VARDATA_ANY(token), VARSIZE_ANY_EXHDR(token),
						  (uint8 *) VARDATA(result), &decoded);
	if (status == FERNET_OK)
		status = FernetOpen(&decoded, cipher);
	if (status == FERNET_OK && !PG_ARGISNULL(DECRYPT_ARG_TTL))
	{
		status = FernetCheckAge(&decoded, (int64) FernetNow(), ttl);
		if (status != FERNET_OK)
			explicit_bzero(decoded.bytes, decoded.message_len);
	}
	if (status != FERNET_OK)
		report_bad_token(status);
	SET_VARSIZE(result, VARHDRSZ + decoded.message_len);
	HideStatementEnd(&hidden);
	PG_RETURN_BYTEA_P(result);
}

/*
 * fernet_generate_key() returns text
 *		A new random key.
 */
Datum
fernet_generate_key(PG_FUNCTION_ARGS pg_attribute_unused())
{
	FernetKey	key;

	if (!pg_strong_random(&key, sizeof(key)))
		ReportNoRandomBytes();
	PG_RETURN_TEXT_P(key_to_text(&key));
}

/*
 * fernet_derive_key(secret text) returns text
 *		The key of a secret: base64url(sha256(utf8 of secret)).
 */
Datum
fernet_derive_key(PG_FUNCTION_ARGS)
{
	ErrorContextCallback hidden;
	FernetKey	key;
	text	   *secret;
	char	   *utf8;
	size_t		len;

	HideStatementBegin(&hidden);
	CheckArguments(fcinfo, derive_key_arguments, NUM_DERIVE_KEY_ARGS);
	RequireArgument(fcinfo, derive_key_arguments, DERIVE_KEY_ARG_SECRET);
	secret = DatumGetTextPP(ArgumentValue(fcinfo, derive_key_arguments,
										  DERIVE_KEY_ARG_SECRET, TEXTOID));
	if (VARSIZE_ANY_EXHDR(secret) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("secret must not be empty")));
	utf8 = SecretToUtf8(VARDATA_ANY(secret), VARSIZE_ANY_EXHDR(secret), &len);
	if (FernetKeyFromSecret(utf8, len, &key) != FERNET_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute a SHA-256 hash")));
	if (utf8 != VARDATA_ANY(secret))
	{
		explicit_bzero(utf8, len);
		pfree(utf8);
	}
	wipe_copy(fcinfo, DERIVE_KEY_ARG_SECRET, secret);
	HideStatementEnd(&hidden);
	PG_RETURN_TEXT_P(key_to_text(&key));
}

/*
 * fernet_timestamp(token text) returns timestamptz
 *		The time at which a token says it was made.
 *
 * Takes no key, so nothing vouches for the answer.
 */
Datum
fernet_timestamp(PG_FUNCTION_ARGS)
{
	ErrorContextCallback hidden;
	FernetToken decoded;
	FernetStatus status;
	text	   *token;
	uint8	   *bytes;
	TimestampTz result;

	HideStatementBegin(&hidden);
	CheckArguments(fcinfo, timestamp_arguments, NUM_TIMESTAMP_ARGS);
	RequireArgument(fcinfo, timestamp_arguments, TIMESTAMP_ARG_TOKEN);
	token = DatumGetTextPP(ArgumentValue(fcinfo, timestamp_arguments,
										 TIMESTAMP_ARG_TOKEN, TEXTOID));
	bytes = palloc(FernetDecodedLen(VARSIZE_ANY_EXHDR(token)));
	status = FernetDecode(VARDATA_ANY(token), VARSIZE_ANY_EXHDR(token), bytes,
						  &decoded);
	if (status != FERNET_OK)
		report_bad_token(status);
	if (!FernetTimestamp(decoded.timestamp, &result))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("timestamp of the token is out of range")));
	HideStatementEnd(&hidden);
	PG_RETURN_TIMESTAMPTZ(result);
}
