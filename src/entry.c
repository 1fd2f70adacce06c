/*-------------------------------------------------------------------------
 *
 * entry.c
 *	  How an entry is addressed, checked and named.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <uuid/uuid.h>

#include "entry.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/syscache.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/*
 * CheckArguments
 *		Asserts that an SQL function is declared with the arguments that its C
 *		function takes.
 */
void
CheckArguments(FunctionCallInfo fcinfo pg_attribute_unused(),
			   const ArgumentInfo *arguments pg_attribute_unused(),
			   int narguments pg_attribute_unused())
{
#ifdef USE_ASSERT_CHECKING
	HeapTuple	function = SearchSysCache1(PROCOID,
										   ObjectIdGetDatum(fcinfo->flinfo->fn_oid));
	Oid		   *types;
	char	  **names;
	char	   *modes;

	Assert(HeapTupleIsValid(function));
	Assert(PG_NARGS() == narguments);
	Assert(get_func_arg_info(function, &types, &names, &modes) >= narguments);
	for (int i = 0; i < narguments; i++)
		Assert(strcmp(names[i], arguments[i].name) == 0);
	ReleaseSysCache(function);
#endif
}

/*
 * RequireArgument
 *		Raises an error if an argument is null.
 */
void
RequireArgument(FunctionCallInfo fcinfo, const ArgumentInfo *arguments,
				int argno)
{
	if (PG_ARGISNULL(argno))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", arguments[argno].name)));
}

/*
 * TextArgument
 *		Returns a text argument of the call, or NULL if it is null.
 *
 * Raises an error if it is required and null or empty, or longer than its
 * column.
 */
text *
TextArgument(FunctionCallInfo fcinfo, const ArgumentInfo *arguments, int argno)
{
	const ArgumentInfo *info = &arguments[argno];
	text	   *arg;
	int			len;

	Assert(info->max_chars > 0);
	if (info->required)
		RequireArgument(fcinfo, arguments, argno);
	if (PG_ARGISNULL(argno))
		return NULL;
	arg = PG_GETARG_TEXT_PP(argno);
	len = VARSIZE_ANY_EXHDR(arg);
	if (info->required && len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", info->name)));
	if (len > info->max_chars)
	{
		int			chars = pg_mbstrlen_with_len(VARDATA_ANY(arg), len);

		if (chars > info->max_chars)
			ereport(ERROR,
					(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
					 errmsg("%s is too long", info->name),
					 errdetail("It has %d characters, %d are allowed.",
							   chars, info->max_chars)));
	}
	return arg;
}

/*
 * TextParam
 *		Takes a text argument of the call as a parameter of a statement.
 */
void
TextParam(StatementArgs *args, int param, FunctionCallInfo fcinfo,
		  const ArgumentInfo *arguments, int argno)
{
	text	   *arg = TextArgument(fcinfo, arguments, argno);

	if (arg != NULL)
		StatementSet(args, param, PointerGetDatum(arg));
}

/*
 * CanonicalUuid
 *		Writes a UUID in canonical form; false if the text is none.
 *
 * Any spelling will do that PostgreSQL's type takes (upper case, braces,
 * hyphens after any group of four digits or none), or that of a URN.  Source:
 * RFC 4122, section 3, and uuid_in().  canonical has room for UUID_TEXT_LEN
 * characters and the terminator.
 */
bool
CanonicalUuid(const char *text, int len, char *canonical)
{
	char		spelled[UUID_TEXT_LEN + 1];
	const char *end = text + len;
	int			ndigits = 0;
	int			at = 0;
	uuid_t		uuid;

	if (len >= 9 && pg_strncasecmp(text, "urn:uuid:", 9) == 0)
		text += 9;
	else if (len >= 2 && text[0] == '{' && end[-1] == '}')
	{
		text++;
		end--;
	}
	for (; text < end; text++)
	{
		/* a hyphen may stand after every fourth digit, but not at the end */
		if (*text == '-' && ndigits > 0 && ndigits < 32 && ndigits % 4 == 0 &&
			text[-1] != '-')
			continue;
		if (!isxdigit((unsigned char) *text) || ndigits == 32)
			return false;
		if (ndigits == 8 || ndigits == 12 || ndigits == 16 || ndigits == 20)
			spelled[at++] = '-';
		spelled[at++] = *text;
		ndigits++;
	}
	if (ndigits != 32)
		return false;
	spelled[at] = '\0';
	if (uuid_parse(spelled, uuid) != 0)
		return false;
	uuid_unparse_lower(uuid, canonical);
	return true;
}

/*
 * ResourceUuidArgument
 *		Returns resource_uuid as it is stored: a UUID in canonical form, any
 *		other identifier as it is.
 */
text *
ResourceUuidArgument(FunctionCallInfo fcinfo, const ArgumentInfo *arguments,
					 int argno)
{
	if (!PG_ARGISNULL(argno))
	{
		text	   *arg = PG_GETARG_TEXT_PP(argno);
		char		canonical[UUID_TEXT_LEN + 1];

		if (CanonicalUuid(VARDATA_ANY(arg), VARSIZE_ANY_EXHDR(arg), canonical))
			return cstring_to_text_with_len(canonical, UUID_TEXT_LEN);
	}
	return TextArgument(fcinfo, arguments, argno);
}

/*
 * AddressParams
 *		Takes the arguments that address an entry or, where the function has no
 *		argument key, a scope, and adds the bits of the shape.
 */
void
AddressParams(StatementArgs *args, FunctionCallInfo fcinfo,
			  const ArgumentInfo *arguments, const AddressArguments *address)
{
	int			user_fk = address->at[PARAM_USER_FK];
	int			resource_type = address->at[PARAM_RESOURCE_TYPE];
	int			resource_uuid = address->at[PARAM_RESOURCE_UUID];

	TextParam(args, PARAM_EXTENSION_ID, fcinfo, arguments,
			  address->at[PARAM_EXTENSION_ID]);
	if (address->at[PARAM_KEY] >= 0)
		TextParam(args, PARAM_KEY, fcinfo, arguments, address->at[PARAM_KEY]);
	if (!PG_ARGISNULL(user_fk))
	{
		StatementSet(args, PARAM_USER_FK, PG_GETARG_DATUM(user_fk));
		args->shape |= SHAPE_USER;
	}
	if (PG_ARGISNULL(resource_type) != PG_ARGISNULL(resource_uuid))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("resource_type and resource_uuid must be given together")));
	if (!PG_ARGISNULL(resource_type))
	{
		TextParam(args, PARAM_RESOURCE_TYPE, fcinfo, arguments, resource_type);
		StatementSet(args, PARAM_RESOURCE_UUID,
					 PointerGetDatum(ResourceUuidArgument(fcinfo, arguments,
														  resource_uuid)));
		args->shape |= SHAPE_RESOURCE;
	}
}

/*
 * DescribeEntry
 *		Says in palloc'd memory which entry a message is about.
 *
 * address and nulls are in the order of AddressParam; nulls as SPI takes them.
 */
char *
DescribeEntry(const Datum *address, const char *nulls)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "key \"%s\" of extension \"%s\"",
					 TextDatumGetCString(address[PARAM_KEY]),
					 TextDatumGetCString(address[PARAM_EXTENSION_ID]));
	if (nulls[PARAM_RESOURCE_TYPE] != 'n' && nulls[PARAM_RESOURCE_UUID] != 'n')
		appendStringInfo(&buf, " (%s \"%s\"",
						 TextDatumGetCString(address[PARAM_RESOURCE_TYPE]),
						 TextDatumGetCString(address[PARAM_RESOURCE_UUID]));
	else
		appendStringInfoString(&buf, nulls[PARAM_USER_FK] == 'n' ?
							   " (global" : " (");
	if (nulls[PARAM_USER_FK] != 'n')
		appendStringInfo(&buf, "%suser %d",
						 nulls[PARAM_RESOURCE_TYPE] != 'n' ? ", " : "",
						 DatumGetInt32(address[PARAM_USER_FK]));
	appendStringInfoChar(&buf, ')');
	return buf.data;
}
