-- The quota: what counts, when it refuses, and when nothing is counted.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup

-- What is counted, and what is there.  They differ only while nothing counts.
CREATE VIEW pg_temp.counted AS
SELECT extension_id, value_bytes AS counted, stored
FROM extension_storage_usage
FULL JOIN (SELECT extension_id, sum(coalesce(value_size, octet_length(value))) AS stored
    FROM extension_storage GROUP BY extension_id) s USING (extension_id);
CREATE VIEW pg_temp.triggers AS
SELECT tgname, tgenabled FROM pg_trigger
WHERE tgrelid = 'extension_storage'::regclass ORDER BY tgname;
-- Stores so many bytes.
CREATE FUNCTION pg_temp.put(extension_id text, key text, bytes integer)
RETURNS bigint LANGUAGE sql AS $$
    SELECT version FROM ext_storage_set(extension_id, key,
        convert_to(repeat('x', bytes), 'UTF8'), 'text/plain')
$$;

-- Without a quota, no trigger is enabled and nothing is counted.
SHOW extension_storage.quota_per_extension;
SELECT pg_temp.put('acme.tasks', 'a', 60), pg_temp.put('acme.other', 'a', 7);
SELECT * FROM pg_temp.triggers;
SELECT count(*) FROM extension_storage_usage;

-- Reads under a quota start nothing.
SET extension_storage.quota_per_extension = 100;
SELECT count(*) FROM ext_storage_list('acme.tasks');
SELECT count(*) FROM ext_storage_usage();
SELECT * FROM pg_temp.triggers;

-- The first write counts what is there.  The last byte fits, one more does not.
SELECT pg_temp.put('acme.tasks', 'b', 40);
SELECT * FROM pg_temp.triggers;
SELECT * FROM pg_temp.counted ORDER BY 1;
SELECT pg_temp.error_of($$SELECT pg_temp.put('acme.tasks', 'c', 1)$$);
SELECT * FROM pg_temp.counted ORDER BY 1;
-- No bytes always fit; the other extension has a quota of its own.
SELECT pg_temp.put('acme.tasks', 'empty', 0), pg_temp.put('acme.other', 'b', 93);
SELECT pg_temp.error_of($$SELECT pg_temp.put('acme.other', 'c', 1)$$);

-- An overwrite counts net: the value alone that it leaves must fit.
SELECT pg_temp.put('acme.tasks', 'b', 40), pg_temp.put('acme.tasks', 'a', 59),
    pg_temp.put('acme.tasks', 'a', 60);
SELECT pg_temp.error_of($$SELECT pg_temp.put('acme.tasks', 'a', 61)$$);
SELECT key, version, value_size FROM ext_storage_list('acme.tasks');
-- A delete gives back at once, in the same transaction.
BEGIN;
SELECT ext_storage_delete('acme.tasks', 'a');
SELECT pg_temp.put('acme.tasks', 'c', 60);
SELECT * FROM pg_temp.counted ORDER BY 1;
ROLLBACK;
SELECT * FROM pg_temp.counted ORDER BY 1;
-- A write that fails for another reason gives back too.
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.tasks', 'a', 'x', if_version => 9)$$);
SELECT * FROM pg_temp.counted ORDER BY 1;

-- A savepoint that is rolled back gives back what was written after it.
BEGIN;
SELECT ext_storage_delete('acme.tasks', 'a');
SAVEPOINT s1;
SELECT pg_temp.put('acme.tasks', 'c', 30);
SAVEPOINT s2;
SELECT pg_temp.put('acme.tasks', 'd', 30);
ROLLBACK TO s2;
SELECT pg_temp.put('acme.tasks', 'e', 30);
RELEASE s1;
SELECT pg_temp.error_of($$SELECT pg_temp.put('acme.tasks', 'f', 1)$$);
SELECT * FROM pg_temp.counted ORDER BY 1;
COMMIT;
SELECT * FROM pg_temp.counted ORDER BY 1;
-- The savepoint of an exception block, entered and left many times.
DO $$
BEGIN
    FOR i IN 1..50 LOOP
        BEGIN
            PERFORM pg_temp.put('acme.tasks', 'b', 40 - i % 40);
            IF i % 3 = 0 THEN
                RAISE EXCEPTION 'back';
            END IF;
        EXCEPTION WHEN raise_exception THEN NULL;
        END;
    END LOOP;
END $$;
SELECT * FROM pg_temp.counted ORDER BY 1;

-- A quota below what is in use: less is allowed, more is not.
SELECT ext_storage_purge_extension('acme.tasks');
SELECT pg_temp.put('acme.tasks', 'a', 60), pg_temp.put('acme.tasks', 'b', 40);
SET extension_storage.quota_per_extension = 50;
SELECT pg_temp.put('acme.tasks', 'a', 55);
SELECT pg_temp.put('acme.tasks', 'a', 55);
SELECT pg_temp.error_of($$SELECT pg_temp.put('acme.tasks', 'a', 56)$$);
SELECT pg_temp.error_of($$SELECT pg_temp.put('acme.tasks', 'c', 1)$$);
SELECT ext_storage_delete('acme.tasks', 'a');
SELECT pg_temp.put('acme.tasks', 'c', 10);
SELECT * FROM pg_temp.counted ORDER BY 1;

-- What other programs write is counted and refused as well ...
SET extension_storage.quota_per_extension = 100;
INSERT INTO extension_storage (extension_id, key, value, value_size)
VALUES ('acme.tasks', 'raw', repeat('x', 50)::bytea, 50);
INSERT INTO extension_storage (extension_id, key, value, value_size)
VALUES ('acme.tasks', 'raw2', 'x', 1);
INSERT INTO extension_storage (extension_id, key, value, value_size)
VALUES ('acme.raw', 'k1', 'xx', 60), ('acme.raw', 'k2', 'xx', 41);
INSERT INTO extension_storage (extension_id, key, value, value_size)
VALUES ('acme.raw', 'k1', 'xx', 60), ('acme.raw', 'k2', 'xx', 40);
SELECT * FROM pg_temp.counted ORDER BY 1;
-- ... a change of the extension's name too ...
UPDATE extension_storage SET extension_id = 'acme.new' WHERE key = 'k1';
UPDATE extension_storage SET extension_id = 'acme.other', value_size = 1
WHERE extension_id = 'acme.raw';
UPDATE extension_storage SET value_size = 59, key = 'k3' WHERE key = 'k1';
SELECT * FROM pg_temp.counted ORDER BY 1;
-- ... and rows without value_size, with the bytes that they have on disk.
INSERT INTO extension_storage (extension_id, key, value)
VALUES ('acme.raw', 'r1', repeat('x', 30)::bytea);
UPDATE extension_storage SET value_size = NULL WHERE key = 'raw';
SELECT pg_temp.error_of($$SELECT pg_temp.put('acme.raw', 'r2', 71)$$);
SELECT pg_temp.put('acme.raw', 'r1', 31);
SELECT * FROM pg_temp.counted ORDER BY 1;
DELETE FROM extension_storage WHERE extension_id LIKE 'acme.r%';
SELECT * FROM pg_temp.counted ORDER BY 1;
-- The same bytes whether TOAST compresses them or not.
SET extension_storage.quota_per_extension = '1MB';
INSERT INTO extension_storage (extension_id, key, value)
VALUES ('acme.raw', 'toasted', repeat('x', 100000)::bytea);
SELECT * FROM pg_temp.counted WHERE extension_id = 'acme.raw';
BEGIN;
TRUNCATE extension_storage;
SELECT count(*) FROM extension_storage_usage;
ROLLBACK;
SELECT count(*) FROM extension_storage_usage;
TRUNCATE extension_storage;
SELECT count(*) FROM extension_storage_usage;

-- Plaintext counts, encrypted or not, and a rotation leaves it as it is.
SET extension_storage.quota_per_extension = 100;
SET extension_storage.encryption_keys = 'old-secret';
SELECT version FROM ext_storage_set('acme.tasks', 'secret',
    repeat('x', 100)::bytea, 'text/plain', is_encrypted => true);
SELECT octet_length(value) > 200 AS token FROM extension_storage;
SELECT * FROM pg_temp.counted;
SET client_min_messages = warning;
SET extension_storage.encryption_keys = 'newer-secret,old-secret';
CALL ext_storage_rotate_keys();
RESET client_min_messages;
SELECT * FROM pg_temp.counted;
-- Of a row without value_size, the token counts; rotated, it is as long.
SET extension_storage.quota_per_extension = 1000;
UPDATE extension_storage SET value_size = NULL;
SELECT counted > 200 AS token, counted = stored AS exact FROM pg_temp.counted;
SET extension_storage.encryption_keys = 'new-secret,newer-secret';
SET client_min_messages = warning;
CALL ext_storage_rotate_keys();
RESET client_min_messages;
SELECT counted > 200 AS token, counted = stored AS exact FROM pg_temp.counted;
SET extension_storage.quota_per_extension = 100;
SELECT pg_temp.put('acme.tasks', 'secret', 99);
SELECT * FROM pg_temp.counted;
RESET extension_storage.encryption_keys;

-- With the quota taken away, counting goes on and refuses nothing.
SET extension_storage.quota_per_extension = 0;
SELECT pg_temp.put('acme.tasks', 'more', 1000);
SELECT * FROM pg_temp.counted;
-- DISABLE TRIGGER ends it, one trigger is enough; a quota starts it anew.
ALTER TABLE extension_storage DISABLE TRIGGER extension_storage_count;
SELECT pg_temp.put('acme.tasks', 'more', 1), pg_temp.put('acme.late', 'k', 5);
SELECT * FROM pg_temp.counted ORDER BY 1;
SET extension_storage.quota_per_extension = 120;
SELECT ext_storage_delete('acme.tasks', 'no such key');
SELECT * FROM pg_temp.triggers;
SELECT * FROM pg_temp.counted ORDER BY 1;
-- So does one after ENABLE TRIGGER ALL, which pg_restore --disable-triggers
-- ends with.
ALTER TABLE extension_storage DISABLE TRIGGER ALL;
DELETE FROM extension_storage WHERE key = 'more';
ALTER TABLE extension_storage ENABLE TRIGGER ALL;
SELECT pg_temp.put('acme.tasks', 'b', 1);
SELECT * FROM pg_temp.triggers;
SELECT * FROM pg_temp.counted ORDER BY 1;
-- A start that is rolled back did not happen.
ALTER TABLE extension_storage DISABLE TRIGGER ALL;
BEGIN;
SAVEPOINT s1;
SELECT pg_temp.put('acme.tasks', 'c', 1);
ROLLBACK TO s1;
SELECT * FROM pg_temp.triggers;
SELECT pg_temp.put('acme.tasks', 'd', 2);
COMMIT;
SELECT * FROM pg_temp.triggers;
SELECT * FROM pg_temp.counted ORDER BY 1;
-- A start that is refused neither.
ALTER TABLE extension_storage DISABLE TRIGGER ALL;
SELECT pg_temp.error_of($$SELECT pg_temp.put('acme.tasks', 'e', 120)$$);
SELECT * FROM pg_temp.triggers;
-- A statement that reads the table may start it, one that changes it not.
SELECT pg_temp.put('acme.copy', key, 3) FROM extension_storage
WHERE extension_id = 'acme.tasks';
SELECT * FROM pg_temp.counted ORDER BY 1;
ALTER TABLE extension_storage DISABLE TRIGGER ALL;
SELECT pg_temp.error_of($$WITH gone AS (
    DELETE FROM extension_storage WHERE extension_id = 'acme.copy' RETURNING key)
    SELECT pg_temp.put('acme.moved', key, 3) FROM gone$$);
SELECT pg_temp.put('acme.tasks', 'd', 2);
WITH gone AS (
    DELETE FROM extension_storage WHERE extension_id = 'acme.copy' RETURNING key)
SELECT pg_temp.put('acme.moved', key, 3) FROM gone;
SELECT * FROM pg_temp.counted ORDER BY 1;
-- A read-only transaction is refused as such, before anything is locked.
ALTER TABLE extension_storage DISABLE TRIGGER ALL;
BEGIN READ ONLY;
SELECT pg_temp.put('acme.tasks', 'd', 2);
ROLLBACK;

-- 1,000 writes in one transaction read hardly more for the last ones than for
-- the first: versions of the count that are dead do not pile up before them.
SET extension_storage.quota_per_extension = '1MB';
SELECT pg_temp.put('acme.many', 'k0', 1);
BEGIN;
SELECT count(pg_temp.put('acme.many', 'k' || i, 1)) FROM generate_series(1, 1000) i;
SELECT pg_stat_get_xact_tuples_fetched('extension_storage_usage'::regclass) < 10
    AS few_index_fetches;
COMMIT;
SELECT * FROM pg_temp.counted WHERE extension_id = 'acme.many';

-- The largest quota, and no quota that is none.
SET extension_storage.quota_per_extension = '8192TB';
SHOW extension_storage.quota_per_extension;
SELECT DISTINCT quota_bytes FROM ext_storage_usage();
-- (PostgreSQL 17 words these in another way.)
\set VERBOSITY sqlstate
SET extension_storage.quota_per_extension = '8193TB';
SET extension_storage.quota_per_extension = -1;
\set VERBOSITY default
SET extension_storage.quota_per_extension = 'much';

-- Whoever writes, the quota holds: only a superuser sets it, and the counts
-- are nobody's but the holder's.
SET extension_storage.quota_per_extension = 10;
TRUNCATE extension_storage;
CREATE ROLE regress_writer;
SELECT ext_storage_grant('regress_writer', 'write');
SET ROLE regress_writer;
SELECT pg_temp.error_of('SET extension_storage.quota_per_extension = 0');
SELECT pg_temp.error_of('RESET extension_storage.quota_per_extension');
SELECT pg_temp.error_of('TABLE extension_storage_usage');
SELECT version FROM ext_storage_set('acme.tasks', 'a', '0123456789', 'text/plain');
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.tasks', 'b', '0')$$);
SELECT pg_temp.error_of($$INSERT INTO extension_storage (extension_id, key, value)
    VALUES ('acme.tasks', 'b', '0')$$);
SELECT extension_id, value_bytes, quota_bytes FROM ext_storage_usage();
RESET ROLE;
-- That role may start the counting too, but not what its rights do not cover.
ALTER TABLE extension_storage DISABLE TRIGGER ALL;
SET ROLE regress_writer;
SELECT ext_storage_delete('acme.tasks', 'a');
RESET ROLE;
SELECT * FROM pg_temp.triggers;
SELECT * FROM pg_temp.counted;

-- The trigger functions are triggers only.
SELECT pg_temp.error_of('SELECT ext_storage_count_rows()');

RESET extension_storage.quota_per_extension;
TRUNCATE extension_storage;
ALTER TABLE extension_storage DISABLE TRIGGER extension_storage_count_rows,
    DISABLE TRIGGER extension_storage_count;
DROP OWNED BY regress_writer;
DROP ROLE regress_writer;
