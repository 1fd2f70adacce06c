/*-------------------------------------------------------------------------
 *
 * quota.h
 *	  How many bytes an extension may store.
 *
 *-------------------------------------------------------------------------
 */
#ifndef QUOTA_H
#define QUOTA_H

#include "fmgr.h"

#define ERRCODE_ES_QUOTA MAKE_SQLSTATE('E', 'S', '0', '0', '3')

extern void QuotaInit(void);
extern int64 QuotaPerExtension(void);
extern void QuotaPrepare(FunctionCallInfo fcinfo, Datum extension_id);
extern bool QuotaIsCounting(FunctionCallInfo fcinfo);

#endif							/* QUOTA_H */
