/*-------------------------------------------------------------------------
 *
 * movein.c
 *	  Take over a table of Superset's first, Python, implementation.
 *
 * Its rows are read in the order of their ids and written in batches, each of
 * which is committed.  Nothing prevented two rows for one key there: the newest
 * change is taken, the others are reported.  The source stays as it is, and a
 * row that is here already is left alone, so the call can be repeated.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "entry.h"
#include "errors.h"
#include "funcapi.h"
#include "keyring.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "quota.h"
#include "statement.h"
#include "storage/lmgr.h"
#include "tcop/pquery.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#define MAX_VALUE_SIZE 16777215

/* How many ids are fetched at once. */
#define FETCH_COUNT 10000

/* The arguments of move_in. */
enum
{
	MOVE_ARG_SOURCE,
	MOVE_ARG_BATCH_SIZE,
	MOVE_ARG_DRY_RUN,
	MOVE_ARG_SCANNED,
	MOVE_ARG_MOVED,
	MOVE_ARG_PRESENT,
	MOVE_ARG_DUPLICATES,
	MOVE_ARG_UNREADABLE,
	MOVE_ARG_FAILED,
	NUM_MOVE_ARGS
};

static const ArgumentInfo move_arguments[] = {
	[MOVE_ARG_SOURCE] = {"source", 0, true},
	[MOVE_ARG_BATCH_SIZE] = {"batch_size", 0, true},
	[MOVE_ARG_DRY_RUN] = {"dry_run", 0, true},
	[MOVE_ARG_SCANNED] = {"scanned", 0, false},
	[MOVE_ARG_MOVED] = {"moved", 0, false},
	[MOVE_ARG_PRESENT] = {"present", 0, false},
	[MOVE_ARG_DUPLICATES] = {"duplicates", 0, false},
	[MOVE_ARG_UNREADABLE] = {"unreadable", 0, false},
	[MOVE_ARG_FAILED] = {"failed", 0, false}
};

/* The columns that are taken over; also the parameters of the insert. */
enum
{
	MOVE_UUID = NUM_ADDRESS_PARAMS,
	MOVE_CATEGORY,
	MOVE_DESCRIPTION,
	MOVE_VALUE,
	MOVE_VALUE_TYPE,
	MOVE_IS_ENCRYPTED,
	MOVE_CREATED_ON,
	MOVE_CHANGED_ON,
	MOVE_CREATED_BY_FK,
	MOVE_CHANGED_BY_FK,
	NUM_SOURCE_COLUMNS,
	MOVE_VALUE_SIZE = NUM_SOURCE_COLUMNS,
	NUM_MOVE_PARAMS
};

static const StatementColumn source_columns[] = {
	ADDRESS_COLUMNS,
	[MOVE_UUID] = {"uuid", UUIDOID, NULLABLE},
	[MOVE_CATEGORY] = {"category", TEXTOID, NULLABLE},
	[MOVE_DESCRIPTION] = {"description", TEXTOID, NULLABLE},
	[MOVE_VALUE] = {"value", BYTEAOID, NULLABLE},
	[MOVE_VALUE_TYPE] = {"value_type", TEXTOID, NULLABLE},
	[MOVE_IS_ENCRYPTED] = {"is_encrypted", BOOLOID, NULLABLE},
	[MOVE_CREATED_ON] = {"created_on", TIMESTAMPOID, NULLABLE},
	[MOVE_CHANGED_ON] = {"changed_on", TIMESTAMPOID, NULLABLE},
	[MOVE_CREATED_BY_FK] = {"created_by_fk", INT4OID, NULLABLE},
	[MOVE_CHANGED_BY_FK] = {"changed_by_fk", INT4OID, NULLABLE}
};

static const StatementParam move_params[] = {
	ADDRESS_PARAMS,
	[MOVE_UUID] = {"uuid", UUIDOID},
	[MOVE_CATEGORY] = {"category", TEXTOID},
	[MOVE_DESCRIPTION] = {"description", TEXTOID},
	[MOVE_VALUE] = {"value", BYTEAOID},
	[MOVE_VALUE_TYPE] = {"value_type", TEXTOID},
	[MOVE_IS_ENCRYPTED] = {"is_encrypted", BOOLOID},
	[MOVE_CREATED_ON] = {"created_on", TIMESTAMPOID},
	[MOVE_CHANGED_ON] = {"changed_on", TIMESTAMPOID},
	[MOVE_CREATED_BY_FK] = {"created_by_fk", INT4OID},
	[MOVE_CHANGED_BY_FK] = {"changed_by_fk", INT4OID},
	[MOVE_VALUE_SIZE] = {"value_size", INT4OID}
};

StaticAssertDecl(NUM_MOVE_PARAMS <= STATEMENT_MAX_PARAMS,
				 "move_in has too many parameters");

enum
{
	THERE_CHANGED_ON,
	THERE_IS_ENCRYPTED,
	NUM_THERE_COLUMNS
};

static const StatementColumn there_columns[] = {
	[THERE_CHANGED_ON] = {"changed_on", TIMESTAMPOID, NULLABLE},
	[THERE_IS_ENCRYPTED] = {"is_encrypted", BOOLOID, NOT_NULL}
};

static Statement there_statement = {
	.sql = "SELECT @columns@ FROM " SQL_TABLE THE_ENTRY,
	STATEMENT_PARAMS(move_params), STATEMENT_COLUMNS(there_columns),
	.expand = ExpandScope,
	.by_index = true
};
static Statement insert_statement = {
	.sql = "INSERT INTO " SQL_TABLE
	" (extension_id, key, user_fk, resource_type, resource_uuid, uuid,"
	" category, description, value, value_type, is_encrypted,"
	" created_on, changed_on, created_by_fk, changed_by_fk, value_size)"
	" VALUES ($extension_id, $key, $user_fk, $resource_type, $resource_uuid,"
	" COALESCE($uuid, pg_catalog.gen_random_uuid()), $category, $description,"
	" $value, $value_type, $is_encrypted, $created_on, $changed_on,"
	" $created_by_fk, $changed_by_fk, $value_size) ON CONFLICT DO NOTHING",
	STATEMENT_PARAMS(move_params),
	.counted = true
};
static Statement update_statement = {
	.sql = "UPDATE " SQL_TABLE
	" SET category = $category, description = $description, value = $value,"
	" value_type = $value_type, is_encrypted = $is_encrypted,"
	" changed_on = $changed_on, changed_by_fk = $changed_by_fk,"
	" value_size = $value_size, version = e.version" SQL_PLUS "1"
	THE_ENTRY " AND $changed_on IS NOT NULL AND (e.changed_on IS NULL"
	" OR e.changed_on OPERATOR(pg_catalog.<) $changed_on)"
	" AND (e.is_encrypted IS FALSE OR $is_encrypted)",
	STATEMENT_PARAMS(move_params),
	.expand = ExpandScope,
	.by_index = true,
	.counted = true
};

typedef struct MoveIn
{
	Connection	connection;
	Oid			source_oid;
	Oid			source_owner;
	char	   *source;			/* qualified and quoted */
	bool		commits;		/* false inside a transaction block */
	bool		dry_run;
	int64		batch_size;
	int64		total;
	int64		scanned;
	int64		moved;
	int64		present;
	int64		duplicates;
	int64		unreadable;
	int64		failed;
	TimestampTz started;
	MemoryContext row_context;	/* reset after each row */
	SPIPlanPtr	read_plan;		/* the rows of a batch */
	Datum	   *ids;			/* of all rows, sorted */
	bool	   *is_newest;		/* is each the newest of its key? */
} MoveIn;

PG_FUNCTION_INFO_V1(ext_storage_move_in);

/* Is a column of the source one that is taken over, or one of ours? */
static const StatementColumn *
known_column(const char *name)
{
	static const StatementColumn others[] = {
		{"id", INT8OID, NULLABLE},
		{"version", INT8OID, NULLABLE},
		{"value_size", INT4OID, NULLABLE}
	};

	for (size_t i = 0; i < lengthof(source_columns); i++)
		if (strcmp(source_columns[i].name, name) == 0)
			return &source_columns[i];
	for (size_t i = 0; i < lengthof(others); i++)
		if (strcmp(others[i].name, name) == 0)
			return &others[i];
	return NULL;
}

/* Can the type of a column be read as the declared one? */
static bool
is_readable(Oid found, Oid type)
{
	return found == type ||
		(type == TEXTOID && found == VARCHAROID) ||
		(type == INT8OID && found == INT4OID);
}

/*
 * Raises an error unless the source has the columns of the first
 * implementation, and no other one, whose data would be left behind.
 */
static void
check_columns(Relation source)
{
	TupleDesc	tupdesc = RelationGetDescr(source);
	StringInfoData wrong;

	initStringInfo(&wrong);
	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);
		const StatementColumn *column;

		if (att->attisdropped)
			continue;
		column = known_column(NameStr(att->attname));
		if (column == NULL)
			appendStringInfo(&wrong, "%s%s (unknown)", wrong.len > 0 ? ", " : "",
							 NameStr(att->attname));
		else if (!is_readable(att->atttypid, column->type))
			appendStringInfo(&wrong, "%s%s (%s instead of %s)",
							 wrong.len > 0 ? ", " : "", NameStr(att->attname),
							 format_type_be(att->atttypid),
							 format_type_be(column->type));
	}
	for (size_t i = 0; i <= lengthof(source_columns); i++)
	{
		const char *name = "id";

		if (i < lengthof(source_columns))
			name = source_columns[i].name;
		if (SPI_fnumber(tupdesc, name) <= 0)
			appendStringInfo(&wrong, "%s%s (missing)", wrong.len > 0 ? ", " : "",
							 name);
	}
	if (wrong.len > 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("table \"%s\" is not one of the first implementation",
						RelationGetRelationName(source)),
				 errdetail("Columns that do not fit: %s.", wrong.data)));
	pfree(wrong.data);
}

/*
 * Locks the source until the transaction ends, and checks that it is a table of
 * which the caller and its owner see every row.
 *
 * Each transaction does that anew: in between, the owner may do what he likes.
 */
static void
check_source(MoveIn *move)
{
	Oid			oid = move->source_oid;
	Relation	source;
	char	   *name;

	LockRelationOid(oid, AccessShareLock);

	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(oid)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", oid)));
	if (get_rel_relkind(oid) != RELKIND_RELATION &&
		get_rel_relkind(oid) != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", get_rel_name(oid))));
	if (pg_class_aclcheck(oid, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, get_rel_name(oid));
	source = table_open(oid, NoLock);
	move->source_owner = source->rd_rel->relowner;
	if (check_enable_rls(oid, InvalidOid, true) == RLS_ENABLED ||
		check_enable_rls(oid, move->source_owner, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("row-level security of table \"%s\" would hide rows",
						get_rel_name(oid)),
				 errhint("Let its owner, or a role with BYPASSRLS, move it in.")));
	if (oid == StatementTable(&move->connection))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("source must be another table")));
	check_columns(source);
	name = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(source)),
									  RelationGetRelationName(source));
	if (move->source != NULL && strcmp(move->source, name) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("source was renamed while it was moved in"),
				 errdetail("It was %s and is %s.", move->source, name),
				 errhint("What was moved stays; call it again.")));
	move->source = name;
	table_close(source, NoLock);
}

/*
 * Runs what follows with the rights of the source's owner, as ANALYZE does:
 * what reading it may run, of an index or of a view that took its name, is his.
 * An error restores the user.
 */
static void
become_owner(const MoveIn *move, Oid *saved_user, int *saved_context)
{
	GetUserIdAndSecContext(saved_user, saved_context);
	SetUserIdAndSecContext(move->source_owner,
						   *saved_context | SECURITY_RESTRICTED_OPERATION);
}

/* Prepares a statement over the source. */
static SPIPlanPtr
prepare(const char *sql, int nargs, Oid *argtypes)
{
	SPIPlanPtr	plan = SPI_prepare(sql, nargs, argtypes);

	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s",
			 SPI_result_code_string(SPI_result));
	return plan;
}

/*
 * Reads the ids of the source, each with whether its row is the newest of its
 * key.
 */
static void
read_ids(MoveIn *move)
{
	char	   *sql =
	psprintf("SELECT CAST(s.id AS pg_catalog.int8), pg_catalog.row_number()"
			 " OVER (PARTITION BY s.extension_id, s.user_fk, s.resource_type,"
			 " s.resource_uuid, s.key ORDER BY s.changed_on DESC NULLS LAST,"
			 " s.id DESC)" SQL_EQ "1 FROM %s AS s ORDER BY s.id", move->source);
	int64		size = FETCH_COUNT;
	Oid			saved_user;
	int			saved_context;
	Portal		portal;

	move->ids = palloc(size * sizeof(Datum));
	move->is_newest = palloc(size * sizeof(bool));
	become_owner(move, &saved_user, &saved_context);
	portal = SPI_cursor_open(NULL, prepare(sql, 0, NULL), NULL, NULL, true);
	for (;;)
	{
		SPI_cursor_fetch(portal, true, FETCH_COUNT);
		if (SPI_processed == 0)
			break;
		while (move->total + (int64) SPI_processed > size)
		{
			size *= 2;
			move->ids = repalloc_huge(move->ids, size * sizeof(Datum));
			move->is_newest = repalloc_huge(move->is_newest, size * sizeof(bool));
		}
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			HeapTuple	tuple = SPI_tuptable->vals[i];
			TupleDesc	tupdesc = SPI_tuptable->tupdesc;
			bool		isnull;

			move->ids[move->total] = SPI_getbinval(tuple, tupdesc, 1, &isnull);
			if (isnull)
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						 errmsg("table %s has a row without an id", move->source)));
			move->is_newest[move->total++] =
				DatumGetBool(SPI_getbinval(tuple, tupdesc, 2, &isnull));
		}
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
	SetUserIdAndSecContext(saved_user, saved_context);
}

/* Prepares the statement that reads the rows of a batch. */
static void
prepare_read(MoveIn *move)
{
	Oid			argtypes[] = {INT8OID, INT8OID};
	StringInfoData sql;
	Oid			saved_user;
	int			saved_context;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	for (size_t i = 0; i < lengthof(source_columns); i++)
		appendStringInfo(&sql, "%sCAST(s.%s AS %s)", i > 0 ? ", " : "",
						 quote_identifier(source_columns[i].name),
						 format_type_extended(source_columns[i].type, -1,
											  FORMAT_TYPE_FORCE_QUALIFY));
	appendStringInfo(&sql, ", CAST(s.id AS pg_catalog.int8) FROM %s AS s"
					 " WHERE s.id" SQL_GE "$1 AND s.id" SQL_LE "$2"
					 " ORDER BY s.extension_id, s.id", move->source);
	become_owner(move, &saved_user, &saved_context);
	move->read_plan = prepare(sql.data, lengthof(argtypes), argtypes);
	SetUserIdAndSecContext(saved_user, saved_context);
	if (SPI_keepplan(move->read_plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	pfree(sql.data);
}

/* Reports that a row is not taken as it is. */
static void
warn_of(const StatementArgs *args, const char *what)
{
	ereport(WARNING,
			(errmsg("move_in: %s %s",
					DescribeEntry(args->values, args->nulls), what)));
}

/*
 * Fills in what our table requires and the source may not have; false if the
 * row cannot be taken.
 */
static bool
complete_row(MoveIn *move, StatementArgs *args)
{
	bool		is_encrypted = args->nulls[MOVE_IS_ENCRYPTED] != 'n' &&
	DatumGetBool(args->values[MOVE_IS_ENCRYPTED]);
	Size		size;
	char		canonical[UUID_TEXT_LEN + 1];
	KeyringItem item = {0};

	StatementSet(args, MOVE_IS_ENCRYPTED, BoolGetDatum(is_encrypted));
	if (args->nulls[MOVE_VALUE_TYPE] == 'n')
		StatementSet(args, MOVE_VALUE_TYPE,
					 CStringGetTextDatum("application/json"));
	if (args->nulls[PARAM_RESOURCE_UUID] != 'n')
	{
		text	   *uuid = DatumGetTextPP(args->values[PARAM_RESOURCE_UUID]);

		if (CanonicalUuid(VARDATA_ANY(uuid), VARSIZE_ANY_EXHDR(uuid), canonical))
			StatementSet(args, PARAM_RESOURCE_UUID,
						 CStringGetTextDatum(canonical));
	}
	args->shape = (args->nulls[PARAM_USER_FK] != 'n' ? SHAPE_USER : 0) |
		(args->nulls[PARAM_RESOURCE_TYPE] != 'n' ? SHAPE_RESOURCE : 0);

	if (args->nulls[MOVE_VALUE] == 'n')
	{
		warn_of(args, "has no value and is left out");
		return false;
	}
	if ((args->nulls[PARAM_RESOURCE_TYPE] == 'n') !=
		(args->nulls[PARAM_RESOURCE_UUID] == 'n'))
	{
		warn_of(args, "has half a resource and is left out");
		return false;
	}
	if (args->nulls[MOVE_DESCRIPTION] != 'n')
	{
		text	   *description = DatumGetTextPP(args->values[MOVE_DESCRIPTION]);

		if (pg_mbstrlen_with_len(VARDATA_ANY(description),
								 VARSIZE_ANY_EXHDR(description)) >
			MAX_DESCRIPTION_CHARS)
		{
			warn_of(args, "has a description that is too long and is left out");
			return false;
		}
	}

	size = toast_raw_datum_size(args->values[MOVE_VALUE]) - VARHDRSZ;
	if (is_encrypted)
	{
		item.token = DatumGetByteaPCopy(args->values[MOVE_VALUE]);
		KeyringOpenMany(&item, 1);
		if (item.result != NULL)
		{
			size = VARSIZE(item.result) - VARHDRSZ;
			explicit_bzero(VARDATA(item.result), size);
		}
		else
		{
			move->unreadable++;
			warn_of(args, "cannot be decrypted and is moved as it is");
		}
	}
	if (size > MAX_VALUE_SIZE)
	{
		warn_of(args, "has a value that is too large and is left out");
		return false;
	}
	if (!is_encrypted || item.result != NULL)
		StatementSet(args, MOVE_VALUE_SIZE, Int32GetDatum((int32) size));
	return true;
}

/*
 * Inserts a row, with another uuid if an entry already has this one.  False if
 * the key has an entry by now.
 */
static bool
insert_row(Connection *connection, StatementArgs *args)
{
	if (StatementRun(connection, &insert_statement, args, false) > 0)
		return true;
	args->nulls[MOVE_UUID] = 'n';
	return StatementRun(connection, &insert_statement, args, false) > 0;
}

/*
 * Writes a row, unless a newer one is there, or an encrypted one that it would
 * replace by plaintext.
 */
static void
move_row(MoveIn *move, StatementArgs *args)
{
	Connection *connection = &move->connection;
	Datum		there[NUM_THERE_COLUMNS];
	bool		nulls[NUM_THERE_COLUMNS];
	bool		is_there;

	if (!move->dry_run)
		QuotaPrepare(connection, args->values[PARAM_EXTENSION_ID]);
	is_there = StatementFetch(connection, &there_statement, args, false, there,
							  nulls);
	if (is_there &&
		(args->nulls[MOVE_CHANGED_ON] == 'n' ||
		 (!nulls[THERE_CHANGED_ON] &&
		  DatumGetTimestamp(there[THERE_CHANGED_ON]) >=
		  DatumGetTimestamp(args->values[MOVE_CHANGED_ON]))))
	{
		move->present++;
		return;
	}
	if (is_there && DatumGetBool(there[THERE_IS_ENCRYPTED]) &&
		!DatumGetBool(args->values[MOVE_IS_ENCRYPTED]))
	{
		move->failed++;
		warn_of(args, "is encrypted here, and its newer plaintext is left out");
		return;
	}
	if (move->dry_run)
	{
		move->moved++;
		return;
	}
	if (is_there)
	{
		if (StatementRun(connection, &update_statement, args, false) > 0)
			move->moved++;
		else
			move->present++;
		return;
	}
	if (insert_row(connection, args))
		move->moved++;
	else
	{
		move->failed++;
		warn_of(args, "could not be written and is left out");
	}
}

static int
compare_ids(const void *a, const void *b)
{
	int64		left = DatumGetInt64(*(const Datum *) a);
	int64		right = DatumGetInt64(*(const Datum *) b);

	return left < right ? -1 : left > right;
}

/*
 * Reads the rows of a batch, from the first of its ids to the last, and takes
 * each.  The ids are sorted.
 */
static void
move_batch(MoveIn *move, const Datum *ids, const bool *is_newest, int nids)
{
	Datum		first_and_last[] = {ids[0], ids[nids - 1]};
	SPITupleTable *table;
	uint64		nrows;
	Oid			saved_user;
	int			saved_context;

	become_owner(move, &saved_user, &saved_context);
	if (SPI_execute_plan(move->read_plan, first_and_last, NULL, false, 0) < 0)
		elog(ERROR, "SPI_execute_plan failed: %s",
			 SPI_result_code_string(SPI_result));
	SetUserIdAndSecContext(saved_user, saved_context);
	table = SPI_tuptable;
	nrows = SPI_processed;
	if (table->tupdesc->natts != NUM_SOURCE_COLUMNS + 1)
		elog(ERROR, "source has %d columns", table->tupdesc->natts);
	for (uint64 i = 0; i < nrows; i++)
	{
		MemoryContext old_context = MemoryContextSwitchTo(move->row_context);
		StatementArgs args;
		Datum		values[NUM_SOURCE_COLUMNS + 1];
		bool		nulls[NUM_SOURCE_COLUMNS + 1];
		const Datum *at;
		bool		newest;

		CHECK_FOR_INTERRUPTS();
		heap_deform_tuple(table->vals[i], table->tupdesc, values, nulls);
		StatementArgsInit(&args);
		for (int j = 0; j < NUM_SOURCE_COLUMNS; j++)
			if (!nulls[j])
				StatementSet(&args, j, values[j]);
		at = bsearch(&values[NUM_SOURCE_COLUMNS], ids, nids, sizeof(Datum),
					 compare_ids);
		newest = at == NULL || is_newest[at - ids];

		if (nulls[PARAM_EXTENSION_ID] || nulls[PARAM_KEY])
		{
			move->failed++;
			ereport(WARNING,
					(errmsg("move_in: row " INT64_FORMAT
							" has no extension or no key and is left out",
							DatumGetInt64(values[NUM_SOURCE_COLUMNS]))));
		}
		else if (!newest)
		{
			move->duplicates++;
			warn_of(&args, "has a newer row; the older one is left out");
		}
		else if (complete_row(move, &args))
			move_row(move, &args);
		else
			move->failed++;
		MemoryContextSwitchTo(old_context);
		MemoryContextReset(move->row_context);
	}
	SPI_freetuptable(table);
}

/* Commits, where that is possible. */
static void
commit_batch(MoveIn *move)
{
	if (!move->commits)
		return;
	StatementCommit();
	if (!ActiveSnapshotSet())
		EnsurePortalSnapshotExists();
	check_source(move);
}

/* Moves all rows, batch by batch. */
static void
move_all(MoveIn *move)
{
	read_ids(move);
	while (move->scanned < move->total)
	{
		int			nids = (int) Min(move->batch_size, move->total - move->scanned);
		double		seconds;
		double		rate;

		move_batch(move, move->ids + move->scanned,
				   move->is_newest + move->scanned, nids);
		move->scanned += nids;
		commit_batch(move);

		seconds = (GetCurrentTimestamp() - move->started) / (double) USECS_PER_SEC;
		rate = move->scanned / Max(seconds, 0.000001);
		ereport(NOTICE,
				(errmsg("move_in: " INT64_FORMAT " of " INT64_FORMAT
						" rows done, %.0f rows/s, %.0f s left",
						move->scanned, move->total, rate,
						(move->total - move->scanned) / rate)));
	}
}

/*
 * ext_storage_move_in(source regclass, batch_size integer, dry_run boolean,
 *					   INOUT scanned bigint, INOUT moved bigint,
 *					   INOUT present bigint, INOUT duplicates bigint,
 *					   INOUT unreadable bigint, INOUT failed bigint)
 *		Takes over the rows of a table of the first implementation.
 */
Datum
ext_storage_move_in(PG_FUNCTION_ARGS)
{
	MoveIn		move = {0};
	TupleDesc	tupdesc;
	Datum		values[6];
	bool		nulls[lengthof(values)] = {false};

	CheckArguments(fcinfo, move_arguments, NUM_MOVE_ARGS);
	RequireArgument(fcinfo, move_arguments, MOVE_ARG_SOURCE);
	RequireArgument(fcinfo, move_arguments, MOVE_ARG_BATCH_SIZE);
	RequireArgument(fcinfo, move_arguments, MOVE_ARG_DRY_RUN);
	move.batch_size = PG_GETARG_INT32(MOVE_ARG_BATCH_SIZE);
	if (move.batch_size < 1 || move.batch_size > 10000)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("batch_size must be between 1 and 10000")));
	move.dry_run = PG_GETARG_BOOL(MOVE_ARG_DRY_RUN);
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	move.commits = fcinfo->context != NULL &&
		IsA(fcinfo->context, CallContext) &&
		!castNode(CallContext, fcinfo->context)->atomic;
	move.started = GetCurrentTimestamp();

	StatementConnect(&move.connection, fcinfo, move.commits);
	move.source_oid = PG_GETARG_OID(MOVE_ARG_SOURCE);
	check_source(&move);
	move.row_context = AllocSetContextCreate(CurrentMemoryContext,
											 "move in row",
											 ALLOCSET_DEFAULT_SIZES);
	move.connection.context = move.row_context;
	if (!move.commits)
		ereport(NOTICE,
				(errmsg("move_in: inside a transaction block, nothing is committed until it is")));
	if (move.dry_run)
		ereport(NOTICE, (errmsg("move_in: dry run, nothing is written")));
	/* the isolation level of the session's transaction may be a stricter one */
	commit_batch(&move);
	prepare_read(&move);
	move_all(&move);
	SPI_freeplan(move.read_plan);
	ereport(NOTICE,
			(errmsg("move_in: " INT64_FORMAT " scanned, " INT64_FORMAT
					" moved, " INT64_FORMAT " already here, " INT64_FORMAT
					" duplicates, " INT64_FORMAT " unreadable, " INT64_FORMAT
					" failed", move.scanned, move.moved, move.present,
					move.duplicates, move.unreadable, move.failed)));
	SPI_finish();

	values[0] = Int64GetDatum(move.scanned);
	values[1] = Int64GetDatum(move.moved);
	values[2] = Int64GetDatum(move.present);
	values[3] = Int64GetDatum(move.duplicates);
	values[4] = Int64GetDatum(move.unreadable);
	values[5] = Int64GetDatum(move.failed);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc),
													  values, nulls)));
}
