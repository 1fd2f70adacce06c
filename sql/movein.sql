-- A table of the first implementation is taken over.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup
SET extension_storage.encryption_keys = 'a secret';
CREATE SCHEMA first;
CREATE TABLE first.extension_storage (
    id serial PRIMARY KEY, uuid uuid, extension_id varchar(255) NOT NULL, user_fk integer,
    resource_type varchar(64), resource_uuid varchar(36), key varchar(255) NOT NULL, category varchar(64),
    description text, value bytea NOT NULL, value_type varchar(255) NOT NULL DEFAULT 'application/json',
    is_encrypted boolean NOT NULL DEFAULT false, created_on timestamp, changed_on timestamp,
    created_by_fk integer, changed_by_fk integer);
INSERT INTO first.extension_storage (uuid, extension_id, user_fk, resource_type, resource_uuid, key, category,
    description, value, value_type, is_encrypted, created_on, changed_on, created_by_fk, changed_by_fk)
VALUES
    ('00000000-0000-4000-8000-000000000001', 'acme.m', NULL, NULL, NULL, 'plain', 'c', 'words', 'one', 'text/plain',
        false, '2026-01-01', '2026-01-02', 1, 2),
    ('00000000-0000-4000-8000-000000000002', 'acme.m', 7, NULL, NULL, 'token', NULL, NULL,
        fernet_encrypt('two', fernet_derive_key('a secret'))::bytea, 'text/plain', true, '2026-01-01', '2026-01-01', 7, 7),
    (NULL, 'acme.m', NULL, 'chart', '0B0E8F0A6A3C4C559D623E9A3B1B7E11', 'state', NULL, NULL, '{}', 'application/json',
        false, NULL, NULL, NULL, NULL),
    -- twice: the newest change is taken, whichever came first
    ('00000000-0000-4000-8000-000000000004', 'acme.m', NULL, NULL, NULL, 'twice', NULL, NULL, 'new', 'text/plain',
        false, '2026-01-01', '2026-01-09', 1, 1),
    ('00000000-0000-4000-8000-000000000005', 'acme.m', NULL, NULL, NULL, 'twice', NULL, NULL, 'old', 'text/plain',
        false, '2026-01-01', '2026-01-08', 1, 1),
    (NULL, 'acme.m', NULL, NULL, NULL, 'twice', NULL, NULL, 'none', 'text/plain', false, NULL, NULL, 1, 1),
    -- of a key that is not known
    ('00000000-0000-4000-8000-000000000007', 'acme.m', NULL, NULL, NULL, 'lost', NULL, NULL,
        fernet_encrypt('x', fernet_derive_key('another'))::bytea, 'text/plain', true, '2026-01-01', '2026-01-01', 1, 1),
    -- with the uuid of another
    ('00000000-0000-4000-8000-000000000001', 'acme.n', NULL, NULL, NULL, 'same uuid', NULL, NULL, 'x', 'text/plain',
        false, '2026-01-01', '2026-01-01', 1, 1),
    ('00000000-0000-4000-8000-000000000009', 'acme.n', NULL, NULL, NULL, 'long', NULL, repeat('x', 65536), 'x',
        'text/plain', false, '2026-01-01', '2026-01-01', 1, 1);
CREATE TABLE before AS SELECT * FROM first.extension_storage;

\set VERBOSITY terse
CREATE FUNCTION pg_temp.moved() RETURNS SETOF text LANGUAGE sql AS $$
    SELECT concat_ws(' ', extension_id, user_fk, resource_uuid, key, version, value_size, is_encrypted,
        changed_on::date, changed_by_fk) FROM extension_storage ORDER BY extension_id, key
$$;
BEGIN;
SET LOCAL client_min_messages = error;
CALL ext_storage_move_in('first.extension_storage', dry_run => true);
ROLLBACK;
SELECT count(*) FROM extension_storage;
SET client_min_messages = warning;
CALL ext_storage_move_in('first.extension_storage', batch_size => 2);
SELECT pg_temp.moved();
SELECT uuid FROM extension_storage WHERE key IN ('plain', 'token', 'twice') ORDER BY key;
SELECT convert_from(ext_storage_get('acme.m', 'token', 7), 'UTF8') AS token,
    convert_from(ext_storage_get('acme.m', 'twice'), 'UTF8') AS twice,
    (SELECT count(*) FROM ext_storage_verify()) AS unreadable;
-- Again: nothing is written that is here, nor what has been changed here since.
SELECT version FROM ext_storage_set('acme.m', 'plain', 'changed here', 'text/plain');
SET client_min_messages = error;
CALL ext_storage_move_in('first.extension_storage');
SELECT convert_from(ext_storage_get('acme.m', 'plain'), 'UTF8');
-- What has changed there meanwhile is taken.
UPDATE first.extension_storage SET value = 'three', changed_on = '2099-01-01' WHERE key = 'plain';
CALL ext_storage_move_in('first.extension_storage');
SELECT convert_from(value, 'UTF8') AS value, version FROM ext_storage_get_entry('acme.m', 'plain');
UPDATE first.extension_storage SET value = 'one', changed_on = '2026-01-02' WHERE key = 'plain';
-- What is encrypted here is not replaced by a newer plaintext.
SELECT version FROM ext_storage_set('acme.m', 'plain', 'secret', 'text/plain', is_encrypted => true);
UPDATE first.extension_storage SET changed_on = '2100-01-01' WHERE key = 'plain';
CALL ext_storage_move_in('first.extension_storage', dry_run => true);
SET client_min_messages = warning;
CALL ext_storage_move_in('first.extension_storage');
SET client_min_messages = error;
SELECT is_encrypted, version, convert_from(ext_storage_get('acme.m', 'plain'), 'UTF8') FROM extension_storage WHERE key = 'plain';
SELECT ext_storage_delete('acme.m', 'plain');
UPDATE first.extension_storage SET changed_on = '2026-01-02' WHERE key = 'plain';
-- The source is as it was.
SELECT count(*) FROM (TABLE first.extension_storage EXCEPT TABLE before) d;

-- What is no such table.
RESET client_min_messages;
CREATE VIEW first.v AS SELECT * FROM first.extension_storage;
CREATE TABLE first.other (id bigint, codec text, key text, value jsonb);
SELECT pg_temp.error_of(s) FROM (VALUES (1, $$CALL ext_storage_move_in(NULL)$$), (2,
    $$CALL ext_storage_move_in('first.v')$$), (3, $$CALL ext_storage_move_in('first.other')$$), (4,
    $$CALL ext_storage_move_in('extension_storage')$$), (5, $$CALL ext_storage_move_in('first.nothing')$$), (6,
    $$CALL ext_storage_move_in('first.extension_storage', 0)$$), (7,
    $$CALL ext_storage_move_in('first.extension_storage', NULL)$$), (8,
    $$CALL ext_storage_move_in(0)$$)) t (n, s) ORDER BY n;
CREATE ROLE regress_mover;
GRANT USAGE ON SCHEMA first TO regress_mover;
GRANT ALL ON extension_storage TO regress_mover;
GRANT EXECUTE ON PROCEDURE ext_storage_move_in TO regress_mover;
SET ROLE regress_mover;
SELECT pg_temp.error_of($$CALL ext_storage_move_in('first.extension_storage')$$);
RESET ROLE;
GRANT SELECT ON first.extension_storage TO regress_mover;
ALTER TABLE first.extension_storage ENABLE ROW LEVEL SECURITY;
SET ROLE regress_mover;
SELECT pg_temp.error_of($$CALL ext_storage_move_in('first.extension_storage')$$);
RESET ROLE;
ALTER TABLE first.extension_storage DISABLE ROW LEVEL SECURITY;
DELETE FROM extension_storage;
-- Under a quota.
SET extension_storage.quota_per_extension = 10;
SET client_min_messages = error;
SELECT pg_temp.error_of($$CALL ext_storage_move_in('first.extension_storage')$$);
RESET client_min_messages;
RESET extension_storage.quota_per_extension;
ALTER TABLE extension_storage DISABLE TRIGGER extension_storage_count_rows, DISABLE TRIGGER extension_storage_count;
DELETE FROM extension_storage;
-- A call that takes longer than statement_timeout, which counts anew with each batch.
TRUNCATE first.extension_storage;
INSERT INTO first.extension_storage (uuid, extension_id, key, value)
    SELECT gen_random_uuid(), 'acme.slow', 'k' || i, 'x' FROM generate_series(1, 8) i;
CREATE FUNCTION first.slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.5); RETURN NEW; END';
CREATE TRIGGER slow BEFORE INSERT ON extension_storage FOR EACH ROW EXECUTE FUNCTION first.slow();
SET client_min_messages = error;
SET statement_timeout = '3s';
CALL ext_storage_move_in('first.extension_storage', batch_size => 1);
RESET statement_timeout;
DROP TRIGGER slow ON extension_storage;
DELETE FROM extension_storage;
DROP TABLE before;
SET client_min_messages = warning;
DROP SCHEMA first CASCADE;
DROP OWNED BY regress_mover;
DROP ROLE regress_mover;
