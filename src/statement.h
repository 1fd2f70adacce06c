/*-------------------------------------------------------------------------
 *
 * statement.h
 *	  SQL statements over the table, with kept plans.
 *
 *-------------------------------------------------------------------------
 */
#ifndef STATEMENT_H
#define STATEMENT_H

#include "executor/spi.h"
#include "fmgr.h"

/*
 * What a statement's WHERE clause asks for, beside the extension: bits that
 * select one of its plans.
 */
#define SHAPE_USER 1			/* user_fk = $3, else IS NULL */
#define SHAPE_RESOURCE 2		/* resource = $4, $5, else IS NULL */
#define SHAPE_CATEGORY 4		/* category = $6 */
#define SHAPE_PREFIX 8			/* $7 <= key <= $8 */
#define NUM_SHAPES 16

typedef struct Statement
{
	/*
	 * The text, in which @schema@ is the extension's schema, @scope@ the
	 * condition on the scope and @order@ the columns of the index that serves
	 * a list of it.
	 */
	const char *sql;
	int			nargs;
	const Oid  *argtypes;
	bool		by_index;		/* never anything but an index scan */
	struct
	{
		SPIPlanPtr	plan;
		uint64		generation; /* of the schema's name, 0 = not prepared */
	}			kept[NUM_SHAPES];
} Statement;

/* Operators by their full names: nothing depends on search_path. */
#define SQL_EQ " OPERATOR(pg_catalog.=) "
#define SQL_GT " OPERATOR(pg_catalog.>) "
#define SQL_GE " OPERATOR(pg_catalog.>=) "
#define SQL_LE " OPERATOR(pg_catalog.<=) "
#define SQL_PLUS " OPERATOR(pg_catalog.+) "
#define SQL_TABLE "@schema@.extension_storage AS e"

extern void StatementInit(void);
extern void StatementConnect(void);
extern SPIPlanPtr StatementPlan(FunctionCallInfo fcinfo, Statement *statement,
								int shape);
extern uint64 StatementRun(FunctionCallInfo fcinfo, Statement *statement,
						   int shape, const Datum *values,
						   const char *nulls, bool read_only);
extern bool StatementFetch(FunctionCallInfo fcinfo, Statement *statement,
						   int shape, const Datum *values, const char *nulls,
						   bool read_only, MemoryContext context,
						   Datum *row, bool *row_nulls);
extern void StatementReturn(FunctionCallInfo fcinfo, Statement *statement,
							int shape, const Datum *values, const char *nulls);
extern uint64 StatementRunAsOwner(FunctionCallInfo fcinfo,
								  Statement *statement, const Datum *values,
								  const char *nulls);
extern Oid	StatementTable(FunctionCallInfo fcinfo);
extern Oid	StatementTableOwner(FunctionCallInfo fcinfo);

#endif							/* STATEMENT_H */
