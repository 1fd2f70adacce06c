/*-------------------------------------------------------------------------
 *
 * quota.c
 *	  How many bytes an extension may store.
 *
 * The table extension_storage_usage has a row per extension with the bytes that
 * it stores.  Two triggers on extension_storage keep it: one adds up what a
 * statement changes, the other writes the sums when the statement is done, and
 * compares them with the quota.  The row of an extension is locked from then
 * until commit, so no two writers can pass the quota together.  What logical
 * replication applies has no statement, and fires the first trigger alone: its
 * sums are written when the transaction is about to commit.
 *
 * The triggers are disabled, and cost nothing, until a session that has a
 * quota writes for the first time.  It locks the table against writers, counts
 * what is there, and enables them.  ALTER TABLE ... DISABLE TRIGGER ends the
 * counting, and so does ENABLE TRIGGER without ALWAYS, after which replication
 * would not be counted; the next write under a quota starts again, as it does
 * after a crash, which empties the table of the counts, an unlogged one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/tablecmds.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "entry.h"
#include "errors.h"
#include "fernet.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "quota.h"
#include "replication/logicalworker.h"
#include "statement.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

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

/*
 * The bytes of an entry that count, as entry_bytes() below: the value's and the
 * description's.  Of an encrypted value they are those of the plaintext, as in
 * value_size, if that can be right: if the token is as long as one of so many
 * bytes is.  octet_length() does not fetch what is stored out of line.
 */
#define SQL_SIZE "CAST(e.value_size AS pg_catalog.int8)"
#define SQL_TIMES " OPERATOR(pg_catalog.*) "
#define SQL_DIVIDED " OPERATOR(pg_catalog./) "
/* operators written like this have one precedence, the leftmost goes first */
#define SQL_TOKEN_LENGTH \
	"((" SQL_SIZE SQL_DIVIDED "16" SQL_PLUS "1" SQL_TIMES "16" SQL_PLUS "59)" \
	SQL_DIVIDED "3" SQL_TIMES "4)"
StaticAssertDecl(FERNET_BLOCK_LEN == 16 &&
				 FERNET_HEADER_LEN + FERNET_MAC_LEN + 2 == 59,
				 "the SQL above computes FernetTokenLen()");

#define SQL_BYTES \
	"(COALESCE(CASE WHEN e.is_encrypted AND (e.value_size" SQL_GE "0)" \
	" AND (pg_catalog.octet_length(e.value)" SQL_EQ SQL_TOKEN_LENGTH ")" \
	" THEN " SQL_SIZE " ELSE pg_catalog.octet_length(e.value) END, 0)" \
	SQL_PLUS "COALESCE(pg_catalog.octet_length(e.description), 0))"

/* What the update to 1.2 finds and mends, see ext_storage_update_tables(). */
enum
{
	LONG_COUNT,
	NUM_LONG_COLUMNS
};

static const StatementColumn long_columns[] = {
	[LONG_COUNT] = {"count", INT8OID, NOT_NULL}
};
#define SQL_MAX_CHARS CppAsString2(MAX_DESCRIPTION_CHARS)

static Statement long_statement = {
	.sql = "SELECT pg_catalog.count(*) FROM " SQL_TABLE
	" WHERE pg_catalog.octet_length(e.description)" SQL_GT SQL_MAX_CHARS
	" AND pg_catalog.char_length(e.description)" SQL_GT SQL_MAX_CHARS,
	STATEMENT_COLUMNS(long_columns, NUM_LONG_COLUMNS)
};
static Statement size_statement = {
	.sql = "UPDATE " SQL_TABLE " SET value_size = NULL"
	" WHERE e.value_size OPERATOR(pg_catalog.<) 0",
	.keeps_bytes = true
};

static Statement zero_statement = {
	.sql = "UPDATE " SQL_USAGE " SET value_bytes = 0"
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
	STATEMENT_PARAMS(usage_params, NUM_USAGE_PARAMS),
	STATEMENT_COLUMNS(usage_columns, NUM_USAGE_COLUMNS),
	.by_index = true
};
static Statement lock_placed_statement = {
	.sql = LOCK_USAGE(PLACED_USAGE),
	STATEMENT_PARAMS(usage_params, NUM_USAGE_PARAMS),
	STATEMENT_COLUMNS(usage_columns, NUM_USAGE_COLUMNS),
	.by_index = true
};
static Statement add_usage_statement = {
	.sql = "INSERT INTO " SQL_USAGE " (extension_id, value_bytes)"
	" VALUES ($extension_id, $bytes) ON CONFLICT (extension_id) DO UPDATE"
	" SET value_bytes = u.value_bytes" SQL_PLUS "excluded.value_bytes"
	RETURN_USAGE,
	STATEMENT_PARAMS(usage_params, NUM_USAGE_PARAMS),
	STATEMENT_COLUMNS(usage_columns, NUM_USAGE_COLUMNS)
};
static Statement add_placed_statement = {
	.sql = "UPDATE " SQL_USAGE " SET value_bytes = u.value_bytes" SQL_PLUS
	"$bytes" PLACED_USAGE RETURN_USAGE,
	STATEMENT_PARAMS(usage_params, NUM_USAGE_PARAMS),
	STATEMENT_COLUMNS(usage_columns, NUM_USAGE_COLUMNS),
	.by_index = true
};

/* What each extension stores: the columns of ext_storage_usage(). */
enum
{
	OF_ALL_EXTENSION_ID,
	OF_ALL_ENTRIES,
	OF_ALL_ENCRYPTED_ENTRIES,
	OF_ALL_VALUE_BYTES,
	NUM_OF_ALL_COLUMNS,
	OF_ALL_QUOTA_BYTES = NUM_OF_ALL_COLUMNS,
	NUM_OF_ALL_RESULTS
};

#define USAGE_OF_ALL_COLUMNS \
	[OF_ALL_EXTENSION_ID] = {"extension_id", TEXTOID, NOT_NULL}, \
	[OF_ALL_ENTRIES] = {"entries", INT8OID, NOT_NULL}, \
	[OF_ALL_ENCRYPTED_ENTRIES] = {"encrypted_entries", INT8OID, NOT_NULL}, \
	[OF_ALL_VALUE_BYTES] = {"value_bytes", INT8OID, NOT_NULL}

static const StatementColumn usage_of_all_columns[] = {USAGE_OF_ALL_COLUMNS};
static const StatementColumn usage_results[] = {
	USAGE_OF_ALL_COLUMNS,
	[OF_ALL_QUOTA_BYTES] = {"quota_bytes", INT8OID, NOT_NULL}
};

/*
 * Without the quota, which would be a parameter: a distributed table has no
 * generic plan with one over all shards.
 */
static Statement usage_of_all_statement = {
	.sql = "SELECT e.extension_id, pg_catalog.count(*),"
	" pg_catalog.count(*) FILTER (WHERE e.is_encrypted),"
	" CAST(pg_catalog.sum(" SQL_BYTES ") AS pg_catalog.int8)"
	" FROM " SQL_TABLE " GROUP BY e.extension_id ORDER BY e.extension_id",
	STATEMENT_COLUMNS(usage_of_all_columns, NUM_OF_ALL_COLUMNS)
};

/* Bytes that a statement has changed and not written yet. */
typedef struct Change
{
	struct Usage *usage;
	int64		bytes;
	int			nest_level;		/* of the transaction that did it */
	struct Change *outer;		/* of the same extension, further out */
} Change;

/* What this transaction knows of an extension. */
typedef struct Usage
{
	text	   *extension_id;	/* the hash key */

	/*
	 * Where its row was last met.  By the index, the transaction would find
	 * all the versions that it has made of it: the more it writes, the
	 * slower.  A place that is out of date does no harm, the row is just not
	 * there.
	 */
	bool		has_place;
	ItemPointerData ctid;
	Change	   *change;			/* the innermost, NULL if all is written */
} Usage;

/*
 * All of this is in TopTransactionContext: a statement's row trigger and its
 * statement trigger have nothing else in common.
 */
static HTAB *usages = NULL;
static List *changes = NIL;		/* by nest_level */
static Oid	counting_function = InvalidOid; /* that noted the last change */

/*
 * The extensions whose quotas are checked when a block of QuotaCheckAtEnd ends,
 * the innermost block's first.
 */
typedef struct CheckedAtEnd
{
	const Usage *usage;
	const struct CheckedAtEnd *outer;
} CheckedAtEnd;

static const CheckedAtEnd *checked_at_end = NULL;

/*
 * The setting.  A real number, because an integer one ends at 2 GB; below 2^53
 * it is as exact.
 */
static double quota_per_extension = 0;

PG_FUNCTION_INFO_V1(ext_storage_count_rows);
PG_FUNCTION_INFO_V1(ext_storage_count_statement);
PG_FUNCTION_INFO_V1(ext_storage_update_tables);
PG_FUNCTION_INFO_V1(ext_storage_usage);

static const char *
show_quota(void)
{
	return psprintf("%.0f", quota_per_extension);
}

static void write_changes(Connection *connection);

/* Writes the sums that no statement's end has written. */
static void
write_leftover(void)
{
	LOCAL_FCINFO(fcinfo, 0);
	FmgrInfo	flinfo = {.fn_oid = counting_function};
	Connection	connection;

	/* the extension may be gone by now */
	if (!SearchSysCacheExists1(PROCOID, ObjectIdGetDatum(counting_function)))
		return;
	InitFunctionCallInfoData(*fcinfo, &flinfo, 0, InvalidOid, NULL, NULL);
	PushActiveSnapshot(GetTransactionSnapshot());
	StatementConnect(&connection, fcinfo, false);
	write_changes(&connection);
	SPI_finish();
	PopActiveSnapshot();
}

/* Writes what is left before a transaction ends, and forgets it afterwards. */
static void
end_transaction(XactEvent event, void *arg pg_attribute_unused())
{
	if (event == XACT_EVENT_PRE_COMMIT || event == XACT_EVENT_PRE_PREPARE)
	{
		if (changes != NIL)
			write_leftover();
		return;
	}
	usages = NULL;
	changes = NIL;
}

/* Takes the last change off. */
static Change *
pop_change(void)
{
	Change	   *change = llast(changes);

	changes = list_delete_last(changes);
	change->usage->change = change->outer;
	return change;
}

/* Appends a change of an extension by this level. */
static void
push_change(Usage *usage, int64 bytes, int nest_level)
{
	MemoryContext old_context = MemoryContextSwitchTo(TopTransactionContext);
	Change	   *change = palloc(sizeof(Change));

	change->usage = usage;
	change->bytes = bytes;
	change->nest_level = nest_level;
	change->outer = usage->change;
	usage->change = change;
	changes = lappend(changes, change);
	MemoryContextSwitchTo(old_context);
}

/*
 * Forgets the changes that are not written yet: a statement that sees their
 * rows has counted them.
 */
static void
cancel_changes(void)
{
	int			level = GetCurrentTransactionNestLevel();

	for (int i = list_length(changes) - 1; i >= 0; i--)
	{
		Change	   *change = list_nth(changes, i);

		push_change(change->usage, -change->bytes, level);
	}
}

/* Hands the changes of a subtransaction to its parent, or forgets them. */
static void
end_subtransaction(SubXactEvent event, SubTransactionId my_id pg_attribute_unused(),
				   SubTransactionId parent_id pg_attribute_unused(),
				   void *arg pg_attribute_unused())
{
	int			level = GetCurrentTransactionNestLevel();

	if (event == SUBXACT_EVENT_ABORT_SUB)
		while (changes != NIL && ((Change *) llast(changes))->nest_level >= level)
			pfree(pop_change());
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		for (int i = list_length(changes) - 1; i >= 0; i--)
		{
			Change	   *change = list_nth(changes, i);

			if (change->nest_level < level)
				break;
			change->nest_level = level - 1;
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

static bool
has_count_name(const Trigger * trigger)
{
	return strcmp(trigger->tgname, ROWS_TRIGGER) == 0 ||
		strcmp(trigger->tgname, STATEMENT_TRIGGER) == 0;
}

/*
 * QuotaIsTrigger
 *		Is this one of the triggers that count, and not another of its name?
 */
bool
QuotaIsTrigger(const Trigger * trigger)
{
	return has_count_name(trigger) &&
		StatementFunctionIsOurs(trigger->tgfoid);
}

/* Are both triggers enabled, on whatever server the table's rows are written? */
static bool
triggers_enabled(Relation table)
{
	TriggerDesc *triggers = table->trigdesc;
	int			enabled = 0;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger    *trigger = &triggers->triggers[i];

		if (trigger->tgenabled == TRIGGER_FIRES_ALWAYS &&
			has_count_name(trigger))
			enabled++;
	}
	return enabled == 2;
}

/* Is there a table, and has it had rows since it was made or truncated? */
static bool
has_pages(Oid oid)
{
	Relation	table;
	bool		has;

	if (!OidIsValid(oid))
		return false;
	StatementLockRelation(oid, AccessShareLock);
	table = table_open(oid, NoLock);
	has = table->rd_rel->relkind == RELKIND_RELATION &&
		RelationGetNumberOfBlocks(table) > 0;
	table_close(table, NoLock);
	return has;
}

/* Returns the OID of the table of the counts, InvalidOid if there is none. */
static Oid
counts_table(const Connection *connection)
{
	return get_relname_relid("extension_storage_usage", connection->schema);
}

/*
 * Are the counts there?  An unlogged table has an empty file after a crash, and
 * so it has before it is filled.
 */
static bool
counts_exist(const Connection *connection)
{
	return has_pages(counts_table(connection));
}

static void
truncate_counts(void *counts)
{
	Oid			oid = RelationGetRelid((Relation) counts);

#if PG_VERSION_NUM >= 160000
	ExecuteTruncateGuts(list_make1(counts), list_make1_oid(oid), NIL,
						DROP_RESTRICT, false, false);
#else
	ExecuteTruncateGuts(list_make1(counts), list_make1_oid(oid), NIL,
						DROP_RESTRICT, false);
#endif
}

/*
 * Empties the table of the counts as TRUNCATE does: with another file, which a
 * rollback would take back.  What its owner has put on it runs with his rights.
 */
static void
empty_counts(const Connection *connection)
{
	Oid			oid = counts_table(connection);
	Relation	counts;

	StatementLockRelation(oid, AccessExclusiveLock);
	if (get_rel_relkind(oid) != RELKIND_RELATION)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"extension_storage_usage\" is not a table")));
	counts = table_open(oid, NoLock);
	CheckTableNotInUse(counts, "TRUNCATE");
	RunAsOwner(counts->rd_rel->relowner, SECURITY_LOCAL_USERID_CHANGE, NULL,
			   truncate_counts, counts);
	table_close(counts, NoLock);
}

/*
 * Raises an error unless both tables have the same owner: what is on the table of
 * the counts runs with the rights of the owner of the entries.
 */
static void
check_owners(const Connection *connection, Relation entries)
{
	Oid			counts = counts_table(connection);
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(counts));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", counts);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	if (owner != entries->rd_rel->relowner)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("tables \"extension_storage\" and \"extension_storage_usage\" have different owners"),
				 errhint("Call ext_storage_take_over().")));
}

/*
 * QuotaIsCounting
 *		Are the counts kept?
 */
bool
QuotaIsCounting(const Connection *connection)
{
	Relation	table = table_open(StatementTable(connection), NoLock);
	bool		counting = triggers_enabled(table) && counts_exist(connection);

	if (counting)
		check_owners(connection, table);
	table_close(table, NoLock);
	return counting;
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
	if (!OidIsValid(counts_table(connection)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("installed version of extension \"extension_storage\" does not support quotas"),
				 errdetail("extension_storage.quota_per_extension is set, and table \"extension_storage_usage\" does not exist."),
				 errhint("Run ALTER EXTENSION extension_storage UPDATE.")));
	if (getExtensionOfObject(RelationRelationId, counts_table(connection)) !=
		getExtensionOfObject(ProcedureRelationId, connection->function))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"extension_storage_usage\" does not belong to extension \"extension_storage\""),
				 errhint("Drop or rename the table, and run ALTER EXTENSION extension_storage UPDATE.")));
	if (StatementIsDistributed(connection))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("quotas are not supported where table \"extension_storage\" is distributed"),
				 errhint("Set extension_storage.quota_per_extension to 0.")));
	StatementLockTable(connection, ShareRowExclusiveLock);
	table = table_open(StatementTable(connection), NoLock);
	if (QuotaIsCounting(connection))
		release = ShareRowExclusiveLock;	/* somebody else was first */
	else
	{
		check_owners(connection, table);
		StatementArgsInit(&args);
		if (table->rd_refcnt > 1 &&
			CheckRelationLockedByMe(table, RowExclusiveLock, false))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("cannot start quota accounting in a statement that modifies table \"extension_storage\""),
					 errhint("Write an entry in a statement of its own first.")));
		empty_counts(connection);
		StatementRunAsOwner(connection, &fill_statement, &args);
		cancel_changes();
		enable_trigger(table, ROWS_TRIGGER);
		enable_trigger(table, STATEMENT_TRIGGER);
		CommandCounterIncrement();
	}
	table_close(table, release);
}

/* The hash key is a pointer to a text: its bytes are what counts. */
static uint32
hash_extension(const void *key, Size size pg_attribute_unused())
{
	const text *extension_id = *(text *const *) key;

	return DatumGetUInt32(hash_any((const unsigned char *) VARDATA_ANY(extension_id),
								   VARSIZE_ANY_EXHDR(extension_id)));
}

static int
match_extensions(const void *a, const void *b, Size size pg_attribute_unused())
{
	return CompareTexts(*(text *const *) a, *(text *const *) b);
}

/* Finds what is known of an extension, or starts it. */
static Usage *
find_usage(Datum extension_id)
{
	text	   *key = DatumGetTextPP(extension_id);
	Usage	   *usage;
	bool		found;

	if (usages == NULL)
	{
		HASHCTL		control = {
			.keysize = sizeof(text *),
			.entrysize = sizeof(Usage),
			.hash = hash_extension,
			.match = match_extensions,
			.hcxt = TopTransactionContext
		};

		usages = hash_create("extension_storage usage", 16, &control,
							 HASH_ELEM | HASH_FUNCTION | HASH_COMPARE |
							 HASH_CONTEXT);
	}
	usage = hash_search(usages, &key, HASH_FIND, NULL);
	if (usage != NULL)
		return usage;

	/* a copy first: what fails later must leave no key of the caller's */
	key = memcpy(MemoryContextAlloc(TopTransactionContext, VARSIZE_ANY(key)),
				 key, VARSIZE_ANY(key));
	usage = hash_search(usages, &key, HASH_ENTER, &found);
	usage->has_place = false;
	usage->change = NULL;
	return usage;
}

/*
 * Locks the row of an extension, or adds to it: with the statement for a row
 * whose place is known or, where it is not there, the other one.  Returns the
 * bytes that it has then, or -1 if there is no row.
 */
static int64
run_usage(Connection *connection, Statement *placed_statement,
		  Statement *statement, Usage *usage, int64 bytes)
{
	StatementArgs args;
	Datum		row[NUM_USAGE_COLUMNS];
	bool		nulls[NUM_USAGE_COLUMNS];
	uint64		nrows = 0;
	int64		sum = -1;

	StatementArgsInit(&args);
	StatementSet(&args, USAGE_PARAM_EXTENSION_ID, TEXTOID,
				 PointerGetDatum(usage->extension_id));
	StatementSet(&args, USAGE_PARAM_BYTES, INT8OID, Int64GetDatum(bytes));
	if (usage->has_place)
	{
		StatementSet(&args, USAGE_PARAM_CTID, TIDOID,
					 PointerGetDatum(&usage->ctid));
		nrows = StatementRunAsOwner(connection, placed_statement, &args);
		if (nrows == 0)
			SPI_freetuptable(SPI_tuptable);
	}
	if (nrows == 0)
		nrows = StatementRunAsOwner(connection, statement, &args);
	if (nrows > 0)
	{
		StatementRow(statement, 0, row, nulls);
		usage->ctid = *(ItemPointer) DatumGetPointer(ColumnValue(usage_columns,
																 USAGE_CTID,
																 TIDOID, row));
		usage->has_place = true;
		sum = DatumGetInt64(ColumnValue(usage_columns, USAGE_VALUE_BYTES,
										INT8OID, row));
	}
	SPI_freetuptable(SPI_tuptable);
	return sum;
}

/* Sets negative sizes to null: all of them, or none if a constraint refuses. */
static void
clear_sizes(void *state)
{
	StatementArgs args;

	StatementArgsInit(&args);
	StatementRunAsOwner(state, &size_statement, &args);
}

/*
 * Changes the rows of the tables as release 1.2 has them, and says what it leaves.
 */
static void
update_rows(Connection *connection)
{
	StatementArgs args;
	Datum		row[NUM_LONG_COLUMNS];
	bool		nulls[NUM_LONG_COLUMNS];
	int64		nlong;
	ErrorData  *error;

	StatementArgsInit(&args);
	empty_counts(connection);
	error = StatementTry(clear_sizes, connection);
	if (error != NULL)
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("entries with a negative value_size remain"),
				 errdetail_internal("%s", error->message),
				 errhint("Set their value_size to null.")));
	StatementRunAsOwner(connection, &long_statement, &args);
	StatementRow(&long_statement, 0, row, nulls);
	nlong = DatumGetInt64(ColumnValue(long_columns, LONG_COUNT, INT8OID, row));
	if (nlong > 0)
		ereport(WARNING,
				(errmsg(INT64_FORMAT " entries have a description of more than %d characters",
						nlong, MAX_DESCRIPTION_CHARS),
				 errdetail("They can be read and deleted, but not changed, and a dump with them cannot be restored."),
				 errhint("Shorten what this finds: SELECT id, extension_id, key FROM %s.extension_storage WHERE char_length(description) > %d",
						 quote_identifier(get_namespace_name(connection->schema)),
						 MAX_DESCRIPTION_CHARS)));
}

/*
 * Raises an error if the script, which gives the table's owner his rights, may see a
 * former owner.  A table that this transaction has made has no other one.
 */
static void
check_update(const Connection *connection)
{
	Relation	table;

	if (!IsolationUsesXactSnapshot())
		return;
	table = table_open(StatementTable(connection), NoLock);
	if (table->rd_createSubid == InvalidSubTransactionId)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot update extension \"extension_storage\" in a transaction of this isolation level"),
				 errhint("Update it in a transaction of isolation level READ COMMITTED.")));
	table_close(table, NoLock);
}

/*
 * ext_storage_update_tables() returns void
 *		Changes the rows of the tables for release 1.2.
 *
 * The script of the update runs as a superuser, and what the owner has put on
 * the tables runs with each of these statements: so they have his rights.  New
 * tables need nothing, and their owner may not have USAGE on the schema yet.
 *
 * The script locks both tables.  That of the entries comes first, as a writer
 * locks it first: otherwise the two could wait for each other.
 */
Datum
ext_storage_update_tables(PG_FUNCTION_ARGS)
{
	Connection	connection;

	StatementConnect(&connection, fcinfo, false);
	StatementLockTable(&connection, AccessExclusiveLock);
	check_update(&connection);
	if (has_pages(StatementTable(&connection)) || counts_exist(&connection))
		update_rows(&connection);
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * Begins to get ready for a change.  A standby refuses it here: the counts are
 * unlogged, and have no file there.
 */
static void
begin_preparing(Connection *connection)
{
	connection->quota_prepared = true;
	if (RecoveryInProgress())
		PreventCommandDuringRecovery(psprintf("%s()", get_func_name(connection->function)));
}

/*
 * QuotaPrepareMany
 *		Gets ready for a change of the entries of several extensions: locks the
 *		table, and by a statement their counts.  SPI must be connected.
 *
 * It does not begin to count: what only deletes cannot exceed a quota.
 */
void
QuotaPrepareMany(Connection *connection, Statement *lock_usage,
				 const StatementArgs *args)
{
	begin_preparing(connection);
	StatementLockTable(connection, RowExclusiveLock);
	if (QuotaIsCounting(connection))
		StatementRunAsOwner(connection, lock_usage, args);
}

/* Locks the count of an extension; returns it, -1 if there is none. */
static int64
lock_usage(Connection *connection, Usage *usage)
{
	return run_usage(connection, &lock_placed_statement, &lock_usage_statement,
					 usage, 0);
}

/*
 * QuotaPrepare
 *		Gets ready for a change of an extension's entries: locks the table and
 *		the extension's count.  SPI must be connected.
 */
void
QuotaPrepare(Connection *connection, Datum extension_id)
{
	Usage	   *usage;

	begin_preparing(connection);
	if (quota_per_extension > 0 && !QuotaIsCounting(connection))
		start_counting(connection);
	StatementLockTable(connection, RowExclusiveLock);
	if (quota_per_extension == 0 && !QuotaIsCounting(connection))
		return;
	usage = find_usage(extension_id);
	if (lock_usage(connection, usage) < 0)
		run_usage(connection, &add_placed_statement, &add_usage_statement,
				  usage, 0);
}

/* Where a table has the columns that a row's bytes are counted by. */
typedef enum CountedColumn
{
	COUNTED_EXTENSION_ID,
	COUNTED_VALUE,
	COUNTED_VALUE_SIZE,
	COUNTED_DESCRIPTION,
	COUNTED_IS_ENCRYPTED,
	NUM_COUNTED_COLUMNS
} CountedColumn;

static const char *const counted_columns[] = {
	[COUNTED_EXTENSION_ID] = "extension_id",
	[COUNTED_VALUE] = "value",
	[COUNTED_VALUE_SIZE] = "value_size",
	[COUNTED_DESCRIPTION] = "description",
	[COUNTED_IS_ENCRYPTED] = "is_encrypted"
};

StaticAssertDecl(lengthof(counted_columns) == NUM_COUNTED_COLUMNS,
				 "every counted column has a name");

typedef struct CountedTable
{
	Oid			relation;
	int			attnos[NUM_COUNTED_COLUMNS];
} CountedTable;

/*
 * Returns the columns of a row trigger's table, after a check that it is the
 * extension's own and that their types are what is read from its rows.  Kept
 * for the statement's other rows: it has the table open.
 */
static const CountedTable *
counted_table(FunctionCallInfo fcinfo, Relation relation)
{
	CountedTable *counted = fcinfo->flinfo->fn_extra;
	TupleDesc	tupdesc = RelationGetDescr(relation);

	if (counted != NULL && counted->relation == RelationGetRelid(relation))
		return counted;
	StatementCheckTable(relation);
	counted = MemoryContextAlloc(fcinfo->flinfo->fn_mcxt, sizeof(CountedTable));
	counted->relation = RelationGetRelid(relation);
	for (int i = 0; i < NUM_COUNTED_COLUMNS; i++)
		counted->attnos[i] = SPI_fnumber(tupdesc, counted_columns[i]);
	fcinfo->flinfo->fn_extra = counted;
	return counted;
}

/* The bytes of a row that count, as SQL_BYTES above. */
static int64
entry_bytes(const Datum *values, const bool *nulls)
{
	int64		bytes = 0;
	int32		size;

	if (!nulls[COUNTED_VALUE])
		bytes = toast_raw_datum_size(values[COUNTED_VALUE]) - VARHDRSZ;
	if (!nulls[COUNTED_VALUE_SIZE] && !nulls[COUNTED_IS_ENCRYPTED] &&
		DatumGetBool(values[COUNTED_IS_ENCRYPTED]))
	{
		size = DatumGetInt32(values[COUNTED_VALUE_SIZE]);
		if (size >= 0 && size <= (int32) MaxAllocSize &&
			(int64) FernetTokenLen((size_t) size) == bytes)
			bytes = size;
	}
	if (!nulls[COUNTED_DESCRIPTION])
		bytes += toast_raw_datum_size(values[COUNTED_DESCRIPTION]) - VARHDRSZ;
	return bytes;
}

/* Notes the bytes of a row, with their sign. */
static void
count_row(const CountedTable *counted, HeapTuple tuple, TupleDesc tupdesc,
		  int sign)
{
	int			level = GetCurrentTransactionNestLevel();
	Datum		values[NUM_COUNTED_COLUMNS];
	bool		nulls[NUM_COUNTED_COLUMNS];
	Usage	   *usage;
	int64		bytes;

	for (int i = 0; i < NUM_COUNTED_COLUMNS; i++)
		values[i] = heap_getattr(tuple, counted->attnos[i], tupdesc, &nulls[i]);
	if (nulls[COUNTED_EXTENSION_ID])
		ReportNullColumn(counted_columns[COUNTED_EXTENSION_ID]);
	bytes = sign * entry_bytes(values, nulls);
	usage = find_usage(values[COUNTED_EXTENSION_ID]);
	if (usage->change != NULL && usage->change->nest_level == level)
		usage->change->bytes += bytes;
	else
		push_change(usage, bytes, level);
}

/* Orders changes by extension. */
static int
compare_changes(const ListCell *a, const ListCell *b)
{
	return CompareTexts(((Change *) lfirst(a))->usage->extension_id,
						((Change *) lfirst(b))->usage->extension_id);
}

/*
 * Raises an error if an extension has more than the quota, after a change by
 * some bytes.
 *
 * What logical replication applies is never refused: another server has
 * accepted it, and replication would stop here for good.
 */
static void
check_quota(const Usage *usage, int64 total, int64 bytes)
{
	if (quota_per_extension > 0 && !IsLogicalWorker() && bytes > 0 &&
		total > (int64) quota_per_extension)
		ereport(ERROR,
				(errcode(ERRCODE_ES_QUOTA),
				 errmsg("quota of extension \"%s\" would be exceeded",
						text_to_cstring(usage->extension_id)),
				 errdetail("It has " INT64_FORMAT " of " INT64_FORMAT
						   " bytes in use, and the change needs " INT64_FORMAT
						   " more.",
						   total - bytes, (int64) quota_per_extension, bytes),
				 errhint("Delete entries, or raise extension_storage.quota_per_extension.")));
}

/* Is the quota of an extension checked later? */
static bool
is_checked_at_end(const Usage *usage)
{
	for (const CheckedAtEnd *block = checked_at_end; block != NULL; block = block->outer)
		if (block->usage == usage)
			return true;
	return false;
}

/*
 * QuotaCheckAtEnd
 *		Runs a block that makes several changes of an extension's entries, for
 *		which QuotaPrepare has been called, and checks the quota when all are
 *		made: one may need the room that a later one makes.
 */
void
QuotaCheckAtEnd(Connection *connection, Datum extension_id,
				StatementBlock block, void *state)
{
	CheckedAtEnd checked = {.outer = checked_at_end};
	Usage	   *usage;
	int64		before;

	if (quota_per_extension == 0 || !QuotaIsCounting(connection))
	{
		block(state);
		return;
	}
	usage = find_usage(extension_id);
	if (is_checked_at_end(usage))
	{
		block(state);			/* called by a trigger of an outer block */
		return;
	}
	before = lock_usage(connection, usage);
	checked.usage = usage;
	PG_TRY();
	{
		checked_at_end = &checked;
		block(state);
	}
	PG_FINALLY();
	{
		checked_at_end = checked.outer;
	}
	PG_END_TRY();
	if (QuotaIsCounting(connection))
	{
		int64		after = lock_usage(connection, usage);

		check_quota(usage, after, after - before);
	}
}

/*
 * Writes the changes of this transaction level, and checks the quota.
 *
 * Those of an outer level stay: their statement is not done yet, and what is
 * written here may be rolled back without it.  The rest goes in the order of
 * the extensions, so that two writers of several do not wait for each other.
 */
static void
write_changes(Connection *connection)
{
	int			level = GetCurrentTransactionNestLevel();
	bool		counting = QuotaIsCounting(connection);
	List	   *written = NIL;
	ListCell   *cell;

	while (changes != NIL && ((Change *) llast(changes))->nest_level >= level)
	{
		Change	   *change = pop_change();
		Change	   *outer = change->outer;

		if (outer != NULL && outer->nest_level >= level)
		{
			outer->bytes += change->bytes;
			pfree(change);
		}
		else
			written = lappend(written, change);
	}
	if (!counting)
		return;
	list_sort(written, compare_changes);
	foreach(cell, written)
	{
		Change	   *change = lfirst(cell);
		int64		total;

		if (change->bytes == 0)
			continue;
		total = run_usage(connection, &add_placed_statement,
						  &add_usage_statement, change->usage, change->bytes);
		if (!is_checked_at_end(change->usage))
			check_quota(change->usage, total, change->bytes);
		pfree(change);
	}
	list_free(written);
}

/*
 * Checks that a trigger function is called as a trigger of the extension's own
 * table, as its script makes it: whoever has the right to may make others.
 */
static TriggerData *
trigger_data(FunctionCallInfo fcinfo, bool for_row)
{
	TriggerData *trigdata;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ReportNoTrigger();
	trigdata = (TriggerData *) fcinfo->context;
	if (!TRIGGER_FIRED_AFTER(trigdata->tg_event) ||
		(TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) != 0) != for_row ||
		RelationGetRelid(trigdata->tg_relation) !=
		get_relname_relid("extension_storage",
						  get_func_namespace(fcinfo->flinfo->fn_oid)))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" of table \"%s\" was not made by extension \"extension_storage\"",
						trigdata->tg_trigger->tgname,
						RelationGetRelationName(trigdata->tg_relation)),
				 errhint("Drop the trigger.")));
	return trigdata;
}

/*
 * ext_storage_count_rows() returns trigger
 *		AFTER ROW trigger: adds up what a statement changes.
 */
Datum
ext_storage_count_rows(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = trigger_data(fcinfo, true);
	TupleDesc	tupdesc = RelationGetDescr(trigdata->tg_relation);
	const CountedTable *counted;

	if (!triggers_enabled(trigdata->tg_relation))
		return PointerGetDatum(NULL);
	counted = counted_table(fcinfo, trigdata->tg_relation);
	counting_function = fcinfo->flinfo->fn_oid;
	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		count_row(counted, trigdata->tg_trigtuple, tupdesc, 1);
	else
	{
		count_row(counted, trigdata->tg_trigtuple, tupdesc, -1);
		if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
			count_row(counted, trigdata->tg_newtuple, tupdesc, 1);
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
	TriggerData *trigdata = trigger_data(fcinfo, false);
	bool		truncated = TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event);
	Connection	connection;
	StatementArgs args;

	if (changes == NIL && !truncated)
		return PointerGetDatum(NULL);
	StatementConnect(&connection, fcinfo, false);
	write_changes(&connection);
	if (truncated && QuotaIsCounting(&connection))
	{
		StatementArgsInit(&args);
		StatementRunAsOwner(&connection, &zero_statement, &args);
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
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Connection	connection;
	StatementArgs args;
	uint64		n;

	StatementArgsInit(&args);
	InitMaterializedSRF(fcinfo, 0);
	CheckResult(rsinfo->setDesc, usage_results, NUM_OF_ALL_RESULTS);
	StatementConnect(&connection, fcinfo, false);
	StatementRequireAllRows(&connection);
	n = StatementRun(&connection, &usage_of_all_statement, &args, true);
	for (uint64 i = 0; i < n; i++)
	{
		Datum		row[NUM_OF_ALL_RESULTS];
		bool		nulls[NUM_OF_ALL_RESULTS] = {false};

		StatementRow(&usage_of_all_statement, i, row, nulls);
		row[OF_ALL_QUOTA_BYTES] = Int64GetDatum((int64) quota_per_extension);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row, nulls);
	}
	SPI_finish();
	return (Datum) 0;
}
