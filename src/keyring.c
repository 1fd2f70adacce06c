/*-------------------------------------------------------------------------
 *
 * keyring.c
 *	  The keys in force, and what they seal and open.
 *
 * The keys exist in the keyring alone, in ciphers.  It is wiped as soon as a
 * setting changes or the configuration is reloaded, and rebuilt on the next
 * use.  So each function here asks for it once it has its arguments at hand,
 * and runs no SQL until it has returned.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "cipher.h"
#include "keyring.h"
#include "miscadmin.h"
#include "secrets.h"
#include "token.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

typedef struct KeyringKey
{
	const FernetCipher *cipher;
	char		fingerprint[KEYRING_FINGERPRINT_LEN];
	SecretOrigin origin;
} KeyringKey;

typedef struct Keyring
{
	MemoryContext context;		/* of the ciphers, and of itself */
	int			nkeys;
	bool		encrypts;		/* does the first key? */
	KeyringKey	keys[FLEXIBLE_ARRAY_MEMBER];
} Keyring;

/* The keyring, NULL if it must be made (anew). */
static const Keyring *keyring = NULL;
static TimestampTz keyring_loaded_at;
static uint64 keyring_generation = 0;

/* Wipes the keyring; the next use makes a new one. */
static void
forget_keyring(void)
{
	const Keyring *ring = keyring;

	keyring = NULL;
	if (ring != NULL)
		MemoryContextDelete(ring->context);
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

/*
 * Writes the 8 hex digits that a key is known by: the start of an HMAC under
 * the key, which reveals nothing of it.
 */
static void
make_fingerprint(const FernetKey *key, char *fingerprint)
{
	static const char label[] = "extension_storage key fingerprint";
	uint8		mac[FERNET_MAC_LEN];

	CipherHmac(key, sizeof(*key), label, sizeof(label) - 1, mac);
	hex_encode((const char *) mac, KEYRING_FINGERPRINT_LEN / 2, fingerprint);
}

/* Makes a keyring of keys. */
static Keyring *
make_keyring(const SecretKey *keys, int nkeys, bool encrypts)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "extension_storage keyring",
												  ALLOCSET_SMALL_SIZES);
	Keyring    *ring = NULL;

	PG_TRY();
	{
		ring = MemoryContextAlloc(context, offsetof(Keyring, keys) +
								  nkeys * sizeof(KeyringKey));
		ring->context = context;
		ring->nkeys = nkeys;
		ring->encrypts = encrypts;
		for (int i = 0; i < nkeys; i++)
		{
			ring->keys[i].cipher = CipherCreate(context, &keys[i].key);
			make_fingerprint(&keys[i].key, ring->keys[i].fingerprint);
			ring->keys[i].origin = keys[i].origin;
		}
	}
	PG_CATCH();
	{
		MemoryContextDelete(context);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return ring;
}

/*
 * Returns the keys that are in force, none if none is configured.
 *
 * Raises an error if the source that is to be used is broken: there is no
 * falling back to another one.
 */
static const Keyring *
get_keyring(void)
{
	SecretKey  *keys;
	int			nkeys;
	bool		encrypts;

	if (keyring != NULL && keyring_loaded_at == PgReloadTime)
		return keyring;
	forget_keyring();

	keys = SecretsLoad(&nkeys, &encrypts);
	PG_TRY();
	{
		keyring = make_keyring(keys, nkeys, encrypts);
	}
	PG_FINALLY();
	{
		CipherWipe(keys, nkeys * sizeof(SecretKey));
	}
	PG_END_TRY();
	pfree(keys);
	keyring_loaded_at = PgReloadTime;
	keyring_generation++;
	return keyring;
}

/*
 * KeyringCount
 *		Returns how many keys are configured, which may be none.
 */
int
KeyringCount(void)
{
	return get_keyring()->nkeys;
}

/*
 * KeyringEncrypts
 *		Is there a key that encrypts?
 */
bool
KeyringEncrypts(void)
{
	return get_keyring()->encrypts;
}

/*
 * KeyringGeneration
 *		Returns a number that changes whenever the keys may have changed.
 */
uint64
KeyringGeneration(void)
{
	(void) get_keyring();
	return keyring_generation;
}

/* Returns the cipher of the key that encrypts. */
static const FernetCipher *
first_cipher(const Keyring *ring)
{
	if (!ring->encrypts)
		elog(ERROR, "no encryption key is configured");
	return ring->keys[0].cipher;
}

/*
 * KeyringSeal
 *		Encrypts a message with the first key.
 *
 * The caller makes sure that there is one.  timestamp is in seconds since
 * 1970.
 */
bytea *
KeyringSeal(const char *message, size_t len, uint64 timestamp)
{
	const FernetCipher *cipher = first_cipher(get_keyring());
	uint8		iv[FERNET_IV_LEN];
	bytea	   *token = FernetNewToken(len, iv);

	if (FernetSeal(cipher, timestamp, iv, (const uint8 *) message, len,
				   VARDATA(token)) != FERNET_OK)
		CipherFail();
	return token;
}

/*
 * Finds the key that signed a token, trying the one at first before the
 * others.  All keys differ, so at most one fits.
 */
static FernetStatus
find_key(const Keyring *ring, const FernetToken *token, int first, int *ordinal)
{
	FernetStatus status = FERNET_BAD_MAC;

	for (int i = 0; i < ring->nkeys && status == FERNET_BAD_MAC; i++)
	{
		*ordinal = (first + i) % ring->nkeys;
		status = FernetCheckMac(token, ring->keys[*ordinal].cipher);
	}
	return status;
}

/* Logs why a token cannot be read. */
static void
log_unreadable(FernetStatus status)
{
	elog(DEBUG1, "stored token cannot be read: %s", FernetStatusText(status));
}

/*
 * Decodes the token of an item into bytes, where there is room for its
 * FernetDecodedLen(), and finds its key, trying the one at first before the
 * others.
 */
static FernetStatus
find_item(const Keyring *ring, KeyringItem *item, int first, uint8 *bytes,
		  FernetToken *decoded)
{
	FernetStatus status = FernetDecode(VARDATA_ANY(item->token),
									   VARSIZE_ANY_EXHDR(item->token), bytes,
									   decoded);

	item->ordinal = KEYRING_NO_TOKEN;
	if (status == FERNET_OK)
	{
		item->timestamp = decoded->timestamp;
		status = find_key(ring, decoded, first, &item->ordinal);
		if (status != FERNET_OK)
			item->ordinal = KEYRING_UNKNOWN_KEY;
	}
	decoded->status = status;
	return status;
}

/*
 * Decrypts what has been found, key by key.  A token that has the right
 * signature, but no valid message, is read by no key.
 */
static FernetStatus
decrypt_found(const Keyring *ring, KeyringItem *items, FernetToken *decoded,
			  FernetToken **same_key, int nitems)
{
	FernetStatus status = FERNET_OK;
	int			nleft = 0;

	for (int i = 0; i < nitems; i++)
		nleft += items[i].ordinal >= 0;
	for (int key = 0; nleft > 0 && status == FERNET_OK; key++)
	{
		int			nsame = 0;

		for (int i = 0; i < nitems; i++)
			if (items[i].ordinal == key)
				same_key[nsame++] = &decoded[i];
		status = FernetDecryptMany(same_key, nsame, ring->keys[key].cipher);
		nleft -= nsame;
	}
	for (int i = 0; i < nitems; i++)
		if (items[i].ordinal >= 0 && decoded[i].status != FERNET_OK)
			items[i].ordinal = KEYRING_UNKNOWN_KEY;
	return status;
}

/* Checks the paddings of what has been found, key by key. */
static FernetStatus
check_found(const Keyring *ring, const int *ordinals, FernetTail *tails,
			FernetTail **same_key, int ntokens)
{
	FernetStatus status = FERNET_OK;
	int			nleft = 0;

	for (int i = 0; i < ntokens; i++)
		nleft += ordinals[i] >= 0;
	for (int key = 0; nleft > 0 && status == FERNET_OK; key++)
	{
		int			nsame = 0;

		for (int i = 0; i < ntokens; i++)
			if (ordinals[i] == key)
				same_key[nsame++] = &tails[i];
		status = FernetCheckPadding(same_key, nsame, ring->keys[key].cipher);
		nleft -= nsame;
	}
	return status;
}

/*
 * KeyringFindMany
 *		Finds out which keys made tokens, which may be toasted.
 *
 * Sets for each token the ordinal of its key, or KEYRING_UNKNOWN_KEY, or
 * KEYRING_NO_TOKEN where it does not even have the form of one; and the time
 * that a well-formed token carries, whoever made it.  The check is the one that
 * decryption makes.
 */
void
KeyringFindMany(const Datum *tokens, int ntokens, int *ordinals,
				uint64 *timestamps)
{
	FernetTail *tails = palloc(ntokens * sizeof(FernetTail));
	FernetTail **same_key = palloc(ntokens * sizeof(FernetTail *));
	uint64		generation = KeyringGeneration();
	int			first = 0;

	for (int i = 0; i < ntokens; i++)
	{
		KeyringItem item = {.token = StoredToken(tokens[i])};
		uint8	   *bytes = palloc(FernetDecodedLen(VARSIZE_ANY_EXHDR(item.token)));
		FernetToken decoded;

		CHECK_FOR_INTERRUPTS();
		tails[i].status = find_item(get_keyring(), &item, first, bytes,
									&decoded);
		if (tails[i].status == FERNET_OK)
			FernetGetTail(&decoded, &tails[i]);
		ordinals[i] = item.ordinal;
		timestamps[i] = item.timestamp;
		first = Max(item.ordinal, 0);
		pfree(bytes);
		if ((Pointer) item.token != DatumGetPointer(tokens[i]))
			pfree(item.token);
		if (tails[i].status == FERNET_CIPHER_FAILED)
			CipherFail();
	}
	if (KeyringGeneration() != generation)
		elog(ERROR, "keys have changed while stored values were read");
	if (check_found(get_keyring(), ordinals, tails, same_key,
					ntokens) != FERNET_OK)
		CipherFail();

	for (int i = 0; i < ntokens; i++)
		if (tails[i].status != FERNET_OK)
		{
			ordinals[i] = Min(ordinals[i], KEYRING_UNKNOWN_KEY);
			log_unreadable(tails[i].status);
		}
	pfree(tails);
	pfree(same_key);
}

/*
 * KeyringFind
 *		Finds out which key made one token, as KeyringFindMany does.
 */
int
KeyringFind(Datum token, uint64 *timestamp)
{
	int			ordinal;

	KeyringFindMany(&token, 1, &ordinal, timestamp);
	return ordinal;
}

/*
 * KeyringOpenMany
 *		Decrypts tokens, each with whichever key made it.
 *
 * Each token is the caller's own memory, with a header of four bytes, and its
 * result, the message, replaces it; NULL if no key reads it.
 */
void
KeyringOpenMany(KeyringItem *items, int nitems)
{
	FernetToken one_decoded;
	FernetToken *one_same_key;
	FernetToken *decoded = &one_decoded;
	FernetToken **same_key = &one_same_key;
	const Keyring *ring;
	FernetStatus status = FERNET_OK;
	int			first = 0;

	if (nitems > 1)
	{
		decoded = palloc(nitems * sizeof(FernetToken));
		same_key = palloc(nitems * sizeof(FernetToken *));
	}
	ring = get_keyring();
	for (int i = 0; i < nitems && status != FERNET_CIPHER_FAILED; i++)
	{
		status = find_item(ring, &items[i], first,
						   (uint8 *) VARDATA(items[i].token), &decoded[i]);
		first = Max(items[i].ordinal, 0);
	}
	if (status != FERNET_CIPHER_FAILED)
		status = decrypt_found(ring, items, decoded, same_key, nitems);
	if (status == FERNET_CIPHER_FAILED)
	{
		/* tokens of another key may have been decrypted by then */
		for (int i = 0; i < nitems; i++)
			explicit_bzero(VARDATA(items[i].token),
						   VARSIZE(items[i].token) - VARHDRSZ);
		CipherFail();
	}

	for (int i = 0; i < nitems; i++)
	{
		items[i].result = items[i].ordinal >= 0 ? items[i].token : NULL;
		if (items[i].result != NULL)
			SET_VARSIZE(items[i].result, VARHDRSZ + decoded[i].message_len);
		else
			log_unreadable(decoded[i].status);
	}
	if (nitems > 1)
	{
		pfree(decoded);
		pfree(same_key);
	}
}

/*
 * KeyringOpen
 *		Decrypts one token, as KeyringOpenMany does.
 */
bytea *
KeyringOpen(bytea *token)
{
	KeyringItem item = {.token = token};

	KeyringOpenMany(&item, 1);
	return item.result;
}

/*
 * Opens new tokens into bytes, with only the key that made them.  Returns
 * FERNET_CIPHER_FAILED or FERNET_OK; the outcome for each token is in its
 * copy.
 */
static FernetStatus
open_new_tokens(const FernetCipher *cipher, const FernetMessage *messages,
				FernetToken *copies, FernetToken **good, int ntokens,
				uint8 *bytes)
{
	int			ngood = 0;

	for (int i = 0; i < ntokens; i++)
	{
		size_t		len = FernetTokenLen(messages[i].len);

		copies[i].status = FernetDecode(messages[i].token, len, bytes,
										&copies[i]);
		bytes += FernetDecodedLen(len);
		if (copies[i].status == FERNET_OK)
			copies[i].status = FernetCheckMac(&copies[i], cipher);
		if (copies[i].status == FERNET_CIPHER_FAILED)
			return FERNET_CIPHER_FAILED;
		if (copies[i].status == FERNET_OK)
			good[ngood++] = &copies[i];
	}
	return FernetDecryptMany(good, ngood, cipher);
}

/* Is a copy, encrypted and decrypted again, the same as the message? */
static bool
is_same_message(const FernetToken *copy, const FernetMessage *message)
{
	return copy->status == FERNET_OK &&
		copy->timestamp == message->timestamp &&
		copy->message_len == message->len &&
		memcmp(copy->bytes, message->bytes, message->len) == 0;
}

/* What KeyringReseal works with. */
typedef struct Resealing
{
	KeyringItem *items;
	int			nitems;
	FernetToken *decoded;		/* the old tokens, which become messages */
	FernetToken *copies;		/* the new tokens, opened again */
	FernetToken **same_key;
	FernetMessage *messages;	/* what gets a new token */
	KeyringItem **sealed;		/* and the items that they are of */
	int			nsealed;
	Size		bytes_len;		/* of each of these: */
	uint8	   *bytes;			/* for decoded */
	uint8	   *copied;			/* for copies */
} Resealing;

/* Allocates what is needed to reseal items. */
static Resealing *
start_resealing(KeyringItem *items, int nitems)
{
	Resealing  *work = palloc0(sizeof(Resealing));

	work->items = items;
	work->nitems = nitems;
	work->decoded = palloc(nitems * sizeof(FernetToken));
	work->copies = palloc(nitems * sizeof(FernetToken));
	work->same_key = palloc(nitems * sizeof(FernetToken *));
	work->messages = palloc(nitems * sizeof(FernetMessage));
	work->sealed = palloc(nitems * sizeof(KeyringItem *));
	for (int i = 0; i < nitems; i++)
		work->bytes_len += FernetDecodedLen(VARSIZE_ANY_EXHDR(items[i].token));
	work->bytes = palloc(Max(work->bytes_len, 1));
	work->copied = palloc(Max(work->bytes_len, 1));
	return work;
}

/*
 * Finds the keys of the old tokens.  What another key than the first has made
 * gets room for a new token, and its random seed.
 */
static void
find_old_tokens(Resealing *work, const Keyring *ring)
{
	Size		used = 0;
	int			first = 0;

	for (int i = 0; i < work->nitems; i++)
	{
		KeyringItem *item = &work->items[i];

		if (find_item(ring, item, first, work->bytes + used,
					  &work->decoded[i]) == FERNET_CIPHER_FAILED)
			CipherFail();
		used += FernetDecodedLen(VARSIZE_ANY_EXHDR(item->token));
		first = Max(item->ordinal, 0);
		item->result = item->ordinal <= 0 ? NULL :
			FernetNewToken(FernetMaxMessageLen(&work->decoded[i]),
						   work->messages[i].seed);
	}
}

/* Collects the messages that are to be sealed, now that they are decrypted. */
static void
collect_messages(Resealing *work)
{
	for (int i = 0; i < work->nitems; i++)
	{
		KeyringItem *item = &work->items[i];
		FernetMessage *message = &work->messages[work->nsealed];

		if (item->result == NULL)
			continue;
		if (item->ordinal < 0)
		{
			pfree(item->result);
			item->result = NULL;
			continue;
		}
		memmove(message->seed, work->messages[i].seed, FERNET_IV_LEN);
		message->bytes = work->decoded[i].bytes;
		message->len = work->decoded[i].message_len;
		message->timestamp = item->timestamp;
		message->token = VARDATA(item->result);
		work->sealed[work->nsealed++] = item;
	}
}

/* Decrypts, encrypts, and compares; raises no error, as there is plaintext. */
static FernetStatus
reseal(Resealing *work, const Keyring *ring)
{
	const FernetCipher *cipher = first_cipher(ring);
	FernetStatus status = decrypt_found(ring, work->items, work->decoded,
										work->same_key, work->nitems);

	collect_messages(work);
	if (status == FERNET_OK)
		status = FernetSealMany(cipher, work->messages, work->nsealed);
	if (status == FERNET_OK)
		status = open_new_tokens(cipher, work->messages, work->copies,
								 work->same_key, work->nsealed, work->copied);
	for (int i = 0; i < work->nsealed && status == FERNET_OK; i++)
		if (!is_same_message(&work->copies[i], &work->messages[i]))
			work->sealed[i]->result = NULL;
	return status;
}

/*
 * KeyringReseal
 *		Encrypts with the first key what another one has encrypted.
 *
 * The result of an item is its new token, which keeps the time of the old one,
 * or NULL if it needs none: ordinal says whether the first key reads it
 * already, or no key does.  The new token is not taken on trust: the first key
 * alone must give the same message and time.  If it does not, the result is
 * NULL and the ordinal that of another key, which is for the caller to report.
 */
void
KeyringReseal(KeyringItem *items, int nitems)
{
	Resealing  *work = start_resealing(items, nitems);
	const Keyring *ring = get_keyring();
	FernetStatus status;

	find_old_tokens(work, ring);
	status = reseal(work, ring);
	explicit_bzero(work->bytes, work->bytes_len);
	explicit_bzero(work->copied, work->bytes_len);
	if (status != FERNET_OK)
		CipherFail();

	for (int i = 0; i < nitems; i++)
		if (items[i].ordinal < 0)
			log_unreadable(work->decoded[i].status);
	pfree(work->decoded);
	pfree(work->copies);
	pfree(work->same_key);
	pfree(work->messages);
	pfree(work->sealed);
	pfree(work->bytes);
	pfree(work->copied);
	pfree(work);
}

/*
 * KeyringFingerprint
 *		Writes the KEYRING_FINGERPRINT_LEN hex digits, without terminator, that
 *		a key is known by.
 */
void
KeyringFingerprint(int ordinal, char *fingerprint)
{
	const Keyring *ring = get_keyring();

	if (ordinal < 0 || ordinal >= ring->nkeys)
		elog(ERROR, "there is no key %d", ordinal);
	memcpy(fingerprint, ring->keys[ordinal].fingerprint,
		   KEYRING_FINGERPRINT_LEN);
}

/*
 * KeyringSource
 *		Returns, in palloc'd memory, where a key comes from, in words for
 *		users.
 */
char *
KeyringSource(int ordinal)
{
	const Keyring *ring = get_keyring();

	if (ordinal < 0 || ordinal >= ring->nkeys)
		elog(ERROR, "there is no key %d", ordinal);
	return SecretOriginText(&ring->keys[ordinal].origin);
}

/*
 * KeyringProblem
 *		Returns, in words for users, why a token has no key; ordinal is what
 *		was found instead of one.
 */
const char *
KeyringProblem(int ordinal)
{
	return ordinal == KEYRING_NO_TOKEN ? "not a Fernet token" :
		"damaged, or its key is not configured";
}
