/*-------------------------------------------------------------------------
 *
 * lifecycle.c
 *	  Deletes entries with their extension, user or resource.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "entry.h"
#include "errors.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "quota.h"
#include "statement.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

/* What a purge is given: an extension, users, or resources of a type. */
enum
{
	EXTENSION_PARAM_ID,
	NUM_EXTENSION_PARAMS
};

static const StatementParam extension_params[] = {
	[EXTENSION_PARAM_ID] = {"extension_id", TEXTOID}
};

enum
{
	USER_PARAM_USERS,
	NUM_USER_PARAMS
};

static const StatementParam user_params[] = {
	[USER_PARAM_USERS] = {"users", INT8ARRAYOID}
};

enum
{
	RESOURCE_PARAM_TYPE,
	RESOURCE_PARAM_UUIDS,
	NUM_RESOURCE_PARAMS
};

static const StatementParam resource_params[] = {
	[RESOURCE_PARAM_TYPE] = {"resource_type", TEXTOID},
	[RESOURCE_PARAM_UUIDS] = {"resource_uuids", TEXTARRAYOID}
};

enum
{
	LOCK_LOCKED,
	NUM_LOCK_COLUMNS
};

static const StatementColumn lock_columns[] = {
	[LOCK_LOCKED] = {"locked", INT8OID, NOT_NULL}
};

/* What the statements return that find an entry. */
enum
{
	FOUND_ID,
	NUM_FOUND_COLUMNS
};

static const StatementColumn found_columns[] = {
	[FOUND_ID] = {"id", INT8OID, NOT_NULL}
};

/* Finds an entry that matches a condition. */
#define FIND_ENTRY(condition, use_index, ...) \
	{ \
		.sql = "SELECT @columns@ FROM " SQL_TABLE " WHERE " condition " LIMIT 1", \
		STATEMENT_COLUMNS(found_columns, NUM_FOUND_COLUMNS), \
		.by_index = use_index, __VA_ARGS__ \
	}

/* Locks rows in their order, and counts them. */
#define LOCK_ROWS(rows, use_index, ...) \
	{ \
		.sql = "SELECT pg_catalog.count(*) FROM (SELECT 1 FROM " rows \
		" FOR UPDATE) AS locked", \
		STATEMENT_COLUMNS(lock_columns, NUM_LOCK_COLUMNS), \
		.by_index = use_index, __VA_ARGS__ \
	}

/* The entries that match a condition, in the order of set_many. */
#define LOCK_ENTRIES(condition, use_index, ...) \
	LOCK_ROWS(SQL_TABLE " WHERE " condition " ORDER BY e.extension_id, e.user_fk," \
			  " e.resource_type, e.resource_uuid, e.key", use_index, __VA_ARGS__)

/*
 * How the entries that match a condition are deleted: where bytes are counted,
 * the counts of their extensions are locked first, in order (see
 * StatementLockTable).
 */
typedef struct Purge
{
	Statement	lock_usage;
	Statement	lock_entries;
	Statement	delete_entries;
	Statement	find_entry;
} Purge;

#define PURGE(condition, use_index, ...) \
	{ \
		.lock_usage = LOCK_ROWS("@schema@.extension_storage_usage AS u" \
			" WHERE u.extension_id" SQL_EQ "ANY (ARRAY(SELECT e.extension_id FROM " \
			SQL_TABLE " WHERE " condition ")) ORDER BY u.extension_id", \
			use_index, __VA_ARGS__), \
		.lock_entries = LOCK_ENTRIES(condition, use_index, __VA_ARGS__), \
		.delete_entries = { \
			.sql = "DELETE FROM " SQL_TABLE " WHERE " condition, \
			.by_index = use_index, __VA_ARGS__ \
		}, \
		.find_entry = FIND_ENTRY(condition, use_index, __VA_ARGS__) \
	}

static Purge purge_extension =
PURGE("e.extension_id" SQL_EQ "$extension_id", true,
	  STATEMENT_PARAMS(extension_params, NUM_EXTENSION_PARAMS));
static Purge purge_users =
PURGE("e.user_fk" SQL_EQ "ANY ($users)", true, STATEMENT_PARAMS(user_params, NUM_USER_PARAMS));
static Purge purge_all_users =
PURGE("e.user_fk IS NOT NULL", false,.params = NULL);
static Purge purge_resources =
PURGE("e.resource_type" SQL_EQ "$resource_type"
	  " AND e.resource_uuid" SQL_EQ "ANY ($resource_uuids)", true,
	  STATEMENT_PARAMS(resource_params, NUM_RESOURCE_PARAMS));
static Purge purge_all_resources =
PURGE("e.resource_type" SQL_EQ "$resource_type", false,
	  STATEMENT_PARAMS(resource_params, NUM_RESOURCE_PARAMS));

static bool expand_gone(StringInfo sql, const char *placeholder, int shape);

#define SHAPE_DISTRIBUTED 1
#define IS_GONE SQL_EQ "ANY (@gone@)"

#define NAMES_GONE "e.created_by_fk" IS_GONE " OR e.changed_by_fk" IS_GONE

/* How users are cleared from the audit columns of entries. */
typedef struct Clearing
{
	Statement	lock_entries;
	Statement	clear_entries;
	Statement	find_entry;
} Clearing;

static Clearing clear_gone = {
	.lock_entries = LOCK_ENTRIES(NAMES_GONE, false,
								 STATEMENT_PARAMS(user_params, NUM_USER_PARAMS),
								 .expand = expand_gone),
	.clear_entries = {
		.sql = "UPDATE " SQL_TABLE " SET created_by_fk ="
		" CASE WHEN e.created_by_fk" IS_GONE " THEN NULL ELSE e.created_by_fk END,"
		" changed_by_fk ="
		" CASE WHEN e.changed_by_fk" IS_GONE " THEN NULL ELSE e.changed_by_fk END"
		" WHERE " NAMES_GONE,
		STATEMENT_PARAMS(user_params, NUM_USER_PARAMS),
		.expand = expand_gone,
		.keeps_bytes = true
	},
	.find_entry = FIND_ENTRY(NAMES_GONE, false,
							 STATEMENT_PARAMS(user_params, NUM_USER_PARAMS),
							 .expand = expand_gone)
};

#define NAMES_ANY "e.created_by_fk IS NOT NULL OR e.changed_by_fk IS NOT NULL"

static Clearing clear_all = {
	.lock_entries = LOCK_ENTRIES(NAMES_ANY, false, .params = NULL),
	.clear_entries = {
		.sql = "UPDATE " SQL_TABLE " SET created_by_fk = NULL, changed_by_fk = NULL"
		" WHERE " NAMES_ANY,
		.keeps_bytes = true
	},
	.find_entry = FIND_ENTRY(NAMES_ANY, false, .params = NULL)
};

/* Other tables that are attached for the same, by the arguments of triggers. */
enum
{
	OTHER_PARAM_FUNCTION,
	OTHER_PARAM_TABLE,
	OTHER_PARAM_ARGUMENTS,
	NUM_OTHER_PARAMS
};

enum
{
	OTHER_NAME,
	NUM_OTHER_COLUMNS
};

static const StatementParam other_params[] = {
	[OTHER_PARAM_FUNCTION] = {"function", OIDOID},
	[OTHER_PARAM_TABLE] = {"table", OIDOID},
	[OTHER_PARAM_ARGUMENTS] = {"arguments", BYTEAOID}
};
static const StatementColumn other_columns[] = {
	[OTHER_NAME] = {"name", TEXTOID, NOT_NULL}
};

static Statement other_statement = {
	.sql = "SELECT CAST(CAST(t.tgrelid AS pg_catalog.regclass) AS pg_catalog.text)"
	" FROM pg_catalog.pg_trigger AS t WHERE t.tgfoid" SQL_EQ "$function"
	" AND t.tgrelid OPERATOR(pg_catalog.<>) $table"
	" AND pg_catalog.substr(t.tgargs, 1, pg_catalog.length($arguments))"
	SQL_EQ "$arguments ORDER BY t.tgrelid LIMIT 1",
	STATEMENT_PARAMS(other_params, NUM_OTHER_PARAMS),
	STATEMENT_COLUMNS(other_columns, NUM_OTHER_COLUMNS)
};

/* The arguments of the purge functions. */
enum
{
	PURGE_ARG_EXTENSION_ID,
	NUM_PURGE_EXTENSION_ARGS
};

static const ArgumentInfo purge_extension_arguments[] = {
	[PURGE_ARG_EXTENSION_ID] = {"extension_id", TEXTOID, MAX_EXTENSION_ID_CHARS, true}
};

enum
{
	PURGE_ARG_USER_FK,
	NUM_PURGE_USER_ARGS
};

static const ArgumentInfo purge_user_arguments[] = {
	[PURGE_ARG_USER_FK] = {"user_fk", INT4OID, 0, true}
};

enum
{
	PURGE_ARG_RESOURCE_TYPE,
	PURGE_ARG_RESOURCE_UUID,
	NUM_PURGE_RESOURCE_ARGS
};

static const ArgumentInfo purge_resource_arguments[] = {
	[PURGE_ARG_RESOURCE_TYPE] = {"resource_type", TEXTOID, MAX_RESOURCE_TYPE_CHARS, true},
	[PURGE_ARG_RESOURCE_UUID] = {"resource_uuid", TEXTOID, MAX_RESOURCE_UUID_CHARS, true}
};

PG_FUNCTION_INFO_V1(ext_storage_purge_extension);
PG_FUNCTION_INFO_V1(ext_storage_purge_user);
PG_FUNCTION_INFO_V1(ext_storage_purge_resource);
PG_FUNCTION_INFO_V1(ext_storage_users_deleted);
PG_FUNCTION_INFO_V1(ext_storage_resources_deleted);

/*
 * Appends the users that are gone.  A subquery is hashed, while an array is
 * searched for each entry; but over all the shards of a distributed table an
 * update must not have a subquery.
 */
static bool
expand_gone(StringInfo sql, const char *placeholder, int shape)
{
	if (strcmp(placeholder, "gone") != 0)
		return false;
	appendStringInfoString(sql, (shape & SHAPE_DISTRIBUTED) ? "$users" :
						   "SELECT pg_catalog.unnest($users)");
	return true;
}

/*
 * Locks the entries that are to be deleted or changed, so that the order of a
 * scan makes no deadlock with set_many.  A distributed table has no order that
 * holds for all servers.
 */
static void
lock_entries(Connection *connection, Statement *statement,
			 const StatementArgs *args)
{
	if (!StatementIsDistributed(connection))
		StatementRunAsOwner(connection, statement, args);
}

/*
 * Deletes entries, with the rights of the caller or of the table's owner.
 * Returns how many, and in *kept whether some are left that a trigger or a
 * policy keeps.  SPI must be connected.
 */
static uint64
run_purge(Connection *connection, Purge *purge, const StatementArgs *args,
		  bool as_owner, bool *kept)
{
	QuotaPrepareMany(connection, &purge->lock_usage, args);
	lock_entries(connection, &purge->lock_entries, args);
	return StatementRunForAll(connection, &purge->delete_entries,
							  &purge->find_entry, args, as_owner, kept);
}

/* Deletes entries for a purge function. */
static Datum
purge_for_caller(FunctionCallInfo fcinfo, Purge *purge,
				 const StatementArgs *args)
{
	Connection	connection;
	uint64		npurged;
	bool		kept;

	StatementConnect(&connection, fcinfo, false);
	npurged = run_purge(&connection, purge, args, false, &kept);
	if (kept)
		ReportEntriesKept();
	SPI_finish();
	PG_RETURN_INT64((int64) npurged);
}

/*
 * ext_storage_purge_extension(extension_id text) returns bigint
 *		Deletes all entries of an extension; returns how many.
 */
Datum
ext_storage_purge_extension(PG_FUNCTION_ARGS)
{
	StatementArgs args;

	CheckArguments(fcinfo, purge_extension_arguments, NUM_PURGE_EXTENSION_ARGS);
	StatementArgsInit(&args);
	TextParam(&args, EXTENSION_PARAM_ID, fcinfo, purge_extension_arguments,
			  PURGE_ARG_EXTENSION_ID);
	return purge_for_caller(fcinfo, &purge_extension, &args);
}

/*
 * ext_storage_purge_user(user_fk integer) returns bigint
 *		Deletes all that is private to a user; returns how many entries.
 */
Datum
ext_storage_purge_user(PG_FUNCTION_ARGS)
{
	StatementArgs args;
	Datum		user;

	CheckArguments(fcinfo, purge_user_arguments, NUM_PURGE_USER_ARGS);
	RequireArgument(fcinfo, purge_user_arguments, PURGE_ARG_USER_FK);
	user = Int64GetDatum(DatumGetInt32(ArgumentValue(fcinfo,
													 purge_user_arguments,
													 PURGE_ARG_USER_FK, INT4OID)));
	StatementArgsInit(&args);
	StatementSet(&args, USER_PARAM_USERS, INT8ARRAYOID,
				 MakeArray(&user, NULL, 1, INT8OID));
	return purge_for_caller(fcinfo, &purge_users, &args);
}

/*
 * ext_storage_purge_resource(resource_type text, resource_uuid text)
 *		returns bigint
 *		Deletes all that belongs to a resource; returns how many entries.
 */
Datum
ext_storage_purge_resource(PG_FUNCTION_ARGS)
{
	StatementArgs args;
	Datum		uuid;

	CheckArguments(fcinfo, purge_resource_arguments, NUM_PURGE_RESOURCE_ARGS);
	StatementArgsInit(&args);
	TextParam(&args, RESOURCE_PARAM_TYPE, fcinfo, purge_resource_arguments,
			  PURGE_ARG_RESOURCE_TYPE);
	uuid = PointerGetDatum(ResourceUuidArgument(fcinfo,
												purge_resource_arguments,
												PURGE_ARG_RESOURCE_UUID));
	StatementSet(&args, RESOURCE_PARAM_UUIDS, TEXTARRAYOID,
				 MakeArray(&uuid, NULL, 1, TEXTOID));
	return purge_for_caller(fcinfo, &purge_resources, &args);
}

/* Checks that a trigger function is called as the attach functions make it. */
static TriggerData *
trigger_data(FunctionCallInfo fcinfo, int nargs)
{
	TriggerData *trigdata;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ReportNoTrigger();
	trigdata = (TriggerData *) fcinfo->context;
	if (!TRIGGER_FIRED_AFTER(trigdata->tg_event) ||
		!TRIGGER_FIRED_FOR_STATEMENT(trigdata->tg_event) ||
		trigdata->tg_trigger->tgnargs != nargs ||
		(!TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event) &&
		 (!TRIGGER_FIRED_BY_DELETE(trigdata->tg_event) ||
		  trigdata->tg_oldtable == NULL)) ||
		getExtensionOfObject(RelationRelationId,
							 RelationGetRelid(trigdata->tg_relation)) ==
		get_extension_oid("extension_storage", false))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" of table \"%s\" was not made by ext_storage_attach_users or ext_storage_attach_resource",
						trigdata->tg_trigger->tgname,
						RelationGetRelationName(trigdata->tg_relation))));
	return trigdata;
}

/*
 * Collects a column of the rows that a statement deleted, as the texts of its
 * values; nulls are left out.  A char(n) is padded with blanks that mean nothing:
 * it is there with them and without.
 */
static List *
deleted_values(TriggerData *trigdata, const char *column)
{
	TupleDesc	tupdesc = RelationGetDescr(trigdata->tg_relation);
	int			attno = SPI_fnumber(tupdesc, column);
	TupleTableSlot *slot;
	List	   *values = NIL;
	Oid			type;
	Oid			output;
	bool		is_varlena;

	if (attno <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\" does not exist", column,
						RelationGetRelationName(trigdata->tg_relation)),
				 errhint("Attach the table again.")));
	type = getBaseType(TupleDescAttr(tupdesc, attno - 1)->atttypid);
	getTypeOutputInfo(type, &output, &is_varlena);
	slot = MakeSingleTupleTableSlot(tupdesc, &TTSOpsMinimalTuple);

	/* the table's other triggers have read the same rows */
	tuplestore_select_read_pointer(trigdata->tg_oldtable, 0);
	tuplestore_rescan(trigdata->tg_oldtable);
	while (tuplestore_gettupleslot(trigdata->tg_oldtable, true, false, slot))
	{
		bool		isnull;
		Datum		value = slot_getattr(slot, attno, &isnull);

		if (isnull)
			continue;
		values = lappend(values, OidOutputFunctionCall(output, value));
		if (type == BPCHAROID)
			values = lappend(values,
							 TextDatumGetCString(DirectFunctionCall1(rtrim1, value)));
	}
	ExecDropSingleTupleTableSlot(slot);
	return values;
}

/*
 * Reads the id of a user; false if it is none that user_fk could be, whatever
 * has become of the column: such a user has no entries.
 */
static bool
user_id(const char *text, Datum *id)
{
	char	   *end;
	int64		value;

	errno = 0;
	value = strtoi64(text, &end, 10);
	if (end > text && *end == '.')	/* a numeric one may have decimals */
		end += 1 + strspn(end + 1, "0");
	if (errno != 0 || end == text || *end != '\0')
		return false;
	*id = Int64GetDatum(value);
	return true;
}

/*
 * Is a table that was truncated the only one that is attached with a trigger's
 * function and, if type is not NULL, for a resource type?  If not, warns that
 * nothing is deleted: what was in which table is not known.
 */
static bool
is_only_table(Connection *connection, FunctionCallInfo fcinfo, const char *type)
{
	Relation	table = ((TriggerData *) fcinfo->context)->tg_relation;
	int			len = type != NULL ? strlen(type) + 1 : 0;	/* with its null byte */
	StatementArgs args;
	Datum		row[NUM_OTHER_COLUMNS];
	bool		nulls[NUM_OTHER_COLUMNS];
	bool		found;
	char	   *reason;

	StatementArgsInit(&args);
	StatementSet(&args, OTHER_PARAM_FUNCTION, OIDOID,
				 ObjectIdGetDatum(fcinfo->flinfo->fn_oid));
	StatementSet(&args, OTHER_PARAM_TABLE, OIDOID,
				 ObjectIdGetDatum(RelationGetRelid(table)));
	StatementSet(&args, OTHER_PARAM_ARGUMENTS, BYTEAOID,
				 PointerGetDatum(cstring_to_text_with_len(type != NULL ? type : "", len)));
	/* one may have been attached while TRUNCATE has waited */
	PushActiveSnapshot(GetLatestSnapshot());
	found = StatementFetch(connection, &other_statement, &args, true, row,
						   nulls);
	PopActiveSnapshot();
	if (found)
		reason = psprintf("Table %s is attached for the same kind, and it is not known which rows were in which table.",
						  TextDatumGetCString(ColumnValue(other_columns,
														  OTHER_NAME, TEXTOID,
														  row)));
	else if (table->rd_rel->relkind == RELKIND_RELATION &&
			 find_inheritance_children(RelationGetRelid(table), NoLock) != NIL)
		reason = "Other tables inherit from it, and TRUNCATE ONLY leaves their rows.";
	else
		return true;
	ereport(WARNING,
			(errmsg("entries that belonged to rows of table \"%s\" are kept",
					RelationGetRelationName(table)),
			 errdetail("%s", reason),
			 errhint("Call ext_storage_purge_orphans() to delete the entries that belong to no row of any attached table.")));
	return false;
}

/*
 * Deletes entries for a trigger, or says why not: what somebody has put on the
 * table must not be what keeps a row of another one from being deleted.
 */
static void
purge_deleted(Connection *connection, Purge *purge, const StatementArgs *args)
{
	bool		kept;

	run_purge(connection, purge, args, true, &kept);
	if (kept)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("some entries of deleted users or resources are left"),
				 errdetail("A trigger, a rule or a row-level security policy of table \"extension_storage\" prevents their deletion."),
				 errhint("Correct that, then call ext_storage_purge_orphans().")));
}

/* What clear_users is told. */
typedef struct ClearUsers
{
	Connection *connection;
	Clearing   *clearing;
	const StatementArgs *args;
} ClearUsers;

#define ERRMSG_USERS_REMAIN \
	errmsg("deleted users remain in created_by_fk or changed_by_fk of some entries")

static void
clear_users(void *state)
{
	ClearUsers *users = state;
	bool		kept;

	StatementLockTable(users->connection, RowExclusiveLock);
	lock_entries(users->connection, &users->clearing->lock_entries, users->args);
	(void) StatementRunForAll(users->connection,
							  &users->clearing->clear_entries,
							  &users->clearing->find_entry, users->args, true,
							  &kept);
	if (kept)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 ERRMSG_USERS_REMAIN,
				 errdetail("A trigger, a rule or a row-level security policy of table \"extension_storage\" prevents the change."),
				 errhint("Correct that, then call ext_storage_purge_orphans().")));
}

/*
 * Clears users from the audit columns, or says why not: an old entry that a
 * later constraint refuses must not be what keeps a user from being deleted.
 */
static void
try_clear_users(Connection *connection, Clearing *clearing,
				const StatementArgs *args)
{
	ClearUsers	users = {connection, clearing, args};
	ErrorData  *error = StatementTry(clear_users, &users);

	if (error == NULL)
		return;
	if (ERRCODE_TO_CATEGORY(error->sqlerrcode) !=
		ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION)
		ReThrowError(error);
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 ERRMSG_USERS_REMAIN,
			 errdetail_internal("%s", error->message),
			 errhint("Change the entries so that they satisfy the constraint, then call ext_storage_purge_orphans().")));
}

/*
 * ext_storage_users_deleted() returns trigger
 *		Purges what was private to users that are deleted, and clears them from
 *		the audit columns.  Its argument is the name of the id column.
 */
Datum
ext_storage_users_deleted(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = trigger_data(fcinfo, 1);
	Connection	connection;
	StatementArgs args;
	List	   *texts;
	ListCell   *cell;
	Datum	   *users;
	int			nusers = 0;

	StatementArgsInit(&args);
	StatementConnect(&connection, fcinfo, false);
	if (TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
	{
		if (is_only_table(&connection, fcinfo, NULL))
		{
			purge_deleted(&connection, &purge_all_users, &args);
			try_clear_users(&connection, &clear_all, &args);
		}
	}
	else if ((texts = deleted_values(trigdata,
									 trigdata->tg_trigger->tgargs[0])) != NIL)
	{
		users = palloc(list_length(texts) * sizeof(Datum));
		foreach(cell, texts)
		{
			if (user_id(lfirst(cell), &users[nusers]))
				nusers++;
		}
		StatementSet(&args, USER_PARAM_USERS, INT8ARRAYOID,
					 MakeArray(users, NULL, nusers, INT8OID));
		purge_deleted(&connection, &purge_users, &args);
		if (StatementIsDistributed(&connection))
			args.shape = SHAPE_DISTRIBUTED;
		try_clear_users(&connection, &clear_gone, &args);
	}
	SPI_finish();
	return PointerGetDatum(NULL);
}

/*
 * ext_storage_resources_deleted() returns trigger
 *		Purges what belonged to resources that are deleted.  Its arguments are
 *		the resource type and the name of the column that identifies them.
 */
Datum
ext_storage_resources_deleted(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = trigger_data(fcinfo, 2);
	Connection	connection;
	StatementArgs args;
	List	   *texts;
	ListCell   *cell;
	Datum	   *uuids;
	int			nuuids = 0;

	StatementArgsInit(&args);
	StatementSet(&args, RESOURCE_PARAM_TYPE, TEXTOID,
				 CStringGetTextDatum(trigdata->tg_trigger->tgargs[0]));
	StatementConnect(&connection, fcinfo, false);
	if (TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
	{
		if (is_only_table(&connection, fcinfo, trigdata->tg_trigger->tgargs[0]))
			purge_deleted(&connection, &purge_all_resources, &args);
	}
	else if ((texts = deleted_values(trigdata,
									 trigdata->tg_trigger->tgargs[1])) != NIL)
	{
		uuids = palloc(list_length(texts) * sizeof(Datum));
		foreach(cell, texts)
		{
			char	   *text = lfirst(cell);
			char		canonical[UUID_TEXT_LEN + 1];

			if (CanonicalUuid(text, strlen(text), canonical))
				text = canonical;
			uuids[nuuids++] = CStringGetTextDatum(text);
		}
		StatementSet(&args, RESOURCE_PARAM_UUIDS, TEXTARRAYOID,
					 MakeArray(uuids, NULL, nuuids, TEXTOID));
		purge_deleted(&connection, &purge_resources, &args);
	}
	SPI_finish();
	return PointerGetDatum(NULL);
}
