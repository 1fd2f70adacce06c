/*-------------------------------------------------------------------------
 *
 * statement.c
 *	  SQL statements over the extension's tables, with kept plans.
 *
 * A statement is prepared when a session first needs it and kept.  Its text
 * names the schema that the extension is in, which is that of the function
 * that was called.
 *
 * The owner of the tables is not trusted: their columns may have other types
 * by now, or views may have taken their place.  So the columns of the table
 * are checked before a statement runs, which gives a helpful error, and those
 * that a statement returns are checked before anything is read from them,
 * which is safe whatever runs in between.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "errors.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "nodes/params.h"
#include "parser/analyze.h"
#include "parser/parsetree.h"
#include "statement.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "tcop/dest.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/portal.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/ruleutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/tuplestore.h"

#if PG_VERSION_NUM < 160000
#define rd_firstRelfilelocatorSubid rd_firstRelfilenodeSubid
#endif
#if PG_VERSION_NUM < 190000
#define JUMBLE_STATE JumbleState
#else
#define JUMBLE_STATE const JumbleState
#endif
#if PG_VERSION_NUM < 170000
#define SearchPathMatchesCurrentEnvironment OverrideSearchPathMatchesCurrent
#endif

/*
 * The schema that plans are made for.  Its generation goes up whenever the
 * extension turns out to be in another one, or in one of another name.
 */
static Oid	schema_function = InvalidOid;	/* that it was last found by */
static Oid	schema_oid = InvalidOid;
static NameData schema_name;
static uint64 schema_generation = 0;
static bool schema_may_have_changed = true;

/*
 * The table whose columns were last checked, InvalidOid if it may have changed
 * since; its owner, and the transaction that last changed it.
 */
static Oid	checked_table = InvalidOid;
static Oid	checked_owner = InvalidOid;
static TransactionId checked_xid = InvalidTransactionId;

/* How statements compare a column. */
typedef enum Comparison
{
	COMPARED_ANYHOW,
	EQUAL_BY_BYTES,				/* by a collation that is deterministic */
	SORTED_BY_BYTES				/* by the collation C */
} Comparison;

/*
 * The columns of the table.  An id may have been made a bigint, and a varchar a
 * text: both can be read without loss.  A size fits an integer.
 */
static const struct
{
	const char *name;
	Oid			type;
	Oid			wider_type;
	Comparison	comparison;
}			table_columns[] = {
	{"id", INT4OID, INT8OID, COMPARED_ANYHOW},
	{"uuid", UUIDOID, UUIDOID, COMPARED_ANYHOW},
	{"extension_id", VARCHAROID, TEXTOID, EQUAL_BY_BYTES},
	{"user_fk", INT4OID, INT8OID, COMPARED_ANYHOW},
	{"resource_type", VARCHAROID, TEXTOID, EQUAL_BY_BYTES},
	{"resource_uuid", VARCHAROID, TEXTOID, EQUAL_BY_BYTES},
	{"key", VARCHAROID, TEXTOID, SORTED_BY_BYTES},
	{"category", VARCHAROID, TEXTOID, EQUAL_BY_BYTES},
	{"description", TEXTOID, TEXTOID, COMPARED_ANYHOW},
	{"value", BYTEAOID, BYTEAOID, COMPARED_ANYHOW},
	{"value_type", VARCHAROID, TEXTOID, COMPARED_ANYHOW},
	{"is_encrypted", BOOLOID, BOOLOID, COMPARED_ANYHOW},
	{"created_on", TIMESTAMPOID, TIMESTAMPOID, COMPARED_ANYHOW},
	{"changed_on", TIMESTAMPOID, TIMESTAMPOID, COMPARED_ANYHOW},
	{"created_by_fk", INT4OID, INT8OID, COMPARED_ANYHOW},
	{"changed_by_fk", INT4OID, INT8OID, COMPARED_ANYHOW},
	{"version", INT8OID, INT8OID, COMPARED_ANYHOW},
	{"value_size", INT4OID, INT4OID, COMPARED_ANYHOW}
};

/*
 * What the text of each statement begins with, here and in the extension's script;
 * then comes the OID of another relation, if it reads that in place of ours, and
 * the end of the comment.
 */
const char	StatementMark[] = "/* statement of extension_storage";

static post_parse_analyze_hook_type next_analyze_hook = NULL;

static void
schema_changed(Datum arg pg_attribute_unused(),
			   int cacheid pg_attribute_unused(),
			   uint32 hashvalue pg_attribute_unused())
{
	schema_may_have_changed = true;
	checked_table = InvalidOid;
}

static void
table_changed(Datum arg pg_attribute_unused(), Oid relid)
{
	if (relid == checked_table || !OidIsValid(relid))
		checked_table = InvalidOid;
}

/* May a statement of ours use a relation: the one given or, without it, ours? */
static bool
relation_is_ours(Oid relation, Oid given)
{
	Oid			schema = get_rel_namespace(relation);

	return schema == PG_CATALOG_NAMESPACE ||
		(OidIsValid(given) ? relation == given : schema == schema_oid);
}

/*
 * StatementFunctionIsOurs
 *		Is a function the extension's?  Who owns the extension can make his own
 *		functions a part of it.
 */
bool
StatementFunctionIsOurs(Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc form;
	bool		ours;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	form = (Form_pg_proc) GETSTRUCT(tuple);
	ours = superuser_arg(form->proowner) &&
		getExtensionOfObject(ProcedureRelationId, function) ==
		get_extension_oid("extension_storage", false);
	ReleaseSysCache(tuple);
	return ours;
}

/* Raises an error unless a statement of ours names what is ours. */
static void
require_ours(bool is_ours)
{
	if (!is_ours)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access because a schema was renamed"),
				 errhint("Repeat the transaction.")));
}

/*
 * Raises an error if a query uses what is not ours.  given is the OID of the one
 * relation outside the catalogs that it may use, or that of none.
 */
static bool
check_names(Node *node, void *given)
{
	if (node == NULL)
		return false;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, check_names, given,
								 QTW_EXAMINE_RTES_BEFORE);
	if (IsA(node, RangeTblEntry))
	{
		RangeTblEntry *entry = (RangeTblEntry *) node;

		if (entry->rtekind == RTE_RELATION)
			require_ours(relation_is_ours(entry->relid, *(Oid *) given));
		return false;			/* what is in it has a turn of its own */
	}
	if (IsA(node, FuncExpr))
	{
		Oid			function = ((FuncExpr *) node)->funcid;

		require_ours(get_func_namespace(function) == PG_CATALOG_NAMESPACE ||
					 StatementFunctionIsOurs(function));
	}
	return expression_tree_walker(node, check_names, given);
}

/*
 * Looks at each statement of ours when it is analyzed, before anything of it runs.
 *
 * Its text names a schema, and whoever owns that may rename it and put another
 * one in its place in the meantime.  What is there would run with the rights of
 * the table's owner.
 */
static void
analyze_hook(ParseState *pstate, Query *query, JUMBLE_STATE *jstate)
{
	const char *text = pstate->p_sourcetext;
	Oid			given;

	if (text != NULL && strncmp(text, StatementMark, strlen(StatementMark)) == 0)
	{
		given = atooid(text + strlen(StatementMark));
		check_names((Node *) query, &given);
	}
	if (next_analyze_hook != NULL)
		next_analyze_hook(pstate, query, jstate);
}

/*
 * StatementInit
 *		Watches for schemas that are renamed and tables that are altered.
 */
void
StatementInit(void)
{
	next_analyze_hook = post_parse_analyze_hook;
	post_parse_analyze_hook = analyze_hook;
	CacheRegisterSyscacheCallback(NAMESPACEOID, schema_changed, (Datum) 0);
	CacheRegisterRelcacheCallback(table_changed, (Datum) 0);
}

/*
 * StatementArgsInit
 *		Sets all parameters to null, for the plan of shape 0.
 */
void
StatementArgsInit(StatementArgs *args)
{
	memset(args->values, 0, sizeof(args->values));
	memset(args->nulls, 'n', sizeof(args->nulls));
	args->shape = 0;
}

/*
 * StatementSet
 *		Sets a parameter that is not null, and that the statement must have
 *		declared with the type.
 */
void
StatementSet(StatementArgs *args, int param, Oid type, Datum value)
{
	Assert(param >= 0 && param < STATEMENT_MAX_PARAMS);
	args->values[param] = value;
	args->nulls[param] = ' ';
	args->types[param] = type;
}

/*
 * StatementSetNull
 *		Sets a parameter to null.
 */
void
StatementSetNull(StatementArgs *args, int param)
{
	args->values[param] = (Datum) 0;
	args->nulls[param] = 'n';
}

/*
 * MakeArray
 *		Makes an array, for a parameter, of elements of a type; nulls says which
 *		are null, and is NULL if none is.
 */
Datum
MakeArray(Datum *elements, bool *nulls, int nelements, Oid type)
{
	int			first = 1;
	int16		len;
	bool		byval;
	char		align;

	get_typlenbyvalalign(type, &len, &byval, &align);
	return PointerGetDatum(construct_md_array(elements, nulls, 1, &nelements,
											  &first, type, len, byval, align));
}

/* Makes a schema that of the plans. */
static void
use_schema(Oid oid)
{
	char	   *name;

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
		checked_table = InvalidOid;
	}
	schema_may_have_changed = false;
	pfree(name);
}

/* Finds the schema of the extension, by the function that was called. */
static Oid
find_schema(FunctionCallInfo fcinfo)
{
	Oid			function = fcinfo->flinfo->fn_oid;

	if (function != schema_function || schema_may_have_changed)
	{
		use_schema(get_func_namespace(function));
		schema_function = function;
	}
	return schema_oid;
}

/*
 * StatementCheckTable
 *		Raises an error unless a relation has the columns of the table
 *		extension_storage.
 */
void
StatementCheckTable(Relation table)
{
	TupleDesc	tupdesc = RelationGetDescr(table);

	for (size_t i = 0; i < lengthof(table_columns); i++)
	{
		const char *name = table_columns[i].name;
		Oid			type = table_columns[i].type;
		Comparison	comparison = table_columns[i].comparison;
		int			attno = SPI_fnumber(tupdesc, name);
		Form_pg_attribute found;

		if (attno <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("table \"%s\" has no column \"%s\"",
							RelationGetRelationName(table), name),
					 TABLES_AS_MADE));
		found = TupleDescAttr(tupdesc, attno - 1);
		if (found->atttypid != type &&
			found->atttypid != table_columns[i].wider_type)
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("column \"%s\" of table \"%s\" has type %s instead of %s",
							name, RelationGetRelationName(table),
							format_type_be(found->atttypid),
							format_type_be(type)),
					 TABLES_AS_MADE));
		if (comparison == SORTED_BY_BYTES ?
			found->attcollation != C_COLLATION_OID :
			comparison == EQUAL_BY_BYTES &&
			!get_collation_isdeterministic(found->attcollation))
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("column \"%s\" of table \"%s\" has collation %s instead of \"C\"",
							name, RelationGetRelationName(table),
							generate_collation_name(found->attcollation)),
					 errhint("Change its type once more, with COLLATE pg_catalog.\"C\".")));
	}
}

/*
 * StatementTable
 *		Returns the OID of the table extension_storage.
 */
Oid
StatementTable(const Connection *connection)
{
	Oid			table = get_relname_relid("extension_storage",
										  connection->schema);

	if (!OidIsValid(table))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"extension_storage\" does not exist in schema \"%s\"",
						get_namespace_name(connection->schema))));
	return table;
}

/*
 * Hides what an error of our statements and locks would show: the server's
 * detail of a violated constraint has the row, with its value, and that of a
 * deadlock what others write.
 */
static void
hide_row(void *arg pg_attribute_unused())
{
	hide_deadlocked();
	if (ERRCODE_TO_CATEGORY(geterrcode()) == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION ||
		geterrcode() == ERRCODE_WITH_CHECK_OPTION_VIOLATION)
		errdetail("The row is not shown because it contains a value.");
	else if (geterrcode() == ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED)
		errhint("Widen the ids: ALTER TABLE ... ALTER COLUMN id TYPE bigint. Entries that exist can still be set.");
}

/*
 * StatementLockRelation
 *		Locks any relation until the transaction ends; an error does not show
 *		what others run.
 */
void
StatementLockRelation(Oid relation, LOCKMODE mode)
{
	ErrorContextCallback hidden;

	PushErrorCallback(&hidden, hide_row);
	LockRelationOid(relation, mode);
	error_context_stack = hidden.previous;
}

/*
 * StatementLockTable
 *		Locks the table until the transaction ends: by AccessShareLock as any
 *		reader locks it, by RowExclusiveLock as any writer, or by a stronger
 *		lock.
 *
 * Who writes several entries locks the table, then the counts of bytes if they
 * are kept, and only then the entries: two of them would otherwise wait for each
 * other, one for a count or the table and one for an entry.  The table comes
 * first even if nothing is counted, because counting begins with all writers
 * locked out.
 */
void
StatementLockTable(const Connection *connection, LOCKMODE mode)
{
	StatementLockRelation(StatementTable(connection), mode);
}

/* The transaction that last changed a relation, other than its rows. */
static TransactionId
changed_by(Oid relation)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
	TransactionId xid;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relation);
	xid = HeapTupleHeaderGetXmin(tuple->t_data);
	ReleaseSysCache(tuple);
	return xid;
}

/* Finds the table and locks it. */
static Oid
lock_table(const Connection *connection)
{
	Oid			table = StatementTable(connection);

	for (;;)
	{
		Oid			present;

		StatementLockRelation(table, AccessShareLock);
		present = StatementTable(connection);
		if (present == table)
			return table;
		UnlockRelationOid(table, AccessShareLock);
		CHECK_FOR_INTERRUPTS();
		table = present;
	}
}

/*
 * Locks the table as a reader does, and checks it, unless nothing has happened to
 * it since.
 */
static void
check_table(const Connection *connection)
{
	Relation	table;

	/* whoever holds a lock learns what has happened before */
	if (OidIsValid(checked_table))
		StatementLockRelation(checked_table, AccessShareLock);
	if (!OidIsValid(checked_table))
	{
		table = table_open(lock_table(connection), NoLock);
		StatementCheckTable(table);
		checked_owner = table->rd_rel->relowner;
		checked_xid = changed_by(RelationGetRelid(table));

		/* last: what was looked up may have had it forgotten */
		checked_table = RelationGetRelid(table);
		table_close(table, NoLock);
	}
}

/*
 * StatementConnect
 *		Connects to SPI, which all below need, and locks and checks the table;
 *		SPI_finish ends it.
 *
 * With nonatomic, SPI_commit is allowed.
 */
void
StatementConnect(Connection *connection, FunctionCallInfo fcinfo,
				 bool nonatomic)
{
	connection->function = fcinfo->flinfo->fn_oid;
	connection->schema = find_schema(fcinfo);
	connection->context = CurrentMemoryContext;
	connection->quota_prepared = false;
	if (SPI_connect_ext(nonatomic ? SPI_OPT_NONATOMIC : 0) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect_ext failed");
	check_table(connection);
}

/* Appends the declared columns. */
static void
append_columns(StringInfo sql, const Statement *statement)
{
	for (int i = 0; i < statement->ncolumns; i++)
		appendStringInfo(sql, "%sCAST(e.%s AS %s)", i > 0 ? ", " : "",
						 quote_identifier(statement->columns[i].name),
						 format_type_extended(statement->columns[i].type, -1,
											  FORMAT_TYPE_FORCE_QUALIFY));
}

/* Appends the number of a parameter. */
static void
append_param(StringInfo sql, const Statement *statement, const char *name)
{
	for (int i = 0; i < statement->nparams; i++)
		if (strcmp(statement->params[i].name, name) == 0)
		{
			appendStringInfo(sql, "$%d", i + 1);
			return;
		}
	elog(ERROR, "unknown parameter \"$%s\" in statement", name);
}

/* Appends text in which $name stands for the number of a parameter. */
static void
append_text(StringInfo sql, const Statement *statement, const char *text)
{
	while (*text != '\0')
	{
		size_t		len = strcspn(text, "$");

		appendBinaryStringInfo(sql, text, len);
		text += len;
		if (*text == '$')
		{
			len = strspn(++text, "abcdefghijklmnopqrstuvwxyz_");
			append_param(sql, statement, pnstrdup(text, len));
			text += len;
		}
	}
}

/* Appends what a placeholder stands for. */
static void
append_placeholder(StringInfo sql, const Statement *statement,
				   const char *name, int shape)
{
	StringInfoData fragment;

	if (strcmp(name, "schema") == 0)
		appendStringInfoString(sql, quote_identifier(NameStr(schema_name)));
	else if (strcmp(name, "columns") == 0)
		append_columns(sql, statement);
	else
	{
		initStringInfo(&fragment);
		if (statement->expand == NULL ||
			!statement->expand(&fragment, name, shape))
			elog(ERROR, "unknown placeholder \"@%s@\" in statement", name);
		append_text(sql, statement, fragment.data);
		pfree(fragment.data);
	}
}

/* Does an enum of parameters or columns name one that has no row? */
pg_attribute_unused()
static bool
has_gap(const Statement *statement)
{
	for (int i = 0; i < statement->nparams; i++)
		if (statement->params[i].name == NULL)
			return true;
	for (int i = 0; i < statement->ncolumns; i++)
		if (statement->columns[i].name == NULL)
			return true;
	return false;
}

/* Prepares a statement for good. */
static SPIPlanPtr
prepare(const Statement *statement, int shape)
{
	StringInfoData sql;
	Oid			argtypes[STATEMENT_MAX_PARAMS];
	const char *text = statement->sql;
	const char *at;
	SPIPlanPtr	plan;

	Assert(!has_gap(statement));
	initStringInfo(&sql);
	appendStringInfo(&sql, "%s */ ", StatementMark);
	while ((at = strchr(text, '@')) != NULL)
	{
		const char *end = strchr(at + 1, '@');

		if (end == NULL)
			elog(ERROR, "unclosed placeholder \"%s\" in statement", at);
		append_text(&sql, statement, pnstrdup(text, at - text));
		append_placeholder(&sql, statement, pnstrdup(at + 1, end - at - 1),
						   shape);
		text = end + 1;
	}
	append_text(&sql, statement, text);

	for (int i = 0; i < statement->nparams; i++)
		argtypes[i] = statement->params[i].type;
	plan = SPI_prepare_cursor(sql.data, statement->nparams, argtypes,
							  CURSOR_OPT_GENERIC_PLAN);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare_cursor failed: %s",
			 SPI_result_code_string(SPI_result));
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
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
		"enable_incremental_sort", "enable_hashjoin", "enable_mergejoin"
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
 * Will a plan be made (anew) before it is next run?  Source:
 * RevalidateCachedQuery() and CheckCachedPlan() in
 * src/backend/utils/cache/plancache.c.
 */
static bool
must_be_planned(const CachedPlanSource *source)
{
	const CachedPlan *plan = source->gplan;

	return !source->is_valid || plan == NULL || !plan->is_valid ||
		!SearchPathMatchesCurrentEnvironment(source->search_path) ||
		(source->dependsOnRLS &&
		 (source->rewriteRoleId != GetUserId() ||
		  source->rewriteRowSecurity != row_security)) ||
		(plan->dependsOnRole && plan->planRoleId != GetUserId()) ||
		(TransactionIdIsValid(plan->saved_xmin) &&
		 !TransactionIdEquals(plan->saved_xmin, TransactionXmin));
}

/* Does a plan write to the table extension_storage? */
pg_attribute_unused()
static bool
writes_entries(const Connection *connection, SPIPlanPtr plan)
{
	CachedPlanSource *source = linitial(SPI_plan_get_plan_sources(plan));
	ListCell   *cell;

	foreach(cell, source->query_list)
	{
		Query	   *query = lfirst_node(Query, cell);

		if (query->resultRelation > 0 &&
			rt_fetch(query->resultRelation, query->rtable)->relid ==
			StatementTable(connection))
			return true;
	}
	return false;
}

/* Are the parameters that are set those that a statement declares? */
pg_attribute_unused()
static bool
args_fit(const Statement *statement, const StatementArgs *args)
{
	for (int i = 0; i < STATEMENT_MAX_PARAMS; i++)
		if (args->nulls[i] != 'n' && i < statement->nparams &&
			args->types[i] != statement->params[i].type)
			return false;
	return true;
}

/* Returns the plan of a statement for a shape, made (anew) if need be. */
static SPIPlanPtr
get_plan(const Connection *connection, Statement *statement,
		 const StatementArgs *args)
{
	int			shape = args->shape;
	struct KeptPlan *kept;
	SPIPlanPtr	plan;

	Assert(args_fit(statement, args));
	Assert(shape >= 0 && shape < STATEMENT_MAX_SHAPES);
	use_schema(connection->schema);
	kept = &statement->kept[shape][InNoForceRLSOperation()];

	/*
	 * A plan for a former schema is not freed: it may be running, further up,
	 * and schemas are not renamed often enough for that to matter.
	 */
	if (kept->generation != schema_generation)
	{
		kept->plan = prepare(statement, shape);
		kept->generation = schema_generation;
	}
	plan = kept->plan;
	Assert(connection->quota_prepared || statement->keeps_bytes ||
		   !writes_entries(connection, plan));

	if (statement->by_index &&
		must_be_planned(linitial(SPI_plan_get_plan_sources(plan))))
		plan_by_index(plan);
	return plan;
}

/*
 * Raises an error unless what a statement returns are the columns that it
 * declares.
 */
static void
check_result(const Statement *statement, TupleDesc tupdesc)
{
	if (tupdesc->natts != statement->ncolumns)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("statement of the extension returned %d columns instead of %d",
						tupdesc->natts, statement->ncolumns)));
	for (int i = 0; i < tupdesc->natts; i++)
	{
		Oid			found = TupleDescAttr(tupdesc, i)->atttypid;
		const StatementColumn *column = &statement->columns[i];

		/* a varchar is read as a text is */
		if (found != column->type &&
			!(found == VARCHAROID && column->type == TEXTOID))
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("column \"%s\" has type %s instead of %s",
							column->name, format_type_be(found),
							format_type_be(column->type)),
					 TABLES_AS_MADE));
	}
}

/* Raises an error if a column that is read as it is turns out to be null. */
static inline void
check_null(const Statement *statement, int column, bool isnull)
{
	if (isnull && !statement->columns[column].nullable)
		ReportNullColumn(statement->columns[column].name);
}

/* Raises an error if the table's owner may not look anything up in the schema. */
static void
check_schema_usage(Oid schema, Oid owner)
{
	AclResult	result;
	char	   *name;

#if PG_VERSION_NUM >= 160000
	result = object_aclcheck(NamespaceRelationId, schema, owner, ACL_USAGE);
#else
	result = pg_namespace_aclcheck(schema, owner, ACL_USAGE);
#endif
	if (result == ACLCHECK_OK)
		return;
	name = get_namespace_name(schema);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for schema %s", name),
			 errdetail("Role \"%s\" owns table \"extension_storage\" and must have USAGE on the schema.",
					   GetUserNameFromId(owner, false)),
			 errhint("Let the owner of the schema run: GRANT USAGE ON SCHEMA %s TO %s",
					 quote_identifier(name),
					 quote_identifier(GetUserNameFromId(owner, false)))));
}

/*
 * The cursors that can be fetched from, closed, or brought to their end by a
 * COMMIT: what pg_cursors shows, without those that are running.
 */
static List *
ready_cursors(void)
{
	LOCAL_FCINFO(fcinfo, 0);
	FmgrInfo	flinfo;
	ReturnSetInfo rsinfo = {
		.type = T_ReturnSetInfo,
		.allowedModes = SFRM_Materialize
	};
	TupleTableSlot *slot;
	List	   *cursors = NIL;

	fmgr_info(F_PG_CURSOR, &flinfo);
	rsinfo.econtext = CreateStandaloneExprContext();
	InitFunctionCallInfoData(*fcinfo, &flinfo, 0, InvalidOid, NULL,
							 (Node *) &rsinfo);
	pg_cursor(fcinfo);
	slot = MakeSingleTupleTableSlot(rsinfo.setDesc, &TTSOpsMinimalTuple);
	while (tuplestore_gettupleslot(rsinfo.setResult, true, false, slot))
	{
		bool		isnull;
		Datum		name = slot_getattr(slot, 1, &isnull);
		Portal		cursor = GetPortalByName(TextDatumGetCString(name));

		if (PortalIsValid(cursor) && cursor->status == PORTAL_READY)
			cursors = lappend(cursors, cursor);
	}
	ExecDropSingleTupleTableSlot(slot);
	tuplestore_end(rsinfo.setResult);
	FreeExprContext(rsinfo.econtext, true);
	return cursors;
}

/* Makes cursors ready, or such that they can be neither read nor closed. */
static void
set_cursors(List *cursors, PortalStatus status)
{
	ListCell   *cell;

	foreach(cell, cursors)
		((Portal) lfirst(cell))->status = status;
}

/*
 * RunAsOwner
 *		Calls a function, with its state, with the rights of a role that owns a
 *		table.  cursor, which may be NULL, points to the cursor that the function
 *		reads, or opens and leaves.  Raises an error if another one is left open.
 *
 * What the role has put on its tables may run then, for example as a part of an
 * index.  Unless the role is a superuser, or the caller itself, it can put
 * nothing off until the caller has his rights back, and it leaves no setting
 * (DefineIndex() in src/backend/commands/indexcmds.c).  For it, the cursors that
 * are open are running ones: it could read them, or close one and open another
 * of its name, which the caller would run as his.  A new one would be run to its
 * end, with the caller's rights, by the next COMMIT of a procedure
 * (HoldPinnedPortals() in src/backend/utils/mmgr/portalmem.c); the error closes
 * it.
 */
void
RunAsOwner(Oid owner, int flags, Portal *cursor, void (*run) (void *state),
		   void *state)
{
	Oid			user;
	int			security;
	int			guc_level;
	MemoryContext context;
	MemoryContext old_context;
	List	   *cursors;
	ListCell   *cell;

	GetUserIdAndSecContext(&user, &security);
	if (owner == user || superuser_arg(owner))
	{
		SetUserIdAndSecContext(owner, security | flags);
		guc_level = NewGUCNestLevel();
		run(state);
		AtEOXact_GUC(false, guc_level);
		SetUserIdAndSecContext(user, security);
		return;
	}

	context = AllocSetContextCreate(CurrentMemoryContext, "open cursors",
									ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(context);
	cursors = ready_cursors();
	if (cursor != NULL)
		cursors = list_delete_ptr(cursors, *cursor);
	MemoryContextSwitchTo(old_context);
	SetUserIdAndSecContext(owner,
						   security | flags | SECURITY_RESTRICTED_OPERATION);
	guc_level = NewGUCNestLevel();
	set_cursors(cursors, PORTAL_ACTIVE);
	PG_TRY();
	{
		run(state);
	}
	PG_FINALLY();
	{
		set_cursors(cursors, PORTAL_READY);
	}
	PG_END_TRY();
	AtEOXact_GUC(false, guc_level);
	SetUserIdAndSecContext(user, security);

	old_context = MemoryContextSwitchTo(context);
	foreach(cell, ready_cursors())
		if (!list_member_ptr(cursors, lfirst(cell)) &&
			(cursor == NULL || lfirst(cell) != *cursor))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("code of role \"%s\" left a cursor open",
						GetUserNameFromId(owner, true)),
				 errdetail("The cursor's query could run with the rights of role \"%s\".",
						   GetUserNameFromId(user, true)),
				 errhint("Drop the trigger, policy, index or other code on the tables of role \"%s\" that opens it.",
						 GetUserNameFromId(owner, true))));
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
}

/* What SPI runs, and what comes of it. */
typedef struct Run
{
	const Connection *connection;
	Statement  *statement;
	const StatementArgs *args;
	SPIExecuteOptions *options;
	Portal		cursor;
	long		count;			/* of the rows to fetch */
	int			result;			/* of SPI */
} Run;

/* The file of a relation as a snapshot shows it, InvalidOid if there is none. */
static Oid
file_in_snapshot(Oid relation, Snapshot snapshot)
{
	Relation	pg_class = table_open(RelationRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			file = InvalidOid;

	ScanKeyInit(&key, Anum_pg_class_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relation));
	scan = systable_beginscan(pg_class, ClassOidIndexId, true, snapshot, 1,
							  &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		file = ((Form_pg_class) GETSTRUCT(tuple))->relfilenode;
	systable_endscan(scan);
	table_close(pg_class, AccessShareLock);
	return file;
}

/* Has this transaction itself given a relation the file that it has? */
static bool
rewritten_here(Oid relation)
{
	Relation	opened = table_open(relation, NoLock);
	bool		here = opened->rd_createSubid != InvalidSubTransactionId ||
	opened->rd_firstRelfilelocatorSubid != InvalidSubTransactionId;

	table_close(opened, NoLock);
	return here;
}

/*
 * Was a relation, which is locked and was last changed by changed_xid,
 * rewritten by a transaction other than ours since the active snapshot was
 * taken?
 *
 * If so, as by ALTER TABLE, that snapshot shows none of its rows.  A function's
 * caller has taken his before the function could wait for the lock.  A change by
 * this transaction may hide that other one: so the catalog is read without it.
 */
static bool
is_rewritten(Oid relation, TransactionId changed_xid)
{
	SnapshotData before;

	if (!ActiveSnapshotSet())
		return false;
	if (TransactionIdIsCurrentTransactionId(changed_xid) ?
		rewritten_here(relation) :
		!XidInMVCCSnapshot(changed_xid, GetActiveSnapshot()))
		return false;
	before = *GetActiveSnapshot();
	before.curcid = FirstCommandId;
	return file_in_snapshot(relation, &before) !=
		file_in_snapshot(relation, NULL);
}

/* Reports that the transaction cannot have a newer snapshot. */
static void
report_rewritten(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not serialize access because a table was rewritten"),
			 errhint("Repeat the transaction.")));
}

/*
 * StatementRequireSnapshot
 *		Raises an error if the transaction keeps to a snapshot from before a
 *		relation, which is locked, was rewritten.
 */
void
StatementRequireSnapshot(Oid relation)
{
	if (IsolationUsesXactSnapshot() &&
		is_rewritten(relation, changed_by(relation)))
		report_rewritten();
}

/*
 * Makes a newer snapshot active if the table was rewritten since the active
 * one was taken; true if it does so.  What is not read-only gets a snapshot of
 * its own from SPI, unless it is the transaction's.
 */
static bool
push_newer_snapshot(bool read_only)
{
	if ((!read_only && !IsolationUsesXactSnapshot()) ||
		!is_rewritten(checked_table, checked_xid))
		return false;
	if (IsolationUsesXactSnapshot() || IsInParallelMode())
		report_rewritten();
	PushActiveSnapshot(GetLatestSnapshot());
	return true;
}

/*
 * Runs a part of a statement, with the rights of the table's owner if as_owner,
 * as a foreign key would (ri_PerformCheck() in
 * src/backend/utils/adt/ri_triggers.c).
 *
 * The call of a superuser gets those rights too: what the owner has put on the
 * table, such as a trigger, a policy or a view in its place, would otherwise
 * run as the superuser.
 *
 * SPI leaves the caller in a memory context that lasts until SPI_finish; here he
 * gets his back.
 */
static void
run_part(Run *run, void (*part) (void *run), bool as_owner, bool read_only)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorContextCallback hidden;
	bool		newer_snapshot;

	PushErrorCallback(&hidden, hide_row);
	if (!OidIsValid(checked_table))
		check_table(run->connection);
	newer_snapshot = !as_owner && push_newer_snapshot(read_only);
	if (as_owner || (superuser() && !superuser_arg(checked_owner)))
	{
		check_schema_usage(run->connection->schema, checked_owner);
		RunAsOwner(checked_owner,
				   SECURITY_LOCAL_USERID_CHANGE | SECURITY_NOFORCE_RLS,
				   &run->cursor, part, run);
	}
	else
		part(run);
	if (newer_snapshot)
		PopActiveSnapshot();
	MemoryContextSwitchTo(context);
	error_context_stack = hidden.previous;
}

/*
 * Is the result of the executor one of a statement that returns rows, or of one
 * that returns none?
 *
 * Rules may put several in its place, of which the one that counts returns no
 * rows, or make it one of another kind: then there is no row to read, whatever
 * SPI_processed says.
 */
static bool
is_result_of(const Statement *statement, int result)
{
	switch (result)
	{
		case SPI_OK_SELECT:
		case SPI_OK_UTILITY:	/* of a SELECT with a receiver of ours */
			return true;
		case SPI_OK_INSERT_RETURNING:
		case SPI_OK_UPDATE_RETURNING:
		case SPI_OK_DELETE_RETURNING:
			return statement->ncolumns > 0;
		case SPI_OK_INSERT:
		case SPI_OK_UPDATE:
		case SPI_OK_DELETE:
			return statement->ncolumns == 0;
		default:
			return false;
	}
}

/* Raises an error if the statement was not run as it is. */
static void
check_run(const Run *run)
{
	if (run->result < 0)
		elog(ERROR, "statement of the extension failed: %s",
			 SPI_result_code_string(run->result));
	if (!is_result_of(run->statement, run->result))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a rule replaces a statement of the extension"),
				 errhint("Drop the rules of the extension's tables.")));
}

/* Gives the executor a parameter. */
static ParamExternData *
fetch_param(ParamListInfo params, int paramid,
			bool speculative pg_attribute_unused(),
			ParamExternData *workspace pg_attribute_unused())
{
	return &params->params[paramid - 1];
}

static void
execute_plan(void *state)
{
	Run		   *run = (Run *) state;

	run->result =
		SPI_execute_plan_extended(get_plan(run->connection, run->statement, run->args),
								  run->options);
}

/*
 * Runs the plan of a statement; its rows go to dest, or to SPI's tuple table if
 * that is NULL.
 *
 * A value may be a plaintext that nobody else has been shown.  Parameters that
 * must be fetched are in no log (BuildParamLogString() in
 * src/backend/nodes/params.c), and those that are no constants in no plan that
 * auto_explain logs, even with plan_cache_mode = force_custom_plan.
 */
static void
run_plan(Connection *connection, Statement *statement,
		 const StatementArgs *args, bool read_only, DestReceiver *dest)
{
	ParamListInfo params = makeParamList(statement->nparams);
	SPIExecuteOptions options = {
		.params = params,
		.read_only = read_only,
		.dest = dest
	};
	Run			run = {
		.connection = connection,
		.statement = statement,
		.args = args,
		.options = &options
	};

	params->paramFetch = fetch_param;
	for (int i = 0; i < statement->nparams; i++)
	{
		ParamExternData *param = &params->params[i];

		param->value = args->values[i];
		param->isnull = args->nulls[i] == 'n';
		param->pflags = 0;
		param->ptype = statement->params[i].type;
	}
	run_part(&run, execute_plan, false, read_only);
	check_run(&run);
	pfree(params);
}

/*
 * StatementRun
 *		Runs a statement and returns the number of its rows, which StatementRow
 *		reads.
 *
 * A read-only statement sees what the calling statement sees; another one sees
 * all that is committed by now.
 */
uint64
StatementRun(Connection *connection, Statement *statement,
			 const StatementArgs *args, bool read_only)
{
	run_plan(connection, statement, args, read_only, NULL);
	if (statement->ncolumns > 0)
		check_result(statement, SPI_tuptable->tupdesc);
	return SPI_processed;
}

/*
 * StatementRow
 *		Reads row n, from 0, of what the last statement has returned.  Values
 *		that are no pointers are copied, others are good until SPI_finish or
 *		SPI_freetuptable.
 */
void
StatementRow(const Statement *statement, uint64 n, Datum *row, bool *nulls)
{
	Assert(n < SPI_processed);
	Assert(SPI_tuptable->tupdesc->natts == statement->ncolumns);
	heap_deform_tuple(SPI_tuptable->vals[n], SPI_tuptable->tupdesc, row,
					  nulls);
	for (int i = 0; i < statement->ncolumns; i++)
		check_null(statement, i, nulls[i]);
}

/*
 * Where StatementFetch, StatementReturn and StatementVisit get rows from the
 * executor.
 */
typedef struct RowReceiver
{
	DestReceiver pub;
	const Statement *statement;
	MemoryContext context;		/* for a copy of one row */
	Datum	   *row;
	bool	   *nulls;
	bool		has_row;		/* are they set? */
	Tuplestorestate *store;		/* for all rows */
	StatementVisitor visit;
	void	   *state;			/* of the visitor */
} RowReceiver;

static void
start_receiver(DestReceiver *self, int operation pg_attribute_unused(),
			   TupleDesc tupdesc)
{
	check_result(((RowReceiver *) self)->statement, tupdesc);
}

/* Gets the columns of a row out of its tuple, and checks them for nulls. */
static void
deform_row(const Statement *statement, TupleTableSlot *slot)
{
	slot_getallattrs(slot);
	for (int i = 0; i < slot->tts_tupleDescriptor->natts; i++)
		check_null(statement, i, slot->tts_isnull[i]);
}

/*
 * StatementCopyRow
 *		Copies the first columns of a row, which a visitor has got, into the
 *		current memory context.
 */
void
StatementCopyRow(const TupleTableSlot *slot, int ncolumns, Datum *row,
				 bool *nulls)
{
	for (int i = 0; i < ncolumns; i++)
	{
		Form_pg_attribute att = TupleDescAttr(slot->tts_tupleDescriptor, i);

		nulls[i] = slot->tts_isnull[i];
		if (!nulls[i])
			row[i] = datumCopy(slot->tts_values[i], att->attbyval,
							   att->attlen);
	}
}

/* Copies a row for the caller of StatementFetch. */
static bool
receive_row(TupleTableSlot *slot, DestReceiver *self)
{
	RowReceiver *receiver = (RowReceiver *) self;
	MemoryContext old_context = MemoryContextSwitchTo(receiver->context);

	deform_row(receiver->statement, slot);
	StatementCopyRow(slot, slot->tts_tupleDescriptor->natts, receiver->row,
					 receiver->nulls);
	receiver->has_row = true;
	MemoryContextSwitchTo(old_context);
	return true;
}

/* Keeps a row for the caller of the function. */
static bool
store_row(TupleTableSlot *slot, DestReceiver *self)
{
	tuplestore_puttupleslot(((RowReceiver *) self)->store, slot);
	return true;
}

/* Hands a row to the visitor. */
static bool
visit_row(TupleTableSlot *slot, DestReceiver *self)
{
	RowReceiver *receiver = (RowReceiver *) self;

	CHECK_FOR_INTERRUPTS();
	deform_row(receiver->statement, slot);
	return receiver->visit(slot, receiver->state);
}

static void
end_receiver(DestReceiver *self pg_attribute_unused())
{
}

/* Runs a statement as StatementRun does, but sends its rows to a receiver. */
static void
run_into(Connection *connection, Statement *statement,
		 const StatementArgs *args, bool read_only, RowReceiver *receiver)
{
	receiver->pub.rStartup = start_receiver;
	receiver->pub.rShutdown = end_receiver;
	receiver->pub.rDestroy = end_receiver;
	receiver->pub.mydest = DestNone;
	receiver->statement = statement;
	run_plan(connection, statement, args, read_only, &receiver->pub);
}

/*
 * StatementFetch
 *		Runs a statement that returns one row at most; false if it returns
 *		none.
 *
 * row and nulls have room for its columns, whose values are copied into the
 * memory context that the function was called in.  Otherwise it does what
 * StatementRun does, without the SPI tuple table, which would cost a memory
 * context and a copy.
 */
bool
StatementFetch(Connection *connection, Statement *statement,
			   const StatementArgs *args, bool read_only, Datum *row,
			   bool *nulls)
{
	RowReceiver receiver = {
		.pub = {.receiveSlot = receive_row},
		.context = connection->context,
		.row = row,
		.nulls = nulls
	};

	run_into(connection, statement, args, read_only, &receiver);
	return receiver.has_row;
}

/*
 * StatementReturn
 *		Runs a statement that only reads, and returns its rows as those of the
 *		calling function, which has made the tuplestore of rsinfo.
 */
void
StatementReturn(Connection *connection, Statement *statement,
				const StatementArgs *args, ReturnSetInfo *rsinfo)
{
	RowReceiver receiver = {
		.pub = {.receiveSlot = store_row},
		.store = rsinfo->setResult
	};

	run_into(connection, statement, args, true, &receiver);
}

/*
 * StatementVisit
 *		Runs a statement and calls the visitor with each row, in the memory
 *		context of the executor.
 */
void
StatementVisit(Connection *connection, Statement *statement,
			   const StatementArgs *args, bool read_only,
			   StatementVisitor visit, void *state)
{
	RowReceiver receiver = {
		.pub = {.receiveSlot = visit_row},
		.visit = visit,
		.state = state
	};

	run_into(connection, statement, args, read_only, &receiver);
}

/*
 * StatementStartDecrypted
 *		Starts the rows of a function that decrypts, as InitMaterializedSRF does
 *		for others: in a tuplestore that stays in memory.
 *
 * One that is limited to work_mem would write a large plaintext to a temporary
 * file.
 */
void
StatementStartDecrypted(FunctionCallInfo fcinfo)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext old_context;

	InitMaterializedSRF(fcinfo, 0);
	tuplestore_end(rsinfo->setResult);
	old_context = MemoryContextSwitchTo(rsinfo->econtext->ecxt_per_query_memory);
	rsinfo->setResult =
		tuplestore_begin_heap((rsinfo->allowedModes & SFRM_Materialize_Random) != 0,
							  false, MAX_KILOBYTES);
	MemoryContextSwitchTo(old_context);
}

static void
open_cursor(void *state)
{
	Run		   *run = (Run *) state;
	StatementArgs *args = unconstify(StatementArgs *, run->args);

	run->cursor = SPI_cursor_open(NULL,
								  get_plan(run->connection, run->statement, args),
								  args->values, args->nulls, true);
}

/*
 * StatementOpen
 *		Opens a cursor over the rows of a statement that only reads;
 *		StatementNext fetches them.
 */
Portal
StatementOpen(Connection *connection, Statement *statement,
			  const StatementArgs *args)
{
	Run			run = {
		.connection = connection,
		.statement = statement,
		.args = args
	};

	run_part(&run, open_cursor, false, true);
	return run.cursor;
}

static void
fetch_rows(void *state)
{
	const Run  *run = (const Run *) state;

	SPI_cursor_fetch(run->cursor, true, run->count);
}

/*
 * StatementNext
 *		Fetches at most count rows of a cursor, which StatementRow reads, and
 *		returns how many there are.
 */
uint64
StatementNext(const Connection *connection, const Statement *statement,
			  Portal portal, long count)
{
	Run			run = {
		.connection = connection,
		.cursor = portal,
		.count = count
	};

	run_part(&run, fetch_rows, false, false);
	check_result(statement, SPI_tuptable->tupdesc);
	return SPI_processed;
}

/*
 * StatementRequireAllRows
 *		Raises an error if row-level security may hide rows of the table from
 *		the caller, who asks for what is true only of all rows.
 *
 * The error is the one that the server raises with row_security off, which is
 * how pg_dump reads.
 */
void
StatementRequireAllRows(const Connection *connection)
{
	if (check_enable_rls(StatementTable(connection), InvalidOid, true) ==
		RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("query would be affected by row-level security policy for table \"extension_storage\""),
				 errhint("Use a role to which row-level security does not apply: one with BYPASSRLS, or the table's owner without FORCE ROW LEVEL SECURITY.")));
}

/* Citus has a row here for each table that it has spread over servers. */
#define CITUS_CATALOG "pg_dist_partition"

enum
{
	DISTRIBUTED_PARAM_TABLE,
	NUM_DISTRIBUTED_PARAMS
};

static const StatementParam distributed_params[] = {
	[DISTRIBUTED_PARAM_TABLE] = {"table", OIDOID}
};
static Statement distributed_statement = {
	.sql = "SELECT FROM pg_catalog." CITUS_CATALOG " AS p"
	" WHERE p.logicalrelid" SQL_EQ "$table",
	STATEMENT_PARAMS(distributed_params, NUM_DISTRIBUTED_PARAMS)
};

/*
 * StatementIsDistributed
 *		Is the table distributed over several servers?
 */
bool
StatementIsDistributed(Connection *connection)
{
	StatementArgs args;

	if (!OidIsValid(get_relname_relid(CITUS_CATALOG, PG_CATALOG_NAMESPACE)))
		return false;
	StatementArgsInit(&args);
	StatementSet(&args, DISTRIBUTED_PARAM_TABLE, OIDOID,
				 ObjectIdGetDatum(StatementTable(connection)));
	return StatementRun(connection, &distributed_statement, &args, true) > 0;
}

/*
 * StatementCommit
 *		Commits a batch of a procedure, and starts the transaction of the next,
 *		with the table locked and checked as by StatementConnect.
 *
 * That one is READ COMMITTED whatever the session's default is: under a
 * stricter level a concurrent write would abort the procedure.
 *
 * statement_timeout starts afresh.  It is meant to end a statement that is
 * stuck or holds others up, and what has been done so far is committed.
 */
void
StatementCommit(const Connection *connection)
{
	SPI_commit();
	XactIsoLevel = XACT_READ_COMMITTED;
	if (StatementTimeout > 0 && get_timeout_active(STATEMENT_TIMEOUT))
		enable_timeout_after(STATEMENT_TIMEOUT, StatementTimeout);
	check_table(connection);
}

/*
 * Does an error concern only the row that was written, as one of a constraint
 * or a trigger does, so that other rows can still be written?
 */
static bool
is_error_of_row(int sqlstate)
{
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case ERRCODE_INVALID_TRANSACTION_STATE:
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_SYSTEM_ERROR:
		case ERRCODE_INTERNAL_ERROR:
			return false;
		default:
			return true;
	}
}

/*
 * StatementTry
 *		Runs a block that writes rows in a subtransaction.  Returns NULL, or an
 *		error that concerns the rows alone, and then nothing is written; any
 *		other error goes on.
 */
ErrorData *
StatementTry(StatementBlock block, void *state)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		block(state);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (error != NULL && !is_error_of_row(error->sqlerrcode))
		ReThrowError(error);
	return error;
}

static void
execute_latest(void *state)
{
	Run		   *run = (Run *) state;
	StatementArgs *args = unconstify(StatementArgs *, run->args);

	run->result =
		SPI_execute_snapshot(get_plan(run->connection, run->statement, args),
							 args->values, args->nulls, GetLatestSnapshot(),
							 InvalidSnapshot, false, true, 0);
}

/*
 * StatementRunAsOwner
 *		Runs a statement as StatementRun does, but with the rights of the
 *		table's owner whoever calls.
 *
 * It sees all that is committed, whatever the isolation level.
 */
uint64
StatementRunAsOwner(Connection *connection, Statement *statement,
					const StatementArgs *args)
{
	Run			run = {
		.connection = connection,
		.statement = statement,
		.args = args
	};

	run_part(&run, execute_latest, true, false);
	check_run(&run);
	if (statement->ncolumns > 0)
		check_result(statement, SPI_tuptable->tupdesc);
	return SPI_processed;
}

/* Runs a statement with the rights of the table's owner, or the caller's. */
static uint64
run_with_rights(Connection *connection, Statement *statement,
				const StatementArgs *args, bool as_owner)
{
	return as_owner ? StatementRunAsOwner(connection, statement, args) :
		StatementRun(connection, statement, args, false);
}

/* How often StatementRunForAll runs a statement, at most. */
#define MAX_RUNS 10

/*
 * StatementRunForAll
 *		Runs a statement that deletes or changes rows, until another statement
 *		finds none that it is for; returns how many it was.
 *
 * Sets kept if it goes on to find some: a trigger, a rule or a policy of the
 * table keeps them, or puts them back.  What others insert meanwhile is no
 * reason, unless it never ends.
 *
 * A distributed table is not asked: over all shards Citus has no generic plan
 * of a SELECT with parameters.
 */
uint64
StatementRunForAll(Connection *connection, Statement *statement,
				   Statement *find, const StatementArgs *args,
				   bool as_owner, bool *kept)
{
	uint64		ntotal = 0;
	uint64		nfound = 0;
	int			in_vain = 0;
	bool		find_left = !StatementIsDistributed(connection);

	for (int i = 0; i < MAX_RUNS && in_vain < 2; i++)
	{
		uint64		nrows;

		CHECK_FOR_INTERRUPTS();
		nrows = run_with_rights(connection, statement, args, as_owner);
		ntotal += nrows;
		if (find_left)
			nfound = run_with_rights(connection, find, args, as_owner);
		if (nfound == 0)
			break;
		if (nrows == 0)
			in_vain++;
	}
	*kept = nfound > 0;
	return ntotal;
}
