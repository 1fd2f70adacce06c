-- The walk of ./dev demo: what is echoed says why, psql prints the statement
-- and its result.  KEYS_FILE in the environment is the server's key file.
-- Where an error is the point, 1 / (SQLSTATE = ...) stops the walk if it is
-- another one.
\set ECHO queries
\set QUIET on
\pset footer off

\echo '=== Values'
\echo
\echo '-- A value is stored under an extension and a key; here a JSON document.'
SELECT key, value_type, value_size, version
FROM ext_storage_set_json('acme.tasks', 'settings', '{"theme": "dark"}');

\echo '-- Setting the same key again replaces the value and counts the version.'
SELECT key, version
FROM ext_storage_set_json('acme.tasks', 'settings', '{"theme": "light"}');

\echo '-- Read it as JSON ...'
SELECT ext_storage_get_json('acme.tasks', 'settings');

\echo '-- ... or as the bytes that are stored. Any bytes will do.'
SELECT ext_storage_get('acme.tasks', 'settings');

\echo '-- The same key in the scope of user 7, and in that of a dashboard.'
SELECT key, user_fk, value_size
FROM ext_storage_set('acme.tasks', 'settings', 'blue', 'text/plain',
                     user_fk => 7);
SELECT key, user_fk, value_size
FROM ext_storage_set('acme.tasks', 'settings', 'green', 'text/plain',
                     resource_type => 'dashboard',
                     resource_uuid => '0B0E8F0A-6A3C-4C55-9D62-3E9A3B1B7E11');

\echo '-- Three scopes, three values: global, user, resource.'
SELECT convert_from(ext_storage_get('acme.tasks', 'settings'), 'UTF8')
           AS global,
       convert_from(ext_storage_get('acme.tasks', 'settings', user_fk => 7),
                    'UTF8') AS "user",
       convert_from(ext_storage_get('acme.tasks', 'settings',
                        resource_type => 'dashboard', resource_uuid =>
                        '0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e11'), 'UTF8')
           AS resource;

\echo '-- A list shows one scope, ordered by key, and never reads a value.'
SELECT key, value_type, user_fk, value_size FROM ext_storage_list('acme.tasks');
SELECT key, value_type, user_fk, value_size
FROM ext_storage_list('acme.tasks', user_fk => 7);
SELECT key, value_type, user_fk, value_size
FROM ext_storage_list('acme.tasks', resource_type => 'dashboard',
                      resource_uuid => '0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e11');

\echo '-- A write that expects a version which is gone fails: ES004.'
\set ON_ERROR_STOP off
SELECT ext_storage_set('acme.tasks', 'settings', '{}', if_version => 1);
\set ON_ERROR_STOP on
\set ECHO none
SELECT 1 / (:'SQLSTATE' = 'ES004')::integer AS as_expected \gset
\set ECHO queries
\echo

\echo
\echo '=== Encryption'
\echo
\echo '-- The key is in a file that only the server can read:'
\echo '$ stat -c %A KEYS_FILE'
\! stat -c %A "$KEYS_FILE"
\echo
\echo '-- Secrets are stored encrypted.'
SELECT key, is_encrypted, value_size
FROM ext_storage_set('acme.tasks', 'token', 'xoxb-very-secret', 'text/plain',
                     is_encrypted => true);
SELECT key, is_encrypted, value_size
FROM ext_storage_set('acme.tasks', 'token-of-ann', 'xoxb-also-secret',
                     'text/plain', user_fk => 7, is_encrypted => true);

\echo '-- On disk there is a Fernet token ...'
SELECT key, convert_from(value, 'UTF8') AS value
FROM extension_storage WHERE is_encrypted;

\echo '-- ... and the value is what comes back.'
SELECT convert_from(ext_storage_get('acme.tasks', 'token'), 'UTF8');

\echo '-- Damage a token by one bit: an error says so (ES001), not a NULL.'
UPDATE extension_storage SET value = set_bit(value, 400, 1 - get_bit(value, 400))
WHERE extension_id = 'acme.tasks' AND key = 'token-of-ann';
\set ON_ERROR_STOP off
SELECT ext_storage_get('acme.tasks', 'token-of-ann', user_fk => 7);
\set ON_ERROR_STOP on
\set ECHO none
SELECT 1 / (:'SQLSTATE' = 'ES001')::integer AS as_expected \gset
\set ECHO queries
\echo

\echo '-- All entries that no key reads are found at once ...'
SELECT extension_id, user_fk, key, problem FROM ext_storage_verify();

\echo '-- ... and deleting one needs no key.'
SELECT ext_storage_delete('acme.tasks', 'token-of-ann', user_fk => 7);

\echo
\echo '=== A new key'
\echo
\echo '-- 1. Put the new key first in the file, the old one stays below it.'
\echo '$ (umask 077; { head -c 32 /dev/urandom | base64; cat KEYS_FILE; } >KEYS_FILE.new)'
\echo '$ mv KEYS_FILE.new KEYS_FILE'
\! (umask 077; { head -c 32 /dev/urandom | base64; cat "$KEYS_FILE"; } >"$KEYS_FILE.new")
\! mv "$KEYS_FILE.new" "$KEYS_FILE"
\echo
\echo '-- 2. Reload. The first key encrypts from now on, both decrypt.'
SELECT pg_reload_conf();
\echo '\\connect'
\connect -
SELECT ordinal, fingerprint, role, entries, removable
FROM ext_storage_key_status();

\echo '-- 3. Re-encrypt, in batches that are committed one by one.'
CALL ext_storage_rotate_keys();

\echo '-- 4. No entry needs the old key: removable is true.'
SELECT ordinal, fingerprint, role, entries, removable
FROM ext_storage_key_status();

\echo '-- Take it out of the file ...'
\echo '$ sed -i 2d KEYS_FILE'
\! sed -i 2d "$KEYS_FILE"
\echo
SELECT pg_reload_conf();

\echo '-- ... and a new connection reads everything with the new key alone.'
\echo '\\connect'
\connect -
SELECT convert_from(ext_storage_get('acme.tasks', 'token'), 'UTF8');
SELECT count(*) AS unreadable FROM ext_storage_verify();
