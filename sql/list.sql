-- Lists and counts: one scope, by key, page by page.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup

-- Twelve entries of one user, and one in each scope that must not show.
INSERT INTO extension_storage (extension_id, user_fk, key, category, value, value_size)
SELECT 'acme.list', 7, key, CASE WHEN n % 3 = 0 THEN 'third' WHEN n % 3 = 1 THEN 'first' END, 'x', 1
FROM unnest(ARRAY['b', 'a', 'B', 'a b', 'a%', 'a_1', 'ax1', 'a\1', 'ä', 'é€', 'é', 'z😀'])
    WITH ORDINALITY AS k (key, n);
SELECT count(*) FROM (VALUES ('acme.list', 'global', NULL, NULL, NULL),
    ('acme.list', 'other user', 8, NULL, NULL),
    ('acme.list', 'shared', NULL, 'chart', '42'), ('acme.list', 'private', 7, 'chart', '42'),
    ('acme.list', 'board', 7, 'dashboard', '42'), ('acme.list2', 'other extension', 7, NULL, NULL))
    AS o (extension_id, key, user_fk, type, uuid),
    ext_storage_set(o.extension_id, o.key, 'x', user_fk => o.user_fk, resource_type => type,
        resource_uuid => uuid,
        category => 'third');

-- Ordered by the bytes of the key, in every locale.
SELECT key, category, user_fk, value_type, value_size, version FROM ext_storage_list('acme.list', 7);
SELECT ext_storage_count('acme.list', 7);

-- Each scope lists its own; with a resource and no user, the shared entries.
SELECT key FROM ext_storage_list('acme.list');
SELECT key FROM ext_storage_list('acme.list', 8);
SELECT key FROM ext_storage_list('acme.list', NULL, 'chart', '42');
SELECT key FROM ext_storage_list('acme.list', 7, 'chart', '42');
SELECT key FROM ext_storage_list('acme.list', 7, 'dashboard', '42');
SELECT key FROM ext_storage_list('acme.list', 8, 'chart', '42');
SELECT key FROM ext_storage_list('acme.nothing');
SELECT ext_storage_count('acme.list') AS global, ext_storage_count('acme.list', 8) AS "user",
    ext_storage_count('acme.list', NULL, 'chart', '42') AS shared,
    ext_storage_count('acme.list', 7, 'chart', '42') AS private,
    ext_storage_count('acme.list', 8, 'chart', '42') AS "not his",
    ext_storage_count('acme.nothing') AS nothing;
-- The same scopes with a category.
SELECT key FROM ext_storage_list('acme.list', category => 'third');
SELECT key FROM ext_storage_list('acme.list', NULL, 'chart', '42', 'third');
SELECT key FROM ext_storage_list('acme.list', 7, 'chart', '42', 'third');
SELECT key FROM ext_storage_list('acme.list', 7, 'dashboard', '42', 'third');
SELECT ext_storage_count('acme.list', 7, 'dashboard', '42', 'third');

-- Pages of 5: two full ones, one of the rest, and nothing behind the end.
SELECT page, array_agg(key) AS keys FROM generate_series(0, 3) page
LEFT JOIN ext_storage_list('acme.list', 7, page => page, page_size => 5) ON true
GROUP BY page ORDER BY page;
-- 25 a page if nothing is said.
INSERT INTO extension_storage (extension_id, key, value)
SELECT 'acme.many', 'k' || lpad(i::text, 2, '0'), 'x' FROM generate_series(1, 30) i;
SELECT count(*), min(key), max(key) FROM ext_storage_list('acme.many');
SELECT count(*), min(key), max(key) FROM ext_storage_list('acme.many', page => 1);
SELECT ext_storage_count('acme.many');

-- A prefix is text, not a pattern.
SELECT prefix, (SELECT array_agg(key) FROM ext_storage_list('acme.list', 7, key_prefix => prefix)) AS keys,
    ext_storage_count('acme.list', 7, key_prefix => prefix) AS count
FROM unnest(ARRAY['a', 'a%', 'a_', 'a\', '%', '_', 'é', 'é€', 'z😀', 'z😀 ', 'A', '', NULL])
    WITH ORDINALITY AS p (prefix, n) ORDER BY n;

-- after_key goes on behind a key, which need not exist.
SELECT key FROM ext_storage_list('acme.list', 7, after_key => 'a b', page_size => 2);
SELECT key FROM ext_storage_list('acme.list', 7, after_key => 'a a', page_size => 2);
SELECT key FROM ext_storage_list('acme.list', 7, after_key => 'é', page_size => 2);
SELECT key FROM ext_storage_list('acme.list', 7, after_key => 'é€');
-- It walks all of a scope without missing or repeating one.
WITH RECURSIVE walk AS (
    SELECT 1 AS n, key FROM ext_storage_list('acme.list', 7, page_size => 1)
    UNION ALL
    SELECT n + 1, l.key FROM walk, ext_storage_list('acme.list', 7, page_size => 1, after_key => walk.key) l)
SELECT count(*), count(DISTINCT key), bool_and(key COLLATE "C" > before) AS ordered
FROM (SELECT key, lag(key) OVER (ORDER BY n) COLLATE "C" AS before FROM walk) w;

-- A category, and all of it together.
SELECT key, category FROM ext_storage_list('acme.list', 7, category => 'first');
SELECT key, category FROM ext_storage_list('acme.list', 7, category => 'none');
SELECT ext_storage_count('acme.list', 7, category => 'first') AS first,
    ext_storage_count('acme.list', 7, category => 'none') AS none,
    ext_storage_count('acme.list', 7, category => '') AS empty,
    ext_storage_count('acme.list', 7, category => 'first', key_prefix => 'a') AS "first, a";
SELECT key FROM ext_storage_list('acme.list', 7, category => 'first', key_prefix => 'a');
SELECT key FROM ext_storage_list('acme.list', 7, category => 'third', key_prefix => 'a', after_key => 'a');
SELECT key FROM ext_storage_list('acme.list', 7, category => 'first', page => 1, page_size => 2);
SELECT key FROM ext_storage_list('acme.list', 7, category => 'first', after_key => 'a\1', page => 1,
    page_size => 1);

-- Neither reads a value: damaged and unreadable ones do not matter, and no
-- key is needed.
INSERT INTO extension_storage (extension_id, key, value, is_encrypted) VALUES ('acme.list', 'damaged',
    '?', true);
SELECT key, is_encrypted FROM ext_storage_list('acme.list');
SELECT ext_storage_count('acme.list');

DELETE FROM extension_storage;
