/*-------------------------------------------------------------------------
 *
 * procedure.h
 *	  Procedures that work in batches, and commit each where they may.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PROCEDURE_H
#define PROCEDURE_H

#include "entry.h"
#include "fmgr.h"

typedef struct Procedure
{
	const char *name;			/* in messages */
	bool		commits;		/* false inside a transaction block */
	bool		dry_run;
	int64		batch_size;		/* rows */
	TimestampTz started;
	TupleDesc	tupdesc;		/* of its result */
} Procedure;

/* The arguments that all procedures have. */
typedef struct ProcedureArguments
{
	int			batch_size;
	int			max_batch_size;
	int			dry_run;
} ProcedureArguments;

extern void ProcedureStart(Procedure *procedure, const char *name,
						   FunctionCallInfo fcinfo,
						   const ArgumentInfo *arguments,
						   const ProcedureArguments *at);
extern void ProcedureAnnounce(const Procedure *procedure);
extern void ProcedureReport(const Procedure *procedure, int64 done,
							int64 total);
extern Datum ProcedureResult(const Procedure *procedure, const int64 *counts);

#endif							/* PROCEDURE_H */
