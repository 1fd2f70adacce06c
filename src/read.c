/*-------------------------------------------------------------------------
 *
 * read.c
 *	  Get, list and count entries.
 *
 * Every statement goes through SPI with the caller's rights, a superuser's with
 * those of the table's owner.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "catalog/pg_type.h"
#include "encoding.h"
#include "entry.h"
#include "errors.h"
#include "fernet.h"
#include "funcapi.h"
#include "keyring.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "statement.h"
#include "token.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

/* Rows, and bytes of their values, that are decrypted together. */
#define BATCH_ROWS 64
#define BATCH_BYTES (64 * 1024)

/*
 * Where a page of values is limited, it also ends before what its entries have
 * beside their values is larger than this, as that stays in memory too.
 */
#define MAX_OTHER_BYTES (1024 * 1024)

static const ArgumentInfo get_arguments[] = {ADDRESS_ARGUMENTS};

/* The arguments of list. */
enum
{
	LIST_ARG_CATEGORY = NUM_SCOPE_ARGS,
	LIST_ARG_PAGE,
	LIST_ARG_PAGE_SIZE,
	LIST_ARG_KEY_PREFIX,
	LIST_ARG_AFTER_KEY,
	NUM_LIST_ARGS
};

static const ArgumentInfo list_arguments[] = {
	SCOPE_ARGUMENTS,
	[LIST_ARG_CATEGORY] = {"category", TEXTOID, MAX_CATEGORY_CHARS, false},
	[LIST_ARG_PAGE] = {"page", INT4OID, 0, true},
	[LIST_ARG_PAGE_SIZE] = {"page_size", INT4OID, 0, true},
	[LIST_ARG_KEY_PREFIX] = {"key_prefix", TEXTOID, MAX_KEY_CHARS, false},
	[LIST_ARG_AFTER_KEY] = {"after_key", TEXTOID, MAX_KEY_CHARS, false}
};

/* The arguments of list_newest. */
enum
{
	NEWEST_ARG_CATEGORY = NUM_SCOPE_ARGS,
	NEWEST_ARG_PAGE,
	NEWEST_ARG_PAGE_SIZE,
	NEWEST_ARG_KEY_PREFIX,
	NEWEST_ARG_AFTER_CHANGED_ON,
	NEWEST_ARG_AFTER_KEY,
	NUM_NEWEST_ARGS
};

static const ArgumentInfo newest_arguments[] = {
	SCOPE_ARGUMENTS,
	[NEWEST_ARG_CATEGORY] = {"category", TEXTOID, MAX_CATEGORY_CHARS, false},
	[NEWEST_ARG_PAGE] = {"page", INT4OID, 0, true},
	[NEWEST_ARG_PAGE_SIZE] = {"page_size", INT4OID, 0, true},
	[NEWEST_ARG_KEY_PREFIX] = {"key_prefix", TEXTOID, MAX_KEY_CHARS, false},
	[NEWEST_ARG_AFTER_CHANGED_ON] = {"after_changed_on", TIMESTAMPOID, 0, false},
	[NEWEST_ARG_AFTER_KEY] = {"after_key", TEXTOID, MAX_KEY_CHARS, false}
};

/* The arguments of list_values. */
enum
{
	VALUES_ARG_CATEGORY = NUM_SCOPE_ARGS,
	VALUES_ARG_KEY_PREFIX,
	VALUES_ARG_AFTER_KEY,
	VALUES_ARG_PAGE_SIZE,
	VALUES_ARG_MAX_BYTES,
	VALUES_ARG_NEWEST_FIRST,
	VALUES_ARG_AFTER_CHANGED_ON,
	VALUES_ARG_PAGE,
	NUM_VALUES_ARGS
};

static const ArgumentInfo values_arguments[] = {
	SCOPE_ARGUMENTS,
	[VALUES_ARG_CATEGORY] = {"category", TEXTOID, MAX_CATEGORY_CHARS, false},
	[VALUES_ARG_KEY_PREFIX] = {"key_prefix", TEXTOID, MAX_KEY_CHARS, false},
	[VALUES_ARG_AFTER_KEY] = {"after_key", TEXTOID, MAX_KEY_CHARS, false},
	[VALUES_ARG_PAGE_SIZE] = {"page_size", INT4OID, 0, true},
	[VALUES_ARG_MAX_BYTES] = {"max_bytes", INT4OID, 0, true},
	[VALUES_ARG_NEWEST_FIRST] = {"newest_first", BOOLOID, 0, true},
	[VALUES_ARG_AFTER_CHANGED_ON] = {"after_changed_on", TIMESTAMPOID, 0, false},
	[VALUES_ARG_PAGE] = {"page", INT4OID, 0, true}
};

/* The arguments of count. */
enum
{
	COUNT_ARG_CATEGORY = NUM_SCOPE_ARGS,
	COUNT_ARG_KEY_PREFIX,
	NUM_COUNT_ARGS
};

static const ArgumentInfo count_arguments[] = {
	SCOPE_ARGUMENTS,
	[COUNT_ARG_CATEGORY] = {"category", TEXTOID, MAX_CATEGORY_CHARS, false},
	[COUNT_ARG_KEY_PREFIX] = {"key_prefix", TEXTOID, MAX_KEY_CHARS, false}
};

static const ArgumentInfo get_many_arguments[] = {KEYS_ARGUMENTS};

static const StatementParam get_params[] = {ADDRESS_PARAMS};

enum
{
	MANY_PARAM_KEYS = NUM_ADDRESS_PARAMS,
	NUM_MANY_PARAMS
};

static const StatementParam many_params[] = {
	ADDRESS_PARAMS,
	[MANY_PARAM_KEYS] = {"keys", TEXTARRAYOID}
};

/* What list and count add to the extension and scope. */
enum
{
	LIST_PARAM_CATEGORY = NUM_ADDRESS_PARAMS,
	LIST_PARAM_PREFIX_FIRST,
	LIST_PARAM_PREFIX_LAST,
	LIST_PARAM_LIMIT,
	LIST_PARAM_OFFSET,
	LIST_PARAM_AFTER_CHANGED_ON,
	NUM_LIST_PARAMS
};

static const StatementParam list_params[] = {
	ADDRESS_PARAMS,
	[LIST_PARAM_CATEGORY] = {"category", TEXTOID},
	[LIST_PARAM_PREFIX_FIRST] = {"prefix_first", TEXTOID},
	[LIST_PARAM_PREFIX_LAST] = {"prefix_last", TEXTOID},
	[LIST_PARAM_LIMIT] = {"limit", INT8OID},
	[LIST_PARAM_OFFSET] = {"offset", INT8OID},
	[LIST_PARAM_AFTER_CHANGED_ON] = {"after_changed_on", TIMESTAMPOID}
};

/* An entry and its value, and why there is none. */
enum
{
	ENTRY_VALUE = NUM_ENTRY_COLUMNS,
	NUM_VALUE_ENTRY_COLUMNS,
	ENTRY_PROBLEM = NUM_VALUE_ENTRY_COLUMNS,
	NUM_PROBLEM_ENTRY_COLUMNS
};

static const StatementColumn value_entry_columns[] = {
	ENTRY_COLUMNS,
	[ENTRY_VALUE] = {"value", BYTEAOID, NOT_NULL}
};
static const StatementColumn problem_entry_columns[] = {
	ENTRY_COLUMNS,
	[ENTRY_VALUE] = {"value", BYTEAOID, NULLABLE},
	[ENTRY_PROBLEM] = {"problem", TEXTOID, NULLABLE}
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
	COUNT_COUNT,
	NUM_COUNT_COLUMNS
};

static const StatementColumn count_columns[] = {
	[COUNT_COUNT] = {"count", INT8OID, NOT_NULL}
};

static bool expand_newest(StringInfo sql, const char *placeholder, int shape);

static Statement get_statement = {
	.sql = "SELECT @columns@ FROM " SQL_TABLE THE_ENTRY,
	STATEMENT_PARAMS(get_params, NUM_ADDRESS_PARAMS),
	STATEMENT_COLUMNS(value_columns, NUM_VALUE_COLUMNS),
	.expand = ExpandScope, .by_index = true
};
static Statement get_entry_statement = {
	.sql = "SELECT @columns@ FROM " SQL_TABLE THE_ENTRY,
	STATEMENT_PARAMS(get_params, NUM_ADDRESS_PARAMS),
	STATEMENT_COLUMNS(value_entry_columns, NUM_VALUE_ENTRY_COLUMNS),
	.expand = ExpandScope, .by_index = true
};
#define LIST_BY_KEY \
	"SELECT @columns@ FROM " SQL_TABLE \
	" WHERE @scope@ AND e.key" SQL_GT "$key" \
	" ORDER BY @order@ LIMIT $limit OFFSET $offset"

static Statement list_statement = {
	.sql = LIST_BY_KEY,
	STATEMENT_PARAMS(list_params, NUM_LIST_PARAMS),
	STATEMENT_COLUMNS(entry_columns, NUM_ENTRY_COLUMNS),
	.expand = ExpandScope, .by_index = true
};
static Statement count_statement = {
	.sql = "SELECT pg_catalog.count(*) FROM " SQL_TABLE " WHERE @scope@",
	STATEMENT_PARAMS(list_params, NUM_LIST_PARAMS),
	STATEMENT_COLUMNS(count_columns, NUM_COUNT_COLUMNS),
	.expand = ExpandScope, .by_index = true
};

/* Further bit of a shape: after a cursor in the order by time. */
#define SHAPE_AFTER 16

StaticAssertDecl(2 * SHAPE_AFTER <= STATEMENT_MAX_SHAPES,
				 "there are too many shapes");

/* The order by time, and the index that serves it. */
#define CHANGED_ON \
	"COALESCE(e.changed_on, '-infinity'::pg_catalog.timestamp)"
#define LIST_NEWEST \
	"SELECT @columns@ FROM " SQL_TABLE " WHERE @scope@ AND @after@" \
	" AND pg_catalog.octet_length(e.key)" SQL_GE "0" \
	" ORDER BY e.extension_id DESC, e.user_fk DESC, e.resource_uuid DESC, " \
	CHANGED_ON " DESC, e.key DESC LIMIT $limit OFFSET $offset"

static Statement newest_statement = {
	.sql = LIST_NEWEST,
	STATEMENT_PARAMS(list_params, NUM_LIST_PARAMS),
	STATEMENT_COLUMNS(entry_columns, NUM_ENTRY_COLUMNS),
	.expand = expand_newest, .by_index = true
};
static Statement newest_values_statement = {
	.sql = LIST_NEWEST,
	STATEMENT_PARAMS(list_params, NUM_LIST_PARAMS),
	STATEMENT_COLUMNS(value_entry_columns, NUM_VALUE_ENTRY_COLUMNS),
	.expand = expand_newest, .by_index = true
};
static Statement list_values_statement = {
	.sql = LIST_BY_KEY,
	STATEMENT_PARAMS(list_params, NUM_LIST_PARAMS),
	STATEMENT_COLUMNS(value_entry_columns, NUM_VALUE_ENTRY_COLUMNS),
	.expand = ExpandScope, .by_index = true
};

/*
 * With an OFFSET each key is searched for by itself.  Of a join, the planner
 * might go through the whole scope, which it takes for small if it planned
 * early.
 */
static Statement get_many_statement = {
	.sql = "SELECT @columns@ FROM pg_catalog.unnest($keys) WITH ORDINALITY"
	" AS k (key, place), LATERAL (SELECT e.* FROM " SQL_TABLE
	" WHERE @scope@ AND e.key" SQL_EQ "k.key OFFSET 0) AS e ORDER BY k.place",
	STATEMENT_PARAMS(many_params, NUM_MANY_PARAMS),
	STATEMENT_COLUMNS(value_entry_columns, NUM_VALUE_ENTRY_COLUMNS),
	.expand = ExpandScope, .by_index = true
};

PG_FUNCTION_INFO_V1(ext_storage_get);
PG_FUNCTION_INFO_V1(ext_storage_get_json);
PG_FUNCTION_INFO_V1(ext_storage_get_entry);
PG_FUNCTION_INFO_V1(ext_storage_get_many);
PG_FUNCTION_INFO_V1(ext_storage_list);
PG_FUNCTION_INFO_V1(ext_storage_list_newest);
PG_FUNCTION_INFO_V1(ext_storage_list_values);
PG_FUNCTION_INFO_V1(ext_storage_count);

/* Appends what the placeholders of the order by time stand for. */
static bool
expand_newest(StringInfo sql, const char *placeholder, int shape)
{
	if (strcmp(placeholder, "after") != 0)
		return ExpandScope(sql, placeholder, shape);
	appendStringInfoString(sql, (shape & SHAPE_AFTER) ?
						   "ROW(" CHANGED_ON ", e.key) OPERATOR(pg_catalog.<)"
						   " ROW($after_changed_on, $key)" : "TRUE");
	return true;
}

/* Is the value of an entry encrypted? */
static bool
is_encrypted(const Datum *row)
{
	return DatumGetBool(ColumnValue(value_entry_columns, ENTRY_IS_ENCRYPTED,
									BOOLOID, row));
}

/* The value of an entry, as it is stored. */
static Datum
stored_value(const Datum *row)
{
	return ColumnValue(value_entry_columns, ENTRY_VALUE, BYTEAOID, row);
}

/* Decrypts a stored value, in memory of our own, in place. */
static bytea *
open_value(const StatementArgs *args, Datum value)
{
	bytea	   *token = DatumGetByteaP(PointerGetDatum(StoredToken(value)));
	bytea	   *opened;

	RequireKey(args, KeyringCount() > 0, "is");
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
	Datum		value;

	StatementConnect(&connection, fcinfo, false);
	found = StatementFetch(&connection, &get_statement, args, true, row, nulls);
	SPI_finish();
	if (!found)
		return NULL;
	value = ColumnValue(value_columns, VALUE_VALUE, BYTEAOID, row);
	return DatumGetBool(ColumnValue(value_columns, VALUE_IS_ENCRYPTED, BOOLOID, row)) ?
		open_value(args, value) : (struct varlena *) DatumGetPointer(value);
}

/* Starts a call of get, get_json or get_entry. */
static void
get_params_of(StatementArgs *args, FunctionCallInfo fcinfo)
{
	CheckArguments(fcinfo, get_arguments, NUM_ADDRESS_ARGS);
	StatementArgsInit(args);
	AddressParams(args, fcinfo, get_arguments, &entry_address);
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

	get_params_of(&args, fcinfo);
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
	size_t		len;
	char	   *utf8;
	char	   *json;
	volatile bool is_json;
	volatile Datum result = (Datum) 0;

	get_params_of(&args, fcinfo);
	value = fetch_value(fcinfo, &args);
	if (value == NULL)
		PG_RETURN_NULL();
	value = PG_DETOAST_DATUM_PACKED(PointerGetDatum(value));
	len = VARSIZE_ANY_EXHDR(value);
	utf8 = pnstrdup(VARDATA_ANY(value), len);
	is_json = strlen(utf8) == len &&
		pg_encoding_verifymbstr(PG_UTF8, utf8, (int) len) == (int) len;
	json = is_json ? ConvertUtf8(utf8, len, true) : NULL;
	if (json != NULL)
	{
		/* the parser's own messages would quote the value */
		PG_TRY();
		{
			result = DirectFunctionCall1(jsonb_in, CStringGetDatum(json));
		}
		PG_CATCH();
		{
			if (ERRCODE_TO_CATEGORY(geterrcode()) != ERRCODE_DATA_EXCEPTION)
				PG_RE_THROW();
			is_json = geterrcode() != ERRCODE_INVALID_TEXT_REPRESENTATION;
			MemoryContextSwitchTo(context);
			FlushErrorState();
		}
		PG_END_TRY();
	}
	if (result == (Datum) 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_JSON_TEXT),
				 is_json ?
				 errmsg("value of %s is JSON that cannot be converted to jsonb",
						DescribeEntry(args.values, args.nulls)) :
				 errmsg("value of %s is not JSON",
						DescribeEntry(args.values, args.nulls)),
				 is_json ?
				 errdetail("It has a number or a character that jsonb, or the encoding of the database, cannot represent.") : 0,
				 errhint("ext_storage_get() returns its bytes.")));
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

	get_params_of(&args, fcinfo);
	StatementStartDecrypted(fcinfo);
	CheckResult(rsinfo->setDesc, value_entry_columns, NUM_VALUE_ENTRY_COLUMNS);
	StatementConnect(&connection, fcinfo, false);
	found = StatementFetch(&connection, &get_entry_statement, &args, true, row,
						   nulls);
	SPI_finish();
	if (found)
	{
		bytea	   *opened = NULL;

		if (is_encrypted(row))
		{
			opened = open_value(&args, stored_value(row));
			row[ENTRY_VALUE] = PointerGetDatum(opened);
		}
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row, nulls);
		if (opened != NULL)
			explicit_bzero(VARDATA(opened), VARSIZE(opened) - VARHDRSZ);
	}
	return (Datum) 0;
}

/* Takes category and key_prefix of a function that lists or counts. */
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
		StatementSet(args, LIST_PARAM_PREFIX_LAST, TEXTOID,
					 PrefixLast(DatumGetTextPP(args->values[LIST_PARAM_PREFIX_FIRST])));
		args->shape |= SHAPE_PREFIX;
	}
}

/* Takes page and page_size. */
static void
page_params(StatementArgs *args, FunctionCallInfo fcinfo,
			const ArgumentInfo *arguments, int page_arg, int page_size_arg)
{
	int64		page;
	int64		page_size;

	RequireArgument(fcinfo, arguments, page_arg);
	RequireArgument(fcinfo, arguments, page_size_arg);
	page = DatumGetInt32(ArgumentValue(fcinfo, arguments, page_arg, INT4OID));
	page_size = DatumGetInt32(ArgumentValue(fcinfo, arguments, page_size_arg,
											INT4OID));
	if (page < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("page must not be negative")));
	if (page_size < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("page_size must be at least 1")));
	StatementSet(args, LIST_PARAM_LIMIT, INT8OID, Int64GetDatum(page_size));
	StatementSet(args, LIST_PARAM_OFFSET, INT8OID,
				 Int64GetDatum(page * page_size));
}

/*
 * Takes after_key, which is the empty string where it is null: it is below all
 * keys.
 */
static void
after_key_param(StatementArgs *args, FunctionCallInfo fcinfo,
				const ArgumentInfo *arguments, int argno)
{
	TextParam(args, PARAM_KEY, fcinfo, arguments, argno);
	if (PG_ARGISNULL(argno))
		StatementSet(args, PARAM_KEY, TEXTOID, CStringGetTextDatum(""));
}

/*
 * Takes the cursor of an order by time: after_changed_on and after_key, which
 * there is if the latter is not null.
 */
static void
after_change_params(StatementArgs *args, FunctionCallInfo fcinfo,
					const ArgumentInfo *arguments, int changed_on, int key)
{
	Timestamp	after = PG_ARGISNULL(changed_on) ? DT_NOBEGIN :
	DatumGetTimestamp(ArgumentValue(fcinfo, arguments, changed_on, TIMESTAMPOID));

	if (PG_ARGISNULL(key))
	{
		if (!PG_ARGISNULL(changed_on))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("after_changed_on must be given together with after_key")));
		return;
	}
	TextParam(args, PARAM_KEY, fcinfo, arguments, key);
	StatementSet(args, LIST_PARAM_AFTER_CHANGED_ON, TIMESTAMPOID,
				 TimestampGetDatum(after));
	args->shape |= SHAPE_AFTER;
}

/* Returns the entries that a statement finds. */
static void
return_list(Statement *statement, FunctionCallInfo fcinfo,
			const StatementArgs *args)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Connection	connection;

	InitMaterializedSRF(fcinfo, 0);
	CheckResult(rsinfo->setDesc, entry_columns, NUM_ENTRY_COLUMNS);
	StatementConnect(&connection, fcinfo, false);
	StatementReturn(&connection, statement, args, rsinfo);
	SPI_finish();
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
	StatementArgs args;

	CheckArguments(fcinfo, list_arguments, NUM_LIST_ARGS);
	StatementArgsInit(&args);
	AddressParams(&args, fcinfo, list_arguments, &scope_address);
	page_params(&args, fcinfo, list_arguments, LIST_ARG_PAGE,
				LIST_ARG_PAGE_SIZE);
	filter_params(&args, fcinfo, list_arguments, LIST_ARG_CATEGORY,
				  LIST_ARG_KEY_PREFIX);
	after_key_param(&args, fcinfo, list_arguments, LIST_ARG_AFTER_KEY);

	return_list(&list_statement, fcinfo, &args);
	return (Datum) 0;
}

/*
 * ext_storage_list_newest(extension_id text, user_fk integer,
 *						   resource_type text, resource_uuid text,
 *						   category text, page integer, page_size integer,
 *						   key_prefix text, after_changed_on timestamp,
 *						   after_key text)
 *		returns setof ext_storage_entry
 *
 * One page of the entries of a scope, the newest change first.  Reads no value.
 */
Datum
ext_storage_list_newest(PG_FUNCTION_ARGS)
{
	StatementArgs args;

	CheckArguments(fcinfo, newest_arguments, NUM_NEWEST_ARGS);
	StatementArgsInit(&args);
	AddressParams(&args, fcinfo, newest_arguments, &scope_address);
	page_params(&args, fcinfo, newest_arguments, NEWEST_ARG_PAGE,
				NEWEST_ARG_PAGE_SIZE);
	filter_params(&args, fcinfo, newest_arguments, NEWEST_ARG_CATEGORY,
				  NEWEST_ARG_KEY_PREFIX);
	after_change_params(&args, fcinfo, newest_arguments,
						NEWEST_ARG_AFTER_CHANGED_ON, NEWEST_ARG_AFTER_KEY);

	return_list(&newest_statement, fcinfo, &args);
	return (Datum) 0;
}

/*
 * Entries with their values on the way from the table to the caller: rows that
 * are to be decrypted together, and what comes between them.
 */
typedef struct ValueBatch
{
	ReturnSetInfo *rsinfo;
	int64		max_bytes;		/* -1 for no limit */
	int64		value_bytes;	/* of the rows so far */
	int64		other_bytes;	/* of their other columns */
	int			nrows;
	Size		pending_bytes;	/* of the values of these rows */
	Datum		rows[BATCH_ROWS][NUM_PROBLEM_ENTRY_COLUMNS];
	bool		nulls[BATCH_ROWS][NUM_PROBLEM_ENTRY_COLUMNS];
	MemoryContext context;		/* of the rows' values */
} ValueBatch;

/*
 * Decrypts the rows of a batch, those of a key together, and returns them.
 * One that cannot be decrypted has no value, and its problem tells why.
 */
static void
return_batch(ValueBatch *batch)
{
	MemoryContext old_context = MemoryContextSwitchTo(batch->context);
	KeyringItem items[BATCH_ROWS];
	int			item_rows[BATCH_ROWS];
	int			nitems = 0;

	for (int i = 0; i < batch->nrows; i++)
	{
		if (!is_encrypted(batch->rows[i]))
			continue;
		items[nitems].token =
			(bytea *) DatumGetPointer(stored_value(batch->rows[i]));
		item_rows[nitems++] = i;
	}
	if (nitems > 0)
		KeyringOpenMany(items, nitems);
	for (int i = 0; i < nitems; i++)
	{
		Datum	   *row = batch->rows[item_rows[i]];
		bool	   *nulls = batch->nulls[item_rows[i]];

		if (items[i].result != NULL)
			row[ENTRY_VALUE] = PointerGetDatum(items[i].result);
		else
		{
			nulls[ENTRY_VALUE] = true;
			nulls[ENTRY_PROBLEM] = false;
			row[ENTRY_PROBLEM] =
				CStringGetTextDatum(KeyringProblem(items[i].ordinal));
		}
	}
	for (int i = 0; i < batch->nrows; i++)
		tuplestore_putvalues(batch->rsinfo->setResult, batch->rsinfo->setDesc,
							 batch->rows[i], batch->nulls[i]);
	for (int i = 0; i < nitems; i++)
		if (items[i].result != NULL)
			explicit_bzero(VARDATA(items[i].result),
						   VARSIZE(items[i].result) - VARHDRSZ);
	batch->nrows = 0;
	batch->pending_bytes = 0;
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(batch->context);
}

/* Copies a row to the batch, and fetches a token that is to be decrypted. */
static void
add_to_batch(ValueBatch *batch, TupleTableSlot *slot)
{
	MemoryContext old_context = MemoryContextSwitchTo(batch->context);
	Datum	   *row = batch->rows[batch->nrows];
	bool	   *nulls = batch->nulls[batch->nrows];

	for (int i = 0; i < NUM_VALUE_ENTRY_COLUMNS; i++)
	{
		Form_pg_attribute att = TupleDescAttr(slot->tts_tupleDescriptor, i);

		nulls[i] = slot->tts_isnull[i];
		if (i == ENTRY_VALUE && is_encrypted(slot->tts_values))
		{
			row[i] = PointerGetDatum(StoredToken(slot->tts_values[i]));
			if (row[i] == slot->tts_values[i])
				row[i] = PointerGetDatum(DatumGetByteaPCopy(row[i]));
		}
		else if (!nulls[i])
			row[i] = datumCopy(slot->tts_values[i], att->attbyval, att->attlen);
	}
	nulls[ENTRY_PROBLEM] = true;
	batch->nrows++;
	MemoryContextSwitchTo(old_context);
}

/*
 * The bytes of a row's value, before encryption, without reading it.  Where the
 * row does not know them, they are those that the token can have at most.
 */
static int64
value_bytes(const Datum *row, const bool *nulls)
{
	int64		stored = toast_raw_datum_size(stored_value(row)) - VARHDRSZ;
	int32		size;

	if (!is_encrypted(row))
		return stored;
	if (!nulls[ENTRY_VALUE_SIZE])
	{
		size = DatumGetInt32(ColumnValue(value_entry_columns, ENTRY_VALUE_SIZE,
										 INT4OID, row));
		if (size >= 0 && (int64) FernetTokenLen(size) == stored)
			return size;
	}
	return FernetDecodedLen(stored);
}

/* The bytes of its other columns in memory. */
static int64
other_bytes(const TupleTableSlot *slot)
{
	int64		bytes = sizeof(HeapTupleData);

	for (int i = 0; i < NUM_ENTRY_COLUMNS; i++)
	{
		Form_pg_attribute att = TupleDescAttr(slot->tts_tupleDescriptor, i);

		if (!slot->tts_isnull[i])
			bytes += datumGetSize(slot->tts_values[i], att->attbyval,
								  att->attlen);
	}
	return bytes;
}

/* Takes a row, unless the page would be too large with it. */
static bool
take_row(TupleTableSlot *slot, void *state)
{
	ValueBatch *batch = state;
	int64		bytes = value_bytes(slot->tts_values, slot->tts_isnull);
	bool		is_first = batch->other_bytes == 0;

	batch->value_bytes += bytes;
	batch->other_bytes += other_bytes(slot);
	if (batch->max_bytes >= 0 && !is_first &&
		(batch->value_bytes > batch->max_bytes ||
		 batch->other_bytes > MAX_OTHER_BYTES))
		return false;
	if (batch->nrows == 0 && !is_encrypted(slot->tts_values))
	{
		/* as it is: where the tuple ends, the column problem is null */
		tuplestore_puttupleslot(batch->rsinfo->setResult, slot);
		return true;
	}
	add_to_batch(batch, slot);
	batch->pending_bytes += bytes;
	if (batch->nrows == BATCH_ROWS || batch->pending_bytes >= BATCH_BYTES)
		return_batch(batch);
	return true;
}

/*
 * Returns rows of entries with their values.  Where max_bytes is not negative,
 * it stops before the values are larger than that or the rest is larger than
 * MAX_OTHER_BYTES, but not before the first row.
 */
static void
return_values(Connection *connection, Statement *statement,
			  const StatementArgs *args, FunctionCallInfo fcinfo,
			  int64 max_bytes)
{
	ValueBatch	batch;

	batch.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	batch.max_bytes = max_bytes;
	batch.value_bytes = 0;
	batch.other_bytes = 0;
	batch.nrows = 0;
	batch.pending_bytes = 0;
	batch.context = AllocSetContextCreate(CurrentMemoryContext,
										  "entries with values",
										  ALLOCSET_DEFAULT_SIZES);
	CheckResult(batch.rsinfo->setDesc, problem_entry_columns,
				NUM_PROBLEM_ENTRY_COLUMNS);
	StatementVisit(connection, statement, args, true, take_row, &batch);
	return_batch(&batch);
	MemoryContextDelete(batch.context);
}

/*
 * ext_storage_list_values(extension_id text, user_fk integer,
 *						   resource_type text, resource_uuid text,
 *						   category text, key_prefix text, after_key text,
 *						   page_size integer, max_bytes integer,
 *						   newest_first boolean, after_changed_on timestamp,
 *						   page integer)
 *		returns the columns of ext_storage_entry, value and problem
 *
 * One page of the entries of a scope with their values, by key or the newest
 * change first.  It ends before the values are larger than max_bytes, or what
 * else the entries have than a megabyte, but not before the first entry.
 */
Datum
ext_storage_list_values(PG_FUNCTION_ARGS)
{
	Connection	connection;
	StatementArgs args;
	int32		max_bytes;
	bool		newest_first;

	CheckArguments(fcinfo, values_arguments, NUM_VALUES_ARGS);
	StatementArgsInit(&args);
	AddressParams(&args, fcinfo, values_arguments, &scope_address);
	filter_params(&args, fcinfo, values_arguments, VALUES_ARG_CATEGORY,
				  VALUES_ARG_KEY_PREFIX);
	page_params(&args, fcinfo, values_arguments, VALUES_ARG_PAGE,
				VALUES_ARG_PAGE_SIZE);
	RequireArgument(fcinfo, values_arguments, VALUES_ARG_MAX_BYTES);
	max_bytes = DatumGetInt32(ArgumentValue(fcinfo, values_arguments,
											VALUES_ARG_MAX_BYTES, INT4OID));
	if (max_bytes < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_bytes must not be negative")));
	RequireArgument(fcinfo, values_arguments, VALUES_ARG_NEWEST_FIRST);
	newest_first = DatumGetBool(ArgumentValue(fcinfo, values_arguments,
											  VALUES_ARG_NEWEST_FIRST, BOOLOID));
	if (newest_first)
		after_change_params(&args, fcinfo, values_arguments,
							VALUES_ARG_AFTER_CHANGED_ON, VALUES_ARG_AFTER_KEY);
	else if (!PG_ARGISNULL(VALUES_ARG_AFTER_CHANGED_ON))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("after_changed_on requires newest_first")));
	else
		after_key_param(&args, fcinfo, values_arguments, VALUES_ARG_AFTER_KEY);

	StatementStartDecrypted(fcinfo);
	StatementConnect(&connection, fcinfo, false);
	return_values(&connection, newest_first ? &newest_values_statement :
				  &list_values_statement, &args, fcinfo, max_bytes);
	SPI_finish();
	return (Datum) 0;
}

/*
 * ext_storage_get_many(extension_id text, keys text[], user_fk integer,
 *						resource_type text, resource_uuid text)
 *		returns the columns of ext_storage_entry, value and problem
 *
 * The entries of several keys that there are, in the order of the keys.
 */
Datum
ext_storage_get_many(PG_FUNCTION_ARGS)
{
	Connection	connection;
	StatementArgs args;
	Datum	   *keys;
	int			nkeys;

	CheckArguments(fcinfo, get_many_arguments, NUM_ADDRESS_ARGS);
	StatementArgsInit(&args);
	AddressParams(&args, fcinfo, get_many_arguments, &keys_address);
	nkeys = KeysArgument(fcinfo, get_many_arguments, ADDRESS_ARG_KEY, &keys);
	StatementSet(&args, MANY_PARAM_KEYS, TEXTARRAYOID,
				 MakeArray(keys, NULL, nkeys, TEXTOID));

	StatementStartDecrypted(fcinfo);
	StatementConnect(&connection, fcinfo, false);

	/* a distributed table has no generic plan with a subquery or a join */
	if (StatementIsDistributed(&connection))
		for (int i = 0; i < nkeys; i++)
		{
			StatementSet(&args, PARAM_KEY, TEXTOID, keys[i]);
			return_values(&connection, &get_entry_statement, &args, fcinfo, -1);
		}
	else
		return_values(&connection, &get_many_statement, &args, fcinfo, -1);
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
	Datum		row[NUM_COUNT_COLUMNS];
	bool		nulls[NUM_COUNT_COLUMNS];

	CheckArguments(fcinfo, count_arguments, NUM_COUNT_ARGS);
	StatementArgsInit(&args);
	AddressParams(&args, fcinfo, count_arguments, &scope_address);
	filter_params(&args, fcinfo, count_arguments, COUNT_ARG_CATEGORY,
				  COUNT_ARG_KEY_PREFIX);

	StatementConnect(&connection, fcinfo, false);
	if (!StatementFetch(&connection, &count_statement, &args, true, row, nulls))
		elog(ERROR, "count returned no row");
	SPI_finish();
	PG_RETURN_DATUM(ColumnValue(count_columns, COUNT_COUNT, INT8OID, row));
}
