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
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "miscadmin.h"
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

static const Oid usage_argtypes[] = {TEXTOID, INT8OID};

static Statement empty_statement = {
	.sql = "DELETE FROM " SQL_USAGE,
	.argtypes = usage_argtypes
};
static Statement fill_statement = {
	.sql = "INSERT INTO " SQL_USAGE " (extension_id, value_bytes)"
	" SELECT e.extension_id, pg_catalog.sum(COALESCE(e.value_size,"
	" pg_catalog.octet_length(e.value))) FROM " SQL_TABLE
	" GROUP BY e.extension_id",
	.argtypes = usage_argtypes
};
static Statement lock_usage_statement = {
	.sql = "SELECT u.value_bytes FROM " SQL_USAGE " WHERE u.extension_id" SQL_EQ
	"$1 FOR UPDATE",
	.nargs = 1, .argtypes = usage_argtypes, .by_index = true
};
static Statement add_usage_statement = {
	.sql = "INSERT INTO " SQL_USAGE " (extension_id, value_bytes)"
	" VALUES ($1, $2) ON CONFLICT (extension_id) DO UPDATE"
	" SET value_bytes = u.value_bytes" SQL_PLUS "excluded.value_bytes"
	" RETURNING u.value_bytes",
	.nargs = 2, .argtypes = usage_argtypes
};

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

static const char *
show_quota(void)
{
	return psprintf("%.0f", quota_per_extension);
}

/* Forgets the sums of a transaction that ends. */
static void
forget_pending(XactEvent event pg_attribute_unused(),
			   void *arg pg_attribute_unused())
{
	pending = NIL;
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
	RegisterXactCallback(forget_pending, NULL);
	RegisterSubXactCallback(end_subtransaction, NULL);
}

/*
 * QuotaPerExtension
 *		The quota in bytes, 0 if there is none.
 */
int64
QuotaPerExtension(void)
{
	return (int64) quota_per_extension;
}

/*
 * QuotaIsCounting
 *		Are the triggers enabled?
 */
bool
QuotaIsCounting(FunctionCallInfo fcinfo)
{
	Relation	table = table_open(StatementTable(fcinfo), AccessShareLock);
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

/*
 * Counts what is there and enables the triggers, with all writers locked out
 * until the transaction ends.
 */
static void
start_counting(FunctionCallInfo fcinfo)
{
	Oid			table = StatementTable(fcinfo);
	Oid			saved_user;
	int			saved_context;
	char	   *sql;

	LockRelationOid(table, ShareRowExclusiveLock);
	if (QuotaIsCounting(fcinfo))
		return;					/* somebody else did it while we waited */
	StatementRunAsOwner(fcinfo, &empty_statement, NULL, NULL);
	StatementRunAsOwner(fcinfo, &fill_statement, NULL, NULL);

	sql = psprintf("ALTER TABLE %s ENABLE ALWAYS TRIGGER " ROWS_TRIGGER
				   ", ENABLE ALWAYS TRIGGER " STATEMENT_TRIGGER,
				   quote_qualified_identifier(get_namespace_name(get_rel_namespace(table)),
											  "extension_storage"));
	GetUserIdAndSecContext(&saved_user, &saved_context);
	SetUserIdAndSecContext(StatementTableOwner(fcinfo),
						   saved_context | SECURITY_LOCAL_USERID_CHANGE);
	if (SPI_execute(sql, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not enable the triggers of the quota");
	SetUserIdAndSecContext(saved_user, saved_context);
}

/*
 * QuotaPrepare
 *		Gets ready for a change of an extension's entries.  SPI must be
 *		connected.
 *
 * Where bytes are counted, the extension's count is locked before any of its
 * entries: two writers of several entries would otherwise wait for each other,
 * one for the count and one for an entry.
 */
void
QuotaPrepare(FunctionCallInfo fcinfo, Datum extension_id)
{
	Datum		values[2] = {extension_id, Int64GetDatum(0)};

	if (!QuotaIsCounting(fcinfo))
	{
		if (quota_per_extension == 0)
			return;
		start_counting(fcinfo);
	}
	if (StatementRunAsOwner(fcinfo, &lock_usage_statement, values, NULL) == 0)
		StatementRunAsOwner(fcinfo, &add_usage_statement, values, NULL);
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

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
		StatementRunAsOwner(fcinfo, &empty_statement, NULL, NULL);
	while (pending != NIL)
	{
		PendingUsage *usage = linitial(pending);
		Datum		values[2] = {usage->extension_id, Int64GetDatum(usage->bytes)};
		bool		isnull;
		int64		total;

		pending = list_delete_first(pending);
		if (usage->bytes == 0)
			continue;
		StatementRunAsOwner(fcinfo, &add_usage_statement, values, NULL);
		total = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
											SPI_tuptable->tupdesc, 1, &isnull));
		if (quota_per_extension > 0 && usage->bytes > 0 &&
			total > QuotaPerExtension())
			ereport(ERROR,
					(errcode(ERRCODE_ES_QUOTA),
					 errmsg("quota of extension \"%s\" would be exceeded",
							TextDatumGetCString(usage->extension_id)),
					 errdetail("It has " INT64_FORMAT " of " INT64_FORMAT
							   " bytes in use, and the change needs " INT64_FORMAT
							   " more.",
							   total - usage->bytes, QuotaPerExtension(),
							   usage->bytes),
					 errhint("Delete entries, or raise extension_storage.quota_per_extension.")));
	}
	SPI_finish();
	return PointerGetDatum(NULL);
}
