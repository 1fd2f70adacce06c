-- The owner of the table does to it what he likes: the worst is an error.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup
SET extension_storage.encryption_keys = 'a secret';
SET client_min_messages = warning;
CREATE ROLE regress_holder;
SELECT FROM ext_storage_set('acme.h', 'k', 'plain', description => 'words');
SELECT FROM ext_storage_set('acme.h', 's', 'secret', is_encrypted => true);

-- A table that is taken over, and one whose rows have entries.
CREATE TABLE hostile_source AS SELECT * FROM extension_storage WHERE key = 'k';
CREATE TABLE hostile_users (id integer PRIMARY KEY);
INSERT INTO hostile_users VALUES (7);
SELECT ext_storage_attach_users('hostile_users');

-- Every function that reads or writes the table, and what all of them say
-- after a statement that is undone again.
CREATE TABLE hostile_calls (n serial, call text);
INSERT INTO hostile_calls (call) VALUES
    ($$SELECT ext_storage_get('acme.h', 's')$$),
    ($$SELECT ext_storage_get_json('acme.h', 'k')$$),
    ($$SELECT * FROM ext_storage_get_entry('acme.h', 's')$$),
    ($$SELECT ext_storage_set('acme.h', 'k', 'x')$$),
    ($$SELECT ext_storage_set_json('acme.h', 's', '1')$$),
    ($$SELECT ext_storage_delete('acme.h', 'k')$$),
    ($$SELECT ext_storage_delete('acme.h', 'k', if_version => 1)$$),
    ($$SELECT * FROM ext_storage_list('acme.h')$$),
    ($$SELECT * FROM ext_storage_list_newest('acme.h')$$),
    ($$SELECT * FROM ext_storage_list_values('acme.h')$$),
    ($$SELECT * FROM ext_storage_get_many('acme.h', ARRAY['s', 'k'])$$),
    ($$SELECT * FROM ext_storage_set_many('acme.h', ARRAY['s', 'k'], ARRAY['1', '2']::bytea[])$$),
    ($$SELECT ext_storage_rename('acme.h', 's', 't')$$),
    ($$SELECT * FROM ext_storage_delete_many('acme.h', ARRAY['k'])$$),
    ($$SELECT ext_storage_delete_prefix('acme.h', 'k')$$),
    ($$SELECT ext_storage_count('acme.h')$$),
    ($$CALL ext_storage_rotate_keys()$$),
    ($$SELECT * FROM ext_storage_key_status()$$),
    ($$SELECT * FROM ext_storage_verify()$$),
    ($$SELECT * FROM ext_storage_usage()$$),
    ($$SELECT ext_storage_purge_extension('acme.h')$$),
    ($$SELECT ext_storage_purge_user(1)$$),
    ($$SELECT ext_storage_purge_resource('chart', 'x')$$),
    ($$CALL ext_storage_move_in('hostile_source', dry_run => true)$$);
CREATE FUNCTION pg_temp.said_of(statement text, call text)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    said text;
BEGIN
    BEGIN
        EXECUTE statement;
        said := pg_temp.error_of(call);
        RAISE EXCEPTION 'undo' USING ERRCODE = 'ZZ000';
    EXCEPTION WHEN SQLSTATE 'ZZ000' THEN
        RETURN said;
    END;
END $$;
CREATE FUNCTION pg_temp.said_after(statement text)
RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    call text;
    said text[] := '{}';
BEGIN
    BEGIN
        EXECUTE statement;
        FOR call IN SELECT h.call FROM hostile_calls h ORDER BY n LOOP
            said := said || pg_temp.error_of(call);
        END LOOP;
        RAISE EXCEPTION 'undo' USING ERRCODE = 'ZZ000';
    EXCEPTION WHEN SQLSTATE 'ZZ000' THEN
        NULL;
    END;
    RETURN QUERY SELECT DISTINCT s FROM unnest(said) s ORDER BY s;
END $$;
CREATE FUNCTION pg_temp.said_of_type(column_name text, type text)
RETURNS SETOF text LANGUAGE sql AS $$
    SELECT pg_temp.said_after(format('DELETE FROM extension_storage WHERE key = ''s''; DROP INDEX ix_extension_storage_changed;'
        ' DROP INDEX ix_extension_storage_encrypted;'
        ' ALTER TABLE extension_storage DROP CONSTRAINT ck_extension_storage_description,'
        ' DROP CONSTRAINT ck_extension_storage_value_size;'
        ' ALTER TABLE extension_storage ALTER %1$I DROP NOT NULL, ALTER %1$I DROP DEFAULT,'
        ' ALTER %1$I TYPE %2$s USING NULL::%2$s', column_name, type))
$$;

-- A column of another type is named with both types, before anything is read.
SELECT a.attname, t.type, said
FROM pg_attribute a, (VALUES ('money'), ('"char"'), ('text[]')) t (type),
    LATERAL pg_temp.said_of_type(a.attname, t.type) said
WHERE a.attrelid = 'extension_storage'::regclass AND a.attnum > 0 AND a.attname <> 'id'
ORDER BY a.attnum, t.type;
-- Types that look alike.
SELECT t.name, t.type, said
FROM (VALUES ('value', 'text'), ('value', 'bigint'), ('description', 'bigint'), ('version', 'text'),
        ('version', 'integer'), ('value_size', 'bigint'), ('user_fk', 'oid'), ('created_on', 'timestamptz'),
        ('is_encrypted', 'integer'), ('uuid', 'text'), ('key', 'name'), ('key', 'char(255)')) t (name, type),
    LATERAL pg_temp.said_of_type(t.name, t.type) said;
SELECT pg_temp.said_after('ALTER TABLE extension_storage ALTER id TYPE smallint');
CREATE DOMAIN hostile_text AS text;
SELECT pg_temp.said_of_type('description', 'hostile_text');
SELECT pg_temp.said_after('ALTER TABLE extension_storage RENAME value_size TO size');

-- A wider type is read as well as the narrower one, without a wrong number.
ALTER TABLE extension_storage ALTER user_fk TYPE bigint, ALTER id TYPE bigint,
    ALTER created_by_fk TYPE bigint, ALTER key TYPE text COLLATE "C";
SELECT key, user_fk, value_size, version FROM ext_storage_set('acme.h', 'u', 'four', user_fk => 7);
SELECT key, user_fk, value_size, created_on > '2026-01-01' AS recent FROM ext_storage_list('acme.h', 7);
SELECT extension_id, entries, value_bytes FROM ext_storage_usage();
SELECT convert_from(value, 'UTF8') AS value, user_fk FROM ext_storage_get_entry('acme.h', 'u', 7);
-- A number that no call can name stops neither a rotation nor what tells of keys.
BEGIN;
SELECT version FROM ext_storage_set('acme.h', 'u', 'four', user_fk => 7, is_encrypted => true);
UPDATE extension_storage SET user_fk = 5000000000 WHERE key = 'u';
SET LOCAL extension_storage.encryption_keys = 'another secret,a secret';
SET LOCAL client_min_messages = error;
CALL ext_storage_rotate_keys(dry_run => true);
SELECT ordinal, entries FROM ext_storage_key_status();
SET LOCAL extension_storage.encryption_keys = 'another secret';
SELECT key, user_fk, problem FROM ext_storage_verify() WHERE key = 'u';
SET LOCAL client_min_messages = warning;
DELETE FROM extension_storage WHERE key <> 'u';
UPDATE extension_storage SET uuid = '00000000-0000-4000-8000-000000000000';
CALL ext_storage_rotate_keys();
ROLLBACK;
SELECT ext_storage_purge_user(7);
ALTER TABLE extension_storage ALTER user_fk TYPE integer, ALTER id TYPE integer,
    ALTER created_by_fk TYPE integer, ALTER key TYPE varchar(255) COLLATE "C";
-- But not one by which other texts are equal, or other keys come first.
CREATE COLLATION hostile_equal (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
SELECT c, said
FROM unnest(ARRAY['extension_id', 'resource_type', 'resource_uuid', 'key', 'category']) c,
    LATERAL pg_temp.said_after(format('ALTER TABLE extension_storage ALTER %I TYPE text COLLATE hostile_equal', c)) said;
SELECT pg_temp.said_after('ALTER TABLE extension_storage ALTER key TYPE text');
SELECT count(*) FROM pg_temp.said_after('ALTER TABLE extension_storage ALTER extension_id TYPE text,'
    ' ALTER resource_type TYPE text, ALTER resource_uuid TYPE text, ALTER category TYPE text') said
WHERE said ~ 'collation';

-- Nulls where the extension's table has none.
SELECT c, said
FROM unnest(ARRAY['value', 'is_encrypted', 'version', 'uuid', 'extension_id', 'key', 'value_type']) c,
    LATERAL pg_temp.said_after(format('DELETE FROM extension_storage WHERE key = ''k'';'
        ' ALTER TABLE extension_storage ALTER %1$I DROP NOT NULL; UPDATE extension_storage SET %1$I = NULL', c)) said;

-- A view in the table's place, and nothing in its place.
SELECT pg_temp.said_after('ALTER TABLE extension_storage RENAME TO moved;'
    ' CREATE VIEW extension_storage AS SELECT id, uuid, extension_id, user_fk, resource_type, resource_uuid, key,'
    ' category, description, 4096::bigint AS value, value_type, is_encrypted, created_on, changed_on,'
    ' created_by_fk, changed_by_fk, version::text AS version, value_size FROM moved');
SELECT pg_temp.said_after('ALTER TABLE extension_storage RENAME TO moved');
-- A view that refuses a row does not show it.
SELECT pg_temp.said_of('ALTER TABLE extension_storage RENAME TO moved; CREATE VIEW extension_storage AS'
    ' SELECT * FROM moved WHERE key <> ''new'' WITH CHECK OPTION',
    $$SELECT ext_storage_set('acme.h', 'new', 'plain')$$);

-- Where there are other tables in its place or beneath it, nobody knows their
-- writers, so no key is said to be removable.
BEGIN;
CREATE TABLE hostile_child () INHERITS (extension_storage);
SET LOCAL extension_storage.encryption_keys = 'a secret,another secret';
SELECT ordinal, entries, removable FROM ext_storage_key_status();
DROP TABLE hostile_child;
SELECT ordinal, entries, removable FROM ext_storage_key_status();
ALTER TABLE extension_storage RENAME TO moved;
CREATE VIEW extension_storage AS SELECT * FROM moved;
SELECT ordinal, entries, removable FROM ext_storage_key_status();
ROLLBACK;

-- What deletes by a trigger, and what a trigger has not deleted, which is plain SQL.
INSERT INTO extension_storage (extension_id, user_fk, key, value)
VALUES ('acme.h', 7, 'of a user', 'x'), ('acme.h', 8, 'of an orphan', 'x');
SELECT call, column_name, split_part(said, E'\n', 1) AS said
FROM unnest(ARRAY['DELETE FROM hostile_users', 'TRUNCATE hostile_users', 'SELECT ext_storage_purge_orphans()']) call,
    unnest(ARRAY['extension_id', 'user_fk', 'value', 'version', 'created_by_fk']) column_name,
    LATERAL pg_temp.said_of(format('ALTER TABLE extension_storage ALTER %1$I DROP NOT NULL, ALTER %1$I DROP DEFAULT,'
        ' ALTER %1$I TYPE money USING NULL', column_name), call) said
ORDER BY call, column_name;
DELETE FROM extension_storage WHERE user_fk IN (7, 8);

-- So are columns of the table that is taken over, and of that of the sums.
SELECT a.attname, t.type, said
FROM pg_attribute a, (VALUES ('money'), ('text[]')) t (type),
    LATERAL pg_temp.said_of(format('ALTER TABLE hostile_source ALTER %1$I TYPE %2$s USING NULL::%2$s', a.attname, t.type),
        $$CALL ext_storage_move_in('hostile_source', dry_run => true)$$) said
WHERE a.attrelid = 'hostile_source'::regclass AND a.attnum > 0
ORDER BY a.attnum, t.type;
SET extension_storage.quota_per_extension = '1MB';
SELECT FROM ext_storage_set('acme.q', 'k', 'x');
SELECT change, split_part(said, E'\n', 1) AS said
FROM unnest(ARRAY['ALTER value_bytes TYPE money USING 0::money', 'ALTER value_bytes TYPE integer',
        'ALTER value_bytes TYPE text', 'ALTER extension_id TYPE name',
        'ALTER extension_id TYPE text[] USING ARRAY[extension_id]', 'DROP value_bytes',
        'RENAME TO extension_storage_sums']) change,
    LATERAL pg_temp.said_of('ALTER TABLE extension_storage_usage ' || change,
        $$SELECT ext_storage_set('acme.q', 'k', 'y')$$) said;
SELECT ext_storage_delete('acme.q', 'k');
RESET extension_storage.quota_per_extension;

-- A trigger or a policy that keeps a row as it is gives an error: neither a
-- loop nor a lie.
CREATE FUNCTION hostile_nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER hostile BEFORE INSERT OR UPDATE OR DELETE ON extension_storage
    FOR EACH ROW EXECUTE FUNCTION hostile_nothing();
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.h', 'k', 'x')$$);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.h', 'k', 'x', if_version => 1)$$);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.h', 'k', repeat('x', 2000000)::bytea)$$);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.h', 's', 'x')$$);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.h', 'new', 'x')$$);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.h', 'new', 'x', if_version => 0)$$);
SELECT pg_temp.error_of($$SELECT ext_storage_delete('acme.h', 'k')$$);
SELECT pg_temp.error_of($$SELECT ext_storage_delete('acme.h', 'k', if_version => 1)$$);
SELECT ext_storage_delete('acme.h', 'new');
SELECT pg_temp.error_of($$SELECT count(*) FROM ext_storage_set_many('acme.h', '{k}', '{x}')$$);
SELECT pg_temp.error_of($$SELECT count(*) FROM ext_storage_delete_many('acme.h', '{k}')$$);
SELECT pg_temp.error_of($$SELECT ext_storage_rename('acme.h', 'k', 'l')$$);
DROP TRIGGER hostile ON extension_storage;
-- Some that it keeps are enough, and what belongs to a deleted row is told of.
CREATE TABLE hostile_people (id integer PRIMARY KEY);
CREATE TABLE hostile_resources (uuid text);
INSERT INTO hostile_people VALUES (5), (6);
INSERT INTO hostile_resources VALUES ('x'), ('y');
SELECT ext_storage_attach_users('hostile_people'), ext_storage_attach_resource('chart', 'hostile_resources');
INSERT INTO extension_storage (extension_id, user_fk, resource_type, resource_uuid, key, value, created_by_fk)
SELECT 'acme.kept', 5, 'chart', 'x', k, 'x', 5 FROM unnest(ARRAY['k1', 'k2', 'l']) k;
CREATE TRIGGER hostile BEFORE UPDATE OR DELETE ON extension_storage
    FOR EACH ROW WHEN (OLD.key IN ('k2', 'l')) EXECUTE FUNCTION hostile_nothing();
SELECT c, pg_temp.error_of(c) FROM unnest(ARRAY[
    $$SELECT ext_storage_delete_prefix('acme.kept', 'k', 5, 'chart', 'x')$$,
    $$SELECT ext_storage_purge_extension('acme.kept')$$, $$SELECT ext_storage_purge_user(5)$$,
    $$SELECT ext_storage_purge_resource('chart', 'x')$$]) c;
BEGIN;
DELETE FROM hostile_resources;
SELECT key FROM extension_storage WHERE extension_id = 'acme.kept' ORDER BY 1;
ROLLBACK;
BEGIN;
DELETE FROM hostile_people WHERE id = 5;
SELECT ext_storage_purge_orphans();
TRUNCATE hostile_people, hostile_resources;
ROLLBACK;
SELECT key FROM extension_storage WHERE extension_id = 'acme.kept' ORDER BY 1;
DROP TRIGGER hostile ON extension_storage;
-- So is what comes back each time.
CREATE FUNCTION hostile_again() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO extension_storage SELECT old.*;
    RETURN NULL;
END $$;
CREATE TRIGGER hostile AFTER DELETE ON extension_storage
    FOR EACH ROW WHEN (OLD.key = 'l') EXECUTE FUNCTION hostile_again();
SELECT pg_temp.error_of($$SELECT ext_storage_purge_extension('acme.kept')$$);
BEGIN;
DELETE FROM hostile_people WHERE id = 5;
ROLLBACK;
DROP FUNCTION hostile_again() CASCADE;
DELETE FROM hostile_people WHERE id = 5;
SELECT ext_storage_purge_orphans();
DROP TABLE hostile_people, hostile_resources;
-- Nor does one that makes another version each time.
CREATE FUNCTION hostile_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_trigger_depth() > 1 THEN
        RETURN NEW;
    END IF;
    UPDATE extension_storage SET version = version + 1 WHERE id = OLD.id;
    RETURN NULL;
END $$;
CREATE TRIGGER hostile BEFORE UPDATE OR DELETE ON extension_storage
    FOR EACH ROW EXECUTE FUNCTION hostile_version();
SELECT c, pg_temp.error_of(c) FROM unnest(ARRAY[
    $$SELECT ext_storage_set('acme.h', 'k', 'x')$$,
    $$SELECT count(*) FROM ext_storage_set_many('acme.h', '{k}', '{x}')$$,
    $$SELECT ext_storage_delete('acme.h', 'k')$$,
    $$SELECT count(*) FROM ext_storage_delete_many('acme.h', '{k}')$$,
    $$SELECT ext_storage_rename('acme.h', 'k', 'l')$$]) c;
DROP TRIGGER hostile ON extension_storage;
SELECT ext_storage_grant('regress_holder', 'write');
ALTER TABLE extension_storage ENABLE ROW LEVEL SECURITY;
CREATE POLICY hostile_read ON extension_storage FOR SELECT USING (true);
CREATE POLICY hostile_insert ON extension_storage FOR INSERT WITH CHECK (true);
SET ROLE regress_holder;
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.h', 'k', 'x')$$);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.h', 'k', 'x', if_version => 1)$$);
SELECT pg_temp.error_of($$SELECT ext_storage_delete('acme.h', 'k')$$);
SELECT pg_temp.error_of($$SELECT ext_storage_delete_prefix('acme.h', 'k')$$);
SELECT pg_temp.error_of($$SELECT ext_storage_purge_extension('acme.h')$$);
RESET ROLE;
DROP POLICY hostile_read ON extension_storage;
CREATE POLICY hostile_read ON extension_storage FOR SELECT USING (key <> 'k');
SET ROLE regress_holder;
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.h', 'k', 'x')$$);
RESET ROLE;
DROP POLICY hostile_read ON extension_storage;
DROP POLICY hostile_insert ON extension_storage;

-- FORCE hides rows from the owner, but not from what runs with the owner's rights
-- for somebody else: whichever the session does first.
SELECT relowner::regrole AS owner FROM pg_class WHERE oid = 'extension_storage'::regclass \gset
INSERT INTO extension_storage (extension_id, user_fk, key, category, value)
VALUES ('acme.h', 7, 'hidden', 'hidden', 'x');
SELECT ext_storage_count('acme.h', 7) AS superuser_counts;
ALTER TABLE extension_storage OWNER TO regress_holder;
ALTER TABLE extension_storage_usage OWNER TO regress_holder;
ALTER TABLE extension_storage FORCE ROW LEVEL SECURITY;
CREATE POLICY hostile_some ON extension_storage USING (category IS DISTINCT FROM 'hidden');
SELECT ext_storage_get('acme.h', 'hidden', 7) IS NOT NULL AS superuser_sees;
SET ROLE regress_holder;
SELECT ext_storage_get('acme.h', 'hidden', 7) IS NOT NULL AS owner_sees;
SELECT ext_storage_count('acme.h', 7) AS owner_counts;
SELECT ext_storage_purge_user(7) AS owner_purges;
RESET ROLE;
SELECT ext_storage_count('acme.h', 7) AS superuser_counts;
-- What the owner has put on the table can neither read, close nor replace the cursors of who calls.
CREATE FUNCTION hostile_cursor() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    cursor_name text;
    other refcursor;
    read text;
BEGIN
    FOREACH cursor_name IN ARRAY ARRAY(SELECT name FROM pg_cursors WHERE name <> '') LOOP
        other := cursor_name;
        FOR i IN 1..3 LOOP
            BEGIN
                CASE i WHEN 1 THEN FETCH other INTO read;
                    WHEN 2 THEN MOVE other;
                    ELSE CLOSE other; OPEN other FOR SELECT 'run with the rights of ' || current_user; END CASE;
                RAISE WARNING 'used the cursor of another: %', read;
            EXCEPTION WHEN others THEN
                RAISE WARNING '% %', SQLSTATE, regexp_replace(SQLERRM, 'unnamed portal \d+', 'unnamed portal');
            END;
        END LOOP;
    END LOOP;
    RETURN coalesce(NEW, OLD);
END $$;
CREATE TRIGGER hostile BEFORE UPDATE OR DELETE ON extension_storage
    FOR EACH ROW EXECUTE FUNCTION hostile_cursor();
DECLARE held CURSOR WITH HOLD FOR SELECT 'held, row ' || n FROM generate_series(1, 9) n;
BEGIN;
DECLARE mine CURSOR FOR SELECT 'mine, row ' || n FROM generate_series(1, 9) n;
SELECT version FROM ext_storage_set('acme.h', 'k', 'y');
FETCH mine;
FETCH held;
-- An error leaves them as they are.
ALTER TABLE extension_storage ADD CONSTRAINT hostile_never CHECK (value <> 'never');
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.h', 'k', 'never')$$);
FETCH mine;
SAVEPOINT before;
SELECT key FROM ext_storage_set_many('acme.h', '{k}', '{never}');
ROLLBACK TO before;
FETCH mine;
FETCH held;
CLOSE mine;
-- As those of loops are, and those of who deletes from an attached table.
DO $$
DECLARE
    n text;
BEGIN
    FOR n IN SELECT 'row ' || i FROM generate_series(1, 2) i LOOP
        RAISE WARNING '%', n;
        PERFORM ext_storage_delete('acme.h', key) FROM ext_storage_list('acme.h') LIMIT 1;
    END LOOP;
END $$;
DECLARE mine CURSOR FOR SELECT user_fk FROM extension_storage WHERE extension_id = 'acme.h' ORDER BY 1;
DELETE FROM hostile_users;
FETCH mine;
ROLLBACK;
FETCH held;
CLOSE held;
DROP TRIGGER hostile ON extension_storage;
DROP FUNCTION hostile_cursor;
-- Nor is there one that it has left open: at the next COMMIT it could run with the caller's rights.
CREATE FUNCTION hostile_cursor() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    left_open refcursor;
BEGIN
    OPEN left_open FOR SELECT 'run with the rights of ' || current_user;
    RETURN coalesce(NEW, OLD);
END $$;
CREATE TRIGGER hostile BEFORE UPDATE OR DELETE ON extension_storage
    FOR EACH ROW EXECUTE FUNCTION hostile_cursor();
SELECT c, replace(pg_temp.error_of(c), current_user, '(superuser)') AS error_of FROM unnest(ARRAY[
    $$SELECT ext_storage_set('acme.h', 'k', 'y')$$,
    $$SELECT count(*) FROM ext_storage_set_many('acme.h', '{k,s}', '{y,y}')$$,
    $$SELECT ext_storage_delete('acme.h', 'k')$$,
    $$SELECT ext_storage_purge_extension('acme.h')$$,
    $$DELETE FROM hostile_users$$]) c;
BEGIN;
DECLARE mine CURSOR FOR SELECT 'mine';
SELECT replace(pg_temp.error_of('DELETE FROM hostile_users'), current_user, '(superuser)') AS error_of;
FETCH mine;
SET LOCAL ROLE regress_holder;
SELECT (ext_storage_set('acme.h', 'k', 'y')).version AS holder_sets;
ROLLBACK;
SELECT count(*) FROM pg_cursors WHERE name <> '';
DROP TRIGGER hostile ON extension_storage;
DROP FUNCTION hostile_cursor;
DELETE FROM hostile_users;
SELECT count(*) FROM extension_storage WHERE user_fk = 7;
DROP POLICY hostile_some ON extension_storage;
ALTER TABLE extension_storage NO FORCE ROW LEVEL SECURITY;
ALTER TABLE extension_storage OWNER TO :owner;
ALTER TABLE extension_storage_usage OWNER TO :owner;
SELECT ext_storage_grant('regress_holder', 'write');
ALTER TABLE extension_storage DISABLE ROW LEVEL SECURITY;

-- All is as it was.
SELECT key, version, convert_from(ext_storage_get('acme.h', key), 'UTF8') AS value
FROM ext_storage_list('acme.h');

-- A rule gives an error where its statement replaces ours.
CREATE TABLE hostile_sink (LIKE extension_storage);
SELECT count(ext_storage_set('acme.h', 'rule' || i, 'x', is_encrypted => true)) FROM generate_series(1, 3) i;
SET extension_storage.encryption_keys = 'another secret,a secret';
CREATE RULE hostile AS ON UPDATE TO extension_storage
    DO INSTEAD INSERT INTO hostile_sink SELECT NEW.* RETURNING *;
SET client_min_messages = error;
CALL ext_storage_rotate_keys();
RESET client_min_messages;
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.h', 'rule1', 'y')$$);
DROP RULE hostile ON extension_storage;
CREATE RULE hostile AS ON INSERT TO extension_storage
    DO INSTEAD DELETE FROM hostile_sink RETURNING *;
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.h', 'new', 'y')$$);
DROP RULE hostile ON extension_storage;
CREATE RULE hostile AS ON DELETE TO extension_storage
    DO INSTEAD INSERT INTO hostile_sink SELECT OLD.* RETURNING *;
SELECT pg_temp.error_of($$SELECT ext_storage_delete('acme.h', 'rule1')$$);
SELECT pg_temp.error_of($$SELECT ext_storage_purge_extension('acme.h')$$);
DROP RULE hostile ON extension_storage;
-- Of several, the last of its kind counts, which need not be the one that returns rows.
CREATE TABLE hostile_other (x integer);
INSERT INTO hostile_other VALUES (1), (2);
CREATE RULE hostile AS ON UPDATE TO extension_storage DO INSTEAD (
    UPDATE hostile_sink SET key = key WHERE false RETURNING hostile_sink.*;
    UPDATE hostile_other SET x = x);
CREATE RULE hostile_delete AS ON DELETE TO extension_storage DO INSTEAD (
    DELETE FROM hostile_sink WHERE false RETURNING hostile_sink.*;
    DELETE FROM hostile_other);
CREATE RULE hostile_insert AS ON INSERT TO extension_storage DO INSTEAD (
    INSERT INTO hostile_sink SELECT NEW.* RETURNING *;
    INSERT INTO hostile_other VALUES (3));
SELECT c, pg_temp.error_of(c) FROM unnest(ARRAY[
    $$SELECT ext_storage_set('acme.h', 'rule1', 'y')$$,
    $$SELECT ext_storage_set('acme.h', 'rule1', 'y', if_version => 1)$$,
    $$SELECT ext_storage_set('acme.h', 'new', 'y')$$,
    $$SELECT count(*) FROM ext_storage_set_many('acme.h', '{rule1,rule2}', '{x,y}')$$,
    $$SELECT ext_storage_rename('acme.h', 'rule1', 'rule9')$$,
    $$SELECT ext_storage_delete('acme.h', 'rule1')$$,
    $$SELECT count(*) FROM ext_storage_delete_many('acme.h', '{rule1,rule2}')$$,
    $$SELECT ext_storage_delete_prefix('acme.h', 'rule')$$,
    $$SELECT ext_storage_purge_extension('acme.h')$$]) c;
SET client_min_messages = error;
CALL ext_storage_rotate_keys();
RESET client_min_messages;
DROP RULE hostile ON extension_storage;
DROP RULE hostile_delete ON extension_storage;
DROP RULE hostile_insert ON extension_storage;
DROP TABLE hostile_other;
SET extension_storage.encryption_keys = 'a secret';
DELETE FROM extension_storage WHERE key LIKE 'rule%';
DROP TABLE hostile_sink;

-- A row that comes and goes does not make a rotation endless.
SELECT FROM ext_storage_set('acme.h', 'flickers', 'secret', is_encrypted => true);
ALTER TABLE extension_storage RENAME TO hostile_real;
CREATE SEQUENCE hostile_turn;
CREATE FUNCTION hostile_show() RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN nextval(''hostile_turn'') % 3 <> 0; END';
CREATE VIEW extension_storage AS SELECT * FROM hostile_real WHERE key <> 'flickers' OR hostile_show();
SET extension_storage.encryption_keys = 'another secret,a secret';
SET extension_storage.rotation_lock_wait = 0;
SET client_min_messages = error;
CALL ext_storage_rotate_keys();
RESET client_min_messages;
RESET extension_storage.rotation_lock_wait;
SET extension_storage.encryption_keys = 'a secret';
DROP VIEW extension_storage;
ALTER TABLE hostile_real RENAME TO extension_storage;
DROP FUNCTION hostile_show;
DROP SEQUENCE hostile_turn;
DELETE FROM extension_storage WHERE key = 'flickers';

-- Half a resource can still be named.
ALTER TABLE extension_storage DROP CONSTRAINT ck_extension_storage_resource;
INSERT INTO extension_storage (extension_id, key, value, is_encrypted, uuid, user_fk, resource_type, resource_uuid)
    VALUES ('acme.h', 'half', 'no token', true, '00000000-0000-4000-8000-000000000001', NULL, 'chart', NULL),
    ('acme.h', 'half', 'no token', true, '00000000-0000-4000-8000-000000000002', 7, 'chart', NULL),
    ('acme.h', 'half', 'no token', true, '00000000-0000-4000-8000-000000000003', 7, NULL, '42');
SELECT key, user_fk, resource_type, resource_uuid, problem FROM ext_storage_verify() ORDER BY uuid;
SET client_min_messages = warning;
CALL ext_storage_rotate_keys();
RESET client_min_messages;
DELETE FROM extension_storage WHERE key = 'half';
ALTER TABLE extension_storage ADD CONSTRAINT ck_extension_storage_resource
    CHECK ((resource_type IS NULL) = (resource_uuid IS NULL));

-- An error does not show the row in its detail.
ALTER TABLE extension_storage ADD CONSTRAINT hostile CHECK (key <> 'checked'),
    ADD CONSTRAINT hostile_unique UNIQUE (value);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.h', 'checked', 'a value')$$);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.h', 'double', 'plain')$$);
ALTER TABLE extension_storage DROP CONSTRAINT hostile, DROP CONSTRAINT hostile_unique;

SELECT ext_storage_detach('hostile_users');
DROP TABLE hostile_calls, hostile_source, hostile_users;
DROP FUNCTION hostile_nothing;
DROP DOMAIN hostile_text;
DELETE FROM extension_storage;
DROP OWNED BY regress_holder;
DROP ROLE regress_holder;
