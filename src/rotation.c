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
#include "funcapi.h"
#include "keyring.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "statement.h"
#include "storage.h"
#include "tcop/pquery.h"
#include "token.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

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

#define ROW_COLUMNS \
	"e.extension_id, e.key, e.user_fk, e.resource_type, e.resource_uuid," \
	" e.id, e.uuid, e.value"
#define NUM_ROW_COLUMNS 8

static const Oid walk_argtypes[] = {TEXTOID, INT8OID, INT8OID, INT8OID};
static const Oid lock_argtypes[] = {TEXTOID, INT4ARRAYOID};
static const Oid write_argtypes[] = {
	TEXTOID, INT4ARRAYOID, BYTEAARRAYOID, BYTEAARRAYOID
};
static const Oid write_one_argtypes[] = {TEXTOID, INT4OID, BYTEAOID, BYTEAOID};
static const Oid one_argtypes[] = {TEXTOID, INT4OID};

#define OF_EXTENSION " AND ($1 IS NULL OR e.extension_id" SQL_EQ "$1)"

static Statement total_statement = {
	.sql = "SELECT pg_catalog.count(*), pg_catalog.max(e.id) FROM " SQL_TABLE
	" WHERE e.is_encrypted" OF_EXTENSION,
	.nargs = 1, .argtypes = walk_argtypes
};
static Statement walk_statement = {
	.sql = "SELECT " ROW_COLUMNS " FROM " SQL_TABLE
	" WHERE e.id" SQL_GT "$2 AND e.id" SQL_LE "$3 AND e.is_encrypted"
	OF_EXTENSION " ORDER BY e.id LIMIT $4",
	.nargs = 4, .argtypes = walk_argtypes, .by_index = true
};
static Statement lock_statement = {
	.sql = "SELECT e.id FROM " SQL_TABLE
	" WHERE e.extension_id" SQL_EQ "$1 AND e.id" SQL_EQ "ANY ($2)"
	" ORDER BY e.id FOR NO KEY UPDATE SKIP LOCKED",
	.nargs = 2, .argtypes = lock_argtypes, .by_index = true
};
static Statement lock_one_statement = {
	.sql = "SELECT " ROW_COLUMNS " FROM " SQL_TABLE
	" WHERE e.extension_id" SQL_EQ "$1 AND e.id" SQL_EQ "$2"
	" AND e.is_encrypted FOR NO KEY UPDATE",
	.nargs = 2, .argtypes = one_argtypes, .by_index = true
};

/*
 * Where a row's tokens are in the arrays: the ids are sorted.  A join with the
 * arrays would leave the planner the choice of going through all of them for
 * each row.
 */
#define ITS_PLACE "[pg_catalog.width_bucket(e.id, $2)]"

static Statement write_statement = {
	.sql = "UPDATE " SQL_TABLE " SET value = ($4)" ITS_PLACE
	" WHERE e.extension_id" SQL_EQ "$1 AND e.id" SQL_EQ "ANY ($2)"
	" AND e.value" SQL_EQ "($3)" ITS_PLACE
	" RETURNING e.id",
	.nargs = 4, .argtypes = write_argtypes, .by_index = true
};
static Statement write_one_statement = {
	.sql = "UPDATE " SQL_TABLE " SET value = $4"
	" WHERE e.extension_id" SQL_EQ "$1 AND e.id" SQL_EQ "$2"
	" AND e.value" SQL_EQ "$3",
	.nargs = 4, .argtypes = write_one_argtypes, .by_index = true
};

/* One encrypted row, as read. */
typedef struct EncryptedRow
{
	Datum		address[NUM_ADDRESS_ARGS];
	char		nulls[NUM_ADDRESS_ARGS];
	int32		id;
	Datum		uuid;
	Datum		token;			/* perhaps toasted */
} EncryptedRow;

/* A row that is to be replaced; sealed is NULL until it has been decided. */
typedef struct PendingRow
{
	int32		id;
	text	   *extension_id;
	bytea	   *token;
	bytea	   *sealed;
} PendingRow;

typedef struct Rotation
{
	FunctionCallInfo fcinfo;
	int			old_key;		/* index of the one that read the last token */
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
	List	   *pending;		/* of PendingRow, in batch_context */
	Size		pending_bytes;
	List	   *skipped;		/* of PendingRow, in context */
} Rotation;

PG_FUNCTION_INFO_V1(ext_storage_rotate_keys);
PG_FUNCTION_INFO_V1(ext_storage_configured_keys);
PG_FUNCTION_INFO_V1(ext_storage_key_status);
PG_FUNCTION_INFO_V1(ext_storage_verify);

/* Takes a row of ROW_COLUMNS apart. */
static void
read_row(EncryptedRow *row, HeapTuple tuple, TupleDesc tupdesc)
{
	Datum		values[NUM_ROW_COLUMNS];
	bool		nulls[NUM_ROW_COLUMNS];

	heap_deform_tuple(tuple, tupdesc, values, nulls);
	for (int i = 0; i < NUM_ADDRESS_ARGS; i++)
	{
		row->address[i] = values[i];
		row->nulls[i] = nulls[i] ? 'n' : ' ';
	}
	row->id = DatumGetInt32(values[NUM_ADDRESS_ARGS]);
	row->uuid = values[NUM_ADDRESS_ARGS + 1];
	row->token = values[NUM_ADDRESS_ARGS + 2];
}

/*
 * Returns the keys, of which there must be one.
 *
 * They are asked for anew for each row: the end of a transaction takes back
 * what was set for it alone.
 */
static const Keyring *
require_keys(void)
{
	const Keyring *keyring = KeyringGet();

	if (!keyring->encrypts)
		ereport(ERROR,
				(errcode(ERRCODE_ES_NO_KEY),
				 errmsg("no encryption key is configured"),
				 errhint("Set extension_storage.encryption_keys_file.")));
	return keyring;
}

/* Wipes and frees a copy of a plaintext. */
static void
wipe(bytea *message)
{
	explicit_bzero(VARDATA(message), VARSIZE(message) - VARHDRSZ);
	pfree(message);
}

/*
 * Makes the new token of a row, in batch_context, and counts the row.  Returns
 * NULL if it needs none: the first key reads it already, or no key does.
 *
 * The new token is not taken on trust: it must give the same message and time
 * with the first key.
 */
static bytea *
reencrypt(Rotation *rotation, const EncryptedRow *row, bytea *token)
{
	MemoryContext old_context = MemoryContextSwitchTo(rotation->row_context);
	const Keyring *keyring = require_keys();
	bytea	   *message;
	bytea	   *sealed = NULL;
	bytea	   *check;
	uint64		timestamp;
	uint64		check_timestamp;
	int			ordinal = rotation->old_key;

	message = KeyringOpen(keyring, token, false, &ordinal, &timestamp);
	if (message == NULL)
	{
		rotation->failed++;
		ereport(WARNING,
				(errcode(ERRCODE_ES_UNREADABLE),
				 errmsg("%s, uuid %s, cannot be decrypted and is left as it is",
						DescribeEntry(row->address, row->nulls),
						DatumGetCString(DirectFunctionCall1(uuid_out,
															row->uuid)))));
	}
	else if (ordinal == 0)
	{
		rotation->current++;
		wipe(message);
	}
	else
	{
		rotation->old_key = ordinal;
		ordinal = 0;
		MemoryContextSwitchTo(rotation->batch_context);
		sealed = KeyringSeal(keyring, VARDATA(message),
							 VARSIZE(message) - VARHDRSZ, timestamp);
		MemoryContextSwitchTo(rotation->row_context);
		check = KeyringOpen(keyring, sealed, false, &ordinal,
							&check_timestamp);
		if (check == NULL || ordinal != 0 || check_timestamp != timestamp ||
			VARSIZE(check) != VARSIZE(message) ||
			memcmp(check, message, VARSIZE(check)) != 0)
			elog(ERROR, "new token of %s does not decrypt to the old value",
				 DescribeEntry(row->address, row->nulls));
		wipe(message);
		wipe(check);
	}
	MemoryContextSwitchTo(old_context);
	return sealed;
}

static int
compare_ids(const void *a, const void *b)
{
	int32		left = *(const int32 *) a;
	int32		right = *(const int32 *) b;

	return left < right ? -1 : left > right;
}

/* The ids that the last statement returned, sorted. */
static int32 *
returned_ids(uint64 *nids)
{
	int32	   *ids = palloc(Max(SPI_processed, 1) * sizeof(int32));
	bool		isnull;

	*nids = SPI_processed;
	for (uint64 i = 0; i < SPI_processed; i++)
		ids[i] = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i],
											 SPI_tuptable->tupdesc, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
	qsort(ids, *nids, sizeof(int32), compare_ids);
	return ids;
}

/* Is the row among the sorted ids? */
static bool
is_among(const PendingRow *row, const int32 *ids, uint64 nids)
{
	return bsearch(&row->id, ids, nids, sizeof(int32), compare_ids) != NULL;
}

/* Writes a new token; false if the row no longer holds the one read. */
static bool
write_one_row(Rotation *rotation, const PendingRow *row)
{
	Datum		values[4] = {
		PointerGetDatum(row->extension_id), Int32GetDatum(row->id),
		PointerGetDatum(row->token), PointerGetDatum(row->sealed)
	};

	return StatementRun(rotation->fcinfo, &write_one_statement, 0, values, NULL,
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
		ids[i] = Int32GetDatum(rows[i]->id);
	return PointerGetDatum(construct_array(ids, nrows, INT4OID, sizeof(int32),
										   true, TYPALIGN_INT));
}

/* Writes locked rows of one extension, WRITE_COUNT at most. */
static void
write_rows(Rotation *rotation, PendingRow **rows, int nrows)
{
	Datum		tokens[WRITE_COUNT];
	Datum		sealed[WRITE_COUNT];
	Datum		values[4];
	MemoryContext old_context = MemoryContextSwitchTo(rotation->row_context);
	int32	   *written;
	uint64		nwritten;

	for (int i = 0; i < nrows; i++)
	{
		tokens[i] = PointerGetDatum(rows[i]->token);
		sealed[i] = PointerGetDatum(rows[i]->sealed);
	}
	values[0] = PointerGetDatum(rows[0]->extension_id);
	values[1] = id_array(rows, nrows);
	values[2] = PointerGetDatum(construct_array(tokens, nrows, BYTEAOID, -1,
												false, TYPALIGN_INT));
	values[3] = PointerGetDatum(construct_array(sealed, nrows, BYTEAOID, -1,
												false, TYPALIGN_INT));
	StatementRun(rotation->fcinfo, &write_statement, 0, values, NULL, false);
	written = returned_ids(&nwritten);
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
	Datum		values[2];
	int32	   *locked;
	uint64		nlocked;
	PendingRow *several[WRITE_COUNT];
	int			nseveral = 0;

	values[0] = PointerGetDatum(rows[0]->extension_id);
	values[1] = id_array(rows, nrows);
	StatementRun(rotation->fcinfo, &lock_statement, 0, values, NULL, false);
	locked = returned_ids(&nlocked);

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

/* Treats one row of a batch. */
static void
rotate_row(Rotation *rotation, HeapTuple tuple, TupleDesc tupdesc)
{
	EncryptedRow row;
	PendingRow *pending;
	MemoryContext old_context;
	bytea	   *token;
	bytea	   *sealed;

	read_row(&row, tuple, tupdesc);
	old_context = MemoryContextSwitchTo(rotation->batch_context);
	token = DatumGetByteaPP(row.token);
	sealed = reencrypt(rotation, &row, token);
	if (sealed == NULL || rotation->dry_run)
	{
		if (sealed != NULL)
		{
			rotation->rotated++;
			pfree(sealed);
		}
		if ((Pointer) token != DatumGetPointer(row.token))
			pfree(token);
	}
	else
	{
		pending = palloc(sizeof(PendingRow));
		pending->id = row.id;
		pending->extension_id = DatumGetTextPP(row.address[ARG_EXTENSION_ID]);
		pending->token = token;
		pending->sealed = sealed;
		rotation->pending = lappend(rotation->pending, pending);
		rotation->pending_bytes += VARSIZE(sealed);
	}
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(rotation->row_context);
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
		Datum		values[2] = {
			PointerGetDatum(pending->extension_id), Int32GetDatum(pending->id)
		};
		MemoryContext old_context;

		begin_batch();
		old_context = MemoryContextSwitchTo(rotation->batch_context);
		if (StatementRun(rotation->fcinfo, &lock_one_statement, 0, values, NULL,
						 false) == 0)
			rotation->current++;	/* gone, or no longer encrypted */
		else
		{
			SPITupleTable *table = SPI_tuptable;
			EncryptedRow row;

			read_row(&row, table->vals[0], table->tupdesc);
			pending->token = DatumGetByteaPP(row.token);
			pending->sealed = reencrypt(rotation, &row, pending->token);
			if (pending->sealed != NULL)
			{
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
	Datum		values[4] = {rotation->extension_id};
	char		nulls[4] = {rotation->extension_id != (Datum) 0 ? ' ' : 'n',
	' ', ' ', ' '};
	bool		isnull;
	int64		last_id = (int64) PG_INT32_MIN - 1;
	uint64		nrows;

	begin_batch();
	StatementRun(rotation->fcinfo, &total_statement, 0, values, nulls, false);
	rotation->total = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
												  SPI_tuptable->tupdesc, 1, &isnull));
	values[2] = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2,
							  &isnull);
	if (isnull)
		return;
	values[2] = Int64GetDatum(DatumGetInt32(values[2]));
	values[3] = Int64GetDatum(rotation->batch_size);

	do
	{
		SPITupleTable *table;

		begin_batch();
		values[1] = Int64GetDatum(last_id);
		nrows = StatementRun(rotation->fcinfo, &walk_statement, 0, values,
							 nulls, false);
		table = SPI_tuptable;
		for (uint64 i = 0; i < nrows; i++)
		{
			CHECK_FOR_INTERRUPTS();
			last_id = DatumGetInt32(SPI_getbinval(table->vals[i],
												  table->tupdesc,
												  NUM_ADDRESS_ARGS + 1, &isnull));
			rotation->scanned++;
			rotate_row(rotation, table->vals[i], table->tupdesc);
			if (rotation->pending_bytes > MAX_PENDING_BYTES)
				write_pending(rotation);
		}
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
	Rotation	rotation = {.fcinfo = fcinfo};
	text	   *extension_id;
	TupleDesc	tupdesc;
	Datum		values[4];
	bool		nulls[4] = {false};
	HeapTuple	tuple;

	extension_id = TextArgument(fcinfo, 0, "extension_id", 255,
								!PG_ARGISNULL(0));
	if (PG_ARGISNULL(1) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null",
						PG_ARGISNULL(1) ? "batch_size" : "dry_run")));
	if (PG_GETARG_INT32(1) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("batch_size must be at least 1")));
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	(void) require_keys();
	rotation.commits = fcinfo->context != NULL &&
		IsA(fcinfo->context, CallContext) &&
		!castNode(CallContext, fcinfo->context)->atomic;
	rotation.dry_run = PG_GETARG_BOOL(2);
	rotation.batch_size = PG_GETARG_INT32(1);
	rotation.started = GetCurrentTimestamp();

	if (SPI_connect_ext(rotation.commits ? SPI_OPT_NONATOMIC : 0) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect_ext failed");
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
open_walk(FunctionCallInfo fcinfo, text *extension_id)
{
	Datum		values[4] = {
		PointerGetDatum(extension_id),
		Int64GetDatum((int64) PG_INT32_MIN - 1),
		Int64GetDatum(PG_INT32_MAX),
		(Datum) 0
	};
	char		nulls[4] = {extension_id != NULL ? ' ' : 'n', ' ', ' ', 'n'};

	return SPI_cursor_open(NULL, StatementPlan(fcinfo, &walk_statement, 0),
						   values, nulls, true);
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
describe_key(Datum *values, const Keyring *keyring, int index)
{
	char		fingerprint[KEYRING_FINGERPRINT_LEN];

	KeyringFingerprint(&keyring->keys[index].key, fingerprint);
	values[KEY_ORDINAL] = Int32GetDatum(index + 1);
	values[KEY_FINGERPRINT] =
		PointerGetDatum(cstring_to_text_with_len(fingerprint,
												 KEYRING_FINGERPRINT_LEN));
	values[KEY_ROLE] = CStringGetTextDatum(index == 0 && keyring->encrypts ?
										   "encrypts" : "decrypts");
	values[KEY_SOURCE] =
		CStringGetTextDatum(SecretOriginText(&keyring->keys[index].origin));
}

/*
 * ext_storage_configured_keys() returns setof record
 *		One row per configured key.  Reads no table.
 */
Datum
ext_storage_configured_keys(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	const Keyring *keyring = KeyringGet();

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < keyring->nkeys; i++)
	{
		Datum		values[NUM_KEY_COLUMNS];
		bool		nulls[NUM_KEY_COLUMNS] = {false};

		describe_key(values, keyring, i);
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
	const Keyring *keyring = KeyringGet();
	int			nkeys = keyring->nkeys;
	bool		encrypts = keyring->encrypts;
	KeyUse		unused = {0, DT_NOEND, DT_NOBEGIN};
	Datum		(*keys)[NUM_KEY_COLUMNS];
	KeyUse	   *uses;
	Portal		portal;

	InitMaterializedSRF(fcinfo, 0);
	StatementConnect();

	keys = palloc((nkeys + 1) * sizeof(*keys));
	uses = palloc((nkeys + 1) * sizeof(KeyUse));
	for (int i = 0; i < nkeys; i++)
		describe_key(keys[i], keyring, i);
	for (int i = 0; i <= nkeys; i++)
		uses[i] = unused;

	portal = open_walk(fcinfo, NULL);
	do
	{
		SPI_cursor_fetch(portal, true, FETCH_COUNT);
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			EncryptedRow row;
			uint64		timestamp;
			int			found;

			CHECK_FOR_INTERRUPTS();
			read_row(&row, SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
			found = KeyringFind(keyring, row.token, &timestamp);
			count_use(&uses[found >= 0 ? found : nkeys],
					  found != KEYRING_NO_TOKEN, timestamp);
		}
		SPI_freetuptable(SPI_tuptable);
	} while (SPI_processed > 0);

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
	text	   *extension_id = TextArgument(fcinfo, 0, "extension_id", 255,
											!PG_ARGISNULL(0));
	const Keyring *keyring = KeyringGet();
	Portal		portal;

	InitMaterializedSRF(fcinfo, 0);
	StatementConnect();

	portal = open_walk(fcinfo, extension_id);
	do
	{
		SPI_cursor_fetch(portal, true, FETCH_COUNT);
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			EncryptedRow row;
			uint64		timestamp;
			int			found;
			Datum		values[7];
			bool		nulls[7] = {false};

			CHECK_FOR_INTERRUPTS();
			read_row(&row, SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
			found = KeyringFind(keyring, row.token, &timestamp);
			if (found >= 0)
				continue;
			values[0] = row.uuid;
			values[1] = row.address[ARG_EXTENSION_ID];
			values[2] = row.address[ARG_USER_FK];
			values[3] = row.address[ARG_RESOURCE_TYPE];
			values[4] = row.address[ARG_RESOURCE_UUID];
			values[5] = row.address[ARG_KEY];
			values[6] = CStringGetTextDatum(found == KEYRING_NO_TOKEN ?
											"not a Fernet token" :
											"damaged, or its key is not configured");
			nulls[2] = row.nulls[ARG_USER_FK] == 'n';
			nulls[3] = row.nulls[ARG_RESOURCE_TYPE] == 'n';
			nulls[4] = row.nulls[ARG_RESOURCE_UUID] == 'n';
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values,
								 nulls);
		}
		SPI_freetuptable(SPI_tuptable);
	} while (SPI_processed > 0);
	SPI_finish();
	return (Datum) 0;
}
