/*-------------------------------------------------------------------------
 *
 * movein.c
 *	  Take over a table of Superset's first, Python, implementation.
 *
 * Its rows are read entry by entry, the newest change first, and written in
 * batches, each of which is committed.  Nothing prevented two rows for one entry
 * there: the newest that can be taken is, the others are reported.  The source
 * stays as it is, and a row that is here already is left alone, so the call can
 * be repeated.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "entry.h"
#include "errors.h"
#include "fernet.h"
#include "funcapi.h"
#include "keyring.h"
#include "lib/stringinfo.h"
#include "mime.h"
#include "miscadmin.h"
#include "procedure.h"
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

/* How often a row is tried where others change the entry meanwhile. */
#define ROW_TRIES 3

/* What keeps two entries from having one uuid. */
#define UUID_CONSTRAINT "uq_extension_storage_uuid"

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
	[MOVE_ARG_SOURCE] = {"source", REGCLASSOID, 0, true},
	[MOVE_ARG_BATCH_SIZE] = {"batch_size", INT4OID, 0, true},
	[MOVE_ARG_DRY_RUN] = {"dry_run", BOOLOID, 0, true},
	[MOVE_ARG_SCANNED] = {"scanned", INT8OID, 0, false},
	[MOVE_ARG_MOVED] = {"moved", INT8OID, 0, false},
	[MOVE_ARG_PRESENT] = {"present", INT8OID, 0, false},
	[MOVE_ARG_DUPLICATES] = {"duplicates", INT8OID, 0, false},
	[MOVE_ARG_UNREADABLE] = {"unreadable", INT8OID, 0, false},
	[MOVE_ARG_FAILED] = {"failed", INT8OID, 0, false}
};

static const ProcedureArguments move_procedure_arguments = {
	.batch_size = MOVE_ARG_BATCH_SIZE,
	.max_batch_size = 10000,
	.dry_run = MOVE_ARG_DRY_RUN
};

/* Its result. */
enum
{
	MOVE_SCANNED,
	MOVE_MOVED,
	MOVE_PRESENT,
	MOVE_DUPLICATES,
	MOVE_UNREADABLE,
	MOVE_FAILED,
	NUM_MOVE_RESULTS
};

static const StatementColumn move_results[] = {
	[MOVE_SCANNED] = {"scanned", INT8OID, NOT_NULL},
	[MOVE_MOVED] = {"moved", INT8OID, NOT_NULL},
	[MOVE_PRESENT] = {"present", INT8OID, NOT_NULL},
	[MOVE_DUPLICATES] = {"duplicates", INT8OID, NOT_NULL},
	[MOVE_UNREADABLE] = {"unreadable", INT8OID, NOT_NULL},
	[MOVE_FAILED] = {"failed", INT8OID, NOT_NULL}
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

/* And what is read with them. */
enum
{
	SOURCE_ID = NUM_SOURCE_COLUMNS,
	NUM_READ_COLUMNS
};

static const StatementColumn source_columns[] = {
	ADDRESS_COLUMNS(INT4OID),
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

/* What its texts must be, as those of a set. */
static const ArgumentInfo source_texts[NUM_SOURCE_COLUMNS] = {
	ADDRESS_ARGUMENTS,
	[MOVE_CATEGORY] = {"category", TEXTOID, MAX_CATEGORY_CHARS, false},
	[MOVE_DESCRIPTION] = {"description", TEXTOID, MAX_DESCRIPTION_CHARS, false},
	[MOVE_VALUE_TYPE] = {"value_type", TEXTOID, MAX_VALUE_TYPE_CHARS, true}
};

StaticAssertDecl(lengthof(source_columns) == NUM_SOURCE_COLUMNS,
				 "every column that is taken over is declared");
StaticAssertDecl((int) ADDRESS_ARG_RESOURCE_UUID == (int) PARAM_RESOURCE_UUID,
				 "arguments and parameters of an address are in one order");

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
	STATEMENT_PARAMS(move_params, NUM_MOVE_PARAMS),
	STATEMENT_COLUMNS(there_columns, NUM_THERE_COLUMNS),
	.expand = ExpandScope,
	.by_index = true
};
static Statement insert_statement = {
	.sql = INSERT_ENTRY("COALESCE($uuid, pg_catalog.gen_random_uuid())",
						"$created_on", "$changed_on", "$created_by_fk",
						"$changed_by_fk"),
	STATEMENT_PARAMS(move_params, NUM_MOVE_PARAMS)
};
static Statement update_statement = {
	.sql = UPDATE_ENTRY("$changed_on", "$changed_by_fk")
	" AND $changed_on IS NOT NULL AND (e.changed_on IS NULL"
	" OR e.changed_on OPERATOR(pg_catalog.<) $changed_on)"
	" AND (e.is_encrypted IS FALSE OR $is_encrypted)",
	STATEMENT_PARAMS(move_params, NUM_MOVE_PARAMS),
	.expand = ExpandScope,
	.by_index = true
};

/* A row of the source. */
typedef struct SourceRow
{
	int64		id;
	StatementArgs args;
	bool		is_addressed;	/* its address is one that an entry can have */
	bool		is_unreadable;	/* encrypted, and no configured key decrypts
								 * it */
} SourceRow;

typedef struct MoveIn
{
	Procedure	procedure;
	Connection	connection;
	Oid			source_oid;
	Oid			source_owner;
	char	   *source;			/* qualified and quoted */
	bool		taken;			/* was the last row moved, or present? */
	int64		total;
	int64		done;			/* how many of the ids */
	int64		scanned;
	int64		moved;
	int64		present;
	int64		duplicates;
	int64		unreadable;
	int64		failed;
	MemoryContext row_context;	/* reset after each row */
	SourceRow  *row;			/* that is being written */
	SPIPlanPtr	read_plan;		/* the rows of a batch */
	Datum		batch;			/* their ids */
	Datum	   *ids;			/* of all rows, the newest of each entry first */
	StringInfoData settled;		/* address of the last entry with a good row */
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

/* Does a type have every value of another one? */
static bool
type_holds(Oid type, Oid other)
{
	return type == other ||
		(type == INT8OID && other == INT4OID) ||
		(type == TEXTOID && other == VARCHAROID);
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
		else if (!type_holds(column->type, att->atttypid))
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
				 errmsg("table \"%s\" does not have the columns of Superset's first implementation",
						RelationGetRelationName(source)),
				 errdetail("Columns that do not fit: %s.", wrong.data)));
	pfree(wrong.data);
}

/*
 * Raises an error if a partition, or a table that inherits from the source, has
 * another owner: reading it may run code of an index, with the rights of the
 * source's owner.
 */
static void
check_children(const MoveIn *move)
{
	ListCell   *cell;

	foreach(cell, find_all_inheritors(move->source_oid, AccessShareLock, NULL))
	{
		Relation	child = table_open(lfirst_oid(cell), NoLock);
		Oid			owner = child->rd_rel->relowner;

		if (owner != move->source_owner && !superuser_arg(owner))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("table \"%s\", which role \"%s\" owns, is a part of table \"%s\", which role \"%s\" owns",
							RelationGetRelationName(child),
							GetUserNameFromId(owner, false),
							get_rel_name(move->source_oid),
							GetUserNameFromId(move->source_owner, false)),
					 errhint("Let one role own both.")));
		table_close(child, NoLock);
	}
}

/*
 * Locks the source until the transaction ends, and checks that it is a table of
 * which its owner, who reads it, sees every row.
 *
 * Each transaction does that again: in between, the owner can change anything.
 */
static void
check_source(MoveIn *move)
{
	Oid			oid = move->source_oid;
	Relation	source;
	char	   *name;

	StatementLockRelation(oid, AccessShareLock);
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
	name = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(source)),
									  RelationGetRelationName(source));
	if (!has_privs_of_role(GetUserId(), move->source_owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must have the rights of role \"%s\", which owns table \"%s\"",
						GetUserNameFromId(move->source_owner, false),
						get_rel_name(oid)),
				 errhint("Let that role, a member of it or a superuser move it in.")));
	if (check_enable_rls(oid, move->source_owner, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("row-level security of table \"%s\" would hide rows",
						get_rel_name(oid)),
				 errhint("Let its owner run: ALTER TABLE %s NO FORCE ROW LEVEL SECURITY",
						 name)));
	if (oid == StatementTable(&move->connection))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("source must not be the extension's own table")));
	StatementRequireSnapshot(oid);
	check_children(move);
	check_columns(source);
	if (move->source != NULL && strcmp(move->source, name) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("source was renamed while it was moved in"),
				 errdetail("It was %s and is %s.", move->source, name),
				 errhint("What has been moved stays. Call the procedure again.")));
	move->source = name;
	table_close(source, NoLock);
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

static int
compare_ids(const void *a, const void *b)
{
	int64		left = DatumGetInt64(*(const Datum *) a);
	int64		right = DatumGetInt64(*(const Datum *) b);

	return left < right ? -1 : left > right;
}

/* Raises an error if two rows have the same id. */
static void
check_ids(const MoveIn *move)
{
	Size		size = move->total * sizeof(Datum);
	Datum	   *ids = MemoryContextAllocHuge(CurrentMemoryContext, Max(size, 1));

	memcpy(ids, move->ids, size);
	qsort(ids, move->total, sizeof(Datum), compare_ids);
	for (int64 i = 1; i < move->total; i++)
		if (compare_ids(&ids[i - 1], &ids[i]) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("table %s has several rows with id " INT64_FORMAT,
							move->source, DatumGetInt64(ids[i])),
					 errhint("Give these rows new ids, then call the procedure again.")));
	pfree(ids);
}

#define UUID_REGEX "([0-9a-f]{4}-?){7}[0-9a-f]{4}"
#define BY_BYTES " COLLATE pg_catalog.\"C\""

/*
 * Reads the ids of the source, in the order in which its rows are taken.
 *
 * Entries differ by their bytes, whatever the collations of the source are, and
 * all spellings of a UUID that CanonicalUuid knows are one.
 */
static void
read_ids(void *state)
{
	MoveIn	   *move = (MoveIn *) state;
	char	   *sql =
	psprintf("%s %u */ SELECT CAST(s.id AS pg_catalog.int8) FROM %s AS s"
			 " ORDER BY s.extension_id" BY_BYTES ", s.user_fk,"
			 " s.resource_type" BY_BYTES ","
			 " CASE WHEN (s.resource_uuid" BY_BYTES ")"
			 " OPERATOR(pg_catalog.~*)"
			 " '^((urn:uuid:)?" UUID_REGEX "|[{]" UUID_REGEX "[}])$'"
			 " THEN pg_catalog.lower(pg_catalog.right(pg_catalog.translate("
			 "s.resource_uuid, '{-}', '') " BY_BYTES ", 32))"
			 " ELSE s.resource_uuid" BY_BYTES " END,"
			 " s.key" BY_BYTES ", s.changed_on DESC NULLS LAST, s.id DESC",
			 StatementMark, move->source_oid, move->source);
	int64		size = FETCH_COUNT;
	Portal		portal;

	move->ids = palloc(size * sizeof(Datum));
	/* not as read-only, which would use a snapshot from before the lock */
	portal = SPI_cursor_open(NULL, prepare(sql, 0, NULL), NULL, NULL, false);
	for (;;)
	{
		SPI_cursor_fetch(portal, true, FETCH_COUNT);
		if (SPI_processed == 0)
			break;
		while (move->total + (int64) SPI_processed > size)
		{
			size *= 2;
			move->ids = repalloc_huge(move->ids, size * sizeof(Datum));
		}
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			bool		isnull;

			move->ids[move->total++] = SPI_getbinval(SPI_tuptable->vals[i],
													 SPI_tuptable->tupdesc, 1,
													 &isnull);
			if (isnull)
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						 errmsg("table %s has a row without an id", move->source)));
		}
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
}

/* Prepares the statement that reads the rows of a batch. */
static void
prepare_read(void *state)
{
	MoveIn	   *move = (MoveIn *) state;
	Oid			argtypes[] = {INT8ARRAYOID};
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "%s %u */ SELECT ", StatementMark, move->source_oid);
	for (size_t i = 0; i < lengthof(source_columns); i++)
		appendStringInfo(&sql, "%sCAST(s.%s AS %s)", i > 0 ? ", " : "",
						 quote_identifier(source_columns[i].name),
						 format_type_extended(source_columns[i].type, -1,
											  FORMAT_TYPE_FORCE_QUALIFY));
	appendStringInfo(&sql, ", CAST(s.id AS pg_catalog.int8)"
					 " FROM pg_catalog.unnest($1) WITH ORDINALITY AS k (id, place)"
					 " JOIN %s AS s ON s.id" SQL_EQ "k.id ORDER BY k.place",
					 move->source);
	move->read_plan = prepare(sql.data, lengthof(argtypes), argtypes);
	if (SPI_keepplan(move->read_plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	pfree(sql.data);
}

/* Reports that a row is not taken as it is. */
static void
warn_of(const SourceRow *row, const char *what)
{
	const StatementArgs *args = &row->args;

	if (row->is_addressed)
		ereport(WARNING,
				(errmsg("move_in: row " INT64_FORMAT ", %s, %s", row->id,
						DescribeEntry(args->values, args->nulls), what)));
	else
		ereport(WARNING,
				(errmsg("move_in: row " INT64_FORMAT " %s", row->id, what)));
}

/* Can an entry have a text?  If not, reports it. */
static bool
text_fits(const SourceRow *row, int column)
{
	const ArgumentInfo *info = &source_texts[column];
	bool		isnull = row->args.nulls[column] == 'n';
	int			nchars;

	switch (FindTextFault(isnull ? NULL :
						  DatumGetTextPP(row->args.values[column]),
						  info->max_chars, info->required, &nchars))
	{
		case TEXT_FITS:
			return true;
		case TEXT_IS_NULL:
			warn_of(row, psprintf("is left out: no %s", info->name));
			break;
		case TEXT_IS_EMPTY:
			warn_of(row, psprintf("is left out: empty %s", info->name));
			break;
		case TEXT_IS_TOO_LONG:
			warn_of(row, psprintf("is left out: %s of more than %d characters",
								  info->name, info->max_chars));
			break;
	}
	return false;
}

/*
 * Brings the address of a row into the form that ours have; false if no entry
 * can have it.
 */
static bool
complete_address(SourceRow *row)
{
	StatementArgs *args = &row->args;
	bool		has_type = args->nulls[PARAM_RESOURCE_TYPE] != 'n';
	bool		has_uuid = args->nulls[PARAM_RESOURCE_UUID] != 'n';

	if (has_type != has_uuid)
	{
		warn_of(row, "is left out: only one of resource_type and resource_uuid is set");
		return false;
	}
	if (has_uuid)
	{
		text	   *uuid = DatumGetTextPP(args->values[PARAM_RESOURCE_UUID]);
		char		canonical[UUID_TEXT_LEN + 1];

		if (CanonicalUuid(VARDATA_ANY(uuid), VARSIZE_ANY_EXHDR(uuid), canonical))
			StatementSet(args, PARAM_RESOURCE_UUID, TEXTOID,
						 CStringGetTextDatum(canonical));
		if (!text_fits(row, PARAM_RESOURCE_TYPE) ||
			!text_fits(row, PARAM_RESOURCE_UUID))
			return false;
	}
	if (!text_fits(row, PARAM_EXTENSION_ID) || !text_fits(row, PARAM_KEY))
		return false;
	args->shape = (args->nulls[PARAM_USER_FK] != 'n' ? SHAPE_USER : 0) |
		(has_type ? SHAPE_RESOURCE : 0);
	row->is_addressed = true;
	return true;
}

/* Is a value as small as a set would take it?  If not, reports it. */
static bool
size_fits(const SourceRow *row, Size size, Size max_size)
{
	if (size > max_size)
		warn_of(row, "is left out: value larger than extension_storage.max_value_size");
	return size <= max_size;
}

/*
 * Fills in what our table requires and the source may not have; false if the
 * row cannot be taken.
 */
static bool
complete_row(SourceRow *row)
{
	StatementArgs *args = &row->args;
	bool		is_encrypted = args->nulls[MOVE_IS_ENCRYPTED] != 'n' &&
	DatumGetBool(args->values[MOVE_IS_ENCRYPTED]);
	text	   *type;
	Size		size;
	KeyringItem item = {0};

	StatementSet(args, MOVE_IS_ENCRYPTED, BOOLOID, BoolGetDatum(is_encrypted));
	if (args->nulls[MOVE_VALUE_TYPE] == 'n')
		StatementSet(args, MOVE_VALUE_TYPE, TEXTOID,
					 CStringGetTextDatum("application/json"));
	if (args->nulls[MOVE_VALUE] == 'n')
	{
		warn_of(row, "is left out: no value");
		return false;
	}
	if (!text_fits(row, MOVE_CATEGORY) || !text_fits(row, MOVE_DESCRIPTION) ||
		!text_fits(row, MOVE_VALUE_TYPE))
		return false;
	type = DatumGetTextPP(args->values[MOVE_VALUE_TYPE]);
	if (!MimeTypeIsValid(VARDATA_ANY(type), VARSIZE_ANY_EXHDR(type)))
	{
		warn_of(row, "is left out: value_type is not a MIME type");
		return false;
	}

	size = toast_raw_datum_size(args->values[MOVE_VALUE]) - VARHDRSZ;
	if (!size_fits(row, size, is_encrypted ? FernetTokenLen(max_value_size) :
				   (Size) max_value_size))
		return false;
	if (is_encrypted)
	{
		item.token = DatumGetByteaPCopy(args->values[MOVE_VALUE]);
		KeyringOpenMany(&item, 1);
		if (item.result == NULL)
		{
			row->is_unreadable = true;
			return true;
		}
		size = VARSIZE(item.result) - VARHDRSZ;
		explicit_bzero(VARDATA(item.result), size);
		if (!size_fits(row, size, max_value_size))
			return false;
	}
	StatementSet(args, MOVE_VALUE_SIZE, INT4OID, Int32GetDatum((int32) size));
	return true;
}

/* Reports a row that is not taken, so that an older one of its entry may be. */
static void
leave_out(MoveIn *move, const SourceRow *row, const char *why)
{
	move->taken = false;
	move->failed++;
	warn_of(row, psprintf("is left out: %s", why));
}

/*
 * Writes a row, unless a newer one is there, or an encrypted one that it would
 * replace by plaintext.  state is a MoveIn.
 *
 * Where nothing was written, another session may have made or changed the entry
 * in between: it is looked at again.
 */
static void
move_row(void *state)
{
	MoveIn	   *move = state;
	SourceRow  *row = move->row;
	Connection *connection = &move->connection;
	StatementArgs *args = &row->args;

	move->taken = true;
	if (!move->procedure.dry_run)
		QuotaPrepare(connection, args->values[PARAM_EXTENSION_ID]);
	for (int tries = 0; tries < ROW_TRIES; tries++)
	{
		Datum		there[NUM_THERE_COLUMNS];
		bool		nulls[NUM_THERE_COLUMNS];
		bool		is_there = StatementFetch(connection, &there_statement, args,
											  false, there, nulls);

		if (is_there &&
			(args->nulls[MOVE_CHANGED_ON] == 'n' ||
			 (!nulls[THERE_CHANGED_ON] &&
			  DatumGetTimestamp(ColumnValue(there_columns, THERE_CHANGED_ON,
											TIMESTAMPOID, there)) >=
			  DatumGetTimestamp(args->values[MOVE_CHANGED_ON]))))
		{
			move->present++;
			move->unreadable += row->is_unreadable;
			return;
		}
		if (is_there && row->is_unreadable)
		{
			leave_out(move, row, "newer, but no configured key decrypts it");
			return;
		}
		if (is_there && DatumGetBool(ColumnValue(there_columns, THERE_IS_ENCRYPTED,
												 BOOLOID, there)) &&
			!DatumGetBool(args->values[MOVE_IS_ENCRYPTED]))
		{
			leave_out(move, row,
					  "newer, but plaintext, and the entry is encrypted here");
			return;
		}
		if (move->procedure.dry_run ||
			StatementRun(connection, is_there ? &update_statement :
						 &insert_statement, args, false) > 0)
		{
			move->moved++;
			if (row->is_unreadable)
			{
				move->unreadable++;
				warn_of(row, "is moved as it is: no configured key decrypts it");
			}
			return;
		}
	}
	leave_out(move, row, "it could not be written");
}

/*
 * Moves a row as move_row does, with another uuid if an entry already has its
 * own.  It is left out for an error that concerns it alone; a full quota and
 * ids that are used up concern those that follow as well.
 */
static void
try_row(MoveIn *move, SourceRow *row)
{
	ErrorData  *error;

	move->row = row;
	error = StatementTry(move_row, move);
	if (error != NULL && error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION &&
		error->constraint_name != NULL &&
		strcmp(error->constraint_name, UUID_CONSTRAINT) == 0)
	{
		StatementSetNull(&row->args, MOVE_UUID);
		error = StatementTry(move_row, move);
	}
	if (error == NULL)
		return;
	if (error->sqlerrcode == ERRCODE_ES_QUOTA ||
		error->sqlerrcode == ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED)
		ReThrowError(error);
	leave_out(move, row, psprintf("%s: %s", unpack_sql_state(error->sqlerrcode),
								  error->message));
}

/*
 * Takes a row, unless no entry can have its address, it cannot be stored, or a
 * newer row of the same entry was taken.
 */
static void
take_row(MoveIn *move, SourceRow *row)
{
	StringInfoData address;

	if (!complete_address(row))
	{
		move->failed++;
		return;
	}
	initStringInfo(&address);
	for (int i = 0; i < NUM_ADDRESS_PARAMS; i++)
	{
		appendStringInfoChar(&address, row->args.nulls[i]);
		if (row->args.nulls[i] != 'n')
			appendStringInfoString(&address, move_params[i].type == TEXTOID ?
								   TextDatumGetCString(row->args.values[i]) :
								   psprintf("%d", DatumGetInt32(row->args.values[i])));
		appendStringInfoChar(&address, '\0');
	}
	if (address.len == move->settled.len &&
		memcmp(address.data, move->settled.data, address.len) == 0)
	{
		move->duplicates++;
		warn_of(row, "is left out: there is a newer row");
	}
	else if (!complete_row(row))
		move->failed++;
	else
	{
		try_row(move, row);
		if (!move->taken)
			return;
		resetStringInfo(&move->settled);
		appendBinaryStringInfo(&move->settled, address.data, address.len);
	}
}

static void
read_batch(void *state)
{
	MoveIn	   *move = (MoveIn *) state;

	if (SPI_execute_plan(move->read_plan, &move->batch, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_plan failed: %s",
			 SPI_result_code_string(SPI_result));
}

/* Reads the rows with some ids, and takes each. */
static void
move_batch(MoveIn *move, Datum *ids, int nids)
{
	SPITupleTable *table;
	uint64		nrows;

	move->batch = MakeArray(ids, NULL, nids, INT8OID);
	RunAsOwner(move->source_owner, 0, NULL, read_batch, move);
	table = SPI_tuptable;
	nrows = SPI_processed;
	if (table->tupdesc->natts != NUM_READ_COLUMNS)
		elog(ERROR, "source has %d columns", table->tupdesc->natts);
	for (uint64 i = 0; i < nrows; i++)
	{
		MemoryContext old_context = MemoryContextSwitchTo(move->row_context);
		SourceRow	row = {0};
		Datum		values[NUM_READ_COLUMNS];
		bool		nulls[NUM_READ_COLUMNS];

		CHECK_FOR_INTERRUPTS();
		heap_deform_tuple(table->vals[i], table->tupdesc, values, nulls);
		row.id = DatumGetInt64(values[SOURCE_ID]);
		StatementArgsInit(&row.args);
		for (int j = 0; j < NUM_SOURCE_COLUMNS; j++)
			if (!nulls[j])
				StatementSet(&row.args, j, source_columns[j].type, values[j]);
		take_row(move, &row);
		move->scanned++;
		MemoryContextSwitchTo(old_context);
		MemoryContextReset(move->row_context);
	}
	SPI_freetuptable(table);
	pfree(DatumGetPointer(move->batch));
}

/* Commits, where that is possible, and looks whether the source is what it was. */
static void
next_transaction(MoveIn *move)
{
	if (move->procedure.commits)
	{
		StatementCommit(&move->connection);
		if (!ActiveSnapshotSet())
			EnsurePortalSnapshotExists();
	}
	check_source(move);
}

/* Moves all rows, batch by batch. */
static void
move_all(MoveIn *move)
{
	RunAsOwner(move->source_owner, 0, NULL, read_ids, move);
	check_ids(move);
	while (move->done < move->total)
	{
		int			nids = (int) Min(move->procedure.batch_size,
									 move->total - move->done);

		move_batch(move, move->ids + move->done, nids);
		move->done += nids;
		next_transaction(move);
		ProcedureReport(&move->procedure, move->done, move->total);
	}
}

/* Makes the memory of a move, in that of the call. */
static MoveIn *
make_move(void)
{
	MoveIn	   *move = palloc0(sizeof(MoveIn));

	move->row_context = AllocSetContextCreate(CurrentMemoryContext,
											  "move in row",
											  ALLOCSET_DEFAULT_SIZES);
	initStringInfo(&move->settled);
	return move;
}

/* Tells what has been done. */
static void
report_end(const MoveIn *move)
{
	ereport(NOTICE,
			(errmsg("move_in: " INT64_FORMAT " scanned, " INT64_FORMAT
					" moved, " INT64_FORMAT " already here, " INT64_FORMAT
					" duplicates, " INT64_FORMAT " unreadable, " INT64_FORMAT
					" failed", move->scanned, move->moved, move->present,
					move->duplicates, move->unreadable, move->failed)));
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
	MoveIn	   *move;
	int64		counts[NUM_MOVE_RESULTS];

	CheckArguments(fcinfo, move_arguments, NUM_MOVE_ARGS);
	RequireArgument(fcinfo, move_arguments, MOVE_ARG_SOURCE);
	move = make_move();
	move->source_oid = DatumGetObjectId(ArgumentValue(fcinfo, move_arguments,
													  MOVE_ARG_SOURCE,
													  REGCLASSOID));
	ProcedureStart(&move->procedure, "move_in", fcinfo, move_arguments,
				   &move_procedure_arguments);
	CheckResult(move->procedure.tupdesc, move_results, NUM_MOVE_RESULTS);

	StatementConnect(&move->connection, fcinfo, move->procedure.commits);
	move->connection.context = move->row_context;
	check_source(move);
	ProcedureAnnounce(&move->procedure);
	/* the session's transaction may be stricter than READ COMMITTED */
	next_transaction(move);
	RunAsOwner(move->source_owner, 0, NULL, prepare_read, move);
	move_all(move);
	SPI_freeplan(move->read_plan);
	report_end(move);
	SPI_finish();

	counts[MOVE_SCANNED] = move->scanned;
	counts[MOVE_MOVED] = move->moved;
	counts[MOVE_PRESENT] = move->present;
	counts[MOVE_DUPLICATES] = move->duplicates;
	counts[MOVE_UNREADABLE] = move->unreadable;
	counts[MOVE_FAILED] = move->failed;
	PG_RETURN_DATUM(ProcedureResult(&move->procedure, counts));
}
