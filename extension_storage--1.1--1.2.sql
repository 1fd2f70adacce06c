/* extension_storage--1.1--1.2.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION extension_storage UPDATE TO '1.2'" to load this file. \quit

-- Functions and triggers of the table: section "table".

-- The counts are derived data: unlogged, they cost no WAL and are in no
-- publication.  This leaves an empty file, as a crash does; the next write under
-- a quota then counts everything again.  A negative size is wrong: null means
-- that it is not known.
--
-- The rows are changed by a function, with the rights of the tables' owner: his
-- triggers must not run with those of this script.  It is called by a statement
-- that the library looks at (analyze_hook() in statement.c): who owns the schema
-- may put another one in its place, whose functions must not run either.
CREATE FUNCTION @extschema@.ext_storage_update_tables()
RETURNS void
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_update_tables() FROM PUBLIC;
DO $update$
BEGIN
    EXECUTE '/* statement of extension_storage */ SELECT @extschema@.ext_storage_update_tables()';
END
$update$;
DROP FUNCTION @extschema@.ext_storage_update_tables();
ALTER TABLE @extschema@.extension_storage_usage SET UNLOGGED;
COMMENT ON COLUMN @extschema@.extension_storage_usage.value_bytes IS
    'Bytes of its values before encryption, and of its descriptions';
-- NOT VALID: whatever is in the table, the update goes through.
ALTER TABLE @extschema@.extension_storage
    ADD CONSTRAINT ck_extension_storage_value_size
        CHECK (value_size OPERATOR(pg_catalog.>=) 0) NOT VALID,
    ADD CONSTRAINT ck_extension_storage_description
        CHECK (pg_catalog.char_length(description) OPERATOR(pg_catalog.<=) 65535) NOT VALID;

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
COMMENT ON VIEW @extschema@.ext_storage_secrets IS
    'Takes secrets, as UTF-8, by COPY ... FROM STDIN (FORMAT binary), so that no statement contains them; each column sets the parameter of its name until the transaction or the session ends';

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

CREATE OR REPLACE FUNCTION @extschema@.ext_storage_attach_users(
    users regclass DEFAULT 'ab_user'::text::regclass)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    home regnamespace;
    id_column name;
    id_type oid;
    purge regprocedure;
    before oid[];
    former name;
BEGIN
    IF users IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = 'users must not be null';
    END IF;
    SELECT a.attname, a.atttypid INTO id_column, id_type
    FROM pg_index i
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = users AND i.indisprimary AND i.indnkeyatts = 1;
    IF id_type IS NULL OR id_type NOT IN ('integer'::regtype, 'bigint'::regtype) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('table %s has no primary key of one integer column', users),
            DETAIL = 'user_fk is matched with it.';
    END IF;
    IF EXISTS (SELECT FROM pg_class WHERE oid = users AND relpersistence = 't') THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('table %s is temporary', users),
            DETAIL = 'Other sessions cannot read it.';
    END IF;
    IF EXISTS (
        SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = users AND deptype = 'e'
            AND refclassid = 'pg_extension'::regclass
            AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'extension_storage')) THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('table %s belongs to this extension', users);
    END IF;
    SELECT extnamespace INTO STRICT home FROM pg_extension
    WHERE extname = 'extension_storage';
    SELECT oid INTO STRICT purge FROM pg_proc
    WHERE proname = 'ext_storage_users_deleted' AND pronargs = 0 AND pronamespace = home;
    before := ARRAY(SELECT oid FROM pg_trigger WHERE tgrelid = users);
    -- as it was attached before
    FOR former IN
        SELECT tgname FROM pg_trigger
        WHERE tgrelid = users
            AND tgname IN ('extension_storage_users_deleted', 'extension_storage_users_truncated')
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', former, users);
    END LOOP;
    EXECUTE format(
        'CREATE TRIGGER extension_storage_users_deleted'
        ' AFTER DELETE ON %s REFERENCING OLD TABLE AS deleted_rows'
        ' FOR EACH STATEMENT EXECUTE FUNCTION %s.ext_storage_users_deleted(%L)',
        users, home, id_column);
    EXECUTE format(
        'CREATE TRIGGER extension_storage_users_truncated'
        ' AFTER TRUNCATE ON %s'
        ' FOR EACH STATEMENT EXECUTE FUNCTION %s.ext_storage_users_deleted(%L)',
        users, home, id_column);
    -- the schema may have been renamed, and another one have taken its place
    IF (SELECT count(*) FROM pg_trigger
            WHERE tgrelid = users AND tgfoid = purge AND oid <> ALL (before)) <> 2 THEN
        RAISE EXCEPTION USING ERRCODE = 'serialization_failure',
            MESSAGE = 'could not serialize access because a schema was renamed',
            HINT = 'Repeat the transaction.';
    END IF;
END
$$;

-- A table may hold resources of several types: each has triggers of its own,
-- whose names end in a hash of the type, which may be too long for a name.
CREATE OR REPLACE FUNCTION @extschema@.ext_storage_attach_resource(
    resource_type text, resources regclass, uuid_column name DEFAULT 'uuid')
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    home regnamespace;
    purge regprocedure;
    before oid[];
    former name;
    suffix text;
    type regtype;
    is_fixed boolean;
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
    WITH RECURSIVE base (oid) AS (
        SELECT a.atttypid FROM pg_attribute a
        WHERE a.attrelid = resources AND a.attname = uuid_column AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL
        SELECT d.typbasetype FROM base b JOIN pg_type d ON d.oid = b.oid AND d.typtype = 'd')
    SELECT y.oid, y.typcategory = 'S' OR y.typtype = 'e' OR y.oid IN ('uuid'::regtype,
        'smallint'::regtype, 'integer'::regtype, 'bigint'::regtype, 'numeric'::regtype)
    INTO type, is_fixed
    FROM base b JOIN pg_type y ON y.oid = b.oid AND y.typtype <> 'd';
    IF type IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_column',
            MESSAGE = format('table %s has no column %I', resources, uuid_column);
    ELSIF NOT is_fixed THEN
        RAISE EXCEPTION USING ERRCODE = 'datatype_mismatch',
            MESSAGE = format('column "%s" of table %s has type %s', uuid_column, resources, type),
            DETAIL = 'Its text may depend on settings, so it cannot be compared with resource_uuid.',
            HINT = 'Use a column of text, of integers or of UUIDs.';
    END IF;
    IF EXISTS (SELECT FROM pg_class WHERE oid = resources AND relpersistence = 't') THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('table %s is temporary', resources),
            DETAIL = 'Other sessions cannot read it.';
    END IF;
    IF EXISTS (
        SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = resources AND deptype = 'e'
            AND refclassid = 'pg_extension'::regclass
            AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'extension_storage')) THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('table %s belongs to this extension', resources);
    END IF;
    SELECT extnamespace INTO STRICT home FROM pg_extension
    WHERE extname = 'extension_storage';
    SELECT oid INTO STRICT purge FROM pg_proc
    WHERE proname = 'ext_storage_resources_deleted' AND pronargs = 0 AND pronamespace = home;
    before := ARRAY(SELECT oid FROM pg_trigger WHERE tgrelid = resources);
    suffix := left(md5(resource_type), 12);
    -- the same type as it was attached before, with another column or by 1.1
    FOR former IN
        SELECT t.tgname FROM pg_trigger t
        WHERE t.tgrelid = resources AND t.tgfoid = purge
            AND substring(t.tgargs FROM 1 FOR position(E'\\x00'::bytea IN t.tgargs))
                = convert_to(resource_type, getdatabaseencoding()) || E'\\x00'::bytea
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', former, resources);
    END LOOP;
    EXECUTE format(
        'CREATE TRIGGER extension_storage_resources_deleted_%s'
        ' AFTER DELETE ON %s REFERENCING OLD TABLE AS deleted_rows'
        ' FOR EACH STATEMENT EXECUTE FUNCTION %s.ext_storage_resources_deleted(%L, %L)',
        suffix, resources, home, resource_type, uuid_column);
    EXECUTE format(
        'CREATE TRIGGER extension_storage_resources_truncated_%s'
        ' AFTER TRUNCATE ON %s'
        ' FOR EACH STATEMENT EXECUTE FUNCTION %s.ext_storage_resources_deleted(%L, %L)',
        suffix, resources, home, resource_type, uuid_column);
    -- the schema may have been renamed, and another one have taken its place
    IF (SELECT count(*) FROM pg_trigger
            WHERE tgrelid = resources AND tgfoid = purge AND oid <> ALL (before)) <> 2 THEN
        RAISE EXCEPTION USING ERRCODE = 'serialization_failure',
            MESSAGE = 'could not serialize access because a schema was renamed',
            HINT = 'Repeat the transaction.';
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION @extschema@.ext_storage_detach(relation regclass)
RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    purges oid[];
    trigger_name name;
    detached boolean := false;
BEGIN
    IF relation IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = 'relation must not be null';
    END IF;
    purges := ARRAY(
        SELECT p.oid FROM pg_proc p JOIN pg_extension x ON x.extnamespace = p.pronamespace
        WHERE x.extname = 'extension_storage' AND p.pronargs = 0
            AND p.proname IN ('ext_storage_users_deleted', 'ext_storage_resources_deleted'));
    FOR trigger_name IN
        SELECT t.tgname FROM pg_trigger t
        WHERE t.tgrelid = relation AND NOT t.tgisinternal AND t.tgfoid = ANY (purges)
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', trigger_name, relation);
        detached := true;
    END LOOP;
    -- its schema may have been renamed, and another one have taken its place
    IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = relation AND tgfoid = ANY (purges)) THEN
        RAISE EXCEPTION USING ERRCODE = 'serialization_failure',
            MESSAGE = 'could not serialize access because a schema was renamed',
            HINT = 'Repeat the transaction.';
    END IF;
    RETURN detached;
END
$$;

-- What the triggers could not see: rows of a partition that was dropped,
-- detached or deleted from directly, ids that were changed, triggers that were
-- disabled.  With row_security off, a table whose rows its caller may not all
-- see is an error.
CREATE FUNCTION @extschema@.ext_storage_purge_orphans()
RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE COST 100000
SET search_path = pg_catalog, pg_temp
SET row_security = off
AS $$
DECLARE
    nul CONSTANT bytea := E'\\x00';
    encoding CONSTANT name := getdatabaseencoding();
    -- an identifier as it is stored: a UUID in any spelling in the canonical one
    canonical CONSTANT text := format(
        'CASE WHEN id ~* %L THEN regexp_replace(lower(translate(regexp_replace(id, %L, %L, %L), %L, %L)), %L, %L)'
        ' ELSE id END',
        '^((urn:uuid:)?([0-9a-f]{4}-?){7}[0-9a-f]{4}|[{]([0-9a-f]{4}-?){7}[0-9a-f]{4}[}])$', '^urn:uuid:', '', 'i', '{}-', '',
        '^(.{8})(.{4})(.{4})(.{4})(.{12})$', E'\\1-\\2-\\3-\\4-\\5');
    lock_entries CONSTANT text :=
        'SELECT array_agg(l.id) FROM (SELECT e.id FROM %s.extension_storage e WHERE e.id IN (%s)'
        ' ORDER BY e.extension_id, e.user_fk, e.resource_type, e.resource_uuid, e.key FOR UPDATE) l';
    -- no EXISTS: a plan for its first row may look through all that is present for each
    find_entry CONSTANT text := 'SELECT count(*) > 0 FROM %s.extension_storage e WHERE %s';
    home regnamespace;
    entries regclass;
    holder regrole;
    users_purge regprocedure;
    resources_purge regprocedure;
    triggers oid[];
    schemas text[];
    schemas_now CONSTANT text :=
        'SELECT array_agg(format(''%s %s'', n.oid, n.xmin) ORDER BY n.oid) FROM pg_namespace n WHERE n.oid = $1'
        ' OR n.oid IN (SELECT c.relnamespace FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE t.oid = ANY ($2))';
    is_locked boolean;
    other record;
    kind record;
    gone text;
    orphans text[] = '{}';
    authors name[] = '{}';
    of_author text[] = '{}';
    locked bigint[];
    kept boolean;
    n bigint := 0;
    purged bigint := 0;
BEGIN
    -- a table that is written anew, as by ALTER TABLE, is empty for an older
    -- snapshot, and then all entries would be orphans
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('cannot purge orphans in a transaction of isolation level %s',
                upper(current_setting('transaction_isolation'))),
            HINT = 'Call ext_storage_purge_orphans() in a transaction of isolation level READ COMMITTED.';
    END IF;
    SELECT extnamespace INTO STRICT home FROM pg_extension
    WHERE extname = 'extension_storage';
    -- what the holder has put on the table would run as the superuser
    SELECT oid, relowner INTO STRICT entries, holder FROM pg_class
    WHERE relname = 'extension_storage' AND relnamespace = home;
    SELECT oid INTO STRICT users_purge FROM pg_proc
    WHERE proname = 'ext_storage_users_deleted' AND pronargs = 0 AND pronamespace = home;
    SELECT oid INTO STRICT resources_purge FROM pg_proc
    WHERE proname = 'ext_storage_resources_deleted' AND pronargs = 0 AND pronamespace = home;
    triggers := ARRAY(SELECT oid FROM pg_trigger WHERE tgfoid IN (users_purge, resources_purge) ORDER BY oid);
    EXECUTE schemas_now INTO schemas USING home, triggers;
    IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
        AND NOT (SELECT rolsuper FROM pg_roles WHERE oid = holder) THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('a superuser cannot purge the orphans of a table that role %s owns', holder),
            DETAIL = 'What that role has put on the table would run with the rights of a superuser.',
            HINT = format('Connect as role %s.', holder);
    END IF;
    -- Before the tables are read, and once they are locked.
    FOREACH is_locked IN ARRAY ARRAY[false, true] LOOP
        -- who owns a schema may put another one in its place at any moment
        SELECT n.oid::regnamespace AS id, r.oid::regrole AS owner INTO other
        FROM pg_namespace n
        JOIN pg_roles p ON p.oid = n.nspowner
        JOIN pg_database d ON d.datname = current_database()
        JOIN pg_roles r ON r.oid = CASE p.rolname WHEN 'pg_database_owner' THEN d.datdba ELSE p.oid END
        WHERE (n.oid = home OR n.oid IN (
                SELECT c.relnamespace FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
                WHERE t.oid = ANY (triggers)))
            AND r.oid <> holder AND r.rolname <> current_user AND NOT r.rolsuper
        ORDER BY n.nspname LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
                MESSAGE = format('ext_storage_purge_orphans cannot use schema %s, which role %s owns',
                    other.id, other.owner),
                DETAIL = 'What that role puts there would run with the rights of the caller.',
                HINT = format('Connect as role %s, or call ext_storage_purge_user or ext_storage_purge_resource for each user or resource that is gone.', other.owner);
        END IF;
        -- reading a table may run code of an index, which is its owner's; a
        -- partition may have another owner
        WITH RECURSIVE attached AS (
            SELECT tgrelid AS oid FROM pg_trigger
            WHERE oid = ANY (triggers)
            UNION
            SELECT i.inhrelid FROM attached a JOIN pg_inherits i ON i.inhparent = a.oid)
        SELECT c.oid::regclass AS id, r.oid::regrole AS owner INTO other
        FROM attached a JOIN pg_class c ON c.oid = a.oid JOIN pg_roles r ON r.oid = c.relowner
        WHERE r.oid <> holder AND r.rolname <> current_user AND NOT r.rolsuper
        ORDER BY c.oid::regclass::text LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
                MESSAGE = format('ext_storage_purge_orphans cannot read table %s, which role %s owns',
                    other.id, other.owner),
                DETAIL = 'What that role has put on the table would run with the rights of the caller.',
                HINT = format('Connect as role %s, or call ext_storage_purge_user or ext_storage_purge_resource for each user or resource that is gone.', other.owner);
        END IF;
        EXIT WHEN is_locked;
        -- Another table or column may take the name of one, which would be read in
        -- its place.  LOCK TABLE would want more than the right to read a column.
        FOR other IN
            SELECT DISTINCT c.oid::regclass AS id
            FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE t.oid = ANY (triggers)
            ORDER BY 1
        LOOP
            EXECUTE format('SELECT FROM %s LIMIT 0', other.id);
        END LOOP;
    END LOOP;
    IF to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL THEN
        EXECUTE 'SELECT count(*) FROM pg_catalog.pg_dist_partition WHERE logicalrelid = $1'
            INTO n USING entries;
    END IF;
    IF n > 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = 'ext_storage_purge_orphans is not supported where table "extension_storage" is distributed',
            DETAIL = 'It compares the table with others, which are not distributed in the same way.',
            HINT = 'Call ext_storage_purge_user or ext_storage_purge_resource for each user or resource that is gone.';
    END IF;
    -- a column that was renamed, or has got another type, since it was attached
    FOR other IN
        SELECT t.tgrelid::regclass AS id, c.name, a.attname, y.type, t.tgfoid = users_purge AS is_of_users,
            y.is_number OR y.is_text AND t.tgfoid <> users_purge AS is_fixed
        FROM pg_trigger t
        CROSS JOIN LATERAL (SELECT convert_from(CASE t.tgfoid WHEN users_purge
                THEN substring(t.tgargs FROM 1 FOR position(nul IN t.tgargs) - 1)
                ELSE substring(t.tgargs FROM position(nul IN t.tgargs) + 1
                    FOR length(t.tgargs) - position(nul IN t.tgargs) - 1) END, encoding) AS name) c
        LEFT JOIN pg_attribute a ON a.attrelid = t.tgrelid AND a.attname = c.name AND a.attnum > 0
            AND NOT a.attisdropped
        LEFT JOIN LATERAL (
            WITH RECURSIVE base (oid) AS (
                SELECT a.atttypid UNION ALL
                SELECT d.typbasetype FROM base b JOIN pg_type d ON d.oid = b.oid AND d.typtype = 'd')
            SELECT y.oid::regtype AS type,
                y.typcategory = 'S' OR y.typtype = 'e' OR y.oid = 'uuid'::regtype AS is_text,
                y.oid IN ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype, 'numeric'::regtype) AS is_number
            FROM base b JOIN pg_type y ON y.oid = b.oid AND y.typtype <> 'd') y ON true
        WHERE t.oid = ANY (triggers)
            AND t.tgnargs = CASE t.tgfoid WHEN users_purge THEN 1 ELSE 2 END
        ORDER BY t.tgrelid, t.oid
    LOOP
        IF other.attname IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'undefined_column',
                MESSAGE = format('column "%s" of table %s does not exist', other.name, other.id),
                HINT = 'Attach the table again, or detach it.';
        ELSIF NOT other.is_fixed THEN
            RAISE EXCEPTION USING ERRCODE = 'datatype_mismatch',
                MESSAGE = format('column "%s" of table %s has type %s', other.name, other.id, other.type),
                DETAIL = CASE WHEN other.is_of_users THEN 'user_fk is matched with it, and is an integer.'
                    ELSE 'Its text may depend on settings, so it cannot be compared with resource_uuid.' END,
                HINT = 'Attach the table with another column, or detach it.';
        END IF;
    END LOOP;
    -- format() asks for the output of a type, as the triggers do: a cast may be
    -- code of whoever owns the type.  char(n) is padded with blanks by it.
    FOR kind IN
        SELECT a.resource_type, string_agg(a.ids, ' UNION ALL ') AS present
        FROM (
            SELECT NULL::text AS resource_type,
                format('SELECT nullif(format(''%%s'', t.%I), '''')::numeric AS id FROM %s t',
                    convert_from(substring(t.tgargs FROM 1 FOR position(nul IN t.tgargs) - 1), encoding),
                    t.tgrelid::regclass) AS ids
            FROM pg_trigger t
            WHERE t.oid = ANY (triggers) AND t.tgfoid = users_purge
                AND t.tgnargs = 1
            UNION
            SELECT convert_from(substring(t.tgargs FROM 1 FOR position(nul IN t.tgargs) - 1), encoding),
                format('SELECT %s AS id FROM (SELECT unnest(ARRAY[v.id, rtrim(v.id)]) AS id'
                    ' FROM (SELECT format(''%%s'', t.%I) COLLATE "C" AS id FROM %s t) v) r', canonical,
                    convert_from(substring(t.tgargs FROM position(nul IN t.tgargs) + 1
                        FOR length(t.tgargs) - position(nul IN t.tgargs) - 1), encoding),
                    t.tgrelid::regclass)
            FROM pg_trigger t
            WHERE t.oid = ANY (triggers) AND t.tgfoid = resources_purge
                AND t.tgnargs = 2) a
        GROUP BY a.resource_type
        ORDER BY a.resource_type NULLS FIRST
    LOOP
        IF kind.resource_type IS NULL THEN
            gone := 'e.%I IS NOT NULL AND NOT EXISTS (SELECT FROM (%s) p WHERE p.id = e.%1$I)';
            orphans := orphans || format(gone, 'user_fk', kind.present);
            authors := ARRAY['created_by_fk', 'changed_by_fk'];
            of_author := ARRAY[format(gone, authors[1], kind.present), format(gone, authors[2], kind.present)];
        ELSE
            orphans := orphans
                || format('e.resource_type = %L AND NOT EXISTS (SELECT FROM (%s) p WHERE p.id = e.resource_uuid)',
                    kind.resource_type, kind.present);
        END IF;
    END LOOP;
    -- All are locked at once, in the order in which set_many locks those of a
    -- scope: who waited for more with some locked could be a deadlock's other
    -- half.  Who had to be waited for may have made the user or the resource
    -- again, which only a snapshot from after the locks shows.
    EXECUTE format(lock_entries, home, (
        SELECT string_agg(format('SELECT e.id FROM %s.extension_storage e WHERE %s', home, o.condition), ' UNION ALL ')
        FROM unnest(orphans || of_author || ARRAY['false']) o (condition))) INTO locked;
    FOREACH gone IN ARRAY orphans LOOP
        gone := gone || ' AND e.id = ANY ($1)';
        EXECUTE format('DELETE FROM %s.extension_storage e WHERE %s', home, gone) USING locked;
        GET DIAGNOSTICS n = ROW_COUNT;
        purged := purged + n;
        EXECUTE format(find_entry, home, gone) INTO kept USING locked;
        IF kept THEN
            RAISE WARNING USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = 'some entries of deleted users or resources are left',
                DETAIL = 'A trigger, a rule or a row-level security policy of table "extension_storage" prevents their deletion.',
                HINT = 'Correct that, then call ext_storage_purge_orphans().';
        END IF;
    END LOOP;
    -- as when a user is deleted: an old entry that a constraint refuses stops
    -- nothing, and is not shown
    BEGIN
        FOR i IN 1..cardinality(authors) LOOP
            gone := of_author[i] || ' AND e.id = ANY ($1)';
            EXECUTE format('UPDATE %s.extension_storage e SET %I = NULL WHERE %s', home, authors[i], gone) USING locked;
            EXECUTE format(find_entry, home, gone) INTO kept USING locked;
            IF kept THEN
                RAISE WARNING USING ERRCODE = 'object_not_in_prerequisite_state',
                    MESSAGE = 'deleted users remain in created_by_fk or changed_by_fk of some entries',
                    DETAIL = 'A trigger, a rule or a row-level security policy of table "extension_storage" prevents the change.',
                    HINT = 'Correct that, then call ext_storage_purge_orphans().';
            END IF;
        END LOOP;
    EXCEPTION WHEN integrity_constraint_violation THEN
        RAISE WARNING USING ERRCODE = SQLSTATE,
            MESSAGE = 'deleted users remain in created_by_fk or changed_by_fk of some entries',
            DETAIL = SQLERRM,
            HINT = 'Change the entries so that they satisfy the constraint, then call ext_storage_purge_orphans().';
    END;
    IF triggers <> ARRAY(SELECT oid FROM pg_trigger WHERE tgfoid IN (users_purge, resources_purge) ORDER BY oid)
        OR EXISTS (
            SELECT FROM pg_trigger t WHERE t.oid = ANY (triggers) AND NOT EXISTS (
                SELECT FROM pg_locks l
                WHERE l.locktype = 'relation' AND l.pid = pg_backend_pid() AND l.relation = t.tgrelid AND l.granted)) THEN
        RAISE EXCEPTION USING ERRCODE = 'serialization_failure',
            MESSAGE = 'could not serialize access because a table was attached, detached or renamed',
            HINT = 'Repeat the transaction.';
    END IF;
    EXECUTE schemas_now INTO kind USING home, triggers;
    IF schemas IS DISTINCT FROM kind.array_agg THEN
        RAISE EXCEPTION USING ERRCODE = 'serialization_failure',
            MESSAGE = 'could not serialize access because a schema was renamed, or its rights changed',
            HINT = 'Repeat the transaction.';
    END IF;
    RETURN purged;
END
$$;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_purge_orphans() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_purge_orphans() IS
    'Deletes the entries of users and resources that are in none of the attached tables; returns how many';

-- Citus wants extension_id in every unique constraint, and ids that are bigint.
-- It takes a table with triggers if it is told that they are harmless: these are
-- disabled, and the library does not enable them where the table is distributed.
-- Only the owner may call it, not even a superuser: ALTER TABLE runs code that
-- the owner may have put on the table.
CREATE FUNCTION @extschema@.ext_storage_distribute()
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE COST 1000000
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    home regnamespace;
    entries regclass;
    counts regclass;
    holder regrole;
    distributed regclass[];
    other text;
    unsafe_triggers text;
BEGIN
    SELECT extnamespace INTO STRICT home FROM pg_extension
    WHERE extname = 'extension_storage';
    SELECT oid, relowner INTO STRICT entries, holder FROM pg_class
    WHERE relname = 'extension_storage' AND relnamespace = home;
    SELECT oid INTO STRICT counts FROM pg_class
    WHERE relname = 'extension_storage_usage' AND relnamespace = home;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE oid = holder AND rolname = current_user) THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('must be owner of table %s', entries),
            HINT = format('Connect as role %s.', holder);
    END IF;
    IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = 'extension "citus" is not installed in this database',
            DETAIL = 'It is what distributes tables over several servers.',
            HINT = 'Install Citus, and then let a superuser run CREATE EXTENSION citus.';
    END IF;
    IF pg_size_bytes(coalesce(nullif(
            current_setting('extension_storage.quota_per_extension', true), ''), '0')) > 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = 'quotas are not supported where table "extension_storage" is distributed',
            HINT = 'Set extension_storage.quota_per_extension to 0.';
    END IF;

    EXECUTE 'SELECT coalesce(array_agg(logicalrelid::regclass), ''{}''),'
        ' min(logicalrelid::regclass::text) FILTER (WHERE partmethod <> ''h'')'
        ' FROM pg_catalog.pg_dist_partition WHERE logicalrelid IN ($1, $2)'
        INTO STRICT distributed, other USING entries, counts;
    IF other IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('table %s is a table of Citus that is not distributed by a column', other),
            HINT = 'Restore a dump into another database, where it is an ordinary table: Citus does not undistribute a table of an extension.';
    END IF;
    IF distributed @> ARRAY[entries, counts] THEN
        RAISE NOTICE USING
            MESSAGE = format('tables %s and %s are already distributed', entries, counts);
        RETURN;
    END IF;
    unsafe_triggers := current_setting('citus.enable_unsafe_triggers', true);
    PERFORM set_config('citus.enable_unsafe_triggers', 'on', true);
    IF entries <> ALL (distributed) THEN
        EXECUTE format('ALTER TABLE %s'
            ' DISABLE TRIGGER extension_storage_count_rows,'
            ' DISABLE TRIGGER extension_storage_count,'
            ' ALTER COLUMN id TYPE bigint,'
            ' DROP CONSTRAINT IF EXISTS extension_storage_pkey,'
            ' ADD CONSTRAINT extension_storage_pkey PRIMARY KEY (extension_id, id),'
            ' DROP CONSTRAINT IF EXISTS uq_extension_storage_uuid,'
            ' ADD CONSTRAINT uq_extension_storage_uuid UNIQUE (extension_id, uuid)', entries);
        EXECUTE 'SELECT pg_catalog.create_distributed_table($1, ''extension_id'', colocate_with => ''none'')'
            USING entries;
    END IF;
    IF counts <> ALL (distributed) THEN
        EXECUTE format('TRUNCATE %s', counts);
        EXECUTE 'SELECT pg_catalog.create_distributed_table($1, ''extension_id'', colocate_with => $2)'
            USING counts, entries::text;
    END IF;
    PERFORM set_config('citus.enable_unsafe_triggers', coalesce(unsafe_triggers, 'off'), true);
    RAISE NOTICE USING
        MESSAGE = format('tables %s and %s are distributed by extension_id', entries, counts),
        DETAIL = 'A uuid is unique within its extension only. Quotas and ext_storage_purge_orphans are refused, and ext_storage_key_status does not know whether a key is removable.',
        HINT = 'A dump does not contain this: see "Beyond one machine" in the README before you restore one.';
END
$$;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_distribute() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_distribute() IS
    'Distributes the tables over the servers of a Citus cluster, by extension_id';

-- What a query costs that calls them, in the planner's units: each runs at
-- least a statement, and some read the whole table.
ALTER FUNCTION @extschema@.ext_storage_get(text, text, integer, text, text) COST 500;
ALTER FUNCTION @extschema@.ext_storage_get_json(text, text, integer, text, text) COST 500;
ALTER FUNCTION @extschema@.ext_storage_get_entry(text, text, integer, text, text) COST 500;
ALTER FUNCTION @extschema@.ext_storage_list(text, integer, text, text, text, integer, integer, text, text) COST 1000;
ALTER FUNCTION @extschema@.ext_storage_count(text, integer, text, text, text, text) COST 1000;
ALTER FUNCTION @extschema@.ext_storage_set(text, text, bytea, text, integer, text, text,
    text, text, boolean, integer, bigint) COST 1000;
ALTER FUNCTION @extschema@.ext_storage_set_json(text, text, jsonb, text, integer, text, text,
    text, text, boolean, integer, bigint) COST 1000;
ALTER FUNCTION @extschema@.ext_storage_delete(text, text, integer, text, text, bigint) COST 1000;
ALTER FUNCTION @extschema@.ext_storage_usage() COST 100000 ROWS 20;
ALTER FUNCTION @extschema@.ext_storage_key_status() COST 1000000 ROWS 3;
ALTER FUNCTION @extschema@.ext_storage_verify(text) COST 1000000 ROWS 10;
ALTER FUNCTION @extschema@.ext_storage_purge_extension(text) COST 10000;
ALTER FUNCTION @extschema@.ext_storage_purge_user(integer) COST 10000;
ALTER FUNCTION @extschema@.ext_storage_purge_resource(text, text) COST 10000;
ALTER FUNCTION @extschema@.ext_storage_configured_keys() COST 100;
ALTER FUNCTION @extschema@.fernet_encrypt(bytea, text) COST 200;
ALTER FUNCTION @extschema@.fernet_decrypt(text, text, interval) COST 200;
ALTER FUNCTION @extschema@.fernet_derive_key(text) COST 100;
ALTER FUNCTION @extschema@.fernet_generate_key() COST 100;

-- Lists with values, several keys at once, rename, moving in: section "batches".

-- For lists with the newest change first.  Without resource_type, as the index
-- by category; an entry without a time comes last.  The condition is true of
-- every row, and only these lists ask for it: a statement that is planned while
-- the table is empty would otherwise use this index for a single key.
CREATE INDEX ix_extension_storage_changed ON @extschema@.extension_storage
    (extension_id, user_fk, resource_uuid,
     (COALESCE(changed_on, '-infinity'::pg_catalog.timestamp)), key)
    WHERE pg_catalog.octet_length(key) OPERATOR(pg_catalog.>=) 0;

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
    'One page of the entries of a scope with their values, which have at most max_bytes in all, but at least one entry';

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
    'The existing entries among several keys, with their values, in the order of the keys';

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
RETURNS TABLE (key text, deleted boolean, uuid uuid)
AS 'MODULE_PATHNAME', 'ext_storage_delete_many'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 2000 ROWS 10;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_delete_many(text, text[], integer, text, text, bigint[]) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_delete_many(text, text[], integer, text, text, bigint[]) IS
    'Deletes several entries of a scope, all or none; returns for each key whether there was an entry, and its uuid';

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

-- The one list of functions and who may call them.  A name that no member has
-- does no harm; a member that is missing here has no level, and is granted to
-- nobody but the holder.
CREATE FUNCTION @extschema@.ext_storage_functions()
RETURNS TABLE (function regprocedure, level text)
LANGUAGE sql STABLE PARALLEL SAFE COST 1000 ROWS 50
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT p.oid::regprocedure, l.level
    FROM pg_extension x
    JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = x.oid
        AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
    JOIN pg_proc p ON p.oid = d.objid
    LEFT JOIN (VALUES
        ('ext_storage_get', 'read'),
        ('ext_storage_get_json', 'read'),
        ('ext_storage_get_entry', 'read'),
        ('ext_storage_get_many', 'read'),
        ('ext_storage_list', 'read'),
        ('ext_storage_list_newest', 'read'),
        ('ext_storage_list_values', 'read'),
        ('ext_storage_count', 'read'),
        ('ext_storage_usage', 'read'),
        ('ext_storage_configured_keys', 'read'),
        ('ext_storage_functions', 'read'),
        ('ext_storage_set', 'write'),
        ('ext_storage_set_json', 'write'),
        ('ext_storage_set_many', 'write'),
        ('ext_storage_delete', 'write'),
        ('ext_storage_delete_many', 'write'),
        ('ext_storage_delete_prefix', 'write'),
        ('ext_storage_rename', 'write'),
        ('ext_storage_purge_extension', 'write'),
        ('ext_storage_purge_user', 'write'),
        ('ext_storage_purge_resource', 'write'),
        ('ext_storage_rotate_keys', 'admin'),
        ('ext_storage_key_status', 'admin'),
        ('ext_storage_verify', 'admin'),
        ('ext_storage_move_in', 'admin'),
        ('ext_storage_purge_orphans', 'write'),
        ('ext_storage_attach_users', 'holder'),
        ('ext_storage_attach_resource', 'holder'),
        ('ext_storage_detach', 'holder'),
        ('ext_storage_distribute', 'holder'),
        ('ext_storage_users_deleted', 'holder'),
        ('ext_storage_resources_deleted', 'holder'),
        ('ext_storage_grant', 'holder'),
        ('ext_storage_revoke', 'holder'),
        ('fernet_encrypt', 'holder'),
        ('fernet_decrypt', 'holder'),
        ('fernet_generate_key', 'holder'),
        ('fernet_derive_key', 'holder'),
        ('fernet_timestamp', 'holder'),
        ('ext_storage_take_over', 'public'),
        ('ext_storage_count_rows', 'trigger'),
        ('ext_storage_count_statement', 'trigger'),
        ('ext_storage_secrets_insert', 'trigger')) AS l (name, level)
        ON l.name = p.proname
    WHERE x.extname = 'extension_storage'
$$;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_functions() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_functions() IS
    'The functions of this extension and the level at which ext_storage_grant grants each: read, write or admin; holder: only the holder can grant it; public: everybody may call it; trigger: only triggers call it';

CREATE OR REPLACE FUNCTION @extschema@.ext_storage_grant(role regrole, level text)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    levels CONSTANT text[] := ARRAY['read', 'write', 'admin'];
    granted integer;
    home regnamespace;
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
    SELECT extnamespace INTO STRICT home FROM pg_extension
    WHERE extname = 'extension_storage';

    IF NOT has_schema_privilege(role, home, 'USAGE') THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %s TO %s', home, role);
    END IF;
    EXECUTE format('GRANT %s ON TABLE %s.extension_storage TO %s',
        CASE WHEN granted = 1 THEN 'SELECT' ELSE 'SELECT, INSERT, UPDATE, DELETE' END, home, role);
    EXECUTE format('GRANT USAGE ON TYPE %s.ext_storage_entry TO %s', home, role);
    EXECUTE format('GRANT INSERT ON TABLE %s.ext_storage_secrets TO %s', home, role);
    FOR member IN EXECUTE format(
        'SELECT f.function FROM %s.ext_storage_functions() f'
        ' WHERE array_position($1, f.level) <= $2 ORDER BY f.function', home)
        USING levels, granted
    LOOP
        EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %s', member, role);
        IF NOT has_function_privilege(role, member, 'EXECUTE') THEN
            RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
                MESSAGE = format('permission denied to grant EXECUTE on function %s', member),
                HINT = 'The owner of table "extension_storage", or a superuser, can grant it.';
        END IF;
    END LOOP;
    IF NOT has_schema_privilege(role, home, 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('permission denied to grant USAGE on schema %s', home),
            HINT = format('Let the owner of the schema run: GRANT USAGE ON SCHEMA %s TO %s', home, role);
    END IF;
END
$$;

-- A plain REVOKE takes back only what its own role has granted, or the owner of
-- an object: with it, neither the holder nor a superuser takes back
-- everything.  Policies that name the role, default privileges and rights to set
-- a parameter are not rights on the extension's objects, and stay.
CREATE FUNCTION @extschema@.ext_storage_revoke(role regrole)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    role_before CONSTANT text := current_setting('role');
    extension oid;
    home regnamespace;
    entries regclass;
    item record;
    what text;
    is_left boolean;
BEGIN
    IF role IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = 'role must not be null';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE oid = role) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = format('role %s does not exist', role);
    END IF;
    SELECT oid, extnamespace INTO STRICT extension, home FROM pg_extension
    WHERE extname = 'extension_storage';
    SELECT oid INTO STRICT entries FROM pg_class
    WHERE relname = 'extension_storage' AND relnamespace = home;
    IF EXISTS (SELECT FROM pg_class WHERE oid = entries AND relowner = role) THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('role %s owns table %s', role, entries),
            HINT = 'Give the table to another role, then call ext_storage_take_over().';
    END IF;
    FOR item IN
        WITH member AS (
            SELECT classid, objid FROM pg_depend
            WHERE refclassid = 'pg_extension'::regclass AND refobjid = extension AND deptype = 'e')
        SELECT DISTINCT o.kind, o.class, o.id, o.field, a.grantor::regrole AS grantor,
            (SELECT min(CASE WHEN p.grantee = 0 THEN 'PUBLIC' ELSE p.grantee::regrole::text END)
             FROM aclexplode(o.acl) p WHERE p.grantor = role) AS passed_to
        FROM (
            SELECT 'ALL ON ROUTINE' AS kind, 'pg_proc'::regclass AS class, p.oid AS id, 0 AS field,
                p.proowner AS owner, p.proacl AS acl
            FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid
            UNION ALL
            SELECT CASE c.relkind WHEN 'S' THEN 'ALL ON SEQUENCE' ELSE 'ALL ON TABLE' END, 'pg_class'::regclass, c.oid, 0,
                c.relowner, c.relacl
            FROM pg_class c JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid
            WHERE c.relkind <> 'c'
            UNION ALL
            -- a sequence warns of ALL
            SELECT format('%s (%I) ON TABLE', CASE c.relkind WHEN 'S' THEN 'SELECT' ELSE 'ALL' END, f.attname),
                'pg_class'::regclass, c.oid, f.attnum, c.relowner, f.attacl
            FROM pg_class c JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid
            JOIN pg_attribute f ON f.attrelid = c.oid AND NOT f.attisdropped
            UNION ALL
            -- the type of a table's rows is no member itself
            SELECT 'ALL ON TYPE', 'pg_type'::regclass, t.oid, 0, t.typowner, t.typacl
            FROM pg_type t JOIN member m ON m.classid = 'pg_type'::regclass AND m.objid = t.oid
                OR m.classid = 'pg_class'::regclass AND m.objid = t.typrelid
            UNION ALL
            SELECT 'ALL ON SCHEMA', 'pg_namespace'::regclass, n.oid, 0, n.nspowner, n.nspacl
            FROM pg_namespace n WHERE n.oid = home) o,
            LATERAL aclexplode(o.acl) a
        WHERE a.grantee = role AND o.owner <> role
        ORDER BY o.class, o.id, o.field, o.kind
    LOOP
        what := item.kind || ' ' || CASE item.class
            WHEN 'pg_proc'::regclass THEN item.id::regprocedure::text
            WHEN 'pg_class'::regclass THEN item.id::regclass::text
            WHEN 'pg_type'::regclass THEN item.id::regtype::text
            ELSE item.id::regnamespace::text END;
        IF NOT pg_has_role(session_user, item.grantor, 'MEMBER') THEN
            RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
                MESSAGE = format('role %s has rights that role %s granted', role, item.grantor),
                HINT = format('Role %s or a superuser can take them back.', item.grantor);
        END IF;
        IF item.passed_to IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'dependent_objects_still_exist',
                MESSAGE = format('role %s has granted rights to %s', role, item.passed_to),
                DETAIL = format('It has passed on rights that are part of %s.', what),
                HINT = 'Revoke those first.';
        END IF;
        EXECUTE format('SET LOCAL ROLE %s', item.grantor);
        EXECUTE format('REVOKE %s FROM %s', what, role);
        -- The name may have become another one's.  And a superuser or a member of
        -- the owner takes back what the owner has granted, not what he has
        -- himself: select_best_grantor() in src/backend/utils/adt/acl.c
        SELECT EXISTS (
            SELECT FROM (
                SELECT proacl FROM pg_proc WHERE item.class = 'pg_proc'::regclass AND oid = item.id
                UNION ALL SELECT relacl FROM pg_class
                WHERE item.class = 'pg_class'::regclass AND oid = item.id AND item.field = 0
                UNION ALL SELECT attacl FROM pg_attribute
                WHERE item.class = 'pg_class'::regclass AND attrelid = item.id AND attnum = item.field
                UNION ALL SELECT typacl FROM pg_type WHERE item.class = 'pg_type'::regclass AND oid = item.id
                UNION ALL SELECT nspacl FROM pg_namespace
                WHERE item.class = 'pg_namespace'::regclass AND oid = item.id) o (acl),
                LATERAL aclexplode(o.acl) a
            WHERE a.grantee = role AND a.grantor = item.grantor) INTO is_left;
        IF is_left THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = format('role %s still has rights that role %s granted', role, item.grantor),
                DETAIL = format('They are part of %s.', what),
                HINT = format('If it was renamed just now, repeat the call. Else role %s must be neither a superuser nor a member of the owner for as long as they are taken back.', item.grantor);
        END IF;
    END LOOP;
    PERFORM set_config('role', role_before, true);
END
$$;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_revoke(regrole) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_revoke(regrole) IS
    'Takes back what a role was granted on this extension, whoever granted it: its level, rights on single columns and USAGE on the schema';

-- REASSIGN OWNED and ALTER ... OWNER TO leave rights to functions where they
-- were.  This gives them to whoever owns the table now, and makes what a
-- former holder has granted to others the function owner's grant, which outlives
-- DROP OWNED BY the former holder.  Everybody may execute it, as no role is
-- known in advance; it gives nothing to anybody but the table's owner, and only
-- when that role, a member of it or a superuser asks.
CREATE FUNCTION @extschema@.ext_storage_take_over()
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    home regnamespace;
    entries regclass;
    counts regclass;
    secrets regclass;
    entry_type regtype;
    holder regrole;
    item record;
    is_granted boolean;
BEGIN
    -- an older snapshot may show a former owner
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('cannot take over in a transaction of isolation level %s',
                upper(current_setting('transaction_isolation'))),
            HINT = 'Call ext_storage_take_over() in a transaction of isolation level READ COMMITTED.';
    END IF;
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('the functions of extension "extension_storage" belong to role %s, which is no superuser',
                current_user::regrole),
            HINT = 'Give them to a superuser: ALTER FUNCTION ... OWNER TO.';
    END IF;
    SELECT x.extnamespace,
        min(c.oid) FILTER (WHERE c.relname = 'extension_storage'),
        min(c.oid) FILTER (WHERE c.relname = 'extension_storage_usage'),
        min(c.oid) FILTER (WHERE c.relname = 'ext_storage_secrets')
    INTO STRICT home, entries, counts, secrets
    FROM pg_extension x
    JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = x.oid
        AND d.classid = 'pg_class'::regclass AND d.deptype = 'e'
    JOIN pg_class c ON c.oid = d.objid AND c.relnamespace = x.extnamespace
    WHERE x.extname = 'extension_storage'
    GROUP BY x.extnamespace;
    IF entries IS NULL OR counts IS NULL OR secrets IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('table "%s" does not belong to extension "extension_storage"',
                CASE WHEN entries IS NULL THEN 'extension_storage' WHEN counts IS NULL THEN 'extension_storage_usage'
                    ELSE 'ext_storage_secrets' END),
            HINT = 'Put it back with ALTER EXTENSION extension_storage ADD.';
    END IF;
    SELECT relowner INTO STRICT holder FROM pg_class WHERE oid = entries;
    IF NOT pg_has_role(session_user, holder, 'MEMBER') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('must be owner of table %s', entries);
    END IF;

    SELECT t.oid INTO STRICT entry_type
    FROM pg_type t
    JOIN pg_depend d ON d.classid = 'pg_type'::regclass AND d.objid = t.oid
        AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
    JOIN pg_extension x ON x.oid = d.refobjid AND x.extname = 'extension_storage'
    WHERE t.typname = 'ext_storage_entry' AND t.typnamespace = home;
    -- only where need be: else the check at the end could not tell that it was
    -- another table's
    IF (SELECT relowner FROM pg_class WHERE oid = counts) <> holder THEN
        EXECUTE format('ALTER TABLE %s OWNER TO %s', counts, holder);
    END IF;
    -- only the owner of the schema can grant USAGE on it
    IF NOT has_schema_privilege(holder, home, 'USAGE') THEN
        RAISE WARNING USING
            MESSAGE = format('role %s owns table %s, but has no right to use schema %s',
                holder, entries, home),
            HINT = format('Let the owner of the schema run: GRANT USAGE ON SCHEMA %s TO %s', home, holder);
    END IF;
    FOR item IN
        SELECT o.id, o.privilege, o.kind, o.owner, g.grantee, g.is_grantable
        FROM (
            SELECT p.oid AS id, 'EXECUTE' AS privilege, 'ROUTINE' AS kind, p.proowner AS owner, p.proacl AS acl
            FROM pg_depend d
            JOIN pg_extension x ON x.oid = d.refobjid AND x.extname = 'extension_storage'
            JOIN pg_proc p ON p.oid = d.objid
            -- not what a former holder has added
            JOIN pg_roles r ON r.oid = p.proowner AND r.rolsuper
            WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass
                AND d.deptype = 'e'
                -- not those of level trigger and public
                AND p.prorettype <> 'trigger'::regtype AND p.proname <> 'ext_storage_take_over'
            UNION ALL
            SELECT t.oid, 'USAGE', 'TYPE', t.typowner, t.typacl
            FROM pg_type t WHERE t.oid = entry_type
            UNION ALL
            SELECT c.oid, 'INSERT', 'TABLE', c.relowner, c.relacl
            FROM pg_class c WHERE c.oid = secrets) o,
            LATERAL (
                SELECT holder::oid AS grantee, true AS is_grantable
                UNION ALL
                -- what a former holder has granted, who has the right to from the
                -- owner; the present one has it already at any later call
                SELECT a.grantee, a.is_grantable FROM aclexplode(o.acl) a
                LEFT JOIN pg_roles r ON r.oid = a.grantee
                WHERE (r.oid IS NOT NULL OR a.grantee = 0) AND a.privilege_type = o.privilege
                    AND a.grantee NOT IN (o.owner, holder) AND a.grantor NOT IN (o.owner, holder)
                    AND EXISTS (SELECT FROM aclexplode(o.acl) f
                        WHERE f.grantee = a.grantor AND f.grantor = o.owner AND f.is_grantable
                            AND f.privilege_type = o.privilege)
                    AND NOT EXISTS (SELECT FROM aclexplode(o.acl) f
                        WHERE f.grantee = holder AND f.grantor = o.owner AND f.is_grantable
                            AND f.privilege_type = o.privilege)) g
    LOOP
        -- It is granted by name, and a name may become another one's: then it is
        -- not granted here.
        FOR attempt IN 1..2 LOOP
            SELECT EXISTS (
                SELECT FROM (
                    SELECT proacl FROM pg_proc WHERE oid = item.id AND item.kind = 'ROUTINE'
                    UNION ALL SELECT typacl FROM pg_type WHERE oid = item.id AND item.kind = 'TYPE'
                    UNION ALL SELECT relacl FROM pg_class WHERE oid = item.id AND item.kind = 'TABLE') o (acl),
                    LATERAL aclexplode(o.acl) a
                WHERE a.grantee = item.grantee AND a.grantor = item.owner AND a.privilege_type = item.privilege
                    AND a.is_grantable >= item.is_grantable) INTO is_granted;
            EXIT WHEN is_granted OR attempt = 2;
            EXECUTE format('GRANT %s ON %s %s TO %s%s', item.privilege, item.kind,
                CASE item.kind WHEN 'ROUTINE' THEN item.id::regprocedure::text
                    WHEN 'TYPE' THEN item.id::regtype::text ELSE item.id::regclass::text END,
                CASE item.grantee WHEN 0 THEN 'PUBLIC' ELSE item.grantee::regrole::text END,
                CASE WHEN item.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
        END LOOP;
        IF NOT is_granted THEN
            RAISE EXCEPTION USING ERRCODE = 'serialization_failure',
                MESSAGE = 'could not serialize access because a schema was renamed, or an object got another owner',
                HINT = 'Repeat the transaction.';
        END IF;
    END LOOP;
    -- What is on the tables and uses anything that is neither the server's, as
    -- which nothing is in pg_depend, nor the extension's: its code may be
    -- another role's, or become so.  A former holder may have made it a member
    -- of the extension, and REASSIGN OWNED a superuser's: only C is never his.
    -- Some functions of the server run what they get as text or find by a number,
    -- change a setting, or send a value away: whichever are not immutable and not
    -- known to be harmless, or read a value of any type.
    FOR item IN
        WITH member AS (
            SELECT p.oid, p.proname, l.lanname
            FROM pg_depend d JOIN pg_extension x ON x.oid = d.refobjid AND x.extname = 'extension_storage'
            JOIN pg_proc p ON p.oid = d.objid
            JOIN pg_language l ON l.oid = p.prolang
            WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'),
        on_tables (class, id, nodes) AS (
            SELECT 'pg_class'::regclass::oid, t.oid, NULL FROM unnest(ARRAY[entries, counts]) t (oid)
            UNION ALL SELECT 'pg_class'::regclass, indexrelid, concat(indexprs, indpred)
            FROM pg_index WHERE indrelid IN (entries, counts)
            UNION ALL SELECT 'pg_trigger'::regclass, oid, tgqual::text
            FROM pg_trigger WHERE tgrelid IN (entries, counts)
            UNION ALL SELECT 'pg_constraint'::regclass, oid, conbin::text
            FROM pg_constraint WHERE conrelid IN (entries, counts)
            UNION ALL SELECT 'pg_attrdef'::regclass, oid, adbin::text
            FROM pg_attrdef WHERE adrelid IN (entries, counts)
            UNION ALL SELECT 'pg_policy'::regclass, oid, concat(polqual, polwithcheck)
            FROM pg_policy WHERE polrelid IN (entries, counts)
            UNION ALL SELECT 'pg_rewrite'::regclass, oid, concat(ev_qual, ev_action)
            FROM pg_rewrite WHERE ev_class IN (entries, counts)
            UNION ALL SELECT 'pg_statistic_ext'::regclass, oid, stxexprs::text
            FROM pg_statistic_ext WHERE stxrelid IN (entries, counts))
        SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) AS what,
            'uses ' || pg_describe_object(d.refclassid, d.refobjid, 0) AS does
        FROM on_tables o
        JOIN pg_depend d ON d.classid = o.class AND d.objid = o.id
        WHERE d.refclassid NOT IN ('pg_namespace'::regclass, 'pg_extension'::regclass)
            AND NOT EXISTS (SELECT FROM on_tables r WHERE r.class = d.refclassid AND r.id = d.refobjid)
            AND NOT EXISTS (
                SELECT FROM member m
                WHERE d.classid = 'pg_trigger'::regclass AND d.refclassid = 'pg_proc'::regclass AND d.refobjid = m.oid
                    AND m.proname IN ('ext_storage_count_rows', 'ext_storage_count_statement') AND m.lanname = 'c')
        UNION ALL
        SELECT pg_describe_object('pg_trigger'::regclass, oid, 0), 'uses function ' || tgfoid::regprocedure
        FROM pg_trigger
        WHERE tgrelid IN (entries, counts) AND NOT tgisinternal
            AND tgfoid IN (SELECT oid FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace)
        UNION ALL
        -- a call may find it in the place of the extension's
        SELECT format('function %s', p.oid::regprocedure), 'has the name of one of the extension''s'
        FROM pg_proc p
        WHERE p.pronamespace = home AND p.proname IN (SELECT proname FROM member)
            AND NOT EXISTS (SELECT FROM member m WHERE m.oid = p.oid AND m.lanname = 'c')
            AND p.oid <> ALL (ARRAY(
                SELECT to_regprocedure(format('%s.%s', home, f.signature))::oid
                FROM (VALUES ('ext_storage_attach_users(regclass)'), ('ext_storage_attach_resource(text, regclass, name)'),
                        ('ext_storage_detach(regclass)'), ('ext_storage_purge_orphans()'), ('ext_storage_distribute()'),
                        ('ext_storage_functions()'), ('ext_storage_grant(regrole, text)'), ('ext_storage_revoke(regrole)'),
                        ('ext_storage_take_over()')) f (signature)))
        UNION ALL
        -- where the schema is in search_path, one that fits better is taken
        SELECT pg_describe_object(o.class, o.id, 0), 'has the name of one of the server''s'
        FROM (
            SELECT 'pg_proc'::regclass::oid AS class, p.oid AS id, p.proowner AS owner FROM pg_proc p
            WHERE p.pronamespace = home AND EXISTS (
                SELECT FROM pg_proc c WHERE c.pronamespace = 'pg_catalog'::regnamespace AND c.proname = p.proname)
            UNION ALL
            SELECT 'pg_operator'::regclass, p.oid, p.oprowner FROM pg_operator p
            WHERE p.oprnamespace = home AND EXISTS (
                SELECT FROM pg_operator c WHERE c.oprnamespace = 'pg_catalog'::regnamespace AND c.oprname = p.oprname)) o
        -- who owns an extension can make his own functions a part of it
        WHERE NOT EXISTS (
            SELECT FROM pg_depend d JOIN pg_roles r ON r.oid = o.owner AND r.rolsuper
            WHERE d.classid = o.class AND d.objid = o.id AND d.deptype = 'e')
        UNION ALL
        -- a call with one argument may be a cast to it
        SELECT format('type %s', t.oid::regtype), 'has the name of one of the extension''s functions'
        FROM pg_type t
        WHERE t.typnamespace = home AND t.typname IN (SELECT proname FROM member)
        UNION ALL
        -- with CREATE one can be made later
        SELECT format('schema %s', home), format('lets %s create objects', coalesce('role ' || quote_ident(r.rolname), 'PUBLIC'))
        FROM pg_namespace n, aclexplode(n.nspacl) a
        LEFT JOIN pg_roles r ON r.oid = a.grantee
        WHERE n.oid = home AND a.privilege_type = 'CREATE' AND a.grantee NOT IN (holder, n.nspowner) AND r.rolsuper IS NOT TRUE
        UNION ALL
        SELECT format('schema %s', home), format('belongs to role %I', r.rolname)
        FROM pg_namespace n
        JOIN pg_roles p ON p.oid = n.nspowner
        JOIN pg_database d ON d.datname = current_database()
        JOIN pg_roles r ON r.oid = CASE p.rolname WHEN 'pg_database_owner' THEN d.datdba ELSE p.oid END
        WHERE n.oid = home AND r.oid <> holder AND NOT r.rolsuper
        UNION ALL
        -- who owns them now lends them his rights
        SELECT pg_describe_object('pg_class'::regclass, c.oid, 0), format('shows what is in table %s to others', entries)
        FROM (
            WITH RECURSIVE reader (oid) AS (
                SELECT entries::oid
                UNION
                SELECT w.ev_class FROM reader r
                JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = r.oid
                    AND d.classid = 'pg_rewrite'::regclass
                JOIN pg_rewrite w ON w.oid = d.objid)
            SELECT oid FROM reader WHERE oid <> entries) v
        JOIN pg_class c ON c.oid = v.oid AND c.relkind IN ('v', 'm') AND c.relowner = holder
        WHERE EXISTS (
            SELECT FROM (
                SELECT c.relacl UNION ALL SELECT attacl FROM pg_attribute WHERE attrelid = c.oid) o (acl),
                aclexplode(o.acl) a
            LEFT JOIN pg_roles r ON r.oid = a.grantee
            WHERE a.grantee <> c.relowner AND r.rolsuper IS NOT TRUE)
        UNION ALL
        SELECT pg_describe_object('pg_proc'::regclass, p.oid, 0), format('runs with the rights of role %s for others', holder)
        FROM pg_proc p
        WHERE p.prosecdef AND p.proowner = holder AND NOT (SELECT rolsuper FROM pg_roles WHERE oid = holder)
            AND EXISTS (
                SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                LEFT JOIN pg_roles r ON r.oid = a.grantee
                WHERE a.grantee <> p.proowner AND r.rolsuper IS NOT TRUE)
        UNION ALL
        SELECT DISTINCT pg_describe_object(o.class, o.id, 0), 'is for PUBLIC'
        FROM pg_depend d
        JOIN pg_extension x ON x.oid = d.refobjid AND x.extname = 'extension_storage'
        JOIN (
            SELECT 'pg_proc'::regclass::oid, oid, coalesce(proacl, acldefault('f', proowner)) FROM pg_proc
            WHERE proname <> 'ext_storage_take_over'
            UNION ALL SELECT 'pg_class'::regclass, oid, relacl FROM pg_class
            UNION ALL SELECT 'pg_class'::regclass, attrelid, attacl FROM pg_attribute) o (class, id, acl)
            ON o.class = d.classid AND o.id = d.objid
        CROSS JOIN aclexplode(o.acl) a
        WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND a.grantee = 0
            AND a.privilege_type NOT IN ('TRIGGER', 'REFERENCES')
        UNION ALL
        SELECT pg_describe_object('pg_rewrite'::regclass, w.oid, 0), 'runs statements of its own'
        FROM pg_rewrite w WHERE w.ev_class IN (entries, counts)
        UNION ALL
        SELECT format('table %s', inhrelid::regclass), format('inherits from table %s', inhparent::regclass)
        FROM pg_inherits WHERE inhparent IN (entries, counts)
        UNION ALL
        SELECT DISTINCT pg_describe_object(o.class, o.id, 0), 'uses function ' || p.oid::regprocedure
        FROM on_tables o
        CROSS JOIN regexp_matches(o.nodes, ':(?:op)?funcid ([0-9]+) ', 'g') f (numbers)
        JOIN pg_proc p ON p.oid = f.numbers[1]::oid
        WHERE p.pronamespace = 'pg_catalog'::regnamespace
            AND (p.provolatile <> 'i'
                    AND p.proname !~ ('^((clock|statement|transaction)_timestamp|now|timeofday|random|gen_random_uuid'
                        '|current_(database|schema)|pg_has_role|has_[a-z_]+_privilege|format|concat|concat_ws'
                        '|array_to_string|to_char|convert_(from|to)|date_(part|trunc)|extract|date|timezone'
                        '|(date|timestamp|timestamptz)_(eq|ne|lt|le|gt|ge|cmp|pl|mi)(_[a-z]+)?)$')
                OR ARRAY['cstring'::regtype, 'internal'::regtype]::oid[] && p.proargtypes::oid[])
        UNION ALL
        SELECT format('table %s', c.oid::regclass),
            format('lets %s make %s', coalesce('role ' || quote_ident(r.rolname), 'PUBLIC'),
                CASE a.privilege_type WHEN 'TRIGGER' THEN 'triggers' ELSE 'foreign keys' END)
        FROM (
            SELECT oid, relacl FROM pg_class
            UNION ALL SELECT attrelid, attacl FROM pg_attribute) c (oid, acl), aclexplode(c.acl) a
        LEFT JOIN pg_roles r ON r.oid = a.grantee
        WHERE c.oid IN (entries, counts) AND a.privilege_type IN ('TRIGGER', 'REFERENCES') AND a.grantee <> holder
            AND r.rolsuper IS NOT TRUE
        ORDER BY 1, 2
    LOOP
        RAISE WARNING USING
            MESSAGE = format('%s %s', item.what, item.does),
            DETAIL = format('This may run code of others with the rights of role %s, or show them values.', holder),
            HINT = 'Drop or revoke it, unless you trust who made it and who owns what it uses.';
    END LOOP;

    FOR item IN
        SELECT t.id, a.why
        FROM (
            SELECT DISTINCT t.tgrelid::regclass AS id
            FROM pg_trigger t
            JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = t.tgfoid
                AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
            JOIN pg_extension x ON x.oid = d.refobjid AND x.extname = 'extension_storage'
            WHERE t.tgparentid = 0 AND t.tgrelid NOT IN (entries, counts, secrets)) t
        JOIN pg_class c ON c.oid = t.id
        CROSS JOIN LATERAL (
            SELECT 'which role ' || r.oid::regrole || ' owns' AS why
            FROM pg_roles r WHERE r.oid = c.relowner AND r.oid <> holder AND NOT r.rolsuper
            UNION
            SELECT 'from which ' || coalesce('role ' || r.oid::regrole, 'PUBLIC') || ' may delete'
            FROM aclexplode(c.relacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
            WHERE a.privilege_type IN ('DELETE', 'TRUNCATE', 'TRIGGER') AND a.grantee NOT IN (c.relowner, holder)
                AND r.rolsuper IS NOT TRUE) a
        ORDER BY 1, 2
    LOOP
        RAISE WARNING USING
            MESSAGE = format('table %s, %s, is attached', item.id, item.why),
            DETAIL = 'Whoever may delete its rows deletes entries with them.',
            HINT = format('Detach it, unless you trust that role: SELECT %s.ext_storage_detach(%L)', home, item.id);
    END LOOP;

    -- There is no ALTER EXTENSION ... OWNER TO.
    SELECT x.extowner::regrole AS owner INTO item
    FROM pg_extension x JOIN pg_roles r ON r.oid = x.extowner
    WHERE x.extname = 'extension_storage' AND x.extowner <> holder AND NOT r.rolsuper;
    IF FOUND THEN
        RAISE WARNING USING
            MESSAGE = format('extension "extension_storage" still belongs to role %s', item.owner),
            DETAIL = format('DROP OWNED BY %s would drop it, with all entries.', item.owner),
            HINT = format('First run REASSIGN OWNED BY %s TO %s in this database.', item.owner, holder);
    END IF;

    -- Before PostgreSQL 17, DROP ROLE leaves the role's number in what pg_dump
    -- compares rights with, and a dump then revokes from a role of that name.
    UPDATE pg_init_privs i SET initprivs = ARRAY(
        SELECT u.item FROM unnest(i.initprivs) WITH ORDINALITY u (item, n)
        WHERE NOT EXISTS (
            SELECT FROM aclexplode(ARRAY[u.item]) a
            WHERE a.grantee <> 0 AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = a.grantee))
        ORDER BY u.n)
    FROM pg_depend d
    JOIN pg_extension x ON x.oid = d.refobjid AND x.extname = 'extension_storage'
    WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
        AND d.classid = i.classoid AND d.objid = i.objoid
        AND EXISTS (
            SELECT FROM aclexplode(i.initprivs) a
            WHERE a.grantee <> 0 AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = a.grantee));

    -- the names above may have become those of others, or the table have changed hands
    IF (SELECT count(*) FROM pg_class WHERE oid IN (entries, counts) AND relowner = holder) <> 2 THEN
        RAISE EXCEPTION USING ERRCODE = 'serialization_failure',
            MESSAGE = 'could not serialize access because a schema was renamed, or a table got another owner',
            HINT = 'Repeat the transaction.';
    END IF;
END
$$;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_take_over() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION @extschema@.ext_storage_take_over() TO PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_take_over() IS
    'Gives the present owner of the table extension_storage the rights of the holder, after a change of owner';

-- Gives the holder of the extension what it has to have: EXECUTE with grant
-- option on all that a role may call.  Nothing is granted again: that would
-- make rights that others were given since part of the extension, and they
-- would be missing from dumps.
DO $holder$
DECLARE
    holder pg_catalog.regrole;
    member pg_catalog.regprocedure;
    member_level pg_catalog.text;
    other pg_catalog.text;
BEGIN
    SELECT relowner INTO STRICT holder FROM pg_catalog.pg_class
    WHERE oid OPERATOR(pg_catalog.=) '@extschema@.extension_storage'::pg_catalog.regclass;
    -- looked at by the library, as above
    FOR member, member_level IN EXECUTE
        '/* statement of extension_storage */ SELECT f.function, f.level FROM @extschema@.ext_storage_functions() f'
    LOOP
        IF member_level OPERATOR(pg_catalog.=) 'trigger' THEN
            -- a trigger runs its function whoever writes, so nobody needs
            -- EXECUTE, with which they could make triggers of their own
            FOR other IN
                SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC'
                    ELSE CAST(CAST(a.grantee AS pg_catalog.regrole) AS pg_catalog.text) END
                FROM pg_catalog.pg_proc p, pg_catalog.aclexplode(p.proacl) a
                WHERE p.oid OPERATOR(pg_catalog.=) member
                    AND a.grantee OPERATOR(pg_catalog.<>) p.proowner
            LOOP
                EXECUTE pg_catalog.format(
                    'REVOKE ALL ON ROUTINE %s FROM %s CASCADE', member, other);
            END LOOP;
        ELSIF NOT pg_catalog.has_function_privilege(
                holder, member, 'EXECUTE WITH GRANT OPTION') THEN
            EXECUTE pg_catalog.format(
                'GRANT EXECUTE ON ROUTINE %s TO %s WITH GRANT OPTION', member, holder);
        END IF;
    END LOOP;
END
$holder$;
