/*-------------------------------------------------------------------------
 *
 * extension_storage.c
 *	  What the server calls when it loads the library.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "entry.h"
#include "fmgr.h"
#include "keyring.h"
#include "quota.h"
#include "rotation.h"
#include "secrets.h"
#include "statement.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"

/* An int64 must be passed by value in a Datum: no memory is kept for one. */
StaticAssertDecl(sizeof(Datum) >= sizeof(int64), "Datum must have 64 bits");

#ifdef PG_MODULE_MAGIC_EXT
PG_MODULE_MAGIC_EXT(
					.name = "extension_storage",
					.version = EXTENSION_VERSION
);
#else
PG_MODULE_MAGIC;
#endif

#if PG_VERSION_NUM < 160000
extern void _PG_init(void);		/* fmgr.h declares it from 16 on */
#endif

/* The settings, beside those of sources of keys, that not everybody may set. */
static const struct
{
	const char *name;
	GucContext	context;
}			other_settings[] =

{
	{"extension_storage.max_value_size", PGC_SUSET},
	{"extension_storage.quota_per_extension", PGC_SUSET},
};

/*
 * Returns the name of the nth of these and of the sources' settings, from 0,
 * and in *context who can set it; NULL if there are not so many.
 */
static const char *
guarded_setting(size_t n, GucContext *context)
{
	if (n >= lengthof(other_settings))
		return SecretsSetting(n - lengthof(other_settings), context);
	*context = other_settings[n].context;
	return other_settings[n].name;
}

/* Returns the placeholder of a setting that is not defined, NULL if none. */
static const struct config_generic *
find_placeholder(const char *name)
{
#if PG_VERSION_NUM >= 160000
	return find_option(name, false, true, LOG);
#else
	struct config_generic **options = get_guc_variables();
	int			noptions = GetNumConfigOptions();

	for (int i = 0; i < noptions; i++)
		if (pg_strcasecmp(options[i]->name, name) == 0)
			return options[i];
	return NULL;
#endif
}

/*
 * Refuses to be loaded where the connection, the role or the database took the
 * place of a value of a setting that it may not set.
 */
static void
refuse_displaced_setting(const char *name, GucContext context)
{
	const struct config_generic *option = find_placeholder(name);
	bool		allowed;

	if (option == NULL || option->reset_source <= PGC_S_ARGV)
		return;					/* not set, or set by the server's operator */
	allowed = context == PGC_USERSET ||
		(context == PGC_SUSET &&
		 ((option->reset_scontext != PGC_USERSET &&
		   option->reset_scontext != PGC_BACKEND) ||
		  pg_parameter_aclcheck(name, option->reset_srole, ACL_SET) ==
		  ACLCHECK_OK));
	if (!allowed)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("parameter \"%s\" cannot be set with a connection, role, or database",
						name),
				 errdetail("Its value has replaced the one of the server's configuration in this session."),
				 errhint("Connect without it. With extension_storage in shared_preload_libraries, the server refuses such a connection.")));
}

/*
 * Refuses to be loaded where any setting has such a value.
 *
 * Until the library is loaded, its settings are placeholders, which anybody
 * may set.  A value that came with the connection has replaced that of
 * postgresql.conf for good: when the real setting is defined, PostgreSQL drops
 * what its context forbids, and goes on with the built-in default, that is
 * without a quota or with another source of keys.  With the library preloaded,
 * PostgreSQL refuses such a connection; this does the same, only later.  (What
 * SET puts into a placeholder is dropped too, but does not replace anything.)
 */
static void
refuse_displaced_settings(void)
{
	const char *name;
	GucContext	context;

	for (size_t i = 0; (name = guarded_setting(i, &context)) != NULL; i++)
		refuse_displaced_setting(name, context);
}

#ifdef USE_ASSERT_CHECKING
/* Was a value that was displaced looked for before the setting was defined? */
static bool
is_guarded(const struct config_generic *option)
{
	const char *name;
	GucContext	context;

	for (size_t i = 0; (name = guarded_setting(i, &context)) != NULL; i++)
		if (strcmp(name, option->name) == 0)
			return context == option->context;
	return false;
}

/* Asserts that no setting that not everybody may set was forgotten above. */
static void
assert_settings_guarded(void)
{
#if PG_VERSION_NUM >= 160000
	int			noptions;
	struct config_generic **options = get_guc_variables(&noptions);
#else
	struct config_generic **options = get_guc_variables();
	int			noptions = GetNumConfigOptions();
#endif

	for (int i = 0; i < noptions; i++)
		Assert(options[i]->context == PGC_USERSET ||
			   strncmp(options[i]->name, "extension_storage.",
					   strlen("extension_storage.")) != 0 ||
			   is_guarded(options[i]));
}
#endif

/*
 * Refuses to be loaded while a parallel query runs, where no setting may be
 * assigned: PostgreSQL would go on without the values that are set.
 */
static void
refuse_parallel_mode(void)
{
	if (IsInParallelMode())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("extension_storage cannot be loaded during a parallel operation"),
				 errdetail("Its settings cannot be read then."),
				 errhint("Add extension_storage to shared_preload_libraries or session_preload_libraries, or mark the function that calls it as PARALLEL UNSAFE.")));
}

void
_PG_init(void)
{
	refuse_parallel_mode();
	refuse_displaced_settings();
	KeyringInit();
	EntryInit();
	QuotaInit();
	RotationInit();
	StatementInit();
#ifdef USE_ASSERT_CHECKING
	assert_settings_guarded();
#endif
	MarkGUCPrefixReserved("extension_storage");
}
