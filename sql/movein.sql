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
CREATE ROLE regress_first;
GRANT ALL ON SCHEMA first TO regress_first;
ALTER TABLE first.extension_storage OWNER TO regress_first;
GRANT USAGE ON SCHEMA first TO regress_mover;
GRANT ALL ON extension_storage TO regress_mover;
GRANT EXECUTE ON PROCEDURE ext_storage_move_in TO regress_mover;
SET ROLE regress_mover;
SELECT pg_temp.error_of($$CALL ext_storage_move_in('first.extension_storage')$$);
RESET ROLE;
-- The right to read it is not enough: reading may run what is its owner's.
GRANT SELECT ON first.extension_storage TO regress_mover;
SET ROLE regress_mover;
SELECT pg_temp.error_of($$CALL ext_storage_move_in('first.extension_storage')$$);
RESET ROLE;
GRANT regress_first TO regress_mover;
ALTER TABLE first.extension_storage ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
SET ROLE regress_mover;
SELECT pg_temp.error_of($$CALL ext_storage_move_in('first.extension_storage')$$);
RESET ROLE;
ALTER TABLE first.extension_storage DISABLE ROW LEVEL SECURITY;
-- What its owner has put on it runs with the owner's rights, and leaves no setting.
SET client_min_messages = error;
CREATE FUNCTION first.hostile(integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
    IF current_user <> 'regress_first' THEN
        RAISE EXCEPTION 'runs as %', current_user;
    END IF;
    PERFORM set_config('application_name', 'hostile', false);
    RETURN 1;
END $$;
SET ROLE regress_first;
CREATE INDEX hostile ON first.extension_storage ((id + first.hostile(1)));
RESET ROLE;
SET application_name = 'mine';
CALL ext_storage_move_in('first.extension_storage');
SHOW application_name;
-- Nor does it use a cursor, or leave one.
CREATE OR REPLACE FUNCTION first.hostile(integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS $$
DECLARE
    other refcursor := 'mine';
BEGIN
    CLOSE other;
    RAISE WARNING 'closed';
    RETURN 1;
EXCEPTION WHEN others THEN
    RETURN 1;
END $$;
DECLARE mine CURSOR WITH HOLD FOR SELECT 'mine';
CALL ext_storage_move_in('first.extension_storage', dry_run => true);
FETCH mine;
CLOSE mine;
CREATE OR REPLACE FUNCTION first.hostile(integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS $$
DECLARE
    left_open refcursor;
BEGIN
    OPEN left_open FOR SELECT 'run with the rights of ' || current_user;
    RETURN 1;
END $$;
REINDEX INDEX first.hostile;
SELECT replace(pg_temp.error_of($$CALL ext_storage_move_in('first.extension_storage', dry_run => true)$$),
    current_user, '(superuser)') AS error_of;
DROP FUNCTION first.hostile(integer) CASCADE;
-- But not what a partition's owner has put on that.
CREATE TABLE first.parted (LIKE first.extension_storage) PARTITION BY RANGE (id);
CREATE TABLE first.part PARTITION OF first.parted DEFAULT;
INSERT INTO first.parted SELECT * FROM first.extension_storage;
ALTER TABLE first.parted OWNER TO regress_first;
CALL ext_storage_move_in('first.parted', dry_run => true);
ALTER TABLE first.part OWNER TO regress_mover;
SELECT pg_temp.error_of($$CALL ext_storage_move_in('first.parted')$$);
ALTER TABLE first.part OWNER TO regress_first;
CALL ext_storage_move_in('first.parted', dry_run => true);
DROP TABLE first.parted;
RESET client_min_messages;
DELETE FROM extension_storage;
-- What a set would refuse is left out by name, and an older row that can be taken is.
SET client_min_messages = warning;
SET extension_storage.max_value_size = 100;
CREATE TABLE first.loose (
    id int, uuid uuid, extension_id text, user_fk integer, resource_type text, resource_uuid text, key text,
    category text, description text, value bytea, value_type text, is_encrypted boolean, created_on timestamp,
    changed_on timestamp, created_by_fk integer, changed_by_fk integer);
CREATE FUNCTION pg_temp.fill(VARIADIC entries text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    TRUNCATE first.loose;
    FOR i IN 1 .. array_length(entries, 1) LOOP
        INSERT INTO first.loose (id, extension_id, key, value, value_type, is_encrypted, changed_on)
            VALUES (i, 'acme.m', 'k' || i, 'a', 'text/plain', false, '2026-01-01'::date + i);
        EXECUTE format('UPDATE first.loose SET %s WHERE id = %s', entries[i], i);
    END LOOP;
END $$;
SELECT pg_temp.fill($$key = ''$$, $$key = NULL$$, $$key = repeat('ä', 256)$$, $$key = repeat('ä', 255)$$,
    $$extension_id = ''$$, $$extension_id = NULL$$, $$extension_id = repeat('e', 256)$$, $$category = repeat('c', 65)$$,
    $$category = ''$$, $$resource_type = 'chart'$$, $$resource_uuid = 'x'$$, $$resource_type = '', resource_uuid = 'x'$$,
    $$resource_type = 'chart', resource_uuid = ''$$, $$resource_type = repeat('t', 65), resource_uuid = 'x'$$,
    $$resource_type = 'chart', resource_uuid = repeat('u', 37)$$,
    $$resource_type = 'chart', resource_uuid = 'urn:uuid:0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e11'$$,
    $$value_type = ''$$, $$value_type = NULL$$, $$value_type = 'text'$$, $$value_type = 'text/' || repeat('x', 251)$$,
    $$value = NULL$$, $$value = convert_to(repeat('v', 101), 'UTF8')$$, $$value = ''$$, $$is_encrypted = NULL$$,
    $$value = fernet_encrypt(repeat('v', 101)::bytea, fernet_derive_key('a secret'))::bytea, is_encrypted = true$$,
    $$value = fernet_encrypt(repeat('v', 100)::bytea, fernet_derive_key('a secret'))::bytea, is_encrypted = true$$,
    $$value = fernet_encrypt(repeat('v', 100)::bytea, fernet_derive_key('another'))::bytea, is_encrypted = true$$,
    $$value = fernet_encrypt(repeat('v', 112)::bytea, fernet_derive_key('another'))::bytea, is_encrypted = true$$);
CALL ext_storage_move_in('first.loose', dry_run => true);
CALL ext_storage_move_in('first.loose', batch_size => 3);
SELECT left(key, 8) AS key, resource_uuid, category, value_type, value_size, is_encrypted FROM extension_storage ORDER BY key;
CALL ext_storage_move_in('first.loose');
DELETE FROM extension_storage;
SELECT pg_temp.fill($$key = 'a', value = '1'$$, $$key = 'a', value = '2'$$, $$key = 'a', value = NULL$$,
    $$key = 'a', value_type = 'bad'$$, $$key = 'b', value = '1'$$, $$key = 'b', value = NULL$$);
CALL ext_storage_move_in('first.loose', dry_run => true);
CALL ext_storage_move_in('first.loose', batch_size => 1);
SELECT key, convert_from(value, 'UTF8'), changed_on::date FROM extension_storage ORDER BY key;
DELETE FROM extension_storage;
-- All spellings of a UUID are one, but what is none is taken as it is.
SELECT pg_temp.fill(VARIADIC (SELECT array_agg(format($$key = 'k', resource_type = 'chart', resource_uuid = %L$$, u) ORDER BY n)
    FROM unnest(ARRAY['0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e11', 'x', '0B0E8F0A6A3C4C559D623E9A3B1B7E11', 'X',
    '{0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e11}', 'xx', 'urn:uuid:0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e11',
    '0b0e-8f0a-6a3c-4c55-9d62-3e9a-3b1b-7e11', '0b-0e8f0a6a3c4c559d623e9a3b1b7e11']) WITH ORDINALITY t (u, n)));
CALL ext_storage_move_in('first.loose', dry_run => true);
CALL ext_storage_move_in('first.loose', batch_size => 1);
SELECT resource_uuid, changed_on::date FROM extension_storage ORDER BY resource_uuid;
DELETE FROM extension_storage;
-- Keys differ by their bytes, whatever the source's collation.
CREATE COLLATION first.insensitive (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
ALTER TABLE first.loose ALTER key TYPE text COLLATE first.insensitive,
    ALTER extension_id TYPE text COLLATE first.insensitive, ALTER resource_type TYPE text COLLATE first.insensitive,
    ALTER resource_uuid TYPE text COLLATE first.insensitive;
SELECT pg_temp.fill($$key = 'k'$$, $$key = 'K'$$, $$key = 'k'$$, $$key = 'k', extension_id = 'ACME.m'$$,
    $$key = 'k', resource_type = 'chart', resource_uuid = 'x'$$,
    $$key = 'k', resource_type = 'Chart', resource_uuid = 'X'$$);
CALL ext_storage_move_in('first.loose');
DELETE FROM extension_storage;
-- Rows with one id.
SELECT pg_temp.fill($$key = 'a'$$, $$key = 'b'$$, $$key = 'c'$$);
UPDATE first.loose SET id = 3;
SELECT pg_temp.error_of($$CALL ext_storage_move_in('first.loose')$$);
UPDATE first.loose SET id = NULL WHERE key = 'b';
SELECT pg_temp.error_of($$CALL ext_storage_move_in('first.loose')$$);
-- A row keeps its uuid, or is left out, where the sequence of the ids is behind.
SELECT pg_temp.fill($$key = 'a', uuid = '00000000-0000-4000-8000-00000000000a'$$, $$key = 'b', uuid = '00000000-0000-4000-8000-00000000000b'$$);
INSERT INTO extension_storage (id, extension_id, key, value) VALUES (1, 'acme.m', 'here', 'x');
SELECT last_value AS ids FROM extension_storage_id_seq \gset
SELECT setval('extension_storage_id_seq', 1, false);
CALL ext_storage_move_in('first.loose');
SELECT key, uuid FROM extension_storage WHERE key <> 'here';
SELECT setval('extension_storage_id_seq', :ids) > 0 AS again;
CALL ext_storage_move_in('first.loose');
SELECT key, uuid FROM extension_storage WHERE key <> 'here' ORDER BY key;
DELETE FROM extension_storage;
-- What a trigger or a constraint refuses is left out by name, without its value;
-- the others are moved.
CREATE FUNCTION pg_temp.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.key = 'b' THEN
        RAISE EXCEPTION 'not this one';
    ELSIF NEW.key = 'e' THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON extension_storage FOR EACH ROW EXECUTE FUNCTION pg_temp.refuse();
ALTER TABLE extension_storage ADD CONSTRAINT regress_check CHECK (key <> 'd');
SELECT pg_temp.fill($$key = 'a'$$, $$key = 'b'$$, $$key = 'c'$$, $$key = 'd', value = 'a secret'$$, $$key = 'e'$$, $$key = 'f'$$);
CALL ext_storage_move_in('first.loose', batch_size => 2);
SELECT key FROM extension_storage ORDER BY key;
DROP TRIGGER refuse ON extension_storage;
CALL ext_storage_move_in('first.loose');
-- Of an entry whose newest row is refused, the older one is taken.
ALTER TABLE extension_storage ADD CONSTRAINT regress_value CHECK (value <> 'refused');
SELECT pg_temp.fill($$key = 'o', value = 'oldest'$$, $$key = 'o', value = 'older'$$, $$key = 'o', value = 'refused'$$);
CALL ext_storage_move_in('first.loose');
SELECT convert_from(value, 'UTF8') FROM extension_storage WHERE key = 'o';
ALTER TABLE extension_storage DROP CONSTRAINT regress_value;
-- One that no key reads replaces nothing.
INSERT INTO extension_storage (extension_id, key, value, changed_on) VALUES ('acme.m', 'u', 'here', '2020-01-01');
SELECT pg_temp.fill($$key = 'u', value = fernet_encrypt('x', fernet_derive_key('lost'))::bytea, is_encrypted = true$$,
    $$key = 'v', value = fernet_encrypt('x', fernet_derive_key('lost'))::bytea, is_encrypted = true$$);
CALL ext_storage_move_in('first.loose');
CALL ext_storage_move_in('first.loose');
SELECT key, is_encrypted FROM extension_storage WHERE key IN ('u', 'v') ORDER BY key;
-- Nor does one count that is plain where the entry is encrypted, or that is suppressed.
SELECT pg_temp.fill($$key = 'p', value = fernet_encrypt('taken', fernet_derive_key('a secret'))::bytea, is_encrypted = true$$,
    $$key = 'p', value = 'plain'$$);
INSERT INTO extension_storage (extension_id, key, value, is_encrypted, changed_on)
VALUES ('acme.m', 'p', fernet_encrypt('here', fernet_derive_key('a secret'))::bytea, true, '2020-01-01');
CALL ext_storage_move_in('first.loose');
SELECT convert_from(ext_storage_get('acme.m', 'p'), 'UTF8');
CREATE FUNCTION pg_temp.suppress() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN CASE WHEN NEW.value <> 'suppressed' THEN NEW END;
END $$;
CREATE TRIGGER suppress BEFORE INSERT OR UPDATE ON extension_storage FOR EACH ROW EXECUTE FUNCTION pg_temp.suppress();
INSERT INTO extension_storage (extension_id, key, value, changed_on) VALUES ('acme.m', 'r', 'here', '2020-01-01');
SELECT pg_temp.fill($$key = 'q', value = 'taken'$$, $$key = 'q', value = 'suppressed'$$,
    $$key = 'r', value = 'taken'$$, $$key = 'r', value = 'suppressed'$$);
CALL ext_storage_move_in('first.loose');
SELECT key, convert_from(value, 'UTF8') FROM extension_storage WHERE key IN ('q', 'r') ORDER BY key;
DROP TRIGGER suppress ON extension_storage;
ALTER TABLE extension_storage DROP CONSTRAINT regress_check;
DELETE FROM extension_storage;
-- An empty one, also by batches.
TRUNCATE first.loose;
CALL ext_storage_move_in('first.loose');
RESET extension_storage.max_value_size;
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
DROP OWNED BY regress_mover, regress_first;
DROP ROLE regress_mover, regress_first;
