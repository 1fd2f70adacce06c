/*-------------------------------------------------------------------------
 *
 * procedure.c
 *	  Procedures that work in batches, and commit each where they may.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "nodes/parsenodes.h"
#include "procedure.h"
#include "utils/timestamp.h"

/*
 * ProcedureStart
 *		Takes the arguments that all procedures have, and finds out how it was
 *		called.
 */
void
ProcedureStart(Procedure *procedure, const char *name, FunctionCallInfo fcinfo,
			   const ArgumentInfo *arguments, const ProcedureArguments *at)
{
	RequireArgument(fcinfo, arguments, at->batch_size);
	RequireArgument(fcinfo, arguments, at->dry_run);
	procedure->batch_size =
		DatumGetInt32(ArgumentValue(fcinfo, arguments, at->batch_size,
									INT4OID));
	if (procedure->batch_size < 1 ||
		procedure->batch_size > at->max_batch_size)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 at->max_batch_size == PG_INT32_MAX ?
				 errmsg("batch_size must be at least 1") :
				 errmsg("batch_size must be between 1 and %d",
						at->max_batch_size)));
	procedure->dry_run = DatumGetBool(ArgumentValue(fcinfo, arguments,
													at->dry_run, BOOLOID));
	if (get_call_result_type(fcinfo, NULL, &procedure->tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	procedure->name = name;
	procedure->commits = fcinfo->context != NULL &&
		IsA(fcinfo->context, CallContext) &&
		!castNode(CallContext, fcinfo->context)->atomic;
	procedure->started = GetCurrentTimestamp();
}

/*
 * ProcedureAnnounce
 *		Tells what a caller may not expect.
 */
void
ProcedureAnnounce(const Procedure *procedure)
{
	if (!procedure->commits)
		ereport(NOTICE,
				(errmsg("%s: inside a transaction block, nothing is committed until the block is",
						procedure->name)));
	if (procedure->dry_run)
		ereport(NOTICE,
				(errmsg("%s: dry run, nothing is written", procedure->name)));
}

/*
 * ProcedureReport
 *		Tells how many rows of how many are done, and when the rest will be.
 */
void
ProcedureReport(const Procedure *procedure, int64 done, int64 total)
{
	double		seconds = (GetCurrentTimestamp() - procedure->started) /
	(double) USECS_PER_SEC;
	double		rate = done / Max(seconds, 0.000001);

	ereport(NOTICE,
			(errmsg("%s: " INT64_FORMAT " of " INT64_FORMAT
					" rows done, %.0f rows/s, %.0f s left",
					procedure->name, done, total, rate,
					(total - done) / rate)));
}

/*
 * ProcedureResult
 *		Makes the row of counts that the procedure returns.
 */
Datum
ProcedureResult(const Procedure *procedure, const int64 *counts)
{
	int			ncounts = procedure->tupdesc->natts;
	Datum	   *values = palloc(ncounts * sizeof(Datum));
	bool	   *nulls = palloc0(ncounts * sizeof(bool));

	for (int i = 0; i < ncounts; i++)
		values[i] = Int64GetDatum(counts[i]);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(procedure->tupdesc),
											 values, nulls));
}
