/*-------------------------------------------------------------------------
 *
 * lifecycle.c
 *	  What goes when an extension, a user or a resource goes, and what each
 *	  extension uses.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "quota.h"
#include "statement.h"
#include "storage.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

static const Oid user_argtypes[] = {INT4ARRAYOID};
static const Oid resource_argtypes[] = {TEXTOID, TEXTARRAYOID};
static const Oid usage_argtypes[] = {INT8OID};

/*
 * How the entries that match a condition go: where bytes are counted, the
 * table and the counts of their extensions are locked first, these in order
 * (see QuotaPrepare).
 */
typedef struct Purge
{
	Statement	lock_usage;
	Statement	delete_entries;
} Purge;

#define PURGE(condition, number, types, use_index) \
	{ \
		.lock_usage = { \
			.sql = "SELECT 1 FROM @schema@.extension_storage_usage AS u" \
			" WHERE u.extension_id" SQL_EQ "ANY (ARRAY(SELECT e.extension_id FROM " \
			SQL_TABLE " WHERE " condition "))" \
			" ORDER BY u.extension_id FOR UPDATE", \
			.nargs = number, .argtypes = types, .by_index = use_index \
		}, \
		.delete_entries = { \
			.sql = "DELETE FROM " SQL_TABLE " WHERE " condition, \
			.nargs = number, .argtypes = types, .by_index = use_index \
		} \
	}

static Purge purge_extension = PURGE("e.extension_id" SQL_EQ "$1", 1,
									 resource_argtypes, true);
static Purge purge_users = PURGE("e.user_fk" SQL_EQ "ANY ($1)", 1,
								 user_argtypes, true);
static Purge purge_all_users = PURGE("e.user_fk IS NOT NULL", 0,
									 user_argtypes, false);
static Purge purge_resources = PURGE("e.resource_type" SQL_EQ
									 "$1 AND e.resource_uuid" SQL_EQ "ANY ($2)",
									 2, resource_argtypes, true);
static Purge purge_all_resources = PURGE("e.resource_type" SQL_EQ "$1", 1,
										 resource_argtypes, false);

/* A subquery is hashed, an array would be searched for each entry. */
#define IS_GONE SQL_EQ "ANY (SELECT pg_catalog.unnest($1))"

static Statement clear_users_statement = {
	.sql = "UPDATE " SQL_TABLE " SET created_by_fk ="
	" CASE WHEN e.created_by_fk" IS_GONE " THEN NULL ELSE e.created_by_fk END,"
	" changed_by_fk ="
	" CASE WHEN e.changed_by_fk" IS_GONE " THEN NULL ELSE e.changed_by_fk END"
	" WHERE e.created_by_fk" IS_GONE " OR e.changed_by_fk" IS_GONE,
	.nargs = 1, .argtypes = user_argtypes
};
static Statement clear_all_users_statement = {
	.sql = "UPDATE " SQL_TABLE " SET created_by_fk = NULL, changed_by_fk = NULL"
	" WHERE e.created_by_fk IS NOT NULL OR e.changed_by_fk IS NOT NULL",
	.argtypes = user_argtypes
};
static Statement usage_statement = {
	.sql = "SELECT e.extension_id, pg_catalog.count(*),"
	" pg_catalog.count(*) FILTER (WHERE e.is_encrypted),"
	" pg_catalog.sum(COALESCE(e.value_size, pg_catalog.octet_length(e.value))),"
	" $1 FROM " SQL_TABLE " GROUP BY e.extension_id ORDER BY e.extension_id",
	.nargs = 1, .argtypes = usage_argtypes
};

PG_FUNCTION_INFO_V1(ext_storage_purge_extension);
PG_FUNCTION_INFO_V1(ext_storage_purge_user);
PG_FUNCTION_INFO_V1(ext_storage_purge_resource);
PG_FUNCTION_INFO_V1(ext_storage_users_deleted);
PG_FUNCTION_INFO_V1(ext_storage_resources_deleted);
PG_FUNCTION_INFO_V1(ext_storage_usage);

/*
 * Deletes entries, with the rights of the caller or of the table's owner.
 * Returns how many.  SPI must be connected.
 */
static uint64
run_purge(FunctionCallInfo fcinfo, Purge *purge, const Datum *values,
		  bool as_owner)
{
	if (QuotaIsCounting(fcinfo))
	{
		LockRelationOid(StatementTable(fcinfo), RowExclusiveLock);
		StatementRunAsOwner(fcinfo, &purge->lock_usage, values, NULL);
	}
	if (as_owner)
		return StatementRunAsOwner(fcinfo, &purge->delete_entries, values, NULL);
	return StatementRun(fcinfo, &purge->delete_entries, 0, values, NULL, false);
}

/* Deletes entries for a purge function. */
static Datum
purge_for_caller(FunctionCallInfo fcinfo, Purge *purge, const Datum *values)
{
	uint64		npurged;

	StatementConnect();
	npurged = run_purge(fcinfo, purge, values, false);
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
	Datum		values[1] = {
		PointerGetDatum(TextArgument(fcinfo, 0, "extension_id", 255, true))
	};

	return purge_for_caller(fcinfo, &purge_extension, values);
}

/*
 * ext_storage_purge_user(user_fk integer) returns bigint
 *		Deletes all that is private to a user; returns how many entries.
 */
Datum
ext_storage_purge_user(PG_FUNCTION_ARGS)
{
	Datum		user;
	Datum		values[1];

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("user_fk must not be null")));
	user = PG_GETARG_DATUM(0);
	values[0] = PointerGetDatum(construct_array(&user, 1, INT4OID,
												sizeof(int32), true,
												TYPALIGN_INT));
	return purge_for_caller(fcinfo, &purge_users, values);
}

/*
 * ext_storage_purge_resource(resource_type text, resource_uuid text)
 *		returns bigint
 *		Deletes all that belongs to a resource; returns how many entries.
 */
Datum
ext_storage_purge_resource(PG_FUNCTION_ARGS)
{
	Datum		uuid;
	Datum		values[2];

	values[0] = PointerGetDatum(TextArgument(fcinfo, 0, "resource_type", 64, true));
	uuid = PointerGetDatum(ResourceUuidArgument(fcinfo, 1));
	values[1] = PointerGetDatum(construct_array(&uuid, 1, TEXTOID, -1, false,
												TYPALIGN_INT));
	return purge_for_caller(fcinfo, &purge_resources, values);
}

/* Checks that a trigger function is called as the attach functions make it. */
static TriggerData *
trigger_data(FunctionCallInfo fcinfo, int nargs)
{
	TriggerData *trigdata;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function was not called by trigger manager")));
	trigdata = (TriggerData *) fcinfo->context;
	if (!TRIGGER_FIRED_AFTER(trigdata->tg_event) ||
		!TRIGGER_FIRED_FOR_STATEMENT(trigdata->tg_event) ||
		trigdata->tg_trigger->tgnargs != nargs ||
		(!TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event) &&
		 trigdata->tg_oldtable == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" of table \"%s\" was not made by ext_storage_attach_users or ext_storage_attach_resource",
						trigdata->tg_trigger->tgname,
						RelationGetRelationName(trigdata->tg_relation))));
	return trigdata;
}

/*
 * Collects a column of the rows that a statement deleted, as the texts of its
 * values; nulls are left out.
 */
static List *
deleted_values(TriggerData *trigdata, const char *column)
{
	TupleDesc	tupdesc = RelationGetDescr(trigdata->tg_relation);
	int			attno = SPI_fnumber(tupdesc, column);
	TupleTableSlot *slot;
	List	   *values = NIL;
	Oid			output;
	bool		is_varlena;

	if (attno <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\" does not exist", column,
						RelationGetRelationName(trigdata->tg_relation)),
				 errhint("Attach the table again.")));
	getTypeOutputInfo(TupleDescAttr(tupdesc, attno - 1)->atttypid, &output,
					  &is_varlena);
	slot = MakeSingleTupleTableSlot(tupdesc, &TTSOpsMinimalTuple);

	/* the table's other triggers have read the same rows */
	tuplestore_select_read_pointer(trigdata->tg_oldtable, 0);
	tuplestore_rescan(trigdata->tg_oldtable);
	while (tuplestore_gettupleslot(trigdata->tg_oldtable, true, false, slot))
	{
		bool		isnull;
		Datum		value = slot_getattr(slot, attno, &isnull);

		if (!isnull)
			values = lappend(values, OidOutputFunctionCall(output, value));
	}
	ExecDropSingleTupleTableSlot(slot);
	return values;
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
	List	   *texts;
	ListCell   *cell;
	Datum	   *users;
	Datum		values[1];
	int			nusers = 0;

	StatementConnect();
	if (TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
	{
		run_purge(fcinfo, &purge_all_users, NULL, true);
		StatementRunAsOwner(fcinfo, &clear_all_users_statement, NULL, NULL);
	}
	else if ((texts = deleted_values(trigdata,
									 trigdata->tg_trigger->tgargs[0])) != NIL)
	{
		users = palloc(list_length(texts) * sizeof(Datum));
		foreach(cell, texts)
			users[nusers++] = DirectFunctionCall1(int4in,
												  CStringGetDatum(lfirst(cell)));
		values[0] = PointerGetDatum(construct_array(users, nusers, INT4OID,
													sizeof(int32), true,
													TYPALIGN_INT));
		run_purge(fcinfo, &purge_users, values, true);
		StatementRunAsOwner(fcinfo, &clear_users_statement, values, NULL);
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
	List	   *texts;
	ListCell   *cell;
	Datum	   *uuids;
	Datum		values[2] = {
		CStringGetTextDatum(trigdata->tg_trigger->tgargs[0])
	};
	int			nuuids = 0;

	StatementConnect();
	if (TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
		run_purge(fcinfo, &purge_all_resources, values, true);
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
		values[1] = PointerGetDatum(construct_array(uuids, nuuids, TEXTOID, -1,
													false, TYPALIGN_INT));
		run_purge(fcinfo, &purge_resources, values, true);
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
	Datum		values[1] = {Int64GetDatum(QuotaPerExtension())};

	InitMaterializedSRF(fcinfo, 0);
	StatementConnect();
	StatementReturn(fcinfo, &usage_statement, 0, values, NULL);
	SPI_finish();
	return (Datum) 0;
}
