-- Purges: all of an extension, of a user, of a resource.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup

-- Two of every kind, half of them encrypted, with a key that goes away then:
-- a purge needs none.
SET extension_storage.encryption_keys = 'a-secret';
CREATE FUNCTION pg_temp.fill() RETURNS bigint LANGUAGE sql AS $$
    SELECT count((ext_storage_set(x, 'k', convert_to(x, 'UTF8'), 'text/plain', u, r,
        CASE r WHEN 'dashboard' THEN '0b0c7f9e-1111-4222-8333-abcdefabcdef'
            WHEN 'chart' THEN 'Chart7' END,
        is_encrypted => x = 'acme.b')).version)
    FROM unnest(ARRAY['acme.a', 'acme.b']) x, unnest(ARRAY[1, 2, NULL]) u,
        unnest(ARRAY['dashboard', 'chart', NULL]) r
$$;
CREATE VIEW pg_temp.left_over AS
SELECT extension_id, coalesce(user_fk::text, '-') AS user_fk,
    string_agg(coalesce(resource_type, 'none'), ' ' ORDER BY resource_type) AS resources
FROM extension_storage
GROUP BY extension_storage.extension_id, extension_storage.user_fk ORDER BY 1, 2;
SELECT pg_temp.fill();
RESET extension_storage.encryption_keys;

BEGIN;
SELECT ext_storage_purge_extension('acme.b');
SELECT * FROM pg_temp.left_over;
SELECT ext_storage_purge_extension('acme.b');
SELECT ext_storage_purge_extension('Acme.a'), ext_storage_purge_extension('acme.%'),
    ext_storage_purge_extension('acme');
ROLLBACK;

-- A user's own entries and those on resources; shared ones stay.
BEGIN;
SELECT ext_storage_purge_user(user_fk => 1);
SELECT * FROM pg_temp.left_over;
SELECT ext_storage_purge_user(1), ext_storage_purge_user(0), ext_storage_purge_user(-1);
ROLLBACK;

-- A resource's shared entries and every user's private ones.
BEGIN;
SELECT ext_storage_purge_resource('chart', 'Chart7');
SELECT * FROM pg_temp.left_over;
SELECT ext_storage_purge_resource('chart', 'chart7'),
    ext_storage_purge_resource('Dashboard', '0b0c7f9e-1111-4222-8333-abcdefabcdef'),
    ext_storage_purge_resource('chart', '0b0c7f9e-1111-4222-8333-abcdefabcdef');
-- A UUID in any spelling.
SELECT ext_storage_purge_resource('dashboard', '{0B0C7F9E11114222-8333ABCDEFABCDEF}');
SELECT * FROM pg_temp.left_over;
ROLLBACK;
BEGIN;
SELECT ext_storage_purge_resource(resource_type => 'dashboard',
    resource_uuid => 'urn:uuid:0b0c7f9e-1111-4222-8333-abcdefabcdef');
ROLLBACK;

-- Arguments.
SELECT e, pg_temp.error_of('SELECT ' || e) FROM unnest(ARRAY[
    'ext_storage_purge_extension(NULL)',
    'ext_storage_purge_extension('''')',
    'ext_storage_purge_extension(repeat(''x'', 256))',
    'ext_storage_purge_user(NULL)',
    'ext_storage_purge_resource(NULL, ''x'')',
    'ext_storage_purge_resource('''', ''x'')',
    'ext_storage_purge_resource(repeat(''x'', 65), ''x'')',
    'ext_storage_purge_resource(''chart'', NULL)',
    'ext_storage_purge_resource(''chart'', '''')',
    'ext_storage_purge_resource(''chart'', repeat(''x'', 37))']) e;
SELECT count(*) FROM extension_storage;

-- They act with the caller's rights.
CREATE ROLE regress_purger;
GRANT EXECUTE ON FUNCTION ext_storage_purge_extension, ext_storage_purge_user,
    ext_storage_purge_resource TO regress_purger;
GRANT SELECT ON extension_storage TO regress_purger;
SET ROLE regress_purger;
SELECT pg_temp.error_of($$SELECT ext_storage_purge_extension('acme.a')$$),
    pg_temp.error_of('SELECT ext_storage_purge_user(1)'),
    pg_temp.error_of($$SELECT ext_storage_purge_resource('chart', 'Chart7')$$);
RESET ROLE;
DROP OWNED BY regress_purger;
DROP ROLE regress_purger;

-- Under a quota, they give back at once.
SET extension_storage.quota_per_extension = 54;
SELECT ext_storage_delete('acme.a', 'no such key');
SELECT extension_id, value_bytes FROM extension_storage_usage ORDER BY 1;
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.a', 'new', 'x')$$);
SELECT ext_storage_purge_user(1), ext_storage_purge_resource('chart', 'Chart7');
SELECT u.extension_id, u.value_bytes, o.value_bytes AS stored
FROM extension_storage_usage o JOIN ext_storage_usage() u USING (extension_id)
ORDER BY 1;
SELECT ext_storage_purge_extension('acme.a');
SELECT extension_id, value_bytes FROM extension_storage_usage ORDER BY 1;

-- They go by index, whatever the table's size.
RESET extension_storage.quota_per_extension;
INSERT INTO extension_storage (extension_id, user_fk, resource_type, resource_uuid,
    key, value)
SELECT 'many.x' || i % 50, i, 'chart', 'c' || i, 'k', 'x' FROM generate_series(10, 3009) i;
BEGIN;
SET LOCAL debug_discard_caches = 0;
SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'extension_storage' \gset
SELECT ext_storage_purge_user(10), ext_storage_purge_resource('chart', 'c11'),
    ext_storage_purge_extension('many.x12');
SELECT seq_scan - :seq_scan AS sequential_scans
FROM pg_stat_xact_user_tables WHERE relname = 'extension_storage';
COMMIT;

TRUNCATE extension_storage;
ALTER TABLE extension_storage DISABLE TRIGGER extension_storage_count_rows,
    DISABLE TRIGGER extension_storage_count;
