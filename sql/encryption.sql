-- Encryption at rest: when a value is a token, and what cannot be read.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup
CREATE TEMP VIEW on_disk AS
SELECT key, is_encrypted, left(encode(value, 'escape'), 5) AS value, value_size, version,
    value_size IS NOT DISTINCT FROM octet_length(value) AS plain_size
FROM extension_storage ORDER BY id;

-- Without a key nothing is encrypted, and nothing is stored instead.
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.e', 'k', 'a secret', is_encrypted => true)$$);
SELECT pg_temp.error_of($$SELECT ext_storage_set_json('acme.e', 'k', '"a secret"', user_fk => 7, is_encrypted => true)$$);
SELECT * FROM on_disk;

-- With one, the value is a Fernet token; size and result are the plaintext's.
SET extension_storage.encryption_keys = 'old-secret';
SELECT key, is_encrypted, value_size, version
FROM ext_storage_set('acme.e', 'k', 'xoxb-1234', 'text/plain', is_encrypted => true);
SELECT key, is_encrypted, value_size, version
FROM ext_storage_set_json('acme.e', 'json', '{"token": "abc123"}', is_encrypted => true);
SELECT * FROM on_disk;
SELECT convert_from(ext_storage_get('acme.e', 'k'), 'UTF8') AS get,
    convert_from((ext_storage_get_entry('acme.e', 'k')).value, 'UTF8') AS get_entry,
    ext_storage_get_json('acme.e', 'json') AS get_json;
-- Neither plaintext nor key can be found in the table.
SELECT count(*) FROM extension_storage s
WHERE s::text ~ 'xoxb|abc123|old-secret|786f7862'
    OR position('xoxb' IN value) > 0 OR position('old-secret' IN value) > 0;
-- The token is what any Fernet of that key reads, and is made anew each time.
SELECT convert_from(fernet_decrypt(convert_from(value, 'UTF8'), fernet_derive_key('old-secret')),
    'UTF8') AS value,
    now() - fernet_timestamp(convert_from(value, 'UTF8')) < interval '1 minute' AS now
FROM extension_storage WHERE key = 'k';
SELECT count(*) FROM generate_series(1, 3) i,
    ext_storage_set('acme.same', 'k' || i, 'same', is_encrypted => true);
SELECT count(DISTINCT value) FROM extension_storage WHERE extension_id = 'acme.same';
DELETE FROM extension_storage WHERE extension_id = 'acme.same';

-- Encryption sticks: an overwrite that does not mention it keeps it ...
SELECT is_encrypted, version FROM ext_storage_set('acme.e', 'k', 'second', 'text/plain');
SELECT is_encrypted, version FROM ext_storage_set('acme.e', 'k', 'third', 'text/plain', is_encrypted => NULL);
SELECT is_encrypted, version FROM ext_storage_set_json('acme.e', 'k', '"fourth"');
SELECT * FROM on_disk WHERE key = 'k';
-- ... and needs the key for that.
RESET extension_storage.encryption_keys;
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.e', 'k', 'plain?')$$);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.e', 'k', 'plain?', if_version => 4)$$);
SELECT * FROM on_disk WHERE key = 'k';
-- An explicit false turns it off, without a key; then plaintext sticks ...
SELECT is_encrypted, version, value_size FROM ext_storage_set('acme.e', 'k', 'open', is_encrypted => false);
SELECT is_encrypted, version FROM ext_storage_set('acme.e', 'k', 'open2');
SELECT * FROM on_disk WHERE key = 'k';
-- ... until an explicit true.
SET extension_storage.encryption_keys = 'old-secret';
SELECT is_encrypted, version FROM ext_storage_set('acme.e', 'k', 'closed', is_encrypted => true);
SELECT * FROM on_disk WHERE key = 'k';
-- It is the entry of that scope which counts.
SELECT is_encrypted FROM ext_storage_set('acme.e', 'k', 'other', user_fk => 7);
SELECT ext_storage_delete('acme.e', 'k', 7);

-- No key at all: ES002, for whoever wants to read.  Plaintext is read, lists
-- and deletes work.
RESET extension_storage.encryption_keys;
SELECT version FROM ext_storage_set('acme.e', 'plain', '"x"');
SELECT pg_temp.error_of($$SELECT ext_storage_get('acme.e', 'k')$$);
SELECT pg_temp.error_of($$SELECT ext_storage_get_json('acme.e', 'json')$$);
SELECT pg_temp.error_of($$SELECT * FROM ext_storage_get_entry('acme.e', 'k')$$);
SELECT ext_storage_get('acme.e', 'plain');
SELECT key, is_encrypted, value_size FROM ext_storage_list('acme.e');
SELECT version FROM ext_storage_set('acme.e', 'goes', 'x');
SELECT ext_storage_delete('acme.e', 'goes');

-- Another key: ES001, never NULL.
SET extension_storage.encryption_keys = 'wrong-secret';
SELECT pg_temp.error_of($$SELECT ext_storage_get('acme.e', 'k')$$);
SELECT pg_temp.error_of($$SELECT ext_storage_get_json('acme.e', 'json')$$);
SELECT pg_temp.error_of($$SELECT * FROM ext_storage_get_entry('acme.e', 'k')$$);

-- A token damaged anywhere, or none at all: the same answer, for the right key.
SET extension_storage.encryption_keys = 'old-secret';
INSERT INTO extension_storage (extension_id, user_fk, resource_type, resource_uuid, key, value, is_encrypted)
SELECT 'acme.bad', 7, 'chart', '42', n || ' ' || what, damaged, true
FROM extension_storage, LATERAL (VALUES
    (1, 'version', set_byte(value, 0, ascii('h'))),
    (2, 'timestamp', set_byte(value, 8, CASE get_byte(value, 8) WHEN 65 THEN 66 ELSE 65 END)),
    (3, 'iv', set_byte(value, 20, get_byte(value, 20) # 1)),
    (4, 'ciphertext', set_byte(value, 40, CASE get_byte(value, 40) WHEN 65 THEN 66 ELSE 65 END)),
    (5, 'mac', set_byte(value, 80, CASE get_byte(value, 80) WHEN 65 THEN 66 ELSE 65 END)),
    (6, 'cut', substr(value, 1, length(value) - 4)),
    (7, 'longer', value || 'AAAA'),
    (8, 'line end', value || '\x0a'),
    (9, 'not base64', set_byte(value, 30, ascii('+'))),
    (10, 'plaintext', 'closed'),
    (11, 'empty', ''),
    (12, 'high bit', set_byte(value, 30, 200)),
    (13, 'NUL', set_byte(value, 30, 0))) d (n, what, damaged)
WHERE extension_id = 'acme.e' AND key = 'k' ORDER BY n;
SELECT key, left(pg_temp.error_of('SELECT ext_storage_get' || entry), 5) AS get,
    left(pg_temp.error_of('SELECT * FROM ext_storage_get_entry' || entry), 5) AS get_entry,
    left(pg_temp.error_of('SELECT ext_storage_get_json' || entry), 5) AS get_json
FROM extension_storage,
    LATERAL (SELECT format('(%L, %L, 7, %L, %L)', extension_id, key, resource_type, resource_uuid)) a (entry)
WHERE extension_id = 'acme.bad' ORDER BY id;
-- The message names the entry.
SELECT pg_temp.error_of($$SELECT ext_storage_get('acme.bad', '11 empty', 7, 'chart', '42')$$);
-- It can be overwritten, which stays encrypted, and be deleted.
SELECT version, is_encrypted
FROM ext_storage_set('acme.bad', '11 empty', 'whole', user_fk => 7, resource_type => 'chart',
    resource_uuid => '42');
SELECT convert_from(ext_storage_get('acme.bad', '11 empty', 7, 'chart', '42'), 'UTF8');
SELECT ext_storage_delete('acme.bad', '10 plaintext', 7, 'chart', '42');
DELETE FROM extension_storage;

-- A token that Python's cryptography has made is read.
INSERT INTO extension_storage (extension_id, key, value, is_encrypted) VALUES ('acme.e', 'python',
    'gAAAAABlU_EAAAECAwQFBgcICQoLDA0ODxoCqNNrt09qZCxT1Z47ojE6JB6_JBVpXVy7GBv2xbej3iui6exnwa5uYr1R2e3UxMCK8khggMpcCSwVYmmdOV0=', true);
SELECT ext_storage_get_json('acme.e', 'python');

-- Any length, around the blocks of the cipher and far above.
CREATE TEMP TABLE len AS
SELECT i, i::text AS key, convert_to(repeat('x', i), 'UTF8') AS value
FROM (SELECT generate_series(0, 100) UNION SELECT unnest(ARRAY[8191, 8192, 8193, 100000, 1000000])) l (i);
SELECT count(*) AS lengths, bool_and(value_size = i) AS sizes
FROM len, ext_storage_set('acme.len', len.key, value, is_encrypted => true) e WHERE i IN (0, 1, 15, 16, 17, 1000000);
SELECT count(*) FROM len WHERE ext_storage_get('acme.len', key) = value;
-- All of them at once.
INSERT INTO extension_storage (extension_id, key, value, is_encrypted)
SELECT 'acme.len', key, '', true FROM len ON CONFLICT DO NOTHING;
SELECT count(*) AS lengths, bool_and(value_size = key::integer) AS sizes
FROM ext_storage_set_many('acme.len', ARRAY(SELECT key FROM len ORDER BY i), ARRAY(SELECT value FROM len ORDER BY i));
SELECT count(*) AS lengths, bool_and(g.value = len.value) AS same,
    bool_and(s.value_size = i AND octet_length(s.value) > i AND s.is_encrypted) AS sizes
FROM len JOIN extension_storage s USING (key)
JOIN ext_storage_get_many('acme.len', ARRAY(SELECT key FROM len)) g USING (key);
DELETE FROM extension_storage;

-- max_value_size counts plaintext, encrypted or not; 54000 names both sizes.
SHOW extension_storage.max_value_size;
SET extension_storage.max_value_size = 100;
SELECT key, value_size FROM ext_storage_set('acme.e', 'fits', convert_to(repeat('x', 100), 'UTF8'));
SELECT key, value_size FROM ext_storage_set('acme.e', 'fits too', convert_to(repeat('x', 100), 'UTF8'),
    is_encrypted => true);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.e', 'k', convert_to(repeat('x', 101), 'UTF8'))$$);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.e', 'k', convert_to(repeat('x', 101), 'UTF8'), is_encrypted => true)$$);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.e', 'fits', convert_to(repeat('x', 101), 'UTF8'))$$);
SELECT pg_temp.error_of($$SELECT ext_storage_set_json('acme.e', 'k', to_jsonb(repeat('x', 99)), user_fk => 7)$$);
-- A value above it that is there already is read.
SET extension_storage.max_value_size = 0;
SELECT length(ext_storage_get('acme.e', 'fits')), length(ext_storage_get('acme.e', 'fits too'));
SELECT value_size FROM ext_storage_set('acme.e', 'empty', '');
-- Its range, and who may set it.
SET extension_storage.max_value_size = -1;
SET extension_storage.max_value_size = 16777216;
RESET extension_storage.max_value_size;
CREATE ROLE regress_plain;
SET ROLE regress_plain;
SET extension_storage.max_value_size = 100;
RESET ROLE;
DROP ROLE regress_plain;
-- The largest value, and one byte more.
SELECT value_size FROM ext_storage_set('acme.e', 'largest', convert_to(repeat('x', 16777215), 'UTF8'),
    is_encrypted => true);
SELECT ext_storage_get('acme.e', 'largest') = convert_to(repeat('x', 16777215), 'UTF8') AS same;
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.e', 'k', convert_to(repeat('x', 16777216), 'UTF8'))$$);

DELETE FROM extension_storage;
