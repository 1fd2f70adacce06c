/*-------------------------------------------------------------------------
 *
 * quota.h
 *	  How many bytes an extension may store.
 *
 *-------------------------------------------------------------------------
 */
#ifndef QUOTA_H
#define QUOTA_H

#include "statement.h"
#include "utils/reltrigger.h"

extern void QuotaInit(void);
extern void QuotaPrepare(Connection *connection, Datum extension_id);
extern void QuotaPrepareMany(Connection *connection, Statement *lock_usage,
							 const StatementArgs *args);
extern void QuotaCheckAtEnd(Connection *connection, Datum extension_id,
							StatementBlock block, void *state);
extern bool QuotaIsTrigger(const Trigger * trigger);
extern bool QuotaIsCounting(const Connection *connection);

#endif							/* QUOTA_H */
