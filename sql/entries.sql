-- Set, get and delete entries in the four scopes.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup
\set board '''0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e11'''

-- The same key in every scope: global, a user's, a resource's, and a user's
-- own on that resource.
SELECT key, user_fk, value_type, value_size, version, is_encrypted,
    created_on = changed_on AS new
FROM ext_storage_set('acme.tasks', 'k', 'global', 'text/plain');
SELECT user_fk, version FROM ext_storage_set('acme.tasks', 'k', 'user 7', user_fk => 7);
SELECT user_fk, version FROM ext_storage_set('acme.tasks', 'k', 'shared',
    resource_type => 'dashboard', resource_uuid => :board);
SELECT user_fk, version FROM ext_storage_set('acme.tasks', 'k', 'user 7 on it', user_fk => 7,
    resource_type => 'dashboard', resource_uuid => :board);
-- Another type, another extension: other entries.
SELECT version FROM ext_storage_set('acme.tasks', 'k', 'chart',
    resource_type => 'chart', resource_uuid => :board);
SELECT version FROM ext_storage_set('acme.notes', 'k', 'notes');
SELECT id - min(id) OVER () AS id, extension_id, user_fk, resource_type, resource_uuid,
    key, convert_from(value, 'UTF8') AS value
FROM extension_storage ORDER BY id;

-- Each is read in its own scope, without falling back to another one.
CREATE TEMP VIEW all_scopes AS
SELECT convert_from(ext_storage_get('acme.tasks', 'k'), 'UTF8') AS global,
    convert_from(ext_storage_get('acme.tasks', 'k', 7), 'UTF8') AS "user",
    convert_from(ext_storage_get('acme.tasks', 'k', NULL, 'dashboard',
        '0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e11'), 'UTF8') AS shared,
    convert_from(ext_storage_get('acme.tasks', 'k', 7, 'dashboard',
        '0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e11'), 'UTF8') AS private,
    ext_storage_get('acme.tasks', 'k', 8) IS NULL AS "not for user 8",
    ext_storage_get('acme.tasks', 'k', 8, 'dashboard',
        '0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e11') IS NULL AS "nor on it";
SELECT * FROM all_scopes;

-- What is not there is NULL, or no row; keys differ in case and blanks.
SELECT ext_storage_get('acme.tasks', 'K') IS NULL AS "K",
    ext_storage_get('acme.tasks', 'k ') IS NULL AS "k ",
    ext_storage_get('acme.Tasks', 'k') IS NULL AS "acme.Tasks";
SELECT * FROM ext_storage_get_entry('acme.tasks', 'nothing');
SELECT version FROM ext_storage_set('acme.tasks', 'k ', 'blank');
SELECT convert_from(ext_storage_get('acme.tasks', 'k '), 'UTF8');

-- Deleting takes the entry of one scope; a second time there is none.
SELECT ext_storage_delete('acme.tasks', 'k ');
SELECT ext_storage_delete('acme.tasks', 'k', 8);
SELECT ext_storage_delete('acme.tasks', 'k', 7);
SELECT ext_storage_delete('acme.tasks', 'k', 7);
SELECT * FROM all_scopes;
SELECT ext_storage_delete('acme.tasks', 'k', 7, 'dashboard', :board);
SELECT ext_storage_delete('acme.tasks', 'k', NULL, 'dashboard', :board);
SELECT * FROM all_scopes;
SELECT ext_storage_delete('acme.tasks', 'k');
SELECT extension_id, resource_type, key FROM extension_storage ORDER BY id;
DELETE FROM extension_storage;

-- An overwrite replaces value, type, category and description, counts the
-- version, and keeps uuid, id, and when and by whom the entry was made.
SELECT value_type, category, description, value_size, version
FROM ext_storage_set('acme.tasks', 'k', 'first', 'text/plain', category => 'c',
    description => 'd', actor_fk => 1);
UPDATE extension_storage
SET created_on = created_on - interval '1 day', changed_on = changed_on - interval '1 day';
CREATE TEMP TABLE before AS SELECT * FROM extension_storage;
SELECT value_type, category, description, value_size, version
FROM ext_storage_set('acme.tasks', 'k', 'second value', actor_fk => 2);
SELECT id = b.id AS id, uuid = b.uuid AS uuid, s.created_on = b.created_on AS created_on,
    s.changed_on - b.changed_on > interval '23:59' AS changed_on,
    s.created_by_fk, s.changed_by_fk
FROM extension_storage s JOIN before b USING (id, uuid);
-- The actor may be left out.
SELECT version FROM ext_storage_set('acme.tasks', 'k', 'third');
SELECT created_by_fk, changed_by_fk FROM extension_storage;
-- get_entry returns what set did, and the value.
SELECT key, user_fk, value_type, category, description, is_encrypted, value_size,
    version, convert_from(value, 'UTF8') AS value
FROM ext_storage_get_entry('acme.tasks', 'k');
SELECT (g.uuid, g.created_on, g.changed_on) = (s.uuid, s.created_on, s.changed_on) AS same
FROM ext_storage_get_entry('acme.tasks', 'k') g, extension_storage s;
-- Times are UTC, whatever the session's time zone.
SET TIME ZONE 'Asia/Tokyo';
SELECT version FROM ext_storage_set('acme.tasks', 'tokyo', 'x');
SELECT created_on - timezone('UTC', now()) BETWEEN '-1 minute' AND '1 minute' AS utc
FROM extension_storage WHERE key = 'tokyo';
RESET TIME ZONE;
DELETE FROM extension_storage;

-- Every argument can be given by name, in any order.
SELECT key, user_fk, value_type, category, description, is_encrypted, version
FROM ext_storage_set(if_version => 0, actor_fk => 3, is_encrypted => false,
    description => 'd', category => 'c', resource_uuid => 'r-1',
    resource_type => 'chart', user_fk => 7, value_type => 'text/plain',
    value => 'named', key => 'k', extension_id => 'acme.tasks');
SELECT ext_storage_get(resource_uuid => 'r-1', resource_type => 'chart', user_fk => 7,
    key => 'k', extension_id => 'acme.tasks');
SELECT key, value FROM ext_storage_get_entry(resource_uuid => 'r-1', resource_type => 'chart',
    user_fk => 7, key => 'k', extension_id => 'acme.tasks');
SELECT key FROM ext_storage_list(after_key => 'j', key_prefix => 'k', page_size => 1, page => 0,
    category => 'c', resource_uuid => 'r-1', resource_type => 'chart', user_fk => 7,
    extension_id => 'acme.tasks');
SELECT ext_storage_count(key_prefix => 'k', category => 'c', resource_uuid => 'r-1',
    resource_type => 'chart', user_fk => 7, extension_id => 'acme.tasks');
SELECT ext_storage_delete(if_version => 1, resource_uuid => 'r-1', resource_type => 'chart',
    user_fk => 7, key => 'k', extension_id => 'acme.tasks');

-- A UUID is the same in every spelling, and stored in the canonical one.
CREATE TEMP TABLE spelling (n serial, resource_uuid text);
INSERT INTO spelling (resource_uuid) VALUES
    ('0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e11'),
    ('0B0E8F0A-6A3C-4C55-9D62-3E9A3B1B7E11'),
    ('0b0e8f0a6a3c4c559d623e9a3b1b7e11'),
    ('0B0E8F0A6a3c4C559D623E9a3b1b7e11'),
    ('{0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e11}'),
    ('{0b0e8f0a6a3c4c559d623e9a3b1b7e11}'),
    ('0b0e-8f0a-6a3c-4c55-9d62-3e9a-3b1b-7e11'),
    ('{0B0E8F0A-6A3C4C55-9D623E9A-3B1B7E11}'),
    ('urn:uuid:0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e11'),
    ('URN:UUID:0B0E8F0A-6A3C-4C55-9D62-3E9A3B1B7E11');
SELECT n, version FROM spelling s, ext_storage_set('acme.tasks', 'k', 'x',
    resource_type => 'dashboard', resource_uuid => s.resource_uuid) ORDER BY n;
SELECT resource_uuid, version FROM extension_storage;
SELECT n, ext_storage_get('acme.tasks', 'k', NULL, 'dashboard', resource_uuid) IS NOT NULL AS get,
    (SELECT count(*) FROM ext_storage_list('acme.tasks', NULL, 'dashboard', s.resource_uuid)) AS list,
    ext_storage_count('acme.tasks', NULL, 'dashboard', resource_uuid) AS count
FROM spelling s ORDER BY n;
SELECT ext_storage_delete('acme.tasks', 'k', NULL, 'dashboard', resource_uuid)
FROM spelling WHERE n = 5;
-- Other identifiers, up to 36 characters, are taken as they are.
TRUNCATE spelling RESTART IDENTITY;
INSERT INTO spelling (resource_uuid) VALUES ('42'), ('Q3 report'), ('q3 report'), (' 42'),
    ('0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e1'),
    ('0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e1g'),
    ('0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e-1'),
    ('-0b0e8f0a6a3c4c559d623e9a3b1b7e11'),
    ('0b0e8f0a--6a3c4c559d623e9a3b1b7e11'),
    ('0b0e8f0a6a3c4c559d623e9a3b1b7e11-'),
    ('{0b0e8f0a6a3c4c559d623e9a3b1b7e11'),
    ('0b0e8f0a6a3c4c559d623e9a3b1b7e1100'),
    (repeat('x', 36)), (repeat('ü', 36));
SELECT n, s.resource_uuid, e.version FROM spelling s, ext_storage_set('acme.tasks', 'k', 'x',
    resource_type => 'dashboard', resource_uuid => s.resource_uuid) e ORDER BY n;
SELECT count(*) FILTER (WHERE s.resource_uuid = e.resource_uuid) AS as_they_are, count(*)
FROM extension_storage e LEFT JOIN spelling s USING (resource_uuid);
DELETE FROM extension_storage;

-- Any bytes: none at all, all 256, 10 MB that compress and 1 MB that do not.
CREATE TEMP TABLE thing (name text, bytes bytea);
INSERT INTO thing VALUES ('empty', ''),
    ('bytes', decode((SELECT string_agg(lpad(to_hex(i), 2, '0'), '' ORDER BY i)
        FROM generate_series(0, 255) i), 'hex')),
    ('long', convert_to(repeat('0123456789', 1000000), 'UTF8')),
    ('dense', (SELECT string_agg(sha256(int4send(i)), '' ORDER BY i)
        FROM generate_series(1, 32768) i));
SELECT name, value_size, value_size = length(bytes) AS right_size
FROM thing, ext_storage_set('acme.tasks', name, bytes, 'application/octet-stream') ORDER BY name;
SELECT name, ext_storage_get('acme.tasks', name) = bytes AS get,
    (SELECT value = bytes FROM ext_storage_get_entry('acme.tasks', name)) AS get_entry
FROM thing ORDER BY name;
DELETE FROM extension_storage;

-- A row that another program has written, with the first sixteen columns, is
-- an entry like any other.
INSERT INTO extension_storage (uuid, extension_id, user_fk, resource_type, resource_uuid,
    key, category, description, value, value_type, is_encrypted, created_on, changed_on,
    created_by_fk, changed_by_fk)
VALUES ('11111111-2222-3333-4444-555555555555', 'acme.tasks', 7, NULL, NULL,
    'foreign', 'c', NULL, 'x', 'text/plain', false, '2024-01-01', '2024-01-02', 5, 6);
INSERT INTO extension_storage (extension_id, user_fk, key, value)
VALUES ('acme.tasks', 7, 'shortest', '{}');
SELECT key, value_type, is_encrypted, value_size, version, created_on IS NOT NULL AS created,
    uuid IS NOT NULL AS uuid
FROM ext_storage_list('acme.tasks', 7);
SELECT key, uuid, created_on, changed_on, value_size, version, value
FROM ext_storage_get_entry('acme.tasks', 'foreign', 7);
SELECT uuid, value_size, version, created_on
FROM ext_storage_set('acme.tasks', 'foreign', 'xyz', user_fk => 7);
SELECT ext_storage_delete('acme.tasks', 'shortest', 7, if_version => 1);
-- Such programs cannot make two rows of one key, nor half a resource.
\set VERBOSITY terse
INSERT INTO extension_storage (extension_id, user_fk, key, value)
VALUES ('acme.tasks', 7, 'foreign', '');
INSERT INTO extension_storage (extension_id, resource_type, key, value)
VALUES ('acme.tasks', 'chart', 'half', '');
INSERT INTO extension_storage (extension_id, resource_uuid, key, value)
VALUES ('acme.tasks', '42', 'half', '');
\set VERBOSITY default
DELETE FROM extension_storage;

-- The functions belong to the caller's transaction.
BEGIN;
SELECT version FROM ext_storage_set('acme.tasks', 'k', 'x');
SELECT ext_storage_get('acme.tasks', 'k');
SAVEPOINT s;
SELECT ext_storage_delete('acme.tasks', 'k');
SELECT ext_storage_get('acme.tasks', 'k') IS NULL AS gone;
ROLLBACK TO s;
SELECT ext_storage_get('acme.tasks', 'k');
ROLLBACK;
SELECT ext_storage_get('acme.tasks', 'k') IS NULL AS gone;

-- Many sets in one statement, of one key too.
SELECT sum(version) FROM generate_series(1, 20) i,
    ext_storage_set('acme.tasks', 'k' || i % 10, int4send(i));
SELECT key, version FROM ext_storage_list('acme.tasks');

-- An entry is found by its index however few there are, also after a change of
-- search_path.
ANALYZE extension_storage;
BEGIN;
SET LOCAL debug_discard_caches = 0;
SELECT pg_stat_get_xact_numscans('extension_storage'::regclass) AS before \gset
SELECT ext_storage_get('acme.tasks', 'none');
SET LOCAL search_path = pg_catalog;
SELECT public.ext_storage_get('acme.tasks', 'none');
SELECT pg_stat_get_xact_numscans('public.extension_storage'::regclass) - :before AS sequential_scans;
ROLLBACK;

-- A read-only transaction reads, and cannot write.
BEGIN READ ONLY;
SELECT ext_storage_get('acme.tasks', 'k1');
SELECT key, value FROM ext_storage_get_entry('acme.tasks', 'k1');
SELECT ext_storage_get_json('acme.tasks', 'none') IS NULL AS none;
SELECT count(*) FROM ext_storage_list('acme.tasks');
SELECT ext_storage_count('acme.tasks');
SELECT count(*) FROM ext_storage_verify();
SELECT count(*) FROM ext_storage_key_status();
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.tasks', 'k1', 'x')$$);
SELECT pg_temp.error_of($$SELECT ext_storage_delete('acme.tasks', 'k1')$$);
COMMIT;

DELETE FROM extension_storage;
