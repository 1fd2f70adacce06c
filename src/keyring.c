/*-------------------------------------------------------------------------
 *
 * keyring.c
 *	  The keys in force, and what they seal and open.
 *
 * The keys exist in the keyring alone, as bytes and in OpenSSL's contexts.  It
 * is wiped as soon as a setting changes or the configuration is reloaded, and
 * made anew on the next use.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "keyring.h"
#include "token.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* The keyring, NULL if it must be made (anew). */
static Keyring *keyring = NULL;
static TimestampTz keyring_loaded_at;

/* Wipes and frees a keyring. */
static void
free_keyring(Keyring *ring)
{
	for (int i = 0; i < ring->nkeys; i++)
		FernetRelease(&ring->keys[i].context);
	explicit_bzero(ring->keys, ring->nkeys * sizeof(KeyringKey));
	pfree(ring);
}

/* Wipes the keyring; the next use makes a new one. */
static void
forget_keyring(void)
{
	if (keyring == NULL)
		return;
	free_keyring(keyring);
	keyring = NULL;
}

/*
 * KeyringInit
 *		Defines the settings that name keys.
 */
void
KeyringInit(void)
{
	SecretsInit(forget_keyring);
}

/* Makes a keyring of keys, which are wiped. */
static Keyring *
make_keyring(SecretKey *keys, int nkeys, bool encrypts)
{
	Keyring    *ring = MemoryContextAllocZero(TopMemoryContext,
											  offsetof(Keyring, keys) +
											  nkeys * sizeof(KeyringKey));

	ring->nkeys = nkeys;
	ring->encrypts = encrypts;
	for (int i = 0; i < nkeys; i++)
	{
		ring->keys[i].key = keys[i].key;
		ring->keys[i].origin = keys[i].origin;
	}
	explicit_bzero(keys, nkeys * sizeof(SecretKey));
	pfree(keys);
	return ring;
}

/*
 * KeyringGet
 *		Returns the keys that are in force, none if none is configured.
 *
 * Raises an error if the source that is to be used is broken: there is no
 * falling back to another one.  The result is good until the settings change.
 */
const Keyring *
KeyringGet(void)
{
	Keyring    *ring;
	SecretKey  *keys;
	int			nkeys;
	bool		encrypts;

	if (keyring != NULL && keyring_loaded_at == PgReloadTime)
		return keyring;
	forget_keyring();

	keys = SecretsLoad(&nkeys, &encrypts);
	ring = make_keyring(keys, nkeys, encrypts);
	for (int i = 0; i < ring->nkeys; i++)
	{
		if (FernetPrepare(&ring->keys[i].context, &ring->keys[i].key) !=
			FERNET_OK)
		{
			free_keyring(ring);
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not prepare an encryption key: OpenSSL failed")));
		}
	}

	keyring = ring;
	keyring_loaded_at = PgReloadTime;
	return keyring;
}

/*
 * KeyringSeal
 *		Encrypts a message with the first key.
 *
 * The caller makes sure that there is one.  timestamp is in seconds since
 * 1970.
 */
bytea *
KeyringSeal(const Keyring *ring, const char *message, size_t len,
			uint64 timestamp)
{
	uint8		iv[FERNET_IV_LEN];
	bytea	   *token = FernetNewToken(len, iv);

	Assert(ring->encrypts);
	if (FernetSeal(&ring->keys[0].context, timestamp, iv,
				   (const uint8 *) message, len, VARDATA(token)) != FERNET_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not encrypt: OpenSSL failed")));
	return token;
}

/*
 * Decodes a token into bytes and finds the key that made it.  Returns the key's
 * index, or what KeyringFind returns instead.  The message, if message_len is
 * not NULL, is decrypted to the start of bytes, as FernetOpen does.
 *
 * All keys differ, so at most one fits, and any order will do: first is the
 * one to begin with.
 */
static int
find_key(const Keyring *ring, const bytea *token, int first, uint8 *bytes,
		 size_t *message_len, uint64 *timestamp)
{
	FernetToken decoded;
	size_t		len;
	FernetStatus status = FernetDecode(VARDATA_ANY(token),
									   VARSIZE_ANY_EXHDR(token), bytes,
									   &decoded);
	int			result = KEYRING_NO_TOKEN;

	if (status == FERNET_OK)
	{
		*timestamp = decoded.timestamp;
		status = FERNET_BAD_MAC;
		for (int i = 0; i < ring->nkeys && status == FERNET_BAD_MAC; i++)
		{
			int			at = (first + i) % ring->nkeys;
			const FernetContext *context = &ring->keys[at].context;

			status = message_len != NULL ?
				FernetOpen(&decoded, context, bytes, message_len) :
				FernetVerify(&decoded, context, &len);
			if (status == FERNET_OK)
				return at;
		}
		if (status == FERNET_LIBRARY_FAILED)
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not decrypt: OpenSSL failed")));
		result = KEYRING_UNKNOWN_KEY;
	}
	elog(DEBUG1, "stored token cannot be read: %s", FernetStatusText(status));
	return result;
}

/*
 * KeyringFind
 *		Returns the index of the key that a token was made with, else
 *		KEYRING_UNKNOWN_KEY, or KEYRING_NO_TOKEN where it does not even have
 *		the form of one.
 *
 * The check is the one that decryption makes.  timestamp is set to the time
 * that a well-formed token carries, whoever made it.
 */
int
KeyringFind(const Keyring *ring, Datum token, uint64 *timestamp)
{
	bytea	   *text = DatumGetByteaPP(token);
	uint8	   *bytes = palloc(FernetDecodedLen(VARSIZE_ANY_EXHDR(text)));
	int			found = find_key(ring, text, 0, bytes, NULL, timestamp);

	pfree(bytes);
	if ((Pointer) text != DatumGetPointer(token))
		pfree(text);
	return found;
}

/*
 * KeyringOpen
 *		Decrypts a token with whichever key made it.
 *
 * Returns the message, or NULL if no key reads the token.  It is in new memory
 * or, if in_place, in that of the token, which then is the caller's, and has a
 * header of four bytes.  ordinal is the index of the key to try first, and then
 * of the one that fitted.  ordinal and timestamp may be NULL.
 */
bytea *
KeyringOpen(const Keyring *ring, bytea *token, bool in_place, int *ordinal,
			uint64 *timestamp)
{
	bytea	   *message = in_place ? token :
	palloc(VARHDRSZ + FernetDecodedLen(VARSIZE_ANY_EXHDR(token)));
	uint64		token_timestamp;
	size_t		message_len;
	int			found = find_key(ring, token, ordinal != NULL ? *ordinal : 0,
								 (uint8 *) VARDATA(message), &message_len,
								 &token_timestamp);

	if (found < 0)
		return NULL;
	if (ordinal != NULL)
		*ordinal = found;
	if (timestamp != NULL)
		*timestamp = token_timestamp;
	SET_VARSIZE(message, VARHDRSZ + message_len);
	return message;
}

/*
 * KeyringFingerprint
 *		Writes the 8 hex digits, without terminator, that a key is known by.
 *
 * They are the start of an HMAC under the key, which tells nothing of it.
 */
void
KeyringFingerprint(const FernetKey *key, char *fingerprint)
{
	static const char label[] = "extension_storage key fingerprint";
	uint8		mac[EVP_MAX_MD_SIZE];

	if (HMAC(EVP_sha256(), key, sizeof(*key), (const uint8 *) label,
			 sizeof(label) - 1, mac, NULL) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute a key fingerprint: OpenSSL failed")));
	hex_encode((const char *) mac, KEYRING_FINGERPRINT_LEN / 2, fingerprint);
}
