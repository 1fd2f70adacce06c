/*-------------------------------------------------------------------------
 *
 * token.h
 *	  New tokens, the time in them, and stored ones.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TOKEN_H
#define TOKEN_H

#include "datatype/timestamp.h"
#include "fernet.h"

extern uint64 FernetNow(void);
extern bool FernetTimestamp(uint64 seconds, TimestampTz *timestamp);
extern text *FernetNewToken(size_t message_len, uint8 *iv);
extern bytea *StoredToken(Datum value);

#endif							/* TOKEN_H */
