/*-------------------------------------------------------------------------
 *
 * token.h
 *	  New tokens, and the time in them.
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

#endif							/* TOKEN_H */
