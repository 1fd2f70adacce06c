/*-------------------------------------------------------------------------
 *
 * storage.c
 *	  Set, get, delete, list and count entries.
 *
 * Values are encrypted before a row exists.  Every statement goes through SPI
 * with the caller's rights.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <uuid/uuid.h>

#include "access/detoast.h"
#include "access/htup_details.h"
#include "common/hashfn.h"
#include "entry.h"
#include "errors.h"
#include "funcapi.h"
#include "keyring.h"
#include "mb/pg_wchar.h"
#include "mime.h"
#include "miscadmin.h"
#include "quota.h"
#include "statement.h"
#include "storage.h"
#include "storage/lock.h"
#include "token.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"
#include "utils/uuid.h"

#define MAX_VALUE_SIZE 16777215

/* How often set looks for an entry that is there and is not, before it ends. */
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

static const ArgumentInfo set_arguments[] = {
	[SET_ARG_EXTENSION_ID] = {"extension_id", MAX_EXTENSION_ID_CHARS, true},
	[SET_ARG_KEY] = {"key", MAX_KEY_CHARS, true},
	[SET_ARG_VALUE] = {"value", 0, true},
	[SET_ARG_VALUE_TYPE] = {"value_type", MAX_VALUE_TYPE_CHARS, true},
	[SET_ARG_USER_FK] = {"user_fk", 0, false},
	[SET_ARG_RESOURCE_TYPE] = {"resource_type", MAX_RESOURCE_TYPE_CHARS, true},
	[SET_ARG_RESOURCE_UUID] = {"resource_uuid", MAX_RESOURCE_UUID_CHARS, true},
	[SET_ARG_CATEGORY] = {"category", MAX_CATEGORY_CHARS, false},
	[SET_ARG_DESCRIPTION] = {"description", MAX_DESCRIPTION_CHARS, false},
	[SET_ARG_IS_ENCRYPTED] = {"is_encrypted", 0, false},
	[SET_ARG_ACTOR_FK] = {"actor_fk", 0, false},
	[SET_ARG_IF_VERSION] = {"if_version", 0, false}
};
static const AddressArguments set_address = {
	{
		[PARAM_EXTENSION_ID] = SET_ARG_EXTENSION_ID,
		[PARAM_KEY] = SET_ARG_KEY,
		[PARAM_USER_FK] = SET_ARG_USER_FK,
		[PARAM_RESOURCE_TYPE] = SET_ARG_RESOURCE_TYPE,
		[PARAM_RESOURCE_UUID] = SET_ARG_RESOURCE_UUID
	}
};

/* The arguments of get, get_json and get_entry, and of delete. */
typedef enum KeyArgument
{
	KEY_ARG_EXTENSION_ID,
	KEY_ARG_KEY,
	KEY_ARG_USER_FK,
	KEY_ARG_RESOURCE_TYPE,
	KEY_ARG_RESOURCE_UUID,
	NUM_GET_ARGS,
	DELETE_ARG_IF_VERSION = NUM_GET_ARGS,
	NUM_DELETE_ARGS
} KeyArgument;

static const ArgumentInfo key_arguments[] = {
	[KEY_ARG_EXTENSION_ID] = {"extension_id", MAX_EXTENSION_ID_CHARS, true},
	[KEY_ARG_KEY] = {"key", MAX_KEY_CHARS, true},
	[KEY_ARG_USER_FK] = {"user_fk", 0, false},
	[KEY_ARG_RESOURCE_TYPE] = {"resource_type", MAX_RESOURCE_TYPE_CHARS, true},
	[KEY_ARG_RESOURCE_UUID] = {"resource_uuid", MAX_RESOURCE_UUID_CHARS, true},
	[DELETE_ARG_IF_VERSION] = {"if_version", 0, false}
};
static const AddressArguments key_address = {
	{
		[PARAM_EXTENSION_ID] = KEY_ARG_EXTENSION_ID,
		[PARAM_KEY] = KEY_ARG_KEY,
		[PARAM_USER_FK] = KEY_ARG_USER_FK,
		[PARAM_RESOURCE_TYPE] = KEY_ARG_RESOURCE_TYPE,
		[PARAM_RESOURCE_UUID] = KEY_ARG_RESOURCE_UUID
	}
};

/* The arguments of list. */
typedef enum ListArgument
{
	LIST_ARG_EXTENSION_ID,
	LIST_ARG_USER_FK,
	LIST_ARG_RESOURCE_TYPE,
	LIST_ARG_RESOURCE_UUID,
	LIST_ARG_CATEGORY,
	LIST_ARG_PAGE,
	LIST_ARG_PAGE_SIZE,
	LIST_ARG_KEY_PREFIX,
	LIST_ARG_AFTER_KEY,
	NUM_LIST_ARGS
} ListArgument;

static const ArgumentInfo list_arguments[] = {
	[LIST_ARG_EXTENSION_ID] = {"extension_id", MAX_EXTENSION_ID_CHARS, true},
	[LIST_ARG_USER_FK] = {"user_fk", 0, false},
	[LIST_ARG_RESOURCE_TYPE] = {"resource_type", MAX_RESOURCE_TYPE_CHARS, true},
	[LIST_ARG_RESOURCE_UUID] = {"resource_uuid", MAX_RESOURCE_UUID_CHARS, true},
	[LIST_ARG_CATEGORY] = {"category", MAX_CATEGORY_CHARS, false},
	[LIST_ARG_PAGE] = {"page", 0, false},
	[LIST_ARG_PAGE_SIZE] = {"page_size", 0, false},
	[LIST_ARG_KEY_PREFIX] = {"key_prefix", MAX_KEY_CHARS, false},
	[LIST_ARG_AFTER_KEY] = {"after_key", MAX_KEY_CHARS, false}
};

/* The arguments of count. */
typedef enum CountArgument
{
	COUNT_ARG_EXTENSION_ID,
	COUNT_ARG_USER_FK,
	COUNT_ARG_RESOURCE_TYPE,
	COUNT_ARG_RESOURCE_UUID,
	COUNT_ARG_CATEGORY,
	COUNT_ARG_KEY_PREFIX,
	NUM_COUNT_ARGS
} CountArgument;

static const ArgumentInfo count_arguments[] = {
	[COUNT_ARG_EXTENSION_ID] = {"extension_id", MAX_EXTENSION_ID_CHARS, true},
	[COUNT_ARG_USER_FK] = {"user_fk", 0, false},
	[COUNT_ARG_RESOURCE_TYPE] = {"resource_type", MAX_RESOURCE_TYPE_CHARS, true},
	[COUNT_ARG_RESOURCE_UUID] = {"resource_uuid", MAX_RESOURCE_UUID_CHARS, true},
	[COUNT_ARG_CATEGORY] = {"category", MAX_CATEGORY_CHARS, false},
	[COUNT_ARG_KEY_PREFIX] = {"key_prefix", MAX_KEY_CHARS, false}
};

/* Where list and count have the scope. */
static const AddressArguments scope_address = {
	{
		[PARAM_EXTENSION_ID] = LIST_ARG_EXTENSION_ID,
		[PARAM_KEY] = -1,
		[PARAM_USER_FK] = LIST_ARG_USER_FK,
		[PARAM_RESOURCE_TYPE] = LIST_ARG_RESOURCE_TYPE,
		[PARAM_RESOURCE_UUID] = LIST_ARG_RESOURCE_UUID
	}
};

StaticAssertDecl(COUNT_ARG_RESOURCE_UUID == (int) LIST_ARG_RESOURCE_UUID &&
				 COUNT_ARG_USER_FK == (int) LIST_ARG_USER_FK,
				 "list and count have the scope at the same place");

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

StaticAssertDecl(NUM_SET_PARAMS <= STATEMENT_MAX_PARAMS,
				 "set has too many parameters");

enum
{
	DELETE_PARAM_EXPECTED_VERSION = NUM_ADDRESS_PARAMS
};

static const StatementParam get_params[] = {ADDRESS_PARAMS};
static const StatementParam delete_params[] = {
	ADDRESS_PARAMS,
	[DELETE_PARAM_EXPECTED_VERSION] = {"expected_version", INT8OID}
};

/* What list and count add to the extension and scope. */
enum
{
	LIST_PARAM_CATEGORY = NUM_ADDRESS_PARAMS,
	LIST_PARAM_PREFIX_FIRST,
	LIST_PARAM_PREFIX_LAST,
	LIST_PARAM_LIMIT,
	LIST_PARAM_OFFSET
};

static const StatementParam list_params[] = {
	ADDRESS_PARAMS,
	[LIST_PARAM_CATEGORY] = {"category", TEXTOID},
	[LIST_PARAM_PREFIX_FIRST] = {"prefix_first", TEXTOID},
	[LIST_PARAM_PREFIX_LAST] = {"prefix_last", TEXTOID},
	[LIST_PARAM_LIMIT] = {"limit", INT8OID},
	[LIST_PARAM_OFFSET] = {"offset", INT8OID}
};

/* Further bits of a shape. */
#define SHAPE_CATEGORY 4		/* category = $category */
#define SHAPE_PREFIX 8			/* $prefix_first <= key <= $prefix_last */

StaticAssertDecl((SHAPE_USER | SHAPE_RESOURCE | SHAPE_CATEGORY | SHAPE_PREFIX) <
				 STATEMENT_MAX_SHAPES, "there are too many shapes");

/* An entry and its value. */
enum
{
	ENTRY_VALUE = NUM_ENTRY_COLUMNS,
	NUM_VALUE_ENTRY_COLUMNS
};

static const StatementColumn entry_columns[] = {ENTRY_COLUMNS};
static const StatementColumn value_entry_columns[] = {
	ENTRY_COLUMNS,
	[ENTRY_VALUE] = {"value", BYTEAOID, NOT_NULL}
};

enum
{
	VALUE_VALUE,
	VALUE_IS_ENCRYPTED,
	NUM_VALUE_COLUMNS
};

static const StatementColumn value_columns[] = {
	[VALUE_VALUE] = {"value", BYTEAOID, NOT_NULL},
	[VALUE_IS_ENCRYPTED] = {"is_encrypted", BOOLOID, NOT_NULL}
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

static const StatementColumn count_columns[] = {{"count", INT8OID, NOT_NULL}};

static bool expand_scope(StringInfo sql, const char *placeholder, int shape);

#define THE_ENTRY " WHERE @scope@ AND e.key" SQL_EQ "$key"

/* What the row that is to be replaced must look like. */
#define AS_EXPECTED \
	"($expected_encrypted IS NULL OR e.is_encrypted" SQL_EQ \
	"$expected_encrypted)" \
	" AND ($expected_version IS NULL OR e.version" SQL_EQ "$expected_version)"

static Statement get_statement = {
	.sql = "SELECT @columns@ FROM " SQL_TABLE THE_ENTRY,
	STATEMENT_PARAMS(get_params), STATEMENT_COLUMNS(value_columns),
	.expand = expand_scope, .by_index = true
};
static Statement get_entry_statement = {
	.sql = "SELECT @columns@ FROM " SQL_TABLE THE_ENTRY,
	STATEMENT_PARAMS(get_params), STATEMENT_COLUMNS(value_entry_columns),
	.expand = expand_scope, .by_index = true
};
static Statement get_state_statement = {
	.sql = "SELECT @columns@ FROM " SQL_TABLE THE_ENTRY,
	STATEMENT_PARAMS(get_params), STATEMENT_COLUMNS(state_columns),
	.expand = expand_scope, .by_index = true
};
static Statement insert_statement = {
	.sql = "INSERT INTO " SQL_TABLE
	" (extension_id, key, user_fk, resource_type, resource_uuid, uuid,"
	" category, description, value, value_type, is_encrypted,"
	" created_on, changed_on, created_by_fk, changed_by_fk, value_size)"
	" VALUES ($extension_id, $key, $user_fk, $resource_type, $resource_uuid,"
	" $uuid, $category, $description, $value, $value_type, $is_encrypted,"
	" $now, $now, $actor_fk, $actor_fk, $value_size)"
	" ON CONFLICT (extension_id, user_fk, resource_type, resource_uuid, key)"
	" DO NOTHING RETURNING @columns@",
	STATEMENT_PARAMS(set_params), STATEMENT_COLUMNS(entry_columns),
	.counted = true
};
static Statement update_statement = {
	.sql = "UPDATE " SQL_TABLE
	" SET category = $category, description = $description, value = $value,"
	" value_type = $value_type, is_encrypted = $is_encrypted,"
	" changed_on = $now, changed_by_fk = $actor_fk,"
	" value_size = $value_size, version = e.version" SQL_PLUS "1"
	THE_ENTRY " AND " AS_EXPECTED
	" RETURNING @columns@",
	STATEMENT_PARAMS(set_params), STATEMENT_COLUMNS(entry_columns),
	.expand = expand_scope, .by_index = true, .counted = true
};
static Statement delete_statement = {
	.sql = "DELETE FROM " SQL_TABLE THE_ENTRY
	" AND ($expected_version IS NULL OR e.version" SQL_EQ "$expected_version)",
	STATEMENT_PARAMS(delete_params),
	.expand = expand_scope, .by_index = true, .counted = true
};
static Statement list_statement = {
	.sql = "SELECT @columns@ FROM " SQL_TABLE
	" WHERE @scope@ AND e.key" SQL_GT "$key"
	" ORDER BY @order@ LIMIT $limit OFFSET $offset",
	STATEMENT_PARAMS(list_params), STATEMENT_COLUMNS(entry_columns),
	.expand = expand_scope, .by_index = true
};
static Statement count_statement = {
	.sql = "SELECT pg_catalog.count(*) FROM " SQL_TABLE " WHERE @scope@",
	STATEMENT_PARAMS(list_params), STATEMENT_COLUMNS(count_columns),
	.expand = expand_scope, .by_index = true
};

static int	max_value_size = MAX_VALUE_SIZE;

PG_FUNCTION_INFO_V1(ext_storage_set);
PG_FUNCTION_INFO_V1(ext_storage_set_json);
PG_FUNCTION_INFO_V1(ext_storage_get);
PG_FUNCTION_INFO_V1(ext_storage_get_json);
PG_FUNCTION_INFO_V1(ext_storage_get_entry);
PG_FUNCTION_INFO_V1(ext_storage_delete);
PG_FUNCTION_INFO_V1(ext_storage_list);
PG_FUNCTION_INFO_V1(ext_storage_count);

/*
 * StorageInit
 *		Defines the settings of this module.
 */
void
StorageInit(void)
{
	DefineCustomIntVariable("extension_storage.max_value_size",
							"Largest value that can be stored, in bytes before encryption.",
							NULL,
							&max_value_size,
							MAX_VALUE_SIZE, 0, MAX_VALUE_SIZE,
							PGC_SUSET,
							0,
							NULL, NULL, NULL);
}

/* Appends the condition on the scope, or the order in it by index. */
static bool
expand_scope(StringInfo sql, const char *placeholder, int shape)
{
	if (strcmp(placeholder, "order") == 0)
	{
		appendStringInfoString(sql, (shape & SHAPE_CATEGORY) ?
							   "e.extension_id, e.user_fk, e.resource_uuid,"
							   " e.category, e.key" :
							   "e.extension_id, e.user_fk, e.resource_type,"
							   " e.resource_uuid, e.key");
		return true;
	}
	if (strcmp(placeholder, "scope") != 0)
		return false;

	appendStringInfoString(sql, "e.extension_id" SQL_EQ "$extension_id");
	appendStringInfoString(sql, (shape & SHAPE_USER) ?
						   " AND e.user_fk" SQL_EQ "$user_fk" :
						   " AND e.user_fk IS NULL");
	if (shape & SHAPE_RESOURCE)
		appendStringInfoString(sql,
							   " AND e.resource_type" SQL_EQ "$resource_type"
							   " AND e.resource_uuid" SQL_EQ "$resource_uuid");
	else
		appendStringInfoString(sql, " AND e.resource_uuid IS NULL");

	/* the index by category has no type, which is null with the uuid */
	if ((shape & (SHAPE_RESOURCE | SHAPE_CATEGORY)) == 0)
		appendStringInfoString(sql, " AND e.resource_type IS NULL");
	if (shape & SHAPE_CATEGORY)
		appendStringInfoString(sql, " AND e.category" SQL_EQ "$category");
	if (shape & SHAPE_PREFIX)
		appendStringInfoString(sql, " AND e.key" SQL_GE "$prefix_first"
							   " AND e.key" SQL_LE "$prefix_last");
	return true;
}

/* Takes if_version; null stands for any version. */
static void
version_param(StatementArgs *args, int param, FunctionCallInfo fcinfo,
			  int argno)
{
	if (PG_ARGISNULL(argno))
		return;
	if (PG_GETARG_INT64(argno) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("if_version must not be negative")));
	StatementSet(args, param, PG_GETARG_DATUM(argno));
}

/* Raises an error unless there is a key; needed says what one is needed for. */
static void
require_key(const StatementArgs *args, bool there_is, const char *needed)
{
	if (!there_is)
		ereport(ERROR,
				(errcode(ERRCODE_ES_NO_KEY),
				 errmsg("no encryption key is configured"),
				 errdetail("The value of %s %s encrypted.",
						   DescribeEntry(args->values, args->nulls), needed),
				 errhint("Set extension_storage.encryption_keys_file.")));
}

/* Decrypts a stored value, in memory of our own, in place. */
static bytea *
open_value(const StatementArgs *args, Datum value)
{
	bytea	   *token = DatumGetByteaP(value);
	bytea	   *opened;

	require_key(args, KeyringCount() > 0, "is");
	opened = KeyringOpen(token);
	if (opened == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_ES_UNREADABLE),
				 errmsg("value of %s cannot be decrypted",
						DescribeEntry(args->values, args->nulls)),
				 errdetail("None of the configured keys reads the stored token."),
				 errhint("The token is damaged, or the key that made it is missing from the configured keys; ext_storage_verify() lists all such entries.")));
	return opened;
}

/* Encrypts a value, perhaps toasted, into the current memory context. */
static bytea *
seal_value(const StatementArgs *args, Datum value)
{
	bytea	   *plain = DatumGetByteaPP(value);
	bytea	   *sealed;

	require_key(args, KeyringEncrypts(), "is to be");
	sealed = KeyringSeal(VARDATA_ANY(plain), VARSIZE_ANY_EXHDR(plain),
						 FernetNow());
	if ((Pointer) plain != DatumGetPointer(value))
	{
		explicit_bzero(VARDATA_ANY(plain), VARSIZE_ANY_EXHDR(plain));
		pfree(plain);
	}
	return sealed;
}

/*
 * Fetches the value of the entry that the call is about, or NULL if there is
 * none.  A value that is not encrypted may be a pointer to its TOAST, as it is
 * in a plain SELECT.
 */
static struct varlena *
fetch_value(FunctionCallInfo fcinfo, const StatementArgs *args)
{
	Connection	connection;
	Datum		row[NUM_VALUE_COLUMNS];
	bool		nulls[NUM_VALUE_COLUMNS];
	bool		found;

	StatementConnect(&connection, fcinfo, false);
	found = StatementFetch(&connection, &get_statement, args, true, row, nulls);
	SPI_finish();
	if (!found)
		return NULL;
	return DatumGetBool(row[VALUE_IS_ENCRYPTED]) ?
		open_value(args, row[VALUE_VALUE]) :
		(struct varlena *) DatumGetPointer(row[VALUE_VALUE]);
}

/* Takes value_type. */
static void
value_type_param(StatementArgs *args, FunctionCallInfo fcinfo)
{
	text	   *type;

	TextParam(args, SET_PARAM_VALUE_TYPE, fcinfo, set_arguments,
			  SET_ARG_VALUE_TYPE);
	type = DatumGetTextPP(args->values[SET_PARAM_VALUE_TYPE]);
	if (!MimeTypeIsValid(VARDATA_ANY(type), VARSIZE_ANY_EXHDR(type)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("value_type is not a MIME type"),
				 errdetail("A MIME type is ASCII text of the form type/subtype, with or without parameters, for example text/plain; charset=utf-8.")));
}

/* What there is of an entry. */
typedef struct EntryState
{
	bool		exists;
	pg_uuid_t	uuid;
	int64		version;
	bool		is_encrypted;
} EntryState;

/* Looks up what there is of an entry by now. */
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
		state.uuid = *DatumGetUUIDP(row[STATE_UUID]);
		state.version = DatumGetInt64(row[STATE_VERSION]);
		state.is_encrypted = DatumGetBool(row[STATE_IS_ENCRYPTED]);
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
				 errmsg("%s exists already, with version " INT64_FORMAT,
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

/* Reports that a statement changes nothing, although there is nothing wrong. */
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

/* Makes the result of a call that returns one entry. */
static Datum
make_entry(FunctionCallInfo fcinfo, Datum *row, bool *nulls)
{
	TupleDesc	tupdesc = lookup_rowtype_tupdesc(get_func_rettype(fcinfo->flinfo->fn_oid), -1);
	HeapTuple	tuple;

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
 * the row is in the unique index, where the other one finds it.
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

/*
 * Inserts an entry; false if there turns out to be one, which state then says.
 * The value is plain or sealed, as is_encrypted of args says.
 */
static bool
insert_entry(Connection *connection, StatementArgs *args, EntryState *state,
			 Datum *row, bool *nulls)
{
	LOCKTAG		tag = lock_new_entry(args);
	bool		inserted = false;

	/* an insert that finds a row draws an id all the same: look first */
	*state = get_state(connection, args);
	if (!state->exists)
	{
		int			shape = args->shape;

		args->shape = 0;
		inserted = StatementFetch(connection, &insert_statement, args, false,
								  row, nulls);
		args->shape = shape;
		if (!inserted)
			*state = get_state(connection, args);
	}
	LockRelease(&tag, ExclusiveLock, false);
	return inserted;
}

/*
 * Stores a value: what set and set_json have in common.
 *
 * value is the plaintext as it is to be stored, perhaps still toasted, of size
 * bytes.
 *
 * An entry that is there is updated, and only where there is none a row is
 * inserted: an INSERT ... ON CONFLICT would use up an id for each overwrite.
 *
 * Where is_encrypted is null, the value must be encrypted if the entry is.  So
 * the first try replaces only an entry that is not encrypted; where there is
 * another one, the next try encrypts the value and replaces that.
 */
static Datum
store_value(FunctionCallInfo fcinfo, StatementArgs *args, Datum value,
			Size size)
{
	Connection	connection;
	bool		keep_encryption = PG_ARGISNULL(SET_ARG_IS_ENCRYPTED);
	bool		is_encrypted = !keep_encryption &&
	PG_GETARG_BOOL(SET_ARG_IS_ENCRYPTED);
	bytea	   *sealed = NULL;
	int64		expected;
	EntryState	last = {0};
	pg_uuid_t  *uuid = palloc(sizeof(pg_uuid_t));
	Datum		row[NUM_ENTRY_COLUMNS];
	bool		nulls[NUM_ENTRY_COLUMNS];

	if (size > (Size) max_value_size)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("value of %s is too large",
						DescribeEntry(args->values, args->nulls)),
				 errdetail("It has %zu bytes, extension_storage.max_value_size allows %d.",
						   size, max_value_size)));

	value_type_param(args, fcinfo);
	TextParam(args, SET_PARAM_CATEGORY, fcinfo, set_arguments,
			  SET_ARG_CATEGORY);
	TextParam(args, SET_PARAM_DESCRIPTION, fcinfo, set_arguments,
			  SET_ARG_DESCRIPTION);
	if (!PG_ARGISNULL(SET_ARG_ACTOR_FK))
		StatementSet(args, SET_PARAM_ACTOR_FK,
					 PG_GETARG_DATUM(SET_ARG_ACTOR_FK));
	version_param(args, SET_PARAM_EXPECTED_VERSION, fcinfo,
				  SET_ARG_IF_VERSION);
	expected = args->nulls[SET_PARAM_EXPECTED_VERSION] == 'n' ? -1 :
		DatumGetInt64(args->values[SET_PARAM_EXPECTED_VERSION]);

	uuid_generate_random(uuid->data);
	StatementSet(args, SET_PARAM_UUID, UUIDPGetDatum(uuid));
	StatementSet(args, SET_PARAM_NOW, TimestampGetDatum(GetCurrentTimestamp()));
	StatementSet(args, SET_PARAM_VALUE_SIZE, Int32GetDatum((int32) size));

	StatementConnect(&connection, fcinfo, false);
	QuotaPrepare(&connection, args->values[PARAM_EXTENSION_ID]);
	for (int ntries = 0;; ntries++)
	{
		EntryState	state;

		CHECK_FOR_INTERRUPTS();
		if (is_encrypted && sealed == NULL)
			sealed = seal_value(args, value);
		StatementSet(args, SET_PARAM_VALUE,
					 is_encrypted ? PointerGetDatum(sealed) : value);
		StatementSet(args, SET_PARAM_IS_ENCRYPTED, BoolGetDatum(is_encrypted));
		if (keep_encryption)
			StatementSet(args, SET_PARAM_EXPECTED_ENCRYPTED,
						 BoolGetDatum(is_encrypted));

		if (expected != 0 &&
			StatementFetch(&connection, &update_statement, args, false, row,
						   nulls))
			break;
		if (expected <= 0 &&
			insert_entry(&connection, args, &state, row, nulls))
			break;
		if (expected > 0)
			state = get_state(&connection, args);

		/* not as expected, or changed meanwhile: look, and try again */
		if (expected == 0 ? state.exists :
			expected > 0 && (!state.exists || state.version != expected))
			report_version_mismatch(args, expected, &state);
		if (keep_encryption && state.exists)
			is_encrypted = state.is_encrypted;
		if (ntries == MAX_TRIES || same_state(&state, &last))
			report_not_written(args);
		last = state;
	}

	SPI_finish();
	return make_entry(fcinfo, row, nulls);
}

/* Starts a call of set or set_json. */
static void
set_params_of(StatementArgs *args, FunctionCallInfo fcinfo)
{
	CheckArguments(fcinfo, set_arguments, NUM_SET_ARGS);
	StatementArgsInit(args);
	AddressParams(args, fcinfo, set_arguments, &set_address);
	RequireArgument(fcinfo, set_arguments, SET_ARG_VALUE);
}

/*
 * Converts text from the database encoding to UTF-8 or back, with an error that
 * does not quote bytes of it.
 */
static char *
convert_json(char *text, size_t len, bool to_server)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *volatile converted = NULL;

	PG_TRY();
	{
		converted = to_server ?
			pg_any_to_server(text, (int) len, PG_UTF8) :
			pg_server_to_any(text, (int) len, PG_UTF8);
	}
	PG_CATCH();
	{
		if (ERRCODE_TO_CATEGORY(geterrcode()) != ERRCODE_DATA_EXCEPTION)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
				 errmsg("value cannot be converted between UTF-8 and the database encoding")));
	}
	PG_END_TRY();
	return converted;
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
	set_params_of(&args, fcinfo);
	value = PG_GETARG_DATUM(SET_ARG_VALUE);
	result = store_value(fcinfo, &args, value,
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
	set_params_of(&args, fcinfo);
	json = PG_GETARG_JSONB_P(SET_ARG_VALUE);
	text = JsonbToCString(NULL, &json->root, VARSIZE(json));
	text = convert_json(text, strlen(text), false);
	len = strlen(text);
	result = store_value(fcinfo, &args,
						 PointerGetDatum(cstring_to_text_with_len(text, len)),
						 len);
	HideStatementEnd(&hidden);
	PG_RETURN_DATUM(result);
}

/* Starts a call of get, get_json, get_entry or delete. */
static void
key_params_of(StatementArgs *args, FunctionCallInfo fcinfo, int narguments)
{
	CheckArguments(fcinfo, key_arguments, narguments);
	StatementArgsInit(args);
	AddressParams(args, fcinfo, key_arguments, &key_address);
}

/*
 * ext_storage_get(extension_id text, key text, user_fk integer,
 *				   resource_type text, resource_uuid text) returns bytea
 *		The value of an entry, decrypted; NULL if there is no such entry.
 */
Datum
ext_storage_get(PG_FUNCTION_ARGS)
{
	StatementArgs args;
	struct varlena *value;

	key_params_of(&args, fcinfo, NUM_GET_ARGS);
	value = fetch_value(fcinfo, &args);
	if (value == NULL)
		PG_RETURN_NULL();
	PG_RETURN_POINTER(value);
}

/*
 * ext_storage_get_json(extension_id text, key text, user_fk integer,
 *						resource_type text, resource_uuid text) returns jsonb
 *		The value of an entry as JSON; NULL if there is no such entry.
 */
Datum
ext_storage_get_json(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	StatementArgs args;
	struct varlena *value;
	char	   *json;
	volatile Datum result = (Datum) 0;

	key_params_of(&args, fcinfo, NUM_GET_ARGS);
	value = fetch_value(fcinfo, &args);
	if (value == NULL)
		PG_RETURN_NULL();
	value = PG_DETOAST_DATUM_PACKED(PointerGetDatum(value));
	json = pnstrdup(VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));

	/* the parser's own messages would quote the value */
	PG_TRY();
	{
		if (strlen(json) != VARSIZE_ANY_EXHDR(value))
			ereport(ERROR, (errcode(ERRCODE_INVALID_JSON_TEXT),
							errmsg("NUL byte")));
		json = convert_json(json, VARSIZE_ANY_EXHDR(value), true);
		result = DirectFunctionCall1(jsonb_in, CStringGetDatum(json));
	}
	PG_CATCH();
	{
		if (ERRCODE_TO_CATEGORY(geterrcode()) != ERRCODE_DATA_EXCEPTION)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_JSON_TEXT),
				 errmsg("value of %s is not JSON",
						DescribeEntry(args.values, args.nulls)),
				 errhint("ext_storage_get() returns its bytes.")));
	}
	PG_END_TRY();
	PG_RETURN_DATUM(result);
}

/*
 * ext_storage_get_entry(extension_id text, key text, user_fk integer,
 *						 resource_type text, resource_uuid text)
 *		returns the columns of ext_storage_entry and value, one row or none
 */
Datum
ext_storage_get_entry(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Connection	connection;
	StatementArgs args;
	Datum		row[NUM_VALUE_ENTRY_COLUMNS];
	bool		nulls[NUM_VALUE_ENTRY_COLUMNS];
	bool		found;

	key_params_of(&args, fcinfo, NUM_GET_ARGS);
	StatementStartDecrypted(fcinfo);
	StatementConnect(&connection, fcinfo, false);
	found = StatementFetch(&connection, &get_entry_statement, &args, true, row,
						   nulls);
	SPI_finish();
	if (found)
	{
		if (DatumGetBool(row[ENTRY_IS_ENCRYPTED]))
			row[ENTRY_VALUE] =
				PointerGetDatum(open_value(&args, row[ENTRY_VALUE]));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row, nulls);
	}
	return (Datum) 0;
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
	EntryState	last = {0};
	bool		deleted;

	key_params_of(&args, fcinfo, NUM_DELETE_ARGS);
	version_param(&args, DELETE_PARAM_EXPECTED_VERSION, fcinfo,
				  DELETE_ARG_IF_VERSION);

	StatementConnect(&connection, fcinfo, false);
	QuotaPrepare(&connection, args.values[PARAM_EXTENSION_ID]);
	for (;;)
	{
		EntryState	state;
		bool		as_expected;

		CHECK_FOR_INTERRUPTS();
		deleted = StatementRun(&connection, &delete_statement, &args,
							   false) > 0;
		if (deleted)
			break;
		state = get_state(&connection, &args);
		as_expected = PG_ARGISNULL(DELETE_ARG_IF_VERSION) ||
			PG_GETARG_INT64(DELETE_ARG_IF_VERSION) == state.version;
		if (!as_expected)
			report_version_mismatch(&args,
									PG_GETARG_INT64(DELETE_ARG_IF_VERSION),
									&state);
		if (!state.exists)
			break;
		if (same_state(&state, &last))
			report_not_written(&args);
		last = state;
	}
	SPI_finish();
	PG_RETURN_BOOL(deleted);
}

/*
 * Takes category and key_prefix of list and count.
 *
 * Keys are compared byte by byte.  No key is longer than MAX_KEY_CHARS, so the
 * prefix followed by that many of the highest bytes is above all keys that
 * start with it.
 */
static void
filter_params(StatementArgs *args, FunctionCallInfo fcinfo,
			  const ArgumentInfo *arguments, int category, int key_prefix)
{
	TextParam(args, LIST_PARAM_CATEGORY, fcinfo, arguments, category);
	if (!PG_ARGISNULL(category))
		args->shape |= SHAPE_CATEGORY;

	TextParam(args, LIST_PARAM_PREFIX_FIRST, fcinfo, arguments, key_prefix);
	if (!PG_ARGISNULL(key_prefix))
	{
		text	   *prefix = DatumGetTextPP(args->values[LIST_PARAM_PREFIX_FIRST]);
		int			len = VARSIZE_ANY_EXHDR(prefix);
		int			fill = MAX_KEY_CHARS * MAX_MULTIBYTE_CHAR_LEN;
		text	   *last = palloc(VARHDRSZ + len + fill);

		SET_VARSIZE(last, VARHDRSZ + len + fill);
		memcpy(VARDATA(last), VARDATA_ANY(prefix), len);
		memset(VARDATA(last) + len, 0xFF, fill);
		StatementSet(args, LIST_PARAM_PREFIX_LAST, PointerGetDatum(last));
		args->shape |= SHAPE_PREFIX;
	}
}

/*
 * ext_storage_list(extension_id text, user_fk integer, resource_type text,
 *					resource_uuid text, category text, page integer,
 *					page_size integer, key_prefix text, after_key text)
 *		returns setof ext_storage_entry
 *
 * One page of the entries of a scope, by key in byte order.  Reads no value.
 */
Datum
ext_storage_list(PG_FUNCTION_ARGS)
{
	Connection	connection;
	StatementArgs args;
	int64		page;
	int64		page_size;

	CheckArguments(fcinfo, list_arguments, NUM_LIST_ARGS);
	StatementArgsInit(&args);
	AddressParams(&args, fcinfo, list_arguments, &scope_address);
	RequireArgument(fcinfo, list_arguments, LIST_ARG_PAGE);
	RequireArgument(fcinfo, list_arguments, LIST_ARG_PAGE_SIZE);
	page = PG_GETARG_INT32(LIST_ARG_PAGE);
	page_size = PG_GETARG_INT32(LIST_ARG_PAGE_SIZE);
	if (page < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("page must not be negative")));
	if (page_size < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("page_size must be at least 1")));
	filter_params(&args, fcinfo, list_arguments, LIST_ARG_CATEGORY,
				  LIST_ARG_KEY_PREFIX);
	TextParam(&args, PARAM_KEY, fcinfo, list_arguments, LIST_ARG_AFTER_KEY);
	if (PG_ARGISNULL(LIST_ARG_AFTER_KEY))
		StatementSet(&args, PARAM_KEY, PointerGetDatum(cstring_to_text("")));
	StatementSet(&args, LIST_PARAM_LIMIT, Int64GetDatum(page_size));
	StatementSet(&args, LIST_PARAM_OFFSET, Int64GetDatum(page * page_size));

	InitMaterializedSRF(fcinfo, 0);
	StatementConnect(&connection, fcinfo, false);
	StatementReturn(&connection, &list_statement, &args,
					(ReturnSetInfo *) fcinfo->resultinfo);
	SPI_finish();
	return (Datum) 0;
}

/*
 * ext_storage_count(extension_id text, user_fk integer, resource_type text,
 *					 resource_uuid text, category text, key_prefix text)
 *		returns bigint
 *
 * The number of the entries of a scope.  Reads no value.
 */
Datum
ext_storage_count(PG_FUNCTION_ARGS)
{
	Connection	connection;
	StatementArgs args;
	Datum		row[lengthof(count_columns)];
	bool		nulls[lengthof(count_columns)];

	CheckArguments(fcinfo, count_arguments, NUM_COUNT_ARGS);
	StatementArgsInit(&args);
	AddressParams(&args, fcinfo, count_arguments, &scope_address);
	filter_params(&args, fcinfo, count_arguments, COUNT_ARG_CATEGORY,
				  COUNT_ARG_KEY_PREFIX);

	StatementConnect(&connection, fcinfo, false);
	if (!StatementFetch(&connection, &count_statement, &args, true, row, nulls))
		elog(ERROR, "count returned no row");
	SPI_finish();
	PG_RETURN_DATUM(row[0]);
}
