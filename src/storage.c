/*-------------------------------------------------------------------------
 *
 * storage.c
 *	  Set, rename and delete entries.
 *
 * What is to be encrypted is encrypted before it gets into a row: triggers, WAL
 * and the table never have the plaintext.  Every statement goes through SPI with
 * the caller's rights, a superuser's with those of the table's owner.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <uuid/uuid.h>

#include "access/detoast.h"
#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_index.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "encoding.h"
#include "entry.h"
#include "errors.h"
#include "funcapi.h"
#include "keyring.h"
#include "mb/pg_wchar.h"
#include "mime.h"
#include "miscadmin.h"
#include "quota.h"
#include "statement.h"
#include "storage/lock.h"
#include "token.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"
#include "utils/uuid.h"

/* How often set, rename and delete try again while others change the entry. */
#define MAX_TRIES 10

/* The arguments of set and set_json. */
typedef enum SetArgument
{
	SET_ARG_EXTENSION_ID,
	SET_ARG_KEY,
	SET_ARG_VALUE,
	SET_ARG_VALUE_TYPE,
	SET_ARG_USER_FK,
	SET_ARG_RESOURCE_TYPE,
	SET_ARG_RESOURCE_UUID,
	SET_ARG_CATEGORY,
	SET_ARG_DESCRIPTION,
	SET_ARG_IS_ENCRYPTED,
	SET_ARG_ACTOR_FK,
	SET_ARG_IF_VERSION,
	NUM_SET_ARGS
} SetArgument;

#define SET_ARGUMENTS(value) \
	[SET_ARG_EXTENSION_ID] = {"extension_id", TEXTOID, MAX_EXTENSION_ID_CHARS, true}, \
	[SET_ARG_KEY] = {"key", TEXTOID, MAX_KEY_CHARS, true}, \
	[SET_ARG_VALUE] = {"value", value, 0, true}, \
	[SET_ARG_VALUE_TYPE] = {"value_type", TEXTOID, MAX_VALUE_TYPE_CHARS, true}, \
	[SET_ARG_USER_FK] = {"user_fk", INT4OID, 0, false}, \
	[SET_ARG_RESOURCE_TYPE] = {"resource_type", TEXTOID, MAX_RESOURCE_TYPE_CHARS, true}, \
	[SET_ARG_RESOURCE_UUID] = {"resource_uuid", TEXTOID, MAX_RESOURCE_UUID_CHARS, true}, \
	[SET_ARG_CATEGORY] = {"category", TEXTOID, MAX_CATEGORY_CHARS, false}, \
	[SET_ARG_DESCRIPTION] = {"description", TEXTOID, MAX_DESCRIPTION_CHARS, false}, \
	[SET_ARG_IS_ENCRYPTED] = {"is_encrypted", BOOLOID, 0, false}, \
	[SET_ARG_ACTOR_FK] = {"actor_fk", INT4OID, 0, false}, \
	[SET_ARG_IF_VERSION] = {"if_version", INT8OID, 0, false}

static const ArgumentInfo set_arguments[] = {SET_ARGUMENTS(BYTEAOID)};
static const ArgumentInfo set_json_arguments[] = {SET_ARGUMENTS(JSONBOID)};
static const AddressArguments set_address = {
	{
		[PARAM_EXTENSION_ID] = SET_ARG_EXTENSION_ID,
		[PARAM_KEY] = SET_ARG_KEY,
		[PARAM_USER_FK] = SET_ARG_USER_FK,
		[PARAM_RESOURCE_TYPE] = SET_ARG_RESOURCE_TYPE,
		[PARAM_RESOURCE_UUID] = SET_ARG_RESOURCE_UUID
	}
};

/* What set adds to the address. */
enum
{
	SET_PARAM_UUID = NUM_ADDRESS_PARAMS,
	SET_PARAM_CATEGORY,
	SET_PARAM_DESCRIPTION,
	SET_PARAM_VALUE,
	SET_PARAM_VALUE_TYPE,
	SET_PARAM_IS_ENCRYPTED,
	SET_PARAM_NOW,
	SET_PARAM_ACTOR_FK,
	SET_PARAM_VALUE_SIZE,
	SET_PARAM_EXPECTED_ENCRYPTED,
	SET_PARAM_EXPECTED_VERSION,
	NUM_SET_PARAMS
};

static const StatementParam set_params[] = {
	ADDRESS_PARAMS,
	[SET_PARAM_UUID] = {"uuid", UUIDOID},
	[SET_PARAM_CATEGORY] = {"category", TEXTOID},
	[SET_PARAM_DESCRIPTION] = {"description", TEXTOID},
	[SET_PARAM_VALUE] = {"value", BYTEAOID},
	[SET_PARAM_VALUE_TYPE] = {"value_type", TEXTOID},
	[SET_PARAM_IS_ENCRYPTED] = {"is_encrypted", BOOLOID},
	[SET_PARAM_NOW] = {"now", TIMESTAMPOID},
	[SET_PARAM_ACTOR_FK] = {"actor_fk", INT4OID},
	[SET_PARAM_VALUE_SIZE] = {"value_size", INT4OID},
	[SET_PARAM_EXPECTED_ENCRYPTED] = {"expected_encrypted", BOOLOID},
	[SET_PARAM_EXPECTED_VERSION] = {"expected_version", INT8OID}
};

/* The arguments of set_many. */
enum
{
	SET_MANY_ARG_EXTENSION_ID,
	SET_MANY_ARG_KEYS,
	SET_MANY_ARG_VALUES,
	SET_MANY_ARG_VALUE_TYPES,
	SET_MANY_ARG_USER_FK,
	SET_MANY_ARG_RESOURCE_TYPE,
	SET_MANY_ARG_RESOURCE_UUID,
	SET_MANY_ARG_CATEGORIES,
	SET_MANY_ARG_DESCRIPTIONS,
	SET_MANY_ARG_IS_ENCRYPTED,
	SET_MANY_ARG_ACTOR_FK,
	SET_MANY_ARG_IF_VERSIONS,
	NUM_SET_MANY_ARGS
};

static const ArgumentInfo set_many_arguments[] = {
	[SET_MANY_ARG_EXTENSION_ID] = {"extension_id", TEXTOID, MAX_EXTENSION_ID_CHARS, true},
	[SET_MANY_ARG_KEYS] = {"keys", TEXTARRAYOID, 0, true},
	[SET_MANY_ARG_VALUES] = {"new_values", BYTEAARRAYOID, 0, true},
	[SET_MANY_ARG_VALUE_TYPES] = {"value_types", TEXTARRAYOID, 0, false},
	[SET_MANY_ARG_USER_FK] = {"user_fk", INT4OID, 0, false},
	[SET_MANY_ARG_RESOURCE_TYPE] = {"resource_type", TEXTOID, MAX_RESOURCE_TYPE_CHARS, true},
	[SET_MANY_ARG_RESOURCE_UUID] = {"resource_uuid", TEXTOID, MAX_RESOURCE_UUID_CHARS, true},
	[SET_MANY_ARG_CATEGORIES] = {"categories", TEXTARRAYOID, 0, false},
	[SET_MANY_ARG_DESCRIPTIONS] = {"descriptions", TEXTARRAYOID, 0, false},
	[SET_MANY_ARG_IS_ENCRYPTED] = {"is_encrypted", BOOLARRAYOID, 0, false},
	[SET_MANY_ARG_ACTOR_FK] = {"actor_fk", INT4OID, 0, false},
	[SET_MANY_ARG_IF_VERSIONS] = {"if_versions", INT8ARRAYOID, 0, false}
};
static const AddressArguments set_many_address = {
	{
		[PARAM_EXTENSION_ID] = SET_MANY_ARG_EXTENSION_ID,
		[PARAM_KEY] = -1,
		[PARAM_USER_FK] = SET_MANY_ARG_USER_FK,
		[PARAM_RESOURCE_TYPE] = SET_MANY_ARG_RESOURCE_TYPE,
		[PARAM_RESOURCE_UUID] = SET_MANY_ARG_RESOURCE_UUID
	}
};

/* What is known of entries that set_many writes together, by place. */
enum
{
	BATCH_PARAM_KEYS = NUM_ADDRESS_PARAMS,
	BATCH_PARAM_IDS,
	BATCH_PARAM_CATEGORIES,
	BATCH_PARAM_DESCRIPTIONS,
	BATCH_PARAM_VALUES,
	BATCH_PARAM_VALUE_TYPES,
	BATCH_PARAM_ARE_ENCRYPTED,
	BATCH_PARAM_VALUE_SIZES,
	BATCH_PARAM_NOW,
	BATCH_PARAM_ACTOR_FK,
	NUM_BATCH_PARAMS
};

static const StatementParam batch_params[] = {
	ADDRESS_PARAMS,
	[BATCH_PARAM_KEYS] = {"keys", TEXTARRAYOID},
	[BATCH_PARAM_IDS] = {"ids", INT8ARRAYOID},
	[BATCH_PARAM_CATEGORIES] = {"categories", TEXTARRAYOID},
	[BATCH_PARAM_DESCRIPTIONS] = {"descriptions", TEXTARRAYOID},
	[BATCH_PARAM_VALUES] = {"new_values", BYTEAARRAYOID},
	[BATCH_PARAM_VALUE_TYPES] = {"value_types", TEXTARRAYOID},
	[BATCH_PARAM_ARE_ENCRYPTED] = {"are_encrypted", BOOLARRAYOID},
	[BATCH_PARAM_VALUE_SIZES] = {"value_sizes", INT4ARRAYOID},
	[BATCH_PARAM_NOW] = {"now", TIMESTAMPOID},
	[BATCH_PARAM_ACTOR_FK] = {"actor_fk", INT4OID}
};

/* The arguments of rename. */
enum
{
	RENAME_ARG_EXTENSION_ID,
	RENAME_ARG_KEY,
	RENAME_ARG_NEW_KEY,
	RENAME_ARG_USER_FK,
	RENAME_ARG_RESOURCE_TYPE,
	RENAME_ARG_RESOURCE_UUID,
	RENAME_ARG_IF_VERSION,
	RENAME_ARG_ACTOR_FK,
	NUM_RENAME_ARGS
};

static const ArgumentInfo rename_arguments[] = {
	[RENAME_ARG_EXTENSION_ID] = {"extension_id", TEXTOID, MAX_EXTENSION_ID_CHARS, true},
	[RENAME_ARG_KEY] = {"key", TEXTOID, MAX_KEY_CHARS, true},
	[RENAME_ARG_NEW_KEY] = {"new_key", TEXTOID, MAX_KEY_CHARS, true},
	[RENAME_ARG_USER_FK] = {"user_fk", INT4OID, 0, false},
	[RENAME_ARG_RESOURCE_TYPE] = {"resource_type", TEXTOID, MAX_RESOURCE_TYPE_CHARS, true},
	[RENAME_ARG_RESOURCE_UUID] = {"resource_uuid", TEXTOID, MAX_RESOURCE_UUID_CHARS, true},
	[RENAME_ARG_IF_VERSION] = {"if_version", INT8OID, 0, false},
	[RENAME_ARG_ACTOR_FK] = {"actor_fk", INT4OID, 0, false}
};
static const AddressArguments rename_address = {
	{
		[PARAM_EXTENSION_ID] = RENAME_ARG_EXTENSION_ID,
		[PARAM_KEY] = RENAME_ARG_KEY,
		[PARAM_USER_FK] = RENAME_ARG_USER_FK,
		[PARAM_RESOURCE_TYPE] = RENAME_ARG_RESOURCE_TYPE,
		[PARAM_RESOURCE_UUID] = RENAME_ARG_RESOURCE_UUID
	}
};

/* What rename adds to the address. */
enum
{
	RENAME_PARAM_NEW_KEY = NUM_ADDRESS_PARAMS,
	RENAME_PARAM_EXPECTED_VERSION,
	RENAME_PARAM_NOW,
	RENAME_PARAM_ACTOR_FK,
	NUM_RENAME_PARAMS
};

static const StatementParam rename_params[] = {
	ADDRESS_PARAMS,
	[RENAME_PARAM_NEW_KEY] = {"new_key", TEXTOID},
	[RENAME_PARAM_EXPECTED_VERSION] = {"expected_version", INT8OID},
	[RENAME_PARAM_NOW] = {"now", TIMESTAMPOID},
	[RENAME_PARAM_ACTOR_FK] = {"actor_fk", INT4OID}
};

/* The arguments of delete. */
enum
{
	DELETE_ARG_IF_VERSION = NUM_ADDRESS_ARGS,
	NUM_DELETE_ARGS
};

static const ArgumentInfo delete_arguments[] = {
	ADDRESS_ARGUMENTS,
	[DELETE_ARG_IF_VERSION] = {"if_version", INT8OID, 0, false}
};

/* The arguments of delete_many: those of delete, with arrays. */
static const ArgumentInfo delete_many_arguments[] = {
	KEYS_ARGUMENTS,
	[DELETE_ARG_IF_VERSION] = {"if_versions", INT8ARRAYOID, 0, false}
};

/* The arguments of delete_prefix, which has the prefix where delete has key. */
static const ArgumentInfo delete_prefix_arguments[] = {
	[ADDRESS_ARG_EXTENSION_ID] = {"extension_id", TEXTOID, MAX_EXTENSION_ID_CHARS, true},
	[ADDRESS_ARG_KEY] = {"key_prefix", TEXTOID, MAX_KEY_CHARS, true},
	[ADDRESS_ARG_USER_FK] = {"user_fk", INT4OID, 0, false},
	[ADDRESS_ARG_RESOURCE_TYPE] = {"resource_type", TEXTOID, MAX_RESOURCE_TYPE_CHARS, true},
	[ADDRESS_ARG_RESOURCE_UUID] = {"resource_uuid", TEXTOID, MAX_RESOURCE_UUID_CHARS, true}
};

enum
{
	DELETE_PARAM_EXPECTED_VERSION = NUM_ADDRESS_PARAMS,
	NUM_DELETE_PARAMS
};

enum
{
	PREFIX_PARAM_FIRST = NUM_ADDRESS_PARAMS,
	PREFIX_PARAM_LAST,
	NUM_PREFIX_PARAMS
};

static const StatementParam prefix_params[] = {
	ADDRESS_PARAMS,
	[PREFIX_PARAM_FIRST] = {"prefix_first", TEXTOID},
	[PREFIX_PARAM_LAST] = {"prefix_last", TEXTOID}
};

static const StatementParam state_params[] = {ADDRESS_PARAMS};
static const StatementParam delete_params[] = {
	ADDRESS_PARAMS,
	[DELETE_PARAM_EXPECTED_VERSION] = {"expected_version", INT8OID}
};

/* What delete_many returns for each key. */
enum
{
	DELETED_KEY,
	DELETED_DELETED,
	DELETED_UUID,
	NUM_DELETED_COLUMNS
};

static const StatementColumn deleted_columns[] = {
	[DELETED_KEY] = {"key", TEXTOID, NOT_NULL},
	[DELETED_DELETED] = {"deleted", BOOLOID, NOT_NULL},
	[DELETED_UUID] = {"uuid", UUIDOID, NULLABLE}
};

/* What the statements return that delete, or find what is to be deleted. */
enum
{
	GONE_UUID,
	NUM_GONE_COLUMNS
};

static const StatementColumn gone_columns[] = {
	[GONE_UUID] = {"uuid", UUIDOID, NOT_NULL}
};

enum
{
	STATE_UUID,
	STATE_VERSION,
	STATE_IS_ENCRYPTED,
	NUM_STATE_COLUMNS
};

static const StatementColumn state_columns[] = {
	[STATE_UUID] = {"uuid", UUIDOID, NOT_NULL},
	[STATE_VERSION] = {"version", INT8OID, NOT_NULL},
	[STATE_IS_ENCRYPTED] = {"is_encrypted", BOOLOID, NOT_NULL}
};

/* An entry that is locked, or nulls for a key that has none. */
enum
{
	LOCKED_PLACE,
	LOCKED_ID,
	LOCKED_VERSION,
	LOCKED_IS_ENCRYPTED,
	NUM_LOCKED_COLUMNS
};

static const StatementColumn locked_columns[] = {
	[LOCKED_PLACE] = {"place", INT8OID, NULLABLE},
	[LOCKED_ID] = {"id", INT8OID, NULLABLE},
	[LOCKED_VERSION] = {"version", INT8OID, NULLABLE},
	[LOCKED_IS_ENCRYPTED] = {"is_encrypted", BOOLOID, NULLABLE}
};

/* An entry that has been written, with its id. */
enum
{
	WRITTEN_ID = NUM_ENTRY_COLUMNS,
	NUM_WRITTEN_COLUMNS
};

static const StatementColumn written_columns[] = {
	ENTRY_COLUMNS,
	[WRITTEN_ID] = {"id", INT8OID, NOT_NULL}
};

/* What the row that is to be replaced must look like. */
#define AS_EXPECTED \
	"($expected_encrypted IS NULL OR e.is_encrypted" SQL_EQ \
	"$expected_encrypted)" \
	" AND ($expected_version IS NULL OR e.version" SQL_EQ "$expected_version)"

static Statement get_state_statement = {
	.sql = "SELECT @columns@ FROM " SQL_TABLE THE_ENTRY,
	STATEMENT_PARAMS(state_params, NUM_ADDRESS_PARAMS),
	STATEMENT_COLUMNS(state_columns, NUM_STATE_COLUMNS),
	.expand = ExpandScope, .by_index = true
};
static Statement insert_statement = {
	.sql = INSERT_ENTRY("$uuid", "$now", "$now", "$actor_fk", "$actor_fk")
	" RETURNING @columns@",
	STATEMENT_PARAMS(set_params, NUM_SET_PARAMS),
	STATEMENT_COLUMNS(entry_columns, NUM_ENTRY_COLUMNS)
};

#define UPDATE_NOW UPDATE_ENTRY("$now", "$actor_fk")

static Statement update_statement = {
	.sql = UPDATE_NOW " RETURNING @columns@",
	STATEMENT_PARAMS(set_params, NUM_SET_PARAMS),
	STATEMENT_COLUMNS(entry_columns, NUM_ENTRY_COLUMNS),
	.expand = ExpandScope, .by_index = true
};
static Statement update_expected_statement = {
	.sql = UPDATE_NOW " AND " AS_EXPECTED " RETURNING @columns@",
	STATEMENT_PARAMS(set_params, NUM_SET_PARAMS),
	STATEMENT_COLUMNS(entry_columns, NUM_ENTRY_COLUMNS),
	.expand = ExpandScope, .by_index = true
};

/*
 * Locks entries one after the other, in the order of the keys: who stops reading
 * has locked no later one.
 */
static Statement lock_many_statement = {
	.sql = "SELECT @columns@ FROM pg_catalog.unnest($keys) WITH ORDINALITY"
	" AS k (key, place) LEFT JOIN LATERAL (SELECT k.place, e.id, e.version,"
	" e.is_encrypted FROM " SQL_TABLE
	" WHERE @scope@ AND e.key" SQL_EQ "k.key FOR NO KEY UPDATE) AS e ON true",
	STATEMENT_PARAMS(batch_params, NUM_BATCH_PARAMS),
	STATEMENT_COLUMNS(locked_columns, NUM_LOCKED_COLUMNS),
	.expand = ExpandScope, .by_index = true
};
static Statement update_many_statement = {
	.sql = "UPDATE " SQL_TABLE
	" SET category = ($categories)" ITS_PLACE
	", description = ($descriptions)" ITS_PLACE
	", value = ($new_values)" ITS_PLACE
	", value_type = ($value_types)" ITS_PLACE
	", is_encrypted = ($are_encrypted)" ITS_PLACE
	", changed_on = $now, changed_by_fk = $actor_fk"
	", value_size = ($value_sizes)" ITS_PLACE
	", version = e.version" SQL_PLUS "1"
	" WHERE e.id" SQL_EQ "ANY ($ids) RETURNING @columns@",
	STATEMENT_PARAMS(batch_params, NUM_BATCH_PARAMS),
	STATEMENT_COLUMNS(written_columns, NUM_WRITTEN_COLUMNS),
	.by_index = true
};
static Statement delete_statement = {
	.sql = "DELETE FROM " SQL_TABLE THE_ENTRY
	" AND ($expected_version IS NULL OR e.version" SQL_EQ "$expected_version)"
	" RETURNING @columns@",
	STATEMENT_PARAMS(delete_params, NUM_DELETE_PARAMS),
	STATEMENT_COLUMNS(gone_columns, NUM_GONE_COLUMNS),
	.expand = ExpandScope, .by_index = true
};
static Statement delete_prefix_statement = {
	.sql = "DELETE FROM " SQL_TABLE " WHERE @scope@",
	STATEMENT_PARAMS(prefix_params, NUM_PREFIX_PARAMS),
	.expand = ExpandScope, .by_index = true
};
static Statement find_prefix_statement = {
	.sql = "SELECT @columns@ FROM " SQL_TABLE " WHERE @scope@ LIMIT 1",
	STATEMENT_PARAMS(prefix_params, NUM_PREFIX_PARAMS),
	STATEMENT_COLUMNS(gone_columns, NUM_GONE_COLUMNS),
	.expand = ExpandScope, .by_index = true
};
static Statement rename_statement = {
	.sql = "UPDATE " SQL_TABLE
	" SET key = $new_key, version = e.version" SQL_PLUS "1,"
	" changed_on = $now, changed_by_fk = $actor_fk"
	THE_ENTRY
	" AND ($expected_version IS NULL OR e.version" SQL_EQ "$expected_version)"
	" RETURNING @columns@",
	STATEMENT_PARAMS(rename_params, NUM_RENAME_PARAMS),
	STATEMENT_COLUMNS(entry_columns, NUM_ENTRY_COLUMNS),
	.expand = ExpandScope, .by_index = true
};

PG_FUNCTION_INFO_V1(ext_storage_set);
PG_FUNCTION_INFO_V1(ext_storage_set_json);
PG_FUNCTION_INFO_V1(ext_storage_set_many);
PG_FUNCTION_INFO_V1(ext_storage_rename);
PG_FUNCTION_INFO_V1(ext_storage_delete);
PG_FUNCTION_INFO_V1(ext_storage_delete_many);
PG_FUNCTION_INFO_V1(ext_storage_delete_prefix);

/* The version that an entry is expected to have, -1 for any. */
static int64
version_of(const StatementArgs *args, int param)
{
	if (args->nulls[param] == 'n')
		return -1;
	Assert(args->types[param] == INT8OID);
	return DatumGetInt64(args->values[param]);
}

/* Takes if_version; null stands for any version. */
static void
version_param(StatementArgs *args, int param, FunctionCallInfo fcinfo,
			  const ArgumentInfo *arguments, int argno)
{
	ValueParam(args, param, fcinfo, arguments, argno);
	if (!PG_ARGISNULL(argno) && version_of(args, param) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("if_version must not be negative")));
}

/* Encrypts a value, perhaps toasted, into the current memory context. */
static bytea *
seal_value(const StatementArgs *args, Datum value)
{
	bytea	   *plain = DatumGetByteaPP(value);
	bytea	   *sealed;

	RequireKey(args, KeyringEncrypts(), "is to be");
	sealed = KeyringSeal(VARDATA_ANY(plain), VARSIZE_ANY_EXHDR(plain),
						 FernetNow());
	if ((Pointer) plain != DatumGetPointer(value))
	{
		explicit_bzero(VARDATA_ANY(plain), VARSIZE_ANY_EXHDR(plain));
		pfree(plain);
	}
	return sealed;
}

/* The entry in the table, if there is one. */
typedef struct EntryState
{
	bool		exists;
	pg_uuid_t	uuid;
	int64		version;
	bool		is_encrypted;
} EntryState;

/* Looks up the present state of an entry. */
static EntryState
get_state(Connection *connection, const StatementArgs *args)
{
	EntryState	state = {0};
	Datum		row[NUM_STATE_COLUMNS];
	bool		nulls[NUM_STATE_COLUMNS];

	state.exists = StatementFetch(connection, &get_state_statement, args,
								  false, row, nulls);
	if (state.exists)
	{
		state.uuid = *DatumGetUUIDP(ColumnValue(state_columns, STATE_UUID,
												UUIDOID, row));
		state.version = DatumGetInt64(ColumnValue(state_columns, STATE_VERSION,
												  INT8OID, row));
		state.is_encrypted = DatumGetBool(ColumnValue(state_columns,
													  STATE_IS_ENCRYPTED,
													  BOOLOID, row));
	}
	return state;
}

/* Is it the same version of the same entry? */
static bool
same_state(const EntryState *a, const EntryState *b)
{
	return a->exists && b->exists && a->version == b->version &&
		a->is_encrypted == b->is_encrypted &&
		memcmp(&a->uuid, &b->uuid, sizeof(pg_uuid_t)) == 0;
}

/* Reports that if_version does not match what is there. */
static void
report_version_mismatch(const StatementArgs *args, int64 expected,
						const EntryState *state)
{
	char	   *entry = DescribeEntry(args->values, args->nulls);

	if (state->exists && expected == 0)
		ereport(ERROR,
				(errcode(ERRCODE_ES_VERSION),
				 errmsg("%s already exists, with version " INT64_FORMAT,
						entry, state->version)));
	else if (state->exists)
		ereport(ERROR,
				(errcode(ERRCODE_ES_VERSION),
				 errmsg("%s has version " INT64_FORMAT ", not " INT64_FORMAT,
						entry, state->version, expected),
				 errhint("Read the entry again and repeat the change on what it is now.")));
	ereport(ERROR,
			(errcode(ERRCODE_ES_VERSION),
			 errmsg("%s does not exist, so it has no version " INT64_FORMAT,
					entry, expected)));
}

/* Reports that no row was changed although the entry is as expected. */
static void
report_not_written(const StatementArgs *args)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s could not be written",
					DescribeEntry(args->values, args->nulls)),
			 errdetail("The statement that writes it changed no row."),
			 errhint("A trigger or a row-level security policy of table \"extension_storage\" prevents it.")));
}

/* The tries to write an entry, and what there was of it after the last one. */
typedef struct Tries
{
	int			ntries;
	EntryState	last;
} Tries;

/*
 * Notes that a try has changed nothing.  Raises an error if the entry is as it
 * was after the last try, because another try would change nothing either, or
 * if there were too many: a trigger may make another version each time.
 */
static void
note_try(Tries *tries, const EntryState *state, const StatementArgs *args)
{
	CHECK_FOR_INTERRUPTS();
	if (tries->ntries++ == MAX_TRIES || same_state(state, &tries->last))
		report_not_written(args);
	tries->last = *state;
}

/* Makes the result of a call that returns one entry. */
static Datum
make_entry(FunctionCallInfo fcinfo, Datum *row, bool *nulls)
{
	TupleDesc	tupdesc = lookup_rowtype_tupdesc(get_func_rettype(fcinfo->flinfo->fn_oid), -1);
	HeapTuple	tuple;

	CheckResult(tupdesc, entry_columns, NUM_ENTRY_COLUMNS);
	if (tupdesc->natts != NUM_ENTRY_COLUMNS)
		elog(ERROR, "type ext_storage_entry has %d columns instead of %d",
			 tupdesc->natts, NUM_ENTRY_COLUMNS);
	tuple = heap_form_tuple(tupdesc, row, nulls);
	ReleaseTupleDesc(tupdesc);
	return HeapTupleGetDatum(tuple);
}

/*
 * Locks the address of an entry that is to be made, until unlock_new_entry.
 *
 * A set that does not mention encryption must not insert a plaintext while
 * another session makes the same entry encrypted.  By the end of the statement
 * the row is in the unique index, where the other one finds it.  What is to be
 * plain whatever happens needs no lock.
 */
static LOCKTAG
lock_new_entry(const StatementArgs *args)
{
	LOCKTAG		tag;
	uint64		hash = 0;

	for (int i = 0; i < NUM_ADDRESS_PARAMS; i++)
	{
		uint64		part;

		if (args->nulls[i] == 'n')
			part = 0;
		else if (i == PARAM_USER_FK)
			part = DatumGetUInt64(hash_uint32_extended(DatumGetInt32(args->values[i]), 1));
		else
		{
			text	   *value = DatumGetTextPP(args->values[i]);

			part = DatumGetUInt64(hash_any_extended((unsigned char *) VARDATA_ANY(value),
													VARSIZE_ANY_EXHDR(value), 1));
		}
		hash = hash_combine64(hash, part);
	}
	/* classes 1 and 2 are those of pg_advisory_lock() */
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) (hash >> 32),
						 (uint32) hash, 3);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	return tag;
}

/* May any row be replaced, whatever it is like? */
static bool
expects_any_row(const StatementArgs *args)
{
	return args->nulls[SET_PARAM_EXPECTED_ENCRYPTED] == 'n' &&
		args->nulls[SET_PARAM_EXPECTED_VERSION] == 'n';
}

/*
 * Inserts an entry; false if there turns out to be one, whose state is then in
 * state.  The value is plain or sealed, as is_encrypted of args says.
 *
 * An update has found no row that is as expected.  If any row was expected,
 * there is none.  Otherwise it is looked for first: an INSERT ... ON CONFLICT
 * that finds a row has used up an id and shown the value to BEFORE triggers
 * all the same.
 */
static bool
insert_entry(Connection *connection, StatementArgs *args, EntryState *state,
			 Datum *row, bool *nulls)
{
	bool		any_row = expects_any_row(args);
	bool		is_plain = any_row &&
	!DatumGetBool(args->values[SET_PARAM_IS_ENCRYPTED]);
	LOCKTAG		tag;
	bool		inserted = false;

	if (!is_plain)
		tag = lock_new_entry(args);
	*state = (EntryState)
	{
		0
	};
	if (!any_row)
		*state = get_state(connection, args);
	if (!state->exists)
	{
		int			shape = args->shape;
		pg_uuid_t	uuid;

		uuid_generate_random(uuid.data);
		StatementSet(args, SET_PARAM_UUID, UUIDOID, UUIDPGetDatum(&uuid));
		args->shape = 0;
		inserted = StatementFetch(connection, &insert_statement, args, false,
								  row, nulls);
		args->shape = shape;
		StatementSetNull(args, SET_PARAM_UUID);
		if (!inserted)
			*state = get_state(connection, args);
	}
	if (!is_plain)
		LockRelease(&tag, ExclusiveLock, false);
	return inserted;
}

/* Raises an error if a value is too large to be stored. */
static void
check_size(const StatementArgs *args, Size size)
{
	if (size > (Size) max_value_size)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("value of %s is too large",
						DescribeEntry(args->values, args->nulls)),
				 errdetail("It has %zu bytes, extension_storage.max_value_size allows %d.",
						   size, max_value_size),
				 err_generic_string(PG_DIAG_COLUMN_NAME, "value")));
}

/*
 * Stores a value, which is the plaintext, perhaps still toasted; row gets the
 * entry.  The other parameters are set, and QuotaPrepare has been called.
 *
 * An existing entry is updated, and a row is inserted only where there is
 * none: an INSERT ... ON CONFLICT would use up an id for each overwrite.
 *
 * Where is_encrypted is null, the value must be encrypted if the entry is.  So
 * the first try replaces only an entry that is not encrypted; where there is
 * another one, the next try encrypts the value and replaces that.
 */
static void
store_value(Connection *connection, StatementArgs *args, Datum value,
			Size size, Datum *row, bool *nulls)
{
	bool		keep_encryption = args->nulls[SET_PARAM_IS_ENCRYPTED] == 'n';
	bool		is_encrypted =
	DatumGetBool(args->values[SET_PARAM_IS_ENCRYPTED]);
	bytea	   *sealed = NULL;
	int64		expected = version_of(args, SET_PARAM_EXPECTED_VERSION);
	Tries		tries = {0};

	check_size(args, size);
	StatementSet(args, SET_PARAM_VALUE_SIZE, INT4OID,
				 Int32GetDatum((int32) size));
	for (;;)
	{
		EntryState	state;

		if (is_encrypted && sealed == NULL)
			sealed = seal_value(args, value);
		StatementSet(args, SET_PARAM_VALUE, BYTEAOID,
					 is_encrypted ? PointerGetDatum(sealed) : value);
		StatementSet(args, SET_PARAM_IS_ENCRYPTED, BOOLOID,
					 BoolGetDatum(is_encrypted));
		if (keep_encryption)
			StatementSet(args, SET_PARAM_EXPECTED_ENCRYPTED, BOOLOID,
						 BoolGetDatum(is_encrypted));

		if (expected != 0 &&
			StatementFetch(connection, expects_any_row(args) ?
						   &update_statement : &update_expected_statement,
						   args, false, row, nulls))
			break;
		if (expected <= 0 && insert_entry(connection, args, &state, row, nulls))
			break;
		if (expected > 0)
			state = get_state(connection, args);

		/* not as expected, or changed meanwhile: look, and try again */
		if (expected == 0 ? state.exists :
			expected > 0 && (!state.exists || state.version != expected))
			report_version_mismatch(args, expected, &state);
		if (keep_encryption && state.exists)
			is_encrypted = state.is_encrypted;
		note_try(&tries, &state, args);
	}
	if (sealed != NULL)
		pfree(sealed);
}

/* Takes value_type, which must be a MIME type. */
static void
value_type_param(StatementArgs *args, text *type, const char *name)
{
	CheckText(type, name, MAX_VALUE_TYPE_CHARS, true);
	if (!MimeTypeIsValid(VARDATA_ANY(type), VARSIZE_ANY_EXHDR(type)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is not a MIME type", name),
				 errdetail("A MIME type is ASCII text of the form type/subtype, with or without parameters, for example text/plain; charset=utf-8.")));
	StatementSet(args, SET_PARAM_VALUE_TYPE, TEXTOID, PointerGetDatum(type));
}

/* Stores the value of a call of set or set_json; returns the entry. */
static Datum
store_one(FunctionCallInfo fcinfo, StatementArgs *args, Datum value, Size size)
{
	Connection	connection;
	Datum		row[NUM_ENTRY_COLUMNS];
	bool		nulls[NUM_ENTRY_COLUMNS];

	check_size(args, size);
	RequireArgument(fcinfo, set_arguments, SET_ARG_VALUE_TYPE);
	value_type_param(args, PG_GETARG_TEXT_PP(SET_ARG_VALUE_TYPE), "value_type");
	TextParam(args, SET_PARAM_CATEGORY, fcinfo, set_arguments,
			  SET_ARG_CATEGORY);
	TextParam(args, SET_PARAM_DESCRIPTION, fcinfo, set_arguments,
			  SET_ARG_DESCRIPTION);
	ValueParam(args, SET_PARAM_IS_ENCRYPTED, fcinfo, set_arguments,
			   SET_ARG_IS_ENCRYPTED);
	ValueParam(args, SET_PARAM_ACTOR_FK, fcinfo, set_arguments,
			   SET_ARG_ACTOR_FK);
	version_param(args, SET_PARAM_EXPECTED_VERSION, fcinfo, set_arguments,
				  SET_ARG_IF_VERSION);
	StatementSet(args, SET_PARAM_NOW, TIMESTAMPOID,
				 TimestampGetDatum(GetCurrentTimestamp()));

	StatementConnect(&connection, fcinfo, false);
	QuotaPrepare(&connection, args->values[PARAM_EXTENSION_ID]);
	store_value(&connection, args, value, size, row, nulls);
	SPI_finish();
	return make_entry(fcinfo, row, nulls);
}

/* Starts a call of set or set_json. */
static void
set_params_of(StatementArgs *args, FunctionCallInfo fcinfo)
{
	StatementArgsInit(args);
	AddressParams(args, fcinfo, set_arguments, &set_address);
	RequireArgument(fcinfo, set_arguments, SET_ARG_VALUE);
}

/*
 * ext_storage_set(extension_id text, key text, value bytea, value_type text,
 *				   user_fk integer, resource_type text, resource_uuid text,
 *				   category text, description text, is_encrypted boolean,
 *				   actor_fk integer, if_version bigint)
 *		returns ext_storage_entry
 *
 * Makes an entry, or replaces its value, type, category and description.
 */
Datum
ext_storage_set(PG_FUNCTION_ARGS)
{
	ErrorContextCallback hidden;
	StatementArgs args;
	Datum		value;
	Datum		result;

	HideStatementBegin(&hidden);
	CheckArguments(fcinfo, set_arguments, NUM_SET_ARGS);
	set_params_of(&args, fcinfo);
	value = ArgumentValue(fcinfo, set_arguments, SET_ARG_VALUE, BYTEAOID);
	result = store_one(fcinfo, &args, value,
					   toast_raw_datum_size(value) - VARHDRSZ);
	HideStatementEnd(&hidden);
	PG_RETURN_DATUM(result);
}

/*
 * ext_storage_set_json(..., value jsonb, ...) returns ext_storage_entry
 *		The same with the UTF-8 text of a JSON value.
 */
Datum
ext_storage_set_json(PG_FUNCTION_ARGS)
{
	ErrorContextCallback hidden;
	StatementArgs args;
	Jsonb	   *json;
	char	   *text;
	size_t		len;
	Datum		result;

	HideStatementBegin(&hidden);
	CheckArguments(fcinfo, set_json_arguments, NUM_SET_ARGS);
	set_params_of(&args, fcinfo);
	json = DatumGetJsonbP(ArgumentValue(fcinfo, set_json_arguments,
										SET_ARG_VALUE, JSONBOID));
	text = JsonbToCString(NULL, &json->root, VARSIZE(json));
	text = ConvertUtf8(text, strlen(text), false);
	if (text == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
				 errmsg("value of %s cannot be converted to UTF-8",
						DescribeEntry(args.values, args.nulls))));
	len = strlen(text);
	result = store_one(fcinfo, &args,
					   PointerGetDatum(cstring_to_text_with_len(text, len)),
					   len);
	HideStatementEnd(&hidden);
	PG_RETURN_DATUM(result);
}

/*
 * Deletes the entry that the parameters address; returns its uuid, or a null
 * pointer if there is none.  The version among them is the one that it must
 * have.
 */
static Datum
delete_entry(Connection *connection, const StatementArgs *args)
{
	int64		expected = version_of(args, DELETE_PARAM_EXPECTED_VERSION);
	Tries		tries = {0};

	for (;;)
	{
		EntryState	state;
		Datum		row[NUM_GONE_COLUMNS];
		bool		nulls[NUM_GONE_COLUMNS];

		if (StatementFetch(connection, &delete_statement, args, false, row,
						   nulls))
			return ColumnValue(gone_columns, GONE_UUID, UUIDOID, row);
		state = get_state(connection, args);
		if (expected >= 0 && state.version != expected)
			report_version_mismatch(args, expected, &state);
		if (!state.exists)
			return PointerGetDatum(NULL);
		note_try(&tries, &state, args);
	}
}

/* An element of the arrays of set_many or delete_many, to be sorted by key. */
typedef struct ManyItem
{
	text	   *key;
	int			place;			/* in the arrays */
} ManyItem;

static int
compare_items(const void *a, const void *b)
{
	return CompareTexts(((const ManyItem *) a)->key,
						((const ManyItem *) b)->key);
}

/*
 * Sorts keys by their bytes: two calls that write the same entries lock them in
 * the same order, and so never wait for each other.  No key may come twice.
 */
static ManyItem *
sort_keys(Datum *keys, int nkeys)
{
	ManyItem   *items = palloc(nkeys * sizeof(ManyItem));

	for (int i = 0; i < nkeys; i++)
	{
		items[i].key = DatumGetTextPP(keys[i]);
		items[i].place = i;
	}
	qsort(items, nkeys, sizeof(ManyItem), compare_items);
	for (int i = 1; i < nkeys; i++)
		if (compare_items(&items[i - 1], &items[i]) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("key \"%s\" is given twice",
							text_to_cstring(items[i].key))));
	return items;
}

/* An array argument with one element for each key, or no elements. */
typedef struct ManyArray
{
	Oid			type;
	Datum	   *elements;
	bool	   *nulls;			/* NULL if the argument is null */
} ManyArray;

static ManyArray
many_array(FunctionCallInfo fcinfo, const ArgumentInfo *arguments, int argno,
		   Oid type, int nkeys)
{
	ManyArray	array = {.type = type};
	int			nelements = ArrayArgument(fcinfo, arguments, argno, type,
										  &array.elements, &array.nulls);

	if (nelements >= 0 && nelements != nkeys)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s has %d elements, but keys has %d",
						arguments[argno].name, nelements, nkeys)));
	return array;
}

/* Sets a parameter to an element; to null where there is none. */
static void
many_param(StatementArgs *args, int param, const ManyArray *array, int place)
{
	StatementSetNull(args, param);
	if (array->nulls != NULL && !array->nulls[place])
		StatementSet(args, param, array->type, array->elements[place]);
}

/* The same with a text, which must not be too long. */
static void
many_text_param(StatementArgs *args, int param, const ManyArray *array,
				int place, const char *name, int max_chars)
{
	many_param(args, param, array, place);
	if (args->nulls[param] != 'n')
		CheckText(DatumGetTextPP(args->values[param]),
				  psprintf("%s[%d]", name, place + 1), max_chars, false);
}

/* The same with a version, which must not be negative. */
static void
many_version_param(StatementArgs *args, int param, const ManyArray *array,
				   int place)
{
	many_param(args, param, array, place);
	if (args->nulls[param] != 'n' && version_of(args, param) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("if_versions[%d] must not be negative", place + 1)));
}

/* The arrays of a call of set_many. */
typedef struct SetArrays
{
	int			nkeys;
	Datum	   *keys;
	ManyArray	values;
	ManyArray	value_types;
	ManyArray	categories;
	ManyArray	descriptions;
	ManyArray	is_encrypted;
	ManyArray	versions;
} SetArrays;

/* Takes the arrays, of one length, and checks that there is each value. */
static void
take_set_arrays(SetArrays *arrays, FunctionCallInfo fcinfo)
{
	int			nkeys = KeysArgument(fcinfo, set_many_arguments,
									 SET_MANY_ARG_KEYS, &arrays->keys);

	RequireArgument(fcinfo, set_many_arguments, SET_MANY_ARG_VALUES);
	arrays->nkeys = nkeys;
	arrays->values = many_array(fcinfo, set_many_arguments,
								SET_MANY_ARG_VALUES, BYTEAOID, nkeys);
	arrays->value_types = many_array(fcinfo, set_many_arguments,
									 SET_MANY_ARG_VALUE_TYPES, TEXTOID, nkeys);
	arrays->categories = many_array(fcinfo, set_many_arguments,
									SET_MANY_ARG_CATEGORIES, TEXTOID, nkeys);
	arrays->descriptions = many_array(fcinfo, set_many_arguments,
									  SET_MANY_ARG_DESCRIPTIONS, TEXTOID,
									  nkeys);
	arrays->is_encrypted = many_array(fcinfo, set_many_arguments,
									  SET_MANY_ARG_IS_ENCRYPTED, BOOLOID,
									  nkeys);
	arrays->versions = many_array(fcinfo, set_many_arguments,
								  SET_MANY_ARG_IF_VERSIONS, INT8OID, nkeys);
	for (int i = 0; i < nkeys; i++)
		if (arrays->values.nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("new_values[%d] must not be null", i + 1)));
}

/* Sets what the arrays say of one entry, but for its value. */
static void
set_array_params(StatementArgs *args, const SetArrays *arrays, int place,
				 text *default_type)
{
	const ManyArray *types = &arrays->value_types;

	value_type_param(args, types->nulls == NULL || types->nulls[place] ?
					 default_type : DatumGetTextPP(types->elements[place]),
					 psprintf("value_types[%d]", place + 1));
	many_text_param(args, SET_PARAM_CATEGORY, &arrays->categories, place,
					"categories", MAX_CATEGORY_CHARS);
	many_text_param(args, SET_PARAM_DESCRIPTION, &arrays->descriptions, place,
					"descriptions", MAX_DESCRIPTION_CHARS);
	many_param(args, SET_PARAM_IS_ENCRYPTED, &arrays->is_encrypted, place);
	StatementSetNull(args, SET_PARAM_EXPECTED_ENCRYPTED);
	many_version_param(args, SET_PARAM_EXPECTED_VERSION, &arrays->versions,
					   place);
}

/* How many entries set_many writes together, and bytes of their values. */
#define SET_BATCH_ROWS 100
#define SET_BATCH_BYTES (1024 * 1024)

/* An entry that set_many has locked. */
typedef struct LockedEntry
{
	int64		id;
	EntryState	state;
	StatementArgs args;			/* that set would write it with */
	int			place;			/* in the arrays of the call */
	bool		is_written;
} LockedEntry;

/* A call of set_many. */
typedef struct SetMany
{
	Connection *connection;
	StatementArgs *args;
	StatementArgs *batch_args;
	const SetArrays *arrays;
	const ManyItem *items;
	text	   *default_type;
	LockedEntry *locked;		/* of a batch, by key, then by id */
	int			nlocked;
	Datum		(*rows)[NUM_ENTRY_COLUMNS];
	bool		(*nulls)[NUM_ENTRY_COLUMNS];
} SetMany;

/* Bytes of the value at a place of the arrays. */
static Size
size_at(const SetMany *many, int place)
{
	return toast_raw_datum_size(many->arrays->values.elements[place]) -
		VARHDRSZ;
}

/* Sets the parameters of one entry, but for its value. */
static void
set_item_params(const SetMany *many, const ManyItem *item)
{
	StatementSet(many->args, PARAM_KEY, TEXTOID, PointerGetDatum(item->key));
	set_array_params(many->args, many->arrays, item->place,
					 many->default_type);
}

/* Notes an entry that is locked; ends the statement at a key that has none. */
static bool
take_locked(TupleTableSlot *slot, void *state)
{
	SetMany    *many = state;
	const Datum *row = slot->tts_values;
	LockedEntry *locked = &many->locked[many->nlocked];
	int64		place;

	for (int i = 0; i < NUM_LOCKED_COLUMNS; i++)
		if (slot->tts_isnull[i])
			return false;
	place = DatumGetInt64(ColumnValue(locked_columns, LOCKED_PLACE, INT8OID,
									  row));
	if (place != many->nlocked + 1)
	{
		/* a second row of a key, of which set writes all */
		if (place == many->nlocked)
			many->nlocked--;
		return false;
	}
	locked->id = DatumGetInt64(ColumnValue(locked_columns, LOCKED_ID, INT8OID,
										   row));
	locked->state.exists = true;
	locked->state.version = DatumGetInt64(ColumnValue(locked_columns,
													  LOCKED_VERSION, INT8OID,
													  row));
	locked->state.is_encrypted = DatumGetBool(ColumnValue(locked_columns,
														  LOCKED_IS_ENCRYPTED,
														  BOOLOID, row));
	locked->is_written = false;
	many->nlocked++;
	return true;
}

/*
 * Locks the entries of a batch in the order of their keys, as far as there are
 * such entries.
 */
static void
lock_batch(SetMany *many, const ManyItem *items, int nitems)
{
	Datum		keys[SET_BATCH_ROWS];

	for (int i = 0; i < nitems; i++)
		keys[i] = PointerGetDatum(items[i].key);
	StatementSet(many->batch_args, BATCH_PARAM_KEYS, TEXTARRAYOID,
				 MakeArray(keys, NULL, nitems, TEXTOID));
	many->nlocked = 0;
	StatementVisit(many->connection, &lock_many_statement, many->batch_args,
				   false, take_locked, many);
	StatementSetNull(many->batch_args, BATCH_PARAM_KEYS);
}

/* Makes the parameters that a locked entry is written with. */
static void
fill_locked(SetMany *many, LockedEntry *locked, const ManyItem *item)
{
	StatementArgs *args = many->args;
	Datum		value = many->arrays->values.elements[item->place];
	Size		size = size_at(many, item->place);
	int64		expected;
	bool		is_encrypted;

	set_item_params(many, item);
	check_size(args, size);
	expected = version_of(args, SET_PARAM_EXPECTED_VERSION);
	if (expected >= 0 && locked->state.version != expected)
		report_version_mismatch(args, expected, &locked->state);
	is_encrypted = args->nulls[SET_PARAM_IS_ENCRYPTED] == 'n' ?
		locked->state.is_encrypted :
		DatumGetBool(args->values[SET_PARAM_IS_ENCRYPTED]);

	locked->place = item->place;
	locked->args = *args;
	StatementSet(&locked->args, SET_PARAM_VALUE, BYTEAOID, is_encrypted ?
				 PointerGetDatum(seal_value(args, value)) : value);
	StatementSet(&locked->args, SET_PARAM_IS_ENCRYPTED, BOOLOID,
				 BoolGetDatum(is_encrypted));
	StatementSet(&locked->args, SET_PARAM_VALUE_SIZE, INT4OID,
				 Int32GetDatum((int32) size));
}

static int
compare_locked(const void *a, const void *b)
{
	int64		id_a = ((const LockedEntry *) a)->id;
	int64		id_b = ((const LockedEntry *) b)->id;

	return (id_a > id_b) - (id_a < id_b);
}

/* Notes what has become of a locked entry. */
static bool
take_written(TupleTableSlot *slot, void *state)
{
	SetMany    *many = state;
	LockedEntry sought = {.id = DatumGetInt64(ColumnValue(written_columns,
														  WRITTEN_ID, INT8OID,
														  slot->tts_values))};
	LockedEntry *locked = bsearch(&sought, many->locked, many->nlocked,
								  sizeof(LockedEntry), compare_locked);
	MemoryContext old_context;

	if (locked == NULL || locked->is_written)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("an entry was written that had not been locked"),
				 errhint("Two rows of table \"extension_storage\" have the same id, or it is a view whose ids change.")));
	old_context = MemoryContextSwitchTo(many->connection->context);
	StatementCopyRow(slot, NUM_ENTRY_COLUMNS, many->rows[locked->place],
					 many->nulls[locked->place]);
	MemoryContextSwitchTo(old_context);
	locked->is_written = true;
	return true;
}

/* Writes the locked entries. */
static void
write_locked(SetMany *many)
{
	static const struct
	{
		int			param;
		int			batch_param;
	}			columns[] = {
		{SET_PARAM_CATEGORY, BATCH_PARAM_CATEGORIES},
		{SET_PARAM_DESCRIPTION, BATCH_PARAM_DESCRIPTIONS},
		{SET_PARAM_VALUE, BATCH_PARAM_VALUES},
		{SET_PARAM_VALUE_TYPE, BATCH_PARAM_VALUE_TYPES},
		{SET_PARAM_IS_ENCRYPTED, BATCH_PARAM_ARE_ENCRYPTED},
		{SET_PARAM_VALUE_SIZE, BATCH_PARAM_VALUE_SIZES}
	};
	LockedEntry *locked = many->locked;
	int			nlocked = many->nlocked;
	Datum		elements[SET_BATCH_ROWS];
	bool		nulls[SET_BATCH_ROWS];

	qsort(locked, nlocked, sizeof(LockedEntry), compare_locked);
	for (int i = 0; i < nlocked; i++)
		elements[i] = Int64GetDatum(locked[i].id);
	StatementSet(many->batch_args, BATCH_PARAM_IDS, INT8ARRAYOID,
				 MakeArray(elements, NULL, nlocked, INT8OID));
	for (size_t c = 0; c < lengthof(columns); c++)
	{
		for (int i = 0; i < nlocked; i++)
		{
			elements[i] = locked[i].args.values[columns[c].param];
			nulls[i] = locked[i].args.nulls[columns[c].param] == 'n';
		}
		StatementSet(many->batch_args, columns[c].batch_param,
					 batch_params[columns[c].batch_param].type,
					 MakeArray(elements, nulls, nlocked,
							   set_params[columns[c].param].type));
	}
	StatementVisit(many->connection, &update_many_statement, many->batch_args,
				   false, take_written, many);
	for (int i = 0; i < nlocked; i++)
		if (!locked[i].is_written)
			report_not_written(&locked[i].args);
}

/*
 * Locks and writes the entries of a batch, in a memory context of their own;
 * returns how many.  It ends before the first key that has no entry.
 */
static int
store_batch(SetMany *many, const ManyItem *items, int nitems)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "batch of set_many",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);

	many->locked = palloc(nitems * sizeof(LockedEntry));
	lock_batch(many, items, nitems);
	for (int i = 0; i < many->nlocked; i++)
		fill_locked(many, &many->locked[i], &items[i]);
	if (many->nlocked > 0)
		write_locked(many);
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
	return many->nlocked;
}

/* Are the columns of an index those that an entry keeps as long as it is there? */
static bool
is_of_kept_columns(Relation index)
{
	static const char *const kept[] = {
		"id", "uuid", "extension_id", "user_fk", "resource_type",
		"resource_uuid", "key"
	};

	if (!heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL))
		return false;
	for (int i = 0; i < index->rd_index->indnkeyatts; i++)
	{
		/* null for an expression */
		const char *name = get_attname(index->rd_index->indrelid,
									   index->rd_index->indkey.values[i], true);
		bool		is_kept = false;

		for (size_t k = 0; name != NULL && k < lengthof(kept); k++)
			is_kept |= strcmp(name, kept[k]) == 0;
		if (!is_kept)
			return false;
	}
	return true;
}

/*
 * May entries be written together, by the order of their ids?  Not those of a
 * distributed table, whose rows no join can lock.  Nor where something of the
 * holder's could tell that from one entry after the other: a trigger, a policy,
 * a child table with triggers, a view, or another constraint on several entries.
 */
static bool
can_batch(Connection *connection)
{
	Relation	table = table_open(StatementTable(connection), NoLock);

	/* a copy, as an invalidation that catalogs are read with frees the other */
	TriggerDesc *triggers = CopyTriggerDesc(table->trigdesc);
	List	   *indexes;
	ListCell   *cell;
	bool		can;

	can = table->rd_rel->relkind == RELKIND_RELATION &&
		!table->rd_rel->relhassubclass && !table->rd_rel->relrowsecurity &&
		!StatementIsDistributed(connection);
	for (int i = 0; can && triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger    *trigger = &triggers->triggers[i];

		can = !TRIGGER_FOR_UPDATE(trigger->tgtype) ||
			trigger->tgenabled == TRIGGER_DISABLED || QuotaIsTrigger(trigger);
	}
	if (can)
	{
		indexes = RelationGetIndexList(table);
		foreach(cell, indexes)
		{
			Relation	index = index_open(lfirst_oid(cell), AccessShareLock);

			if ((index->rd_index->indisunique || index->rd_index->indisexclusion) &&
				!is_of_kept_columns(index))
				can = false;
			index_close(index, NoLock);
		}
		list_free(indexes);
	}
	FreeTriggerDesc(triggers);
	table_close(table, NoLock);
	return can;
}

/* How many of the items can be written together, 1 for a large one. */
static int
batch_len(const SetMany *many, const ManyItem *items, int nitems)
{
	Size		bytes = 0;
	int			len = 0;

	while (len < Min(nitems, SET_BATCH_ROWS))
	{
		bytes += size_at(many, items[len].place);
		if (len > 0 && bytes > SET_BATCH_BYTES)
			break;
		len++;
	}
	return len;
}

/*
 * Stores all entries of a call of set_many, in the order of their keys.
 *
 * Those that exist are written by one statement for many.  From the first key
 * on that has no entry they are stored one by one: whoever has locked an entry
 * must not then wait for one whose key comes before.
 */
static void
store_many(void *state)
{
	SetMany    *many = state;
	int			nkeys = many->arrays->nkeys;
	bool		by_batch = nkeys > 1 && can_batch(many->connection);
	int			nstored = 0;

	while (nstored < nkeys)
	{
		const ManyItem *items = &many->items[nstored];
		int			place = items->place;
		int			len = by_batch ? batch_len(many, items, nkeys - nstored) : 1;

		if (len > 1)
		{
			int			nwritten = store_batch(many, items, len);

			nstored += nwritten;
			by_batch = nwritten == len;
			continue;
		}
		set_item_params(many, items);
		store_value(many->connection, many->args,
					many->arrays->values.elements[place],
					size_at(many, place), many->rows[place],
					many->nulls[place]);
		nstored++;
	}
}

/*
 * ext_storage_set_many(extension_id text, keys text[], new_values bytea[],
 *						value_types text[], user_fk integer,
 *						resource_type text, resource_uuid text,
 *						categories text[], descriptions text[],
 *						is_encrypted boolean[], actor_fk integer,
 *						if_versions bigint[])
 *		returns setof ext_storage_entry
 *
 * Makes or replaces several entries of a scope, all or none, each as set does;
 * returns them in the order of the keys.
 */
Datum
ext_storage_set_many(PG_FUNCTION_ARGS)
{
	ErrorContextCallback hidden;
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Connection	connection;
	StatementArgs args;
	StatementArgs batch_args;
	SetArrays	arrays;
	SetMany		many = {
		.connection = &connection,
		.args = &args,
		.batch_args = &batch_args,
		.arrays = &arrays
	};

	HideStatementBegin(&hidden);
	CheckArguments(fcinfo, set_many_arguments, NUM_SET_MANY_ARGS);
	StatementArgsInit(&args);
	AddressParams(&args, fcinfo, set_many_arguments, &set_many_address);
	take_set_arrays(&arrays, fcinfo);
	ValueParam(&args, SET_PARAM_ACTOR_FK, fcinfo, set_many_arguments,
			   SET_MANY_ARG_ACTOR_FK);
	StatementSet(&args, SET_PARAM_NOW, TIMESTAMPOID,
				 TimestampGetDatum(GetCurrentTimestamp()));
	StatementArgsInit(&batch_args);
	AddressParams(&batch_args, fcinfo, set_many_arguments, &set_many_address);
	ValueParam(&batch_args, BATCH_PARAM_ACTOR_FK, fcinfo, set_many_arguments,
			   SET_MANY_ARG_ACTOR_FK);
	StatementSet(&batch_args, BATCH_PARAM_NOW, TIMESTAMPOID,
				 args.values[SET_PARAM_NOW]);
	many.items = sort_keys(arrays.keys, arrays.nkeys);
	many.default_type = cstring_to_text("application/json");
	many.rows = palloc(arrays.nkeys * sizeof(*many.rows));
	many.nulls = palloc(arrays.nkeys * sizeof(*many.nulls));

	InitMaterializedSRF(fcinfo, 0);
	CheckResult(rsinfo->setDesc, entry_columns, NUM_ENTRY_COLUMNS);
	StatementConnect(&connection, fcinfo, false);
	QuotaPrepare(&connection, args.values[PARAM_EXTENSION_ID]);
	QuotaCheckAtEnd(&connection, args.values[PARAM_EXTENSION_ID], store_many,
					&many);
	SPI_finish();
	for (int i = 0; i < arrays.nkeys; i++)
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc,
							 many.rows[i], many.nulls[i]);
	HideStatementEnd(&hidden);
	return (Datum) 0;
}

/* A rename that StatementTry tries. */
typedef struct Rename
{
	Connection *connection;
	const StatementArgs *args;
	Datum	   *row;
	bool	   *nulls;
	bool		is_done;
} Rename;

static void
try_rename(void *state)
{
	Rename	   *rename = state;

	rename->is_done = StatementFetch(rename->connection, &rename_statement,
									 rename->args, false, rename->row,
									 rename->nulls);
}

/*
 * Raises an error if there is an entry of the new key.
 *
 * If the index has refused one, it may have been made since the snapshot that
 * the transaction keeps, and then the error is the one of INSERT ... ON CONFLICT,
 * which set gets.  Not so for a row that no snapshot shows the caller: the same
 * would happen whenever the transaction is repeated.
 */
static void
require_no_entry(Connection *connection, const StatementArgs *args,
				 bool is_refused)
{
	Datum		row[NUM_STATE_COLUMNS];
	bool		nulls[NUM_STATE_COLUMNS];
	bool		is_newer;

	if (get_state(connection, args).exists)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("%s already exists",
						DescribeEntry(args->values, args->nulls))));
	if (!is_refused || !IsolationUsesXactSnapshot())
		return;
	PushActiveSnapshot(GetLatestSnapshot());
	is_newer = StatementFetch(connection, &get_state_statement, args, true,
							  row, nulls);
	PopActiveSnapshot();
	if (is_newer)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update"),
				 errdetail("Another transaction has made %s since this one took its snapshot.",
						   DescribeEntry(args->values, args->nulls)),
				 errhint("Repeat the transaction.")));
}

/*
 * Gives the entry that the parameters address their new key; row gets the
 * entry.  Returns false if there is none.
 */
static bool
rename_entry(Connection *connection, const StatementArgs *args, Datum *row,
			 bool *nulls)
{
	int64		expected = version_of(args, RENAME_PARAM_EXPECTED_VERSION);
	Rename		rename = {
		.connection = connection,
		.args = args,
		.row = row,
		.nulls = nulls
	};
	StatementArgs new_args = *args;
	Tries		tries = {0};
	ErrorData  *error = NULL;

	StatementSet(&new_args, PARAM_KEY, TEXTOID,
				 args->values[RENAME_PARAM_NEW_KEY]);
	for (;;)
	{
		EntryState	state;

		require_no_entry(connection, &new_args, error != NULL);
		if (error != NULL)
			ReThrowError(error);
		/* another session may make an entry of that key meanwhile */
		error = StatementTry(try_rename, &rename);
		if (error != NULL && error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION)
			continue;
		if (error != NULL)
			ReThrowError(error);
		if (rename.is_done)
			return true;
		state = get_state(connection, args);
		if (expected >= 0 && state.version != expected)
			report_version_mismatch(args, expected, &state);
		if (!state.exists)
			return false;
		note_try(&tries, &state, args);
	}
}

/*
 * ext_storage_rename(extension_id text, key text, new_key text,
 *					  user_fk integer, resource_type text, resource_uuid text,
 *					  if_version bigint, actor_fk integer)
 *		returns ext_storage_entry
 *
 * Gives an entry another key in its scope; NULL if there is no such entry.
 */
Datum
ext_storage_rename(PG_FUNCTION_ARGS)
{
	ErrorContextCallback hidden;
	Connection	connection;
	StatementArgs args;
	Datum		row[NUM_ENTRY_COLUMNS];
	bool		nulls[NUM_ENTRY_COLUMNS];
	bool		renamed;

	HideStatementBegin(&hidden);
	CheckArguments(fcinfo, rename_arguments, NUM_RENAME_ARGS);
	StatementArgsInit(&args);
	AddressParams(&args, fcinfo, rename_arguments, &rename_address);
	TextParam(&args, RENAME_PARAM_NEW_KEY, fcinfo, rename_arguments,
			  RENAME_ARG_NEW_KEY);
	version_param(&args, RENAME_PARAM_EXPECTED_VERSION, fcinfo,
				  rename_arguments, RENAME_ARG_IF_VERSION);
	ValueParam(&args, RENAME_PARAM_ACTOR_FK, fcinfo, rename_arguments,
			   RENAME_ARG_ACTOR_FK);
	StatementSet(&args, RENAME_PARAM_NOW, TIMESTAMPOID,
				 TimestampGetDatum(GetCurrentTimestamp()));

	StatementConnect(&connection, fcinfo, false);
	QuotaPrepare(&connection, args.values[PARAM_EXTENSION_ID]);
	renamed = rename_entry(&connection, &args, row, nulls);
	SPI_finish();
	HideStatementEnd(&hidden);
	if (!renamed)
		PG_RETURN_NULL();
	return make_entry(fcinfo, row, nulls);
}

/*
 * ext_storage_delete(extension_id text, key text, user_fk integer,
 *					  resource_type text, resource_uuid text,
 *					  if_version bigint) returns boolean
 *		Deletes an entry; true if there was one.
 */
Datum
ext_storage_delete(PG_FUNCTION_ARGS)
{
	Connection	connection;
	StatementArgs args;
	Datum		uuid;

	CheckArguments(fcinfo, delete_arguments, NUM_DELETE_ARGS);
	StatementArgsInit(&args);
	AddressParams(&args, fcinfo, delete_arguments, &entry_address);
	version_param(&args, DELETE_PARAM_EXPECTED_VERSION, fcinfo,
				  delete_arguments, DELETE_ARG_IF_VERSION);

	StatementConnect(&connection, fcinfo, false);
	QuotaPrepare(&connection, args.values[PARAM_EXTENSION_ID]);
	uuid = delete_entry(&connection, &args);
	SPI_finish();
	PG_RETURN_BOOL(DatumGetPointer(uuid) != NULL);
}

/*
 * ext_storage_delete_many(extension_id text, keys text[], user_fk integer,
 *						   resource_type text, resource_uuid text,
 *						   if_versions bigint[])
 *		returns table (key text, deleted boolean, uuid uuid)
 *
 * Deletes several entries of a scope, all or none, each as delete does;
 * returns for each key, in their order, whether there was one, and its uuid.
 */
Datum
ext_storage_delete_many(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Connection	connection;
	StatementArgs args;
	Datum	   *keys;
	ManyItem   *items;
	int			nkeys;
	ManyArray	versions;
	Datum	   *uuids;

	CheckArguments(fcinfo, delete_many_arguments, NUM_DELETE_ARGS);
	StatementArgsInit(&args);
	AddressParams(&args, fcinfo, delete_many_arguments, &keys_address);
	nkeys = KeysArgument(fcinfo, delete_many_arguments, ADDRESS_ARG_KEY, &keys);
	versions = many_array(fcinfo, delete_many_arguments, DELETE_ARG_IF_VERSION,
						  INT8OID, nkeys);
	items = sort_keys(keys, nkeys);
	uuids = palloc(nkeys * sizeof(Datum));

	InitMaterializedSRF(fcinfo, 0);
	CheckResult(rsinfo->setDesc, deleted_columns, NUM_DELETED_COLUMNS);
	StatementConnect(&connection, fcinfo, false);
	QuotaPrepare(&connection, args.values[PARAM_EXTENSION_ID]);
	for (int i = 0; i < nkeys; i++)
	{
		int			place = items[i].place;

		StatementSet(&args, PARAM_KEY, TEXTOID,
					 PointerGetDatum(items[i].key));
		many_version_param(&args, DELETE_PARAM_EXPECTED_VERSION, &versions,
						   place);
		uuids[place] = delete_entry(&connection, &args);
	}
	SPI_finish();
	for (int i = 0; i < nkeys; i++)
	{
		bool		deleted = DatumGetPointer(uuids[i]) != NULL;
		Datum		row[NUM_DELETED_COLUMNS] = {
			[DELETED_KEY] = keys[i],
			[DELETED_DELETED] = BoolGetDatum(deleted),
			[DELETED_UUID] = uuids[i]
		};
		bool		nulls[NUM_DELETED_COLUMNS] = {
			[DELETED_UUID] = !deleted
		};

		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row, nulls);
	}
	return (Datum) 0;
}

/*
 * ext_storage_delete_prefix(extension_id text, key_prefix text,
 *							 user_fk integer, resource_type text,
 *							 resource_uuid text) returns bigint
 *		Deletes the entries of a scope whose keys start with a prefix, which
 *		must not be empty; returns how many.
 */
Datum
ext_storage_delete_prefix(PG_FUNCTION_ARGS)
{
	Connection	connection;
	StatementArgs args;
	text	   *prefix;
	uint64		ndeleted;
	bool		kept;

	CheckArguments(fcinfo, delete_prefix_arguments, NUM_ADDRESS_ARGS);
	StatementArgsInit(&args);
	AddressParams(&args, fcinfo, delete_prefix_arguments, &keys_address);
	prefix = TextArgument(fcinfo, delete_prefix_arguments, ADDRESS_ARG_KEY);
	StatementSet(&args, PREFIX_PARAM_FIRST, TEXTOID, PointerGetDatum(prefix));
	StatementSet(&args, PREFIX_PARAM_LAST, TEXTOID, PrefixLast(prefix));
	args.shape |= SHAPE_PREFIX;

	StatementConnect(&connection, fcinfo, false);
	QuotaPrepare(&connection, args.values[PARAM_EXTENSION_ID]);
	ndeleted = StatementRunForAll(&connection, &delete_prefix_statement,
								  &find_prefix_statement, &args, false, &kept);
	if (kept)
		ReportEntriesKept();
	SPI_finish();
	PG_RETURN_INT64((int64) ndeleted);
}
