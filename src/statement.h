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
#include "executor/tuptable.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "storage/lockdefs.h"

#define STATEMENT_MAX_PARAMS 16
#define STATEMENT_MAX_COLUMNS 16
#define STATEMENT_MAX_SHAPES 32

typedef struct StatementParam
{
	const char *name;			/* $name in the text */
	Oid			type;
} StatementParam;

/* Values of StatementColumn.nullable */
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

/*
 * Called with each row of a statement, whose columns have been checked and are
 * in tts_values and tts_isnull; false to end the statement.
 */
typedef bool (*StatementVisitor) (TupleTableSlot *slot, void *state);

/* What StatementTry runs. */
typedef void (*StatementBlock) (void *state);

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
	/* [1] where FORCE ROW LEVEL SECURITY is ignored: plans depend on that */
	struct KeptPlan
	{
		SPIPlanPtr	plan;
		uint64		generation; /* of the schema's name, 0 = not prepared */
	}			kept[STATEMENT_MAX_SHAPES][2];
} Statement;

/* A number that does not compile if the condition is false. */
#define NUMBER_IF(number, condition) \
	((number) + 0 * sizeof(char[(condition) ? 1 : -1]))

/*
 * The number of elements of an array that is indexed by an enum, whose last
 * member is count: with more or fewer elements it does not compile.  Where one
 * is missing in between, its name is NULL, and an assertion fails.
 */
#define NUMBER_OF(array, count) \
	NUMBER_IF(count, lengthof(array) == (int) (count))

#define STATEMENT_PARAMS(array, count) \
	.nparams = NUMBER_OF(array, count) + \
	NUMBER_IF(0, (int) (count) <= STATEMENT_MAX_PARAMS), .params = (array)
#define STATEMENT_COLUMNS(array, count) \
	.ncolumns = NUMBER_OF(array, count) + \
	NUMBER_IF(0, (int) (count) <= STATEMENT_MAX_COLUMNS), .columns = (array)

/* What a statement is run with. */
typedef struct StatementArgs
{
	Datum		values[STATEMENT_MAX_PARAMS];
	char		nulls[STATEMENT_MAX_PARAMS];	/* as SPI takes them */
	Oid			types[STATEMENT_MAX_PARAMS];	/* of those that are not null */
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

extern const char StatementMark[];

extern void StatementInit(void);
extern void StatementArgsInit(StatementArgs *args);
extern void StatementSet(StatementArgs *args, int param, Oid type, Datum value);
extern void StatementSetNull(StatementArgs *args, int param);
extern Datum MakeArray(Datum *elements, bool *nulls, int nelements, Oid type);
extern void StatementConnect(Connection *connection, FunctionCallInfo fcinfo,
							 bool nonatomic);
extern bool StatementFunctionIsOurs(Oid function);
extern void RunAsOwner(Oid owner, int flags, Portal *cursor,
					   void (*run) (void *state), void *state);
extern uint64 StatementRun(Connection *connection, Statement *statement,
						   const StatementArgs *args, bool read_only);
extern uint64 StatementRunAsOwner(Connection *connection, Statement *statement,
								  const StatementArgs *args);
extern uint64 StatementRunForAll(Connection *connection, Statement *statement,
								 Statement *find, const StatementArgs *args,
								 bool as_owner, bool *kept);
extern void StatementRow(const Statement *statement, uint64 n, Datum *row,
						 bool *nulls);
extern bool StatementFetch(Connection *connection, Statement *statement,
						   const StatementArgs *args, bool read_only,
						   Datum *row, bool *nulls);
extern void StatementReturn(Connection *connection, Statement *statement,
							const StatementArgs *args, ReturnSetInfo *rsinfo);
extern void StatementVisit(Connection *connection, Statement *statement,
						   const StatementArgs *args, bool read_only,
						   StatementVisitor visit, void *state);
extern void StatementCopyRow(const TupleTableSlot *slot, int ncolumns,
							 Datum *row, bool *nulls);
extern void StatementStartDecrypted(FunctionCallInfo fcinfo);
extern Portal StatementOpen(Connection *connection, Statement *statement,
							const StatementArgs *args);
extern uint64 StatementNext(const Connection *connection,
							const Statement *statement, Portal portal,
							long count);
extern void StatementRequireSnapshot(Oid relation);
extern Oid	StatementTable(const Connection *connection);
extern void StatementLockRelation(Oid relation, LOCKMODE mode);
extern void StatementLockTable(const Connection *connection, LOCKMODE mode);
extern bool StatementIsDistributed(Connection *connection);
extern void StatementCommit(const Connection *connection);
extern ErrorData *StatementTry(StatementBlock block, void *state);
extern void StatementRequireAllRows(const Connection *connection);
extern void StatementCheckTable(Relation table);

/*
 * ColumnValue
 *		Returns a column of a row, which must be declared with the type that the
 *		caller reads it as.
 */
static inline Datum
ColumnValue(const StatementColumn *columns pg_attribute_unused(),
			int column, Oid type pg_attribute_unused(), const Datum *row)
{
	Assert(columns[column].type == type);
	return row[column];
}

#endif							/* STATEMENT_H */
