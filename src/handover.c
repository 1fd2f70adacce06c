/*-------------------------------------------------------------------------
 *
 * handover.c
 *	  Secrets that a client hands over by COPY.
 *
 * What is copied is not part of a statement, so it is in no log and not in
 * pg_stat_activity, whatever the server logs; and a connection pooler that
 * shares connections passes it on within the transaction that it is meant for.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "encoding.h"
#include "executor/spi.h"
#include "tcop/cmdtag.h"
#include "tcop/pquery.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/rel.h"

/* The columns of the view, and the settings that they go to */
typedef struct SecretColumn
{
	const char *column;
	const char *setting;
} SecretColumn;

static const SecretColumn secret_columns[] = {
	{"encryption_keys", "extension_storage.encryption_keys"},
	{"secret_key", "extension_storage.secret_key"},
	{"previous_secret_key", "extension_storage.previous_secret_key"},
};

PG_FUNCTION_INFO_V1(ext_storage_secrets_insert);

/* Returns a column of the row that is inserted. */
static Datum
get_column(const TriggerData *trigger, const char *name, Oid type, bool *isnull)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	int			attnum = SPI_fnumber(desc, name);

	if (attnum <= 0 || SPI_gettypeid(desc, attnum) != type)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("view \"%s\" has no column \"%s\" of type %s",
						RelationGetRelationName(trigger->tg_relation), name,
						format_type_be(type))));
	return SPI_getbinval(trigger->tg_trigtuple, desc, attnum, isnull);
}

/*
 * Converts the bytes of a secret, UTF-8, to a string in the database encoding,
 * with an error that does not quote any of them.
 */
static char *
secret_to_server(Datum value, const char *column)
{
	bytea	   *bytes = DatumGetByteaPP(value);
	int			len = VARSIZE_ANY_EXHDR(bytes);
	char	   *utf8 = pnstrdup(VARDATA_ANY(bytes), len);
	char	   *text = NULL;

	if (strlen(utf8) == (size_t) len)
		text = ConvertUtf8(utf8, len, true);
	if (text != utf8)
		explicit_bzero(utf8, len);
	if (text == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
				 errmsg("column \"%s\" cannot be converted to text in the encoding of the database",
						column)));
	return text;
}

/* Puts a secret in force, and wipes it, even if it is refused. */
static void
put_secret(const char *setting, char *secret, GucAction action)
{
	PG_TRY();
	{
		(void) set_config_option(setting, secret, PGC_USERSET, PGC_S_SESSION,
								 action, true, 0, false);
	}
	PG_FINALLY();
	{
		explicit_bzero(secret, strlen(secret));
	}
	PG_END_TRY();
}

/* Does the client's statement copy rows into a table, and not a query's to it? */
static bool
is_copied(void)
{
	Node	   *statement;

	if (ActivePortal == NULL || ActivePortal->commandTag != CMDTAG_COPY)
		return false;
	statement = linitial_node(PlannedStmt, ActivePortal->stmts)->utilityStmt;
	return statement != NULL && IsA(statement, CopyStmt) &&
		((CopyStmt *) statement)->is_from;
}

/*
 * ext_storage_secrets_insert()
 *		Trigger INSTEAD OF INSERT of the view ext_storage_secrets: puts the
 *		secrets of the row in force, until the transaction ends or, if
 *		for_session is true, the session.
 *
 * Each setting is replaced; a null takes its secrets away.  Raises an error
 * for anything but COPY, as a statement would carry the secrets.
 */
Datum
ext_storage_secrets_insert(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	ErrorContextCallback *context = error_context_stack;
	GucAction	action = GUC_ACTION_LOCAL;
	bool		isnull;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_INSTEAD(trigger->tg_event) ||
		!TRIGGER_FIRED_BY_INSERT(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("ext_storage_secrets_insert must be called by an INSTEAD OF INSERT trigger for each row")));

	/* COPY's context would quote the line, if it is text */
	error_context_stack = NULL;

	if (!is_copied())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("view \"%s\" takes rows only from COPY",
						RelationGetRelationName(trigger->tg_relation)),
				 errdetail("A statement that carries secrets shows them in logs and in pg_stat_activity."),
				 errhint("Use COPY ... FROM STDIN (FORMAT binary)."),
				 errhidestmt(true)));

	if (DatumGetBool(get_column(trigger, "for_session", BOOLOID, &isnull)) &&
		!isnull)
		action = GUC_ACTION_SET;
	for (size_t i = 0; i < lengthof(secret_columns); i++)
	{
		Datum		value = get_column(trigger, secret_columns[i].column,
									   BYTEAOID, &isnull);
		char	   *secret;

		if (isnull)
			secret = pstrdup("");
		else
			secret = secret_to_server(value, secret_columns[i].column);
		put_secret(secret_columns[i].setting, secret, action);
		pfree(secret);
	}

	error_context_stack = context;
	return PointerGetDatum(trigger->tg_trigtuple);
}
