/*-------------------------------------------------------------------------
 *
 * errors.h
 *	  The SQLSTATEs of this extension, and errors that hide what they must not show.
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
 * By default the server logs the text of a statement that fails, into which a
 * client may have written a value or a key; the context may quote that
 * statement or its parameters, and the detail of a violated constraint shows
 * the row.  Between these two calls no error, whoever raises it, does that.
 *
 * An error that leaves the block needs no end: whoever catches it restores the
 * stack, as PG_TRY does.
 */
static inline void
hide_statement(void *arg pg_attribute_unused())
{
	errhidestmt(true);
	errhidecontext(true);
	if (ERRCODE_TO_CATEGORY(geterrcode()) == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION)
		errdetail("The row is not shown, because it holds a value.");
	else if (geterrcode() == ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED)
		errhint("Widen the ids: ALTER TABLE ... ALTER COLUMN id TYPE bigint. Entries that exist can still be set.");
}

static inline void
HideStatementBegin(ErrorContextCallback * hidden)
{
	hidden->callback = hide_statement;
	hidden->arg = NULL;
	hidden->previous = error_context_stack;
	error_context_stack = hidden;
}

static inline void
HideStatementEnd(ErrorContextCallback * hidden)
{
	error_context_stack = hidden->previous;
}

#endif							/* ERRORS_H */
