-- A first use of an installed extension, as its README says: install the release
-- before, update, set, rotate.
\set ON_ERROR_STOP 1
CREATE SCHEMA ext_storage;
CREATE EXTENSION pgcrypto;
SELECT version AS before FROM pg_available_extension_versions v
JOIN pg_available_extensions e USING (name)
WHERE name = 'extension_storage' AND version <> e.default_version
ORDER BY string_to_array(version, '.')::int[] DESC LIMIT 1 \gset
CREATE EXTENSION extension_storage SCHEMA ext_storage VERSION :'before';
SELECT version FROM ext_storage.ext_storage_set('acme.app', 'k', 'old', is_encrypted => true);
ALTER EXTENSION extension_storage UPDATE;
SELECT version FROM ext_storage.ext_storage_set('acme.app', 'k', 'new', is_encrypted => true);
CALL ext_storage.ext_storage_rotate_keys();
SELECT 'value ' || convert_from(ext_storage.ext_storage_get('acme.app', 'k'), 'UTF8')
    || ', version ' || extversion
FROM pg_extension WHERE extname = 'extension_storage';
