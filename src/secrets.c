/*-------------------------------------------------------------------------
 *
 * secrets.c
 *	  Where the keys come from: settings and key file.
 *
 * The settings that hold secrets are made so that PostgreSQL never has the
 * secret to show.  The check hook turns the text into keys, puts them, masked,
 * into the setting's "extra" data, and leaves the variable itself a text that
 * hides them.  SHOW, pg_settings, current_setting, what set_config returns,
 * and the settings that a parallel worker is sent thus reveal nothing.
 *
 * The text is empty where the secret comes from a configuration file: on a
 * reload, the server logs the file's value of a setting whose variable changes.
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

#include "access/parallel.h"
#include "encoding.h"
#include "errors.h"
#include "keylist.h"
#include "miscadmin.h"
#include "secrets.h"
#include "storage/fd.h"
#include "tcop/pquery.h"
#include "utils/guc.h"

#if PG_VERSION_NUM < 160000
/* GUC used malloc itself before PostgreSQL 16 */
#define guc_malloc(elevel, size) malloc(size)
#define guc_strdup(elevel, string) strdup(string)
#define guc_free(pointer) free(pointer)
#endif

#define MASK_LEN 32				/* as long as a key */
#define HIDDEN_TEXT "********"

/* What is wrong with a value, beside what a parser finds. */
#define PROBLEM_TOO_LONG \
	"it is longer than " CppAsString2(KEYLIST_MAX_BYTES) " bytes"
#define PROBLEM_HIDDEN_TEXT "it is the text that is shown in place of a secret"
#define PROBLEM_NOT_DERIVED "its key cannot be derived"

/* The extra data of a secret setting. */
typedef struct MaskedKeys
{
	const char *problem;		/* NULL, or what is wrong */
	int			item;			/* with which item, 0 = with all of it */
	bool		in_worker;		/* were the keys left behind in the leader of
								 * a parallel query? */
	int			nkeys;
	uint8		keys[FLEXIBLE_ARRAY_MEMBER][FERNET_KEY_LEN];
} MaskedKeys;

/* What is particular to a setting that holds one secret or a list of them. */
typedef struct SecretSetting
{
	const char *name;
	bool		is_list;
	const MaskedKeys *keys;		/* in force, as the assign hook was told */
} SecretSetting;

static SecretSetting encryption_keys = {
	.name = "extension_storage.encryption_keys",
	.is_list = true
};
static SecretSetting secret_key = {
	.name = "extension_storage.secret_key"
};
static SecretSetting previous_secret_key = {
	.name = "extension_storage.previous_secret_key"
};

/* Keys that are being collected. */
typedef struct KeyArray
{
	int			nkeys;
	SecretKey  *keys;			/* with room for all that sources can give */
} KeyArray;

/*
 * A source of keys, and the setting that names it.  Its loader adds the keys
 * that the source has.
 */
typedef struct SecretSource
{
	const char *name;			/* of its setting */
	const char *summary;
	const char *rest;			/* of the description */
	GucContext	context;		/* who can set it */
	int			flags;
	GucStringCheckHook check;
	GucStringAssignHook assign; /* calls secrets_changed() */
	GucShowHook show;
	const char *place;			/* what its secrets are counted by, or NULL */
	bool		encrypts;		/* else its keys only decrypt */
	void		(*load) (const struct SecretSource *source, KeyArray *array);
	SecretSetting *setting;		/* where load_setting looks */
	char	   *text;			/* the variable: for secrets, see above */
} SecretSource;

/*
 * Not GUC_SUPERUSER_ONLY: set_config() gives the new value back, so only
 * superusers could call it.  There is nothing to see.
 */
#define SECRET_FLAGS (GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE)

static bool check_encryption_keys(char **newval, void **extra, GucSource source);
static bool check_secret_key(char **newval, void **extra, GucSource source);
static bool check_previous_secret_key(char **newval, void **extra,
									  GucSource source);
static void assign_encryption_keys(const char *newval, void *extra);
static void assign_secret_key(const char *newval, void *extra);
static void assign_previous_secret_key(const char *newval, void *extra);
static void assign_path(const char *newval, void *extra);
static const char *show_encryption_keys(void);
static const char *show_secret_key(void);
static const char *show_previous_secret_key(void);
static void load_setting(const SecretSource *source, KeyArray *array);
static void load_key_file(const SecretSource *source, KeyArray *array);

/* All sources, in order of precedence. */
static SecretSource sources[] = {
	{
		.name = "extension_storage.encryption_keys",
		.summary = "Secrets that encrypt and decrypt stored values, separated by commas.",
		.rest = "The first one encrypts, all decrypt. If it is set, the keys of the key file still decrypt.",
		.context = PGC_USERSET,
		.flags = SECRET_FLAGS,
		.check = check_encryption_keys,
		.assign = assign_encryption_keys,
		.show = show_encryption_keys,
		.place = "item",
		.encrypts = true,
		.load = load_setting,
		.setting = &encryption_keys
	},
	{
		.name = "extension_storage.encryption_keys_file",
		.summary = "Absolute path of the file that holds the secrets, one per line.",
		.rest = "The first one encrypts, all decrypt.",
		.context = PGC_SIGHUP,
		.flags = GUC_SUPERUSER_ONLY,
		.assign = assign_path,
		.place = "line",
		.encrypts = true,
		.load = load_key_file
	},
	{
		.name = "extension_storage.secret_key",
		.summary = "Superset's SECRET_KEY.",
		.rest = "Encrypts if neither list nor file names a key, and still decrypts if one does.",
		.context = PGC_USERSET,
		.flags = SECRET_FLAGS,
		.check = check_secret_key,
		.assign = assign_secret_key,
		.show = show_secret_key,
		.encrypts = true,
		.load = load_setting,
		.setting = &secret_key
	},
	{
		.name = "extension_storage.previous_secret_key",
		.summary = "Superset's PREVIOUS_SECRET_KEY.",
		.rest = "Decrypts, and never encrypts.",
		.context = PGC_USERSET,
		.flags = SECRET_FLAGS,
		.check = check_previous_secret_key,
		.assign = assign_previous_secret_key,
		.show = show_previous_secret_key,
		.load = load_setting,
		.setting = &previous_secret_key
	},
};

/*
 * Is the library being loaded?  GUC would ignore a value from before that is
 * not valid, and another source of keys would be used instead.
 */
static bool loading = false;

/* What masks keys in extra data; drawn once, when the library is loaded. */
static uint8 mask[MASK_LEN];

/* Called when a setting changes. */
static void (*secrets_changed) (void) = NULL;

/*
 * SecretToUtf8
 *		Converts a secret from the database encoding to UTF-8, with an error
 *		that keeps the statement out of the log.
 *
 * The result is the argument itself where there is nothing to convert.
 */
char *
SecretToUtf8(const char *secret, size_t len, size_t *utf8_len)
{
	char	   *utf8 = ConvertUtf8(secret, len, false);

	if (utf8 == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
				 errmsg("secret cannot be converted to UTF-8"),
				 errhidestmt(true),
				 errhidecontext(true)));
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
 * Refuses a value, which is wiped, for the check hook of a secret setting.
 *
 * A statement that contains the value would be logged with the error, by GUC
 * if the hook returns false, so the error of a statement is raised here, and
 * hides it.  Everything else is left to GUC, which knows whether an error may
 * be raised at all.
 */
static bool
refuse_secret(char *value, GucSource source, const char *message,
			  const char *detail, const char *hint)
{
	bool		in_statement = source == PGC_S_SESSION || source == PGC_S_TEST;

	explicit_bzero(value, strlen(value));

	/* a value of ALTER SYSTEM looks like one of a file that is read */
	if (source == PGC_S_FILE && ActivePortal != NULL &&
		ActivePortal->commandTag == CMDTAG_ALTER_SYSTEM)
		in_statement = true;
	if (in_statement && !loading)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg_internal("%s", message),
				 errdetail_internal("%s", detail),
				 hint != NULL ? errhint("%s", hint) : 0,
				 errhidestmt(true),
				 errhidecontext(true)));

	GUC_check_errcode(ERRCODE_INVALID_PARAMETER_VALUE);
	GUC_check_errmsg("%s", message);
	GUC_check_errdetail("%s", detail);
	if (hint != NULL)
		GUC_check_errhint("%s", hint);
	return false;
}

/* Does a value come from where it is stored in a catalog? */
static bool
is_catalog_source(GucSource source)
{
	return source == PGC_S_TEST || source == PGC_S_GLOBAL ||
		source == PGC_S_DATABASE || source == PGC_S_USER ||
		source == PGC_S_DATABASE_USER;
}

/* Warns, once per process, about a secret in a configuration file. */
static void
warn_of_configuration_file(const char *name)
{
	static bool warned = false;

	if (warned)
		return;
	warned = true;
	ereport(WARNING,
			(errmsg("parameter \"%s\" is set in a configuration file", name),
			 errdetail("Until the library is loaded, a session shows it to every user."),
			 errhint("Use extension_storage.encryption_keys_file instead."),
			 errhidestmt(true)));
}

/* Returns the detail of an error about a value that cannot be used. */
static char *
problem_detail(const MaskedKeys *masked)
{
	if (masked->item > 0)
		return psprintf("Item %d of the list cannot be used: %s.",
						masked->item, masked->problem);
	return psprintf("The value cannot be used: %s.", masked->problem);
}

/* Masks the key of a secret, after those that are there. */
static bool
mask_secret(MaskedKeys *masked, const char *secret, size_t len)
{
	FernetKey	key;
	bool		derived = FernetKeyFromSecret(secret, len, &key) == FERNET_OK;

	if (derived)
		mask_key(masked->keys[masked->nkeys++], &key);
	else
		masked->problem = PROBLEM_NOT_DERIVED;
	CipherWipe(&key, sizeof(key));
	return derived;
}

/* Masks the keys of a list, or records what is wrong with it. */
static void
mask_list(MaskedKeys *masked, char *list, size_t len)
{
	KeyListParser parser;
	KeyListStatus status;

	KeyListStart(&parser, list, len);
	while ((status = KeyListNextItem(&parser)) == KEYLIST_SECRET)
		if (!mask_secret(masked, parser.secret, parser.len))
			break;
	if (status != KEYLIST_END && masked->problem == NULL)
		masked->problem = KeyListStatusText(status);
	if (masked->problem != NULL)
		masked->item = parser.ordinal;
}

/*
 * Masks the keys of a setting's text, or records what is wrong with it.  The
 * text is UTF-8 if it comes from a file or with the connection request, and in
 * the database encoding if it comes from SET.  It is wiped, whatever happens.
 */
static void
mask_text(MaskedKeys *masked, char *text, GucSource source, bool is_list)
{
	size_t		len = strlen(text);
	char	   *volatile secrets = text;
	volatile size_t secrets_len = len;

	PG_TRY();
	{
		if (source == PGC_S_SESSION)
		{
			size_t		utf8_len;

			secrets = SecretToUtf8(text, len, &utf8_len);
			secrets_len = utf8_len;
		}
		if (is_list)
			mask_list(masked, secrets, secrets_len);
		else
			mask_secret(masked, secrets, secrets_len);
	}
	PG_FINALLY();
	{
		explicit_bzero(secrets, secrets_len);
		explicit_bzero(text, len);
	}
	PG_END_TRY();
	if (secrets != text)
		pfree(secrets);
}

/*
 * Was a secret left behind in the leader?  A parallel worker is sent the text
 * that hides it, which for one of a configuration file is the empty one.
 */
static bool
is_left_behind(const char *value, GucSource source)
{
	return InitializingParallelWorker && value != NULL &&
		strcmp(value, source == PGC_S_FILE ? "" : HIDDEN_TEXT) == 0;
}

/* Reports, as refuse_secret does, that there is no memory for the keys. */
static bool
refuse_for_memory(char *value)
{
	explicit_bzero(value, strlen(value));
	if (loading)				/* GUC would go on without the value */
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	GUC_check_errcode(ERRCODE_OUT_OF_MEMORY);
	GUC_check_errmsg("out of memory");
	return false;
}

/* Masks the keys of a value, which is wiped, or records why there are none. */
static void
mask_value(MaskedKeys *masked, char *value, GucSource source, bool is_list)
{
	memset(masked, 0, offsetof(MaskedKeys, keys));
	if (strlen(value) > KEYLIST_MAX_BYTES)
	{
		masked->problem = PROBLEM_TOO_LONG;
		explicit_bzero(value, strlen(value));
	}
	else if (is_left_behind(value, source))
		masked->in_worker = true;
	else if (strcmp(value, HIDDEN_TEXT) == 0)
		masked->problem = PROBLEM_HIDDEN_TEXT;
	else
		mask_text(masked, value, source, is_list);
}

/*
 * Turns the text of a secret setting into masked keys, and hides it.
 */
static bool
check_secret(char **newval, void **extra, GucSource source,
			 const SecretSetting *setting)
{
	MaskedKeys *masked;
	char	   *hidden;

	if (!is_left_behind(*newval, source) &&
		(*newval == NULL || **newval == '\0'))
		return true;			/* unset: no extra data */
	if (is_catalog_source(source))
		return refuse_secret(*newval, source,
							 psprintf("parameter \"%s\" cannot be set for a role, database, or function",
									  setting->name),
							 "Every user can read it there.",
							 "Use extension_storage.encryption_keys_file, or pass the parameter when the connection is made.");
	if (source == PGC_S_FILE)
		warn_of_configuration_file(setting->name);

	masked = guc_malloc(LOG, offsetof(MaskedKeys, keys) +
						KEYLIST_MAX_SECRETS * FERNET_KEY_LEN);
	hidden = guc_strdup(LOG, source == PGC_S_FILE ? "" : HIDDEN_TEXT);
	if (masked == NULL || hidden == NULL)
	{
		guc_free(masked);
		guc_free(hidden);
		return refuse_for_memory(*newval);
	}
	PG_TRY();
	{
		mask_value(masked, *newval, source, setting->is_list);
	}
	PG_CATCH();
	{
		guc_free(masked);
		guc_free(hidden);
		PG_RE_THROW();
	}
	PG_END_TRY();

	/* a value from before the library was loaded is refused when it is used */
	if (masked->problem != NULL && !loading)
	{
		char	   *detail = problem_detail(masked);

		guc_free(masked);
		guc_free(hidden);
		return refuse_secret(*newval, source,
							 psprintf("invalid value for parameter \"%s\"",
									  setting->name),
							 detail, NULL);
	}

	if (masked->nkeys == 0 && masked->problem == NULL && !masked->in_worker)
	{
		guc_free(masked);		/* a list of nothing but blanks */
		masked = NULL;
		hidden[0] = '\0';
	}
	guc_free(*newval);
	*newval = hidden;
	*extra = masked;
	return true;
}

static bool
check_encryption_keys(char **newval, void **extra, GucSource source)
{
	return check_secret(newval, extra, source, &encryption_keys);
}

static bool
check_secret_key(char **newval, void **extra, GucSource source)
{
	return check_secret(newval, extra, source, &secret_key);
}

static bool
check_previous_secret_key(char **newval, void **extra, GucSource source)
{
	return check_secret(newval, extra, source, &previous_secret_key);
}

static const char *
show_secret(const SecretSetting *setting)
{
	return setting->keys != NULL ? HIDDEN_TEXT : "";
}

static const char *
show_encryption_keys(void)
{
	return show_secret(&encryption_keys);
}

static const char *
show_secret_key(void)
{
	return show_secret(&secret_key);
}

static const char *
show_previous_secret_key(void)
{
	return show_secret(&previous_secret_key);
}

static void
assign_encryption_keys(const char *newval pg_attribute_unused(), void *extra)
{
	encryption_keys.keys = extra;
	secrets_changed();
}

static void
assign_secret_key(const char *newval pg_attribute_unused(), void *extra)
{
	secret_key.keys = extra;
	secrets_changed();
}

static void
assign_previous_secret_key(const char *newval pg_attribute_unused(), void *extra)
{
	previous_secret_key.keys = extra;
	secrets_changed();
}

static void
assign_path(const char *newval pg_attribute_unused(),
			void *extra pg_attribute_unused())
{
	secrets_changed();
}

/*
 * SecretsSetting
 *		Returns the name of the nth setting of this module, from 0, and in
 *		*context who can set it; NULL if there are not so many.
 */
const char *
SecretsSetting(size_t n, GucContext *context)
{
	if (n >= lengthof(sources))
		return NULL;
	*context = sources[n].context;
	return sources[n].name;
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
		ReportNoRandomBytes();

	loading = true;
	for (size_t i = 0; i < lengthof(sources); i++)
	{
		SecretSource *source = &sources[i];

		DefineCustomStringVariable(source->name, source->summary, source->rest,
								   &source->text, "",
								   source->context, source->flags,
								   source->check, source->assign, source->show);
	}
	loading = false;
}

/* Adds a key, unless it is there. */
static void
add_key(KeyArray *array, const FernetKey *key, const SecretSource *source,
		int place)
{
	SecretKey  *added = &array->keys[array->nkeys];

	for (int i = 0; i < array->nkeys; i++)
		if (memcmp(&array->keys[i].key, key, sizeof(FernetKey)) == 0)
			return;
	added->key = *key;
	added->origin.source = source;
	added->origin.place = place;
	array->nkeys++;
}

/*
 * Adds the keys of a setting.  A value that cannot be used is an error here if
 * GUC could not be told.
 */
static void
load_setting(const SecretSource *source, KeyArray *array)
{
	const MaskedKeys *masked = source->setting->keys;

	if (masked == NULL)
		return;
	if (masked->in_worker)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the keys of a session cannot be used in a parallel worker"),
				 errdetail("Parameter \"%s\" is set, and is not passed on to workers.",
						   source->name),
				 errhint("Mark the function that needs them as PARALLEL RESTRICTED.")));
	if (masked->problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for parameter \"%s\"", source->name),
				 errdetail_internal("%s", problem_detail(masked))));
	for (int i = 0; i < masked->nkeys; i++)
	{
		FernetKey	key;

		mask_key(&key, masked->keys[i]);
		add_key(array, &key, source, i + 1);
		CipherWipe(&key, sizeof(key));
	}
}

/*
 * Raises an error unless the key file is a plain file of a fitting size that
 * belongs to the server's user or to root, that nobody else can write, and
 * that, beside the owner, only the server's group can read.
 *
 * PostgreSQL lets a group read only a TLS key that root owns.  Here the group
 * may also be the server's own, the one that it runs with, where the file is
 * the server's: files of a Kubernetes volume get the group of the pod
 * (fsGroup), which may read them, and no chmod can change that.  Source:
 * check_ssl_key_file_permissions() in src/backend/libpq/be-secure-common.c.
 */
static void
check_key_file(const char *path, const struct stat *st)
{
	bool		is_own = st->st_uid == geteuid();
	mode_t		allowed = S_IRUSR | S_IWUSR | S_IXUSR;

	if (!S_ISREG(st->st_mode))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("encryption key file \"%s\" is not a regular file",
						path)));
	if (!is_own && st->st_uid != 0)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("encryption key file \"%s\" must be owned by the database user or root",
						path),
				 errhint("Correct it with chown, then reload the configuration.")));
	if (!is_own || st->st_gid == getegid())
		allowed |= S_IRGRP;
	if ((st->st_mode & (S_IRWXU | S_IRWXG | S_IRWXO) & ~allowed) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("encryption key file \"%s\" has group or world access",
						path),
				 errdetail("File must have permissions u=rw (0600) or less, or u=rw,g=r (0640) or less if it is owned by root or its group is that of the database server."),
				 errhint("Correct them with chmod, or for a Kubernetes volume with \"defaultMode: 0400\" and \"fsGroup\", then reload the configuration.")));
	if (st->st_size > KEYLIST_MAX_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("encryption key file \"%s\" is larger than %d bytes",
						path, KEYLIST_MAX_BYTES)));
}

/* Opens and checks the key file, and sets its status. */
static int
open_key_file(const char *path, struct stat *st)
{
	int			fd;

	if (!is_absolute_path(path))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("path of encryption key file \"%s\" is not absolute",
						path),
				 errhint("Correct extension_storage.encryption_keys_file, then reload the configuration.")));
	fd = OpenTransientFile(path,
						   O_RDONLY | O_NONBLOCK | PG_BINARY);
	if (fd < 0 || fstat(fd, st) < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open encryption key file \"%s\": %m",
						path),
				 errhint("Correct extension_storage.encryption_keys_file or the file, then reload the configuration.")));
	check_key_file(path, st);
	return fd;
}

/*
 * Reads the open key file, which has the given status, into a buffer with room
 * for its size and one byte more, which shows that it grew.
 */
static void
read_key_file(const char *path, int fd, const struct stat *st, char *contents)
{
	struct stat after;
	off_t		len = 0;
	ssize_t		nread;

	do
	{
		nread = read(fd, contents + len, st->st_size + 1 - len);
		if (nread > 0)
			len += nread;
	} while (nread > 0 || (nread < 0 && errno == EINTR));
	if (nread < 0 || fstat(fd, &after) < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read encryption key file \"%s\": %m",
						path)));
	if (len != st->st_size || after.st_size != st->st_size ||
		after.st_mtim.tv_sec != st->st_mtim.tv_sec ||
		after.st_mtim.tv_nsec != st->st_mtim.tv_nsec)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("encryption key file \"%s\" was changed while it was read",
						path),
				 errhint("Write a new file and rename it to this name, then reload the configuration.")));
}

/* Warns, once per process, about a line that looks like the rest of another. */
static void
warn_of_broken_line(const char *path, int line)
{
	static bool warned = false;

	if (warned)
		return;
	warned = true;
	ereport(WARNING,
			(errmsg("line %d of encryption key file \"%s\" looks like the rest of the line before",
					line, path),
			 errdetail("Each line is a secret of its own; openssl breaks base64 into lines of 64 characters."),
			 errhint("Join the lines if they are one secret, or put this one in double quotes if it is not.")));
}

/* Adds the keys of the lines of a key file. */
static void
add_lines(KeyArray *array, char *contents, size_t len,
		  const SecretSource *source)
{
	KeyListParser parser;
	KeyListStatus status;

	KeyListStart(&parser, contents, len);
	while ((status = KeyListNextLine(&parser)) == KEYLIST_SECRET)
	{
		FernetKey	key;

		if (FernetKeyFromSecret(parser.secret, parser.len, &key) != FERNET_OK)
			CipherFail();
		add_key(array, &key, source, parser.ordinal);
		CipherWipe(&key, sizeof(key));
		if (parser.continues)
			warn_of_broken_line(source->text, parser.ordinal);
	}
	if (status != KEYLIST_END)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("line %d of encryption key file \"%s\" cannot be used",
						parser.ordinal, source->text),
				 errdetail("The line is not a valid secret: %s.", KeyListStatusText(status)),
				 errhint("Correct the file, then reload the configuration. Put a secret that begins or ends with a blank, begins with \"#\", or contains a double quote in double quotes, and double each quote in it.")));
	if (parser.nsecrets == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("encryption key file \"%s\" contains no key",
						source->text),
				 errhint("Write one secret per line into it, then reload the configuration.")));
}

/* Adds the keys of the key file, if one is named. */
static void
load_key_file(const SecretSource *source, KeyArray *array)
{
	struct stat st;
	char	   *contents;
	int			fd;

	if (source->text[0] == '\0')
		return;
	fd = open_key_file(source->text, &st);
	contents = palloc(st.st_size + 1);
	PG_TRY();
	{
		read_key_file(source->text, fd, &st, contents);
		add_lines(array, contents, st.st_size, source);
	}
	PG_FINALLY();
	{
		explicit_bzero(contents, st.st_size + 1);
	}
	PG_END_TRY();
	pfree(contents);
	CloseTransientFile(fd);
}

/*
 * SecretsLoad
 *		Returns the keys that are in force, the first of which encrypts if
 *		*encrypts, in palloc'd memory that the caller wipes, and how many there
 *		are.
 *
 * Raises an error if a source is broken: there is no falling back to another
 * one, not even where that one would encrypt.
 */
SecretKey *
SecretsLoad(int *nkeys, bool *encrypts)
{
	size_t		size = lengthof(sources) * KEYLIST_MAX_SECRETS * sizeof(SecretKey);
	KeyArray	array = {.keys = palloc(size)};

	PG_TRY();
	{
		for (size_t i = 0; i < lengthof(sources); i++)
		{
			Assert(sources[i].load != NULL &&
				   (sources[i].load != load_setting || sources[i].setting != NULL));
			sources[i].load(&sources[i], &array);
		}
	}
	PG_CATCH();
	{
		CipherWipe(array.keys, size);
		PG_RE_THROW();
	}
	PG_END_TRY();
	*nkeys = array.nkeys;
	*encrypts = array.nkeys > 0 && array.keys[0].origin.source->encrypts;
	return array.keys;
}

/*
 * SecretOriginText
 *		Describes where a key comes from, for an operator who looks for it.
 */
char *
SecretOriginText(const SecretOrigin *origin)
{
	const SecretSource *source = origin->source;

	if (source->place == NULL)
		return pstrdup(source->name);
	return psprintf("%s, %s %d", source->name, source->place, origin->place);
}
