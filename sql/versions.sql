-- if_version: write or delete one version only; ES004 where it is another.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup

-- A version that there is none of cannot be replaced or deleted.
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.v', 'k', 'x', if_version => 1)$$);
SELECT pg_temp.error_of($$SELECT ext_storage_delete('acme.v', 'k', if_version => 1)$$);
SELECT count(*) FROM extension_storage;

-- 0 makes an entry only if there is none ...
SELECT version FROM ext_storage_set('acme.v', 'k', 'one', if_version => 0);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.v', 'k', 'x', if_version => 0)$$);
SELECT pg_temp.error_of($$SELECT ext_storage_set_json('acme.v', 'k', '1', if_version => 0)$$);
-- ... and deletes none.
SELECT pg_temp.error_of($$SELECT ext_storage_delete('acme.v', 'k', if_version => 0)$$);
SELECT ext_storage_delete('acme.v', 'nothing', if_version => 0);

-- The version that is there is replaced, any other one not, older or newer.
SELECT version FROM ext_storage_set('acme.v', 'k', 'two', if_version => 1);
SELECT version FROM ext_storage_set_json('acme.v', 'k', '"three"', if_version => 2);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.v', 'k', 'x', if_version => 2)$$);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.v', 'k', 'x', if_version => 4)$$);
SELECT pg_temp.error_of($$SELECT ext_storage_set_json('acme.v', 'k', '1', if_version => 2)$$);
SELECT pg_temp.error_of($$SELECT ext_storage_delete('acme.v', 'k', if_version => 2)$$);
-- Without if_version, any.
SELECT version FROM ext_storage_set('acme.v', 'k', 'four');
SELECT convert_from(value, 'UTF8') AS value, version FROM ext_storage_get_entry('acme.v', 'k');

-- It is the version of the entry in that scope: the message says which.
SELECT version FROM ext_storage_set('acme.v', 'k', 'mine', user_fk => 7, if_version => 0);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.v', 'k', 'x', user_fk => 7, if_version => 4)$$);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.v', 'k', 'x', user_fk => 7,
    resource_type => 'chart', resource_uuid => '0B0E8F0A6A3C4C559D623E9A3B1B7E11', if_version => 4)$$);
SELECT pg_temp.error_of($$SELECT ext_storage_delete('acme.v', 'k', NULL, 'chart', '42', if_version => 4)$$);

-- Encryption that is kept, turned on and turned off counts like any set.
SET extension_storage.encryption_keys = 'a secret';
SELECT version, is_encrypted FROM ext_storage_set('acme.v', 's', 'x', is_encrypted => true, if_version => 0);
SELECT version, is_encrypted FROM ext_storage_set('acme.v', 's', 'y', if_version => 1);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.v', 's', 'z', if_version => 1)$$);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.v', 's', 'z', if_version => 0)$$);
SELECT version, is_encrypted FROM ext_storage_set('acme.v', 's', 'z', is_encrypted => false, if_version => 2);
SELECT version, is_encrypted, convert_from(value, 'UTF8') AS value FROM ext_storage_get_entry('acme.v', 's');
RESET extension_storage.encryption_keys;

-- The matching version is deleted; a new entry of the key starts again at 1.
SELECT ext_storage_delete('acme.v', 'k', if_version => 4);
SELECT version FROM ext_storage_set('acme.v', 'k', 'again');

-- A lost update is noticed: both have read version 1, the second write fails.
SELECT version FROM ext_storage_set('acme.v', 'k', 'first', if_version => 1);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.v', 'k', 'second', if_version => 1)$$);
SELECT convert_from(ext_storage_get('acme.v', 'k'), 'UTF8');

DELETE FROM extension_storage;
