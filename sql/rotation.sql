-- Key rotation and what tells about it.  What it commits, and its progress
-- messages, are in test/t; here those that are the same each time.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup

-- Without rows, and without a key.
SELECT pg_temp.error_of('CALL ext_storage_rotate_keys()');
SELECT * FROM ext_storage_verify();
SET extension_storage.encryption_keys = 'old-secret';
CALL ext_storage_rotate_keys();
CALL ext_storage_rotate_keys('acme.none', dry_run => true);
BEGIN;
CALL ext_storage_rotate_keys();
COMMIT;

-- Rows in all scopes: made with the old key, one of them in 2023; one that is
-- not encrypted; one that is damaged, one that is no token at all, and one
-- whose key is lost.
SELECT count(*) FROM (VALUES ('acme.a', 'global', NULL, NULL, NULL), ('acme.a', 'user', 7, NULL, NULL),
    ('acme.a', 'shared', NULL, 'chart', '42'), ('acme.b', 'private', 7, 'chart', '42'))
    AS r (extension_id, key, user_fk, type, uuid),
    ext_storage_set(r.extension_id, r.key, convert_to(r.key, 'UTF8'), user_fk => r.user_fk,
        resource_type => type, resource_uuid => uuid, is_encrypted => true, actor_fk => 5);
SELECT version FROM ext_storage_set('acme.b', 'empty', '', is_encrypted => true);
SELECT version FROM ext_storage_set('acme.b', 'empty', '');
SELECT version FROM ext_storage_set('acme.a', 'plain', 'plain');
INSERT INTO extension_storage (uuid, extension_id, user_fk, resource_type, resource_uuid, key, value,
    is_encrypted) VALUES
    ('00000000-0000-4000-8000-000000000001', 'acme.a', NULL, NULL, NULL, 'python',
    'gAAAAABlU_EAAAECAwQFBgcICQoLDA0ODxoCqNNrt09qZCxT1Z47ojE6JB6_JBVpXVy7GBv2xbej3iui6exnwa5uYr1R2e3UxMCK8khggMpcCSwVYmmdOV0=', true),
    ('00000000-0000-4000-8000-000000000002', 'acme.a', 7, 'chart', '42', 'damaged',
    'gAAAAABlU_EAAAECAwQFBgcICQoLDA0ODxoCqNNrt09qZCxT1Z47ojE6JB6_JBVpXVy7GBv2xbej3iui6exnwa5uYr1R2e3UxMCK8khggMpcCSwVYmmdOV1=', true),
    ('00000000-0000-4000-8000-000000000003', 'acme.a', 8, NULL, NULL, 'bit',
    'gAAAAABlU_EAAAECAwQFBgcICQoLDA0ODxoCqNNrt09qZCxT1Z47ojE6JB6_JBVpXVy7GBv2xbej3iui6exnwa5uYr1R2e3UxMCK8khggMpcCSwVYmmdOVA=', true);
SET extension_storage.encryption_keys = 'lost-secret';
SELECT version FROM ext_storage_set('acme.b', 'lost', 'x', is_encrypted => true);
UPDATE extension_storage SET uuid = '00000000-0000-4000-8000-000000000004' WHERE key = 'lost';
CREATE TEMP TABLE before AS SELECT * FROM extension_storage;
CREATE TEMP VIEW changed AS
SELECT s.extension_id, s.key, s.value <> b.value AS new_token,
    to_jsonb(s) - 'value' = to_jsonb(b) - 'value' AS rest_as_before,
    substr(s.value, 1, 12) = substr(b.value, 1, 12) AS time_as_before
FROM extension_storage s FULL JOIN before b USING (id) ORDER BY id;

-- The new key first, the old one behind it: what is needed for what.
SET extension_storage.encryption_keys = 'new-secret,old-secret';
SELECT ordinal, fingerprint, role, entries, oldest IS NOT NULL AS oldest, newest IS NOT NULL AS newest,
    removable FROM ext_storage_key_status();
SELECT role, oldest AT TIME ZONE 'UTC' AS oldest_utc, now() - newest < '1 minute' AS newest_now
FROM ext_storage_key_status() ORDER BY ordinal;
SELECT * FROM ext_storage_verify() ORDER BY uuid;
SELECT uuid, key FROM ext_storage_verify('acme.b');
SELECT uuid, key FROM ext_storage_verify(extension_id => 'acme.none');

-- A dry run counts, warns and writes nothing.
SET client_min_messages = warning;
CALL ext_storage_rotate_keys(dry_run => true);
SELECT count(*) FROM changed WHERE new_token OR NOT rest_as_before;

-- Arguments that cannot be: nothing is written.
CALL ext_storage_rotate_keys(batch_size => 0);
CALL ext_storage_rotate_keys(batch_size => -5);
CALL ext_storage_rotate_keys(batch_size => NULL);
CALL ext_storage_rotate_keys(dry_run => NULL);
SELECT left(pg_temp.error_of('CALL ext_storage_rotate_keys(batch_size => 2147483648)'), 5);
SELECT count(*) FROM changed WHERE new_token OR NOT rest_as_before;

-- In a transaction block it can be rolled back.
BEGIN;
CALL ext_storage_rotate_keys('acme.b');
SELECT key FROM changed WHERE new_token;
SAVEPOINT s;
CALL ext_storage_rotate_keys('acme.a', batch_size => 1);
SELECT count(*) FROM changed WHERE new_token;
ROLLBACK TO s;
SELECT count(*) FROM changed WHERE new_token;
ROLLBACK;
SELECT count(*) FROM changed WHERE new_token OR NOT rest_as_before;
-- One that may not write does not.
BEGIN READ ONLY;
CALL ext_storage_rotate_keys('acme.b');
ROLLBACK;
SELECT count(*) FROM changed WHERE new_token OR NOT rest_as_before;

-- One extension: the rows that fail stay and are named, the others go on.
CALL ext_storage_rotate_keys('acme.a');
SELECT * FROM changed;
SELECT ordinal, role, entries, removable FROM ext_storage_key_status();
-- The rest, in batches of one, under whatever the session's isolation level is.
SET default_transaction_isolation = 'serializable';
CALL ext_storage_rotate_keys(batch_size => 1);
RESET default_transaction_isolation;
SELECT * FROM changed;
SHOW transaction_isolation;
-- Again: nothing to do.
CALL ext_storage_rotate_keys();
SELECT ordinal, role, entries, removable FROM ext_storage_key_status();
SELECT role, oldest AT TIME ZONE 'UTC' AS oldest_utc FROM ext_storage_key_status() ORDER BY ordinal;

-- The old key may go, as removable says: everything is read without it.
SET extension_storage.encryption_keys = 'new-secret';
SELECT convert_from(ext_storage_get('acme.a', 'global'), 'UTF8') AS global,
    convert_from(ext_storage_get('acme.a', 'user', 7), 'UTF8') AS "user",
    convert_from(ext_storage_get('acme.a', 'shared', NULL, 'chart', '42'), 'UTF8') AS shared,
    convert_from(ext_storage_get('acme.b', 'private', 7, 'chart', '42'), 'UTF8') AS private,
    ext_storage_get('acme.b', 'empty') AS empty,
    convert_from(ext_storage_get('acme.a', 'python'), 'UTF8') AS python,
    convert_from(ext_storage_get('acme.a', 'plain'), 'UTF8') AS plain;
SELECT uuid, problem FROM ext_storage_verify() ORDER BY uuid;
SELECT pg_temp.error_of($$SELECT ext_storage_get('acme.a', 'bit', 8)$$);
-- Where the lost key is found again, its rows come along.
SET extension_storage.encryption_keys = 'new-secret,lost-secret';
SELECT ordinal, role, entries, removable FROM ext_storage_key_status();
CALL ext_storage_rotate_keys('acme.b');
SELECT uuid FROM ext_storage_verify() ORDER BY uuid;
-- Three keys, and secret_key as the last of them.
SET extension_storage.encryption_keys = 'newest-secret,new-secret';
SET extension_storage.secret_key = 'lost-secret';
DELETE FROM extension_storage WHERE key IN ('bit', 'damaged');
CALL ext_storage_rotate_keys();
SELECT ordinal, fingerprint, role, entries, removable FROM ext_storage_key_status();
-- It can be called from a function, which is a transaction block too.
SET extension_storage.encryption_keys = 'new-secret,newest-secret';
DO $$
DECLARE
    scanned bigint; rotated bigint; current bigint; failed bigint;
BEGIN
    CALL ext_storage_rotate_keys(NULL, 3, false, scanned, rotated, current, failed);
    RAISE WARNING '% % % %', scanned, rotated, current, failed;
END $$;

-- Keys that are set for one transaction are gone with it, which a rotation ends:
-- it goes on with those of the session, or says that there are none.
SET extension_storage.encryption_keys = 'session-secret,new-secret';
DO $$
DECLARE
    scanned bigint; rotated bigint; current bigint; failed bigint;
BEGIN
    PERFORM set_config('extension_storage.encryption_keys', 'local-secret,new-secret', true);
    CALL ext_storage_rotate_keys(NULL, 2, false, scanned, rotated, current, failed);
    RAISE WARNING '% % % %', scanned, rotated, current, failed;
END $$;
SELECT ordinal, role, entries FROM ext_storage_key_status();
RESET extension_storage.encryption_keys;
RESET extension_storage.secret_key;
DO $$
DECLARE
    scanned bigint; rotated bigint; current bigint; failed bigint;
BEGIN
    PERFORM set_config('extension_storage.encryption_keys', 'local-secret,session-secret', true);
    CALL ext_storage_rotate_keys(NULL, 2, false, scanned, rotated, current, failed);
END $$;
SET extension_storage.encryption_keys = 'session-secret';
SELECT ordinal, role, entries FROM ext_storage_key_status();

DELETE FROM extension_storage;

-- A batch of several extensions, with many short tokens and some long ones:
-- each row gets its own.
CREATE TEMP VIEW made AS
SELECT i, 'acme.' || i % 3 AS extension_id, 'k' || i AS key,
    convert_to(repeat(i::text, CASE WHEN i % 40 = 7 THEN 40000 ELSE 2 END), 'UTF8') AS value
FROM generate_series(1, 300) i;
INSERT INTO extension_storage (extension_id, key, value, is_encrypted, value_size)
SELECT extension_id, key, convert_to(fernet_encrypt(value, derived), 'UTF8'), true, length(value)
FROM made, fernet_derive_key('session-secret') derived ORDER BY i;
SET extension_storage.encryption_keys = 'last-secret,session-secret';
CALL ext_storage_rotate_keys(batch_size => 250);
SET extension_storage.encryption_keys = 'last-secret';
SELECT count(*) FROM made, (SELECT extension_id, array_agg(key) AS keys FROM made GROUP BY extension_id) k,
    ext_storage_get_many(k.extension_id, keys) g
WHERE (made.extension_id, made.key, made.value) = (k.extension_id, g.key, g.value);

DELETE FROM extension_storage;

-- Rows that cannot be written, for a reason of their own: they are named and
-- left, the others go on.
SET extension_storage.encryption_keys = 'old-secret';
SELECT count(ext_storage_set('acme.a', k, convert_to(k, 'UTF8'), is_encrypted => true))
FROM unnest(ARRAY['a', 'check', 'b', 'null', 'c', 'raise', 'd', 'old']) k;
SELECT count(ext_storage_set('acme.a', k, convert_to(repeat(k, 50000), 'UTF8'), is_encrypted => true))
FROM unnest(ARRAY['e', 'raise-large', 'f', 'old-large']) k;
UPDATE extension_storage SET uuid = ('00000000-0000-4000-8000-' || lpad(row::text, 12, '0'))::uuid
FROM (SELECT id, row_number() OVER (ORDER BY id) FROM extension_storage) r (row_id, row) WHERE id = row_id;
ALTER TABLE extension_storage ADD CONSTRAINT regress_check CHECK (key <> 'check') NOT VALID;
CREATE FUNCTION regress_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF new.key = 'null' THEN
        RETURN NULL;
    END IF;
    IF new.key LIKE 'old%' THEN
        new.value := CASE new.key WHEN 'old' THEN old.value ELSE 'another one' END;
        RETURN new;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = 'not this one';
END $$;
CREATE TRIGGER regress_refuse BEFORE UPDATE ON extension_storage FOR EACH ROW
    WHEN (new.key IN ('null', 'raise', 'raise-large', 'old', 'old-large')) EXECUTE FUNCTION regress_refuse();
SET extension_storage.encryption_keys = 'new-secret,old-secret';
CALL ext_storage_rotate_keys();
SELECT role, entries, removable FROM ext_storage_key_status();
-- The same in a transaction block, and at a second call.
BEGIN;
CALL ext_storage_rotate_keys();
COMMIT;
DROP TRIGGER regress_refuse ON extension_storage;
-- Nor is a row rotated that would not be found as encrypted, or as this extension's.
CREATE FUNCTION regress_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    new.is_encrypted := new.key NOT LIKE 'null%' AND new.key <> 'raise-large';
    new.extension_id := CASE WHEN new.key IN ('raise', 'old-large') THEN 'acme.b' ELSE new.extension_id END;
    RETURN new;
END $$;
CREATE TRIGGER regress_change BEFORE UPDATE ON extension_storage FOR EACH ROW EXECUTE FUNCTION regress_change();
CALL ext_storage_rotate_keys();
DROP TRIGGER regress_change ON extension_storage;
SELECT role, entries FROM ext_storage_key_status();
ALTER TABLE extension_storage DROP CONSTRAINT regress_check;
CALL ext_storage_rotate_keys();

-- Two rows with one id would be taken for one, and one of them keep its token.
ALTER TABLE extension_storage DROP CONSTRAINT extension_storage_pkey;
CREATE INDEX regress_id ON extension_storage (id);
UPDATE extension_storage SET id = (SELECT min(id) FROM extension_storage) WHERE key = 'b';
SET extension_storage.encryption_keys = 'newer-secret,new-secret';
SELECT pg_temp.error_of('CALL ext_storage_rotate_keys()') ~ '^55000 table "extension_storage" has several rows with id ' AS refused;
SELECT role, entries > 0 AS entries, removable FROM ext_storage_key_status();
UPDATE extension_storage SET id = nextval('extension_storage_id_seq') WHERE key = 'b';
DROP INDEX regress_id;
ALTER TABLE extension_storage ADD CONSTRAINT extension_storage_pkey PRIMARY KEY (id);
SET extension_storage.encryption_keys = 'new-secret,old-secret';

-- What is not a row's fault ends it: a role that may not write, say.
CREATE ROLE regress_rotation;
GRANT USAGE ON SCHEMA public TO regress_rotation;
GRANT SELECT ON extension_storage TO regress_rotation;
GRANT EXECUTE ON PROCEDURE ext_storage_rotate_keys TO regress_rotation;
GRANT EXECUTE ON FUNCTION ext_storage_key_status, ext_storage_verify, ext_storage_usage TO regress_rotation;
SET extension_storage.encryption_keys = 'newest-secret,new-secret';
SET ROLE regress_rotation;
CALL ext_storage_rotate_keys();
RESET ROLE;

-- Where row-level security may hide rows, nothing is said of all rows.
GRANT UPDATE ON extension_storage TO regress_rotation;
ALTER TABLE extension_storage ENABLE ROW LEVEL SECURITY;
CREATE POLICY regress_some ON extension_storage TO regress_rotation USING (key < 'c');
SET ROLE regress_rotation;
CALL ext_storage_rotate_keys();
CALL ext_storage_rotate_keys('acme.a', dry_run => true);
SELECT * FROM ext_storage_key_status();
SELECT * FROM ext_storage_verify();
SELECT * FROM ext_storage_usage();
RESET ROLE;
SELECT role, entries FROM ext_storage_key_status();
-- Not from one who is not subject to it.
ALTER TABLE extension_storage DISABLE ROW LEVEL SECURITY;
SET ROLE regress_rotation;
CALL ext_storage_rotate_keys();
SELECT role, entries, removable FROM ext_storage_key_status();
RESET ROLE;
DROP POLICY regress_some ON extension_storage;
REVOKE ALL ON SCHEMA public FROM regress_rotation;
REVOKE ALL ON extension_storage FROM regress_rotation;
REVOKE ALL ON PROCEDURE ext_storage_rotate_keys FROM regress_rotation;
REVOKE ALL ON FUNCTION ext_storage_key_status, ext_storage_verify, ext_storage_usage FROM regress_rotation;
DROP ROLE regress_rotation;

-- Keys that a trigger changes meanwhile: a rotation goes on with those that
-- are in force, and ends.
CREATE FUNCTION regress_change_keys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('extension_storage.encryption_keys', new.key || ',newest-secret', false);
    RETURN new;
END $$;
CREATE TRIGGER regress_change_keys BEFORE UPDATE ON extension_storage FOR EACH ROW
    EXECUTE FUNCTION regress_change_keys();
SET extension_storage.encryption_keys = 'trigger-secret,newest-secret';
CALL ext_storage_rotate_keys(batch_size => 1);
DROP TRIGGER regress_change_keys ON extension_storage;
DROP FUNCTION regress_change_keys(), regress_refuse();
-- What tells of all entries gives an error instead.
DELETE FROM extension_storage;
SET extension_storage.encryption_keys = 'new-secret';
SELECT count(ext_storage_set('acme.a', k, 'x', is_encrypted => true)) FROM unnest(ARRAY['a', 'b']) k;
CREATE FUNCTION regress_change_keys(text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('extension_storage.encryption_keys', $1 || '-secret', false);
    RETURN true;
END $$;
ALTER TABLE extension_storage RENAME TO regress_table;
CREATE VIEW extension_storage AS SELECT * FROM regress_table WHERE regress_change_keys(key);
SELECT pg_temp.error_of('SELECT * FROM ext_storage_key_status()');
SELECT pg_temp.error_of('SELECT * FROM ext_storage_verify()');
DROP VIEW extension_storage;
ALTER TABLE regress_table RENAME TO extension_storage;
DROP FUNCTION regress_change_keys(text);

-- What the asking transaction itself has written may still be rolled back.
CREATE TEMP VIEW key_use AS SELECT ordinal, entries, removable FROM ext_storage_key_status();
SET extension_storage.encryption_keys = 'older-secret';
SELECT count(ext_storage_set('acme.a', k, 'x', is_encrypted => true)) FROM unnest(ARRAY['a', 'b']) k;
SET extension_storage.encryption_keys = 'newer-secret,older-secret';
BEGIN;
CALL ext_storage_rotate_keys();
SELECT * FROM key_use;
ROLLBACK;
BEGIN;
SELECT ext_storage_delete('acme.a', 'a'), ext_storage_delete('acme.a', 'b');
SELECT * FROM key_use;
ROLLBACK;
BEGIN;
TRUNCATE extension_storage;
SELECT * FROM key_use;
ROLLBACK;
SELECT * FROM key_use;
-- What it has only looked for, locked, or taken back is no reason, nor is what
-- a procedure has committed.
DO $$
DECLARE
    scanned bigint; rotated bigint; current bigint; failed bigint;
    said record;
BEGIN
    CALL ext_storage_rotate_keys(NULL, 1, false, scanned, rotated, current, failed);
    RAISE WARNING '% rotated', rotated;
    PERFORM FROM extension_storage FOR UPDATE;
    FOR said IN SELECT * FROM key_use LOOP
        RAISE WARNING '%', said;
    END LOOP;
END $$;
BEGIN;
SELECT ext_storage_delete('acme.a', 'none');
SELECT * FROM key_use;
COMMIT;
BEGIN;
SELECT count(*) FROM (SELECT FROM extension_storage FOR UPDATE) e;
SAVEPOINT before;
SELECT ext_storage_delete('acme.a', 'a');
TRUNCATE extension_storage;
ROLLBACK TO before;
SELECT * FROM key_use;
COMMIT;
DROP VIEW key_use;

DELETE FROM extension_storage;
