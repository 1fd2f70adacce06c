/*-------------------------------------------------------------------------
 *
 * rotation.c
 *	  Re-encrypt with a new key while everything runs, and tell which keys are
 *	  still needed and what cannot be read.
 *
 * Rotation walks the encrypted rows by primary key and commits each batch.  A
 * batch locks only what it is going to replace, and skips rows that somebody
 * else has locked: it would otherwise wait with locks in its hands, and a
 * client that writes several entries in another order would get a deadlock.
 * The skipped ones come after the batch's commit, one by one, with nothing
 * else locked.  Every statement that locks or writes names the extension, and
 * none spans two.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "entry.h"
#include "errors.h"
#include "funcapi.h"
#include "keyring.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "statement.h"
#include "tcop/pquery.h"
#include "token.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#define FETCH_COUNT 100			/* rows a fetch, where nothing is written */

/* How much may be waiting to be written, in bytes of new tokens. */
#define MAX_PENDING_BYTES (8 * 1024 * 1024)

/*
 * What the memory of a batch keeps when it is reset: enough for the default
 * batch_size and tokens of usual size, so as not to get it from the kernel and
 * give it back with each batch.
 */
#define BATCH_MEMORY (512 * 1024)

/* Rows that one UPDATE writes, and how long a token is that has one alone. */
#define WRITE_COUNT 32
#define WRITE_ALONE_BYTES (64 * 1024)

/* Rows, and bytes of their tokens, that are decrypted together. */
#define GROUP_ROWS 64
#define GROUP_BYTES (64 * 1024)


/* An encrypted row. */
enum
{
	ROW_ID = NUM_ADDRESS_PARAMS,
	ROW_UUID,
	ROW_VALUE,
	NUM_ROW_COLUMNS
};

static const StatementColumn row_columns[] = {
	ADDRESS_COLUMNS,
	[ROW_ID] = {"id", INT8OID, NOT_NULL},
	[ROW_UUID] = {"uuid", UUIDOID, NOT_NULL},
	[ROW_VALUE] = {"value", BYTEAOID, NOT_NULL}
};

enum
{
	WALK_PARAM_EXTENSION_ID,
	WALK_PARAM_AFTER_ID,
	WALK_PARAM_LAST_ID,
	WALK_PARAM_LIMIT
};

static const StatementParam walk_params[] = {
	[WALK_PARAM_EXTENSION_ID] = {"extension_id", TEXTOID},
	[WALK_PARAM_AFTER_ID] = {"after_id", INT8OID},
	[WALK_PARAM_LAST_ID] = {"last_id", INT8OID},
	[WALK_PARAM_LIMIT] = {"limit", INT8OID}
};

enum
{
	TOTAL_COUNT,
	TOTAL_LAST_ID,
	NUM_TOTAL_COLUMNS
};

static const StatementColumn total_columns[] = {
	[TOTAL_COUNT] = {"count", INT8OID, NOT_NULL},
	[TOTAL_LAST_ID] = {"last_id", INT8OID, NULLABLE}
};

/* What names the rows that are locked and written. */
enum
{
	WRITE_PARAM_EXTENSION_ID,
	WRITE_PARAM_IDS,
	WRITE_PARAM_OLD_VALUES,
	WRITE_PARAM_NEW_VALUES
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
static const StatementColumn id_columns[] = {{"id", INT8OID, NOT_NULL}};

#define OF_EXTENSION \
	" AND ($extension_id IS NULL OR e.extension_id" SQL_EQ "$extension_id)"

static Statement total_statement = {
	.sql = "SELECT pg_catalog.count(*),"
	" CAST(pg_catalog.max(e.id) AS pg_catalog.int8) FROM " SQL_TABLE
	" WHERE e.is_encrypted" OF_EXTENSION,
	STATEMENT_PARAMS(walk_params), STATEMENT_COLUMNS(total_columns)
};
static Statement walk_statement = {
	.sql = "SELECT @columns@ FROM " SQL_TABLE
	" WHERE e.id" SQL_GT "$after_id AND e.id" SQL_LE "$last_id AND e.is_encrypted"
	OF_EXTENSION " ORDER BY e.id LIMIT $limit",
	STATEMENT_PARAMS(walk_params), STATEMENT_COLUMNS(row_columns),
	.by_index = true
};
static Statement lock_statement = {
	.sql = "SELECT @columns@ FROM " SQL_TABLE
	" WHERE e.extension_id" SQL_EQ "$extension_id AND e.id" SQL_EQ "ANY ($ids)"
	" ORDER BY e.id FOR NO KEY UPDATE SKIP LOCKED",
	STATEMENT_PARAMS(lock_params), STATEMENT_COLUMNS(id_columns),
	.by_index = true
};
static Statement lock_one_statement = {
	.sql = "SELECT @columns@ FROM " SQL_TABLE
	" WHERE e.extension_id" SQL_EQ "$extension_id AND e.id" SQL_EQ "$id"
	" AND e.is_encrypted FOR NO KEY UPDATE",
	STATEMENT_PARAMS(one_params), STATEMENT_COLUMNS(row_columns),
	.by_index = true
};

/*
 * Where a row's tokens are in the arrays: the ids are sorted.  A join with the
 * arrays would leave the planner the choice of going through all of them for
 * each row.
 */
#define ITS_PLACE "[pg_catalog.width_bucket(CAST(e.id AS pg_catalog.int8), $ids)]"

/* A rotation does not change how many bytes a quota counts. */
static Statement write_statement = {
	.sql = "UPDATE " SQL_TABLE " SET value = ($new_values)" ITS_PLACE
	" WHERE e.extension_id" SQL_EQ "$extension_id AND e.id" SQL_EQ "ANY ($ids)"
	" AND e.value" SQL_EQ "($old_values)" ITS_PLACE
	" RETURNING @columns@",
	STATEMENT_PARAMS(write_params), STATEMENT_COLUMNS(id_columns),
	.by_index = true
};
static Statement write_one_statement = {
	.sql = "UPDATE " SQL_TABLE " SET value = $new_value"
	" WHERE e.extension_id" SQL_EQ "$extension_id AND e.id" SQL_EQ "$id"
	" AND e.value" SQL_EQ "$old_value",
	STATEMENT_PARAMS(one_params),
	.by_index = true
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

/* A row that is to be replaced; sealed is NULL until it has been decided. */
typedef struct PendingRow
{
	int64		id;
	text	   *extension_id;
	bytea	   *token;
	bytea	   *sealed;
} PendingRow;

typedef struct Rotation
{
	Connection	connection;
	bool		commits;		/* false inside a transaction block */
	bool		dry_run;
	Datum		extension_id;	/* which one, or (Datum) 0 */
	int64		batch_size;
	int64		total;
	int64		scanned;
	int64		rotated;
	int64		current;
	int64		failed;
	TimestampTz started;
	MemoryContext context;		/* lasts for the whole call */
	MemoryContext batch_context;	/* reset after each batch */
	MemoryContext row_context;	/* reset after each row, and each write */
	EncryptedRow group[GROUP_ROWS]; /* read, but not yet looked at */
	KeyringItem items[GROUP_ROWS];	/* their tokens, in batch_context */
	int			ngroup;
	Size		group_bytes;
	List	   *pending;		/* of PendingRow, in batch_context */
	Size		pending_bytes;
	List	   *skipped;		/* of PendingRow, in context */
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
	[ROTATE_ARG_EXTENSION_ID] = {"extension_id", MAX_EXTENSION_ID_CHARS, false},
	[ROTATE_ARG_BATCH_SIZE] = {"batch_size", 0, false},
	[ROTATE_ARG_DRY_RUN] = {"dry_run", 0, false},
	[ROTATE_ARG_SCANNED] = {"scanned", 0, false},
	[ROTATE_ARG_ROTATED] = {"rotated", 0, false},
	[ROTATE_ARG_CURRENT] = {"current", 0, false},
	[ROTATE_ARG_FAILED] = {"failed", 0, false}
};

/* The arguments of verify. */
static const ArgumentInfo verify_arguments[] = {
	{"extension_id", MAX_EXTENSION_ID_CHARS, false}
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
	row->id = DatumGetInt64(values[ROW_ID]);
	row->uuid = values[ROW_UUID];
	row->token = values[ROW_VALUE];
}

/* Takes the argument extension_id; NULL for all. */
static text *
extension_argument(FunctionCallInfo fcinfo, const ArgumentInfo *arguments,
				   int argno)
{
	text	   *extension_id = TextArgument(fcinfo, arguments, argno);

	if (extension_id != NULL && VARSIZE_ANY_EXHDR(extension_id) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", arguments[argno].name)));
	return extension_id;
}

/*
 * Raises an error if there is no key.
 *
 * This is asked for anew for each batch: the end of a transaction takes back
 * what was set for it alone.
 */
static void
require_keys(void)
{
	if (!KeyringEncrypts())
		ereport(ERROR,
				(errcode(ERRCODE_ES_NO_KEY),
				 errmsg("no encryption key is configured"),
				 errhint("Set extension_storage.encryption_keys_file.")));
}

/*
 * Counts a row that needs no new token: the first key reads it already, or no
 * key does.
 */
static void
count_unchanged(Rotation *rotation, const EncryptedRow *row, int ordinal)
{
	if (ordinal == 0)
		rotation->current++;
	else if (ordinal < 0)
	{
		rotation->failed++;
		ereport(WARNING,
				(errcode(ERRCODE_ES_UNREADABLE),
				 errmsg("%s, uuid %s, cannot be decrypted and is left as it is",
						DescribeEntry(row->address, row->nulls),
						DatumGetCString(DirectFunctionCall1(uuid_out,
															row->uuid)))));
	}
	else
		elog(ERROR, "new token of %s does not decrypt to the old value",
			 DescribeEntry(row->address, row->nulls));
}

static int
compare_ids(const void *a, const void *b)
{
	int64		left = *(const int64 *) a;
	int64		right = *(const int64 *) b;

	return left < right ? -1 : left > right;
}

/* The ids that the last statement returned, sorted. */
static int64 *
returned_ids(const Statement *statement, uint64 *nids)
{
	int64	   *ids = palloc(Max(SPI_processed, 1) * sizeof(int64));

	*nids = SPI_processed;
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Datum		id;
		bool		isnull;

		StatementRow(statement, i, &id, &isnull);
		ids[i] = DatumGetInt64(id);
	}
	SPI_freetuptable(SPI_tuptable);
	qsort(ids, *nids, sizeof(int64), compare_ids);
	return ids;
}

/* Is the row among the sorted ids? */
static bool
is_among(const PendingRow *row, const int64 *ids, uint64 nids)
{
	return bsearch(&row->id, ids, nids, sizeof(int64), compare_ids) != NULL;
}

/* Writes a new token; false if the row no longer holds the one read. */
static bool
write_one_row(Rotation *rotation, const PendingRow *row)
{
	StatementArgs args;

	StatementArgsInit(&args);
	StatementSet(&args, WRITE_PARAM_EXTENSION_ID,
				 PointerGetDatum(row->extension_id));
	StatementSet(&args, WRITE_PARAM_IDS, Int64GetDatum(row->id));
	StatementSet(&args, WRITE_PARAM_OLD_VALUES, PointerGetDatum(row->token));
	StatementSet(&args, WRITE_PARAM_NEW_VALUES, PointerGetDatum(row->sealed));
	return StatementRun(&rotation->connection, &write_one_statement, &args,
						false) == 1;
}

/* Remembers a row for later, when no other row is locked. */
static void
skip_row(Rotation *rotation, const PendingRow *row)
{
	MemoryContext old_context = MemoryContextSwitchTo(rotation->context);
	PendingRow *skipped = palloc0(sizeof(PendingRow));

	skipped->id = row->id;
	skipped->extension_id = DatumGetTextPCopy(PointerGetDatum(row->extension_id));
	rotation->skipped = lappend(rotation->skipped, skipped);
	MemoryContextSwitchTo(old_context);
}

/* Counts a row that was written, and puts off one that was not. */
static void
settle_row(Rotation *rotation, const PendingRow *row, bool written)
{
	if (written)
		rotation->rotated++;
	else
		skip_row(rotation, row);
}

/* Makes an array of the rows' ids. */
static Datum
id_array(PendingRow **rows, int nrows)
{
	Datum	   *ids = palloc(nrows * sizeof(Datum));

	for (int i = 0; i < nrows; i++)
		ids[i] = Int64GetDatum(rows[i]->id);
	return PointerGetDatum(construct_array(ids, nrows, INT8OID, sizeof(int64),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/* Writes locked rows of one extension, WRITE_COUNT at most. */
static void
write_rows(Rotation *rotation, PendingRow **rows, int nrows)
{
	Datum		tokens[WRITE_COUNT];
	Datum		sealed[WRITE_COUNT];
	StatementArgs args;
	MemoryContext old_context = MemoryContextSwitchTo(rotation->row_context);
	int64	   *written;
	uint64		nwritten;

	for (int i = 0; i < nrows; i++)
	{
		tokens[i] = PointerGetDatum(rows[i]->token);
		sealed[i] = PointerGetDatum(rows[i]->sealed);
	}
	StatementArgsInit(&args);
	StatementSet(&args, WRITE_PARAM_EXTENSION_ID,
				 PointerGetDatum(rows[0]->extension_id));
	StatementSet(&args, WRITE_PARAM_IDS, id_array(rows, nrows));
	StatementSet(&args, WRITE_PARAM_OLD_VALUES,
				 PointerGetDatum(construct_array(tokens, nrows, BYTEAOID, -1,
												 false, TYPALIGN_INT)));
	StatementSet(&args, WRITE_PARAM_NEW_VALUES,
				 PointerGetDatum(construct_array(sealed, nrows, BYTEAOID, -1,
												 false, TYPALIGN_INT)));
	StatementRun(&rotation->connection, &write_statement, &args, false);
	written = returned_ids(&write_statement, &nwritten);
	for (int i = 0; i < nrows; i++)
		settle_row(rotation, rows[i], is_among(rows[i], written, nwritten));
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(rotation->row_context);
}

/*
 * Writes pending rows of one extension, without waiting for anybody.
 */
static void
write_unlocked_rows(Rotation *rotation, PendingRow **rows, int nrows)
{
	StatementArgs args;
	int64	   *locked;
	uint64		nlocked;
	PendingRow *several[WRITE_COUNT];
	int			nseveral = 0;

	StatementArgsInit(&args);
	StatementSet(&args, WRITE_PARAM_EXTENSION_ID,
				 PointerGetDatum(rows[0]->extension_id));
	StatementSet(&args, WRITE_PARAM_IDS, id_array(rows, nrows));
	StatementRun(&rotation->connection, &lock_statement, &args, false);
	locked = returned_ids(&lock_statement, &nlocked);

	for (int i = 0; i < nrows; i++)
	{
		if (!is_among(rows[i], locked, nlocked))
			skip_row(rotation, rows[i]);
		else if (VARSIZE(rows[i]->sealed) >= WRITE_ALONE_BYTES)
			settle_row(rotation, rows[i], write_one_row(rotation, rows[i]));
		else
			several[nseveral++] = rows[i];
		if (nseveral == WRITE_COUNT || (nseveral > 0 && i == nrows - 1))
		{
			write_rows(rotation, several, nseveral);
			nseveral = 0;
		}
	}
}

/* Compares extension ids, by bytes: all that matters is what is equal. */
static int
compare_extensions(const PendingRow *left, const PendingRow *right)
{
	int			left_len = VARSIZE_ANY_EXHDR(left->extension_id);
	int			right_len = VARSIZE_ANY_EXHDR(right->extension_id);

	if (left_len != right_len)
		return left_len < right_len ? -1 : 1;
	return memcmp(VARDATA_ANY(left->extension_id),
				  VARDATA_ANY(right->extension_id), left_len);
}

static int
compare_pending(const ListCell *a, const ListCell *b)
{
	const PendingRow *left = lfirst(a);
	const PendingRow *right = lfirst(b);
	int			result = compare_extensions(left, right);

	return result != 0 ? result : compare_ids(&left->id, &right->id);
}

/* Writes all pending rows, extension by extension. */
static void
write_pending(Rotation *rotation)
{
	MemoryContext old_context = MemoryContextSwitchTo(rotation->batch_context);
	int			nrows = list_length(rotation->pending);
	PendingRow **rows = palloc(Max(nrows, 1) * sizeof(PendingRow *));
	int			start = 0;

	list_sort(rotation->pending, compare_pending);
	for (int i = 0; i < nrows; i++)
		rows[i] = list_nth(rotation->pending, i);
	for (int end = 1; end <= nrows; end++)
	{
		if (end < nrows && compare_extensions(rows[start], rows[end]) == 0)
			continue;
		write_unlocked_rows(rotation, &rows[start], end - start);
		start = end;
	}
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(rotation->batch_context);
	rotation->pending = NIL;
	rotation->pending_bytes = 0;
}

/* Starts to work on rows: their values must stay readable while we do. */
static void
begin_batch(void)
{
	if (!ActiveSnapshotSet())
		EnsurePortalSnapshotExists();
}

/*
 * Commits, where that is possible.
 *
 * The next transaction is READ COMMITTED whatever the session's default is:
 * under a stricter level a concurrent write would abort the rotation.
 */
static void
end_batch(Rotation *rotation)
{
	if (!rotation->commits)
		return;
	SPI_commit();
	XactIsoLevel = XACT_READ_COMMITTED;
}

/*
 * Re-encrypts the rows of the group, in one go, and keeps those that are to be
 * written.
 */
static void
rotate_group(Rotation *rotation)
{
	MemoryContext old_context = MemoryContextSwitchTo(rotation->batch_context);

	require_keys();
	KeyringReseal(rotation->items, rotation->ngroup);
	for (int i = 0; i < rotation->ngroup; i++)
	{
		const EncryptedRow *row = &rotation->group[i];
		const KeyringItem *item = &rotation->items[i];
		PendingRow *pending;

		if (item->result == NULL)
			count_unchanged(rotation, row, item->ordinal);
		else if (rotation->dry_run)
			rotation->rotated++;
		if (item->result == NULL || rotation->dry_run)
		{
			if (item->result != NULL)
				pfree(item->result);
			if ((Pointer) item->token != DatumGetPointer(row->token))
				pfree(item->token);
			continue;
		}
		pending = palloc(sizeof(PendingRow));
		pending->id = row->id;
		pending->extension_id = DatumGetTextPP(row->address[PARAM_EXTENSION_ID]);
		pending->token = item->token;
		pending->sealed = item->result;
		rotation->pending = lappend(rotation->pending, pending);
		rotation->pending_bytes += VARSIZE(item->result);
	}
	rotation->ngroup = 0;
	rotation->group_bytes = 0;
	MemoryContextSwitchTo(old_context);
}

/* Takes one row of a batch into the group, and that on if it is full. */
static void
rotate_row(Rotation *rotation, const EncryptedRow *row)
{
	KeyringItem *item = &rotation->items[rotation->ngroup];
	MemoryContext old_context = MemoryContextSwitchTo(rotation->batch_context);

	rotation->group[rotation->ngroup] = *row;
	item->token = DatumGetByteaPP(row->token);
	rotation->ngroup++;
	rotation->group_bytes += VARSIZE_ANY(item->token);
	if (rotation->ngroup == GROUP_ROWS || rotation->group_bytes >= GROUP_BYTES)
		rotate_group(rotation);
	MemoryContextSwitchTo(old_context);
}

/*
 * Treats the rows that were skipped: waits for each one's lock, then takes it
 * as it is by then.
 */
static void
rotate_skipped(Rotation *rotation)
{
	ListCell   *cell;

	foreach(cell, rotation->skipped)
	{
		PendingRow *pending = lfirst(cell);
		StatementArgs args;
		MemoryContext old_context;

		StatementArgsInit(&args);
		StatementSet(&args, WRITE_PARAM_EXTENSION_ID,
					 PointerGetDatum(pending->extension_id));
		StatementSet(&args, WRITE_PARAM_IDS, Int64GetDatum(pending->id));
		begin_batch();
		old_context = MemoryContextSwitchTo(rotation->batch_context);
		if (StatementRun(&rotation->connection, &lock_one_statement, &args,
						 false) == 0)
			rotation->current++;	/* gone, or no longer encrypted */
		else
		{
			SPITupleTable *table = SPI_tuptable;
			EncryptedRow row;
			KeyringItem item;

			read_row(&row, &lock_one_statement, 0);
			item.token = DatumGetByteaPP(row.token);
			require_keys();
			KeyringReseal(&item, 1);
			if (item.result == NULL)
				count_unchanged(rotation, &row, item.ordinal);
			else
			{
				pending->token = item.token;
				pending->sealed = item.result;
				if (!write_one_row(rotation, pending))
					elog(ERROR, "locked row of %s was not written",
						 DescribeEntry(row.address, row.nulls));
				rotation->rotated++;
			}
			SPI_freetuptable(table);
		}
		MemoryContextSwitchTo(old_context);
		MemoryContextReset(rotation->row_context);
		MemoryContextReset(rotation->batch_context);
		end_batch(rotation);
	}
	list_free_deep(rotation->skipped);
	rotation->skipped = NIL;
}

/* Tells how far it has come. */
static void
report_progress(const Rotation *rotation)
{
	double		seconds = (GetCurrentTimestamp() - rotation->started) /
	(double) USECS_PER_SEC;
	double		rate = rotation->scanned / Max(seconds, 0.000001);
	int64		total = Max(rotation->total, rotation->scanned);

	ereport(NOTICE,
			(errmsg("rotate_keys: " INT64_FORMAT " of " INT64_FORMAT
					" rows done, %.0f rows/s, %.0f s left",
					rotation->scanned, total, rate,
					(total - rotation->scanned) / rate)));
}

/* Walks the rows, batch by batch. */
static void
rotate_all(Rotation *rotation)
{
	StatementArgs args;
	Datum		total[NUM_TOTAL_COLUMNS];
	bool		nulls[NUM_TOTAL_COLUMNS];
	uint64		nrows;

	StatementArgsInit(&args);
	if (rotation->extension_id != (Datum) 0)
		StatementSet(&args, WALK_PARAM_EXTENSION_ID, rotation->extension_id);
	begin_batch();
	StatementRun(&rotation->connection, &total_statement, &args, false);
	StatementRow(&total_statement, 0, total, nulls);
	rotation->total = DatumGetInt64(total[TOTAL_COUNT]);
	if (nulls[TOTAL_LAST_ID])
		return;
	StatementSet(&args, WALK_PARAM_AFTER_ID, Int64GetDatum(PG_INT64_MIN));
	StatementSet(&args, WALK_PARAM_LAST_ID, total[TOTAL_LAST_ID]);
	StatementSet(&args, WALK_PARAM_LIMIT, Int64GetDatum(rotation->batch_size));

	do
	{
		SPITupleTable *table;

		begin_batch();
		nrows = StatementRun(&rotation->connection, &walk_statement, &args,
							 false);
		table = SPI_tuptable;
		for (uint64 i = 0; i < nrows; i++)
		{
			EncryptedRow row;

			CHECK_FOR_INTERRUPTS();
			/* writing rows in between has left another table there */
			SPI_tuptable = table;
			SPI_processed = nrows;
			read_row(&row, &walk_statement, i);
			StatementSet(&args, WALK_PARAM_AFTER_ID, Int64GetDatum(row.id));
			rotation->scanned++;
			rotate_row(rotation, &row);
			if (rotation->pending_bytes > MAX_PENDING_BYTES)
			{
				rotate_group(rotation);
				write_pending(rotation);
			}
		}
		rotate_group(rotation);
		write_pending(rotation);
		SPI_freetuptable(table);
		end_batch(rotation);
		rotate_skipped(rotation);
		if (nrows > 0)
			report_progress(rotation);
	} while (nrows == (uint64) rotation->batch_size);
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
	Rotation	rotation = {0};
	text	   *extension_id;
	TupleDesc	tupdesc;
	Datum		values[4];
	bool		nulls[4] = {false};
	HeapTuple	tuple;

	CheckArguments(fcinfo, rotate_arguments, NUM_ROTATE_ARGS);
	extension_id = extension_argument(fcinfo, rotate_arguments,
									  ROTATE_ARG_EXTENSION_ID);
	RequireArgument(fcinfo, rotate_arguments, ROTATE_ARG_BATCH_SIZE);
	RequireArgument(fcinfo, rotate_arguments, ROTATE_ARG_DRY_RUN);
	if (PG_GETARG_INT32(ROTATE_ARG_BATCH_SIZE) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("batch_size must be at least 1")));
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	require_keys();
	rotation.commits = fcinfo->context != NULL &&
		IsA(fcinfo->context, CallContext) &&
		!castNode(CallContext, fcinfo->context)->atomic;
	rotation.dry_run = PG_GETARG_BOOL(ROTATE_ARG_DRY_RUN);
	rotation.batch_size = PG_GETARG_INT32(ROTATE_ARG_BATCH_SIZE);
	rotation.started = GetCurrentTimestamp();

	StatementConnect(&rotation.connection, fcinfo, rotation.commits);
	rotation.context = AllocSetContextCreate(CurrentMemoryContext,
											 "key rotation",
											 ALLOCSET_DEFAULT_SIZES);
	rotation.batch_context = AllocSetContextCreate(rotation.context,
												   "key rotation batch",
												   BATCH_MEMORY,
												   ALLOCSET_DEFAULT_INITSIZE,
												   ALLOCSET_DEFAULT_MAXSIZE);
	rotation.row_context = AllocSetContextCreate(rotation.context,
												 "key rotation row",
												 ALLOCSET_DEFAULT_SIZES);
	if (extension_id != NULL)
		rotation.extension_id = PointerGetDatum(extension_id);

	if (!rotation.commits)
		ereport(NOTICE,
				(errmsg("rotate_keys: inside a transaction block, nothing is committed until it is")));
	if (rotation.dry_run)
		ereport(NOTICE,
				(errmsg("rotate_keys: dry run, nothing is written")));
	end_batch(&rotation);		/* leave the isolation level of the session */
	rotate_all(&rotation);
	ereport(NOTICE,
			(errmsg("rotate_keys: " INT64_FORMAT " scanned, " INT64_FORMAT
					" re-encrypted, " INT64_FORMAT " already current, "
					INT64_FORMAT " failed",
					rotation.scanned, rotation.rotated, rotation.current,
					rotation.failed)));
	SPI_finish();

	values[0] = Int64GetDatum(rotation.scanned);
	values[1] = Int64GetDatum(rotation.rotated);
	values[2] = Int64GetDatum(rotation.current);
	values[3] = Int64GetDatum(rotation.failed);
	tuple = heap_form_tuple(BlessTupleDesc(tupdesc), values, nulls);
	PG_RETURN_DATUM(HeapTupleGetDatum(tuple));
}

/* Opens a cursor over the encrypted rows, for readers. */
static Portal
open_walk(Connection *connection, text *extension_id)
{
	StatementArgs args;

	StatementArgsInit(&args);
	if (extension_id != NULL)
		StatementSet(&args, WALK_PARAM_EXTENSION_ID,
					 PointerGetDatum(extension_id));
	StatementSet(&args, WALK_PARAM_AFTER_ID, Int64GetDatum(PG_INT64_MIN));
	StatementSet(&args, WALK_PARAM_LAST_ID, Int64GetDatum(PG_INT64_MAX));
	return StatementOpen(connection, &walk_statement, &args);
}

/* What is known of the entries that a key made. */
typedef struct KeyUse
{
	int64		entries;
	TimestampTz oldest;
	TimestampTz newest;
} KeyUse;

/* Counts a row with the key that made it. */
static void
count_use(KeyUse *use, bool has_timestamp, uint64 seconds)
{
	TimestampTz timestamp;

	use->entries++;
	if (!has_timestamp || !FernetTimestamp(seconds, &timestamp))
		return;
	use->oldest = Min(use->oldest, timestamp);
	use->newest = Max(use->newest, timestamp);
}

/* Raises an error if what was found out with some keys is mixed with others. */
static void
require_same_keys(uint64 generation)
{
	if (KeyringGeneration() != generation)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("encryption keys have changed while entries were read"),
				 errhint("Try again.")));
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
	STATUS_SOURCE,				/* came with 1.2: older ones end before it */
	NUM_STATUS_COLUMNS
};

/*
 * ext_storage_key_status() returns setof record
 *		One row per configured key, and one for the entries that none reads.
 */
Datum
ext_storage_key_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int			nkeys = KeyringCount();
	uint64		generation = KeyringGeneration();
	bool		encrypts = KeyringEncrypts();
	KeyUse		unused = {0, DT_NOEND, DT_NOBEGIN};
	Datum		(*keys)[NUM_KEY_COLUMNS];
	KeyUse	   *uses;
	Connection	connection;
	Portal		portal;

	InitMaterializedSRF(fcinfo, 0);
	StatementConnect(&connection, fcinfo, false);

	keys = palloc((nkeys + 1) * sizeof(*keys));
	uses = palloc((nkeys + 1) * sizeof(KeyUse));
	for (int i = 0; i < nkeys; i++)
		describe_key(keys[i], i);
	for (int i = 0; i <= nkeys; i++)
		uses[i] = unused;

	portal = open_walk(&connection, NULL);
	do
	{
		uint64		nrows = StatementNext(&walk_statement, portal, FETCH_COUNT);

		for (uint64 i = 0; i < nrows; i++)
		{
			EncryptedRow row;
			uint64		timestamp;
			int			found;

			CHECK_FOR_INTERRUPTS();
			read_row(&row, &walk_statement, i);
			found = KeyringFind(row.token, &timestamp);
			require_same_keys(generation);
			count_use(&uses[found >= 0 ? found : nkeys],
					  found != KEYRING_NO_TOKEN, timestamp);
		}
		SPI_freetuptable(SPI_tuptable);
	} while (SPI_processed > 0);

	require_same_keys(generation);
	for (int i = 0; i <= nkeys; i++)
	{
		bool		known = i < nkeys;
		Datum		values[NUM_STATUS_COLUMNS] = {0};
		bool		nulls[NUM_STATUS_COLUMNS] = {false};

		if (known)
		{
			values[STATUS_ORDINAL] = keys[i][KEY_ORDINAL];
			values[STATUS_FINGERPRINT] = keys[i][KEY_FINGERPRINT];
			values[STATUS_ROLE] = keys[i][KEY_ROLE];
			values[STATUS_SOURCE] = keys[i][KEY_SOURCE];
		}
		else
			values[STATUS_ROLE] = CStringGetTextDatum("unknown");
		nulls[STATUS_ORDINAL] = nulls[STATUS_FINGERPRINT] = !known;
		nulls[STATUS_REMOVABLE] = nulls[STATUS_SOURCE] = !known;
		values[STATUS_ENTRIES] = Int64GetDatum(uses[i].entries);
		values[STATUS_OLDEST] = TimestampTzGetDatum(uses[i].oldest);
		values[STATUS_NEWEST] = TimestampTzGetDatum(uses[i].newest);
		nulls[STATUS_OLDEST] = nulls[STATUS_NEWEST] =
			uses[i].oldest > uses[i].newest;
		values[STATUS_REMOVABLE] = BoolGetDatum((i > 0 || !encrypts) &&
												uses[i].entries == 0);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	SPI_finish();
	return (Datum) 0;
}

/*
 * ext_storage_verify(extension_id text) returns setof record
 *		The encrypted entries that no configured key reads.
 */
Datum
ext_storage_verify(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	text	   *extension_id = extension_argument(fcinfo, verify_arguments, 0);
	Connection	connection;
	uint64		generation = KeyringGeneration();
	Portal		portal;

	InitMaterializedSRF(fcinfo, 0);
	StatementConnect(&connection, fcinfo, false);

	portal = open_walk(&connection, extension_id);
	do
	{
		uint64		nrows = StatementNext(&walk_statement, portal, FETCH_COUNT);

		for (uint64 i = 0; i < nrows; i++)
		{
			EncryptedRow row;
			uint64		timestamp;
			int			found;
			Datum		values[7];
			bool		nulls[7] = {false};

			CHECK_FOR_INTERRUPTS();
			read_row(&row, &walk_statement, i);
			found = KeyringFind(row.token, &timestamp);
			require_same_keys(generation);
			if (found >= 0)
				continue;
			values[0] = row.uuid;
			values[1] = row.address[PARAM_EXTENSION_ID];
			values[2] = row.address[PARAM_USER_FK];
			values[3] = row.address[PARAM_RESOURCE_TYPE];
			values[4] = row.address[PARAM_RESOURCE_UUID];
			values[5] = row.address[PARAM_KEY];
			values[6] = CStringGetTextDatum(KeyringProblem(found));
			nulls[2] = row.nulls[PARAM_USER_FK] == 'n';
			nulls[3] = row.nulls[PARAM_RESOURCE_TYPE] == 'n';
			nulls[4] = row.nulls[PARAM_RESOURCE_UUID] == 'n';
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values,
								 nulls);
		}
		SPI_freetuptable(SPI_tuptable);
	} while (SPI_processed > 0);
	SPI_finish();
	return (Datum) 0;
}
