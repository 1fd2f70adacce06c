-- The settings that hold keys: what they take, what they show, which wins.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup

-- keys() names the keys in force in their order; learn() makes a secret known to
-- it by its fingerprint.
CREATE TEMP TABLE secret (fingerprint text, secret text);
CREATE FUNCTION pg_temp.keys() RETURNS text LANGUAGE sql AS $$
    SELECT coalesce(string_agg(coalesce((SELECT s.secret FROM secret s
        WHERE s.fingerprint = k.fingerprint), '?'), ' > ' ORDER BY ordinal), 'none')
    FROM ext_storage_key_status() k WHERE role <> 'unknown'
$$;
CREATE FUNCTION pg_temp.learn(secret text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('extension_storage.secret_key', secret, true);
    INSERT INTO secret SELECT k.fingerprint, learn.secret FROM ext_storage_key_status() k WHERE ordinal = 1;
    PERFORM set_config('extension_storage.secret_key', '', true);
    RETURN secret;
END $$;

-- Nothing is configured.
SELECT * FROM ext_storage_key_status();
SHOW extension_storage.encryption_keys;
SHOW extension_storage.secret_key;
SHOW extension_storage.previous_secret_key;
SHOW extension_storage.encryption_keys_file;
SELECT * FROM ext_storage_configured_keys();

-- A key is known by its fingerprint, on every server the same.
SET extension_storage.encryption_keys = 'new-secret,old-secret';
SELECT * FROM ext_storage_key_status();
SELECT * FROM ext_storage_configured_keys();
-- Nobody is shown a secret, the superuser included.
SHOW extension_storage.encryption_keys;
SELECT current_setting('extension_storage.encryption_keys');
SET extension_storage.secret_key = 'superset';
SHOW extension_storage.secret_key;
SELECT name, setting, boot_val, reset_val FROM pg_settings WHERE name ~ '^extension_storage\..*key'
ORDER BY name COLLATE "C";
SELECT count(*) FROM pg_show_all_settings() s WHERE s::text ~ 'new-secret|old-secret|superset';
SELECT count(*) FROM pg_file_settings s WHERE s::text ~ 'new-secret|old-secret|superset';
-- Others see no more, members of pg_monitor neither.
CREATE ROLE regress_plain;
CREATE ROLE regress_monitor;
GRANT pg_monitor TO regress_monitor;
SET ROLE regress_plain;
SHOW extension_storage.encryption_keys;
SELECT current_setting('extension_storage.encryption_keys'), current_setting('extension_storage.secret_key');
SELECT left(pg_temp.error_of('SHOW extension_storage.encryption_keys_file'), 5);
SELECT name, setting FROM pg_settings WHERE name ~ '^extension_storage\..*key' ORDER BY name COLLATE "C";
-- set_config gives its new value back, but not that of a secret, to any role.
SELECT set_config('extension_storage.encryption_keys', 'a,b', true),
    set_config('extension_storage.secret_key', 'c', false),
    set_config('extension_storage.previous_secret_key', 'd', false);
BEGIN;
PREPARE keys(text) AS SELECT set_config('extension_storage.encryption_keys', $1, true);
EXECUTE keys('bound-secret');
SHOW extension_storage.encryption_keys;
EXECUTE keys('');
SHOW extension_storage.encryption_keys;
ROLLBACK;
RESET extension_storage.previous_secret_key;
SET ROLE regress_monitor;
SELECT current_setting('extension_storage.encryption_keys'), current_setting('extension_storage.secret_key');
SELECT name, setting, reset_val FROM pg_settings WHERE name ~ '^extension_storage\..*key'
ORDER BY name COLLATE "C";
RESET ROLE;
EXPLAIN (SETTINGS, COSTS OFF) SELECT 1;
RESET extension_storage.encryption_keys;
RESET extension_storage.secret_key;

-- Which keys there are, and in which order.  First the secrets' names.
SELECT string_agg(pg_temp.learn(s), ', ')
FROM unnest(ARRAY['a', 'b', 'c', 'a b', 'a,b', 'a"b', ' a ', 'é€😀', '"', '''', '\', '********x']) s;
SELECT count(DISTINCT fingerprint) FROM secret;
-- A list: blanks around an item do not count, within it they do; quotes keep
-- commas, blanks, and doubled quotes.
CREATE FUNCTION pg_temp.keys_of(list text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('extension_storage.encryption_keys', list, true);
    RETURN pg_temp.keys();
EXCEPTION WHEN others THEN
    RETURN pg_temp.error_of(format('SELECT set_config(%L, %L, true)',
        'extension_storage.encryption_keys', list));
END $$;
SELECT list, pg_temp.keys_of(list) AS keys
FROM unnest(ARRAY['a', 'a,b', ' a , b ', E'a,\n\tb', 'b,a', 'a,b,c', 'a b', '"a b" , c', '"a,b",c',
    '"a""b"', '" a "', 'é€😀', '""""', '''', '\', '********x', 'a,a', 'a,b,a', 'b,"a",a', '',
    ' ']) WITH ORDINALITY l (list, n) ORDER BY n;
-- What is no list.  The item is counted, not printed.
\pset format unaligned
SELECT list, pg_temp.keys_of(list) AS error
FROM unnest(ARRAY[',', 'a,', ',a', 'a,,b', 'a, ,b', '""', 'a,""', '"a', 'a,"b', 'a"b', 'a,"b"c',
    '"a" "b"', '"', '"""',
    '********']) WITH ORDINALITY l (list, n) ORDER BY n;
\pset format aligned
-- A setting that is refused changes nothing.
SET extension_storage.encryption_keys = 'a';
SET extension_storage.encryption_keys = 'top-secret,';
SET extension_storage.encryption_keys TO 'top-secret,"';
SELECT pg_temp.keys();
-- What is shown in place of a secret is none: a saved SHOW is not a key.
SET extension_storage.encryption_keys = '********';
SET extension_storage.secret_key = '********';
SELECT pg_temp.keys();
RESET extension_storage.encryption_keys;

-- A list has at most 100 secrets, and a text at most 64 kB.  What is longer is
-- refused before anything is done with it.
\pset format unaligned
SELECT pg_temp.error_of(format('SET extension_storage.encryption_keys = %L',
    (SELECT string_agg('key ' || i, ',') FROM generate_series(1, n) i))) FROM unnest(ARRAY[100, 101]) n;
SELECT pg_temp.error_of(format('SET extension_storage.%I = %L', name, repeat('x', n)))
FROM unnest(ARRAY['encryption_keys', 'secret_key', 'previous_secret_key']) name, unnest(ARRAY[65536, 65537]) n;
SELECT pg_temp.error_of(format('SET extension_storage.encryption_keys = %L', repeat('a,', 20000000)));
\pset format aligned
SELECT count(*) FROM ext_storage_configured_keys();
RESET extension_storage.encryption_keys;
RESET extension_storage.secret_key;
RESET extension_storage.previous_secret_key;

-- secret_key is one secret as it stands, with commas, quotes and blanks.
SET extension_storage.secret_key = 'a,b';
SELECT pg_temp.keys();
SET extension_storage.secret_key = 'a"b';
SELECT pg_temp.keys();
SET extension_storage.secret_key = ' a ';
SELECT pg_temp.keys();
-- It encrypts where nothing else does, and is the last to decrypt otherwise;
-- a secret that is there twice counts once.
SET extension_storage.secret_key = 'c';
SELECT role, entries FROM ext_storage_key_status();
SELECT is_encrypted FROM ext_storage_set('acme.keys', 'k', 'x', is_encrypted => true);
SET extension_storage.encryption_keys = 'a,b';
SELECT pg_temp.keys();
SELECT ext_storage_get('acme.keys', 'k');
SELECT version FROM ext_storage_set('acme.keys', 'k', 'y');
RESET extension_storage.secret_key;
SELECT pg_temp.keys();
SELECT ext_storage_get('acme.keys', 'k');
SET extension_storage.secret_key = 'a';
SELECT pg_temp.keys();
RESET extension_storage.encryption_keys;
SELECT pg_temp.keys();
-- previous_secret_key comes last, decrypts, and never encrypts.
SET extension_storage.encryption_keys = 'a,b';
SET extension_storage.secret_key = 'c';
SET extension_storage.previous_secret_key = 'a b';
SELECT c.ordinal, s.secret, c.role, c.source
FROM ext_storage_configured_keys() c JOIN secret s USING (fingerprint) ORDER BY c.ordinal;
SELECT count(*) FROM ext_storage_key_status()
JOIN ext_storage_configured_keys() USING (ordinal, fingerprint, role, source);
SELECT ordinal, source, role, removable FROM ext_storage_key_status() ORDER BY ordinal;
RESET extension_storage.encryption_keys;
SET extension_storage.previous_secret_key = 'c';
SELECT c.ordinal, c.role, c.source FROM ext_storage_configured_keys() c;
SELECT is_encrypted FROM ext_storage_set('acme.keys', 'previous', 'x', is_encrypted => true);
RESET extension_storage.secret_key;
SELECT ext_storage_get('acme.keys', 'previous');
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.keys', 'previous', 'y')$$);
SELECT pg_temp.error_of('CALL ext_storage_rotate_keys()');
SELECT ordinal, role, source, entries, removable FROM ext_storage_key_status() ORDER BY ordinal;
DELETE FROM extension_storage;
SELECT ordinal, role, source, entries, removable FROM ext_storage_key_status() ORDER BY ordinal;
RESET extension_storage.previous_secret_key;
-- A change of any of them alone is seen by the next call.
SELECT pg_temp.keys();
SET extension_storage.previous_secret_key = 'c';
SELECT pg_temp.keys();
SET extension_storage.secret_key = 'b';
SELECT pg_temp.keys();
SET extension_storage.encryption_keys = 'a';
SELECT pg_temp.keys();
RESET extension_storage.previous_secret_key;
SELECT pg_temp.keys();
RESET extension_storage.secret_key;
SELECT pg_temp.keys();
RESET extension_storage.encryption_keys;
SELECT pg_temp.keys();

-- SET LOCAL ends with the transaction, SET is undone by a rollback, RESET and
-- the empty string leave no key.
SET extension_storage.secret_key = '';
SELECT pg_temp.keys();
SET extension_storage.encryption_keys = 'a';
BEGIN;
SET LOCAL extension_storage.encryption_keys = 'b';
SELECT pg_temp.keys();
SAVEPOINT s;
SET LOCAL extension_storage.encryption_keys = 'c';
SELECT pg_temp.keys();
ROLLBACK TO s;
SELECT pg_temp.keys();
COMMIT;
SELECT pg_temp.keys();
BEGIN;
SET extension_storage.encryption_keys = 'b';
SELECT pg_temp.keys();
ROLLBACK;
SELECT pg_temp.keys();
BEGIN;
SET extension_storage.encryption_keys = 'b';
COMMIT;
SELECT pg_temp.keys();
SET extension_storage.encryption_keys = DEFAULT;
SELECT pg_temp.keys();
SET extension_storage.encryption_keys = 'a';
RESET extension_storage.encryption_keys;
SELECT pg_temp.keys();
SET extension_storage.encryption_keys = 'a';
-- DISCARD ALL too, which takes keys() along.
DISCARD ALL;
SELECT count(*) AS keys FROM ext_storage_key_status() WHERE role <> 'unknown';

-- A role, a database and a function cannot keep a key: everybody reads those
-- catalogs.
ALTER ROLE regress_plain SET extension_storage.encryption_keys = 'top-secret';
ALTER ROLE regress_plain SET extension_storage.secret_key = 'top-secret';
ALTER ROLE regress_plain SET extension_storage.previous_secret_key = 'top-secret';
ALTER ROLE ALL SET extension_storage.secret_key = 'top-secret';
ALTER ROLE regress_plain IN DATABASE contrib_regression SET extension_storage.secret_key = 'top-secret';
ALTER DATABASE contrib_regression SET extension_storage.encryption_keys = 'top-secret';
CREATE FUNCTION keeps_a_key() RETURNS integer LANGUAGE sql
    SET extension_storage.secret_key = 'top-secret' AS 'SELECT 1';
CREATE FUNCTION keeps_a_key() RETURNS integer LANGUAGE sql AS 'SELECT 1';
ALTER FUNCTION keeps_a_key() SET extension_storage.encryption_keys = 'top-secret';
SET extension_storage.secret_key = 'top-secret';
ALTER FUNCTION keeps_a_key() SET extension_storage.secret_key FROM CURRENT;
ALTER ROLE regress_plain SET extension_storage.secret_key FROM CURRENT;
RESET extension_storage.secret_key;
DROP FUNCTION keeps_a_key();
SELECT count(*) FROM pg_db_role_setting s WHERE s::text ~ 'extension_storage\.(encryption_keys|secret_key|previous_secret_key)';

-- The key file is for the configuration alone.
SET extension_storage.encryption_keys_file = '/etc/passwd';
SET LOCAL extension_storage.encryption_keys_file = '';
ALTER ROLE regress_plain SET extension_storage.encryption_keys_file = '/etc/passwd';
-- There are no other settings.
SET extension_storage.encryption_key = 'misspelt';

-- A large token that none of a hundred keys has made: trying them takes seconds,
-- and ends when it is to.
DELETE FROM extension_storage;
INSERT INTO extension_storage (extension_id, key, is_encrypted, value)
VALUES ('acme.app', 'large', true, convert_to('gAAAAABlU_EA' || repeat('AAAA', 5500000), 'SQL_ASCII'));
SELECT set_config('extension_storage.encryption_keys', string_agg('secret' || i, ','), false) FROM generate_series(1, 100) i;
SET statement_timeout = '200ms';
SELECT ext_storage_get('acme.app', 'large');
SELECT * FROM ext_storage_list_values('acme.app');
SELECT * FROM ext_storage_verify();
CALL ext_storage_rotate_keys();
RESET statement_timeout;
-- A larger one than there can be is none: no key is tried, nobody waits.
UPDATE extension_storage SET value = value || value, uuid = '00000000-0000-4000-8000-000000000000';
SELECT ext_storage_get('acme.app', 'large');
SELECT key, value, problem FROM ext_storage_list_values('acme.app');
SELECT key, problem FROM ext_storage_get_many('acme.app', ARRAY['large']);
SELECT key, problem FROM ext_storage_verify();
SET client_min_messages = warning;
CALL ext_storage_rotate_keys();
RESET client_min_messages;

DELETE FROM extension_storage;
DROP ROLE regress_plain, regress_monitor;
