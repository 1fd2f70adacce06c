/*-------------------------------------------------------------------------
 *
 * secrets.c
 *	  Where the keys come from: settings and key file.
 *
 * The settings that hold secrets are made so that PostgreSQL never has the
 * secret to show.  The check hook turns the text into keys, puts them, masked,
 * into the setting's "extra" data and leaves the variable itself an empty
 * string.  SHOW, pg_settings, current_setting and the server's message about a
 * setting changed by a reload thus have nothing to print.
 *
 * GUC frees that extra data without telling us, which is why the keys in it
 * are masked: what stays behind in freed memory is no key.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "keylist.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "secrets.h"
#include "storage/fd.h"
#include "utils/guc.h"

#if PG_VERSION_NUM < 160000
/* GUC used malloc itself before PostgreSQL 16 */
#define guc_malloc(elevel, size) malloc(size)
#define guc_strdup(elevel, string) strdup(string)
#define guc_free(pointer) free(pointer)
#endif

#define MASK_LEN 32				/* as long as a key */
#define HIDDEN_TEXT "********"
#define MAX_KEY_FILE_SIZE (1024 * 1024)

/* The extra data of a secret setting. */
typedef struct MaskedKeys
{
	KeyListStatus status;		/* KEYLIST_END, or what is wrong */
	int			ordinal;		/* with which item */
	int			nkeys;
	uint8		keys[FLEXIBLE_ARRAY_MEMBER][FERNET_KEY_LEN];
} MaskedKeys;

/* The settings' variables; those of secrets are always "" (see above). */
static char *encryption_keys_string = NULL;
static char *secret_key_string = NULL;
static char *encryption_keys_file = NULL;

/* The secrets that are in force, as the assign hooks were told. */
static const MaskedKeys *encryption_keys = NULL;
static const MaskedKeys *secret_key = NULL;

/*
 * Is the library being loaded?  GUC would ignore a value from before that is
 * not valid, and another source of keys would be used instead.
 */
static bool loading = false;

/* What masks keys in extra data; drawn once, when the library is loaded. */
static uint8 mask[MASK_LEN];

/* Called when a setting changes. */
static void (*secrets_changed) (void) = NULL;

/* Converts a secret, with an error that does not quote bytes of it. */
static char *
convert_secret(const char *secret, int len)
{
	char	   *volatile utf8 = NULL;

	PG_TRY();
	{
		utf8 = pg_server_to_any(secret, len, PG_UTF8);
	}
	PG_CATCH();
	{
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
				 errmsg("secret cannot be converted to UTF-8")));
	}
	PG_END_TRY();
	return utf8;
}

/*
 * SecretToUtf8
 *		Converts a secret from the database encoding to UTF-8.
 *
 * The result is the argument itself where there is nothing to convert.
 */
char *
SecretToUtf8(const char *secret, size_t len, size_t *utf8_len)
{
	char	   *utf8 = convert_secret(secret, (int) len);

	*utf8_len = utf8 == secret ? len : strlen(utf8);
	return utf8;
}

/* Masks a key, or takes the mask off. */
static void
mask_key(void *dst, const void *src)
{
	for (int i = 0; i < FERNET_KEY_LEN; i++)
		((uint8 *) dst)[i] = ((const uint8 *) src)[i] ^ mask[i];
}

/*
 * Refuses the sources of a secret that end in a catalog; warns, once a process,
 * of a configuration file.
 */
static bool
secret_source_is_safe(GucSource source, const char *name)
{
	static bool warned = false;

	if (source == PGC_S_TEST || source == PGC_S_GLOBAL ||
		source == PGC_S_DATABASE || source == PGC_S_USER ||
		source == PGC_S_DATABASE_USER)
	{
		GUC_check_errcode(ERRCODE_INVALID_PARAMETER_VALUE);
		GUC_check_errmsg("parameter \"%s\" cannot be stored with a role, a database or a function",
						 name);
		GUC_check_errdetail("Every user can read it there.");
		GUC_check_errhint("Use extension_storage.encryption_keys_file, or pass the parameter when the connection is made.");
		return false;
	}
	if (source == PGC_S_FILE && !warned)
	{
		warned = true;
		ereport(WARNING,
				(errmsg("parameter \"%s\" is set in a configuration file",
						name),
				 errdetail("Until the library is loaded, a session shows it to every user."),
				 errhint("Use extension_storage.encryption_keys_file instead.")));
	}
	return true;
}

/* Wipes and replaces the text of a secret setting. */
static bool
hide_secret(char **newval)
{
	char	   *empty = guc_strdup(LOG, "");

	if (empty == NULL)
		return false;			/* the caller sets the message */
	explicit_bzero(*newval, strlen(*newval));
	guc_free(*newval);
	*newval = empty;
	return true;
}

/*
 * Turns the text of a secret setting into masked keys.
 *
 * is_list tells extension_storage.encryption_keys, a list, from
 * extension_storage.secret_key, one secret.  The text is UTF-8 if it comes
 * from a file or with the connection request, and in the database encoding if
 * it comes from SET.
 */
static bool
check_secrets(char **newval, void **extra, GucSource source, bool is_list,
			  const char *name)
{
	KeyListParser parser;
	KeyListStatus status;
	MaskedKeys *masked;
	char	   *secrets;
	size_t		len;
	bool		derived = true;

	if (*newval == NULL || **newval == '\0')
		return true;			/* unset: no extra data */
	if (!secret_source_is_safe(source, name))
		return false;

	secrets = *newval;
	len = strlen(secrets);
	if (source == PGC_S_SESSION)
		secrets = SecretToUtf8(secrets, len, &len);

	/* each secret but the last is followed by a comma */
	masked = guc_malloc(LOG, offsetof(MaskedKeys, keys) +
						(len + 1) / 2 * FERNET_KEY_LEN);
	if (masked == NULL)
	{
		GUC_check_errmsg("invalid value for parameter \"%s\"", name);
		return false;
	}
	masked->nkeys = 0;

	KeyListStart(&parser, secrets, len);
	if (strcmp(*newval, HIDDEN_TEXT) == 0)
	{
		parser.ordinal = 1;
		status = KEYLIST_HIDDEN_TEXT;
	}
	else if (is_list)
		status = KeyListNextItem(&parser);
	else
	{
		parser.secret = secrets;
		parser.len = len;
		status = KEYLIST_SECRET;
	}
	while (status == KEYLIST_SECRET && derived)
	{
		FernetKey	key;

		derived = FernetKeyFromSecret(parser.secret, parser.len, &key) == FERNET_OK;
		mask_key(masked->keys[masked->nkeys++], &key);
		explicit_bzero(&key, sizeof(key));
		status = is_list ? KeyListNextItem(&parser) : KEYLIST_END;
	}
	if (secrets != *newval)
	{
		explicit_bzero(secrets, len);
		pfree(secrets);
	}

	masked->status = status;
	masked->ordinal = parser.ordinal;
	if ((status == KEYLIST_END || loading) && derived && hide_secret(newval))
	{
		if (masked->nkeys > 0 || status != KEYLIST_END)
			*extra = masked;
		else
			guc_free(masked);
		return true;
	}
	guc_free(masked);

	/* GUC's own message would quote the value */
	GUC_check_errmsg("invalid value for parameter \"%s\"", name);
	if (status != KEYLIST_END)
		GUC_check_errdetail("Item %d of the list cannot be used: %s.",
							parser.ordinal, KeyListStatusText(status));
	else
		GUC_check_errdetail("Out of memory, or the cryptographic library failed.");
	return false;
}

static bool
check_encryption_keys(char **newval, void **extra, GucSource source)
{
	return check_secrets(newval, extra, source, true,
						 "extension_storage.encryption_keys");
}

static bool
check_secret_key(char **newval, void **extra, GucSource source)
{
	return check_secrets(newval, extra, source, false,
						 "extension_storage.secret_key");
}

static void
assign_encryption_keys(const char *newval pg_attribute_unused(), void *extra)
{
	encryption_keys = extra;
	secrets_changed();
}

static void
assign_secret_key(const char *newval pg_attribute_unused(), void *extra)
{
	secret_key = extra;
	secrets_changed();
}

static const char *
show_encryption_keys(void)
{
	return encryption_keys != NULL ? HIDDEN_TEXT : "";
}

static const char *
show_secret_key(void)
{
	return secret_key != NULL ? HIDDEN_TEXT : "";
}

static void
assign_encryption_keys_file(const char *newval pg_attribute_unused(),
							void *extra pg_attribute_unused())
{
	secrets_changed();
}

/*
 * SecretsInit
 *		Defines the settings of this module.
 *
 * changed is called whenever one of them is assigned.
 */
void
SecretsInit(void (*changed) (void))
{
	secrets_changed = changed;

	if (!pg_strong_random(mask, sizeof(mask)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random bytes")));

	loading = true;
	DefineCustomStringVariable("extension_storage.encryption_keys",
							   "Secrets that encrypt and decrypt stored values, separated by commas.",
							   "The first one encrypts, all decrypt. Used instead of the key file where it is set.",
							   &encryption_keys_string,
							   "",
							   PGC_USERSET,
							   GUC_SUPERUSER_ONLY | GUC_NO_SHOW_ALL |
							   GUC_NOT_IN_SAMPLE,
							   check_encryption_keys,
							   assign_encryption_keys,
							   show_encryption_keys);
	DefineCustomStringVariable("extension_storage.secret_key",
							   "Superset's SECRET_KEY.",
							   "Encrypts where no other key is configured, and is the last one to decrypt with where one is.",
							   &secret_key_string,
							   "",
							   PGC_USERSET,
							   GUC_SUPERUSER_ONLY | GUC_NO_SHOW_ALL |
							   GUC_NOT_IN_SAMPLE,
							   check_secret_key,
							   assign_secret_key,
							   show_secret_key);
	DefineCustomStringVariable("extension_storage.encryption_keys_file",
							   "Absolute path of the file that holds the secrets, one a line.",
							   "The first one encrypts, all decrypt.",
							   &encryption_keys_file,
							   "",
							   PGC_SIGHUP,
							   GUC_SUPERUSER_ONLY,
							   NULL,
							   assign_encryption_keys_file,
							   NULL);
	loading = false;
}

/* Keys that are being collected. */
typedef struct KeyArray
{
	int			nkeys;
	FernetKey  *keys;
} KeyArray;

/* Appends a key to an array that has room for it, unless it is there. */
static void
add_key(KeyArray *array, const FernetKey *key)
{
	for (int i = 0; i < array->nkeys; i++)
		if (memcmp(&array->keys[i], key, sizeof(FernetKey)) == 0)
			return;
	array->keys[array->nkeys++] = *key;
}

static void
add_masked_keys(KeyArray *array, const MaskedKeys *masked)
{
	for (int i = 0; i < masked->nkeys; i++)
	{
		FernetKey	key;

		mask_key(&key, masked->keys[i]);
		add_key(array, &key);
		explicit_bzero(&key, sizeof(key));
	}
}

/*
 * Reads the key file into palloc'd memory.
 *
 * The file is refused unless it is a plain file that belongs to the server's
 * user, who alone may access it, or to root, who may let the server's group
 * read it.  Source: check_ssl_key_file_permissions() in
 * src/backend/libpq/be-secure-common.c.
 */
static char *
read_key_file(size_t *len)
{
	struct stat st;
	char	   *contents;
	ssize_t		nread = 0;
	int			fd;

	if (!is_absolute_path(encryption_keys_file))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("path of encryption key file \"%s\" is not absolute",
						encryption_keys_file),
				 errhint("Correct extension_storage.encryption_keys_file, then reload the configuration.")));
	fd = OpenTransientFile(encryption_keys_file,
						   O_RDONLY | O_NONBLOCK | PG_BINARY);
	if (fd < 0 || fstat(fd, &st) < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open encryption key file \"%s\": %m",
						encryption_keys_file),
				 errhint("Correct extension_storage.encryption_keys_file or the file, then reload the configuration.")));
	if (!S_ISREG(st.st_mode))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("encryption key file \"%s\" is not a regular file",
						encryption_keys_file)));
	if (st.st_uid != geteuid() && st.st_uid != 0)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("encryption key file \"%s\" must be owned by the database user or root",
						encryption_keys_file),
				 errhint("Correct it with chown, then reload the configuration.")));
	if ((st.st_uid == geteuid() && (st.st_mode & (S_IRWXG | S_IRWXO)) != 0) ||
		(st.st_uid == 0 && (st.st_mode & (S_IWGRP | S_IXGRP | S_IRWXO)) != 0))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("encryption key file \"%s\" has group or world access",
						encryption_keys_file),
				 errdetail("File must have permissions u=rw (0600) or less if owned by the database user, or permissions u=rw,g=r (0640) or less if owned by root."),
				 errhint("Correct them with chmod, then reload the configuration.")));
	if (st.st_size > MAX_KEY_FILE_SIZE)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("encryption key file \"%s\" is larger than %d bytes",
						encryption_keys_file, MAX_KEY_FILE_SIZE)));

	contents = palloc(st.st_size + 1);
	while (nread < st.st_size)
	{
		ssize_t		n = read(fd, contents + nread, st.st_size - nread);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
		{
			explicit_bzero(contents, nread);
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not read encryption key file \"%s\": %m",
							encryption_keys_file)));
		}
		if (n == 0)
			break;
		nread += n;
	}
	CloseTransientFile(fd);
	*len = nread;
	return contents;
}

/* Reads the key file into an array with room for one key more. */
static void
load_key_file(KeyArray *array)
{
	KeyListParser parser;
	KeyListStatus status;
	char	   *contents;
	size_t		len;
	int			nlines = 1;

	contents = read_key_file(&len);
	for (size_t i = 0; i < len; i++)
		if (contents[i] == '\n')
			nlines++;
	array->keys = palloc((nlines + 1) * sizeof(FernetKey));

	KeyListStart(&parser, contents, len);
	while ((status = KeyListNextLine(&parser)) == KEYLIST_SECRET)
	{
		FernetKey	key;

		if (FernetKeyFromSecret(parser.secret, parser.len, &key) != FERNET_OK)
			break;
		add_key(array, &key);
		explicit_bzero(&key, sizeof(key));
	}
	explicit_bzero(contents, len);
	pfree(contents);
	if (status == KEYLIST_END && array->nkeys > 0)
		return;

	explicit_bzero(array->keys, array->nkeys * sizeof(FernetKey));
	pfree(array->keys);
	if (status == KEYLIST_END)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("encryption key file \"%s\" contains no key",
						encryption_keys_file),
				 errhint("Write one secret a line into it, then reload the configuration.")));
	if (status == KEYLIST_SECRET)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not derive a key from encryption key file \"%s\"",
						encryption_keys_file)));
	ereport(ERROR,
			(errcode(ERRCODE_CONFIG_FILE_ERROR),
			 errmsg("line %d of encryption key file \"%s\" cannot be used",
					parser.ordinal, encryption_keys_file),
			 errdetail("The line is no secret: %s.", KeyListStatusText(status)),
			 errhint("Correct the file, then reload the configuration.")));
}

/* Raises an error if a setting came with the library, and is not valid. */
static void
require_valid(const MaskedKeys *masked, const char *name)
{
	if (masked != NULL && masked->status != KEYLIST_END)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for parameter \"%s\"", name),
				 errdetail("Item %d of the list cannot be used: %s.",
						   masked->ordinal,
						   KeyListStatusText(masked->status))));
}

/*
 * SecretsLoad
 *		Returns the keys that are in force, in palloc'd memory that the caller
 *		wipes, and how many they are.
 *
 * Raises an error if the source that is to be used is broken: there is no
 * falling back to another one.
 */
FernetKey *
SecretsLoad(int *nkeys)
{
	KeyArray	array = {0};

	require_valid(encryption_keys, "extension_storage.encryption_keys");
	require_valid(secret_key, "extension_storage.secret_key");
	if (encryption_keys != NULL)
	{
		array.keys = palloc((encryption_keys->nkeys + 1) * sizeof(FernetKey));
		add_masked_keys(&array, encryption_keys);
	}
	else if (encryption_keys_file[0] != '\0')
		load_key_file(&array);
	else
		array.keys = palloc(sizeof(FernetKey));
	if (secret_key != NULL)
		add_masked_keys(&array, secret_key);
	*nkeys = array.nkeys;
	return array.keys;
}
