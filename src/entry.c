/*-------------------------------------------------------------------------
 *
 * entry.c
 *	  How an entry is addressed, checked and described.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <uuid/uuid.h>

#include "entry.h"
#include "errors.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* In bytes before encryption. */
int			max_value_size = MAX_VALUE_SIZE;

const StatementColumn entry_columns[] = {ENTRY_COLUMNS};

const AddressArguments entry_address = {
	{
		[PARAM_EXTENSION_ID] = ADDRESS_ARG_EXTENSION_ID,
		[PARAM_KEY] = ADDRESS_ARG_KEY,
		[PARAM_USER_FK] = ADDRESS_ARG_USER_FK,
		[PARAM_RESOURCE_TYPE] = ADDRESS_ARG_RESOURCE_TYPE,
		[PARAM_RESOURCE_UUID] = ADDRESS_ARG_RESOURCE_UUID
	}
};

const AddressArguments keys_address = {
	{
		[PARAM_EXTENSION_ID] = ADDRESS_ARG_EXTENSION_ID,
		[PARAM_KEY] = -1,
		[PARAM_USER_FK] = ADDRESS_ARG_USER_FK,
		[PARAM_RESOURCE_TYPE] = ADDRESS_ARG_RESOURCE_TYPE,
		[PARAM_RESOURCE_UUID] = ADDRESS_ARG_RESOURCE_UUID
	}
};

const AddressArguments scope_address = {
	{
		[PARAM_EXTENSION_ID] = SCOPE_ARG_EXTENSION_ID,
		[PARAM_KEY] = -1,
		[PARAM_USER_FK] = SCOPE_ARG_USER_FK,
		[PARAM_RESOURCE_TYPE] = SCOPE_ARG_RESOURCE_TYPE,
		[PARAM_RESOURCE_UUID] = SCOPE_ARG_RESOURCE_UUID
	}
};

/*
 * EntryInit
 *		Defines the settings of this module.
 */
void
EntryInit(void)
{
	DefineCustomIntVariable("extension_storage.max_value_size",
							"Largest value that can be stored, in bytes before encryption.",
							NULL,
							&max_value_size,
							MAX_VALUE_SIZE, 0, MAX_VALUE_SIZE,
							PGC_SUSET,
							0,
							NULL, NULL, NULL);
}

/*
 * AssertArguments
 *		Asserts that an SQL function is declared with the arguments that its C
 *		function takes.
 */
void
AssertArguments(FunctionCallInfo fcinfo pg_attribute_unused(),
				const ArgumentInfo *arguments pg_attribute_unused(),
				int narguments pg_attribute_unused())
{
#ifdef USE_ASSERT_CHECKING
	HeapTuple	function = SearchSysCache1(PROCOID,
										   ObjectIdGetDatum(fcinfo->flinfo->fn_oid));
	Oid		   *types;
	char	  **names;
	char	   *modes;

	if (!HeapTupleIsValid(function))
		return;					/* another session has just dropped it */
	Assert(PG_NARGS() == narguments);
	Assert(get_func_arg_info(function, &types, &names, &modes) >= narguments);
	for (int i = 0; i < narguments; i++)
	{
		Assert(arguments[i].name != NULL);
		Assert(strcmp(names[i], arguments[i].name) == 0);
		Assert(types[i] == arguments[i].type);
	}
	ReleaseSysCache(function);
#endif
}

/*
 * AssertResult
 *		Asserts that an SQL function is declared with the columns that its C
 *		function returns.  The declaration of an older release may end earlier.
 */
void
AssertResult(TupleDesc tupdesc pg_attribute_unused(),
			 const StatementColumn *columns pg_attribute_unused(),
			 int ncolumns pg_attribute_unused())
{
#ifdef USE_ASSERT_CHECKING
	Assert(tupdesc->natts <= ncolumns);
	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);

		Assert(columns[i].name != NULL);
		Assert(strcmp(NameStr(att->attname), columns[i].name) == 0);
		Assert(att->atttypid == columns[i].type);
	}
#endif
}

static void
report_null(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
			 errmsg("%s must not be null", name)));
}

/*
 * RequireArgument
 *		Raises an error if an argument is null.
 */
void
RequireArgument(FunctionCallInfo fcinfo, const ArgumentInfo *arguments,
				int argno)
{
	Assert(argno < PG_NARGS() && arguments[argno].required);
	if (PG_ARGISNULL(argno))
		report_null(arguments[argno].name);
}

/*
 * FindTextFault
 *		Tells what is wrong with a text that may be null; required means neither
 *		null nor empty.
 *
 * Where it is too long, nchars gets its length in characters.
 */
TextFault
FindTextFault(const text *value, int max_chars, bool required, int *nchars)
{
	int			len;

	if (value == NULL)
		return required ? TEXT_IS_NULL : TEXT_FITS;
	len = VARSIZE_ANY_EXHDR(value);
	if (required && len == 0)
		return TEXT_IS_EMPTY;
	if (len <= max_chars)
		return TEXT_FITS;
	*nchars = pg_mbstrlen_with_len(VARDATA_ANY(value), len);
	return *nchars > max_chars ? TEXT_IS_TOO_LONG : TEXT_FITS;
}

/*
 * CheckText
 *		Raises an error if a text is required and null or empty, or longer than
 *		max_chars.
 */
void
CheckText(const text *value, const char *name, int max_chars, bool required)
{
	int			nchars;

	switch (FindTextFault(value, max_chars, required, &nchars))
	{
		case TEXT_FITS:
			break;
		case TEXT_IS_NULL:
			report_null(name);
			break;
		case TEXT_IS_EMPTY:
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s must not be empty", name)));
			break;
		case TEXT_IS_TOO_LONG:
			ereport(ERROR,
					(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
					 errmsg("%s is too long", name),
					 errdetail("It has %d characters, %d are allowed.",
							   nchars, max_chars)));
			break;
	}
}

/*
 * TextArgument
 *		Returns a text argument of the call, or NULL if it is null.
 *
 * Raises an error as CheckText does.
 */
text *
TextArgument(FunctionCallInfo fcinfo, const ArgumentInfo *arguments, int argno)
{
	const ArgumentInfo *info = &arguments[argno];
	text	   *arg;

	Assert(argno < PG_NARGS() && info->type == TEXTOID && info->max_chars > 0);
	arg = PG_ARGISNULL(argno) ? NULL : PG_GETARG_TEXT_PP(argno);
	CheckText(arg, info->name, info->max_chars, info->required);
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
		StatementSet(args, param, TEXTOID, PointerGetDatum(arg));
}

/*
 * ValueParam
 *		Takes an argument of the call that is no text as a parameter of a
 *		statement.
 */
void
ValueParam(StatementArgs *args, int param, FunctionCallInfo fcinfo,
		   const ArgumentInfo *arguments, int argno)
{
	Assert(argno < PG_NARGS());
	if (!PG_ARGISNULL(argno))
		StatementSet(args, param, arguments[argno].type,
					 PG_GETARG_DATUM(argno));
}

/*
 * CanonicalUuid
 *		Writes a UUID in canonical form; false if the text is not a UUID.
 *
 * It may be spelled in any way that PostgreSQL's type accepts (upper case,
 * braces, hyphens after any group of four digits or none), or as a URN.
 * Source: RFC 4122, section 3, and uuid_in().  canonical has room for
 * UUID_TEXT_LEN characters and the terminator.
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
		/* a hyphen may follow every fourth digit, but not at the end */
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
	ValueParam(args, PARAM_USER_FK, fcinfo, arguments, user_fk);
	if (!PG_ARGISNULL(user_fk))
		args->shape |= SHAPE_USER;
	if (PG_ARGISNULL(resource_type) != PG_ARGISNULL(resource_uuid))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("resource_type and resource_uuid must be given together")));
	if (!PG_ARGISNULL(resource_type))
	{
		TextParam(args, PARAM_RESOURCE_TYPE, fcinfo, arguments, resource_type);
		StatementSet(args, PARAM_RESOURCE_UUID, TEXTOID,
					 PointerGetDatum(ResourceUuidArgument(fcinfo, arguments,
														  resource_uuid)));
		args->shape |= SHAPE_RESOURCE;
	}
}

/*
 * PrefixLast
 *		Returns a text that is above all keys that start with a prefix.
 *
 * Keys are compared byte by byte.  No key is longer than MAX_KEY_CHARS, so the
 * prefix followed by that many of the highest bytes will do.
 */
Datum
PrefixLast(text *prefix)
{
	int			len = VARSIZE_ANY_EXHDR(prefix);
	int			fill = MAX_KEY_CHARS * MAX_MULTIBYTE_CHAR_LEN;
	text	   *last = palloc(VARHDRSZ + len + fill);

	SET_VARSIZE(last, VARHDRSZ + len + fill);
	memcpy(VARDATA(last), VARDATA_ANY(prefix), len);
	memset(VARDATA(last) + len, 0xFF, fill);
	return PointerGetDatum(last);
}

/*
 * CompareTexts
 *		Compares two texts by their bytes, as strcmp does.
 */
int
CompareTexts(const text *a, const text *b)
{
	int			a_len = VARSIZE_ANY_EXHDR(a);
	int			b_len = VARSIZE_ANY_EXHDR(b);
	int			result = memcmp(VARDATA_ANY(a), VARDATA_ANY(b),
								Min(a_len, b_len));

	return result != 0 ? result : a_len - b_len;
}

/*
 * ArrayArgument
 *		Takes an array argument of the call apart; returns how many elements it
 *		has, or -1 if it is null.
 */
int
ArrayArgument(FunctionCallInfo fcinfo, const ArgumentInfo *arguments, int argno,
			  Oid type, Datum **elements, bool **nulls)
{
	ArrayType  *array;
	int			nelements;
	int16		len;
	bool		byval;
	char		align;

	if (PG_ARGISNULL(argno))
		return -1;
	array = DatumGetArrayTypeP(ArgumentValue(fcinfo, arguments, argno,
											 get_array_type(type)));
	if (ARR_NDIM(array) > 1 || ARR_ELEMTYPE(array) != type)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be an array of one dimension",
						arguments[argno].name)));
	get_typlenbyvalalign(type, &len, &byval, &align);
	deconstruct_array(array, type, len, byval, align, elements, nulls,
					  &nelements);
	return nelements;
}

/*
 * KeysArgument
 *		Takes an argument that is an array of keys apart; returns how many
 *		there are.
 *
 * Raises an error if there is none or more than MAX_KEYS, or one that is null,
 * empty or too long.
 */
int
KeysArgument(FunctionCallInfo fcinfo, const ArgumentInfo *arguments, int argno,
			 Datum **keys)
{
	bool	   *nulls;
	int			nkeys;

	RequireArgument(fcinfo, arguments, argno);
	nkeys = ArrayArgument(fcinfo, arguments, argno, TEXTOID, keys, &nulls);
	if (nkeys < 1 || nkeys > MAX_KEYS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must have between 1 and %d elements",
						arguments[argno].name, MAX_KEYS),
				 errdetail("It has %d.", nkeys)));
	for (int i = 0; i < nkeys; i++)
		CheckText(nulls[i] ? NULL : DatumGetTextPP((*keys)[i]),
				  psprintf("%s[%d]", arguments[argno].name, i + 1),
				  MAX_KEY_CHARS, true);
	return nkeys;
}

/*
 * ExpandScope
 *		Appends what @scope@ stands for, the condition on the scope, or @order@,
 *		the columns of the index that serves a list of it; false for any other
 *		placeholder.
 */
bool
ExpandScope(StringInfo sql, const char *placeholder, int shape)
{
	if (strcmp(placeholder, "order") == 0)
	{
		appendStringInfoString(sql, (shape & SHAPE_CATEGORY) ?
							   "e.extension_id, e.user_fk, e.resource_uuid,"
							   " e.category, e.key" :
							   "e.extension_id, e.user_fk, e.resource_type,"
							   " e.resource_uuid, e.key");
		return true;
	}
	if (strcmp(placeholder, "scope") != 0)
		return false;

	appendStringInfoString(sql, "e.extension_id" SQL_EQ "$extension_id");
	appendStringInfoString(sql, (shape & SHAPE_USER) ?
						   " AND e.user_fk" SQL_EQ "$user_fk" :
						   " AND e.user_fk IS NULL");
	if (shape & SHAPE_RESOURCE)
		appendStringInfoString(sql,
							   " AND e.resource_type" SQL_EQ "$resource_type"
							   " AND e.resource_uuid" SQL_EQ "$resource_uuid");
	else
		appendStringInfoString(sql, " AND e.resource_uuid IS NULL");

	/* the index by category has no type, which is null with the uuid */
	if ((shape & (SHAPE_RESOURCE | SHAPE_CATEGORY)) == 0)
		appendStringInfoString(sql, " AND e.resource_type IS NULL");
	if (shape & SHAPE_CATEGORY)
		appendStringInfoString(sql, " AND e.category" SQL_EQ "$category");
	if (shape & SHAPE_PREFIX)
		appendStringInfoString(sql, " AND e.key" SQL_GE "$prefix_first"
							   " AND e.key" SQL_LE "$prefix_last");
	return true;
}

/*
 * DescribeEntry
 *		Returns, in palloc'd memory, the words that name an entry in a message.
 *
 * address and nulls are in the order of AddressParam; nulls as SPI takes them.
 * The user is an integer or a bigint: as a Datum, an integer is one, too.
 * Half a resource, which a table with other constraints may have, is named by
 * that half.
 */
char *
DescribeEntry(const Datum *address, const char *nulls)
{
	bool		has_type = nulls[PARAM_RESOURCE_TYPE] != 'n';
	bool		has_uuid = nulls[PARAM_RESOURCE_UUID] != 'n';
	bool		has_user = nulls[PARAM_USER_FK] != 'n';
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "key \"%s\" of extension \"%s\" (",
					 TextDatumGetCString(address[PARAM_KEY]),
					 TextDatumGetCString(address[PARAM_EXTENSION_ID]));
	if (has_type || has_uuid)
		appendStringInfoString(&buf, has_type ?
							   TextDatumGetCString(address[PARAM_RESOURCE_TYPE]) :
							   "resource");
	if (has_uuid)
		appendStringInfo(&buf, " \"%s\"",
						 TextDatumGetCString(address[PARAM_RESOURCE_UUID]));
	if (has_user)
		appendStringInfo(&buf, "%suser " INT64_FORMAT,
						 has_type || has_uuid ? ", " : "",
						 DatumGetInt64(address[PARAM_USER_FK]));
	if (!has_type && !has_uuid && !has_user)
		appendStringInfoString(&buf, "global");
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/*
 * RequireKey
 *		Raises an error unless there is a key; needed tells why the value needs
 *		one.
 */
void
RequireKey(const StatementArgs *args, bool there_is, const char *needed)
{
	if (!there_is)
		ReportNoKey(psprintf("The value of %s %s encrypted.",
							 DescribeEntry(args->values, args->nulls), needed));
}
