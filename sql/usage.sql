-- What each extension uses.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup

SELECT * FROM ext_storage_usage();

-- One row an extension, in byte order; every scope counts, bytes are those
-- before encryption, and of a row without value_size those on disk.
SET extension_storage.encryption_keys = 'a-secret';
SELECT count((ext_storage_set(x, k, v, 'text/plain', u, r, i, is_encrypted => e)).version)
FROM (VALUES
    ('acme.tasks', 'a', 'four'::bytea, NULL::integer, NULL, NULL, false),
    ('acme.tasks', 'a', '', 1, NULL, NULL, false),
    ('acme.tasks', 'a', 'eight...', 1, 'dashboard', 'd1', true),
    ('acme.tasks', 'a', 'eight...', NULL, 'dashboard', 'd1', true),
    ('Zeta.app', 'k', '\x00', NULL, NULL, NULL, false),
    ('acme.Tasks', 'k', repeat('x', 1000)::bytea, 2, NULL, NULL, true)
) v (x, k, v, u, r, i, e);
RESET extension_storage.encryption_keys;
INSERT INTO extension_storage (extension_id, key, value)
VALUES ('raw.app', 'toasted', repeat('x', 100000)::bytea), ('raw.app', 'k', 'xyz');

-- It needs no key, writes nothing, and shows the quota.
BEGIN READ ONLY;
SELECT * FROM ext_storage_usage();
SET LOCAL extension_storage.quota_per_extension = '1TB';
SELECT extension_id, quota_bytes FROM ext_storage_usage() LIMIT 1;
ROLLBACK;

-- A size that cannot be true counts for nothing; descriptions count.
BEGIN;
UPDATE extension_storage SET value_size = 2147483647;
SELECT extension_id, value_bytes FROM ext_storage_usage();
UPDATE extension_storage SET value_size = NULL, description = 'twelve bytes';
SELECT extension_id, value_bytes FROM ext_storage_usage();
ROLLBACK;

-- It shows what its caller may read, no more.
CREATE ROLE regress_reader;
GRANT EXECUTE ON FUNCTION ext_storage_usage TO regress_reader;
SET ROLE regress_reader;
SELECT pg_temp.error_of('SELECT * FROM ext_storage_usage()');
RESET ROLE;
DROP OWNED BY regress_reader;
DROP ROLE regress_reader;
TRUNCATE extension_storage;
