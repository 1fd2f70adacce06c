/*-------------------------------------------------------------------------
 *
 * extension_storage.c
 *	  What the server calls when it loads the library.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "keyring.h"
#include "quota.h"
#include "rotation.h"
#include "statement.h"
#include "storage.h"
#include "utils/guc.h"

PG_MODULE_MAGIC;

#if PG_VERSION_NUM < 160000
extern void _PG_init(void);		/* fmgr.h declares it from 16 on */
#endif

void
_PG_init(void)
{
	KeyringInit();
	StorageInit();
	QuotaInit();
	RotationInit();
	StatementInit();
	MarkGUCPrefixReserved("extension_storage");
}
