-- Lists with values and by time, several keys at once, rename, prefixes.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup
SET extension_storage.encryption_keys = 'a secret';

-- Several entries are made at once, each with its own type, category and so on.
SELECT key, value_type, category, description, is_encrypted, version, value_size
FROM ext_storage_set_many('acme.b', ARRAY['c', 'a', 'b'],
    ARRAY['\x01', '\x0203', '\x']::bytea[], ARRAY['text/plain', NULL, 'a/b'],
    categories => ARRAY['x', NULL, 'y'], descriptions => ARRAY[NULL, 'one', 'two'],
    is_encrypted => ARRAY[NULL, true, false], actor_fk => 3);
SELECT key, created_by_fk, changed_by_fk FROM extension_storage ORDER BY key;
-- They are replaced as set replaces each: what was encrypted stays so.
SELECT key, value_type, category, is_encrypted, version
FROM ext_storage_set_many('acme.b', ARRAY['a', 'b', 'd'], ARRAY['four', 'five', 'six']::bytea[],
    if_versions => ARRAY[1, NULL, 0]);
-- All or none: a version that is another one takes back the rest.
SELECT pg_temp.error_of($$SELECT * FROM ext_storage_set_many('acme.b', ARRAY['a', 'b', 'e'],
    ARRAY['x', 'x', 'x']::bytea[], if_versions => ARRAY[NULL, 1, NULL])$$);
SELECT key, version, value, problem FROM ext_storage_get_many('acme.b', ARRAY['a', 'b', 'c', 'd', 'e']);

-- In the order asked, those that there are; a key may be asked for twice.
SELECT key, convert_from(value, 'UTF8') AS value FROM ext_storage_get_many('acme.b', ARRAY['d', 'nothing', 'a', 'd']);
SELECT count(*) FROM ext_storage_get_many('acme.b', ARRAY['a'], user_fk => 7);
-- Nobody else's.
SELECT count(*) FROM ext_storage_set_many('acme.b', ARRAY['a'], ARRAY['u']::bytea[], user_fk => 7);
SELECT count(*) FROM ext_storage_set_many('acme.b', ARRAY['a'], ARRAY['r']::bytea[],
    resource_type => 'chart', resource_uuid => '0B0E8F0A6A3C4C559D623E9A3B1B7E11');
SELECT convert_from(value, 'UTF8') FROM ext_storage_get_many('acme.b', ARRAY['a'], 7);
SELECT convert_from(value, 'UTF8') FROM ext_storage_get_many('acme.b', ARRAY['a'], NULL, 'chart',
    '{0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e11}');

-- Lists with values, by key; a page ends before max_bytes, but has one entry.
SELECT key, value, problem FROM ext_storage_list_values('acme.b');
SELECT key FROM ext_storage_list_values('acme.b', max_bytes => 0);
SELECT key FROM ext_storage_list_values('acme.b', after_key => 'a', page_size => 2);
SELECT key FROM ext_storage_list_values('acme.b', key_prefix => 'b');
SELECT key FROM ext_storage_list_values('acme.b', category => 'x');
SELECT key FROM ext_storage_list_values('acme.b', max_bytes => 1073741824, page => 1, page_size => 2);
SELECT count(*) FROM ext_storage_set_many('acme.bytes', ARRAY['a', 'b', 'c'],
    array_fill(repeat('x', 1000)::bytea, ARRAY[3]));
SELECT string_agg(key, ',') FROM ext_storage_list_values('acme.bytes', max_bytes => 1999);
SELECT string_agg(key, ',') FROM ext_storage_list_values('acme.bytes', max_bytes => 2000);
SELECT string_agg(key, ',') FROM ext_storage_list_values('acme.bytes', max_bytes => 3000);
SELECT string_agg(key, ',') FROM ext_storage_list_values('acme.bytes', after_key => 'b', max_bytes => 1);
-- Encrypted, a value has the same bytes; unless the row says another size than its token has.
SELECT count(*) FROM ext_storage_set_many('acme.bytes', ARRAY['a', 'b', 'c'],
    array_fill(repeat('x', 1000)::bytea, ARRAY[3]), is_encrypted => array_fill(true, ARRAY[3]));
SELECT string_agg(key, ',') FROM ext_storage_list_values('acme.bytes', max_bytes => 1999);
SELECT string_agg(key, ',') FROM ext_storage_list_values('acme.bytes', max_bytes => 2000);
UPDATE extension_storage SET value_size = CASE key WHEN 'a' THEN 1 END WHERE extension_id = 'acme.bytes';
SELECT string_agg(key, ',') FROM ext_storage_list_values('acme.bytes', max_bytes => 2000);
SELECT string_agg(key, ',') FROM ext_storage_list_values('acme.bytes', max_bytes => 2200);
-- Nor does a page grow without end where the values are empty.
INSERT INTO extension_storage (extension_id, key, value, description)
    SELECT 'acme.empty', 'k' || lpad(i::text, 5, '0'), '', repeat('x', 1000) FROM generate_series(1, 5000) i;
SELECT count(*) BETWEEN 500 AND 1100 AS bounded FROM ext_storage_list_values('acme.empty', page_size => 2147483647);
DELETE FROM extension_storage WHERE extension_id = 'acme.empty';

-- A value that cannot be decrypted is told apart, and the others come.
INSERT INTO extension_storage (extension_id, key, value, is_encrypted) VALUES ('acme.b', 'ab', 'no token', true);
INSERT INTO extension_storage (extension_id, key, value, is_encrypted)
    VALUES ('acme.b', 'ac', fernet_encrypt('x', fernet_derive_key('another'))::bytea, true);
SELECT key, value, problem FROM ext_storage_list_values('acme.b', key_prefix => 'a');
SELECT key, value, problem FROM ext_storage_get_many('acme.b', ARRAY['ac', 'a', 'ab']);
RESET extension_storage.encryption_keys;
SELECT key, value, problem FROM ext_storage_list_values('acme.b');
SET extension_storage.encryption_keys = 'a secret';
SELECT ext_storage_delete_prefix('acme.b', 'ab') AS ab, ext_storage_delete_prefix('acme.b', 'ac') AS ac;

-- The newest change first: pages by number, and after an entry.
UPDATE extension_storage SET changed_on = '2026-01-01'::timestamp + (CASE key WHEN 'a' THEN 3 WHEN 'b' THEN 2 ELSE 1 END) * interval '1 day'
WHERE extension_id = 'acme.b';
UPDATE extension_storage SET changed_on = NULL WHERE extension_id = 'acme.b' AND key = 'b';
SELECT key, changed_on FROM ext_storage_list_newest('acme.b');
SELECT key FROM ext_storage_list_newest('acme.b', page_size => 2, page => 1);
SELECT key FROM ext_storage_list_newest('acme.b', after_changed_on => '2026-01-02', after_key => 'd');
SELECT key FROM ext_storage_list_newest('acme.b', after_changed_on => NULL, after_key => 'b');
SELECT key FROM ext_storage_list_newest('acme.b', after_changed_on => '2026-01-02', after_key => 'c');
SELECT key FROM ext_storage_list_newest('acme.b', category => 'x');
SELECT key FROM ext_storage_list_newest('acme.b', key_prefix => 'a');
SELECT key, value FROM ext_storage_list_values('acme.b', newest_first => true, page_size => 2);
SELECT key, value FROM ext_storage_list_values('acme.b', newest_first => true,
    after_changed_on => '2026-01-02', after_key => 'd');
-- An entry that is gone is a cursor all the same.
SELECT ext_storage_delete('acme.b', 'd');
SELECT key FROM ext_storage_list_newest('acme.b', after_changed_on => '2026-01-02', after_key => 'd');
-- Every entry comes once, however many have the same time.
INSERT INTO extension_storage (extension_id, key, value, changed_on)
    SELECT 'acme.many', 'k' || lpad(i::text, 4, '0'), 'x', '2026-01-01'::timestamp + i % 7 * interval '1 h'
    FROM generate_series(1, 1000) i;
WITH RECURSIVE pages AS (
    SELECT 1 AS page, e.* FROM (SELECT array_agg(l.key) AS keys, (array_agg(l.changed_on))[37] AS last_time,
        (array_agg(l.key))[37] AS last_key FROM ext_storage_list_newest('acme.many', page_size => 37) l) e
    UNION ALL
    SELECT page + 1, e.* FROM pages, LATERAL (SELECT array_agg(l.key), (array_agg(l.changed_on))[37],
        (array_agg(l.key))[37] FROM ext_storage_list_newest('acme.many', page_size => 37,
            after_changed_on => pages.last_time, after_key => pages.last_key) l) e
    WHERE pages.last_key IS NOT NULL)
SELECT count(*), count(DISTINCT k), max(page) FROM pages, unnest(keys) k;

-- Another key for an entry: it keeps all but the version.
SELECT key, uuid = (SELECT uuid FROM extension_storage WHERE extension_id = 'acme.b' AND key = 'a'
    AND user_fk IS NULL AND resource_type IS NULL) AS same_uuid, is_encrypted, version
FROM ext_storage_rename('acme.b', 'a', 'renamed', actor_fk => 5);
SELECT convert_from(ext_storage_get('acme.b', 'renamed'), 'UTF8') AS value, ext_storage_get('acme.b', 'a') AS old;
SELECT pg_temp.error_of($$SELECT ext_storage_rename('acme.b', 'renamed', 'b')$$);
SELECT pg_temp.error_of($$SELECT ext_storage_rename('acme.b', 'renamed', 'renamed')$$);
SELECT pg_temp.error_of($$SELECT ext_storage_rename('acme.b', 'renamed', 'z', if_version => 1)$$);
SELECT pg_temp.error_of($$SELECT ext_storage_rename('acme.b', 'nothing', 'z', if_version => 1)$$);
SELECT ext_storage_rename('acme.b', 'nothing', 'z') IS NULL AS nothing;
SELECT key FROM ext_storage_rename('acme.b', 'a', 'mine', user_fk => 7, if_version => 1);

-- Deletion of several keys and by prefix: of this scope alone.
CREATE TEMP TABLE here AS SELECT key, uuid FROM extension_storage WHERE extension_id = 'acme.b';
SELECT key, deleted, d.uuid IS NULL AS no_uuid, EXISTS (SELECT FROM here h WHERE h.key = d.key AND h.uuid = d.uuid) AS same_uuid
FROM ext_storage_delete_many('acme.b', ARRAY['nothing', 'c', 'b'], if_versions => ARRAY[0, 1, NULL]) d;
SELECT pg_temp.error_of($$SELECT * FROM ext_storage_delete_many('acme.b', ARRAY['renamed', 'x'], if_versions => ARRAY[3, 1])$$);
SELECT ext_storage_count('acme.b');
SELECT count(*) FROM ext_storage_set_many('acme.b', ARRAY['p%', 'p_1', 'p', 'q'], ARRAY['1', '2', '3', '4']::bytea[]);
SELECT ext_storage_delete_prefix('acme.b', 'p_');
SELECT ext_storage_delete_prefix('acme.b', 'p');
SELECT ext_storage_delete_prefix('acme.b', 'mine');
SELECT ext_storage_delete_prefix('acme.b', 'm', user_fk => 7);
SELECT key FROM ext_storage_list('acme.b');

-- Bad input.
SELECT pg_temp.error_of(s) FROM (VALUES (1,
    $$SELECT ext_storage_rename('acme.b', 'renamed', 'renamed')$$), (8,
    $$SELECT * FROM ext_storage_set_many('acme.b', ARRAY['a', 'a'], ARRAY['1', '2']::bytea[])$$), (9,
    $$SELECT * FROM ext_storage_set_many('acme.b', ARRAY['a', 'b'], ARRAY['1']::bytea[])$$), (10,
    $$SELECT * FROM ext_storage_set_many('acme.b', ARRAY['a', 'b'], ARRAY['1', NULL]::bytea[])$$), (11,
    $$SELECT * FROM ext_storage_set_many('acme.b', ARRAY['a', 'b'], NULL)$$), (12,
    $$SELECT * FROM ext_storage_set_many('acme.b', ARRAY['a', 'b'], ARRAY['1', '2']::bytea[], ARRAY['text/plain', 'text'])$$), (13,
    $$SELECT * FROM ext_storage_set_many('acme.b', ARRAY['a', 'b'], ARRAY['1', '2']::bytea[], categories => ARRAY['x'])$$), (14,
    $$SELECT * FROM ext_storage_set_many('acme.b', ARRAY['a', 'b'], ARRAY['1', '2']::bytea[], categories => ARRAY['x', repeat('x', 65)])$$), (15,
    $$SELECT * FROM ext_storage_set_many('acme.b', ARRAY['a', 'b'], ARRAY['1', '2']::bytea[], descriptions => ARRAY['x', repeat('x', 65536)])$$), (16,
    $$SELECT * FROM ext_storage_set_many('acme.b', ARRAY['a', 'b'], ARRAY['1', '2']::bytea[], if_versions => ARRAY[1, -1])$$), (17,
    $$SELECT * FROM ext_storage_set_many('acme.b', ARRAY['a', 'b'], ARRAY['1'::bytea, repeat('x', 16777216)::bytea])$$), (18,
    $$SELECT * FROM ext_storage_delete_many('acme.b', ARRAY['a', 'a'])$$), (19,
    $$SELECT * FROM ext_storage_delete_many('acme.b', ARRAY['a', 'b'], if_versions => ARRAY[1])$$), (20,
    $$SELECT ext_storage_delete_prefix('acme.b', '')$$), (21,
    $$SELECT ext_storage_delete_prefix('acme.b', NULL)$$), (22,
    $$SELECT ext_storage_rename('acme.b', 'renamed', '')$$), (23,
    $$SELECT * FROM ext_storage_list_values('acme.b', max_bytes => -1)$$), (24,
    $$SELECT * FROM ext_storage_list_values('acme.b', max_bytes => NULL)$$), (25,
    $$SELECT * FROM ext_storage_list_values('acme.b', newest_first => NULL)$$), (26,
    $$SELECT * FROM ext_storage_list_values('acme.b', after_changed_on => '2026-01-01', after_key => 'a')$$), (27,
    $$SELECT * FROM ext_storage_list_newest('acme.b', after_changed_on => '2026-01-01')$$), (28,
    $$SELECT * FROM ext_storage_list_newest('acme.b', page => -1)$$)) t (n, s) ORDER BY n;
-- The keys of each function that takes several.
SELECT function, pg_temp.error_of(format('SELECT * FROM ext_storage_%s_many(%L, keys => %s%s)', function, 'acme.b', keys, more))
FROM (VALUES ('get', ''), ('set', $$, new_values => '{x,y}'$$), ('delete', '')) f (function, more),
    (VALUES (1, 'NULL'), (2, $$'{}'$$), (3, $$ARRAY['a', NULL]$$), (4, $$ARRAY['a', '']$$),
        (5, $$ARRAY['a', repeat('€', 256)]$$), (6, $$ARRAY[['a'], ['b']]$$),
        (7, $$array_fill('x'::text, ARRAY[1001])$$)) k (n, keys)
ORDER BY n, function;
SELECT key, version FROM ext_storage_list('acme.b');

-- Many entries: those that exist are written together, up to a key that has none.
CREATE FUNCTION pg_temp.set_numbered(value text, encrypted boolean[] DEFAULT NULL, versions bigint[] DEFAULT NULL)
    RETURNS TABLE (entries bigint, in_order boolean, versions text, encrypted bigint, sizes bigint) LANGUAGE sql AS
$$
    SELECT count(*), array_agg(s.key ORDER BY s.place) = array_agg('n' || s.place ORDER BY s.place),
        string_agg(DISTINCT s.version::text, ',' ORDER BY s.version::text),
        count(*) FILTER (WHERE s.is_encrypted), sum(s.value_size)
    FROM ROWS FROM (ext_storage_set_many('acme.n', ARRAY(SELECT 'n' || i FROM generate_series(1, 250) i),
        ARRAY(SELECT convert_to(value || i, 'UTF8') FROM generate_series(1, 250) i),
        ARRAY(SELECT 'text/plain; n=' || i FROM generate_series(1, 250) i),
        categories => ARRAY(SELECT CASE WHEN i % 2 = 0 THEN 'c' || i END FROM generate_series(1, 250) i),
        descriptions => ARRAY(SELECT CASE WHEN i % 3 = 0 THEN 'd' || i END FROM generate_series(1, 250) i),
        is_encrypted => encrypted, actor_fk => 9, if_versions => versions)) WITH ORDINALITY
        AS s (key, uuid, value_type, category, description, is_encrypted, user_fk, value_size, version,
              created_on, changed_on, place)
$$;
-- What there is is not what was given for its key.
CREATE VIEW pg_temp.not_as_given AS
    SELECT e.key FROM ext_storage_get_many('acme.n', ARRAY(SELECT 'n' || i FROM generate_series(1, 250) i)) e,
        substr(e.key, 2) i, extension_storage t
    WHERE t.uuid = e.uuid AND (convert_from(e.value, 'UTF8') NOT IN ('x' || i, 'yy' || i)
        OR e.value_size <> octet_length(e.value) OR e.value_type <> 'text/plain; n=' || i
        OR e.category IS DISTINCT FROM CASE WHEN i::int % 2 = 0 THEN 'c' || i END
        OR e.description IS DISTINCT FROM CASE WHEN i::int % 3 = 0 THEN 'd' || i END
        OR t.changed_by_fk <> 9 OR t.is_encrypted <> (get_byte(t.value, 0) = ascii('g')));
SELECT * FROM pg_temp.set_numbered('x', ARRAY(SELECT i % 5 = 0 FROM generate_series(1, 250) i));
SELECT * FROM pg_temp.set_numbered('yy');
SELECT * FROM pg_temp.not_as_given;
SELECT ext_storage_delete('acme.n', 'n180');
SELECT * FROM pg_temp.set_numbered('x');
SELECT * FROM pg_temp.set_numbered('yy', ARRAY(SELECT i % 7 = 0 FROM generate_series(1, 250) i));
SELECT * FROM pg_temp.not_as_given;
SELECT pg_temp.error_of($$SELECT * FROM pg_temp.set_numbered('x', versions => ARRAY(
    SELECT CASE i WHEN 240 THEN 7 WHEN 7 THEN 4 END FROM generate_series(1, 250) i))$$);
SELECT pg_temp.error_of($$SELECT * FROM pg_temp.set_numbered('x', versions => ARRAY(
    SELECT CASE i WHEN 240 THEN 0 END FROM generate_series(1, 250) i))$$);
SELECT string_agg(DISTINCT version::text, ',') FROM extension_storage WHERE extension_id = 'acme.n' AND key <> 'n180';
SELECT count(*) FROM ext_storage_set_many('acme.n', '{large1,large2,large3,small}', ARRAY['a', 'b', 'c', 'd']::bytea[]);
SELECT key, version, value_size FROM ext_storage_set_many('acme.n', '{large1,large2,large3,small}',
    ARRAY[repeat('1', 600000), repeat('2', 600000), repeat('3', 1600000), 's']::bytea[]);
SELECT key, left(convert_from(value, 'UTF8'), 1) FROM ext_storage_get_many('acme.n', '{large1,large2,large3,small}');
-- Row triggers of the holder's see each entry written before the next.  What they keep from being written is an error,
-- and so is a row that is not the one meant.
CREATE FUNCTION pg_temp.interfere() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.key = 'n7' AND TG_ARGV[0] = 'skip' THEN RETURN NULL; END IF;
    IF NEW.key = 'n7' AND TG_ARGV[0] = 'id' THEN NEW.id := -7; END IF;
    IF NEW.key = 'n1' AND TG_ARGV[0] = 'sibling' THEN
        UPDATE extension_storage SET value = 'a trigger''s' WHERE extension_id = 'acme.n' AND key IN ('n2', 'n3');
    END IF;
    IF TG_ARGV[0] = 'key' THEN NEW.key := 'other ' || NEW.key; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER interfere BEFORE UPDATE ON extension_storage FOR EACH ROW EXECUTE FUNCTION pg_temp.interfere('skip');
SELECT pg_temp.error_of($$SELECT * FROM pg_temp.set_numbered('x')$$);
CREATE OR REPLACE TRIGGER interfere BEFORE UPDATE ON extension_storage FOR EACH ROW
    EXECUTE FUNCTION pg_temp.interfere('id');
SELECT * FROM pg_temp.set_numbered('x');
CREATE OR REPLACE TRIGGER interfere BEFORE UPDATE ON extension_storage FOR EACH ROW
    EXECUTE FUNCTION pg_temp.interfere('sibling');
SELECT key, version FROM ext_storage_set_many('acme.n', '{n1,n2}', '{x1,x2}');
SELECT key, convert_from(value, 'UTF8') AS value FROM ext_storage_get_many('acme.n', '{n1,n2,n3}');
SELECT count(*) FROM ext_storage_set_many('acme.n', '{n2,n3}', '{x2,x3}', '{"text/plain; n=2","text/plain; n=3"}',
    categories => '{c2,NULL}', descriptions => '{NULL,d3}', actor_fk => 9);
CREATE OR REPLACE TRIGGER interfere BEFORE UPDATE ON extension_storage FOR EACH ROW
    EXECUTE FUNCTION pg_temp.interfere('key');
SELECT key FROM ext_storage_set_many('acme.n', '{n1,n2}', '{a,b}');
BEGIN;
ALTER TABLE extension_storage DROP CONSTRAINT extension_storage_pkey, DISABLE TRIGGER interfere;
UPDATE extension_storage SET id = 1 WHERE extension_id = 'acme.n';
SELECT pg_temp.error_of($$SELECT * FROM ext_storage_set_many('acme.n', '{n3,n4}', '{a,b}')$$);
ROLLBACK;
DROP TRIGGER interfere ON extension_storage;
-- So does a statement trigger, or one with the name of one of the quota's.
BEGIN;
SELECT count(*) FROM ext_storage_set_many('acme.n', '{n1,n2,n3,n4}', '{1,2,3,4}');
CREATE FUNCTION pg_temp.after_first() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM new_rows WHERE key = 'n1') THEN
        UPDATE extension_storage SET value = 'a trigger''s' WHERE extension_id = 'acme.n' AND key = 'n2';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER after_first AFTER UPDATE ON extension_storage REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION pg_temp.after_first();
SELECT key FROM ext_storage_set_many('acme.n', '{n1,n2}', '{x1,x2}');
SELECT key, convert_from(value, 'UTF8') AS value FROM ext_storage_get_many('acme.n', '{n1,n2}');
DROP TRIGGER after_first ON extension_storage;
DROP TRIGGER extension_storage_count_rows ON extension_storage;
CREATE TRIGGER extension_storage_count_rows BEFORE UPDATE ON extension_storage
    FOR EACH ROW WHEN (OLD.key = 'n1') EXECUTE FUNCTION pg_temp.interfere('sibling');
SELECT key FROM ext_storage_set_many('acme.n', '{n1,n2}', '{y1,y2}');
SELECT key, convert_from(value, 'UTF8') AS value FROM ext_storage_get_many('acme.n', '{n1,n2,n3}');
ROLLBACK;
-- A constraint of the holder's, and two rows of one key.
BEGIN;
SELECT count(*) FROM ext_storage_set_many('acme.n', '{n1,n2,n3,n4}', '{1,2,3,4}');
SELECT count(ext_storage_set('acme.n', k, 'x', category => 'swap ' || k)) FROM unnest('{swap2,swap1}'::text[]) k;
CREATE UNIQUE INDEX ON extension_storage (extension_id, category) WHERE category ^@ 'swap';
SELECT key, category FROM ext_storage_set_many('acme.n', '{swap1,swap2}', '{x,x}', categories => '{swap 3,swap swap1}');
ALTER TABLE extension_storage DROP CONSTRAINT uq_extension_storage_scoped_key;
INSERT INTO extension_storage (extension_id, key, value) VALUES ('acme.n', 'n2', 'twice'), ('acme.n', 'n4', 'twice');
SELECT count(*) FROM ext_storage_set_many('acme.n', '{n1,n2,n3,n4}', '{z,z,z,z}');
SELECT key, convert_from(value, 'UTF8') AS value FROM extension_storage
WHERE extension_id = 'acme.n' AND key IN ('n1', 'n2', 'n3', 'n4') ORDER BY 1, 2;
ROLLBACK;
-- A policy that counts the others, which is the same for one call and for several.
BEGIN;
SELECT count(*) FROM ext_storage_set_many('acme.n', '{n1,n2,n3,n4}', '{1,2,3,4}');
CREATE ROLE regress_policy;
SELECT ext_storage_grant('regress_policy', 'write');
CREATE FUNCTION pg_temp.used() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
AS $$ SELECT count(*) FROM extension_storage WHERE category = 'used' $$;
ALTER TABLE extension_storage ENABLE ROW LEVEL SECURITY;
CREATE POLICY regress_used ON extension_storage TO regress_policy USING (true)
    WITH CHECK (category <> 'used' OR pg_temp.used() < 1);
SET LOCAL ROLE regress_policy;
SELECT pg_temp.error_of($$SELECT ext_storage_set_many('acme.n', '{n1,n2}', '{x,x}', categories => '{used,used}')$$);
SELECT key FROM ext_storage_set_many('acme.n', '{n1,n2}', '{x,x}', categories => '{used,free}');
ROLLBACK;
-- A view in the table's place, of a table with such a trigger.
BEGIN;
SELECT count(*) FROM ext_storage_set_many('acme.n', '{n1,n2,n3,n4}', '{1,2,3,4}');
ALTER TABLE extension_storage RENAME TO base;
CREATE VIEW extension_storage AS SELECT * FROM base;
CREATE TRIGGER interfere BEFORE UPDATE ON base FOR EACH ROW EXECUTE FUNCTION pg_temp.interfere('sibling');
SELECT key FROM ext_storage_set_many('acme.n', '{n1,n2}', '{y1,y2}');
ROLLBACK;
SELECT * FROM pg_temp.not_as_given;
DROP VIEW pg_temp.not_as_given;
DELETE FROM extension_storage WHERE extension_id = 'acme.n';

-- Quota: counted as single calls are, and refused as a whole.
SET extension_storage.quota_per_extension = 10;
SELECT count(*) FROM ext_storage_set_many('acme.q', ARRAY['a', 'b'], ARRAY['12345', '1234']::bytea[]);
SELECT pg_temp.error_of($$SELECT * FROM ext_storage_set_many('acme.q', ARRAY['a', 'c'], ARRAY['1', '123456']::bytea[])$$);
SELECT value_bytes FROM extension_storage_usage WHERE extension_id = 'acme.q';
SELECT ext_storage_delete_prefix('acme.q', 'a');
SELECT value_bytes FROM extension_storage_usage WHERE extension_id = 'acme.q';
RESET extension_storage.quota_per_extension;
ALTER TABLE extension_storage DISABLE TRIGGER extension_storage_count_rows, DISABLE TRIGGER extension_storage_count;
DELETE FROM extension_storage;
TRUNCATE extension_storage_usage;
