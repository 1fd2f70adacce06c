/*-------------------------------------------------------------------------
 *
 * entry.h
 *	  How an entry is addressed, checked and named.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ENTRY_H
#define ENTRY_H

#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "statement.h"

/* The longest that fits the table, in characters. */
#define MAX_EXTENSION_ID_CHARS 255
#define MAX_KEY_CHARS 255
#define MAX_RESOURCE_TYPE_CHARS 64
#define MAX_RESOURCE_UUID_CHARS 36
#define MAX_CATEGORY_CHARS 64
#define MAX_DESCRIPTION_CHARS 65535
#define MAX_VALUE_TYPE_CHARS 255

/* The most that extension_storage.max_value_size can allow, in bytes. */
#define MAX_VALUE_SIZE 16777215

#define UUID_TEXT_LEN 36

/* An argument of an SQL function. */
typedef struct ArgumentInfo
{
	const char *name;
	Oid			type;
	int			max_chars;		/* of a text, 0 if it is none */
	bool		required;		/* a text is not empty, and what
								 * RequireArgument is called for is not null */
} ArgumentInfo;

/* What keeps a text from being stored. */
typedef enum TextFault
{
	TEXT_FITS,
	TEXT_IS_NULL,
	TEXT_IS_EMPTY,
	TEXT_IS_TOO_LONG
} TextFault;

/*
 * The arguments that address an entry, whose columns are also the first
 * parameters of the statements about it.
 */
typedef enum AddressParam
{
	PARAM_EXTENSION_ID,
	PARAM_KEY,
	PARAM_USER_FK,
	PARAM_RESOURCE_TYPE,
	PARAM_RESOURCE_UUID,
	NUM_ADDRESS_PARAMS
} AddressParam;

#define ADDRESS_PARAMS \
	[PARAM_EXTENSION_ID] = {"extension_id", TEXTOID}, \
	[PARAM_KEY] = {"key", TEXTOID}, \
	[PARAM_USER_FK] = {"user_fk", INT4OID}, \
	[PARAM_RESOURCE_TYPE] = {"resource_type", TEXTOID}, \
	[PARAM_RESOURCE_UUID] = {"resource_uuid", TEXTOID}

#define ADDRESS_COLUMNS(user_type) \
	[PARAM_EXTENSION_ID] = {"extension_id", TEXTOID, NOT_NULL}, \
	[PARAM_KEY] = {"key", TEXTOID, NOT_NULL}, \
	[PARAM_USER_FK] = {"user_fk", user_type, NULLABLE}, \
	[PARAM_RESOURCE_TYPE] = {"resource_type", TEXTOID, NULLABLE}, \
	[PARAM_RESOURCE_UUID] = {"resource_uuid", TEXTOID, NULLABLE}

/*
 * The same as the first arguments of a function: those of an entry, and those
 * of a scope.
 */
enum
{
	ADDRESS_ARG_EXTENSION_ID,
	ADDRESS_ARG_KEY,
	ADDRESS_ARG_USER_FK,
	ADDRESS_ARG_RESOURCE_TYPE,
	ADDRESS_ARG_RESOURCE_UUID,
	NUM_ADDRESS_ARGS
};

enum
{
	SCOPE_ARG_EXTENSION_ID,
	SCOPE_ARG_USER_FK,
	SCOPE_ARG_RESOURCE_TYPE,
	SCOPE_ARG_RESOURCE_UUID,
	NUM_SCOPE_ARGS
};

#define ADDRESS_ARGUMENTS \
	[ADDRESS_ARG_EXTENSION_ID] = {"extension_id", TEXTOID, MAX_EXTENSION_ID_CHARS, true}, \
	[ADDRESS_ARG_KEY] = {"key", TEXTOID, MAX_KEY_CHARS, true}, \
	[ADDRESS_ARG_USER_FK] = {"user_fk", INT4OID, 0, false}, \
	[ADDRESS_ARG_RESOURCE_TYPE] = {"resource_type", TEXTOID, MAX_RESOURCE_TYPE_CHARS, true}, \
	[ADDRESS_ARG_RESOURCE_UUID] = {"resource_uuid", TEXTOID, MAX_RESOURCE_UUID_CHARS, true}

/* With an array of keys in the place of the key. */
#define KEYS_ARGUMENTS \
	[ADDRESS_ARG_EXTENSION_ID] = {"extension_id", TEXTOID, MAX_EXTENSION_ID_CHARS, true}, \
	[ADDRESS_ARG_KEY] = {"keys", TEXTARRAYOID, 0, true}, \
	[ADDRESS_ARG_USER_FK] = {"user_fk", INT4OID, 0, false}, \
	[ADDRESS_ARG_RESOURCE_TYPE] = {"resource_type", TEXTOID, MAX_RESOURCE_TYPE_CHARS, true}, \
	[ADDRESS_ARG_RESOURCE_UUID] = {"resource_uuid", TEXTOID, MAX_RESOURCE_UUID_CHARS, true}

#define SCOPE_ARGUMENTS \
	[SCOPE_ARG_EXTENSION_ID] = {"extension_id", TEXTOID, MAX_EXTENSION_ID_CHARS, true}, \
	[SCOPE_ARG_USER_FK] = {"user_fk", INT4OID, 0, false}, \
	[SCOPE_ARG_RESOURCE_TYPE] = {"resource_type", TEXTOID, MAX_RESOURCE_TYPE_CHARS, true}, \
	[SCOPE_ARG_RESOURCE_UUID] = {"resource_uuid", TEXTOID, MAX_RESOURCE_UUID_CHARS, true}

/* The positions of a function's arguments that address an entry. */
typedef struct AddressArguments
{
	int			at[NUM_ADDRESS_PARAMS]; /* -1 for one that it does not have */
} AddressArguments;

/* An entry without its value: the columns of ext_storage_entry. */
typedef enum EntryColumn
{
	ENTRY_KEY,
	ENTRY_UUID,
	ENTRY_VALUE_TYPE,
	ENTRY_CATEGORY,
	ENTRY_DESCRIPTION,
	ENTRY_IS_ENCRYPTED,
	ENTRY_USER_FK,
	ENTRY_VALUE_SIZE,
	ENTRY_VERSION,
	ENTRY_CREATED_ON,
	ENTRY_CHANGED_ON,
	NUM_ENTRY_COLUMNS
} EntryColumn;

#define ENTRY_COLUMNS \
	[ENTRY_KEY] = {"key", TEXTOID, NOT_NULL}, \
	[ENTRY_UUID] = {"uuid", UUIDOID, NOT_NULL}, \
	[ENTRY_VALUE_TYPE] = {"value_type", TEXTOID, NOT_NULL}, \
	[ENTRY_CATEGORY] = {"category", TEXTOID, NULLABLE}, \
	[ENTRY_DESCRIPTION] = {"description", TEXTOID, NULLABLE}, \
	[ENTRY_IS_ENCRYPTED] = {"is_encrypted", BOOLOID, NOT_NULL}, \
	[ENTRY_USER_FK] = {"user_fk", INT4OID, NULLABLE}, \
	[ENTRY_VALUE_SIZE] = {"value_size", INT4OID, NULLABLE}, \
	[ENTRY_VERSION] = {"version", INT8OID, NOT_NULL}, \
	[ENTRY_CREATED_ON] = {"created_on", TIMESTAMPOID, NULLABLE}, \
	[ENTRY_CHANGED_ON] = {"changed_on", TIMESTAMPOID, NULLABLE}

extern int	max_value_size;

extern const StatementColumn entry_columns[NUM_ENTRY_COLUMNS];

extern const AddressArguments entry_address;
extern const AddressArguments keys_address;
extern const AddressArguments scope_address;

/*
 * Bits of a plan's shape: what the condition on the scope asks for beside the
 * extension.
 */
#define SHAPE_USER 1			/* user_fk = $user_fk, else IS NULL */
#define SHAPE_RESOURCE 2		/* the resource, else IS NULL */
#define SHAPE_CATEGORY 4		/* category = $category */
#define SHAPE_PREFIX 8			/* $prefix_first <= key <= $prefix_last */

/* For @scope@ and @order@, see ExpandScope. */
#define THE_ENTRY " WHERE @scope@ AND e.key" SQL_EQ "$key"

/*
 * A new row, unless the address has one, and a new value of an old one; the rest
 * are parameters.
 */
#define INSERT_ENTRY(uuid, created_on, changed_on, created_by, changed_by) \
	"INSERT INTO " SQL_TABLE \
	" (extension_id, key, user_fk, resource_type, resource_uuid, uuid," \
	" category, description, value, value_type, is_encrypted," \
	" created_on, changed_on, created_by_fk, changed_by_fk, value_size)" \
	" VALUES ($extension_id, $key, $user_fk, $resource_type, $resource_uuid, " \
	uuid ", $category, $description, $value, $value_type, $is_encrypted, " \
	created_on ", " changed_on ", " created_by ", " changed_by ", $value_size)" \
	" ON CONFLICT (extension_id, user_fk, resource_type, resource_uuid, key)" \
	" DO NOTHING"
#define UPDATE_ENTRY(changed_on, changed_by) \
	"UPDATE " SQL_TABLE \
	" SET category = $category, description = $description, value = $value," \
	" value_type = $value_type, is_encrypted = $is_encrypted," \
	" changed_on = " changed_on ", changed_by_fk = " changed_by "," \
	" value_size = $value_size, version = e.version" SQL_PLUS "1" THE_ENTRY

/*
 * Where the values of a row are in arrays: $ids is sorted.  A join with the
 * arrays would leave the planner the choice of going through all of them for
 * each row.
 */
#define ITS_PLACE "[pg_catalog.width_bucket(CAST(e.id AS pg_catalog.int8), $ids)]"

/* How many keys one call can name in an array. */
#define MAX_KEYS 1000

extern void EntryInit(void);
extern void AssertArguments(FunctionCallInfo fcinfo,
							const ArgumentInfo *arguments, int narguments);
extern void AssertResult(TupleDesc tupdesc, const StatementColumn *columns,
						 int ncolumns);
extern TextFault FindTextFault(const text *value, int max_chars, bool required,
							   int *nchars);
extern void CheckText(const text *value, const char *name, int max_chars,
					  bool required);
extern text *TextArgument(FunctionCallInfo fcinfo,
						  const ArgumentInfo *arguments, int argno);
extern void RequireArgument(FunctionCallInfo fcinfo,
							const ArgumentInfo *arguments, int argno);
extern void ValueParam(StatementArgs *args, int param, FunctionCallInfo fcinfo,
					   const ArgumentInfo *arguments, int argno);
extern void TextParam(StatementArgs *args, int param, FunctionCallInfo fcinfo,
					  const ArgumentInfo *arguments, int argno);
extern text *ResourceUuidArgument(FunctionCallInfo fcinfo,
								  const ArgumentInfo *arguments, int argno);
extern void AddressParams(StatementArgs *args, FunctionCallInfo fcinfo,
						  const ArgumentInfo *arguments,
						  const AddressArguments *address);
extern bool ExpandScope(StringInfo sql, const char *placeholder, int shape);
extern Datum PrefixLast(text *prefix);
extern int	CompareTexts(const text *a, const text *b);
extern int	ArrayArgument(FunctionCallInfo fcinfo,
						  const ArgumentInfo *arguments, int argno, Oid type,
						  Datum **elements, bool **nulls);
extern int	KeysArgument(FunctionCallInfo fcinfo,
						 const ArgumentInfo *arguments, int argno,
						 Datum **keys);
extern bool CanonicalUuid(const char *text, int len, char *canonical);
extern char *DescribeEntry(const Datum *address, const char *nulls);
extern void RequireKey(const StatementArgs *args, bool there_is,
					   const char *needed);

/* The arguments of a function, in an array whose places an enum names. */
#define CheckArguments(fcinfo, arguments, count) \
	AssertArguments(fcinfo, arguments, NUMBER_OF(arguments, count))

/* The same of the columns that it returns. */
#define CheckResult(tupdesc, columns, count) \
	AssertResult(tupdesc, columns, NUMBER_OF(columns, count))

/*
 * ArgumentValue
 *		Returns an argument that is not null, and must be declared with the type
 *		that the caller reads it as.
 */
static inline Datum
ArgumentValue(FunctionCallInfo fcinfo,
			  const ArgumentInfo *arguments pg_attribute_unused(), int argno,
			  Oid type pg_attribute_unused())
{
	Assert(argno < PG_NARGS() && arguments[argno].type == type);
	return PG_GETARG_DATUM(argno);
}

#endif							/* ENTRY_H */
