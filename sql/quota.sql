-- The quota: what counts, when it refuses, and when nothing is counted.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup

-- What is counted, and what is there.  They differ only while nothing counts.
CREATE VIEW pg_temp.counted AS
SELECT extension_id, value_bytes AS counted, stored
FROM extension_storage_usage
FULL JOIN (SELECT extension_id, sum(coalesce(CASE WHEN is_encrypted THEN value_size END,
        octet_length(value)) + coalesce(octet_length(description), 0)) AS stored
    FROM extension_storage GROUP BY extension_id) s USING (extension_id)
WHERE value_bytes <> 0 OR stored IS NOT NULL;
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
SELECT coalesce(sum(value_bytes), 0) AS counted FROM extension_storage_usage;

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
-- Of several entries the sum must fit: one may need the room that a later one leaves.
CREATE FUNCTION pg_temp.put_many(extension_id text, keys text[], bytes integer[])
RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN string_agg(m.key || ' ' || m.value_size, ', ' ORDER BY m.key)
    FROM ext_storage_set_many(extension_id, keys,
        ARRAY(SELECT convert_to(repeat('x', b), 'UTF8') FROM unnest(bytes) b)) m;
END $$;
BEGIN;
SELECT pg_temp.put_many('acme.tasks', '{a,b}', '{90,10}');
SELECT pg_temp.error_of($$SELECT pg_temp.put_many('acme.tasks', '{a,b}', '{1000,1}')$$);
SELECT pg_temp.error_of($$SELECT pg_temp.put_many('acme.tasks', '{a,b,c}', '{10,90,1}')$$);
SELECT pg_temp.put_many('acme.tasks', '{a,b,c}', '{50,20,30}');
SELECT * FROM pg_temp.counted ORDER BY 1;
SELECT pg_temp.error_of($$SELECT pg_temp.put('acme.tasks', 'd', 1)$$);
-- So must what a trigger writes meanwhile, of other extensions by itself.
CREATE FUNCTION pg_temp.copy() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_temp.put_many(NEW.category, '{x,y}', '{1,1}');
    RETURN NULL;
END $$;
CREATE TRIGGER copy AFTER UPDATE ON extension_storage
    FOR EACH ROW WHEN (NEW.category IS NOT NULL) EXECUTE FUNCTION pg_temp.copy();
SELECT pg_temp.error_of($$SELECT count(*) FROM ext_storage_set_many('acme.tasks', '{a,b}',
    ARRAY[repeat('x', 51)::bytea, repeat('x', 17)::bytea], categories => '{acme.tasks,NULL}')$$);
SELECT count(*) FROM ext_storage_set_many('acme.tasks', '{a,b}',
    ARRAY[repeat('x', 51)::bytea, repeat('x', 17)::bytea], categories => '{acme.tasks,NULL}');
SELECT * FROM pg_temp.counted ORDER BY 1;
SELECT pg_temp.error_of($$SELECT count(*) FROM ext_storage_set_many('acme.tasks', '{a,b}',
    ARRAY[repeat('x', 51)::bytea, ''::bytea], categories => '{acme.other,NULL}')$$);
SELECT ext_storage_delete('acme.other', 'b');
SELECT count(*) FROM ext_storage_set_many('acme.tasks', '{a,b}',
    ARRAY[repeat('x', 68)::bytea, ''::bytea], categories => '{acme.other,NULL}');
SET LOCAL extension_storage.quota_per_extension = 50;
SELECT pg_temp.put_many('acme.tasks', '{a,b}', '{68,0}');
SELECT pg_temp.error_of($$SELECT pg_temp.put_many('acme.tasks', '{a,b}', '{68,1}')$$);
ROLLBACK;

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
    FOR i IN 1..10 LOOP
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
VALUES ('acme.raw', 'k1', repeat('x', 60)::bytea, 60), ('acme.raw', 'k2', repeat('x', 41)::bytea, 41);
INSERT INTO extension_storage (extension_id, key, value, value_size)
VALUES ('acme.raw', 'k1', repeat('x', 60)::bytea, 60), ('acme.raw', 'k2', repeat('x', 40)::bytea, 40);
SELECT * FROM pg_temp.counted ORDER BY 1;
-- ... a change of the extension's name too ...
UPDATE extension_storage SET extension_id = 'acme.new' WHERE key = 'k1';
UPDATE extension_storage SET extension_id = 'acme.other', value_size = 1
WHERE extension_id = 'acme.raw';
UPDATE extension_storage SET value = repeat('x', 59)::bytea, key = 'k3' WHERE key = 'k1';
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
SELECT sum(value_bytes) FROM extension_storage_usage;
ROLLBACK;
SELECT sum(value_bytes) > 100000 FROM extension_storage_usage;
TRUNCATE extension_storage;
SELECT sum(value_bytes) FROM extension_storage_usage;

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

-- A size that lies, whoever wrote it, hides nothing: bytes count as they are.
SET extension_storage.quota_per_extension = 1000;
SELECT pg_temp.put('acme.lies', 'k', 600);
SELECT split_part(pg_temp.error_of('UPDATE extension_storage SET value_size = ' || size), E'\n', 1)
FROM unnest(ARRAY[-1, -2147483648]) size;
UPDATE extension_storage SET value_size = 0 WHERE extension_id = 'acme.lies';
SELECT pg_temp.error_of($$INSERT INTO extension_storage (extension_id, key, value, value_size)
    VALUES ('acme.lies', 'k2', repeat('x', 500)::bytea, 0)$$);
SELECT * FROM pg_temp.counted WHERE extension_id = 'acme.lies';
-- Encrypted: the size must be one that has a token of that length.
SET extension_storage.quota_per_extension = '1MB';
SET extension_storage.encryption_keys = 'a-secret';
INSERT INTO extension_storage (extension_id, key, value) SELECT 'acme.sizes', 'k' || n, '' FROM generate_series(0, 64) n;
SELECT count(version) FROM ext_storage_set_many('acme.sizes', ARRAY(SELECT 'k' || n FROM generate_series(0, 64) n),
    ARRAY(SELECT repeat('x', n)::bytea FROM generate_series(0, 64) n), is_encrypted => array_fill(true, ARRAY[65]));
SELECT * FROM pg_temp.counted WHERE extension_id = 'acme.sizes';
UPDATE extension_storage SET value_size = 1000000 WHERE extension_id = 'acme.sizes';
SELECT value_bytes = stored.bytes AS as_stored
FROM extension_storage_usage, (SELECT sum(octet_length(value)) AS bytes
    FROM extension_storage WHERE extension_id = 'acme.sizes') stored
WHERE extension_id = 'acme.sizes';
SELECT DISTINCT u.value_bytes = c.value_bytes AS same
FROM ext_storage_usage() u JOIN extension_storage_usage c USING (extension_id);
SELECT ext_storage_purge_extension('acme.sizes');
RESET extension_storage.encryption_keys;

-- Descriptions count, in bytes, and have a limit, in characters.
SET extension_storage.quota_per_extension = 1000;
SELECT version FROM ext_storage_set('acme.words', 'k', 'x', description => repeat(U&'\00e9', 100));
SELECT * FROM pg_temp.counted WHERE extension_id = 'acme.words';
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.words', 'k', 'x',
    description => repeat('x', 1000))$$);
UPDATE extension_storage SET description = 'short' WHERE extension_id = 'acme.words';
SELECT * FROM pg_temp.counted WHERE extension_id = 'acme.words';
SELECT split_part(pg_temp.error_of($$UPDATE extension_storage SET description = repeat('x', 65536)
    WHERE extension_id = 'acme.words'$$), E'\n', 1),
    pg_temp.error_of($$SELECT ext_storage_set('acme.words', 'k', 'x', description => repeat('x', 65536))$$);
SELECT extension_id, value_bytes FROM ext_storage_usage() WHERE extension_id = 'acme.words';

-- COPY, INSERT ... SELECT and MERGE; TRUNCATE is above.
SET extension_storage.quota_per_extension = 100;
COPY extension_storage (extension_id, key, value, value_size) FROM stdin;
acme.bulk	c1	12345	\N
acme.bulk	c2	1234567890	2
\.
INSERT INTO extension_storage (extension_id, key, value)
SELECT 'acme.bulk', 's' || i, repeat('x', i)::bytea FROM generate_series(1, 9) i;
SELECT * FROM pg_temp.counted WHERE extension_id = 'acme.bulk';
MERGE INTO extension_storage e USING (VALUES ('c1'), ('c2'), ('m1')) v (key)
ON e.extension_id = 'acme.bulk' AND e.key = v.key
WHEN MATCHED AND e.key = 'c1' THEN DELETE
WHEN MATCHED THEN UPDATE SET value = 'xyz'
WHEN NOT MATCHED THEN INSERT (extension_id, key, value) VALUES ('acme.bulk', 'm1', 'four');
SELECT * FROM pg_temp.counted WHERE extension_id = 'acme.bulk';
SELECT pg_temp.error_of($$INSERT INTO extension_storage (extension_id, key, value)
    SELECT 'acme.bulk', 'much', repeat('x', 90)::bytea$$);

-- A trigger on the table that writes another entry in an exception block, and
-- fails: what the outer statement has stored counts, the rest does not.
CREATE FUNCTION pg_temp.nested() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.extension_id = 'acme.outer' THEN
        BEGIN
            BEGIN
                PERFORM pg_temp.put('acme.inner', 'k', 7);
            EXCEPTION WHEN division_by_zero THEN NULL;
            END;
            PERFORM pg_temp.put('acme.outer2', 'k' || NEW.key, 3);
            IF NEW.key <> 'good' THEN
                RAISE EXCEPTION 'back';
            END IF;
        EXCEPTION WHEN raise_exception THEN NULL;
        END;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER nested AFTER INSERT ON extension_storage
    FOR EACH ROW EXECUTE FUNCTION pg_temp.nested();
INSERT INTO extension_storage (extension_id, key, value)
SELECT 'acme.outer', 'k' || i, repeat('x', 18)::bytea FROM generate_series(1, 5) i;
SELECT * FROM pg_temp.counted WHERE extension_id ~ 'outer|inner' ORDER BY 1;
SELECT pg_temp.put('acme.outer', 'good', 4), pg_temp.put('acme.outer', 'bad', 2);
SELECT * FROM pg_temp.counted WHERE extension_id ~ 'outer|inner' ORDER BY 1;
DROP TRIGGER nested ON extension_storage;
-- Bytes that are noted in a subtransaction and not written before it fails: the
-- error of a later row trigger comes before the statement's end.
CREATE FUNCTION pg_temp.fails() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'back';
END $$;
CREATE TRIGGER zz_fails AFTER INSERT ON extension_storage
    FOR EACH ROW WHEN (NEW.key = 'fails') EXECUTE FUNCTION pg_temp.fails();
DO $$
BEGIN
    BEGIN
        INSERT INTO extension_storage (extension_id, key, value)
        VALUES ('acme.back', 'fails', repeat('x', 50)::bytea);
    EXCEPTION WHEN raise_exception THEN NULL;
    END;
    INSERT INTO extension_storage (extension_id, key, value) VALUES ('acme.back', 'k', 'xyz');
END $$;
SELECT * FROM pg_temp.counted WHERE extension_id = 'acme.back';
DROP TRIGGER zz_fails ON extension_storage;

-- Several extensions in one statement.  (20,000 of them: test/t/051_quota_cost.pl)
INSERT INTO extension_storage (extension_id, key, value)
SELECT 'many.' || i, 'k', repeat('x', 1 + i % 90)::bytea FROM generate_series(1, 20) i;
SELECT count(*), sum(counted) = sum(stored) AS same FROM pg_temp.counted WHERE extension_id LIKE 'many.%';
DELETE FROM extension_storage WHERE extension_id LIKE 'many.%';
SELECT count(*) FROM pg_temp.counted WHERE extension_id LIKE 'many.%';

-- Enabled as "origin", the triggers count nothing: what replication applies
-- would be missing.  The next write under a quota counts anew.
ALTER TABLE extension_storage ENABLE TRIGGER ALL;
INSERT INTO extension_storage (extension_id, key, value) VALUES ('acme.origin', 'k', 'xyz');
SELECT * FROM pg_temp.counted WHERE extension_id = 'acme.origin';
SELECT pg_temp.put('acme.origin', 'k2', 4);
SELECT * FROM pg_temp.counted WHERE extension_id = 'acme.origin';
SELECT count(*) FROM pg_temp.counted WHERE counted IS DISTINCT FROM stored;
SELECT * FROM pg_temp.triggers;

-- The trigger functions count on no other table, and in no other way.
CREATE TABLE pg_temp.evil (extension_id bigint, value bigint, value_size text,
    description bigint, is_encrypted bigint);
CREATE FUNCTION pg_temp.try(timing text, function text, target text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    EXECUTE format('CREATE TRIGGER hostile %s INSERT ON %s FOR EACH %s EXECUTE FUNCTION ext_storage_count_%s()',
        split_part(timing, ' ', 1), target, split_part(timing, ' ', 2), function);
    result := pg_temp.error_of(CASE target WHEN 'extension_storage'
        THEN $s$INSERT INTO extension_storage (extension_id, key, value) VALUES ('acme.x', 'k', 'x')$s$
        ELSE $s$INSERT INTO pg_temp.evil VALUES (1, 140000000, '100', 5, 1)$s$ END);
    EXECUTE format('DROP TRIGGER hostile ON %s', target);
    RETURN result;
END $$;
SELECT target, function, timing, pg_temp.try(timing, function, target)
FROM unnest(ARRAY['pg_temp.evil', 'extension_storage']) target,
    unnest(ARRAY['rows', 'statement']) function,
    unnest(ARRAY['AFTER ROW', 'AFTER STATEMENT', 'BEFORE ROW', 'BEFORE STATEMENT']) timing
WHERE target = 'pg_temp.evil' OR timing LIKE 'BEFORE%'
    OR (function = 'rows') = (timing = 'AFTER STATEMENT');
-- Nor with columns of other types; a bigint can be read.
SET extension_storage.encryption_keys = 'a-secret';
BEGIN;
DROP VIEW pg_temp.counted;
ALTER TABLE extension_storage DROP CONSTRAINT ck_extension_storage_description;
ALTER TABLE extension_storage ALTER description TYPE bigint USING 4096;
SELECT pg_temp.error_of($$INSERT INTO extension_storage (extension_id, key, value, description)
    VALUES ('acme.x', 'k', 'x', 140000000)$$);
ROLLBACK;
BEGIN;
ALTER TABLE extension_storage ALTER extension_id DROP NOT NULL;
SELECT pg_temp.error_of($$INSERT INTO extension_storage (key, value) VALUES ('k', 'x')$$);
ROLLBACK;
BEGIN;
DROP VIEW pg_temp.counted;
ALTER TABLE extension_storage ALTER id TYPE bigint, ALTER user_fk TYPE bigint;
SELECT count(*) FROM ext_storage_set('acme.wide', 'k', '12345') k,
    ext_storage_set('acme.wide', 'e', '1234567', is_encrypted => true) e;
SELECT value_bytes FROM extension_storage_usage WHERE extension_id = 'acme.wide';
ROLLBACK;
RESET extension_storage.encryption_keys;
-- Nobody but a superuser makes triggers of these functions.
SELECT grantee::regrole, p.oid::regprocedure
FROM pg_proc p, aclexplode(p.proacl) WHERE proname ~ '^ext_storage_(count_|secrets_insert)'
    AND grantee <> proowner;
TRUNCATE extension_storage;

-- 20 writes in one transaction look for the count but once, then go where it
-- was left: versions of it that are dead do not pile up before the last ones.
SET extension_storage.quota_per_extension = '1MB';
SELECT pg_temp.put('acme.many', 'k0', 1);
BEGIN;
SELECT pg_stat_get_xact_tuples_fetched('extension_storage_usage_pkey'::regclass) AS before \gset
SELECT count(pg_temp.put('acme.many', 'k' || i, 1)) FROM generate_series(1, 20) i;
SELECT pg_stat_get_xact_tuples_fetched('extension_storage_usage_pkey'::regclass) - :before < 10
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
