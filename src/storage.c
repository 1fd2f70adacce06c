/*-------------------------------------------------------------------------
 *
 * storage.c
 *	  Set, get, delete, list and count entries.
 *
 * Arguments are checked here, and values are encrypted before a row exists.
 * Every statement goes through SPI with the caller's rights.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <uuid/uuid.h>

#include "access/detoast.h"
#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "keyring.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "quota.h"
#include "statement.h"
#include "storage.h"
#include "token.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"
#include "utils/uuid.h"

#define MAX_VALUE_SIZE 16777215
#define MAX_KEY_CHARS 255

/* From this many bytes on, what a copy of a value costs counts. */
#define LARGE_VALUE_SIZE (1024 * 1024)

/* The parameters of a statement; the first ones are the address. */
#define MAX_STATEMENT_ARGS 16

typedef struct Arguments
{
	Datum		values[MAX_STATEMENT_ARGS];
	char		nulls[MAX_STATEMENT_ARGS];
	int			shape;			/* which plan they are for */
} Arguments;

/* What set adds to the address. */
enum
{
	SET_UUID = NUM_ADDRESS_ARGS,
	SET_CATEGORY,
	SET_DESCRIPTION,
	SET_VALUE,
	SET_VALUE_TYPE,
	SET_IS_ENCRYPTED,
	SET_NOW,
	SET_ACTOR_FK,
	SET_VALUE_SIZE,
	SET_EXPECTED_ENCRYPTED,
	SET_EXPECTED_VERSION,
	NUM_SET_ARGS
};

/* What list and count add to the extension and scope. */
enum
{
	LIST_CATEGORY = NUM_ADDRESS_ARGS,
	LIST_PREFIX_FIRST,
	LIST_PREFIX_LAST,
	NUM_COUNT_ARGS,
	LIST_LIMIT = NUM_COUNT_ARGS,
	LIST_OFFSET,
	NUM_LIST_ARGS
};

#define ADDRESS_TYPES TEXTOID, TEXTOID, INT4OID, TEXTOID, TEXTOID

static const Oid entry_argtypes[] = {ADDRESS_TYPES, INT8OID};
static const Oid set_argtypes[] = {
	ADDRESS_TYPES, UUIDOID, TEXTOID, TEXTOID, BYTEAOID, TEXTOID, BOOLOID,
	TIMESTAMPOID, INT4OID, INT4OID, BOOLOID, INT8OID
};
static const Oid list_argtypes[] = {
	ADDRESS_TYPES, TEXTOID, TEXTOID, TEXTOID, INT8OID, INT8OID
};

#define ENTRY_COLUMNS \
	"e.key, e.uuid, e.value_type, e.category, e.description," \
	" e.is_encrypted, e.user_fk, e.value_size, e.version, e.created_on," \
	" e.changed_on"
#define NUM_ENTRY_COLUMNS 11
#define ENTRY_IS_ENCRYPTED 5
#define THE_ENTRY " WHERE @scope@ AND e.key" SQL_EQ "$2"

/* $15 and $16 say what the row that is to be replaced must look like. */
#define AS_EXPECTED \
	"($15 IS NULL OR e.is_encrypted" SQL_EQ "$15)" \
	" AND ($16 IS NULL OR e.version" SQL_EQ "$16)"

static Statement get_statement = {
	.sql = "SELECT e.value, e.is_encrypted FROM " SQL_TABLE THE_ENTRY,
	.nargs = NUM_ADDRESS_ARGS, .argtypes = entry_argtypes, .by_index = true
};
static Statement get_entry_statement = {
	.sql = "SELECT " ENTRY_COLUMNS ", e.value FROM " SQL_TABLE THE_ENTRY,
	.nargs = NUM_ADDRESS_ARGS, .argtypes = entry_argtypes, .by_index = true
};
static Statement get_state_statement = {
	.sql = "SELECT e.version, e.is_encrypted FROM " SQL_TABLE THE_ENTRY,
	.nargs = NUM_ADDRESS_ARGS, .argtypes = entry_argtypes, .by_index = true
};
static Statement upsert_statement = {
	.sql = "INSERT INTO " SQL_TABLE
	" (extension_id, key, user_fk, resource_type, resource_uuid, uuid,"
	" category, description, value, value_type, is_encrypted,"
	" created_on, changed_on, created_by_fk, changed_by_fk, value_size)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11,"
	" $12, $12, $13, $13, $14)"
	" ON CONFLICT (extension_id, user_fk, resource_type, resource_uuid, key)"
	" DO UPDATE SET category = excluded.category,"
	" description = excluded.description, value = excluded.value,"
	" value_type = excluded.value_type,"
	" is_encrypted = excluded.is_encrypted,"
	" changed_on = excluded.changed_on,"
	" changed_by_fk = excluded.changed_by_fk,"
	" value_size = excluded.value_size, version = e.version" SQL_PLUS "1"
	" WHERE " AS_EXPECTED
	" RETURNING " ENTRY_COLUMNS,
	.nargs = NUM_SET_ARGS, .argtypes = set_argtypes
};
static Statement update_statement = {
	.sql = "UPDATE " SQL_TABLE
	" SET category = $7, description = $8, value = $9, value_type = $10,"
	" is_encrypted = $11, changed_on = $12, changed_by_fk = $13,"
	" value_size = $14, version = e.version" SQL_PLUS "1"
	THE_ENTRY " AND " AS_EXPECTED
	" RETURNING " ENTRY_COLUMNS,
	.nargs = NUM_SET_ARGS, .argtypes = set_argtypes, .by_index = true
};
static Statement delete_statement = {
	.sql = "DELETE FROM " SQL_TABLE THE_ENTRY
	" AND ($6 IS NULL OR e.version" SQL_EQ "$6)",
	.nargs = NUM_ADDRESS_ARGS + 1, .argtypes = entry_argtypes,
	.by_index = true
};
static Statement list_statement = {
	.sql = "SELECT " ENTRY_COLUMNS " FROM " SQL_TABLE
	" WHERE @scope@ AND e.key" SQL_GT "$2"
	" ORDER BY @order@ LIMIT $9 OFFSET $10",
	.nargs = NUM_LIST_ARGS, .argtypes = list_argtypes, .by_index = true
};
static Statement count_statement = {
	.sql = "SELECT pg_catalog.count(*) FROM " SQL_TABLE " WHERE @scope@",
	.nargs = NUM_COUNT_ARGS, .argtypes = list_argtypes, .by_index = true
};

static int	max_value_size = MAX_VALUE_SIZE;

PG_FUNCTION_INFO_V1(ext_storage_set);
PG_FUNCTION_INFO_V1(ext_storage_set_json);
PG_FUNCTION_INFO_V1(ext_storage_get);
PG_FUNCTION_INFO_V1(ext_storage_get_json);
PG_FUNCTION_INFO_V1(ext_storage_get_entry);
PG_FUNCTION_INFO_V1(ext_storage_delete);
PG_FUNCTION_INFO_V1(ext_storage_list);
PG_FUNCTION_INFO_V1(ext_storage_count);

/*
 * StorageInit
 *		Defines the settings of this module.
 */
void
StorageInit(void)
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

/* Sets a parameter that is not null. */
static inline void
set_value(Arguments *args, int n, Datum value)
{
	args->values[n] = value;
	args->nulls[n] = ' ';
}

/* Sets a parameter to null. */
static inline void
set_null(Arguments *args, int n)
{
	args->values[n] = (Datum) 0;
	args->nulls[n] = 'n';
}

/*
 * TextArgument
 *		Returns a text argument of the call, or NULL if it is null.
 *
 * It must fit a column of max_chars characters (0 = any length).  A required
 * one must be neither null nor empty.
 */
text *
TextArgument(FunctionCallInfo fcinfo, int argno, const char *name,
			 int max_chars, bool required)
{
	text	   *arg;
	int			len;

	if (PG_ARGISNULL(argno))
	{
		if (required)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not be null", name)));
		return NULL;
	}
	arg = PG_GETARG_TEXT_PP(argno);
	len = VARSIZE_ANY_EXHDR(arg);
	if (required && len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", name)));
	if (max_chars > 0 && len > max_chars)
	{
		int			chars = pg_mbstrlen_with_len(VARDATA_ANY(arg), len);

		if (chars > max_chars)
			ereport(ERROR,
					(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
					 errmsg("%s is too long", name),
					 errdetail("It has %d characters, %d are allowed.",
							   chars, max_chars)));
	}
	return arg;
}

/* Takes a text argument of the call as a parameter of a statement. */
static void
text_argument(Arguments *args, int n, FunctionCallInfo fcinfo, int argno,
			  const char *name, int max_chars, bool required)
{
	text	   *arg = TextArgument(fcinfo, argno, name, max_chars, required);

	if (arg == NULL)
		set_null(args, n);
	else
		set_value(args, n, PointerGetDatum(arg));
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
ResourceUuidArgument(FunctionCallInfo fcinfo, int argno)
{
	if (!PG_ARGISNULL(argno))
	{
		text	   *arg = PG_GETARG_TEXT_PP(argno);
		char		canonical[UUID_TEXT_LEN + 1];

		if (CanonicalUuid(VARDATA_ANY(arg), VARSIZE_ANY_EXHDR(arg), canonical))
			return cstring_to_text_with_len(canonical, UUID_TEXT_LEN);
	}
	return TextArgument(fcinfo, argno, "resource_uuid", UUID_TEXT_LEN, true);
}

/* Takes the three arguments that make the scope. */
static void
scope_arguments(Arguments *args, FunctionCallInfo fcinfo, int first)
{
	args->shape = 0;
	if (PG_ARGISNULL(first))
		set_null(args, ARG_USER_FK);
	else
	{
		set_value(args, ARG_USER_FK, PG_GETARG_DATUM(first));
		args->shape |= SHAPE_USER;
	}

	if (PG_ARGISNULL(first + 1) != PG_ARGISNULL(first + 2))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("resource_type and resource_uuid must be given together")));
	if (PG_ARGISNULL(first + 1))
	{
		set_null(args, ARG_RESOURCE_TYPE);
		set_null(args, ARG_RESOURCE_UUID);
	}
	else
	{
		text_argument(args, ARG_RESOURCE_TYPE, fcinfo, first + 1,
					  "resource_type", 64, true);
		set_value(args, ARG_RESOURCE_UUID,
				  PointerGetDatum(ResourceUuidArgument(fcinfo, first + 2)));
		args->shape |= SHAPE_RESOURCE;
	}
}

/* Takes the arguments that address an entry; the scope starts at first. */
static void
address_arguments(Arguments *args, FunctionCallInfo fcinfo, int first)
{
	text_argument(args, ARG_EXTENSION_ID, fcinfo, 0, "extension_id", 255, true);
	text_argument(args, ARG_KEY, fcinfo, 1, "key", MAX_KEY_CHARS, true);
	scope_arguments(args, fcinfo, first);
}

/* Takes if_version; null stands for any version. */
static void
version_argument(Arguments *args, int n, FunctionCallInfo fcinfo, int argno)
{
	if (PG_ARGISNULL(argno))
	{
		set_null(args, n);
		return;
	}
	if (PG_GETARG_INT64(argno) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("if_version must not be negative")));
	set_value(args, n, PG_GETARG_DATUM(argno));
}

/*
 * DescribeEntry
 *		Says in palloc'd memory which entry a message is about.
 *
 * address and nulls are in the order of the ARG_ constants.
 */
char *
DescribeEntry(const Datum *address, const char *nulls)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "key \"%s\" of extension \"%s\"",
					 TextDatumGetCString(address[ARG_KEY]),
					 TextDatumGetCString(address[ARG_EXTENSION_ID]));
	if (nulls[ARG_RESOURCE_TYPE] != 'n')
		appendStringInfo(&buf, " (%s \"%s\"",
						 TextDatumGetCString(address[ARG_RESOURCE_TYPE]),
						 TextDatumGetCString(address[ARG_RESOURCE_UUID]));
	else
		appendStringInfoString(&buf, nulls[ARG_USER_FK] == 'n' ?
							   " (global" : " (");
	if (nulls[ARG_USER_FK] != 'n')
		appendStringInfo(&buf, "%suser %d",
						 nulls[ARG_RESOURCE_TYPE] != 'n' ? ", " : "",
						 DatumGetInt32(address[ARG_USER_FK]));
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/*
 * Decrypts a stored value, in memory of our own, in place.
 */
static bytea *
open_value(const Arguments *args, Datum value)
{
	const Keyring *keyring = KeyringGet();
	bytea	   *opened;

	if (keyring->nkeys == 0)
		ereport(ERROR,
				(errcode(ERRCODE_ES_NO_KEY),
				 errmsg("no encryption key is configured"),
				 errdetail("The value of %s is encrypted.",
						   DescribeEntry(args->values, args->nulls)),
				 errhint("Set extension_storage.encryption_keys_file.")));
	opened = KeyringOpen(keyring, DatumGetByteaP(value), true, NULL, NULL);
	if (opened == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_ES_UNREADABLE),
				 errmsg("value of %s cannot be decrypted",
						DescribeEntry(args->values, args->nulls)),
				 errdetail("None of the configured keys reads the stored token."),
				 errhint("The token is damaged, or the key that made it is missing from the configured keys; ext_storage_verify() lists all such entries.")));
	return opened;
}

/*
 * Encrypts a value into the current memory context.
 */
static bytea *
seal_value(const Arguments *args, const char *data, size_t len)
{
	const Keyring *keyring = KeyringGet();

	if (!keyring->encrypts)
		ereport(ERROR,
				(errcode(ERRCODE_ES_NO_KEY),
				 errmsg("no encryption key is configured"),
				 errdetail("The value of %s is to be encrypted.",
						   DescribeEntry(args->values, args->nulls)),
				 errhint("Set extension_storage.encryption_keys_file.")));
	return KeyringSeal(keyring, data, len, FernetNow());
}

/*
 * Fetches the value of the entry that the call is about, or NULL if there is
 * none.  A value that is not encrypted may be a pointer to its TOAST, as it is
 * in a plain SELECT.
 */
static struct varlena *
fetch_value(FunctionCallInfo fcinfo, const Arguments *args)
{
	Datum		row[2];
	bool		nulls[2];
	MemoryContext context = CurrentMemoryContext;
	bool		found;

	StatementConnect();
	found = StatementFetch(fcinfo, &get_statement, args->shape, args->values,
						   args->nulls, true, context, row, nulls);
	SPI_finish();
	if (!found)
		return NULL;
	return DatumGetBool(row[1]) ? open_value(args, row[0]) :
		(struct varlena *) DatumGetPointer(row[0]);
}

/* Is c a token character of HTTP?  Source: RFC 9110, section 5.6.2. */
static inline bool
is_token_char(char c)
{
	return c > ' ' && c < '\x7f' && strchr("\"(),/:;<=>?@[\\]{}", c) == NULL;
}

/* Skips a token; false if there is none. */
static bool
skip_token(const char **at)
{
	const char *start = *at;

	while (is_token_char(**at))
		(*at)++;
	return *at > start;
}

/* Skips blanks. */
static void
skip_blanks(const char **at)
{
	while (**at == ' ' || **at == '\t')
		(*at)++;
}

/*
 * Checks that text is a MIME type, with or without parameters.  Source: RFC
 * 9110, section 8.3.1 (media-type).
 */
static bool
is_mime_type(const char *text)
{
	if (!skip_token(&text) || *text++ != '/' || !skip_token(&text))
		return false;
	while (*text != '\0')
	{
		skip_blanks(&text);
		if (*text++ != ';')
			return false;
		skip_blanks(&text);
		if (!skip_token(&text) || *text++ != '=')
			return false;
		if (*text != '"')
		{
			if (!skip_token(&text))
				return false;
			continue;
		}
		for (text++; *text != '"'; text++)
		{
			if (*text == '\\')
				text++;
			if ((unsigned char) *text < ' ' || *text == '\x7f')
				return false;
		}
		text++;
	}
	return true;
}

/* Takes value_type. */
static void
value_type_argument(Arguments *args, FunctionCallInfo fcinfo, int argno)
{
	text	   *arg;

	text_argument(args, SET_VALUE_TYPE, fcinfo, argno, "value_type", 255, true);
	arg = DatumGetTextPP(args->values[SET_VALUE_TYPE]);
	if (!is_mime_type(text_to_cstring(arg)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("value_type is not a MIME type"),
				 errdetail("A MIME type is written type/subtype, with or without parameters, for example text/plain; charset=utf-8.")));
}

/*
 * Reports that if_version does not match what is there.
 */
static void
report_version_mismatch(const Arguments *args, int64 expected, bool exists,
						int64 found)
{
	char	   *entry = DescribeEntry(args->values, args->nulls);

	if (exists && expected == 0)
		ereport(ERROR,
				(errcode(ERRCODE_ES_VERSION),
				 errmsg("%s exists already, with version " INT64_FORMAT,
						entry, found)));
	else if (exists)
		ereport(ERROR,
				(errcode(ERRCODE_ES_VERSION),
				 errmsg("%s has version " INT64_FORMAT ", not " INT64_FORMAT,
						entry, found, expected),
				 errhint("Read the entry again and repeat the change on what it is now.")));
	ereport(ERROR,
			(errcode(ERRCODE_ES_VERSION),
			 errmsg("%s does not exist, so it has no version " INT64_FORMAT,
					entry, expected)));
}

/* Looks up the version and encryption of an entry; false if there is none. */
static bool
get_state(FunctionCallInfo fcinfo, const Arguments *args, int64 *version,
		  bool *is_encrypted)
{
	Datum		row[2];
	bool		nulls[2];

	if (!StatementFetch(fcinfo, &get_state_statement, args->shape,
						args->values, args->nulls, false, CurrentMemoryContext,
						row, nulls))
		return false;
	*version = DatumGetInt64(row[0]);
	*is_encrypted = DatumGetBool(row[1]);
	return true;
}

/* Makes the result of a call that returns one entry. */
static Datum
make_entry(FunctionCallInfo fcinfo, Datum *row, bool *nulls)
{
	TupleDesc	tupdesc = lookup_rowtype_tupdesc(get_func_rettype(fcinfo->flinfo->fn_oid), -1);
	HeapTuple	tuple = heap_form_tuple(tupdesc, row, nulls);

	ReleaseTupleDesc(tupdesc);
	return HeapTupleGetDatum(tuple);
}

/*
 * Stores a value: what set and set_json have in common.
 *
 * value is the plaintext as it is to be stored, perhaps still toasted, of size
 * bytes.
 *
 * Where is_encrypted is null, the value must be encrypted if the entry is, and
 * only the statement that replaces the row can tell.  So the first try takes
 * it for not encrypted and replaces no other row; where that finds one, which
 * is locked by then, the value is encrypted and the next try replaces it.
 */
static Datum
store_value(FunctionCallInfo fcinfo, Arguments *args, Datum value, Size size)
{
	MemoryContext caller_context = CurrentMemoryContext;
	bool		keep_encryption = PG_ARGISNULL(9);
	bool		is_encrypted = !keep_encryption && PG_GETARG_BOOL(9);
	bytea	   *sealed = NULL;
	int64		expected;
	Statement  *statement;
	int			shape;
	pg_uuid_t  *uuid = palloc(sizeof(pg_uuid_t));
	Datum		row[NUM_ENTRY_COLUMNS];
	bool		nulls[NUM_ENTRY_COLUMNS];

	if (size > (Size) max_value_size)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("value of %s is too large",
						DescribeEntry(args->values, args->nulls)),
				 errdetail("It has %zu bytes, extension_storage.max_value_size allows %d.",
						   size, max_value_size)));

	value_type_argument(args, fcinfo, 3);
	text_argument(args, SET_CATEGORY, fcinfo, 7, "category", 64, false);
	text_argument(args, SET_DESCRIPTION, fcinfo, 8, "description", 0, false);
	if (PG_ARGISNULL(10))
		set_null(args, SET_ACTOR_FK);
	else
		set_value(args, SET_ACTOR_FK, PG_GETARG_DATUM(10));
	version_argument(args, SET_EXPECTED_VERSION, fcinfo, 11);
	expected = DatumGetInt64(args->values[SET_EXPECTED_VERSION]);

	uuid_generate_random(uuid->data);
	set_value(args, SET_UUID, UUIDPGetDatum(uuid));
	set_value(args, SET_NOW, TimestampGetDatum(GetCurrentTimestamp()));
	set_value(args, SET_VALUE_SIZE, Int32GetDatum((int32) size));

	/*
	 * A version above 0 can only be replaced, anything else may be new.  An
	 * upsert that replaces copies the value twice, so a large one is first
	 * tried as an update, which copies it once.
	 */
	if (expected > 0 ||
		(size >= LARGE_VALUE_SIZE && args->nulls[SET_EXPECTED_VERSION] == 'n'))
	{
		statement = &update_statement;
		shape = args->shape;
	}
	else
	{
		statement = &upsert_statement;
		shape = 0;
	}

	StatementConnect();
	QuotaPrepare(fcinfo, args->values[ARG_EXTENSION_ID]);
	for (;;)
	{
		int64		version = 0;
		bool		found_encrypted = false;
		bool		exists;

		CHECK_FOR_INTERRUPTS();
		if (is_encrypted && sealed == NULL)
		{
			bytea	   *plain = DatumGetByteaPP(value);

			sealed = seal_value(args, VARDATA_ANY(plain),
								VARSIZE_ANY_EXHDR(plain));
			if ((Pointer) plain != DatumGetPointer(value))
				pfree(plain);
		}
		set_value(args, SET_VALUE,
				  is_encrypted ? PointerGetDatum(sealed) : value);
		set_value(args, SET_IS_ENCRYPTED, BoolGetDatum(is_encrypted));
		if (keep_encryption)
			set_value(args, SET_EXPECTED_ENCRYPTED, BoolGetDatum(is_encrypted));
		else
			set_null(args, SET_EXPECTED_ENCRYPTED);
		if (StatementFetch(fcinfo, statement, shape, args->values, args->nulls,
						   false, caller_context, row, nulls))
			break;

		/* not as expected, or gone meanwhile: look, and try again */
		exists = get_state(fcinfo, args, &version, &found_encrypted);
		if (args->nulls[SET_EXPECTED_VERSION] != 'n' &&
			(!exists || version != expected))
			report_version_mismatch(args, expected, exists, version);
		if (keep_encryption)
			is_encrypted = found_encrypted;
		if (!exists)
		{
			statement = &upsert_statement;
			shape = 0;
		}
	}

	SPI_finish();
	return make_entry(fcinfo, row, nulls);
}

/* Raises an error if the value argument is null. */
static void
require_value(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("value must not be null")));
}

/*
 * ext_storage_set(extension_id text, key text, value bytea, value_type text,
 *				   user_fk integer, resource_type text, resource_uuid text,
 *				   category text, description text, is_encrypted boolean,
 *				   actor_fk integer, if_version bigint)
 *		returns ext_storage_entry
 *
 * Makes an entry, or replaces its value, type, category and description.
 */
Datum
ext_storage_set(PG_FUNCTION_ARGS)
{
	Arguments	args;
	Datum		value;

	address_arguments(&args, fcinfo, 4);
	require_value(fcinfo);
	value = PG_GETARG_DATUM(2);
	return store_value(fcinfo, &args, value,
					   toast_raw_datum_size(value) - VARHDRSZ);
}

/*
 * ext_storage_set_json(..., value jsonb, ...) returns ext_storage_entry
 *		The same with the UTF-8 text of a JSON value.
 */
Datum
ext_storage_set_json(PG_FUNCTION_ARGS)
{
	Arguments	args;
	Jsonb	   *json;
	char	   *text;
	size_t		len;
	bytea	   *value;

	address_arguments(&args, fcinfo, 4);
	require_value(fcinfo);
	json = PG_GETARG_JSONB_P(2);
	text = JsonbToCString(NULL, &json->root, VARSIZE(json));
	text = pg_server_to_any(text, strlen(text), PG_UTF8);
	len = strlen(text);
	value = (bytea *) cstring_to_text_with_len(text, len);
	return store_value(fcinfo, &args, PointerGetDatum(value), len);
}

/*
 * ext_storage_get(extension_id text, key text, user_fk integer,
 *				   resource_type text, resource_uuid text) returns bytea
 *		The value of an entry, decrypted; NULL if there is no such entry.
 */
Datum
ext_storage_get(PG_FUNCTION_ARGS)
{
	Arguments	args;
	struct varlena *value;

	address_arguments(&args, fcinfo, 2);
	value = fetch_value(fcinfo, &args);
	if (value == NULL)
		PG_RETURN_NULL();
	PG_RETURN_POINTER(value);
}

/*
 * ext_storage_get_json(extension_id text, key text, user_fk integer,
 *						resource_type text, resource_uuid text) returns jsonb
 *		The value of an entry as JSON; NULL if there is no such entry.
 */
Datum
ext_storage_get_json(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	Arguments	args;
	struct varlena *value;
	char	   *json;
	volatile Datum result = (Datum) 0;

	address_arguments(&args, fcinfo, 2);
	value = fetch_value(fcinfo, &args);
	if (value == NULL)
		PG_RETURN_NULL();
	value = PG_DETOAST_DATUM_PACKED(PointerGetDatum(value));
	json = pnstrdup(VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));

	/* the parser's own messages would quote the value */
	PG_TRY();
	{
		if (strlen(json) != VARSIZE_ANY_EXHDR(value))
			ereport(ERROR, (errcode(ERRCODE_INVALID_JSON_TEXT),
							errmsg("NUL byte")));
		json = pg_any_to_server(json, VARSIZE_ANY_EXHDR(value), PG_UTF8);
		result = DirectFunctionCall1(jsonb_in, CStringGetDatum(json));
	}
	PG_CATCH();
	{
		if (ERRCODE_TO_CATEGORY(geterrcode()) != ERRCODE_DATA_EXCEPTION)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_JSON_TEXT),
				 errmsg("value of %s is not JSON",
						DescribeEntry(args.values, args.nulls)),
				 errhint("ext_storage_get() returns its bytes.")));
	}
	PG_END_TRY();
	PG_RETURN_DATUM(result);
}

/*
 * ext_storage_get_entry(extension_id text, key text, user_fk integer,
 *						 resource_type text, resource_uuid text)
 *		returns the columns of ext_storage_entry and value, one row or none
 */
Datum
ext_storage_get_entry(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Arguments	args;
	Datum		row[NUM_ENTRY_COLUMNS + 1];
	bool		nulls[NUM_ENTRY_COLUMNS + 1];
	MemoryContext context = CurrentMemoryContext;
	bool		found;

	address_arguments(&args, fcinfo, 2);
	InitMaterializedSRF(fcinfo, 0);
	StatementConnect();
	found = StatementFetch(fcinfo, &get_entry_statement, args.shape,
						   args.values, args.nulls, true, context, row, nulls);
	SPI_finish();
	if (found)
	{
		if (DatumGetBool(row[ENTRY_IS_ENCRYPTED]))
			row[NUM_ENTRY_COLUMNS] =
				PointerGetDatum(open_value(&args, row[NUM_ENTRY_COLUMNS]));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row, nulls);
	}
	return (Datum) 0;
}

/*
 * ext_storage_delete(extension_id text, key text, user_fk integer,
 *					  resource_type text, resource_uuid text,
 *					  if_version bigint) returns boolean
 *		Deletes an entry; true if there was one.
 */
Datum
ext_storage_delete(PG_FUNCTION_ARGS)
{
	Arguments	args;
	uint64		ndeleted;

	address_arguments(&args, fcinfo, 2);
	version_argument(&args, NUM_ADDRESS_ARGS, fcinfo, 5);

	StatementConnect();
	QuotaPrepare(fcinfo, args.values[ARG_EXTENSION_ID]);
	ndeleted = StatementRun(fcinfo, &delete_statement, args.shape, args.values,
							args.nulls, false);
	if (ndeleted == 0 && !PG_ARGISNULL(5))
	{
		int64		version = 0;
		bool		is_encrypted;
		bool		exists = get_state(fcinfo, &args, &version, &is_encrypted);

		if (exists || PG_GETARG_INT64(5) != 0)
			report_version_mismatch(&args, PG_GETARG_INT64(5), exists, version);
	}
	SPI_finish();
	PG_RETURN_BOOL(ndeleted > 0);
}

/*
 * Takes category and key_prefix of list and count.
 *
 * Keys are compared byte by byte.  No key is longer than MAX_KEY_CHARS, so the
 * prefix followed by that many of the highest bytes is above all keys that
 * start with it.
 */
static void
filter_arguments(Arguments *args, FunctionCallInfo fcinfo, int category,
				 int key_prefix)
{
	text_argument(args, LIST_CATEGORY, fcinfo, category, "category", 64, false);
	if (!PG_ARGISNULL(category))
		args->shape |= SHAPE_CATEGORY;

	text_argument(args, LIST_PREFIX_FIRST, fcinfo, key_prefix, "key_prefix",
				  MAX_KEY_CHARS, false);
	set_null(args, LIST_PREFIX_LAST);
	if (!PG_ARGISNULL(key_prefix))
	{
		text	   *prefix = DatumGetTextPP(args->values[LIST_PREFIX_FIRST]);
		int			len = VARSIZE_ANY_EXHDR(prefix);
		int			fill = MAX_KEY_CHARS * MAX_MULTIBYTE_CHAR_LEN;
		text	   *last = palloc(VARHDRSZ + len + fill);

		SET_VARSIZE(last, VARHDRSZ + len + fill);
		memcpy(VARDATA(last), VARDATA_ANY(prefix), len);
		memset(VARDATA(last) + len, 0xFF, fill);
		set_value(args, LIST_PREFIX_LAST, PointerGetDatum(last));
		args->shape |= SHAPE_PREFIX;
	}
}

/*
 * ext_storage_list(extension_id text, user_fk integer, resource_type text,
 *					resource_uuid text, category text, page integer,
 *					page_size integer, key_prefix text, after_key text)
 *		returns setof ext_storage_entry
 *
 * One page of the entries of a scope, by key in byte order.  Reads no value.
 */
Datum
ext_storage_list(PG_FUNCTION_ARGS)
{
	Arguments	args;
	int64		page;
	int64		page_size;

	text_argument(&args, ARG_EXTENSION_ID, fcinfo, 0, "extension_id", 255, true);
	scope_arguments(&args, fcinfo, 1);
	if (PG_ARGISNULL(5) || PG_ARGISNULL(6))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null",
						PG_ARGISNULL(5) ? "page" : "page_size")));
	page = PG_GETARG_INT32(5);
	page_size = PG_GETARG_INT32(6);
	if (page < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("page must not be negative")));
	if (page_size < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("page_size must be at least 1")));
	filter_arguments(&args, fcinfo, 4, 7);
	text_argument(&args, ARG_KEY, fcinfo, 8, "after_key", MAX_KEY_CHARS, false);
	if (PG_ARGISNULL(8))
		set_value(&args, ARG_KEY, PointerGetDatum(cstring_to_text("")));
	set_value(&args, LIST_LIMIT, Int64GetDatum(page_size));
	set_value(&args, LIST_OFFSET, Int64GetDatum(page * page_size));

	InitMaterializedSRF(fcinfo, 0);
	StatementConnect();
	StatementReturn(fcinfo, &list_statement, args.shape, args.values,
					args.nulls);
	SPI_finish();
	return (Datum) 0;
}

/*
 * ext_storage_count(extension_id text, user_fk integer, resource_type text,
 *					 resource_uuid text, category text, key_prefix text)
 *		returns bigint
 *
 * The number of the entries of a scope.  Reads no value.
 */
Datum
ext_storage_count(PG_FUNCTION_ARGS)
{
	Arguments	args;
	Datum		row[1];
	bool		nulls[1];

	text_argument(&args, ARG_EXTENSION_ID, fcinfo, 0, "extension_id", 255, true);
	scope_arguments(&args, fcinfo, 1);
	filter_arguments(&args, fcinfo, 4, 5);
	set_null(&args, ARG_KEY);

	StatementConnect();
	(void) StatementFetch(fcinfo, &count_statement, args.shape, args.values,
						  args.nulls, true, CurrentMemoryContext, row, nulls);
	SPI_finish();
	return row[0];
}
