/*-------------------------------------------------------------------------
 *
 * token.c
 *	  New tokens, the time in them, and stored ones.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "entry.h"
#include "errors.h"
#include "miscadmin.h"
#include "token.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

#define SECONDS_1970_TO_2000 \
	((POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * (int64) SECS_PER_DAY)

/*
 * FernetNow
 *		The time for a token made now: seconds since 1970.
 */
uint64
FernetNow(void)
{
	return GetCurrentTimestamp() / USECS_PER_SEC + SECONDS_1970_TO_2000;
}

/*
 * FernetTimestamp
 *		Converts a token's time; false if no timestamp can express it.
 */
bool
FernetTimestamp(uint64 seconds, TimestampTz *timestamp)
{
	if (seconds >= (uint64) (END_TIMESTAMP / USECS_PER_SEC + SECONDS_1970_TO_2000))
		return false;
	*timestamp = ((int64) seconds - SECONDS_1970_TO_2000) * USECS_PER_SEC;
	return true;
}

/*
 * Draws an IV that is used once.
 *
 * Random bytes cost about a microsecond per call, a quarter of what a short
 * token costs, so each process draws them in stock.
 */
static void
draw_iv(uint8 *iv)
{
	static uint8 stock[32][FERNET_IV_LEN];
	static int	nleft = 0;
	static int	drawn_by = 0;

	if (nleft == 0 || drawn_by != MyProcPid)
	{
		nleft = 0;
		if (!pg_strong_random(stock, sizeof(stock)))
			ReportNoRandomBytes();
		nleft = lengthof(stock);
		drawn_by = MyProcPid;
	}
	memcpy(iv, stock[--nleft], FERNET_IV_LEN);
}

/*
 * FernetNewToken
 *		Allocates the token of a message of message_len bytes, which can be
 *		used as text or bytea, and draws its IV.
 */
text *
FernetNewToken(size_t message_len, uint8 *iv)
{
	size_t		token_len = FernetTokenLen(message_len);
	text	   *token;

	if (token_len > MaxAllocSize - VARHDRSZ)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("message of %zu bytes is too large for a Fernet token",
						message_len)));
	token = palloc(VARHDRSZ + token_len);
	SET_VARSIZE(token, VARHDRSZ + token_len);
	draw_iv(iv);
	return token;
}

/*
 * StoredToken
 *		Returns a stored token, detoasted.
 *
 * What is longer than the token of the largest value, and may have a gigabyte, is
 * not even read: an empty one stands for it, which no key has made either.
 */
bytea *
StoredToken(Datum value)
{
	bytea	   *none;

	if (toast_raw_datum_size(value) - VARHDRSZ <= FernetTokenLen(MAX_VALUE_SIZE))
		return DatumGetByteaPP(value);
	none = palloc(VARHDRSZ);
	SET_VARSIZE(none, VARHDRSZ);
	return none;
}
