-- Bad input for every argument of every function, and the longest good one.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup
SET extension_storage.encryption_keys = 'a secret';
-- What is there must be there after each error.
SELECT version FROM ext_storage_set('acme.a', 'k', 'plain');
SELECT version FROM ext_storage_set('acme.a', 's', 'secret', is_encrypted => true);
SELECT version FROM ext_storage_set('acme.a', 'k', 'user', user_fk => 7);
SELECT version FROM ext_storage_set('acme.a', 'k', 'chart', resource_type => 'chart', resource_uuid => 'x');
CREATE TEMP TABLE before AS SELECT * FROM extension_storage;

-- What each argument without a default gets where another one is tried, for
-- the functions whose names match.
CREATE TABLE resource (id bigint PRIMARY KEY, uuid uuid);
CREATE TEMP TABLE good (functions text, argument text, value text);
INSERT INTO good VALUES
    ('^ext_', 'extension_id', $$'acme.a'$$), ('^ext_', 'key', $$'k'$$),
    ('_set', 'value', $$'{}'$$),
    ('_many', 'keys', $$ARRAY['k']$$), ('_set_many', 'new_values', $$ARRAY['{}']::bytea[]$$),
    ('_delete_prefix', 'key_prefix', $$'no such'$$), ('_rename', 'new_key', $$'new'$$),
    ('_move_in', 'source', $$'resource'$$),
    ('_purge_resource', 'resource_type', $$'chart'$$), ('_purge_resource', 'resource_uuid', $$'x'$$),
    ('_attach_', 'resource_type', $$'chart'$$), ('_attach_', 'resources', $$'resource'$$),
    ('_grant', 'role', $$'pg_monitor'$$), ('_grant', 'level', $$'read'$$),
    ('^fernet_', 'message', $$'x'$$), ('^fernet_', 'secret', $$'x'$$),
    ('^fernet_', 'key', 'fernet_generate_key()'), ('^fernet_', 'token',
    $$'gAAAAABlU_EAAAECAwQFBgcICQoLDA0ODxoCqNNrt09qZCxT1Z47ojE6JB6_JBVpXVy7GBv2xbej3iui6exnwa5uYr1R2e3UxMCK8khggMpcCSwVYmmdOV0='$$);
-- Bad values, and what else must be given for that.
CREATE TEMP TABLE bad (n serial, functions text, argument text, value text, more text DEFAULT '');
INSERT INTO bad (functions, argument, value) VALUES
    ('^ext_', 'extension_id', 'NULL'),
    ('^ext_', 'extension_id', $$''$$),
    ('^ext_', 'extension_id', $$repeat('x', 256)$$),
    ('^ext_', 'extension_id', $$repeat('€', 256)$$),
    ('^ext_', 'key', 'NULL'),
    ('^ext_', 'key', $$''$$),
    ('^ext_', 'key', $$repeat('x', 256)$$),
    ('^ext_', 'key', $$repeat('€', 255) || ' '$$),
    ('^ext_', 'new_key', 'NULL'),
    ('^ext_', 'new_key', $$''$$),
    ('^ext_', 'new_key', $$repeat('€', 256)$$),
    ('^ext_', 'value', 'NULL'),
    ('^ext_', 'value_type', 'NULL'),
    ('^ext_', 'value_type', $$''$$),
    ('^ext_', 'value_type', $$'text/' || repeat('x', 251)$$),
    ('^ext_', 'value_type', $$'text'$$),
    ('^ext_', 'value_type', $$'text/plain' || chr(13) || chr(10) || 'X-Evil: 1'$$),
    ('^ext_', 'value_type', $$'a/b; q="日"'$$),
    ('^ext_', 'value_type', $$E'a/b; q="\u2028"'$$),
    ('^ext_', 'value_type', $$E'a/b; q="\t"'$$),
    ('^ext_', 'value_type', $$'text/plain; a="b'$$),
    ('_set', 'description', $$repeat('x', 65536)$$),
    ('_(set|get|delete|rename|list|count)', 'resource_type', $$'chart'$$),
    ('_(set|get|delete|rename|list|count)', 'resource_uuid', $$'x'$$),
    ('_purge_', 'resource_type', 'NULL'),
    ('_purge_', 'resource_uuid', 'NULL'),
    ('_purge_', 'user_fk', 'NULL'),
    ('_attach_', 'resource_type', 'NULL'),
    ('_attach_', 'resource_type', $$''$$),
    ('_attach_', 'resource_type', $$repeat('€', 65)$$),
    ('_attach_', 'resources', 'NULL'),
    ('_attach_', 'resources', $$'pg_temp.nothing'$$),
    ('_attach_', 'uuid_column', 'NULL'),
    ('_attach_', 'uuid_column', $$'nothing'$$),
    ('_attach_', 'users', 'NULL'),
    ('_attach_', 'users', $$'resource'$$),
    ('_detach', 'relation', 'NULL'),
    ('_grant', 'role', 'NULL'),
    ('_grant', 'role', $$'regress_nobody'$$),
    ('_grant', 'level', 'NULL'),
    ('_grant', 'level', $$''$$),
    ('_grant', 'level', $$'all'$$),
    ('^ext_', 'category', $$repeat('x', 65)$$),
    ('^ext_', 'category', $$repeat('€', 64) || ' '$$),
    ('^ext_', 'if_version', '-1'),
    ('^ext_', 'page', 'NULL'),
    ('^ext_', 'page', '-1'),
    ('^ext_', 'page_size', 'NULL'),
    ('^ext_', 'page_size', '0'),
    ('^ext_', 'page_size', '-1'),
    ('^ext_', 'key_prefix', $$repeat('€', 256)$$),
    ('^ext_', 'after_key', $$repeat('€', 256)$$),
    ('^ext_', 'batch_size', 'NULL'),
    ('^ext_', 'batch_size', '0'),
    ('^ext_', 'batch_size', '-1'),
    ('^ext_', 'dry_run', 'NULL'),
    ('^fernet_', 'message', 'NULL'),
    ('^fernet_', 'key', 'NULL'),
    ('^fernet_', 'key', $$''$$),
    ('^fernet_', 'key', $$'not 32 bytes'$$),
    ('^fernet_', 'token', 'NULL'),
    ('^fernet_', 'token', $$''$$),
    ('^fernet_', 'token', $$'gAAAAA'$$),
    ('^fernet_', 'ttl', $$'-1 second'$$),
    ('^fernet_', 'secret', 'NULL'),
    ('^fernet_', 'secret', $$''$$);
INSERT INTO bad (functions, argument, value, more) VALUES
    ('_(set|get|delete|rename|list|count|purge)', 'resource_type', $$''$$, $$, resource_uuid => 'x'$$),
    ('_(set|get|delete|rename|list|count|purge)', 'resource_type', $$repeat('x', 65)$$, $$, resource_uuid => 'x'$$),
    ('_(set|get|delete|rename|list|count|purge)', 'resource_type', $$repeat('€', 65)$$, $$, resource_uuid => 'x'$$),
    ('_(set|get|delete|rename|list|count|purge)', 'resource_uuid', $$''$$, $$, resource_type => 'chart'$$),
    ('_(set|get|delete|rename|list|count|purge)', 'resource_uuid', $$repeat('x', 37)$$,
        $$, resource_type => 'chart'$$),
    ('_(set|get|delete|rename|list|count|purge)', 'resource_uuid', $$repeat('€', 37)$$,
        $$, resource_type => 'chart'$$);

-- Each function with each value for an argument of that name.
CREATE FUNCTION pg_temp.calls(tried regclass)
RETURNS TABLE (function name, argument text, n integer, statement text)
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY EXECUTE format($query$
        SELECT p.proname, t.argument, t.n,
            CASE p.prokind WHEN 'p' THEN 'CALL ' ELSE 'SELECT * FROM ' END || p.proname || '('
            || coalesce((SELECT string_agg(format('%%s => %%s', a.name, g.value), ', ' ORDER BY a.i) || ', '
                FROM unnest(p.proargnames) WITH ORDINALITY a(name, i)
                JOIN good g ON a.name = g.argument AND p.proname ~ g.functions
                WHERE a.i <= p.pronargs - p.pronargdefaults AND a.name <> t.argument
                    AND t.more !~ (a.name || ' =>')), '')
            || format('%%s => %%s%%s)', t.argument, t.value, t.more)
        FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass
            AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
        JOIN pg_extension x ON x.oid = d.refobjid AND x.extname = 'extension_storage'
        JOIN %s t ON t.argument = ANY (p.proargnames[:p.pronargs]) AND p.proname ~ t.functions
        $query$, tried);
END $$;
\pset format unaligned
\pset fieldsep '\n    '
\pset tuples_only
-- (To rotate_keys and verify, no extension_id means all of them.)
SET client_min_messages = warning;
SELECT statement, pg_temp.error_of(statement) FROM pg_temp.calls('bad')
ORDER BY function COLLATE "C", argument COLLATE "C", n;
RESET client_min_messages;
\pset tuples_only
\pset format aligned

-- Nothing was lost, and nothing came.
SELECT count(*) FROM (TABLE before EXCEPT TABLE extension_storage) lost;
SELECT count(*) FROM (TABLE extension_storage EXCEPT TABLE before) new;

-- Arguments that no value of their type is bad for.
SELECT DISTINCT a AS argument FROM pg_proc p
JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass
    AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
JOIN pg_extension x ON x.oid = d.refobjid AND x.extname = 'extension_storage',
    unnest(p.proargnames[:p.pronargs]) a
WHERE a NOT IN (SELECT argument FROM bad) ORDER BY 1;

-- MIME types that are none ...
SELECT value_type, split_part(pg_temp.error_of(format(
    'SELECT ext_storage_set(%L, %L, %L, %L)', 'acme.a', 'k', 'x', value_type)), E'\n', 1) AS error
FROM (VALUES ('/'), ('text/'), ('/plain'), (' text/plain'), ('text /plain'), ('text/pl ain'),
    ('text/plain '), (E'text/plain\t'),
    ('text//plain'), ('text/plain/x'), ('text/plain; charset'), ('text/plain; charset='),
    ('text/plain; =utf-8'), ('text/plain; charset = utf-8'), ('text/plain; charset="utf-8'),
    ('text/plain charset=utf-8'), ('text/plain, text/html'), ('text/plaïn'), ('<text>/plain'),
    ('text/plain; a="' || chr(10) || '"'), ('text/plain; a="\'), (E'text/plain\t\n'),
    (E'text/plain\x7f')) t (value_type);
-- ... and some that are.
SELECT e.value_type FROM (VALUES ('text/plain'), ('application/vnd.apache.arrow.file'),
    ('image/svg+xml'), ('text/plain; charset=utf-8'), ('text/plain;charset=utf-8;format=flowed'),
    ('multipart/form-data; boundary="a, \"b\" \\; e"'), ('x-a!#$&^_.+-/y')) t (value_type),
    ext_storage_set('acme.a', 'mime', 'x', t.value_type) e;
SELECT ext_storage_delete('acme.a', 'mime');

-- The longest of everything is taken whole, of characters of any length.
-- None of them repeats, so nothing gets shorter by compression.
CREATE TEMP TABLE longest AS
SELECT bytes, string_agg(c, '' ORDER BY i) FILTER (WHERE i <= 255) AS c255,
    string_agg(c, '' ORDER BY i) FILTER (WHERE i <= 64) AS c64,
    string_agg(c, '' ORDER BY i) FILTER (WHERE i <= 36) AS c36
FROM (VALUES (1, 33, 90), (2, 192, 500), (3, 8704, 20000), (4, 65536, 150000)) s (bytes, first, span),
    generate_series(1, 255) i,
    chr((first + ('x' || substr(md5(i::text), 1, 6))::bit(24)::integer % span)) c
GROUP BY bytes;
SELECT bytes, octet_length(c255) AS c255, key = c255 AS key, category = c64 AS category,
    length(value_type) AS value_type
FROM longest, ext_storage_set(c255, c255, 'x', 'text/' || repeat('x', 250), 2147483647, c64, c36,
    c64, repeat(c255, 257), actor_fk => -2147483648, if_version => 0) ORDER BY bytes;
SELECT bytes, ext_storage_get(c255, c255, 2147483647, c64, c36) AS get,
    (SELECT count(*) FROM ext_storage_list(c255, 2147483647, c64, c36, c64, key_prefix => c255)) AS list,
    (SELECT count(*) FROM ext_storage_list(c255, 2147483647, c64, c36, after_key => c255)) AS after,
    ext_storage_count(c255, 2147483647, c64, c36, c64, c255) AS count,
    ext_storage_delete(c255, c255, 2147483647, c64, c36, if_version => 1) AS delete
FROM longest ORDER BY bytes;
-- The largest numbers are no trouble either.
SELECT count(*) FROM ext_storage_list('acme.a', page => 2147483647, page_size => 2147483647);
SELECT count(*) FROM ext_storage_list('acme.a', page_size => 2147483647);
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.a', 'k', 'x', if_version => 9223372036854775807)$$);
SELECT fernet_decrypt(token, key, '178000000 years') = 'x' AS decrypts
FROM fernet_generate_key() key, fernet_encrypt('x', key) token;

-- Text that means something elsewhere is just text here.
CREATE TEMP TABLE hostile (n serial, t text);
INSERT INTO hostile (t) VALUES ($$'; DROP TABLE extension_storage; --$$), ('" OR 1=1 --'), ($$\'; --$$),
    ('$1'), ('@schema@'), ('%s%n%d'), ('%'), ('_'), ('\'), (E'a\nb\tc\r'), (E'\x01\x1b[2J\x7f'),
    ('../../etc/passwd'), ('{"a":1}'), ('NULL'), ('null'), ('<script>'), ('😀'), (U&'\202Eabc'), (U&'\FEFFx'),
    ('é'), (U&'e\0301'), (' '), ('$$'), ('acme.a');
SELECT count(*) AS kept_as_it_is FROM hostile h, ext_storage_set(t, t, convert_to(t, 'UTF8'), 'text/plain',
    resource_type => t, resource_uuid => t, category => t, description => t) e
WHERE (e.key, e.category, e.description) = (t, t, t);
SELECT count(*) AS read_again, bool_and(convert_from(ext_storage_get(t, t, NULL, t, t), 'UTF8') = t) AS get,
    bool_and(ext_storage_count(t, NULL, t, t, t, t) = 1) AS count,
    bool_and((SELECT key FROM ext_storage_list(t, NULL, t, t, t, key_prefix => t)) = t) AS list
FROM hostile;
SELECT count(*) FROM hostile WHERE ext_storage_delete(t, t, NULL, t, t);
-- In messages too.
SELECT pg_temp.error_of(format('SELECT ext_storage_set(%L, %L, %L, user_fk => -1, resource_type => %L, resource_uuid => %L, if_version => 1)',
    t, t, 'x', t, t)) FROM hostile WHERE n IN (1, 6);

SELECT count(*) FROM (TABLE extension_storage EXCEPT TABLE before) changed;
DELETE FROM extension_storage;
DROP TABLE resource;
