/*-------------------------------------------------------------------------
 *
 * quota.c
 *	  How many bytes an extension may store.
 *
 * The table extension_storage_usage has a row an extension with the bytes that
 * it stores.  Two triggers on extension_storage keep it: one adds up what a
 * statement changes, the other writes the sums when the statement is done, and
 * compares them with the quota.  The row of an extension is locked from then
 * until commit, so no two writers can pass the quota together.
 *
 * The triggers are disabled, and cost nothing, until a session that has a
 * quota writes for the first time.  It locks the table against writers, counts
 * what is there, and enables them.  ALTER TABLE ... DISABLE TRIGGER ends the
 * counting; the next write under a quota starts anew.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "errors.h"
#include "funcapi.h"
#include "quota.h"
#include "statement.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#define SQL_USAGE "@schema@.extension_storage_usage AS u"
#define ROWS_TRIGGER "extension_storage_count_rows"
#define STATEMENT_TRIGGER "extension_storage_count"

/* An extension, the bytes to add, and where its row is. */
enum
{
	USAGE_PARAM_EXTENSION_ID,
	USAGE_PARAM_BYTES,
	USAGE_PARAM_CTID,
	NUM_USAGE_PARAMS
};

static const StatementParam usage_params[] = {
	[USAGE_PARAM_EXTENSION_ID] = {"extension_id", TEXTOID},
	[USAGE_PARAM_BYTES] = {"bytes", INT8OID},
	[USAGE_PARAM_CTID] = {"ctid", TIDOID}
};

enum
{
	USAGE_VALUE_BYTES,
	USAGE_CTID,
	NUM_USAGE_COLUMNS
};

static const StatementColumn usage_columns[] = {
	[USAGE_VALUE_BYTES] = {"value_bytes", INT8OID, NOT_NULL},
	[USAGE_CTID] = {"ctid", TIDOID, NOT_NULL}
};

/* The bytes of an entry that count. */
#define SQL_BYTES \
	"COALESCE(e.value_size, pg_catalog.octet_length(e.value))"

static Statement empty_statement = {
	.sql = "DELETE FROM " SQL_USAGE
};
static Statement fill_statement = {
	.sql = "INSERT INTO " SQL_USAGE " (extension_id, value_bytes)"
	" SELECT e.extension_id, pg_catalog.sum(" SQL_BYTES ") FROM " SQL_TABLE
	" GROUP BY e.extension_id"
};

#define FIND_USAGE " WHERE u.extension_id" SQL_EQ "$extension_id"
#define PLACED_USAGE FIND_USAGE " AND u.ctid" SQL_EQ "$ctid"
#define LOCK_USAGE(condition) \
	"SELECT u.value_bytes, u.ctid FROM " SQL_USAGE condition " FOR UPDATE"
#define RETURN_USAGE " RETURNING u.value_bytes, u.ctid"

static Statement lock_usage_statement = {
	.sql = LOCK_USAGE(FIND_USAGE),
	STATEMENT_PARAMS(usage_params), STATEMENT_COLUMNS(usage_columns),
	.by_index = true
};
static Statement lock_placed_statement = {
	.sql = LOCK_USAGE(PLACED_USAGE),
	STATEMENT_PARAMS(usage_params), STATEMENT_COLUMNS(usage_columns),
	.by_index = true
};
static Statement add_usage_statement = {
	.sql = "INSERT INTO " SQL_USAGE " (extension_id, value_bytes)"
	" VALUES ($extension_id, $bytes) ON CONFLICT (extension_id) DO UPDATE"
	" SET value_bytes = u.value_bytes" SQL_PLUS "excluded.value_bytes"
	RETURN_USAGE,
	STATEMENT_PARAMS(usage_params), STATEMENT_COLUMNS(usage_columns)
};
static Statement add_placed_statement = {
	.sql = "UPDATE " SQL_USAGE " SET value_bytes = u.value_bytes" SQL_PLUS
	"$bytes" PLACED_USAGE RETURN_USAGE,
	STATEMENT_PARAMS(usage_params), STATEMENT_COLUMNS(usage_columns),
	.by_index = true
};

/* What each extension stores. */
static const StatementParam usage_of_all_params[] = {{"quota", INT8OID}};
static const StatementColumn usage_of_all_columns[] = {
	{"extension_id", TEXTOID, NOT_NULL},
	{"entries", INT8OID, NOT_NULL},
	{"encrypted_entries", INT8OID, NOT_NULL},
	{"value_bytes", INT8OID, NOT_NULL},
	{"quota_bytes", INT8OID, NOT_NULL}
};
static Statement usage_of_all_statement = {
	.sql = "SELECT e.extension_id, pg_catalog.count(*),"
	" pg_catalog.count(*) FILTER (WHERE e.is_encrypted),"
	" CAST(pg_catalog.sum(" SQL_BYTES ") AS pg_catalog.int8), $quota"
	" FROM " SQL_TABLE " GROUP BY e.extension_id ORDER BY e.extension_id",
	STATEMENT_PARAMS(usage_of_all_params),
	STATEMENT_COLUMNS(usage_of_all_columns)
};

/*
 * Where this transaction last met the row of an extension.  By the index, it
 * would find all the versions that it has made of it: the more it writes, the
 * slower.  A place that is out of date does no harm, the row is just not there.
 */
typedef struct UsagePlace
{
	Datum		extension_id;
	ItemPointerData ctid;
} UsagePlace;

/* In TopTransactionContext. */
static List *places = NIL;

/* Bytes that a running statement has added to an extension so far. */
typedef struct PendingUsage
{
	Datum		extension_id;
	int64		bytes;
	int			nest_level;		/* of the transaction that did it */
} PendingUsage;

/*
 * The sums of the statement that is running, in TopTransactionContext: its row
 * trigger and its statement trigger have nothing else in common.
 */
static List *pending = NIL;

/*
 * The setting.  A real number, because an integer one ends at 2 GB; below 2^53
 * it is as exact.
 */
static double quota_per_extension = 0;

PG_FUNCTION_INFO_V1(ext_storage_count_rows);
PG_FUNCTION_INFO_V1(ext_storage_count_statement);
PG_FUNCTION_INFO_V1(ext_storage_usage);

static const char *
show_quota(void)
{
	return psprintf("%.0f", quota_per_extension);
}

/* Forgets what belongs to a transaction that ends. */
static void
end_transaction(XactEvent event pg_attribute_unused(),
				void *arg pg_attribute_unused())
{
	pending = NIL;
	places = NIL;
}

/* Hands the sums of a subtransaction to its parent, or forgets them. */
static void
end_subtransaction(SubXactEvent event, SubTransactionId my_id pg_attribute_unused(),
				   SubTransactionId parent_id pg_attribute_unused(),
				   void *arg pg_attribute_unused())
{
	int			level = GetCurrentTransactionNestLevel();
	ListCell   *cell;

	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	foreach(cell, pending)
	{
		PendingUsage *usage = lfirst(cell);

		if (usage->nest_level < level)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			usage->nest_level = level - 1;
		else
			pending = foreach_delete_current(pending, cell);
	}
}

/*
 * QuotaInit
 *		Defines the setting of this module.
 */
void
QuotaInit(void)
{
	DefineCustomRealVariable("extension_storage.quota_per_extension",
							 "Bytes, before encryption, that one extension may store.",
							 "0 means no limit.",
							 &quota_per_extension,
							 0, 0, (double) (INT64CONST(1) << 53),
							 PGC_SUSET,
							 GUC_UNIT_BYTE,
							 NULL, NULL, show_quota);
	RegisterXactCallback(end_transaction, NULL);
	RegisterSubXactCallback(end_subtransaction, NULL);
}

/*
 * QuotaIsCounting
 *		Are the triggers enabled?
 */
bool
QuotaIsCounting(const Connection *connection)
{
	Relation	table = table_open(StatementTable(connection), AccessShareLock);
	TriggerDesc *triggers = table->trigdesc;
	int			enabled = 0;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger    *trigger = &triggers->triggers[i];

		if (trigger->tgenabled == TRIGGER_FIRES_ALWAYS &&
			(strcmp(trigger->tgname, ROWS_TRIGGER) == 0 ||
			 strcmp(trigger->tgname, STATEMENT_TRIGGER) == 0))
			enabled++;
	}
	table_close(table, AccessShareLock);
	return enabled == 2;
}

/* Enables a trigger, on whatever server the table's rows are written. */
static void
enable_trigger(Relation table, const char *name)
{
#if PG_VERSION_NUM >= 160000
	EnableDisableTrigger(table, name, InvalidOid, TRIGGER_FIRES_ALWAYS, false,
						 false, ShareRowExclusiveLock);
#else
	EnableDisableTrigger(table, name, TRIGGER_FIRES_ALWAYS, false,
						 ShareRowExclusiveLock);
#endif
}

/*
 * Counts what is there and enables the triggers, with all writers locked out
 * until the transaction ends.
 *
 * A statement that reads the table may do it.  One that changes the table
 * may not: its changes from here on would escape the triggers.  ALTER TABLE
 * would refuse both.
 */
static void
start_counting(Connection *connection)
{
	StatementArgs args;
	Relation	table;
	LOCKMODE	release = NoLock;

	PreventCommandIfReadOnly(get_func_name(connection->function));
	if (!OidIsValid(get_relname_relid("extension_storage_usage",
									  connection->schema)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("installed version of extension \"extension_storage\" does not support quotas"),
				 errdetail("extension_storage.quota_per_extension is set, and table \"extension_storage_usage\" does not exist."),
				 errhint("Run ALTER EXTENSION extension_storage UPDATE.")));
	table = table_open(StatementTable(connection), ShareRowExclusiveLock);
	if (QuotaIsCounting(connection))
		release = ShareRowExclusiveLock;	/* somebody else was first */
	else
	{
		StatementArgsInit(&args);
		if (table->rd_refcnt > 1 &&
			CheckRelationLockedByMe(table, RowExclusiveLock, false))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("cannot start quota accounting in a statement that modifies table \"extension_storage\""),
					 errhint("Write an entry in a statement of its own first.")));
		StatementRunAsOwner(connection, &empty_statement, &args);
		StatementRunAsOwner(connection, &fill_statement, &args);
		enable_trigger(table, ROWS_TRIGGER);
		enable_trigger(table, STATEMENT_TRIGGER);
		CommandCounterIncrement();
	}
	table_close(table, release);
}

/*
 * Locks the row of an extension, or adds to it: with the statement for a row
 * whose place is known or, where it is not there, the other one.  Returns the
 * bytes that it has then, or -1 if there is no row.
 */
static int64
run_usage(Connection *connection, Statement *placed_statement,
		  Statement *statement, Datum extension_id, int64 bytes)
{
	UsagePlace *place = NULL;
	StatementArgs args;
	Datum		row[NUM_USAGE_COLUMNS];
	bool		nulls[NUM_USAGE_COLUMNS];
	uint64		nrows = 0;
	ListCell   *cell;

	StatementArgsInit(&args);
	StatementSet(&args, USAGE_PARAM_EXTENSION_ID, extension_id);
	StatementSet(&args, USAGE_PARAM_BYTES, Int64GetDatum(bytes));
	foreach(cell, places)
	{
		place = lfirst(cell);
		if (DatumGetBool(DirectFunctionCall2Coll(texteq, C_COLLATION_OID,
												 place->extension_id,
												 extension_id)))
			break;
		place = NULL;
	}
	if (place != NULL)
	{
		StatementSet(&args, USAGE_PARAM_CTID, PointerGetDatum(&place->ctid));
		nrows = StatementRunAsOwner(connection, placed_statement, &args);
	}
	if (nrows == 0)
		nrows = StatementRunAsOwner(connection, statement, &args);
	if (nrows == 0)
		return -1;

	StatementRow(statement, 0, row, nulls);
	if (place == NULL)
	{
		MemoryContext old_context = MemoryContextSwitchTo(TopTransactionContext);

		place = palloc(sizeof(UsagePlace));
		place->extension_id = datumCopy(extension_id, false, -1);
		places = lappend(places, place);
		MemoryContextSwitchTo(old_context);
	}
	place->ctid = *(ItemPointer) DatumGetPointer(row[USAGE_CTID]);
	return DatumGetInt64(row[USAGE_VALUE_BYTES]);
}

/*
 * QuotaPrepare
 *		Gets ready for a change of an extension's entries.  SPI must be
 *		connected.
 *
 * Where bytes are counted, the table is locked as any writer locks it, then
 * the extension's count, and only then its entries: two writers of several
 * entries would otherwise wait for each other, one for the count and one for
 * an entry or for the table.
 */
void
QuotaPrepare(Connection *connection, Datum extension_id)
{
	connection->quota_prepared = true;
	if (!QuotaIsCounting(connection))
	{
		if (quota_per_extension == 0)
			return;
		start_counting(connection);
	}
	LockRelationOid(StatementTable(connection), RowExclusiveLock);
	if (run_usage(connection, &lock_placed_statement, &lock_usage_statement,
				  extension_id, 0) < 0)
		run_usage(connection, &add_placed_statement, &add_usage_statement,
				  extension_id, 0);
}

/* Adds to the sum of an extension. */
static void
add_pending(Datum extension_id, int64 bytes)
{
	int			level = GetCurrentTransactionNestLevel();
	MemoryContext old_context;
	PendingUsage *usage;
	ListCell   *cell;

	foreach(cell, pending)
	{
		usage = lfirst(cell);
		if (usage->nest_level == level &&
			datumIsEqual(usage->extension_id, extension_id, false, -1))
		{
			usage->bytes += bytes;
			return;
		}
	}
	old_context = MemoryContextSwitchTo(TopTransactionContext);
	usage = palloc(sizeof(PendingUsage));
	usage->extension_id = datumCopy(extension_id, false, -1);
	usage->bytes = bytes;
	usage->nest_level = level;
	pending = lappend(pending, usage);
	MemoryContextSwitchTo(old_context);
}

/*
 * Adds the bytes of a row, with their sign.  A row that another program wrote
 * without value_size counts with the bytes that it has on disk.
 */
static void
count_row(HeapTuple tuple, TupleDesc tupdesc, int sign)
{
	bool		isnull;
	Datum		extension_id;
	Datum		size;
	int64		bytes;

	extension_id = heap_getattr(tuple, SPI_fnumber(tupdesc, "extension_id"),
								tupdesc, &isnull);
	size = heap_getattr(tuple, SPI_fnumber(tupdesc, "value_size"), tupdesc,
						&isnull);
	if (!isnull)
		bytes = DatumGetInt32(size);
	else
		bytes = toast_raw_datum_size(heap_getattr(tuple,
												  SPI_fnumber(tupdesc, "value"),
												  tupdesc, &isnull)) - VARHDRSZ;
	add_pending(PointerGetDatum(PG_DETOAST_DATUM(extension_id)), sign * bytes);
}

/* Checks that a trigger function is called as one. */
static TriggerData *
trigger_data(FunctionCallInfo fcinfo)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function was not called by trigger manager")));
	return (TriggerData *) fcinfo->context;
}

/*
 * ext_storage_count_rows() returns trigger
 *		AFTER ROW trigger: adds up what a statement changes.
 */
Datum
ext_storage_count_rows(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = trigger_data(fcinfo);
	TupleDesc	tupdesc = trigdata->tg_relation->rd_att;

	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		count_row(trigdata->tg_trigtuple, tupdesc, 1);
	else
	{
		count_row(trigdata->tg_trigtuple, tupdesc, -1);
		if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
			count_row(trigdata->tg_newtuple, tupdesc, 1);
	}
	return PointerGetDatum(NULL);
}

/*
 * ext_storage_count_statement() returns trigger
 *		AFTER STATEMENT trigger: writes the sums and checks the quota.
 */
Datum
ext_storage_count_statement(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = trigger_data(fcinfo);
	Connection	connection;
	StatementArgs args;

	StatementConnect(&connection, fcinfo, false);
	if (TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
	{
		StatementArgsInit(&args);
		StatementRunAsOwner(&connection, &empty_statement, &args);
	}
	while (pending != NIL)
	{
		PendingUsage *usage = linitial(pending);
		int64		total;

		pending = list_delete_first(pending);
		if (usage->bytes == 0)
			continue;
		total = run_usage(&connection, &add_placed_statement,
						  &add_usage_statement, usage->extension_id,
						  usage->bytes);
		if (quota_per_extension > 0 && usage->bytes > 0 &&
			total > (int64) quota_per_extension)
			ereport(ERROR,
					(errcode(ERRCODE_ES_QUOTA),
					 errmsg("quota of extension \"%s\" would be exceeded",
							TextDatumGetCString(usage->extension_id)),
					 errdetail("It has " INT64_FORMAT " of " INT64_FORMAT
							   " bytes in use, and the change needs " INT64_FORMAT
							   " more.",
							   total - usage->bytes, (int64) quota_per_extension,
							   usage->bytes),
					 errhint("Delete entries, or raise extension_storage.quota_per_extension.")));
	}
	SPI_finish();
	return PointerGetDatum(NULL);
}

/*
 * ext_storage_usage() returns setof record
 *		What each extension stores.
 */
Datum
ext_storage_usage(PG_FUNCTION_ARGS)
{
	Connection	connection;
	StatementArgs args;

	StatementArgsInit(&args);
	StatementSet(&args, 0, Int64GetDatum((int64) quota_per_extension));
	InitMaterializedSRF(fcinfo, 0);
	StatementConnect(&connection, fcinfo, false);
	StatementRequireAllRows(&connection);
	StatementReturn(&connection, &usage_of_all_statement, &args,
					(ReturnSetInfo *) fcinfo->resultinfo);
	SPI_finish();
	return (Datum) 0;
}
