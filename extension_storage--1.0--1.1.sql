/* extension_storage--1.0--1.1.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION extension_storage UPDATE TO '1.1'" to load this file. \quit

-- For the purges by user and by resource.
CREATE INDEX ix_extension_storage_user ON @extschema@.extension_storage
    (user_fk) WHERE user_fk IS NOT NULL;
CREATE INDEX ix_extension_storage_resource ON @extschema@.extension_storage
    (resource_type, resource_uuid) WHERE resource_type IS NOT NULL;

-- Derived data, and so not dumped: the first write under a quota fills it.
CREATE TABLE @extschema@.extension_storage_usage (
    extension_id varchar(255) COLLATE pg_catalog."C" NOT NULL
        CONSTRAINT extension_storage_usage_pkey PRIMARY KEY,
    value_bytes bigint NOT NULL
);
REVOKE ALL ON TABLE @extschema@.extension_storage_usage FROM PUBLIC;
COMMENT ON TABLE @extschema@.extension_storage_usage IS
    'Bytes that each extension stores, kept while the triggers extension_storage_count_rows and extension_storage_count are enabled';
COMMENT ON COLUMN @extschema@.extension_storage_usage.extension_id IS
    'The extension, as publisher.name';
COMMENT ON COLUMN @extschema@.extension_storage_usage.value_bytes IS
    'Bytes of its values before encryption';

CREATE FUNCTION @extschema@.ext_storage_count_rows() RETURNS trigger
AS 'MODULE_PATHNAME', 'ext_storage_count_rows'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_count_rows() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_count_rows() IS
    'Trigger: adds up the bytes that a statement changes';

CREATE FUNCTION @extschema@.ext_storage_count_statement() RETURNS trigger
AS 'MODULE_PATHNAME', 'ext_storage_count_statement'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_count_statement() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_count_statement() IS
    'Trigger: writes the bytes that a statement has changed and checks the quota';

CREATE TRIGGER extension_storage_count_rows
    AFTER INSERT OR UPDATE OR DELETE ON @extschema@.extension_storage
    FOR EACH ROW EXECUTE FUNCTION @extschema@.ext_storage_count_rows();
CREATE TRIGGER extension_storage_count
    AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON @extschema@.extension_storage
    FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.ext_storage_count_statement();
ALTER TABLE @extschema@.extension_storage
    DISABLE TRIGGER extension_storage_count_rows,
    DISABLE TRIGGER extension_storage_count;
COMMENT ON TRIGGER extension_storage_count_rows ON @extschema@.extension_storage IS
    'Counts bytes for the quota; disabled until the first write under one';
COMMENT ON TRIGGER extension_storage_count ON @extschema@.extension_storage IS
    'Checks the quota; disabled until the first write under one';

CREATE FUNCTION @extschema@.ext_storage_usage()
RETURNS TABLE (extension_id text, entries bigint, encrypted_entries bigint,
    value_bytes bigint, quota_bytes bigint)
AS 'MODULE_PATHNAME', 'ext_storage_usage'
LANGUAGE C STABLE PARALLEL RESTRICTED;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_usage() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_usage() IS
    'What each extension stores, and its quota (0 = none)';

CREATE FUNCTION @extschema@.ext_storage_purge_extension(extension_id text)
RETURNS bigint
AS 'MODULE_PATHNAME', 'ext_storage_purge_extension'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_purge_extension(text) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_purge_extension(text) IS
    'Deletes all entries of an extension; returns how many';

CREATE FUNCTION @extschema@.ext_storage_purge_user(user_fk integer)
RETURNS bigint
AS 'MODULE_PATHNAME', 'ext_storage_purge_user'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_purge_user(integer) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_purge_user(integer) IS
    'Deletes all that is private to a user; returns how many entries';

CREATE FUNCTION @extschema@.ext_storage_purge_resource(resource_type text, resource_uuid text)
RETURNS bigint
AS 'MODULE_PATHNAME', 'ext_storage_purge_resource'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_purge_resource(text, text) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_purge_resource(text, text) IS
    'Deletes all that belongs to a resource; returns how many entries';

CREATE FUNCTION @extschema@.ext_storage_users_deleted() RETURNS trigger
AS 'MODULE_PATHNAME', 'ext_storage_users_deleted'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_users_deleted() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_users_deleted() IS
    'Trigger: purges what was private to deleted users';

CREATE FUNCTION @extschema@.ext_storage_resources_deleted() RETURNS trigger
AS 'MODULE_PATHNAME', 'ext_storage_resources_deleted'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_resources_deleted() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_resources_deleted() IS
    'Trigger: purges what belonged to deleted resources';

CREATE FUNCTION @extschema@.ext_storage_attach_users(
    users regclass DEFAULT 'ab_user'::text::regclass)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    id_column name;
    id_type oid;
BEGIN
    IF users IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = 'users must not be null';
    END IF;
    SELECT a.attname, a.atttypid INTO id_column, id_type
    FROM pg_index i
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = users AND i.indisprimary AND i.indnkeyatts = 1;
    IF id_type IS DISTINCT FROM 'integer'::regtype THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('table %s has no primary key of one integer column', users),
            DETAIL = 'user_fk is matched with it.';
    END IF;
    EXECUTE format(
        'CREATE OR REPLACE TRIGGER extension_storage_users_deleted'
        ' AFTER DELETE ON %s REFERENCING OLD TABLE AS deleted_rows'
        ' FOR EACH STATEMENT EXECUTE FUNCTION %s.ext_storage_users_deleted(%L)',
        users, '@extschema@', id_column);
    EXECUTE format(
        'CREATE OR REPLACE TRIGGER extension_storage_users_truncated'
        ' AFTER TRUNCATE ON %s'
        ' FOR EACH STATEMENT EXECUTE FUNCTION %s.ext_storage_users_deleted(%L)',
        users, '@extschema@', id_column);
END
$$;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_attach_users(regclass) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_attach_users(regclass) IS
    'Makes deletion of a user purge what is private to it';

CREATE FUNCTION @extschema@.ext_storage_attach_resource(
    resource_type text, resources regclass, uuid_column name DEFAULT 'uuid')
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF resource_type IS NULL OR resources IS NULL OR uuid_column IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = 'resource_type, resources and uuid_column must not be null';
    END IF;
    IF resource_type = '' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'resource_type must not be empty';
    END IF;
    IF length(resource_type) > 64 THEN
        RAISE EXCEPTION USING ERRCODE = 'string_data_right_truncation',
            MESSAGE = 'resource_type is too long',
            DETAIL = format('It has %s characters, 64 are allowed.', length(resource_type));
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute
                   WHERE attrelid = resources AND attname = uuid_column
                       AND attnum > 0 AND NOT attisdropped) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_column',
            MESSAGE = format('table %s has no column %I', resources, uuid_column);
    END IF;
    EXECUTE format(
        'CREATE OR REPLACE TRIGGER extension_storage_resources_deleted'
        ' AFTER DELETE ON %s REFERENCING OLD TABLE AS deleted_rows'
        ' FOR EACH STATEMENT EXECUTE FUNCTION %s.ext_storage_resources_deleted(%L, %L)',
        resources, '@extschema@', resource_type, uuid_column);
    EXECUTE format(
        'CREATE OR REPLACE TRIGGER extension_storage_resources_truncated'
        ' AFTER TRUNCATE ON %s'
        ' FOR EACH STATEMENT EXECUTE FUNCTION %s.ext_storage_resources_deleted(%L, %L)',
        resources, '@extschema@', resource_type, uuid_column);
END
$$;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_attach_resource(text, regclass, name) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_attach_resource(text, regclass, name) IS
    'Makes deletion of a resource purge what belongs to it';

CREATE FUNCTION @extschema@.ext_storage_detach(relation regclass)
RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    trigger_name name;
    detached boolean := false;
BEGIN
    IF relation IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = 'relation must not be null';
    END IF;
    FOR trigger_name IN
        SELECT t.tgname FROM pg_trigger t
        WHERE t.tgrelid = relation
            AND t.tgfoid IN ('@extschema@.ext_storage_users_deleted()'::regprocedure,
                             '@extschema@.ext_storage_resources_deleted()'::regprocedure)
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', trigger_name, relation);
        detached := true;
    END LOOP;
    RETURN detached;
END
$$;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_detach(regclass) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_detach(regclass) IS
    'Undoes ext_storage_attach_users or ext_storage_attach_resource for a table; true if it was attached';

CREATE FUNCTION @extschema@.ext_storage_grant(role regrole, level text)
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
    FOR member IN
        SELECT p.oid
        FROM pg_proc p
        JOIN (VALUES
            ('ext_storage_get', 1), ('ext_storage_get_json', 1),
            ('ext_storage_get_entry', 1), ('ext_storage_list', 1),
            ('ext_storage_count', 1), ('ext_storage_usage', 1),
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
REVOKE ALL ON FUNCTION @extschema@.ext_storage_grant(regrole, text) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_grant(regrole, text) IS
    'Grants a role what it needs to read, to write or to administer';

-- The holder of the extension has what 1.0 gave it, on what is new as well.
-- Nothing is granted again: that would make rights that others were given
-- since part of the extension, and they would be missing from dumps.
DO $holder$
DECLARE
    holder pg_catalog.regrole;
    member pg_catalog.regprocedure;
BEGIN
    SELECT relowner INTO STRICT holder FROM pg_catalog.pg_class
    WHERE oid OPERATOR(pg_catalog.=) '@extschema@.extension_storage'::pg_catalog.regclass;
    EXECUTE pg_catalog.format(
        'ALTER TABLE %s.extension_storage_usage OWNER TO %s', '@extschema@', holder);
    IF NOT pg_catalog.has_schema_privilege(
            holder, '@extschema@'::pg_catalog.regnamespace, 'USAGE') THEN
        RAISE WARNING USING
            MESSAGE = pg_catalog.format(
                'role %s owns table extension_storage, but has no right to use schema %s',
                holder, '@extschema@'),
            DETAIL = 'Quotas and attached tables need it.',
            HINT = pg_catalog.format('Run GRANT USAGE ON SCHEMA %s TO %s', '@extschema@', holder);
    END IF;
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
