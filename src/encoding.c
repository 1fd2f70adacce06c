/*-------------------------------------------------------------------------
 *
 * encoding.c
 *	  Conversion between UTF-8 and the database encoding.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "encoding.h"
#include "mb/pg_wchar.h"

/*
 * ConvertUtf8
 *		Converts text from UTF-8 to the database encoding if to_server is true,
 *		otherwise from the database encoding to UTF-8.
 *
 * Returns text itself where there is nothing to convert, otherwise a palloc'd
 * string; NULL if text is not valid, or has a character that the other encoding
 * lacks.  The server's own error would quote its bytes, which may be those of a
 * secret or a value, so the caller raises one that does not.
 */
char *
ConvertUtf8(const char *text, size_t len, bool to_server)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *volatile converted = NULL;

	PG_TRY();
	{
		converted = to_server ?
			pg_any_to_server(text, (int) len, PG_UTF8) :
			pg_server_to_any(text, (int) len, PG_UTF8);
	}
	PG_CATCH();
	{
		if (ERRCODE_TO_CATEGORY(geterrcode()) != ERRCODE_DATA_EXCEPTION)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
	}
	PG_END_TRY();
	return converted;
}
