-- Levels of rights: what each gives and what it does not.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup

CREATE ROLE regress_read;
CREATE ROLE regress_write;
CREATE ROLE regress_admin;
CREATE ROLE "regress ""odd"" Role";
CREATE ROLE regress_leaver;
SELECT ext_storage_grant('regress_read', 'read');
SELECT ext_storage_grant(role => 'regress_write', level => 'write');
SELECT ext_storage_grant('regress_admin', 'admin');

-- The rights on everything that the extension has.
SELECT DISTINCT proname AS routine, r.read, r.write, r.admin
FROM pg_depend d
JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
JOIN pg_extension x ON x.oid = d.refobjid AND x.extname = 'extension_storage',
    LATERAL (SELECT has_function_privilege('regress_read', p.oid, 'EXECUTE') AS read,
        has_function_privilege('regress_write', p.oid, 'EXECUTE') AS write,
        has_function_privilege('regress_admin', p.oid, 'EXECUTE') AS admin) r
ORDER BY r.read DESC, r.write DESC, r.admin DESC, proname;
SELECT relname, right_, has_table_privilege('regress_read', c.oid, right_) AS read,
    has_table_privilege('regress_write', c.oid, right_) AS write,
    has_table_privilege('regress_admin', c.oid, right_) AS admin
FROM pg_class c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE',
    'REFERENCES', 'TRIGGER']) WITH ORDINALITY r (right_, n)
WHERE relname IN ('extension_storage', 'extension_storage_usage') ORDER BY relname, n;
SELECT rolname, has_type_privilege(rolname, 'ext_storage_entry', 'USAGE') AS entry,
    has_sequence_privilege(rolname, 'extension_storage_id_seq', 'USAGE,UPDATE,SELECT') AS ids
FROM pg_roles WHERE rolname ~ '^regress_(read|write|admin)$' ORDER BY 1;
-- None may grant what it has.
SELECT count(*) FROM pg_proc, unnest(ARRAY['regress_read', 'regress_write',
    'regress_admin']) role
WHERE has_function_privilege(role, oid, 'EXECUTE WITH GRANT OPTION')
    AND proname ~ '^(ext_storage|fernet)_';

-- What works and what is refused, in deed.
SET extension_storage.encryption_keys = 'a-secret';
CREATE TEMP TABLE calls (n serial, call text);
INSERT INTO calls (call) VALUES
    ('SELECT ext_storage_get(''acme.tasks'', ''k'')'),
    ('SELECT ext_storage_get_json(''acme.tasks'', ''k'')'),
    ('SELECT * FROM ext_storage_get_entry(''acme.tasks'', ''k'')'),
    ('SELECT * FROM ext_storage_list(''acme.tasks'')'),
    ('SELECT ext_storage_count(''acme.tasks'')'),
    ('SELECT * FROM ext_storage_usage()'),
    ('SELECT key FROM extension_storage'),
    ('SELECT ext_storage_set(''acme.tasks'', ''k'', ''1'', is_encrypted => true)'),
    ('SELECT ext_storage_set(''acme.tasks'', ''k2'', ''1'', if_version => 0)'),
    ('SELECT ext_storage_set_json(''acme.tasks'', ''k2'', ''1'', if_version => 1)'),
    ('SELECT ext_storage_delete(''acme.tasks'', ''k2'')'),
    ('SELECT ext_storage_purge_extension(''acme.none'')'),
    ('SELECT ext_storage_purge_user(7)'),
    ('SELECT ext_storage_purge_resource(''chart'', ''c7'')'),
    ('INSERT INTO extension_storage (extension_id, key, value) VALUES (''acme.raw'', ''k'', ''x'')'),
    ('UPDATE extension_storage SET key = ''k3'' WHERE extension_id = ''acme.raw'''),
    ('DELETE FROM extension_storage WHERE extension_id = ''acme.raw'''),
    ('CALL ext_storage_rotate_keys()'),
    ('SELECT * FROM ext_storage_key_status()'),
    ('SELECT * FROM ext_storage_verify()'),
    ('SELECT ext_storage_attach_users(''calls'')'),
    ('SELECT ext_storage_attach_resource(''chart'', ''calls'', ''call'')'),
    ('SELECT ext_storage_detach(''calls'')'),
    ('SELECT ext_storage_grant(''regress_read'', ''admin'')'),
    ('SELECT fernet_generate_key()'),
    ('SELECT fernet_derive_key(''secret'')'),
    ('TRUNCATE extension_storage'),
    ('ALTER TABLE extension_storage DISABLE TRIGGER ALL'),
    ('SELECT * FROM extension_storage_usage');
GRANT SELECT ON calls TO regress_read, regress_write, regress_admin;
SELECT version FROM ext_storage_set('acme.tasks', 'k', '1', is_encrypted => true);
SET client_min_messages = warning;
SET ROLE regress_read;
SELECT pg_temp.error_of(call) AS "at level read", call FROM calls ORDER BY n;
SET ROLE regress_write;
SELECT pg_temp.error_of(call) AS "at level write", call FROM calls ORDER BY n;
SET ROLE regress_admin;
SELECT pg_temp.error_of(call) AS "at level admin", call FROM calls ORDER BY n;
RESET ROLE;
RESET client_min_messages;
RESET extension_storage.encryption_keys;

-- A higher level adds, a lower one takes nothing away, the same changes nothing.
SELECT ext_storage_grant('regress_read', 'write');
SELECT has_function_privilege('regress_read', oid, 'EXECUTE') FROM pg_proc
WHERE proname = 'ext_storage_set';
SELECT ext_storage_grant('regress_admin', 'read'), ext_storage_grant('regress_admin', 'read');
SELECT has_function_privilege('regress_admin', oid, 'EXECUTE') FROM pg_proc
WHERE proname = 'ext_storage_verify';

-- A role whose name needs quotes; members of it have its rights.
SELECT ext_storage_grant('"regress ""odd"" Role"', 'write');
CREATE ROLE regress_member IN ROLE "regress ""odd"" Role";
SET ROLE regress_member;
SELECT version FROM ext_storage_set('acme.tasks', 'by-member', 'x', 'text/plain');
RESET ROLE;

-- Arguments.
SELECT e, pg_temp.error_of('SELECT ext_storage_grant(' || e || ')') FROM unnest(ARRAY[
    'NULL, ''read''', '''regress_read'', NULL', '''regress_read'', ''owner''',
    '''regress_read'', ''READ''', '''regress_read'', ''''',
    '''regress_nobody'', ''read''', '''-'', ''read''', '0, ''read''', '1, ''read''']) e;

-- No level gives what would run with the rights of others.
SELECT l AS level, ext_storage_grant('regress_leaver', l),
    has_table_privilege('regress_leaver', 'extension_storage', 'TRIGGER, REFERENCES, TRUNCATE') AS too_much
FROM unnest(ARRAY['read', 'write', 'admin']) l;
SELECT ext_storage_revoke('regress_leaver');
-- All of it is taken back, whatever it was; the role can go then.
SELECT ext_storage_grant('regress_leaver', 'write');
SELECT pg_temp.error_of('DROP ROLE regress_leaver') ~ '^2BP01' AS is_needed;
SELECT ext_storage_revoke('regress_leaver'), ext_storage_revoke('regress_leaver');
SELECT current_setting('role') AS role, has_table_privilege('regress_leaver', 'extension_storage', 'SELECT') AS reads;
DROP ROLE regress_leaver;
-- So are rights on single columns, whoever granted them, and on the type of a
-- table's rows.
CREATE ROLE regress_leaver;
CREATE ROLE regress_passer;
GRANT SELECT (key, value), UPDATE (value) ON extension_storage TO regress_leaver;
GRANT SELECT (extension_id) ON extension_storage_usage TO regress_leaver;
GRANT INSERT (secret_key) ON ext_storage_secrets TO regress_leaver;
GRANT SELECT (last_value) ON extension_storage_id_seq TO regress_leaver;
GRANT USAGE ON TYPE extension_storage TO regress_leaver;
GRANT SELECT (key), UPDATE (value, category) ON extension_storage TO regress_passer WITH GRANT OPTION;
SET ROLE regress_passer;
GRANT SELECT (key), UPDATE (value, category) ON extension_storage TO regress_leaver;
RESET ROLE;
SELECT ext_storage_revoke('regress_leaver');
SELECT c AS column, has_column_privilege('regress_leaver', 'extension_storage', c, 'SELECT, UPDATE') AS has_right
FROM unnest(ARRAY['key', 'value', 'category']) c;
DROP ROLE regress_leaver;
-- Those on a column that is gone are gone with it.
CREATE ROLE regress_leaver;
BEGIN;
ALTER TABLE extension_storage ADD COLUMN former text;
GRANT SELECT (former) ON extension_storage TO regress_leaver;
ALTER TABLE extension_storage DROP COLUMN former;
SELECT ext_storage_revoke('regress_leaver');
ROLLBACK;
-- Who did not grant them cannot take them back.
GRANT EXECUTE ON FUNCTION ext_storage_revoke TO regress_admin;
SET ROLE regress_passer;
GRANT UPDATE (category) ON extension_storage TO regress_leaver;
SET SESSION AUTHORIZATION regress_admin;
SELECT pg_temp.error_of($$SELECT ext_storage_revoke('regress_leaver')$$);
RESET SESSION AUTHORIZATION;
-- Nor is it done if whoever granted them is a superuser by now, whose REVOKE is the owner's.
ALTER ROLE regress_passer SUPERUSER;
SELECT pg_temp.error_of($$SELECT ext_storage_revoke('regress_leaver')$$);
ALTER ROLE regress_passer NOSUPERUSER;
-- What a role has passed on must be taken from the others first.
SELECT pg_temp.error_of($$SELECT ext_storage_revoke('regress_passer')$$);
SELECT ext_storage_revoke('regress_leaver'), ext_storage_revoke('regress_passer');
DROP ROLE regress_passer;
-- What is no right on an object of the extension stays.
SELECT ext_storage_grant('regress_leaver', 'read');
CREATE POLICY regress_policy ON extension_storage TO regress_leaver;
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO regress_leaver;
GRANT SET ON PARAMETER extension_storage.max_value_size TO regress_leaver;
SELECT ext_storage_revoke('regress_leaver');
SELECT classid::regclass AS catalog FROM pg_shdepend
WHERE refclassid = 'pg_authid'::regclass AND refobjid = 'regress_leaver'::regrole
ORDER BY classid::regclass::text;
DROP POLICY regress_policy ON extension_storage;
DROP OWNED BY regress_leaver;
DROP ROLE regress_leaver;
-- A lower level is a new one.
SELECT ext_storage_revoke('regress_admin'), ext_storage_grant('regress_admin', 'read');
SELECT has_function_privilege('regress_admin', oid, 'EXECUTE') FROM pg_proc
WHERE proname IN ('ext_storage_get', 'ext_storage_set') ORDER BY proname;
SELECT e, pg_temp.error_of('SELECT ext_storage_revoke(' || e || ')') FROM unnest(ARRAY[
    'NULL', '''regress_nobody''', '''-''', '1']) e;

-- Without the right to grant, nothing is granted, and the error says so.
CREATE ROLE regress_grantor;
CREATE ROLE regress_new;
GRANT EXECUTE ON FUNCTION ext_storage_grant TO regress_grantor;
SET client_min_messages = error;
SET ROLE regress_grantor;
SELECT pg_temp.error_of($$SELECT ext_storage_grant('regress_new', 'read')$$);
RESET ROLE;
SELECT ext_storage_grant('regress_grantor', 'admin');
SET ROLE regress_grantor;
SELECT pg_temp.error_of($$SELECT ext_storage_grant('regress_new', 'read')$$);
RESET ROLE;
RESET client_min_messages;
SELECT has_table_privilege('regress_new', 'extension_storage', 'SELECT');

TRUNCATE extension_storage;
DROP OWNED BY regress_read, regress_write, regress_admin, "regress ""odd"" Role",
    regress_grantor, regress_new;
DROP ROLE regress_read, regress_write, regress_admin, "regress ""odd"" Role",
    regress_member, regress_grantor, regress_new;
