/*-------------------------------------------------------------------------
 *
 * statement.c
 *	  SQL statements over the table, with kept plans.
 *
 * A statement is prepared when a session first needs it and kept.  Its text
 * names the schema that the extension is in, which is that of the function
 * that was called.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "executor/tstoreReceiver.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/params.h"
#include "tcop/dest.h"
#include "statement.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

/*
 * The schema that plans are made for.  Its generation goes up whenever the
 * extension turns out to be in another one, or in one of another name.
 */
static Oid	schema_function = InvalidOid;	/* that it was last found by */
static Oid	schema_oid = InvalidOid;
static NameData schema_name;
static uint64 schema_generation = 0;
static bool schema_may_have_changed = true;

static void
schema_changed(Datum arg pg_attribute_unused(),
			   int cacheid pg_attribute_unused(),
			   uint32 hashvalue pg_attribute_unused())
{
	schema_may_have_changed = true;
}

/*
 * StatementInit
 *		Watches for schemas that are renamed.
 */
void
StatementInit(void)
{
	CacheRegisterSyscacheCallback(NAMESPACEOID, schema_changed, (Datum) 0);
}

/*
 * StatementConnect
 *		Connects to SPI, which all below need; SPI_finish ends it.
 */
void
StatementConnect(void)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

/* Finds the schema of the extension, by the function that was called. */
static void
find_schema(FunctionCallInfo fcinfo)
{
	Oid			oid;
	char	   *name;

	if (fcinfo->flinfo->fn_oid == schema_function && !schema_may_have_changed)
		return;
	oid = get_func_namespace(fcinfo->flinfo->fn_oid);
	schema_function = fcinfo->flinfo->fn_oid;
	if (oid == schema_oid && !schema_may_have_changed)
		return;
	name = get_namespace_name(oid);
	if (name == NULL)
		elog(ERROR, "cache lookup failed for schema %u", oid);
	if (oid != schema_oid || strcmp(name, NameStr(schema_name)) != 0)
	{
		schema_oid = oid;
		namestrcpy(&schema_name, name);
		schema_generation++;
	}
	schema_may_have_changed = false;
	pfree(name);
}

/* Appends the text that stands for one placeholder in a statement. */
static void
append_placeholder(StringInfo sql, const char *name, size_t len, int shape)
{
	if (strncmp(name, "schema", len) == 0)
		appendStringInfoString(sql, quote_identifier(NameStr(schema_name)));
	else if (strncmp(name, "scope", len) == 0)
	{
		appendStringInfoString(sql, "e.extension_id" SQL_EQ "$1");
		appendStringInfoString(sql, (shape & SHAPE_USER) ?
							   " AND e.user_fk" SQL_EQ "$3" :
							   " AND e.user_fk IS NULL");
		if (shape & SHAPE_RESOURCE)
			appendStringInfoString(sql, " AND e.resource_type" SQL_EQ "$4"
								   " AND e.resource_uuid" SQL_EQ "$5");
		else
			appendStringInfoString(sql, " AND e.resource_uuid IS NULL");

		/* the index by category has no type, which is null with the uuid */
		if ((shape & (SHAPE_RESOURCE | SHAPE_CATEGORY)) == 0)
			appendStringInfoString(sql, " AND e.resource_type IS NULL");
		if (shape & SHAPE_CATEGORY)
			appendStringInfoString(sql, " AND e.category" SQL_EQ "$6");
		if (shape & SHAPE_PREFIX)
			appendStringInfoString(sql, " AND e.key" SQL_GE "$7"
								   " AND e.key" SQL_LE "$8");
	}
	else if (strncmp(name, "order", len) == 0)
		appendStringInfoString(sql, (shape & SHAPE_CATEGORY) ?
							   "e.extension_id, e.user_fk, e.resource_uuid,"
							   " e.category, e.key" :
							   "e.extension_id, e.user_fk, e.resource_type,"
							   " e.resource_uuid, e.key");
	else
		elog(ERROR, "unknown placeholder in statement");
}

/* Prepares a statement for good. */
static SPIPlanPtr
prepare(const Statement *statement, int shape)
{
	StringInfoData sql;
	const char *text = statement->sql;
	const char *at;
	SPIPlanPtr	plan;

	initStringInfo(&sql);
	while ((at = strchr(text, '@')) != NULL)
	{
		const char *end = strchr(at + 1, '@');

		appendBinaryStringInfo(&sql, text, at - text);
		append_placeholder(&sql, at + 1, end - at - 1, shape);
		text = end + 1;
	}
	appendStringInfoString(&sql, text);

	plan = SPI_prepare_cursor(sql.data, statement->nargs,
							  unconstify(Oid *, statement->argtypes),
							  CURSOR_OPT_GENERIC_PLAN);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare_cursor failed: %s",
			 SPI_result_code_string(SPI_result));
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	pfree(sql.data);
	return plan;
}

/*
 * Plans a statement that must go by index.
 *
 * A table that is small when a session makes its plans would get sequential
 * scans, which then stay in use while it grows, until it is next analyzed.
 */
static void
plan_by_index(SPIPlanPtr plan)
{
	static const char *const unwanted[] = {
		"enable_seqscan", "enable_bitmapscan", "enable_sort",
		"enable_hashjoin", "enable_mergejoin"
	};
	int			nestlevel = NewGUCNestLevel();
	CachedPlan *cached;

	for (size_t i = 0; i < lengthof(unwanted); i++)
		(void) set_config_option(unwanted[i], "off", PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
	cached = SPI_plan_get_cached_plan(plan);
	if (cached != NULL)
		ReleaseCachedPlan(cached, CurrentResourceOwner);
	AtEOXact_GUC(true, nestlevel);
}

/*
 * StatementPlan
 *		Returns the plan of a statement for a shape, made or made anew if need
 *		be.  SPI must be connected.
 */
SPIPlanPtr
StatementPlan(FunctionCallInfo fcinfo, Statement *statement, int shape)
{
	SPIPlanPtr	plan;

	find_schema(fcinfo);

	/*
	 * A plan for a former schema is not freed: it may be running, further up,
	 * and schemas are not renamed often enough for that to matter.
	 */
	if (statement->kept[shape].generation != schema_generation)
	{
		statement->kept[shape].plan = prepare(statement, shape);
		statement->kept[shape].generation = schema_generation;
	}
	plan = statement->kept[shape].plan;

	if (statement->by_index)
	{
		CachedPlanSource *source = linitial(SPI_plan_get_plan_sources(plan));

		if (!source->is_valid || source->gplan == NULL ||
			!source->gplan->is_valid)
			plan_by_index(plan);
	}
	return plan;
}

/*
 * StatementRun
 *		Runs a statement and returns the number of its rows, which are in
 *		SPI_tuptable.  SPI must be connected.
 *
 * values and nulls are as SPI_execute_plan takes them.  A read-only statement
 * sees what the calling statement sees; another one sees all that is committed
 * by now.
 */
uint64
StatementRun(FunctionCallInfo fcinfo, Statement *statement, int shape,
			 const Datum *values, const char *nulls, bool read_only)
{
	int			result = SPI_execute_plan(StatementPlan(fcinfo, statement, shape),
										  unconstify(Datum *, values), nulls,
										  read_only, 0);

	if (result < 0)
		elog(ERROR, "SPI_execute_plan failed: %s",
			 SPI_result_code_string(result));
	return SPI_processed;
}

/* Where StatementFetch gets a row from the executor. */
typedef struct RowReceiver
{
	DestReceiver pub;
	MemoryContext context;
	Datum	   *row;
	bool	   *nulls;
} RowReceiver;

static void
start_receiver(DestReceiver *self pg_attribute_unused(),
			   int operation pg_attribute_unused(),
			   TupleDesc typeinfo pg_attribute_unused())
{
}

/* Copies the columns of a row. */
static bool
receive_row(TupleTableSlot *slot, DestReceiver *self)
{
	RowReceiver *receiver = (RowReceiver *) self;
	TupleDesc	tupdesc = slot->tts_tupleDescriptor;
	MemoryContext old_context = MemoryContextSwitchTo(receiver->context);

	slot_getallattrs(slot);
	for (int i = 0; i < tupdesc->natts; i++)
	{
		receiver->nulls[i] = slot->tts_isnull[i];
		if (!slot->tts_isnull[i])
			receiver->row[i] = datumCopy(slot->tts_values[i],
										 TupleDescAttr(tupdesc, i)->attbyval,
										 TupleDescAttr(tupdesc, i)->attlen);
	}
	MemoryContextSwitchTo(old_context);
	return true;
}

static void
end_receiver(DestReceiver *self pg_attribute_unused())
{
}

/* Runs a statement as StatementRun does, but sends its rows to dest. */
static void
run_into(FunctionCallInfo fcinfo, Statement *statement, int shape,
		 const Datum *values, const char *nulls, bool read_only,
		 DestReceiver *dest)
{
	ParamListInfo params = makeParamList(statement->nargs);
	SPIExecuteOptions options = {
		.params = params,
		.read_only = read_only,
		.dest = dest
	};
	int			result;

	for (int i = 0; i < statement->nargs; i++)
	{
		ParamExternData *param = &params->params[i];

		param->value = values[i];
		param->isnull = nulls != NULL && nulls[i] == 'n';
		param->pflags = PARAM_FLAG_CONST;
		param->ptype = statement->argtypes[i];
	}
	result = SPI_execute_plan_extended(StatementPlan(fcinfo, statement, shape),
									   &options);
	if (result < 0)
		elog(ERROR, "SPI_execute_plan_extended failed: %s",
			 SPI_result_code_string(result));
}

/*
 * StatementFetch
 *		Runs a statement that returns one row at most; false if it returns
 *		none.  SPI must be connected.
 *
 * row and row_nulls have room for its columns, whose values are copied into
 * context.  For the rest it is as StatementRun, but for the SPI tuple table,
 * which would cost a memory context and a copy.
 */
bool
StatementFetch(FunctionCallInfo fcinfo, Statement *statement, int shape,
			   const Datum *values, const char *nulls, bool read_only,
			   MemoryContext context, Datum *row, bool *row_nulls)
{
	RowReceiver receiver = {
		.pub = {
			.receiveSlot = receive_row,
			.rStartup = start_receiver,
			.rShutdown = end_receiver,
			.rDestroy = end_receiver,
			.mydest = DestNone
		},
		.context = context,
		.row = row,
		.nulls = row_nulls
	};

	run_into(fcinfo, statement, shape, values, nulls, read_only, &receiver.pub);
	return SPI_processed > 0;
}

/*
 * StatementReturn
 *		Runs a statement that only reads, and returns its rows as those of the
 *		calling function.  SPI must be connected.
 */
void
StatementReturn(FunctionCallInfo fcinfo, Statement *statement, int shape,
				const Datum *values, const char *nulls)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	DestReceiver *dest = CreateDestReceiver(DestTuplestore);

	SetTuplestoreDestReceiverParams(dest, rsinfo->setResult,
									rsinfo->econtext->ecxt_per_query_memory,
									false, NULL, NULL);
	run_into(fcinfo, statement, shape, values, nulls, true, dest);
	dest->rDestroy(dest);
}

/*
 * StatementTable
 *		Returns the OID of the table extension_storage.
 */
Oid
StatementTable(FunctionCallInfo fcinfo)
{
	Oid			table;

	find_schema(fcinfo);
	table = get_relname_relid("extension_storage", schema_oid);
	if (!OidIsValid(table))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"extension_storage\" does not exist in schema \"%s\"",
						NameStr(schema_name))));
	return table;
}

/*
 * StatementTableOwner
 *		Returns the role that owns the table.
 */
Oid
StatementTableOwner(FunctionCallInfo fcinfo)
{
	Oid			table = StatementTable(fcinfo);
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(table));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", table);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/* Raises an error if the table's owner may not look anything up in the schema. */
static void
check_schema_usage(Oid owner)
{
	const char *schema = quote_identifier(NameStr(schema_name));
	AclResult	result;

#if PG_VERSION_NUM >= 160000
	result = object_aclcheck(NamespaceRelationId, schema_oid, owner, ACL_USAGE);
#else
	result = pg_namespace_aclcheck(schema_oid, owner, ACL_USAGE);
#endif
	if (result != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" owns table \"extension_storage\", but has no right to use schema \"%s\"",
						GetUserNameFromId(owner, false), NameStr(schema_name)),
				 errhint("Let the owner of the schema run: GRANT USAGE ON SCHEMA %s TO %s",
						 schema,
						 quote_identifier(GetUserNameFromId(owner, false)))));
}

/*
 * StatementRunAsOwner
 *		Runs a statement with the rights of the table's owner, as a foreign key
 *		would, and returns the number of its rows.  SPI must be connected.
 *
 * It sees all that is committed, whatever the isolation level.  Source:
 * ri_PerformCheck() in src/backend/utils/adt/ri_triggers.c.
 */
uint64
StatementRunAsOwner(FunctionCallInfo fcinfo, Statement *statement,
					const Datum *values, const char *nulls)
{
	Oid			saved_user;
	int			saved_context;
	int			result;
	Oid			owner = StatementTableOwner(fcinfo);

	check_schema_usage(owner);
	GetUserIdAndSecContext(&saved_user, &saved_context);
	SetUserIdAndSecContext(owner,
						   saved_context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_NOFORCE_RLS);
	result = SPI_execute_snapshot(StatementPlan(fcinfo, statement, 0),
								  unconstify(Datum *, values), nulls,
								  GetLatestSnapshot(), InvalidSnapshot,
								  false, true, 0);
	if (result < 0)
		elog(ERROR, "SPI_execute_snapshot failed: %s",
			 SPI_result_code_string(result));
	SetUserIdAndSecContext(saved_user, saved_context);
	return SPI_processed;
}
