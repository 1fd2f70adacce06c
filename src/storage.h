/*-------------------------------------------------------------------------
 *
 * storage.h
 *	  What storage.c offers to the other parts.
 *
 *-------------------------------------------------------------------------
 */
#ifndef STORAGE_H
#define STORAGE_H

#include "fmgr.h"

/* SQLSTATEs of this extension. */
#define ERRCODE_ES_UNREADABLE MAKE_SQLSTATE('E', 'S', '0', '0', '1')
#define ERRCODE_ES_NO_KEY MAKE_SQLSTATE('E', 'S', '0', '0', '2')
#define ERRCODE_ES_VERSION MAKE_SQLSTATE('E', 'S', '0', '0', '4')

#define UUID_TEXT_LEN 36

/* How the entry of a key is addressed; also the numbers of SQL parameters. */
enum
{
	ARG_EXTENSION_ID,
	ARG_KEY,
	ARG_USER_FK,
	ARG_RESOURCE_TYPE,
	ARG_RESOURCE_UUID,
	NUM_ADDRESS_ARGS
};

extern void StorageInit(void);
extern text *TextArgument(FunctionCallInfo fcinfo, int argno,
						  const char *name, int max_chars, bool required);
extern bool CanonicalUuid(const char *text, int len, char *canonical);
extern text *ResourceUuidArgument(FunctionCallInfo fcinfo, int argno);
extern char *DescribeEntry(const Datum *address, const char *nulls);

#endif							/* STORAGE_H */
