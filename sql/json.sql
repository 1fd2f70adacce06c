-- The JSON variants: the bytes are the UTF-8 text of the value.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup

-- Every kind of JSON value comes back.
CREATE TEMP TABLE doc (key text, value jsonb);
INSERT INTO doc VALUES ('array', '[1, "two", {"three": null}]'), ('empty object', '{}'),
    ('empty string', '""'),
    ('false', 'false'), ('null', 'null'), ('number', '12345678901234567890.0100'),
    ('object', '{"b": 1, "a": {"c": [true]}, "text": "ä € 😀 \" \\ \n"}'), ('string', '"text"');
SELECT e.key, value_type, value_size, version FROM doc d, ext_storage_set_json('acme.json', d.key, d.value) e
ORDER BY e.key COLLATE "C";
SELECT key, ext_storage_get_json('acme.json', key), ext_storage_get_json('acme.json', key) = value AS same,
    convert_from(ext_storage_get('acme.json', key), 'UTF8')::jsonb = value AS bytes
FROM doc ORDER BY key COLLATE "C";
-- A JSON null is a value; no entry is an SQL NULL.
SELECT ext_storage_get_json('acme.json', 'null') IS NULL AS "null",
    ext_storage_get_json('acme.json', 'nothing') IS NULL AS nothing;

-- JSON in the other scopes, encrypted, with another type, by version.
SET extension_storage.encryption_keys = 'a secret';
SELECT key, value_type, user_fk, category, description, is_encrypted, value_size, version
FROM ext_storage_set_json('acme.json', 'k', '{"token": "abc123"}', 'application/vnd.acme+json', user_fk => 7,
    resource_type => 'chart', resource_uuid => '42', category => 'c', description => 'd',
    is_encrypted => true, actor_fk => 7, if_version => 0);
SELECT version, is_encrypted FROM ext_storage_set_json('acme.json', 'k', '{"token": "abc124"}', user_fk => 7,
    resource_type => 'chart', resource_uuid => '42', if_version => 1);
SELECT ext_storage_get_json('acme.json', 'k', 7, 'chart', '42') ->> 'token' AS token;
SELECT left(convert_from(value, 'UTF8'), 5) FROM extension_storage WHERE is_encrypted;
SELECT created_by_fk, changed_by_fk FROM extension_storage WHERE is_encrypted;
RESET extension_storage.encryption_keys;

-- Bytes that are JSON can be read as such, whoever wrote them and however they
-- are spaced; so can large documents.
SELECT version FROM ext_storage_set('acme.json', 'bytes', convert_to(E' {"ä" :\n[ 1,2 ]} ', 'UTF8'));
SELECT ext_storage_get_json('acme.json', 'bytes');
SELECT value_size FROM ext_storage_set_json('acme.json', 'large',
    jsonb_build_object('x', repeat('€', 1000000)));
SELECT length(ext_storage_get_json('acme.json', 'large') ->> 'x');

-- Bytes that are not are an error which does not quote them.
CREATE TEMP TABLE not_json (n serial, bytes bytea);
INSERT INTO not_json (bytes) VALUES ('secret'), (''), ('{"secret": '), ('\x7b00'), ('\x2200ff22'), ('\xff'),
    ('"\\u0000"'), ('1e1000000'), ('{"a":1} secret');
SELECT n, pg_temp.error_of(format('SELECT ext_storage_get_json(%L, %L)', 'acme.json', e.key)) AS error
FROM not_json, ext_storage_set('acme.json', 'not ' || n, bytes, 'text/plain', user_fk => NULL) e ORDER BY n;
SELECT pg_temp.error_of($$SELECT ext_storage_get_json('acme.json', 'none', 7),
    ext_storage_get_json(extension_id, key) FROM extension_storage WHERE key = 'not 1'$$);
-- The bytes are there all the same.
SELECT bool_and(ext_storage_get('acme.json', 'not ' || n) = bytes) AS there FROM not_json;

DELETE FROM extension_storage;
