/* extension_storage--1.1--1.2.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION extension_storage UPDATE TO '1.2'" to load this file. \quit

-- Functions and triggers of the table: section "table".

-- Keys and rotation: section "keys".

-- Rotation, key_status and verify walk the encrypted rows of an extension by
-- id.  The index is small, as only these rows are in it; writers wait while it
-- is made.
CREATE INDEX ix_extension_storage_encrypted ON @extschema@.extension_storage
    (extension_id, id) WHERE is_encrypted;

CREATE VIEW @extschema@.ext_storage_secrets AS
    SELECT NULL::pg_catalog.bytea AS encryption_keys,
           NULL::pg_catalog.bytea AS secret_key,
           NULL::pg_catalog.bytea AS previous_secret_key,
           NULL::pg_catalog.bool AS for_session
    WHERE false;
REVOKE ALL ON TABLE @extschema@.ext_storage_secrets FROM PUBLIC;
REVOKE ALL ON TYPE @extschema@.ext_storage_secrets FROM PUBLIC;
COMMENT ON VIEW @extschema@.ext_storage_secrets IS
    'Takes secrets, as UTF-8, by COPY ... FROM STDIN (FORMAT binary), so that they are in no statement; the settings of these names have them until the transaction or the session ends';

CREATE FUNCTION @extschema@.ext_storage_secrets_insert()
RETURNS trigger
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_secrets_insert() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_secrets_insert() IS
    'Trigger: puts the secrets of a row in force';

CREATE TRIGGER ext_storage_secrets_insert
    INSTEAD OF INSERT ON @extschema@.ext_storage_secrets
    FOR EACH ROW EXECUTE FUNCTION @extschema@.ext_storage_secrets_insert();

-- The holder of the table can hand over secrets, and grant that.
DO $holder$
BEGIN
    EXECUTE pg_catalog.format(
        'GRANT INSERT ON TABLE %s.ext_storage_secrets TO %s WITH GRANT OPTION',
        '@extschema@', (
            SELECT relowner::pg_catalog.regrole FROM pg_catalog.pg_class
            WHERE oid OPERATOR(pg_catalog.=) '@extschema@.extension_storage'::pg_catalog.regclass));
END
$holder$;

-- As in 1.1, with the functions that are new, and the view.
CREATE OR REPLACE FUNCTION @extschema@.ext_storage_grant(role regrole, level text)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    levels CONSTANT text[] := ARRAY['read', 'write', 'admin'];
    granted integer;
    rights text;
    member regprocedure;
BEGIN
    IF role IS NULL OR level IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = 'role and level must not be null';
    END IF;
    granted := array_position(levels, level);
    IF granted IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('invalid level "%s"', level),
            HINT = 'Levels are read, write and admin.';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE oid = role) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = format('role %s does not exist', role);
    END IF;

    IF NOT has_schema_privilege(role, '@extschema@'::regnamespace, 'USAGE') THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %s TO %s', '@extschema@', role);
    END IF;
    rights := CASE WHEN granted = 1 THEN 'SELECT'
                   ELSE 'SELECT, INSERT, UPDATE, DELETE' END;
    EXECUTE format('GRANT %s ON TABLE %s.extension_storage TO %s', rights, '@extschema@', role);
    EXECUTE format('GRANT USAGE ON TYPE %s.ext_storage_entry TO %s', '@extschema@', role);
    EXECUTE format('GRANT INSERT ON TABLE %s.ext_storage_secrets TO %s', '@extschema@', role);
    FOR member IN
        SELECT p.oid
        FROM pg_proc p
        JOIN (VALUES
            ('ext_storage_get', 1), ('ext_storage_get_json', 1),
            ('ext_storage_get_entry', 1), ('ext_storage_list', 1),
            ('ext_storage_count', 1), ('ext_storage_usage', 1),
            ('ext_storage_configured_keys', 1),
            ('ext_storage_get_many', 1), ('ext_storage_list_newest', 1),
            ('ext_storage_list_values', 1), ('ext_storage_set_many', 2),
            ('ext_storage_delete_many', 2), ('ext_storage_delete_prefix', 2),
            ('ext_storage_rename', 2),
            ('ext_storage_set', 2), ('ext_storage_set_json', 2),
            ('ext_storage_delete', 2), ('ext_storage_purge_extension', 2),
            ('ext_storage_purge_user', 2), ('ext_storage_purge_resource', 2),
            ('ext_storage_rotate_keys', 3), ('ext_storage_key_status', 3),
            ('ext_storage_verify', 3)) AS f (name, level)
            ON p.proname = f.name AND f.level <= granted
        JOIN pg_depend d ON d.classid = 'pg_proc'::regclass
            AND d.objid = p.oid AND d.deptype = 'e'
        JOIN pg_extension x ON x.oid = d.refobjid
            AND x.extname = 'extension_storage'
    LOOP
        EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %s', member, role);
        IF NOT has_function_privilege(role, member, 'EXECUTE') THEN
            RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
                MESSAGE = format('no right to grant EXECUTE on %s', member),
                HINT = 'The role that holds the extension, or a superuser, may grant.';
        END IF;
    END LOOP;
    IF NOT has_schema_privilege(role, '@extschema@'::regnamespace, 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'no right to grant USAGE on schema @extschema@',
            HINT = format('Let the owner of the schema run: GRANT USAGE ON SCHEMA %s TO %s', '@extschema@', role);
    END IF;
END
$$;

-- The column source comes last.  The function is changed in place: DROP
-- FUNCTION would lose the rights to it, and fail where a view uses it.
UPDATE pg_catalog.pg_proc SET
    proallargtypes = proallargtypes
        OPERATOR(pg_catalog.||) 'pg_catalog.text'::pg_catalog.regtype::pg_catalog.oid,
    proargmodes = proargmodes OPERATOR(pg_catalog.||) 't'::pg_catalog."char",
    proargnames = proargnames OPERATOR(pg_catalog.||) 'source'::pg_catalog.text
WHERE oid OPERATOR(pg_catalog.=) '@extschema@.ext_storage_key_status()'::pg_catalog.regprocedure;

-- It takes a snapshot of its own, which a parallel query does not allow.
ALTER FUNCTION @extschema@.ext_storage_key_status() PARALLEL UNSAFE;

CREATE FUNCTION @extschema@.ext_storage_configured_keys()
RETURNS TABLE (ordinal integer, fingerprint text, role text, source text)
AS 'MODULE_PATHNAME', 'ext_storage_configured_keys'
LANGUAGE C STABLE PARALLEL RESTRICTED ROWS 2;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_configured_keys() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_configured_keys() IS
    'Which keys the session has, and where each comes from';

-- Quota and life cycle: section "life cycle".

-- Lists with values, several keys at once, rename, moving in: section "batches".

-- For lists with the newest change first.  Without resource_type, like the
-- index by category; an entry without a time comes last.
CREATE INDEX ix_extension_storage_changed ON @extschema@.extension_storage
    (extension_id, user_fk, resource_uuid,
     (COALESCE(changed_on, '-infinity'::pg_catalog.timestamp)), key);

CREATE FUNCTION @extschema@.ext_storage_list_newest(extension_id text,
    user_fk integer DEFAULT NULL, resource_type text DEFAULT NULL,
    resource_uuid text DEFAULT NULL, category text DEFAULT NULL,
    page integer DEFAULT 0, page_size integer DEFAULT 25,
    key_prefix text DEFAULT NULL,
    after_changed_on timestamp without time zone DEFAULT NULL,
    after_key text DEFAULT NULL)
RETURNS SETOF @extschema@.ext_storage_entry
AS 'MODULE_PATHNAME', 'ext_storage_list_newest'
LANGUAGE C STABLE PARALLEL RESTRICTED COST 1000 ROWS 25;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_list_newest(text, integer, text, text, text,
    integer, integer, text, timestamp without time zone, text) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_list_newest(text, integer, text, text, text,
    integer, integer, text, timestamp without time zone, text) IS
    'One page of the entries of a scope, the newest change first, without their values';

CREATE FUNCTION @extschema@.ext_storage_list_values(extension_id text,
    user_fk integer DEFAULT NULL, resource_type text DEFAULT NULL,
    resource_uuid text DEFAULT NULL, category text DEFAULT NULL,
    key_prefix text DEFAULT NULL, after_key text DEFAULT NULL,
    page_size integer DEFAULT 25, max_bytes integer DEFAULT 1048576,
    newest_first boolean DEFAULT false,
    after_changed_on timestamp without time zone DEFAULT NULL,
    page integer DEFAULT 0)
RETURNS TABLE (key text, uuid uuid, value_type text, category text,
    description text, is_encrypted boolean, user_fk integer,
    value_size integer, version bigint, created_on timestamp without time zone,
    changed_on timestamp without time zone, value bytea, problem text)
AS 'MODULE_PATHNAME', 'ext_storage_list_values'
LANGUAGE C STABLE PARALLEL RESTRICTED COST 2000 ROWS 25;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_list_values(text, integer, text, text, text,
    text, text, integer, integer, boolean, timestamp without time zone, integer) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_list_values(text, integer, text, text, text,
    text, text, integer, integer, boolean, timestamp without time zone, integer) IS
    'One page of the entries of a scope with their values, at most max_bytes of them, but at least one entry';

CREATE FUNCTION @extschema@.ext_storage_get_many(extension_id text, keys text[],
    user_fk integer DEFAULT NULL, resource_type text DEFAULT NULL,
    resource_uuid text DEFAULT NULL)
RETURNS TABLE (key text, uuid uuid, value_type text, category text,
    description text, is_encrypted boolean, user_fk integer,
    value_size integer, version bigint, created_on timestamp without time zone,
    changed_on timestamp without time zone, value bytea, problem text)
AS 'MODULE_PATHNAME', 'ext_storage_get_many'
LANGUAGE C STABLE PARALLEL RESTRICTED COST 2000 ROWS 10;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_get_many(text, text[], integer, text, text) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_get_many(text, text[], integer, text, text) IS
    'Those entries of several keys that there are, with their values, in the order of the keys';

CREATE FUNCTION @extschema@.ext_storage_set_many(extension_id text, keys text[], new_values bytea[],
    value_types text[] DEFAULT NULL,
    user_fk integer DEFAULT NULL, resource_type text DEFAULT NULL,
    resource_uuid text DEFAULT NULL, categories text[] DEFAULT NULL,
    descriptions text[] DEFAULT NULL, is_encrypted boolean[] DEFAULT NULL,
    actor_fk integer DEFAULT NULL, if_versions bigint[] DEFAULT NULL)
RETURNS SETOF @extschema@.ext_storage_entry
AS 'MODULE_PATHNAME', 'ext_storage_set_many'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 2000 ROWS 10;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_set_many(text, text[], bytea[], text[], integer, text, text,
    text[], text[], boolean[], integer, bigint[]) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_set_many(text, text[], bytea[], text[], integer, text, text,
    text[], text[], boolean[], integer, bigint[]) IS
    'Makes or replaces several entries of a scope, all or none';

CREATE FUNCTION @extschema@.ext_storage_delete_many(extension_id text, keys text[],
    user_fk integer DEFAULT NULL, resource_type text DEFAULT NULL,
    resource_uuid text DEFAULT NULL, if_versions bigint[] DEFAULT NULL)
RETURNS TABLE (key text, deleted boolean)
AS 'MODULE_PATHNAME', 'ext_storage_delete_many'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 2000 ROWS 10;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_delete_many(text, text[], integer, text, text, bigint[]) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_delete_many(text, text[], integer, text, text, bigint[]) IS
    'Deletes several entries of a scope, all or none; returns which of them there were';

CREATE FUNCTION @extschema@.ext_storage_delete_prefix(extension_id text, key_prefix text,
    user_fk integer DEFAULT NULL, resource_type text DEFAULT NULL,
    resource_uuid text DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'ext_storage_delete_prefix'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_delete_prefix(text, text, integer, text, text) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_delete_prefix(text, text, integer, text, text) IS
    'Deletes the entries of a scope whose keys start with a prefix; returns how many';

CREATE FUNCTION @extschema@.ext_storage_rename(extension_id text, key text, new_key text,
    user_fk integer DEFAULT NULL, resource_type text DEFAULT NULL,
    resource_uuid text DEFAULT NULL, if_version bigint DEFAULT NULL,
    actor_fk integer DEFAULT NULL)
RETURNS @extschema@.ext_storage_entry
AS 'MODULE_PATHNAME', 'ext_storage_rename'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_rename(text, text, text, integer, text, text, bigint, integer) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_rename(text, text, text, integer, text, text, bigint, integer) IS
    'Gives an entry another key in its scope; NULL if there is no such entry';

CREATE PROCEDURE @extschema@.ext_storage_move_in(source regclass,
    batch_size integer DEFAULT 500, dry_run boolean DEFAULT false,
    INOUT scanned bigint DEFAULT NULL, INOUT moved bigint DEFAULT NULL,
    INOUT present bigint DEFAULT NULL, INOUT duplicates bigint DEFAULT NULL,
    INOUT unreadable bigint DEFAULT NULL, INOUT failed bigint DEFAULT NULL)
AS 'MODULE_PATHNAME', 'ext_storage_move_in'
LANGUAGE C;
REVOKE ALL ON PROCEDURE @extschema@.ext_storage_move_in(regclass, integer, boolean, bigint, bigint,
    bigint, bigint, bigint, bigint) FROM PUBLIC;
COMMENT ON PROCEDURE @extschema@.ext_storage_move_in(regclass, integer, boolean, bigint, bigint,
    bigint, bigint, bigint, bigint) IS
    'Takes over a table of Superset''s first implementation, in batches that it commits';

-- Rights of the holder: section "rights", always last.

-- The holder of the extension has on what is new what it has on the rest.
-- Nothing is granted again: that would make rights that others were given
-- since part of the extension, and they would be missing from dumps.
DO $holder$
DECLARE
    holder pg_catalog.regrole;
    member pg_catalog.regprocedure;
BEGIN
    SELECT relowner INTO STRICT holder FROM pg_catalog.pg_class
    WHERE oid OPERATOR(pg_catalog.=) '@extschema@.extension_storage'::pg_catalog.regclass;
    FOR member IN
        SELECT d.objid
        FROM pg_catalog.pg_depend d
        JOIN pg_catalog.pg_extension x ON x.oid OPERATOR(pg_catalog.=) d.refobjid
        WHERE x.extname OPERATOR(pg_catalog.=) 'extension_storage'
            AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
            AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
            AND d.deptype OPERATOR(pg_catalog.=) 'e'
            AND NOT pg_catalog.has_function_privilege(
                holder, d.objid, 'EXECUTE WITH GRANT OPTION')
    LOOP
        EXECUTE pg_catalog.format(
            'GRANT EXECUTE ON ROUTINE %s TO %s WITH GRANT OPTION', member, holder);
    END LOOP;
END
$holder$;
