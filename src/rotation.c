/*-------------------------------------------------------------------------
 *
 * rotation.c
 *	  Re-encrypt with a new key while everything runs, and report which keys
 *	  are still needed and what cannot be read.
 *
 * All of these walk extension by extension, and each statement names one,
 * which keeps it to one shard where the table is distributed.
 *
 * A rotation commits each batch, locks only what it is going to replace, and
 * never waits for a lock: it would wait while it holds others, and a client
 * that writes several entries in another order would get a deadlock.  Rows
 * that somebody else has locked come at the end.  They are tried again for a
 * bounded time; between two tries it holds neither a lock nor a snapshot.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "entry.h"
#include "errors.h"
#include "funcapi.h"
#include "keyring.h"
#include "miscadmin.h"
#include "procedure.h"
#include "rotation.h"
#include "statement.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/pquery.h"
#include "token.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/wait_event.h"

#define FETCH_COUNT 100			/* rows per fetch, where nothing is written */

/*
 * Rows, and bytes of their tokens, that are decrypted together, then locked and
 * written.
 */
#define GROUP_ROWS 64
#define GROUP_BYTES (64 * 1024)

/* Rows that one UPDATE writes, and how long a token must be to get its own. */
#define WRITE_COUNT 32
#define WRITE_ALONE_BYTES (64 * 1024)

/*
 * What a batch may write and how long it may take, whatever batch_size says,
 * so that it is committed before a timeout comes.
 */
#define MAX_BATCH_BYTES (8 * 1024 * 1024)
#define MAX_BATCH_MS 1000

/*
 * What the memory of a group keeps when it is reset: enough for tokens of usual
 * size, so as not to get it from the kernel and give it back with each group.
 */
#define GROUP_MEMORY (512 * 1024)

/* Locked rows that are remembered, and the pause between two tries. */
#define MAX_SKIPPED 100000
#define RETRY_MS 50

/* How many transactions a warning names. */
#define MAX_WRITERS 10

/* extension_storage.rotation_lock_wait, in milliseconds */
static int	rotation_lock_wait = 10000;

/* An encrypted row. */
enum
{
	ROW_ID = NUM_ADDRESS_PARAMS,
	ROW_UUID,
	ROW_VALUE,
	NUM_ROW_COLUMNS
};

static const StatementColumn row_columns[] = {
	/* as a bigint: a user whom no call can name must not stop the walk */
	ADDRESS_COLUMNS(INT8OID),
	[ROW_ID] = {"id", INT8OID, NOT_NULL},
	[ROW_UUID] = {"uuid", UUIDOID, NOT_NULL},
	[ROW_VALUE] = {"value", BYTEAOID, NOT_NULL}
};

enum
{
	WALK_PARAM_EXTENSION_ID,
	WALK_PARAM_FIRST_ID,
	WALK_PARAM_LAST_ID,
	WALK_PARAM_LIMIT,
	NUM_WALK_PARAMS
};

static const StatementParam walk_params[] = {
	[WALK_PARAM_EXTENSION_ID] = {"extension_id", TEXTOID},
	[WALK_PARAM_FIRST_ID] = {"first_id", INT8OID},
	[WALK_PARAM_LAST_ID] = {"last_id", INT8OID},
	[WALK_PARAM_LIMIT] = {"limit", INT8OID}
};

/* The encrypted rows of an extension. */
enum
{
	TOTAL_EXTENSION_ID,
	TOTAL_COUNT,
	TOTAL_LAST_ID,
	NUM_TOTAL_COLUMNS
};

static const StatementColumn total_columns[] = {
	[TOTAL_EXTENSION_ID] = {"extension_id", TEXTOID, NOT_NULL},
	[TOTAL_COUNT] = {"count", INT8OID, NOT_NULL},
	[TOTAL_LAST_ID] = {"last_id", INT8OID, NOT_NULL}
};

/* What names the rows that are locked and written. */
enum
{
	WRITE_PARAM_EXTENSION_ID,
	WRITE_PARAM_IDS,
	NUM_LOCK_PARAMS,
	WRITE_PARAM_OLD_VALUES = NUM_LOCK_PARAMS,
	WRITE_PARAM_NEW_VALUES,
	NUM_WRITE_PARAMS
};

static const StatementParam lock_params[] = {
	[WRITE_PARAM_EXTENSION_ID] = {"extension_id", TEXTOID},
	[WRITE_PARAM_IDS] = {"ids", INT8ARRAYOID}
};
static const StatementParam write_params[] = {
	[WRITE_PARAM_EXTENSION_ID] = {"extension_id", TEXTOID},
	[WRITE_PARAM_IDS] = {"ids", INT8ARRAYOID},
	[WRITE_PARAM_OLD_VALUES] = {"old_values", BYTEAARRAYOID},
	[WRITE_PARAM_NEW_VALUES] = {"new_values", BYTEAARRAYOID}
};
static const StatementParam one_params[] = {
	[WRITE_PARAM_EXTENSION_ID] = {"extension_id", TEXTOID},
	[WRITE_PARAM_IDS] = {"id", INT8OID},
	[WRITE_PARAM_OLD_VALUES] = {"old_value", BYTEAOID},
	[WRITE_PARAM_NEW_VALUES] = {"new_value", BYTEAOID}
};

enum
{
	ID_ID,
	NUM_ID_COLUMNS
};

static const StatementColumn id_columns[] = {
	[ID_ID] = {"id", INT8OID, NOT_NULL}
};

/* What is returned of rows that were written, many or one. */
enum
{
	WRITTEN_ID,
	WRITTEN_EXTENSION_ID,
	WRITTEN_IS_ENCRYPTED,
	WRITTEN_VALUE,
	NUM_WRITTEN_COLUMNS
};

static const StatementColumn written_columns[] = {
	[WRITTEN_ID] = {"id", INT8OID, NOT_NULL},
	[WRITTEN_EXTENSION_ID] = {"extension_id", TEXTOID, NOT_NULL},
	[WRITTEN_IS_ENCRYPTED] = {"is_encrypted", BOOLOID, NOT_NULL},
	[WRITTEN_VALUE] = {"value", BYTEAOID, NOT_NULL}
};

enum
{
	ONE_IS_NEW,
	NUM_ONE_COLUMNS
};

static const StatementColumn one_columns[] = {
	[ONE_IS_NEW] = {"is_new", BOOLOID, NOT_NULL}
};

/*
 * Without a parameter for all extensions: a distributed table has no generic
 * plan over all shards.
 */
#define TOTALS(of_extension) \
	"SELECT CAST(e.extension_id AS pg_catalog.text), pg_catalog.count(*)," \
	" CAST(pg_catalog.max(e.id) AS pg_catalog.int8) FROM " SQL_TABLE \
	" WHERE e.is_encrypted" of_extension \
	" GROUP BY e.extension_id ORDER BY e.extension_id"

static Statement total_statement = {
	.sql = TOTALS(""),
	STATEMENT_COLUMNS(total_columns, NUM_TOTAL_COLUMNS)
};
static Statement total_of_one_statement = {
	.sql = TOTALS(" AND e.extension_id" SQL_EQ "$extension_id"),
	STATEMENT_PARAMS(walk_params, NUM_WALK_PARAMS),
	STATEMENT_COLUMNS(total_columns, NUM_TOTAL_COLUMNS)
};
static Statement walk_statement = {
	.sql = "SELECT @columns@ FROM " SQL_TABLE
	" WHERE e.extension_id" SQL_EQ "$extension_id AND e.is_encrypted"
	" AND e.id" SQL_GE "$first_id AND e.id" SQL_LE "$last_id"
	" ORDER BY e.id LIMIT $limit",
	STATEMENT_PARAMS(walk_params, NUM_WALK_PARAMS),
	STATEMENT_COLUMNS(row_columns, NUM_ROW_COLUMNS),
	.by_index = true
};

/*
 * For statements that are given ids.  The condition is not the one of the
 * index on encrypted rows, because the planner might then go through all rows
 * of the extension by that index.
 */
#define AND_IS_ENCRYPTED " AND e.is_encrypted IS NOT FALSE"

static Statement read_statement = {
	.sql = "SELECT @columns@ FROM " SQL_TABLE
	" WHERE e.extension_id" SQL_EQ "$extension_id AND e.id" SQL_EQ "ANY ($ids)"
	AND_IS_ENCRYPTED " ORDER BY e.id",
	STATEMENT_PARAMS(lock_params, NUM_LOCK_PARAMS),
	STATEMENT_COLUMNS(row_columns, NUM_ROW_COLUMNS),
	.by_index = true
};
static Statement lock_statement = {
	.sql = "SELECT @columns@ FROM " SQL_TABLE
	" WHERE e.extension_id" SQL_EQ "$extension_id AND e.id" SQL_EQ "ANY ($ids)"
	" ORDER BY e.id FOR NO KEY UPDATE SKIP LOCKED",
	STATEMENT_PARAMS(lock_params, NUM_LOCK_PARAMS),
	STATEMENT_COLUMNS(id_columns, NUM_ID_COLUMNS),
	.by_index = true
};

static Statement write_statement = {
	.sql = "UPDATE " SQL_TABLE " SET value = ($new_values)" ITS_PLACE
	" WHERE e.extension_id" SQL_EQ "$extension_id AND e.id" SQL_EQ "ANY ($ids)"
	AND_IS_ENCRYPTED " AND e.value" SQL_EQ "($old_values)" ITS_PLACE
	" RETURNING @columns@",
	STATEMENT_PARAMS(write_params, NUM_WRITE_PARAMS),
	STATEMENT_COLUMNS(written_columns, NUM_WRITTEN_COLUMNS),
	.by_index = true, .keeps_bytes = true
};
static Statement write_one_statement = {
	.sql = "UPDATE " SQL_TABLE " SET value = $new_value"
	" WHERE e.extension_id" SQL_EQ "$extension_id AND e.id" SQL_EQ "$id"
	AND_IS_ENCRYPTED " AND e.value" SQL_EQ "$old_value"
	" RETURNING (e.value" SQL_EQ "$new_value AND e.is_encrypted"
	" AND e.extension_id" SQL_EQ "$extension_id) IS TRUE",
	STATEMENT_PARAMS(one_params, NUM_WRITE_PARAMS),
	STATEMENT_COLUMNS(one_columns, NUM_ONE_COLUMNS),
	.by_index = true, .keeps_bytes = true
};

/*
 * Transactions that have written to the table, or may be about to.  That of the
 * caller is one of them once it has written anything, for it may be rolled back.
 */
enum
{
	WRITER_PARAM_DATABASE,
	WRITER_PARAM_TABLE,
	WRITER_PARAM_LIMIT,
	NUM_WRITER_PARAMS
};

enum
{
	WRITER_PID,
	WRITER_GID,
	NUM_WRITER_COLUMNS
};

static const StatementParam writer_params[] = {
	[WRITER_PARAM_DATABASE] = {"database", OIDOID},
	[WRITER_PARAM_TABLE] = {"table", OIDOID},
	[WRITER_PARAM_LIMIT] = {"limit", INT8OID}
};
static const StatementColumn writer_columns[] = {
	[WRITER_PID] = {"pid", INT4OID, NULLABLE},
	[WRITER_GID] = {"gid", TEXTOID, NULLABLE}
};

/*
 * A prepared transaction has no process.  What its locks have in common is the
 * virtual transaction that it was before.
 *
 * TRUNCATE and a rewrite of the table take AccessExclusiveLock alone.  While the
 * caller holds a lock, no other transaction has that one.
 */
static Statement writer_statement = {
	.sql = "SELECT l.pid, p.gid FROM pg_catalog.pg_locks AS l"
	" LEFT JOIN (pg_catalog.pg_locks AS x JOIN pg_catalog.pg_prepared_xacts AS p"
	" ON x.transactionid" SQL_EQ "p.transaction AND x.mode" SQL_EQ "'ExclusiveLock')"
	" ON x.virtualtransaction" SQL_EQ "l.virtualtransaction"
	" AND x.pid IS NULL AND l.pid IS NULL"
	" WHERE l.locktype" SQL_EQ "'relation' AND l.database" SQL_EQ "$database"
	" AND l.relation" SQL_EQ "$table AND l.mode" SQL_EQ
	"ANY (ARRAY['RowExclusiveLock', 'AccessExclusiveLock'])"
	" AND l.granted AND (l.pid IS NULL"
	" OR l.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()"
	" OR pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL)"
	" GROUP BY p.gid, l.pid"
	" ORDER BY (l.pid" SQL_EQ "pg_catalog.pg_backend_pid()) IS TRUE DESC,"
	" p.gid, l.pid LIMIT $limit",
	STATEMENT_PARAMS(writer_params, NUM_WRITER_PARAMS),
	STATEMENT_COLUMNS(writer_columns, NUM_WRITER_COLUMNS)
};

/* One encrypted row, as read. */
typedef struct EncryptedRow
{
	Datum		address[NUM_ADDRESS_PARAMS];
	char		nulls[NUM_ADDRESS_PARAMS];
	int64		id;
	Datum		uuid;
	Datum		token;			/* perhaps toasted */
} EncryptedRow;

/* The encrypted rows of an extension, as they are at the start. */
typedef struct ExtensionRows
{
	text	   *extension_id;
	int64		count;
	int64		last_id;
} ExtensionRows;

typedef struct SkippedRow
{
	text	   *extension_id;	/* that of an ExtensionRows */
	int64		id;
} SkippedRow;

typedef struct Rotation
{
	Procedure	procedure;
	Connection	connection;
	int64		total;
	int64		scanned;
	int64		rotated;
	int64		current;
	int64		failed;			/* no key reads them */
	int64		locked;			/* left, as somebody has locked them */
	int64		refused;		/* left, as they could not be written */
	int64		reported;		/* how many were scanned at the last report */
	MemoryContext context;		/* lasts for the whole call */
	MemoryContext retry_context;	/* reset after rows have been tried again */
	List	   *skipped;		/* of SkippedRow, in context */

	/* a batch */
	TimestampTz batch_started;
	Size		batch_bytes;	/* of new tokens */

	/* a group of rows of one extension, that are read but not yet looked at */
	MemoryContext group_context;	/* reset after each group */
	text	   *extension_id;
	bool		rows_are_locked;	/* were they locked before they were read? */
	bool		is_last_try;	/* are rows that cannot be locked left? */
	int			ngroup;
	Size		group_bytes;
	EncryptedRow rows[GROUP_ROWS];
	KeyringItem items[GROUP_ROWS];	/* their tokens, in group_context */
} Rotation;

/* The arguments of rotate_keys. */
enum
{
	ROTATE_ARG_EXTENSION_ID,
	ROTATE_ARG_BATCH_SIZE,
	ROTATE_ARG_DRY_RUN,
	ROTATE_ARG_SCANNED,
	ROTATE_ARG_ROTATED,
	ROTATE_ARG_CURRENT,
	ROTATE_ARG_FAILED,
	NUM_ROTATE_ARGS
};

static const ArgumentInfo rotate_arguments[] = {
	[ROTATE_ARG_EXTENSION_ID] = {"extension_id", TEXTOID, MAX_EXTENSION_ID_CHARS, true},
	[ROTATE_ARG_BATCH_SIZE] = {"batch_size", INT4OID, 0, true},
	[ROTATE_ARG_DRY_RUN] = {"dry_run", BOOLOID, 0, true},
	[ROTATE_ARG_SCANNED] = {"scanned", INT8OID, 0, false},
	[ROTATE_ARG_ROTATED] = {"rotated", INT8OID, 0, false},
	[ROTATE_ARG_CURRENT] = {"current", INT8OID, 0, false},
	[ROTATE_ARG_FAILED] = {"failed", INT8OID, 0, false}
};

static const ProcedureArguments rotate_procedure_arguments = {
	.batch_size = ROTATE_ARG_BATCH_SIZE,
	.max_batch_size = PG_INT32_MAX,
	.dry_run = ROTATE_ARG_DRY_RUN
};

/* Its result. */
enum
{
	ROTATE_SCANNED,
	ROTATE_ROTATED,
	ROTATE_CURRENT,
	ROTATE_FAILED,
	NUM_ROTATE_RESULTS
};

static const StatementColumn rotate_results[] = {
	[ROTATE_SCANNED] = {"scanned", INT8OID, NOT_NULL},
	[ROTATE_ROTATED] = {"rotated", INT8OID, NOT_NULL},
	[ROTATE_CURRENT] = {"current", INT8OID, NOT_NULL},
	[ROTATE_FAILED] = {"failed", INT8OID, NOT_NULL}
};

/* The arguments of verify. */
enum
{
	VERIFY_ARG_EXTENSION_ID,
	NUM_VERIFY_ARGS
};

static const ArgumentInfo verify_arguments[] = {
	[VERIFY_ARG_EXTENSION_ID] = {"extension_id", TEXTOID, MAX_EXTENSION_ID_CHARS, true}
};

PG_FUNCTION_INFO_V1(ext_storage_rotate_keys);
PG_FUNCTION_INFO_V1(ext_storage_configured_keys);
PG_FUNCTION_INFO_V1(ext_storage_key_status);
PG_FUNCTION_INFO_V1(ext_storage_verify);

/* Takes row n of what a statement has returned. */
static void
read_row(EncryptedRow *row, const Statement *statement, uint64 n)
{
	Datum		values[NUM_ROW_COLUMNS];
	bool		nulls[NUM_ROW_COLUMNS];

	StatementRow(statement, n, values, nulls);
	for (int i = 0; i < NUM_ADDRESS_PARAMS; i++)
	{
		row->address[i] = values[i];
		row->nulls[i] = nulls[i] ? 'n' : ' ';
	}
	row->id = DatumGetInt64(ColumnValue(row_columns, ROW_ID, INT8OID, values));
	row->uuid = ColumnValue(row_columns, ROW_UUID, UUIDOID, values);
	row->token = ColumnValue(row_columns, ROW_VALUE, BYTEAOID, values);
}

/* Takes the argument extension_id; NULL for all. */
static text *
extension_argument(FunctionCallInfo fcinfo, const ArgumentInfo *arguments,
				   int argno)
{
	return PG_ARGISNULL(argno) ? NULL : TextArgument(fcinfo, arguments, argno);
}

/*
 * Raises an error if there is no key.
 *
 * This is checked again for each group: the end of a transaction takes back
 * what was set for it alone.
 */
static void
require_keys(void)
{
	if (!KeyringEncrypts())
		ReportNoKey(NULL);
}

/* Warns about a row that is left as it is. */
static void
warn_of_row(const EncryptedRow *row, int sqlstate, const char *problem,
			const char *detail)
{
	ereport(WARNING,
			(errcode(sqlstate),
			 errmsg("%s, uuid %s, %s and is left as it is",
					DescribeEntry(row->address, row->nulls),
					DatumGetCString(DirectFunctionCall1(uuid_out, row->uuid)),
					problem),
			 detail != NULL ? errdetail_internal("%s", detail) : 0));
}

/* Remembers a row for the end of the walk, or leaves it in the last try. */
static void
skip_row(Rotation *rotation, const EncryptedRow *row)
{
	MemoryContext old_context;
	SkippedRow *skipped;

	if (rotation->is_last_try)
	{
		rotation->locked++;
		warn_of_row(row, ERRCODE_LOCK_NOT_AVAILABLE,
					"is locked by another transaction", NULL);
		return;
	}
	if (list_length(rotation->skipped) >= MAX_SKIPPED)
	{
		rotation->locked++;		/* that many are not waited for */
		return;
	}
	old_context = MemoryContextSwitchTo(rotation->context);
	skipped = palloc(sizeof(SkippedRow));
	skipped->extension_id = rotation->extension_id;
	skipped->id = row->id;
	rotation->skipped = lappend(rotation->skipped, skipped);
	MemoryContextSwitchTo(old_context);
}

/* Leaves a row that could not be written. */
static void
refuse_row(Rotation *rotation, const EncryptedRow *row, int sqlstate,
		   const char *detail)
{
	rotation->refused++;
	warn_of_row(row, sqlstate, "cannot be written", detail);
}

static int
compare_ids(const void *a, const void *b)
{
	int64		left = *(const int64 *) a;
	int64		right = *(const int64 *) b;

	return left < right ? -1 : left > right;
}

/* Is an id among the sorted ones? */
static bool
is_among(int64 id, const int64 *ids, uint64 nids)
{
	return bsearch(&id, ids, nids, sizeof(int64), compare_ids) != NULL;
}

/* Sets the parameters that name the rows. */
static void
ids_param(StatementArgs *args, const Rotation *rotation, const int64 *ids,
		  int nids)
{
	Datum	   *datums = palloc(nids * sizeof(Datum));

	for (int i = 0; i < nids; i++)
		datums[i] = Int64GetDatum(ids[i]);
	StatementArgsInit(args);
	StatementSet(args, WRITE_PARAM_EXTENSION_ID, TEXTOID,
				 PointerGetDatum(rotation->extension_id));
	StatementSet(args, WRITE_PARAM_IDS, INT8ARRAYOID,
				 MakeArray(datums, NULL, nids, INT8OID));
}

/*
 * Locks those of the rows that nobody else has locked, and returns their ids,
 * sorted.  Two rows with one id would be taken for one, and one of them keep its
 * old token.
 */
static int64 *
lock_rows(Rotation *rotation, const int64 *ids, int nids, uint64 *nlocked)
{
	StatementArgs args;
	int64	   *locked;

	ids_param(&args, rotation, ids, nids);
	*nlocked = StatementRun(&rotation->connection, &lock_statement, &args, false);
	locked = palloc(Max(*nlocked, 1) * sizeof(int64));
	for (uint64 i = 0; i < *nlocked; i++)
	{
		Datum		row[NUM_ID_COLUMNS];
		bool		nulls[NUM_ID_COLUMNS];

		StatementRow(&lock_statement, i, row, nulls);
		locked[i] = DatumGetInt64(ColumnValue(id_columns, ID_ID, INT8OID, row));
	}
	SPI_freetuptable(SPI_tuptable);
	qsort(locked, *nlocked, sizeof(int64), compare_ids);
	for (uint64 i = 1; i < *nlocked; i++)
		if (locked[i] == locked[i - 1])
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("table \"extension_storage\" has several rows with id " INT64_FORMAT,
							locked[i]),
					 errhint("Give these rows new ids, then restore the primary key of the table.")));
	return locked;
}

/* Locked rows of a group that are to be written. */
typedef struct Write
{
	Rotation   *rotation;
	const int  *rows;			/* their places in the group */
	int			nrows;
	bool		written[WRITE_COUNT];
} Write;

/* Raises an error unless the new token is what was written. */
static void
require_new(bool is_new)
{
	if (!is_new)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("a trigger or a rule of the table writes another value")));
}

/* Notes which of the rows the last statement has written, with these tokens. */
static void
note_written(Write *write, const int64 *ids, const Datum *sealed)
{
	text	   *extension_id = write->rotation->extension_id;

	memset(write->written, 0, sizeof(write->written));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Datum		row[NUM_WRITTEN_COLUMNS];
		bool		nulls[NUM_WRITTEN_COLUMNS];
		int64		id;
		const int64 *place;

		StatementRow(&write_statement, i, row, nulls);
		id = DatumGetInt64(ColumnValue(written_columns, WRITTEN_ID, INT8OID, row));
		place = bsearch(&id, ids, write->nrows, sizeof(int64), compare_ids);
		require_new(place != NULL &&
					DatumGetBool(ColumnValue(written_columns,
											 WRITTEN_IS_ENCRYPTED, BOOLOID,
											 row)) &&
					CompareTexts(DatumGetTextPP(ColumnValue(written_columns,
															WRITTEN_EXTENSION_ID,
															TEXTOID, row)),
								 extension_id) == 0 &&
					CompareTexts(DatumGetTextPP(ColumnValue(written_columns,
															WRITTEN_VALUE,
															BYTEAOID, row)),
								 DatumGetTextPP(sealed[place - ids])) == 0);
		write->written[place - ids] = true;
	}
}

/*
 * Writes the new tokens of rows, and notes which of them still had the token
 * that was read.  Raises an error if another value was written in place of one:
 * it must not stay.  state is a Write.
 */
static void
write_rows(void *state)
{
	Write	   *write = state;
	Rotation   *rotation = write->rotation;
	const int  *rows = write->rows;
	int			nrows = write->nrows;
	StatementArgs args;
	int64		ids[WRITE_COUNT] = {0};
	Datum		tokens[WRITE_COUNT];
	Datum		sealed[WRITE_COUNT];

	Assert(nrows <= WRITE_COUNT);
	for (int i = 0; i < nrows; i++)
	{
		ids[i] = rotation->rows[rows[i]].id;
		Assert(i == 0 || ids[i - 1] < ids[i]);	/* as ITS_PLACE needs */
		tokens[i] = PointerGetDatum(rotation->items[rows[i]].token);
		sealed[i] = PointerGetDatum(rotation->items[rows[i]].result);
	}
	if (nrows == 1)
	{
		StatementArgsInit(&args);
		StatementSet(&args, WRITE_PARAM_EXTENSION_ID, TEXTOID,
					 PointerGetDatum(rotation->extension_id));
		StatementSet(&args, WRITE_PARAM_IDS, INT8OID, Int64GetDatum(ids[0]));
		StatementSet(&args, WRITE_PARAM_OLD_VALUES, BYTEAOID, tokens[0]);
		StatementSet(&args, WRITE_PARAM_NEW_VALUES, BYTEAOID, sealed[0]);
		write->written[0] = StatementRun(&rotation->connection,
										 &write_one_statement, &args,
										 false) == 1;
		if (write->written[0])
		{
			Datum		row[NUM_ONE_COLUMNS];
			bool		nulls[NUM_ONE_COLUMNS];

			StatementRow(&write_one_statement, 0, row, nulls);
			require_new(DatumGetBool(ColumnValue(one_columns, ONE_IS_NEW,
												 BOOLOID, row)));
		}
		return;
	}
	ids_param(&args, rotation, ids, nrows);
	StatementSet(&args, WRITE_PARAM_OLD_VALUES, BYTEAARRAYOID,
				 MakeArray(tokens, NULL, nrows, BYTEAOID));
	StatementSet(&args, WRITE_PARAM_NEW_VALUES, BYTEAARRAYOID,
				 MakeArray(sealed, NULL, nrows, BYTEAOID));
	StatementRun(&rotation->connection, &write_statement, &args, false);
	note_written(write, ids, sealed);
	SPI_freetuptable(SPI_tuptable);
}

/* Counts a row that was written; one that was not is skipped or refused. */
static void
record_outcome(Rotation *rotation, int row, bool written)
{
	if (written)
		rotation->rotated++;
	else if (!rotation->rows_are_locked)
		skip_row(rotation, &rotation->rows[row]);	/* overtaken */
	else
		refuse_row(rotation, &rotation->rows[row],
				   ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION,
				   "Updating it had no effect; a trigger or a rule of the table may prevent it.");
}

/*
 * Writes locked rows of the group, WRITE_COUNT at most, and refuses those that
 * cannot be written.
 */
static void
write_or_refuse(Rotation *rotation, const int *rows, int nrows)
{
	Write		write = {.rotation = rotation,.rows = rows,.nrows = nrows};
	ErrorData  *error = StatementTry(write_rows, &write);

	for (int i = 0; i < nrows; i++)
	{
		if (error != NULL && nrows > 1)
		{
			write_or_refuse(rotation, &rows[i], 1); /* whose error is it? */
			continue;
		}
		if (error == NULL)
			record_outcome(rotation, rows[i], write.written[i]);
		else
			refuse_row(rotation, &rotation->rows[rows[i]], error->sqlerrcode,
					   psprintf("%s: %s", unpack_sql_state(error->sqlerrcode),
								error->message));
	}
}

/* Writes the rows of the group that have a new token. */
static void
write_group(Rotation *rotation)
{
	int64		ids[GROUP_ROWS];
	int			nids = 0;
	int64	   *locked;
	uint64		nlocked;
	int			small[WRITE_COUNT];
	int			nsmall = 0;

	for (int i = 0; i < rotation->ngroup; i++)
		if (rotation->items[i].result != NULL)
			ids[nids++] = rotation->rows[i].id;
	if (nids == 0)
		return;
	locked = lock_rows(rotation, ids, nids, &nlocked);

	for (int i = 0; i < rotation->ngroup; i++)
	{
		bytea	   *sealed = rotation->items[i].result;

		if (sealed == NULL)
			continue;
		rotation->batch_bytes += VARSIZE(sealed);
		if (!is_among(rotation->rows[i].id, locked, nlocked))
			skip_row(rotation, &rotation->rows[i]);
		else if (VARSIZE(sealed) >= WRITE_ALONE_BYTES)
			write_or_refuse(rotation, &i, 1);
		else
			small[nsmall++] = i;
		if (nsmall == WRITE_COUNT)
		{
			write_or_refuse(rotation, small, nsmall);
			nsmall = 0;
		}
	}
	if (nsmall > 0)
		write_or_refuse(rotation, small, nsmall);
}

/* Counts a row of the group that gets no new token. */
static void
count_unchanged(Rotation *rotation, int row)
{
	int			ordinal = rotation->items[row].ordinal;

	if (ordinal > 0)
		elog(ERROR, "new token of %s does not decrypt to the old value",
			 DescribeEntry(rotation->rows[row].address,
						   rotation->rows[row].nulls));
	if (ordinal == 0)
	{
		rotation->current++;
		return;
	}
	rotation->failed++;
	warn_of_row(&rotation->rows[row], ERRCODE_ES_UNREADABLE,
				"cannot be decrypted", NULL);
}

/* Re-encrypts the rows of the group, and writes them. */
static void
rotate_group(Rotation *rotation)
{
	MemoryContext old_context = MemoryContextSwitchTo(rotation->group_context);

	if (rotation->ngroup > 0)
	{
		require_keys();
		KeyringReseal(rotation->items, rotation->ngroup);
		for (int i = 0; i < rotation->ngroup; i++)
		{
			if (rotation->items[i].result == NULL)
				count_unchanged(rotation, i);
			else if (rotation->procedure.dry_run)
				rotation->rotated++;
		}
		if (!rotation->procedure.dry_run)
			write_group(rotation);
	}
	rotation->ngroup = 0;
	rotation->group_bytes = 0;
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(rotation->group_context);
}

/* Is the group so large that it must be rotated before it gets another row? */
static bool
group_is_full(const Rotation *rotation)
{
	return rotation->ngroup == GROUP_ROWS ||
		rotation->group_bytes >= GROUP_BYTES;
}

/* Adds row n of what a statement has returned to the group. */
static void
add_to_group(Rotation *rotation, const Statement *statement, uint64 n)
{
	MemoryContext old_context = MemoryContextSwitchTo(rotation->group_context);
	EncryptedRow *row = &rotation->rows[rotation->ngroup];
	KeyringItem *item = &rotation->items[rotation->ngroup];

	read_row(row, statement, n);
	item->token = StoredToken(row->token);
	rotation->ngroup++;
	rotation->group_bytes += VARSIZE_ANY(item->token);
	MemoryContextSwitchTo(old_context);
}

/*
 * Takes a snapshot, by which the values of rows stay readable, and checks that
 * it shows all of them.
 */
static void
take_snapshot(Rotation *rotation)
{
	if (!ActiveSnapshotSet())
		EnsurePortalSnapshotExists();
	StatementRequireAllRows(&rotation->connection);
}

/* Begins a batch.  The table is locked before its rows. */
static void
begin_batch(Rotation *rotation)
{
	take_snapshot(rotation);
	if (!rotation->procedure.dry_run)
		StatementLockTable(&rotation->connection, RowExclusiveLock);
	rotation->batch_started = GetCurrentTimestamp();
	rotation->batch_bytes = 0;
}

/* Commits, where that is possible. */
static void
next_transaction(Rotation *rotation)
{
	if (!rotation->procedure.commits)
		return;
	StatementCommit(&rotation->connection);
	CHECK_FOR_INTERRUPTS();
}

/* Must a batch end before it has all the rows that it may have? */
static bool
batch_is_full(const Rotation *rotation)
{
	int			limit = MAX_BATCH_MS;

	if (StatementTimeout > 0)
		limit = Min(limit, StatementTimeout / 4);
	return rotation->batch_bytes >= MAX_BATCH_BYTES ||
		TimestampDifferenceExceeds(rotation->batch_started,
								   GetCurrentTimestamp(), limit);
}

/* Tells how far it has come. */
static void
report_progress(Rotation *rotation)
{
	rotation->reported = rotation->scanned;
	ProcedureReport(&rotation->procedure, rotation->scanned,
					Max(rotation->total, rotation->scanned));
}

/* Ends a batch, and reports progress if it had all its rows or is the last. */
static void
finish_batch(Rotation *rotation, bool last)
{
	int64		since = rotation->scanned - rotation->reported;

	next_transaction(rotation);
	if (since >= rotation->procedure.batch_size || (last && since > 0))
		report_progress(rotation);
}

/*
 * Finds the extensions that have encrypted rows: one, or all if extension_id is
 * NULL.  Returns a list of ExtensionRows.
 */
static List *
find_extensions(Connection *connection, text *extension_id, bool read_only)
{
	Statement  *statement = extension_id != NULL ?
	&total_of_one_statement : &total_statement;
	StatementArgs args;
	List	   *extensions = NIL;
	uint64		n;

	StatementArgsInit(&args);
	if (extension_id != NULL)
		StatementSet(&args, WALK_PARAM_EXTENSION_ID, TEXTOID,
					 PointerGetDatum(extension_id));
	n = StatementRun(connection, statement, &args, read_only);
	for (uint64 i = 0; i < n; i++)
	{
		ExtensionRows *extension = palloc(sizeof(ExtensionRows));
		Datum		row[NUM_TOTAL_COLUMNS];
		bool		nulls[NUM_TOTAL_COLUMNS];

		StatementRow(statement, i, row, nulls);
		extension->extension_id =
			DatumGetTextPCopy(ColumnValue(total_columns, TOTAL_EXTENSION_ID,
										  TEXTOID, row));
		extension->count = DatumGetInt64(ColumnValue(total_columns, TOTAL_COUNT,
													 INT8OID, row));
		extension->last_id = DatumGetInt64(ColumnValue(total_columns,
													   TOTAL_LAST_ID, INT8OID,
													   row));
		extensions = lappend(extensions, extension);
	}
	SPI_freetuptable(SPI_tuptable);
	return extensions;
}

/* Reads rows of the extension whose ids are from first_id to last_id, by id. */
static uint64
read_rows(Rotation *rotation, int64 first_id, int64 last_id, int64 limit)
{
	StatementArgs args;

	StatementArgsInit(&args);
	StatementSet(&args, WALK_PARAM_EXTENSION_ID, TEXTOID,
				 PointerGetDatum(rotation->extension_id));
	StatementSet(&args, WALK_PARAM_FIRST_ID, INT8OID, Int64GetDatum(first_id));
	StatementSet(&args, WALK_PARAM_LAST_ID, INT8OID, Int64GetDatum(last_id));
	StatementSet(&args, WALK_PARAM_LIMIT, INT8OID, Int64GetDatum(limit));
	return StatementRun(&rotation->connection, &walk_statement, &args, false);
}

/*
 * Is the first row from first_id on one that the first key reads?  If so, id is
 * set to its id.
 */
static bool
next_is_current(Rotation *rotation, int64 first_id, int64 last_id, int64 *id)
{
	bool		current = false;

	if (read_rows(rotation, first_id, last_id, 1) > 0)
	{
		EncryptedRow row;
		uint64		timestamp;

		read_row(&row, &walk_statement, 0);
		current = KeyringFind(row.token, &timestamp) == 0;
		if (current)
			*id = row.id;
	}
	SPI_freetuptable(SPI_tuptable);
	return current;
}

/*
 * Guesses how far a call that was cut off had come: returns the id before which
 * rows are current, as far as samples tell, or the least one there can be.
 *
 * Beginning there lets calls that are cut off again and again make progress,
 * however long it takes to check what is done already.
 */
static int64
find_start(Rotation *rotation, const ExtensionRows *extension)
{
	int64		done;
	int64		open = extension->last_id;

	if (extension->count <= rotation->procedure.batch_size ||
		!next_is_current(rotation, PG_INT64_MIN, open, &done))
		return PG_INT64_MIN;
	while ((uint64) open - (uint64) done > (uint64) rotation->procedure.batch_size)
	{
		int64		middle = done +
		(int64) (((uint64) open - (uint64) done) / 2);

		CHECK_FOR_INTERRUPTS();
		if (!next_is_current(rotation, middle, open, &done))
			open = middle;
	}
	return done;
}

/*
 * Rotates the next rows of the extension, as many as the batch may still have.
 * Moves first_id on; false if there are no more.
 */
static bool
rotate_next_rows(Rotation *rotation, int64 *first_id, int64 last_id)
{
	int64		limit = rotation->procedure.batch_size -
	(rotation->scanned - rotation->reported);
	uint64		nrows = read_rows(rotation, *first_id, last_id, limit);
	SPITupleTable *table = SPI_tuptable;
	uint64		nread = 0;
	bool		more = nrows == (uint64) limit;

	while (nread < nrows && (nread == 0 || !batch_is_full(rotation)))
	{
		/* writing rows in between has left another table there */
		SPI_tuptable = table;
		SPI_processed = nrows;
		while (nread < nrows && !group_is_full(rotation))
			add_to_group(rotation, &walk_statement, nread++);
		rotation->scanned += rotation->ngroup;
		if (rotation->rows[rotation->ngroup - 1].id < last_id)
			*first_id = rotation->rows[rotation->ngroup - 1].id + 1;
		else
			more = false;
		rotate_group(rotation);
	}
	SPI_freetuptable(table);
	return nread < nrows || more;
}

/* Walks rows of the extension, batch by batch. */
static void
walk(Rotation *rotation, int64 first_id, int64 last_id)
{
	bool		more = true;

	while (more)
	{
		more = rotate_next_rows(rotation, &first_id, last_id);
		if (!more && !batch_is_full(rotation))
			break;
		finish_batch(rotation, false);
		begin_batch(rotation);
	}
}

/* Walks the rows of all extensions.  A batch may have rows of several. */
static void
walk_all(Rotation *rotation, List *extensions)
{
	ListCell   *cell;

	begin_batch(rotation);
	foreach(cell, extensions)
	{
		const ExtensionRows *extension = lfirst(cell);
		int64		start;

		rotation->extension_id = extension->extension_id;
		start = find_start(rotation, extension);
		walk(rotation, start, extension->last_id);
		if (start != PG_INT64_MIN)
			walk(rotation, PG_INT64_MIN, start - 1);
	}
	finish_batch(rotation, true);
}

/*
 * Tries rows of one extension again: those that can be locked now are rotated
 * as they are by now, the others are skipped once more.
 */
static void
retry_rows(Rotation *rotation, const int64 *ids, int nids)
{
	MemoryContext old_context;
	StatementArgs args;
	SPITupleTable *table;
	int64	   *locked;
	uint64		nlocked;
	uint64		nrows;

	begin_batch(rotation);
	old_context = MemoryContextSwitchTo(rotation->retry_context);
	locked = lock_rows(rotation, ids, nids, &nlocked);
	ids_param(&args, rotation, ids, nids);
	nrows = StatementRun(&rotation->connection, &read_statement, &args, false);
	table = SPI_tuptable;
	rotation->current += nids - nrows;	/* gone, or no longer encrypted */
	for (uint64 i = 0; i < nrows; i++)
	{
		EncryptedRow row;

		SPI_tuptable = table;
		SPI_processed = nrows;
		read_row(&row, &read_statement, i);
		if (is_among(row.id, locked, nlocked))
		{
			add_to_group(rotation, &read_statement, i);
			if (group_is_full(rotation))
				rotate_group(rotation);
		}
		else
			skip_row(rotation, &row);
	}
	rotate_group(rotation);
	SPI_freetuptable(table);
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(rotation->retry_context);
	next_transaction(rotation);
}

/* Tries the skipped rows once more. */
static void
retry_skipped(Rotation *rotation)
{
	List	   *skipped = rotation->skipped;
	int64		ids[GROUP_ROWS];
	int			nids = 0;

	rotation->skipped = NIL;
	for (int i = 0; i < list_length(skipped); i++)
	{
		const SkippedRow *row = list_nth(skipped, i);
		const SkippedRow *next = i + 1 < list_length(skipped) ?
		list_nth(skipped, i + 1) : NULL;

		ids[nids++] = row->id;
		if (nids < GROUP_ROWS && next != NULL &&
			next->extension_id == row->extension_id)
			continue;
		rotation->extension_id = row->extension_id;
		retry_rows(rotation, ids, nids);
		nids = 0;
	}
	list_free_deep(skipped);
}

/* Waits for the locks of the skipped rows, and leaves those that it cannot get. */
static void
rotate_skipped(Rotation *rotation)
{
	TimestampTz deadline =
	TimestampTzPlusMilliseconds(GetCurrentTimestamp(), rotation_lock_wait);

	rotation->rows_are_locked = true;
	if (rotation->skipped != NIL && rotation_lock_wait > 0)
		ereport(NOTICE,
				(errmsg("rotate_keys: waiting up to %g s for %d locked rows",
						rotation_lock_wait / 1000.0,
						list_length(rotation->skipped))));
	while (rotation->skipped != NIL)
	{
		int			before = list_length(rotation->skipped);

		rotation->is_last_try = GetCurrentTimestamp() >= deadline;
		retry_skipped(rotation);
		if (rotation->skipped == NIL || list_length(rotation->skipped) < before)
			continue;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 RETRY_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Makes the memory of a rotation, in that of the call. */
static Rotation *
make_rotation(void)
{
	Rotation   *rotation = palloc0(sizeof(Rotation));

	rotation->context = AllocSetContextCreate(CurrentMemoryContext,
											  "key rotation",
											  ALLOCSET_DEFAULT_SIZES);
	rotation->retry_context = AllocSetContextCreate(rotation->context,
													"key rotation retry",
													ALLOCSET_DEFAULT_SIZES);
	rotation->group_context = AllocSetContextCreate(rotation->context,
													"key rotation group",
													GROUP_MEMORY,
													ALLOCSET_DEFAULT_INITSIZE,
													ALLOCSET_DEFAULT_MAXSIZE);
	return rotation;
}

/* Rotates the rows of one extension, or of all if extension_id is NULL. */
static void
rotate_all(Rotation *rotation, text *extension_id)
{
	MemoryContext old_context = MemoryContextSwitchTo(rotation->context);
	List	   *extensions;
	ListCell   *cell;

	take_snapshot(rotation);
	extensions = find_extensions(&rotation->connection, extension_id, false);
	foreach(cell, extensions)
		rotation->total += ((ExtensionRows *) lfirst(cell))->count;
	walk_all(rotation, extensions);
	rotate_skipped(rotation);
	MemoryContextSwitchTo(old_context);
}

/* Tells what has been done, and what was left. */
static void
report_end(const Rotation *rotation)
{
	if (rotation->locked > 0 || rotation->refused > 0)
		ereport(WARNING,
				(errmsg("rotate_keys: " INT64_FORMAT " locked rows and "
						INT64_FORMAT " that cannot be written were left",
						rotation->locked, rotation->refused),
				 errhint("Call the procedure again when nothing locks or refuses them any more.")));
	ereport(NOTICE,
			(errmsg("rotate_keys: " INT64_FORMAT " scanned, " INT64_FORMAT
					" re-encrypted, " INT64_FORMAT " already current, "
					INT64_FORMAT " failed",
					rotation->scanned, rotation->rotated, rotation->current,
					rotation->failed)));
}

/*
 * ext_storage_rotate_keys(extension_id text, batch_size integer,
 *						   dry_run boolean, INOUT scanned bigint,
 *						   INOUT rotated bigint, INOUT current bigint,
 *						   INOUT failed bigint)
 *		Re-encrypts with the first key what another one has encrypted.
 */
Datum
ext_storage_rotate_keys(PG_FUNCTION_ARGS)
{
	Rotation   *rotation;
	text	   *extension_id;
	int64		counts[NUM_ROTATE_RESULTS];

	CheckArguments(fcinfo, rotate_arguments, NUM_ROTATE_ARGS);
	extension_id = extension_argument(fcinfo, rotate_arguments,
									  ROTATE_ARG_EXTENSION_ID);
	rotation = make_rotation();
	ProcedureStart(&rotation->procedure, "rotate_keys", fcinfo,
				   rotate_arguments, &rotate_procedure_arguments);
	CheckResult(rotation->procedure.tupdesc, rotate_results,
				NUM_ROTATE_RESULTS);
	require_keys();

	StatementConnect(&rotation->connection, fcinfo,
					 rotation->procedure.commits);
	ProcedureAnnounce(&rotation->procedure);
	/* the session's transaction may be stricter than READ COMMITTED */
	next_transaction(rotation);
	rotate_all(rotation, extension_id);
	report_end(rotation);
	SPI_finish();

	counts[ROTATE_SCANNED] = rotation->scanned;
	counts[ROTATE_ROTATED] = rotation->rotated;
	counts[ROTATE_CURRENT] = rotation->current;
	counts[ROTATE_FAILED] = rotation->failed;
	PG_RETURN_DATUM(ProcedureResult(&rotation->procedure, counts));
}

/*
 * Raises an error if the ordinals of keys may have lost their meaning: whatever
 * SQL has run, a policy's or a trigger's function, can have changed the keys.
 */
static void
require_same_keys(uint64 generation)
{
	if (KeyringGeneration() != generation)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("encryption keys have changed while entries were read"),
				 errhint("Try again.")));
}

/* Called with each encrypted row, and what KeyringFindMany says of its token. */
typedef void (*VisitRow) (void *state, const EncryptedRow *row, int found,
						  uint64 timestamp);

/*
 * Visits the encrypted rows of one extension, or of all if extension_id is
 * NULL, without writing.
 */
static void
visit_rows(Connection *connection, text *extension_id, VisitRow visit,
		   void *state)
{
	EncryptedRow rows[FETCH_COUNT];
	Datum		tokens[FETCH_COUNT];
	int			found[FETCH_COUNT];
	uint64		timestamps[FETCH_COUNT];
	uint64		generation = KeyringGeneration();
	List	   *extensions;
	ListCell   *cell;

	StatementRequireAllRows(connection);
	extensions = find_extensions(connection, extension_id, true);
	foreach(cell, extensions)
	{
		StatementArgs args;
		Portal		portal;
		uint64		nrows;

		StatementArgsInit(&args);
		StatementSet(&args, WALK_PARAM_EXTENSION_ID, TEXTOID,
					 PointerGetDatum(((ExtensionRows *) lfirst(cell))->extension_id));
		StatementSet(&args, WALK_PARAM_FIRST_ID, INT8OID,
					 Int64GetDatum(PG_INT64_MIN));
		StatementSet(&args, WALK_PARAM_LAST_ID, INT8OID,
					 Int64GetDatum(PG_INT64_MAX));
		portal = StatementOpen(connection, &walk_statement, &args);
		do
		{
			nrows = StatementNext(connection, &walk_statement, portal,
								  FETCH_COUNT);
			for (uint64 i = 0; i < nrows; i++)
			{
				read_row(&rows[i], &walk_statement, i);
				tokens[i] = rows[i].token;
			}
			KeyringFindMany(tokens, (int) nrows, found, timestamps);
			require_same_keys(generation);
			for (uint64 i = 0; i < nrows; i++)
				visit(state, &rows[i], found[i], timestamps[i]);
			SPI_freetuptable(SPI_tuptable);
		} while (nrows > 0);
		SPI_cursor_close(portal);
	}
}

/* What is known of the entries that a key made. */
typedef struct KeyUse
{
	int64		entries;
	TimestampTz oldest;
	TimestampTz newest;
} KeyUse;

/* One per key, and one for the entries that none reads. */
typedef struct KeyUses
{
	int			nkeys;
	KeyUse		uses[FLEXIBLE_ARRAY_MEMBER];
} KeyUses;

/* Counts a row with the key that made it. */
static void
count_use(void *state, const EncryptedRow *row pg_attribute_unused(),
		  int found, uint64 seconds)
{
	KeyUses    *uses = state;
	KeyUse	   *use = &uses->uses[found >= 0 ? found : uses->nkeys];
	TimestampTz timestamp;

	use->entries++;
	if (found == KEYRING_NO_TOKEN || !FernetTimestamp(seconds, &timestamp))
		return;
	use->oldest = Min(use->oldest, timestamp);
	use->newest = Max(use->newest, timestamp);
}

/*
 * Names the transactions that may have made entries which are not visible yet,
 * or that may give back what they have replaced or deleted; NULL if there are
 * none.
 */
static char *
name_writers(Connection *connection)
{
	StringInfoData names;
	StatementArgs args;
	uint64		n;

	initStringInfo(&names);
	StatementArgsInit(&args);
	StatementSet(&args, WRITER_PARAM_DATABASE, OIDOID,
				 ObjectIdGetDatum(MyDatabaseId));
	StatementSet(&args, WRITER_PARAM_TABLE, OIDOID,
				 ObjectIdGetDatum(StatementTable(connection)));
	StatementSet(&args, WRITER_PARAM_LIMIT, INT8OID, Int64GetDatum(MAX_WRITERS));
	n = StatementRun(connection, &writer_statement, &args, true);
	for (uint64 i = 0; i < n; i++)
	{
		Datum		row[NUM_WRITER_COLUMNS];
		bool		nulls[NUM_WRITER_COLUMNS];

		StatementRow(&writer_statement, i, row, nulls);
		if (i > 0)
			appendStringInfoString(&names, ", ");
		if (!nulls[WRITER_GID])
			appendStringInfo(&names, "prepared transaction \"%s\"",
							 TextDatumGetCString(ColumnValue(writer_columns,
															 WRITER_GID, TEXTOID,
															 row)));
		else if (nulls[WRITER_PID])
			appendStringInfoString(&names, "a prepared transaction");
		else
		{
			int			pid = DatumGetInt32(ColumnValue(writer_columns,
														WRITER_PID, INT4OID,
														row));

			appendStringInfoString(&names, pid == MyProcPid ?
								   "this transaction" :
								   psprintf("process %d", pid));
		}
	}
	SPI_freetuptable(SPI_tuptable);
	return n > 0 ? names.data : NULL;
}

/* The columns of ext_storage_configured_keys(). */
enum
{
	KEY_ORDINAL,
	KEY_FINGERPRINT,
	KEY_ROLE,
	KEY_SOURCE,
	NUM_KEY_COLUMNS
};

static const StatementColumn key_columns[] = {
	[KEY_ORDINAL] = {"ordinal", INT4OID, NOT_NULL},
	[KEY_FINGERPRINT] = {"fingerprint", TEXTOID, NOT_NULL},
	[KEY_ROLE] = {"role", TEXTOID, NOT_NULL},
	[KEY_SOURCE] = {"source", TEXTOID, NOT_NULL}
};

/* Fills in the columns of a key, in memory of their own. */
static void
describe_key(Datum *values, int ordinal)
{
	char		fingerprint[KEYRING_FINGERPRINT_LEN];

	KeyringFingerprint(ordinal, fingerprint);
	values[KEY_ORDINAL] = Int32GetDatum(ordinal + 1);
	values[KEY_FINGERPRINT] =
		PointerGetDatum(cstring_to_text_with_len(fingerprint,
												 KEYRING_FINGERPRINT_LEN));
	values[KEY_ROLE] = CStringGetTextDatum(ordinal == 0 && KeyringEncrypts() ?
										   "encrypts" : "decrypts");
	values[KEY_SOURCE] = CStringGetTextDatum(KeyringSource(ordinal));
}

/*
 * ext_storage_configured_keys() returns setof record
 *		One row per configured key.  Reads no table.
 */
Datum
ext_storage_configured_keys(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int			nkeys = KeyringCount();

	InitMaterializedSRF(fcinfo, 0);
	CheckResult(rsinfo->setDesc, key_columns, NUM_KEY_COLUMNS);
	for (int i = 0; i < nkeys; i++)
	{
		Datum		values[NUM_KEY_COLUMNS];
		bool		nulls[NUM_KEY_COLUMNS] = {false};

		describe_key(values, i);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* The columns of ext_storage_key_status(). */
enum
{
	STATUS_ORDINAL,
	STATUS_FINGERPRINT,
	STATUS_ROLE,
	STATUS_ENTRIES,
	STATUS_OLDEST,
	STATUS_NEWEST,
	STATUS_REMOVABLE,
	STATUS_SOURCE,				/* new in 1.2; older versions end before it */
	NUM_STATUS_COLUMNS
};

static const StatementColumn status_columns[] = {
	[STATUS_ORDINAL] = {"ordinal", INT4OID, NULLABLE},
	[STATUS_FINGERPRINT] = {"fingerprint", TEXTOID, NULLABLE},
	[STATUS_ROLE] = {"role", TEXTOID, NOT_NULL},
	[STATUS_ENTRIES] = {"entries", INT8OID, NOT_NULL},
	[STATUS_OLDEST] = {"oldest", TIMESTAMPTZOID, NULLABLE},
	[STATUS_NEWEST] = {"newest", TIMESTAMPTZOID, NULLABLE},
	[STATUS_REMOVABLE] = {"removable", BOOLOID, NULLABLE},
	[STATUS_SOURCE] = {"source", TEXTOID, NULLABLE}
};

/* Why it cannot be known that nothing needs a key. */
typedef struct Doubt
{
	const char *detail;			/* NULL if it can */
	const char *hint;
} Doubt;

static Doubt
find_doubt(Connection *connection)
{
	Doubt		doubt = {0};
	Oid			table = StatementTable(connection);
	char	   *writers = NULL;

	if (RecoveryInProgress())
	{
		doubt.detail = "A standby does not know what is being written on the primary.";
		doubt.hint = "Ask the primary.";
	}
	else if (StatementIsDistributed(connection))
	{
		doubt.detail = "The table is distributed, and this server does not know what is being written on others.";
		doubt.hint = "Ask again while nothing writes. A key that has no entries then is not needed.";
	}
	else if (get_rel_relkind(table) != RELKIND_RELATION ||
			 find_inheritance_children(table, NoLock) != NIL)
	{
		doubt.detail = "The entries are in tables other than \"extension_storage\", where it is not known what is being written.";
		doubt.hint = "Ask again while nothing writes. A key that has no entries then is not needed.";
	}
	else if ((writers = name_writers(connection)) != NULL)
	{
		doubt.detail = psprintf("Transactions in progress may leave entries that need it: %s.",
								writers);
		doubt.hint = "Ask again when they have ended.";
	}
	return doubt;
}

/* Adds the row of a key to the result; ordinal is nkeys for that of no key. */
static void
return_use(ReturnSetInfo *rsinfo, const KeyUses *uses, int ordinal,
		   const bool *removable)
{
	const KeyUse *use = &uses->uses[ordinal];
	bool		known = ordinal < uses->nkeys;
	Datum		values[NUM_STATUS_COLUMNS] = {
		[STATUS_ENTRIES] = Int64GetDatum(use->entries),
		[STATUS_OLDEST] = TimestampTzGetDatum(use->oldest),
		[STATUS_NEWEST] = TimestampTzGetDatum(use->newest)
	};
	bool		nulls[NUM_STATUS_COLUMNS] = {
		[STATUS_ORDINAL] = !known,
		[STATUS_FINGERPRINT] = !known,
		[STATUS_SOURCE] = !known,
		[STATUS_OLDEST] = use->oldest > use->newest,
		[STATUS_NEWEST] = use->oldest > use->newest,
		[STATUS_REMOVABLE] = removable == NULL
	};

	if (known)
	{
		Datum		key[NUM_KEY_COLUMNS];

		describe_key(key, ordinal);
		values[STATUS_ORDINAL] = key[KEY_ORDINAL];
		values[STATUS_FINGERPRINT] = key[KEY_FINGERPRINT];
		values[STATUS_ROLE] = key[KEY_ROLE];
		values[STATUS_SOURCE] = key[KEY_SOURCE];
	}
	else
		values[STATUS_ROLE] = CStringGetTextDatum("unknown");
	if (removable != NULL)
		values[STATUS_REMOVABLE] = BoolGetDatum(*removable);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * Adds a row for each key, and one for the entries that none reads, to the
 * result.  A key that has no entries may be in use all the same if there is a
 * doubt.
 */
static void
return_uses(ReturnSetInfo *rsinfo, const KeyUses *uses, const Doubt *doubt)
{
	bool		doubted = false;

	for (int i = 0; i < uses->nkeys; i++)
	{
		bool		removable = uses->uses[i].entries == 0 &&
		(i > 0 || !KeyringEncrypts());
		bool		unknown = removable && doubt->detail != NULL;

		return_use(rsinfo, uses, i, unknown ? NULL : &removable);
		doubted = doubted || unknown;
	}
	return_use(rsinfo, uses, uses->nkeys, NULL);
	if (doubted)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("it is not known whether a key is removable"),
				 errdetail_internal("%s", doubt->detail),
				 errhint("%s", doubt->hint)));
}

/*
 * ext_storage_key_status() returns setof record
 *		One row per configured key, and one for the entries that none reads.
 *
 * Whatever the isolation level, it counts what is committed by now: an older
 * snapshot would call a key removable that has been used since.
 */
Datum
ext_storage_key_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int			nkeys = KeyringCount();
	uint64		generation = KeyringGeneration();
	KeyUses    *uses = palloc(offsetof(KeyUses, uses) +
							  (nkeys + 1) * sizeof(KeyUse));
	KeyUse		unused = {0, DT_NOEND, DT_NOBEGIN};
	Connection	connection;
	Doubt		doubt;

	InitMaterializedSRF(fcinfo, 0);
	CheckResult(rsinfo->setDesc, status_columns, NUM_STATUS_COLUMNS);
	StatementConnect(&connection, fcinfo, false);
	uses->nkeys = nkeys;
	for (int i = 0; i <= nkeys; i++)
		uses->uses[i] = unused;

	/*
	 * First look for writers, then take the snapshot: one that has ended by
	 * then is not named, but what it has written is in the snapshot.  The
	 * table has been locked before both, because a snapshot from before a
	 * rewrite of it shows none of its rows.
	 */
	doubt = find_doubt(&connection);
	PushActiveSnapshot(GetLatestSnapshot());
	visit_rows(&connection, NULL, count_use, uses);
	PopActiveSnapshot();

	require_same_keys(generation);
	return_uses(rsinfo, uses, &doubt);
	SPI_finish();
	return (Datum) 0;
}

/* The columns of ext_storage_verify(). */
enum
{
	VERIFY_UUID,
	VERIFY_EXTENSION_ID,
	VERIFY_USER_FK,
	VERIFY_RESOURCE_TYPE,
	VERIFY_RESOURCE_UUID,
	VERIFY_KEY,
	VERIFY_PROBLEM,
	NUM_VERIFY_COLUMNS
};

static const StatementColumn verify_columns[] = {
	[VERIFY_UUID] = {"uuid", UUIDOID, NOT_NULL},
	[VERIFY_EXTENSION_ID] = {"extension_id", TEXTOID, NOT_NULL},
	[VERIFY_USER_FK] = {"user_fk", INT4OID, NULLABLE},
	[VERIFY_RESOURCE_TYPE] = {"resource_type", TEXTOID, NULLABLE},
	[VERIFY_RESOURCE_UUID] = {"resource_uuid", TEXTOID, NULLABLE},
	[VERIFY_KEY] = {"key", TEXTOID, NOT_NULL},
	[VERIFY_PROBLEM] = {"problem", TEXTOID, NOT_NULL}
};

/* Adds a row that no key reads to the result of the calling function. */
static void
return_unreadable(void *state, const EncryptedRow *row, int found,
				  uint64 timestamp pg_attribute_unused())
{
	ReturnSetInfo *rsinfo = state;
	Datum		values[NUM_VERIFY_COLUMNS];
	bool		nulls[NUM_VERIFY_COLUMNS] = {false};
	int64		user = DatumGetInt64(row->address[PARAM_USER_FK]);
	const char *problem = KeyringProblem(found);

	if (found >= 0)
		return;
	nulls[VERIFY_USER_FK] = row->nulls[PARAM_USER_FK] == 'n';
	if (!nulls[VERIFY_USER_FK] && user != (int32) user)
	{
		nulls[VERIFY_USER_FK] = true;
		problem = psprintf("%s; of user " INT64_FORMAT, problem, user);
	}
	values[VERIFY_UUID] = row->uuid;
	values[VERIFY_EXTENSION_ID] = row->address[PARAM_EXTENSION_ID];
	values[VERIFY_USER_FK] = Int32GetDatum((int32) user);
	values[VERIFY_RESOURCE_TYPE] = row->address[PARAM_RESOURCE_TYPE];
	values[VERIFY_RESOURCE_UUID] = row->address[PARAM_RESOURCE_UUID];
	values[VERIFY_KEY] = row->address[PARAM_KEY];
	values[VERIFY_PROBLEM] = CStringGetTextDatum(problem);
	nulls[VERIFY_RESOURCE_TYPE] = row->nulls[PARAM_RESOURCE_TYPE] == 'n';
	nulls[VERIFY_RESOURCE_UUID] = row->nulls[PARAM_RESOURCE_UUID] == 'n';
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	pfree(DatumGetPointer(values[VERIFY_PROBLEM]));
}

/*
 * ext_storage_verify(extension_id text) returns setof record
 *		The encrypted entries that no configured key reads.
 */
Datum
ext_storage_verify(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	text	   *extension_id;
	Connection	connection;

	CheckArguments(fcinfo, verify_arguments, NUM_VERIFY_ARGS);
	extension_id = extension_argument(fcinfo, verify_arguments,
									  VERIFY_ARG_EXTENSION_ID);
	InitMaterializedSRF(fcinfo, 0);
	CheckResult(rsinfo->setDesc, verify_columns, NUM_VERIFY_COLUMNS);
	StatementConnect(&connection, fcinfo, false);
	visit_rows(&connection, extension_id, return_unreadable, rsinfo);
	SPI_finish();
	return (Datum) 0;
}

/*
 * RotationInit
 *		Defines the setting of this module.
 */
void
RotationInit(void)
{
	DefineCustomIntVariable("extension_storage.rotation_lock_wait",
							"How long a key rotation waits, in all, for rows that others have locked.",
							"It waits at its end, and leaves the rows that are still locked then.",
							&rotation_lock_wait,
							10000, 0, INT_MAX,
							PGC_USERSET,
							GUC_UNIT_MS,
							NULL, NULL, NULL);
}
