-- The fernet_* functions: tokens as the Fernet specification has them.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup

-- A secret's key, and a token that Python's cryptography made with it at
-- 1,700,000,000 seconds.
\set key '''XYZd6uBvvTT-nOhI8-X8Q2jy9hKxiu9H8p8hZFY6AUA='''
\set token '''gAAAAABlU_EAAAECAwQFBgcICQoLDA0ODxoCqNNrt09qZCxT1Z47ojE6JB6_JBVpXVy7GBv2xbej3iui6exnwa5uYr1R2e3UxMCK8khggMpcCSwVYmmdOV0='''
SELECT fernet_derive_key('old-secret'), fernet_derive_key('old-secret') = :key AS same;
SELECT convert_from(fernet_decrypt(:token, :key), 'UTF8'),
    fernet_timestamp(:token) AT TIME ZONE 'UTC' AS utc, extract(epoch FROM fernet_timestamp(:token)) AS epoch;
-- A secret is taken as UTF-8, whatever the client's encoding is.
SELECT fernet_derive_key('pässwörd €') = translate(encode(sha256(convert_to('pässwörd €', 'UTF8')),
    'base64'), '+/', '-_') AS same;

-- What is encrypted is decrypted, at any length around the cipher's blocks;
-- tokens are base64url, as long as they must be, and of now.
SELECT count(*) AS lengths, bool_and(fernet_decrypt(token, :key) = message) AS same,
    bool_and(token ~ '^gAAAA[A-Za-z0-9_-]+={0,2}$') AS base64url,
    bool_and(length(token) = ceil((25 + (n / 16 + 1) * 16 + 32) / 3.0) * 4) AS long,
    bool_and(now() - fernet_timestamp(token) BETWEEN '-1 minute' AND '1 minute') AS now
FROM generate_series(0, 100) n,
    LATERAL (SELECT substr(sha512(int4send(n)) || sha512(int4send(-n)), 1, n)) m (message),
    fernet_encrypt(message, :key) token;
-- No two tokens are the same.
SELECT count(DISTINCT fernet_encrypt('same', :key)) FROM generate_series(1, 100);
-- Large ones.
SELECT n, length(token) AS token, fernet_decrypt(token, :key) = message AS same
FROM unnest(ARRAY[1000, 100000, 16777215]) n, LATERAL (SELECT convert_to(repeat('x', n), 'UTF8')) m (message),
    fernet_encrypt(message, :key) token;

-- Keys: 32 random bytes, in strict base64url with its padding.
SELECT count(DISTINCT key), bool_and(key ~ '^[A-Za-z0-9_-]{43}=$') AS base64url,
    bool_and(fernet_decrypt(fernet_encrypt('x', key), key) = 'x') AS works
FROM (SELECT fernet_generate_key() FROM generate_series(1, 100)) k (key);
SELECT what, split_part(pg_temp.error_of(format('SELECT fernet_encrypt(%L, %L)', 'x', key)), E'\n', 1) AS error
FROM (VALUES ('as it is', :key), ('no padding', rtrim(:key, '=')),
    ('31 bytes', substr(:key, 1, 40) || 'UA=='),
    ('33 bytes', substr(:key, 1, 42) || 'AA'), ('line end', :key || chr(10)), ('blank before', ' ' || :key),
    ('base64, not url', translate(:key, '-_', '+/')), ('bit left over', overlay(:key PLACING 'B' FROM 43)),
    ('hex', repeat('0123456789abcdef', 4)), ('not ASCII', overlay(:key PLACING 'é' FROM 1)),
    ('padding inside', overlay(:key PLACING '=' FROM 20))) k (what, key);

-- A token is refused with one message, wherever it is damaged and whatever is
-- wrong with it.
SELECT count(*) AS damaged, string_agg(DISTINCT error, ' | ') AS errors
FROM generate_series(1, length(:token)) at,
    unnest(ARRAY['A', 'Q', '-', '+', '/', '=', ' ', '.', 'é', chr(10)]) c,
    pg_temp.error_of(format('SELECT fernet_decrypt(%L, %L)', overlay(:token PLACING c FROM at), :key)) error
WHERE substr(:token, at, 1) <> c;
SELECT count(*) AS cut, string_agg(DISTINCT error, ' | ') AS errors
FROM generate_series(0, length(:token) - 1) n,
    pg_temp.error_of(format('SELECT fernet_decrypt(%L, %L)', left(:token, n), :key)) error;
SELECT what, pg_temp.error_of(format('SELECT fernet_decrypt(%L, %L)', token, key)) AS error
FROM (VALUES ('wrong key', :token, fernet_derive_key('new-secret')), ('longer', :token || 'AAAA', :key),
    ('twice', :token || :token, :key), ('no padding', rtrim(:token, '='), :key),
    ('more padding', :token || '====', :key),
    ('line end', :token || chr(10), :key), ('blank before', ' ' || :token, :key),
    ('quotes', '"' || :token || '"', :key),
    ('base64, not url', translate(:token, '-_', '+/'), :key), ('plaintext', '{"token":"abc123"}', :key),
    ('only a key', :key, :key)) t (what, token, key);
-- Half of the key wrong: the signing one, or the encryption one, under which
-- the padding is wrong.
SELECT what, pg_temp.error_of(format('SELECT fernet_decrypt(%L, %L)', :token,
    translate(encode(k, 'base64'), '+/', '-_'))) AS error
FROM (SELECT decode(translate(:key, '-_', '+/'), 'base64')) b (bytes),
    LATERAL (VALUES ('signing', set_byte(bytes, 0, get_byte(bytes, 0) # 1)),
    ('encryption', set_byte(bytes, 16, get_byte(bytes, 16) # 1))) h (what, k);

-- A debug message tells which it was.
\set SHOW_CONTEXT never
SET client_min_messages = debug1;
SELECT what, pg_temp.error_of(format('SELECT fernet_decrypt(%L, %L, %L)', token, key, ttl)) AS error
FROM (VALUES (1, 'blank before', ' ' || :token, :key, NULL), (2, 'cut', left(:token, 40), :key, NULL),
    (3, 'wrong key', :token, fernet_derive_key('new-secret'), NULL),
    (4, 'half of the key wrong', :token, overlay(:key PLACING CASE substr(:key, 30, 1) WHEN 'A' THEN 'B' ELSE 'A' END FROM 30), NULL),
    (5, 'old', :token, :key, '1 minute')) t (n, what, token, key, ttl)
ORDER BY n;
RESET client_min_messages;
\set SHOW_CONTEXT errors

-- Strict base64url: where padding leaves bits over, they must be zero.  The
-- lengths of messages here give tokens with 0, 1 and 2 characters of it.
SELECT n, padding, count(*) AS others, count(*) FILTER (WHERE error = '22023 invalid Fernet token') AS refused
FROM unnest(ARRAY[0, 16, 32]) n,
    LATERAL (SELECT fernet_encrypt(convert_to(repeat('x', n), 'UTF8'), :key) OFFSET 0) t (token),
    LATERAL (SELECT length(token) - length(rtrim(token, '='))) p (padding),
    regexp_split_to_table('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_', '') c,
    pg_temp.error_of(format('SELECT fernet_decrypt(%L, %L)',
        overlay(token PLACING c FROM length(token) - padding), :key)) error
WHERE substr(token, length(token) - padding, 1) <> c
GROUP BY n, padding ORDER BY n;

-- ttl: older than it is refused with the same message, null and none are any
-- age, fractions of a second do not count, negative is an error of its own.
SELECT ttl, left(pg_temp.error_of(format('SELECT fernet_decrypt(%L, %L, %L)', :token, :key, ttl)),
    40) AS error
FROM unnest(ARRAY[NULL, '0', '1 day', '1 year', '200 years', '170000000 years', '-1 second',
    '-0.5 seconds', '1 day -25 hours',
    '-1 month']) ttl;
SELECT ttl, fernet_decrypt(fernet_encrypt('x', :key), :key, ttl::interval) = 'x' AS decrypts
FROM unnest(ARRAY['5 minutes', '5 minutes 0.5 seconds', '1 month -29 days', NULL]) ttl;
SELECT convert_from(fernet_decrypt(:token, :key, ttl => NULL), 'UTF8') AS any_age;
SELECT convert_from(fernet_decrypt(:token, :key, ttl => now() - fernet_timestamp(:token) + '1 minute'),
    'UTF8') AS young_enough,
    pg_temp.error_of(format('SELECT fernet_decrypt(%L, %L, %L)', :token, :key,
        now() - fernet_timestamp(:token) - '1 minute')) AS too_old;

-- A token's time needs no key, and nobody has vouched for it: the damaged one
-- has a time too, as long as it has the form of a token.
SELECT fernet_timestamp(overlay(:token PLACING 'Q' FROM 60)) AT TIME ZONE 'UTC' AS damaged;
SELECT pg_temp.error_of(format('SELECT fernet_timestamp(%L)', rtrim(:token, '='))) AS error;
SELECT pg_temp.error_of(format('SELECT fernet_timestamp(%L)',
    overlay(:token PLACING 'h' FROM 1))) AS wrong_version;
SELECT pg_temp.error_of(format('SELECT fernet_timestamp(%L)',
    overlay(:token PLACING '____________' FROM 3))) AS out_of_range;

-- Arguments that are compressed, and that are out of line.
CREATE TEMP TABLE toasted (kind text, short text, long text);
ALTER TABLE toasted ALTER short SET STORAGE MAIN, ALTER long SET STORAGE EXTERNAL;
INSERT INTO toasted SELECT 'toasted', repeat('secret', 1000), repeat('secret', 1000);
SELECT pg_column_size(short) < 1000 AS compressed, pg_relation_size(reltoastrelid) > 0 AS out_of_line
FROM toasted, pg_class WHERE oid = 'toasted'::regclass;
SELECT fernet_derive_key(short) = fernet_derive_key(repeat('secret', 1000)) AS compressed,
    fernet_derive_key(long) = fernet_derive_key(repeat('secret', 1000)) AS out_of_line
FROM toasted;
SELECT fernet_decrypt(fernet_encrypt(convert_to(short, 'UTF8'), key), key) = convert_to(long, 'UTF8') AS "same"
FROM toasted, fernet_derive_key('secret') key;
ALTER TABLE toasted ADD message bytea, ADD token text;
ALTER TABLE toasted ALTER message SET STORAGE EXTERNAL, ALTER token SET STORAGE EXTERNAL;
UPDATE toasted SET message = convert_to(long, 'UTF8');
UPDATE toasted SET token = fernet_encrypt(message, fernet_derive_key('secret'));
SELECT fernet_decrypt(token, fernet_derive_key('secret')) = message AS "same" FROM toasted;
DROP TABLE toasted;
