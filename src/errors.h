/*-------------------------------------------------------------------------
 *
 * errors.h
 *	  The SQLSTATEs of this extension, the errors that several parts of it raise,
 *	  and how an error hides what it must not show.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ERRORS_H
#define ERRORS_H

#define ERRCODE_ES_UNREADABLE MAKE_SQLSTATE('E', 'S', '0', '0', '1')
#define ERRCODE_ES_NO_KEY MAKE_SQLSTATE('E', 'S', '0', '0', '2')
#define ERRCODE_ES_QUOTA MAKE_SQLSTATE('E', 'S', '0', '0', '3')
#define ERRCODE_ES_VERSION MAKE_SQLSTATE('E', 'S', '0', '0', '4')

/*
 * The log gets, as detail of a deadlock, the statements of all its sessions,
 * each of which may contain a value.
 */
static inline void
hide_deadlocked(void)
{
	if (geterrcode() == ERRCODE_T_R_DEADLOCK_DETECTED)
		errdetail_log("The statements are not shown because they may contain values.");
}

/*
 * By default the server logs the text of a statement that fails, into which a
 * client may have written a value or a key, and the context may quote that
 * statement or its parameters.  Between these two calls no error, whoever
 * raises it, does that.
 *
 * An error that leaves the block needs no end: whoever catches it restores the
 * stack, as PG_TRY does.
 */
static inline void
hide_statement(void *arg pg_attribute_unused())
{
	errhidestmt(true);
	errhidecontext(true);
	hide_deadlocked();
}

/* Has each error call a function, until error_context_stack is set back. */
static inline void
PushErrorCallback(ErrorContextCallback * callback, void (*function) (void *arg))
{
	callback->callback = function;
	callback->arg = NULL;
	callback->previous = error_context_stack;
	error_context_stack = callback;
}

static inline void
HideStatementBegin(ErrorContextCallback * hidden)
{
	PushErrorCallback(hidden, hide_statement);
}

static inline void
HideStatementEnd(ErrorContextCallback * hidden)
{
	error_context_stack = hidden->previous;
}

/* Reports that there is no key; the detail, if it is not NULL, what for. */
static inline void
ReportNoKey(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_ES_NO_KEY),
			 errmsg("no encryption key is configured"),
			 detail != NULL ? errdetail_internal("%s", detail) : 0,
			 errhint("Set extension_storage.encryption_keys_file.")));
}

/* Reports that entries are left which were to be deleted. */
static inline void
ReportEntriesKept(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("some of the entries could not be deleted"),
			 errdetail("A trigger, a rule or a row-level security policy of table \"extension_storage\" prevents it.")));
}

/* Reports that pg_strong_random() has failed. */
static inline void
ReportNoRandomBytes(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_INTERNAL_ERROR),
			 errmsg("could not generate random bytes")));
}

#define TABLES_AS_MADE \
	errhint("The columns of the extension's tables must be as it made them.")

/* Reports a null where no column of ours can have one. */
static inline void
ReportNullColumn(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("column \"%s\" is null", name),
			 TABLES_AS_MADE));
}

/* Reports that a trigger function was called as another function is. */
static inline void
ReportNoTrigger(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
			 errmsg("function was not called by trigger manager")));
}

#endif							/* ERRORS_H */
