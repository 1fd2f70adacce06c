/*-------------------------------------------------------------------------
 *
 * statement.h
 *	  SQL statements over the extension's tables, with kept plans.
 *
 * A statement declares the names and types of its parameters and of the
 * columns that it returns.  Whatever has become of the tables meanwhile, no
 * value of another type, and no null where none was declared, gets past this
 * module.
 *
 *-------------------------------------------------------------------------
 */
#ifndef STATEMENT_H
#define STATEMENT_H

#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"

#define STATEMENT_MAX_PARAMS 16
#define STATEMENT_MAX_COLUMNS 16
#define STATEMENT_MAX_SHAPES 32

typedef struct StatementParam
{
	const char *name;			/* $name in the text */
	Oid			type;
} StatementParam;

#define NOT_NULL false
#define NULLABLE true

typedef struct StatementColumn
{
	const char *name;
	Oid			type;
	bool		nullable;
} StatementColumn;

/*
 * Appends the text that a placeholder of the caller's own stands for in a
 * plan of a shape; false if it knows none of that name.
 */
typedef bool (*StatementExpand) (StringInfo sql, const char *placeholder,
								 int shape);

typedef struct Statement
{
	/*
	 * The text, in which $name is a parameter, @schema@ the extension's
	 * schema, and @columns@ the declared columns, read from e and cast to
	 * their types.  Any other @placeholder@ is for expand.
	 */
	const char *sql;
	int			nparams;
	const StatementParam *params;
	int			ncolumns;		/* 0 if it returns no rows */
	const StatementColumn *columns;
	StatementExpand expand;
	bool		by_index;		/* never anything but an index scan */
	bool		keeps_bytes;	/* writes entries, but no byte that a quota
								 * counts */
	struct
	{
		SPIPlanPtr	plan;
		uint64		generation; /* of the schema's name, 0 = not prepared */
	}			kept[STATEMENT_MAX_SHAPES];
} Statement;

/* The number of an array's elements; more than allowed do not compile. */
#define AT_MOST(array, most) \
	(lengthof(array) + 0 * sizeof(char[lengthof(array) <= (most) ? 1 : -1]))

#define STATEMENT_PARAMS(array) \
	.nparams = AT_MOST(array, STATEMENT_MAX_PARAMS), .params = (array)
#define STATEMENT_COLUMNS(array) \
	.ncolumns = AT_MOST(array, STATEMENT_MAX_COLUMNS), .columns = (array)

/* What a statement is run with. */
typedef struct StatementArgs
{
	Datum		values[STATEMENT_MAX_PARAMS];
	char		nulls[STATEMENT_MAX_PARAMS];	/* as SPI takes them */
	int			shape;			/* which of its plans */
} StatementArgs;

/* A connection to SPI for a call of one of the extension's functions. */
typedef struct Connection
{
	Oid			function;		/* that was called */
	Oid			schema;			/* of the extension */
	MemoryContext context;		/* the caller's; StatementFetch copies there */
	bool		quota_prepared; /* by QuotaPrepare */
} Connection;

/* Operators by their full names: nothing depends on search_path. */
#define SQL_EQ " OPERATOR(pg_catalog.=) "
#define SQL_GT " OPERATOR(pg_catalog.>) "
#define SQL_GE " OPERATOR(pg_catalog.>=) "
#define SQL_LE " OPERATOR(pg_catalog.<=) "
#define SQL_PLUS " OPERATOR(pg_catalog.+) "
#define SQL_TABLE "@schema@.extension_storage AS e"

extern void StatementInit(void);
extern void StatementArgsInit(StatementArgs *args);
extern void StatementSet(StatementArgs *args, int param, Datum value);
extern void StatementSetNull(StatementArgs *args, int param);
extern void StatementConnect(Connection *connection, FunctionCallInfo fcinfo,
							 bool nonatomic);
extern uint64 StatementRun(Connection *connection, Statement *statement,
						   const StatementArgs *args, bool read_only);
extern uint64 StatementRunAsOwner(Connection *connection, Statement *statement,
								  const StatementArgs *args);
extern void StatementRow(const Statement *statement, uint64 n, Datum *row,
						 bool *nulls);
extern bool StatementFetch(Connection *connection, Statement *statement,
						   const StatementArgs *args, bool read_only,
						   Datum *row, bool *nulls);
extern void StatementReturn(Connection *connection, Statement *statement,
							const StatementArgs *args, ReturnSetInfo *rsinfo);
extern void StatementStartDecrypted(FunctionCallInfo fcinfo);
extern Portal StatementOpen(Connection *connection, Statement *statement,
							const StatementArgs *args);
extern uint64 StatementNext(const Statement *statement, Portal portal,
							long count);
extern Oid	StatementTable(const Connection *connection);
extern Oid	StatementTableOwner(const Connection *connection);
extern bool StatementIsDistributed(Connection *connection);
extern void StatementCommit(void);
extern void StatementRequireAllRows(const Connection *connection);
extern void StatementCheckTable(Relation table);

#endif							/* STATEMENT_H */
