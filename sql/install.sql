-- Installing: where, by whom, and what is there afterwards.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup

-- The table: its columns in their order ...
SELECT attname AS column, format_type(atttypid, atttypmod) AS type,
    attnotnull AS not_null,
    coalesce(pg_get_expr(adbin, adrelid),
        CASE attidentity WHEN 'd' THEN 'identity' END) AS default,
    nullif(collname, 'default') AS collation
FROM pg_attribute
LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
LEFT JOIN pg_collation c ON c.oid = attcollation
WHERE attrelid = 'extension_storage'::regclass AND attnum > 0
ORDER BY attnum;
-- ... its constraints, none of them a foreign key, and its indexes.
SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE conrelid = 'extension_storage'::regclass AND contype <> 'n'
ORDER BY conname COLLATE "C";
SELECT indexdef FROM pg_indexes WHERE tablename = 'extension_storage'
ORDER BY indexname COLLATE "C";

-- An entry without its value.
SELECT attname, format_type(atttypid, atttypmod) AS type FROM pg_attribute
WHERE attrelid = 'ext_storage_entry'::regclass AND attnum > 0
ORDER BY attnum;

-- Everything that belongs to the extension, but for the types that come with a
-- table or a type and are members of their own since PostgreSQL 17.
CREATE TEMP VIEW member AS
SELECT classid, objid, deptype FROM pg_depend
WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
    AND refobjid = (SELECT oid FROM pg_extension
        WHERE extname = 'extension_storage')
    AND NOT (classid = 'pg_type'::regclass AND objid IN (
        SELECT t.oid FROM pg_type t LEFT JOIN pg_class c ON c.oid = typrelid
        WHERE typcategory = 'A' OR relkind <> 'c'));
SELECT pg_describe_object(classid, objid, 0) AS object FROM member
ORDER BY pg_describe_object(classid, objid, 0) COLLATE "C";

-- Functions: their names of arguments, their results, and how volatile and how
-- safe in parallel plans they are.
\pset format unaligned
\pset fieldsep '\n    '
\pset tuples_only
SELECT proname, pg_get_function_arguments(oid),
    coalesce(pg_get_function_result(oid), 'procedure'),
    CASE provolatile WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable'
        WHEN 'v' THEN 'volatile' END || ', parallel ' ||
    CASE proparallel WHEN 's' THEN 'safe' WHEN 'r' THEN 'restricted'
        WHEN 'u' THEN 'unsafe' END
FROM member JOIN pg_proc ON oid = objid AND classid = 'pg_proc'::regclass
ORDER BY proname COLLATE "C";
\pset tuples_only
\pset format aligned
-- None runs with other rights than the caller's; those written in PL/pgSQL
-- depend on no search_path.
SELECT proname, prosecdef AS definer, lanname AS language, proconfig
FROM member JOIN pg_proc p ON p.oid = objid AND classid = 'pg_proc'::regclass
JOIN pg_language l ON l.oid = prolang
WHERE prosecdef OR lanname <> 'c' OR proconfig IS NOT NULL
ORDER BY proname COLLATE "C";

-- Every member and every column has a comment.
SELECT pg_describe_object(classid, objid, 0) AS without_comment
FROM member
WHERE obj_description(objid, classid::regclass::name) IS NULL;
SELECT attrelid::regclass AS relation, attname AS without_comment
FROM member JOIN pg_class c ON c.oid = objid AND classid = 'pg_class'::regclass AND relkind = 'r'
JOIN pg_attribute ON attrelid = objid AND attnum > 0
WHERE col_description(attrelid, attnum) IS NULL;

-- The list of all that PUBLIC may do with the members: nothing, but for the one
-- function that checks its caller itself.
CREATE TEMP VIEW public_may AS
SELECT privilege, pg_describe_object('pg_class'::regclass, objid, 0) AS object
FROM member JOIN pg_class c ON c.oid = objid AND relkind = 'r',
    unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE',
        'REFERENCES', 'TRIGGER']) AS privilege
WHERE classid = 'pg_class'::regclass
    AND (has_table_privilege('public', objid, privilege)
        OR privilege IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')
            AND has_any_column_privilege('public', objid, privilege))
UNION ALL
SELECT privilege, pg_describe_object('pg_class'::regclass, objid, 0)
FROM member JOIN pg_class c ON c.oid = objid AND relkind = 'S',
    unnest(ARRAY['USAGE', 'SELECT', 'UPDATE']) AS privilege
WHERE classid = 'pg_class'::regclass
    AND has_sequence_privilege('public', objid, privilege)
UNION ALL
SELECT 'EXECUTE', pg_describe_object(classid, objid, 0)
FROM member
WHERE classid = 'pg_proc'::regclass
    AND has_function_privilege('public', objid, 'EXECUTE')
UNION ALL
SELECT 'USAGE', pg_describe_object('pg_type'::regclass, t.oid, 0)
FROM member JOIN pg_type t
    ON classid = 'pg_type'::regclass AND objid = t.oid
WHERE has_type_privilege('public', t.oid, 'USAGE');
SELECT * FROM public_may;
-- That list is able to have something in it.
BEGIN;
GRANT SELECT (key), TRUNCATE ON extension_storage TO PUBLIC;
GRANT USAGE ON SEQUENCE extension_storage_id_seq TO PUBLIC;
GRANT EXECUTE ON FUNCTION fernet_generate_key TO PUBLIC;
GRANT USAGE ON TYPE ext_storage_entry TO PUBLIC;
SELECT * FROM public_may ORDER BY 1, 2;
ROLLBACK;

-- Every function has a level, every level is one of these, and every function
-- that somebody may call has a row in README.md, with its arguments.
SELECT level, count(*) > 0 AS some FROM ext_storage_functions() GROUP BY level ORDER BY level;
SELECT objid::regprocedure AS without_level FROM member
LEFT JOIN ext_storage_functions() ON function = objid
WHERE classid = 'pg_proc'::regclass AND level IS NULL;
WITH documented AS (
    SELECT m[1] AS name, regexp_replace(m[2], '(\w+) \w+', '\1', 'g') AS arguments
    FROM regexp_split_to_table(pg_read_file(:'abs_srcdir' || '/README.md'), '\n') line,
        regexp_matches(split_part(line, '|', 2), '`(\w+)\(([^)]*)\)`', 'g') m
    WHERE line LIKE '| `%'
), declared AS (
    SELECT p.oid::regprocedure AS function, proname,
        replace(coalesce(string_agg(name, ', ' ORDER BY n), ''),
            'user_fk, resource_type, resource_uuid', 'scope') AS arguments
    FROM ext_storage_functions() JOIN pg_proc p ON p.oid = function
    LEFT JOIN unnest(proargnames, proargmodes) WITH ORDINALITY AS u (name, mode, n)
        ON coalesce(mode, 'i') = 'i'
    WHERE prorettype <> 'trigger'::regtype
    GROUP BY p.oid
)
SELECT function AS not_in_readme, arguments FROM declared d
WHERE NOT EXISTS (
    SELECT FROM documented r WHERE r.name = d.proname
        AND d.arguments LIKE regexp_replace(r.arguments, ', …$', ', %'));

-- What runs queries says so to the planner.
SELECT function AS cheap FROM ext_storage_functions() JOIN pg_proc ON oid = function
WHERE level IN ('read', 'write', 'admin') AND prokind = 'f' AND procost < 100;

-- pg_dump saves the rows and the sequence.
SELECT unnest(extconfig)::regclass AS dumped, unnest(extcondition) AS condition
FROM pg_extension WHERE extname = 'extension_storage' ORDER BY 1;

-- A database of somebody who is not superuser.
CREATE ROLE regress_owner;
CREATE ROLE regress_plain;
CREATE DATABASE regression_install OWNER regress_owner TEMPLATE template0;
\c regression_install
SET client_min_messages = warning;
-- The holder is who owns the table; rights() tells what else that role has, on
-- all but the functions of the table's own triggers.
CREATE FUNCTION pg_temp.rights(OUT holder regrole, OUT superuser_functions boolean,
    OUT may_grant_functions boolean, OUT may_grant_type boolean)
LANGUAGE sql BEGIN ATOMIC
    SELECT relowner, bool_and(rolsuper),
        bool_and(has_function_privilege(relowner, p.oid,
            'EXECUTE WITH GRANT OPTION')),
        bool_and(has_type_privilege(relowner, t.oid,
            'USAGE WITH GRANT OPTION'))
    FROM pg_class c, pg_type t, pg_proc p JOIN pg_roles r ON r.oid = proowner
    WHERE relname = 'extension_storage' AND typname = 'ext_storage_entry'
        AND proname ~ '^(ext_storage|fernet)_'
        AND proname !~ '_(count_rows|count_statement|secrets_insert)$'
    GROUP BY relowner;
END;
-- Installed by that owner, with pgcrypto ...
SET SESSION AUTHORIZATION regress_owner;
CREATE EXTENSION extension_storage CASCADE;
SELECT version FROM ext_storage_set('acme.tasks', 'k', 'x', 'text/plain');
RESET SESSION AUTHORIZATION;
SELECT * FROM pg_temp.rights();
SET SESSION AUTHORIZATION regress_owner;
DROP EXTENSION extension_storage;
RESET SESSION AUTHORIZATION;
-- ... and by a superuser: the rights are the same.
CREATE EXTENSION extension_storage;
SELECT * FROM pg_temp.rights();
SET SESSION AUTHORIZATION regress_owner;
SELECT version FROM ext_storage_set('acme.tasks', 'k', 'x', 'text/plain');
-- The table belongs to the extension: it cannot go alone.
DROP TABLE extension_storage;
RESET SESSION AUTHORIZATION;

-- Dropping it leaves nothing, and nobody else may install it.
DROP EXTENSION extension_storage;
-- What an owner without superuser puts on the tables runs with his rights when
-- the update changes their rows, whoever asks for it.
SET SESSION AUTHORIZATION regress_owner;
CREATE EXTENSION extension_storage VERSION '1.1';
CREATE TABLE who_ran (name text);
CREATE FUNCTION note_who() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN INSERT INTO who_ran VALUES (current_user); RETURN NULL; END';
CREATE TRIGGER hostile AFTER UPDATE ON extension_storage FOR EACH STATEMENT EXECUTE FUNCTION note_who();
CREATE TRIGGER hostile AFTER DELETE OR TRUNCATE ON extension_storage_usage FOR EACH STATEMENT EXECUTE FUNCTION note_who();
SELECT version FROM ext_storage_set('acme.tasks', 'k', 'x', 'text/plain');
ALTER EXTENSION extension_storage UPDATE;
SELECT DISTINCT name FROM who_ran;
-- Where a superuser asks, nothing that they put off to the end runs with his.
DROP EXTENSION extension_storage;
CREATE EXTENSION extension_storage VERSION '1.1';
INSERT INTO extension_storage (extension_id, key, value, value_size) VALUES ('acme.tasks', 'k', 'x', -1);
CREATE CONSTRAINT TRIGGER hostile AFTER UPDATE ON extension_storage DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION note_who();
RESET SESSION AUTHORIZATION;
ALTER EXTENSION extension_storage UPDATE;
SELECT DISTINCT name FROM who_ran;
DROP EXTENSION extension_storage;

-- So it is with every function that a superuser calls, also of constraints and of
-- a view in the table's place.  They leave no setting behind.
SET SESSION AUTHORIZATION regress_owner;
CREATE EXTENSION extension_storage;
CREATE FUNCTION ran(what text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.who_ran VALUES (what || ' as ' || current_user);
    PERFORM set_config('application_name', 'hostile', false);
    RETURN true;
END $$;
CREATE OR REPLACE FUNCTION note_who() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM public.ran(''trigger''); RETURN NULL; END';
CREATE TRIGGER hostile AFTER INSERT OR UPDATE OR DELETE ON extension_storage
    FOR EACH STATEMENT EXECUTE FUNCTION note_who();
ALTER TABLE extension_storage ADD CONSTRAINT hostile CHECK (ran('constraint')) NOT VALID;
CREATE TABLE others (id integer PRIMARY KEY);
SELECT ext_storage_attach_users('others');
RESET SESSION AUTHORIZATION;
SET extension_storage.encryption_keys = 'new,old';
CREATE PROCEDURE call_all() LANGUAGE plpgsql AS $$
BEGIN
    PERFORM ext_storage_set('acme.tasks', 'k', 'x', is_encrypted => true);
    PERFORM ext_storage_set_json('acme.tasks', 'k', '1');
    PERFORM ext_storage_set_many('acme.tasks', ARRAY['l', 'm'], ARRAY['x', 'y']::bytea[]);
    PERFORM ext_storage_get('acme.tasks', 'k');
    PERFORM ext_storage_get_json('acme.tasks', 'k');
    PERFORM ext_storage_get_entry('acme.tasks', 'k');
    PERFORM ext_storage_get_many('acme.tasks', ARRAY['k']);
    PERFORM ext_storage_list('acme.tasks');
    PERFORM ext_storage_list_newest('acme.tasks');
    PERFORM ext_storage_list_values('acme.tasks');
    PERFORM ext_storage_count('acme.tasks');
    PERFORM ext_storage_usage();
    PERFORM ext_storage_verify();
    PERFORM ext_storage_key_status();
    EXECUTE 'CALL ext_storage_rotate_keys()';
    PERFORM ext_storage_rename('acme.tasks', 'k', 'n');
    PERFORM ext_storage_delete('acme.tasks', 'n');
    PERFORM ext_storage_delete_many('acme.tasks', ARRAY['l']);
    PERFORM ext_storage_delete_prefix('acme.tasks', 'm');
    PERFORM ext_storage_purge_user(1);
    PERFORM ext_storage_purge_resource('chart', '1');
    PERFORM ext_storage_purge_extension('acme.tasks');
END $$;
SET application_name = 'mine';
CALL call_all();
SHOW application_name;
SET ROLE regress_owner;
ALTER TABLE extension_storage RENAME TO entries;
CREATE VIEW extension_storage AS SELECT * FROM entries WHERE ran('view');
-- for verify, which reads by a cursor, and for an attached table
INSERT INTO entries (extension_id, key, value, user_fk) VALUES ('acme.tasks', 'foreign', 'x', 1);
RESET ROLE;
SET application_name = 'mine';
CALL call_all();
SELECT key FROM ext_storage_verify();
INSERT INTO others VALUES (1);
DELETE FROM others;
SHOW application_name;
SET ROLE regress_owner;
DROP VIEW extension_storage;
ALTER TABLE entries RENAME TO extension_storage;
RESET ROLE;
SELECT name, count(*) > 0 AS ran FROM who_ran WHERE name LIKE '%as%' GROUP BY name ORDER BY name COLLATE "C";
-- One function has statements of its own, which no superuser can run.
SELECT ext_storage_purge_orphans();
SET ROLE regress_owner;
SELECT ext_storage_purge_orphans();
RESET ROLE;
RESET extension_storage.encryption_keys;
DROP PROCEDURE call_all();
DROP TABLE who_ran, others;
DROP EXTENSION extension_storage CASCADE;
DROP FUNCTION note_who(), ran(text);
SELECT to_regclass('extension_storage') AS table,
    to_regtype('ext_storage_entry') AS type,
    (SELECT count(*) FROM pg_proc
     WHERE proname ~ '^(ext_storage|fernet)_') AS functions;
SET SESSION AUTHORIZATION regress_plain;
CREATE EXTENSION extension_storage;
RESET SESSION AUTHORIZATION;

-- It can be made and used in one transaction, of any level.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT FROM pg_class LIMIT 0;
CREATE EXTENSION extension_storage;
SELECT version FROM ext_storage_set('acme.tasks', 'k', 'x');
SELECT ext_storage_get('acme.tasks', 'k');
ROLLBACK;

-- A table extension_storage of somebody else stops it ...
CREATE TABLE extension_storage (id integer, key text);
INSERT INTO extension_storage VALUES (1, 'not ours');
CREATE EXTENSION extension_storage;
-- ... and so does a function that somebody else has put there.
ALTER TABLE extension_storage RENAME TO other;
CREATE FUNCTION fernet_generate_key() RETURNS text LANGUAGE sql
AS 'SELECT ''known to the attacker''';
CREATE EXTENSION extension_storage;
DROP FUNCTION fernet_generate_key();
ALTER TABLE other RENAME TO extension_storage;
SELECT extname FROM pg_extension WHERE extname = 'extension_storage';

-- The way out that the error names: a schema of its own, here one whose name
-- needs quotes and has what means something in formats and scripts.  The other table stays what it was.
CREATE SCHEMA "100% Ext @Storage";
CREATE EXTENSION extension_storage SCHEMA "100% Ext @Storage";
SELECT extnamespace::regnamespace FROM pg_extension
WHERE extname = 'extension_storage';
SELECT "100% Ext @Storage".ext_storage_get('acme.tasks', 'k');
GRANT USAGE ON SCHEMA "100% Ext @Storage" TO regress_owner;
SELECT version FROM "100% Ext @Storage".ext_storage_set('acme.tasks', 'k', 'x',
    'text/plain');
SELECT "100% Ext @Storage".ext_storage_get('acme.tasks', 'k');
SELECT "100% Ext @Storage".ext_storage_grant('regress_plain', 'read');
CREATE TABLE ab_user (id integer PRIMARY KEY, uuid uuid);
SELECT "100% Ext @Storage".ext_storage_attach_users();
SELECT "100% Ext @Storage".ext_storage_attach_resource('user', 'ab_user');
SET extension_storage.quota_per_extension = 100;
INSERT INTO ab_user VALUES (1, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11');
SELECT version FROM "100% Ext @Storage".ext_storage_set('acme.tasks', 'own', 'x', user_fk => 1);
SET ROLE regress_plain;
SELECT key FROM "100% Ext @Storage".ext_storage_list('acme.tasks', user_fk => 1);
RESET ROLE;
DELETE FROM ab_user;
SELECT entries, value_bytes FROM "100% Ext @Storage".ext_storage_usage();
RESET extension_storage.quota_per_extension;
SELECT * FROM extension_storage;

-- A table of the same name that was made a member is none of the extension's.
BEGIN;
ALTER EXTENSION extension_storage ADD TABLE extension_storage;
SELECT "100% Ext @Storage".ext_storage_take_over();
SELECT relowner::regrole FROM pg_class WHERE relname = 'extension_storage_usage';
ROLLBACK;

-- It stays in that schema, which may be renamed under a running session.
ALTER EXTENSION extension_storage SET SCHEMA public;
SELECT "100% Ext @Storage".ext_storage_count('acme.tasks');
ALTER SCHEMA "100% Ext @Storage" RENAME TO ext_storage;
SELECT ext_storage.ext_storage_count('acme.tasks');
SELECT version FROM ext_storage.ext_storage_set('acme.tasks', 'k', 'y',
    'text/plain');
-- A function that is moved alone finds no table; the others go on.
CREATE SCHEMA regress_alone;
SELECT ext_storage.ext_storage_count('acme.tasks');
ALTER FUNCTION ext_storage.ext_storage_count SET SCHEMA regress_alone;
SELECT version FROM ext_storage.ext_storage_list('acme.tasks');
SELECT regress_alone.ext_storage_count('acme.tasks');
SELECT version FROM ext_storage.ext_storage_list('acme.tasks');
ALTER FUNCTION regress_alone.ext_storage_count SET SCHEMA ext_storage;
DROP SCHEMA regress_alone;
SELECT ext_storage.ext_storage_count('acme.tasks');
SELECT ext_storage.ext_storage_get('acme.tasks', 'k');

\c contrib_regression
DROP DATABASE regression_install;
DROP ROLE regress_owner, regress_plain;
