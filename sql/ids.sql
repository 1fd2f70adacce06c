-- Ids: an overwrite needs none, and a table may have more of them than an
-- integer holds.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup

SET extension_storage.encryption_keys = 'old-secret';
SELECT version FROM ext_storage_set('acme.a', 'plain', 'plain');
SELECT version FROM ext_storage_set('acme.a', 'secret', 'secret', is_encrypted => true);

-- Overwrites take no id, whether they mention encryption or not.
SELECT nextval(pg_get_serial_sequence('extension_storage', 'id')) AS before \gset
SELECT count(ext_storage_set('acme.a', 'plain', 'plain')),
    count(ext_storage_set('acme.a', 'secret', 'secret')),
    count(ext_storage_set('acme.a', 'secret', 'secret', is_encrypted => true)),
    count(ext_storage_set_json('acme.a', 'plain', '"json"'))
FROM generate_series(1, 3);
SELECT count(*) FROM ext_storage_set_many('acme.a', '{plain,secret}', '{plain,secret}');
SELECT version FROM ext_storage_set('acme.a', 'plain', 'plain', if_version => 8);
SELECT version FROM ext_storage_rename('acme.a', 'plain', 'renamed');
SELECT version FROM ext_storage_rename('acme.a', 'renamed', 'plain');
CREATE TEMP TABLE source AS SELECT id + 1000 AS id, gen_random_uuid() AS uuid, extension_id, user_fk, resource_type,
    resource_uuid, key, category, description, value, value_type, is_encrypted, created_on,
    changed_on + interval '1 day' AS changed_on, created_by_fk, changed_by_fk FROM extension_storage;
SET client_min_messages = warning;
CALL ext_storage_move_in('source');
RESET client_min_messages;
DROP TABLE source;
SELECT nextval(pg_get_serial_sequence('extension_storage', 'id')) - :before AS ids_taken;

-- Nor do they need one when there are no more; a new entry does.
SELECT setval(pg_get_serial_sequence('extension_storage', 'id'), 2147483647);
SELECT version FROM ext_storage_set('acme.a', 'plain', 'plain');
SELECT version FROM ext_storage_set('acme.a', 'secret', 'secret');
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.a', 'new', 'x')$$);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.a', 'new', 'x', is_encrypted => true)$$);
SELECT key, version FROM ext_storage_list('acme.a');

-- The way out, which every function goes along with.
BEGIN;
ALTER TABLE extension_storage ALTER COLUMN id TYPE bigint;
SELECT version FROM ext_storage_set('acme.a', 'new', 'new', is_encrypted => true);
INSERT INTO extension_storage (extension_id, user_fk, key, value, is_encrypted)
SELECT 'acme.a', i, 'k' || i, convert_to(fernet_encrypt(convert_to('value ' || i, 'UTF8'), derived), 'UTF8'), true
FROM generate_series(1, 100) i, fernet_derive_key('old-secret') derived;
SELECT min(id), max(id) FROM extension_storage WHERE key <> ALL ('{plain,secret}');
SELECT key FROM ext_storage_list('acme.a');
SET LOCAL extension_storage.encryption_keys = 'new-secret,old-secret';
SELECT role, entries, removable FROM ext_storage_key_status();
SET LOCAL client_min_messages = warning;
CALL ext_storage_rotate_keys(batch_size => 30, dry_run => true);
CALL ext_storage_rotate_keys(batch_size => 30);
SELECT role, entries, removable FROM ext_storage_key_status();
SELECT * FROM ext_storage_verify();
SELECT count(*) FROM extension_storage, fernet_derive_key('new-secret') derived
WHERE user_fk IS NOT NULL AND fernet_decrypt(convert_from(value, 'UTF8'), derived) = convert_to('value ' || user_fk, 'UTF8');
-- The least id, and the greatest.
DELETE FROM extension_storage WHERE user_fk > 5;
UPDATE extension_storage SET id = '-9223372036854775808' WHERE key = 'k1';
UPDATE extension_storage SET id = 9223372036854775807 WHERE key = 'k2';
SET LOCAL extension_storage.encryption_keys = 'newer-secret,new-secret';
CALL ext_storage_rotate_keys(batch_size => 1);
SELECT role, entries, removable FROM ext_storage_key_status();
CALL ext_storage_rotate_keys(batch_size => 1);
SET LOCAL extension_storage.encryption_keys = 'newer-secret';
SELECT * FROM ext_storage_verify();
SELECT count(*) FROM generate_series(1, 5) i
WHERE ext_storage_get('acme.a', 'k' || i, i) = convert_to('value ' || i, 'UTF8');
SET LOCAL extension_storage.encryption_keys = 'other-secret';
SELECT count(*) FROM ext_storage_verify();
SELECT extension_id, entries, encrypted_entries FROM ext_storage_usage();
SELECT ext_storage_delete('acme.a', 'k1', 1), ext_storage_purge_user(2), ext_storage_purge_extension('acme.a');
ROLLBACK;

DELETE FROM extension_storage;
SELECT setval(pg_get_serial_sequence('extension_storage', 'id'), 1, false);
