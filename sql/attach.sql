-- Attached tables: what belonged to a deleted user or resource goes with it.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup

-- Superset's tables, in a schema and of an owner of their own.
CREATE ROLE regress_superset;
CREATE SCHEMA regress_app AUTHORIZATION regress_superset;
CREATE TABLE regress_app.ab_user (id integer PRIMARY KEY, username text);
CREATE TABLE regress_app.dashboards (id integer PRIMARY KEY, uuid uuid);
CREATE TABLE regress_app."Odd 'slices" (id integer PRIMARY KEY, "the ""uuid'" text);
ALTER TABLE regress_app.ab_user OWNER TO regress_superset;
ALTER TABLE regress_app.dashboards OWNER TO regress_superset;
ALTER TABLE regress_app."Odd 'slices" OWNER TO regress_superset;
CREATE VIEW pg_temp.attached AS
SELECT tgrelid::regclass AS relation, tgname, tgenabled FROM pg_trigger
WHERE tgname ~ '^extension_storage_(users|resources)_' ORDER BY 1, 2;
CREATE VIEW pg_temp.entries AS
SELECT key, user_fk, resource_type AS type, resource_uuid, created_by_fk AS created_by,
    changed_by_fk AS changed_by, version
FROM extension_storage ORDER BY key COLLATE "C";
CREATE FUNCTION pg_temp.fill_users() RETURNS bigint LANGUAGE sql AS $$
    SELECT count((ext_storage_set('acme.tasks', key, 'x', 'text/plain', user_fk, type,
        uuid, actor_fk => user_fk)).version)
    FROM (VALUES ('own1', 1, NULL, NULL), ('own2', 2, NULL, NULL), ('own3', 3, NULL, NULL),
        ('private1', 1, 'dashboard', 'd'), ('private2', 2, 'dashboard', 'd'),
        ('shared', NULL, 'dashboard', 'd'), ('global', NULL, NULL, NULL))
        v (key, user_fk, type, uuid);
    UPDATE extension_storage SET created_by_fk = 1, changed_by_fk = 2
    WHERE key = 'global';
    UPDATE extension_storage SET created_by_fk = 2, changed_by_fk = 1
    WHERE key = 'shared';
    SELECT count(*) FROM extension_storage
$$;

-- The users' table is found by search_path.
SELECT pg_temp.error_of('SELECT ext_storage_attach_users()');
SET search_path = regress_app, public;
SELECT ext_storage_attach_users();
-- Twice is once.
SELECT ext_storage_attach_users(users => 'ab_user');
RESET search_path;
SELECT * FROM pg_temp.attached;

-- The owner of ab_user has no rights on the entries, and needs none.
INSERT INTO regress_app.ab_user SELECT i, 'user' || i FROM generate_series(1, 9) i;
SELECT pg_temp.fill_users();
SET ROLE regress_superset;
SELECT pg_temp.error_of('SELECT * FROM extension_storage');
DELETE FROM regress_app.ab_user WHERE id = 1;
RESET ROLE;
-- Neither version nor changed_on says that somebody has set an entry.
SELECT * FROM pg_temp.entries;
SELECT count(*) FROM extension_storage WHERE changed_on <> created_on;
-- A delete that does not happen.
BEGIN;
DELETE FROM regress_app.ab_user WHERE id = 2;
SELECT string_agg(key, ' ') FROM pg_temp.entries;
ROLLBACK;
DELETE FROM regress_app.ab_user WHERE id > 100;
SELECT string_agg(key, ' ') FROM pg_temp.entries;
-- Many at once, in a cascade from another table, in MERGE and in a CTE.
TRUNCATE extension_storage;
SELECT pg_temp.fill_users();
DELETE FROM regress_app.ab_user WHERE id IN (2, 3);
SELECT * FROM pg_temp.entries;
INSERT INTO regress_app.ab_user VALUES (2, 'user2'), (3, 'user3');
CREATE TABLE regress_app.tenants (id integer PRIMARY KEY);
INSERT INTO regress_app.tenants VALUES (1), (2);
ALTER TABLE regress_app.ab_user ADD tenant integer
    REFERENCES regress_app.tenants ON DELETE CASCADE;
UPDATE regress_app.ab_user SET tenant = 1 WHERE id <= 2;
SELECT pg_temp.fill_users();
DELETE FROM regress_app.tenants WHERE id = 1;
SELECT string_agg(key, ' ') FROM pg_temp.entries;
MERGE INTO regress_app.ab_user u USING (VALUES (3)) v (id) ON u.id = v.id
WHEN MATCHED THEN DELETE;
SELECT string_agg(key, ' ') FROM pg_temp.entries;
INSERT INTO regress_app.ab_user VALUES (1, 'user1'), (2, 'user2');
SELECT pg_temp.fill_users();
WITH gone AS (DELETE FROM regress_app.ab_user WHERE id = 1 RETURNING id)
SELECT count(*) FROM gone;
SELECT string_agg(key, ' ') FROM pg_temp.entries;
-- TRUNCATE: there is no user left.
SET ROLE regress_superset;
TRUNCATE regress_app.ab_user;
RESET ROLE;
SELECT * FROM pg_temp.entries;

-- Under a quota, the bytes are given back, and the audit columns cost none.
TRUNCATE extension_storage;
INSERT INTO regress_app.ab_user VALUES (1, 'user1'), (2, 'user2');
SET extension_storage.quota_per_extension = 7;
SELECT pg_temp.fill_users();
DELETE FROM regress_app.ab_user WHERE id = 1;
SELECT * FROM extension_storage_usage;
SET ROLE regress_superset;
TRUNCATE regress_app.ab_user;
RESET ROLE;
SELECT * FROM extension_storage_usage;
RESET extension_storage.quota_per_extension;
TRUNCATE extension_storage;
ALTER TABLE extension_storage DISABLE TRIGGER extension_storage_count_rows,
    DISABLE TRIGGER extension_storage_count;

-- A primary key of another name; one that is renamed later must be attached
-- again, and until then no row goes and leaves entries behind.
CREATE TABLE regress_app.people (name text, "The id" integer PRIMARY KEY);
SELECT ext_storage_attach_users('regress_app.people');
INSERT INTO regress_app.people VALUES ('a', 1), ('b', 2), ('c', 3);
SELECT pg_temp.fill_users();
DELETE FROM regress_app.people WHERE name = 'a';
ALTER TABLE regress_app.people RENAME "The id" TO user_id;
SELECT pg_temp.error_of($$DELETE FROM regress_app.people WHERE name = 'b'$$);
SELECT string_agg(key, ' ') FROM pg_temp.entries;
SELECT ext_storage_attach_users('regress_app.people');
DELETE FROM regress_app.people WHERE name = 'b';
SELECT string_agg(key, ' ') FROM pg_temp.entries;

-- A table may be attached as both, and have a trigger of its own that reads
-- what was deleted: each sees all of it.
CREATE FUNCTION regress_app.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE WARNING '% deleted', (SELECT count(*) FROM old_rows);
    RETURN NULL;
END $$;
CREATE TRIGGER a_note AFTER DELETE ON regress_app.people REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION regress_app.note();
CREATE TRIGGER z_note AFTER DELETE ON regress_app.people REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION regress_app.note();
SELECT ext_storage_attach_resource('person', 'regress_app.people', 'name');
INSERT INTO regress_app.people VALUES ('d', 4), ('e', 5), ('f', 6);
SELECT count(ext_storage_set('acme.both', 'own', 'x', user_fk => user_id)),
    count(ext_storage_set('acme.both', 'of it', 'x', resource_type => 'person', resource_uuid => name))
FROM regress_app.people WHERE name >= 'd';
DELETE FROM regress_app.people WHERE name IN ('d', 'e');
SELECT user_fk, resource_uuid, key FROM extension_storage WHERE extension_id = 'acme.both'
ORDER BY user_fk;
DELETE FROM extension_storage WHERE extension_id = 'acme.both';
DROP FUNCTION regress_app.note() CASCADE;

-- A column whose text depends on settings cannot be compared.
CREATE DOMAIN regress_app.day AS date;
CREATE TYPE regress_app.pair AS (a date, b bytea);
CREATE TABLE regress_app.typed (day date, own regress_app.day, at timestamptz, span interval, bytes bytea, price money,
    x real, y float8, days date[], range daterange, pair regress_app.pair, class regclass, place point);
SELECT attname, pg_temp.error_of(format('SELECT ext_storage_attach_resource(''typed'', ''regress_app.typed'', %L)', attname))
FROM pg_attribute WHERE attrelid = 'regress_app.typed'::regclass AND attnum > 0 ORDER BY attnum;
DROP TABLE regress_app.typed;

-- Detaching: true where there was something.
SELECT ext_storage_detach('regress_app.people'), ext_storage_detach('regress_app.people'),
    ext_storage_detach(relation => 'regress_app.dashboards');
DELETE FROM regress_app.people;
SELECT string_agg(key, ' ') FROM pg_temp.entries;
SELECT * FROM pg_temp.attached;
TRUNCATE extension_storage;

-- Resources: a uuid column, and a text one with UUIDs as somebody typed them.
SELECT ext_storage_attach_resource('dashboard', 'regress_app.dashboards');
SELECT ext_storage_attach_resource('dashboard', 'regress_app.dashboards');
SELECT ext_storage_attach_resource(resource_type => 'it''s a chart',
    resources => 'regress_app."Odd ''slices"', uuid_column => 'the "uuid''');
SELECT * FROM pg_temp.attached;
CREATE FUNCTION pg_temp.fill_resources() RETURNS bigint LANGUAGE sql AS $$
    SELECT count((ext_storage_set('acme.tasks', key, 'x', 'text/plain', user_fk, type, uuid,
        actor_fk => 1)).version)
    FROM (VALUES
        ('d1', NULL, 'dashboard', 'AAAAAAAA-0000-4000-8000-000000000001'),
        ('d1own', 1, 'dashboard', 'aaaaaaaa-0000-4000-8000-000000000001'),
        ('d2', NULL, 'dashboard', 'aaaaaaaa-0000-4000-8000-000000000002'),
        ('c1', NULL, 'it''s a chart', 'aaaaaaaa-0000-4000-8000-000000000001'),
        ('c2', NULL, 'it''s a chart', 'aaaaaaaa-0000-4000-8000-000000000002'),
        ('cX', NULL, 'it''s a chart', 'Legacy-7'),
        ('cx', NULL, 'it''s a chart', 'legacy-7'),
        ('own', 1, NULL, NULL), ('global', NULL, NULL, NULL))
        v (key, user_fk, type, uuid)
$$;
INSERT INTO regress_app.dashboards
SELECT i, ('aaaaaaaa-0000-4000-8000-00000000000' || i)::uuid FROM generate_series(1, 3) i;
INSERT INTO regress_app.dashboards VALUES (8, NULL), (9, NULL);
INSERT INTO regress_app."Odd 'slices" VALUES
    (1, 'AAAAAAAA-0000-4000-8000-000000000001'), (2, '{aaaaaaaa000040008000000000000002}'),
    (3, 'Legacy-7'), (4, NULL), (5, '');
SELECT pg_temp.fill_resources();
SET ROLE regress_superset;
DELETE FROM regress_app.dashboards WHERE id IN (8, 9);
DELETE FROM regress_app."Odd 'slices" WHERE id IN (4, 5);
RESET ROLE;
SELECT string_agg(key, ' ') FROM pg_temp.entries;
-- Of this type, shared and private; no other type, whatever its UUID.
SET ROLE regress_superset;
DELETE FROM regress_app.dashboards WHERE id = 1;
RESET ROLE;
SELECT string_agg(key, ' ') FROM pg_temp.entries;
DELETE FROM regress_app."Odd 'slices" WHERE id = 1;
SELECT string_agg(key, ' ') FROM pg_temp.entries;
DELETE FROM regress_app."Odd 'slices" WHERE id IN (2, 3);
SELECT string_agg(key, ' ') FROM pg_temp.entries;
SELECT pg_temp.fill_resources();
SET ROLE regress_superset;
TRUNCATE regress_app."Odd 'slices";
RESET ROLE;
SELECT string_agg(key, ' ') FROM pg_temp.entries;
-- A resource takes nobody's name from the audit columns.
SELECT DISTINCT created_by, changed_by FROM pg_temp.entries;
-- A second type for a table is added to the first.
SELECT ext_storage_attach_resource('board', 'regress_app.dashboards', 'id');
SELECT count((ext_storage_set('acme.tasks', 'b2', 'x', resource_type => 'board',
    resource_uuid => '2')).version);
DELETE FROM regress_app.dashboards;
SELECT string_agg(key, ' ') FROM pg_temp.entries;
SELECT ext_storage_detach('regress_app.dashboards'),
    ext_storage_detach('regress_app."Odd ''slices"'), ext_storage_detach('regress_app.ab_user');
SELECT * FROM pg_temp.attached;

-- Arguments.
CREATE TABLE regress_app.keyless (id integer);
CREATE TABLE regress_app.wide (id bigint PRIMARY KEY);
CREATE TABLE regress_app.two (a integer, b integer, PRIMARY KEY (a, b));
CREATE VIEW regress_app.seen AS SELECT * FROM regress_app.dashboards;
ALTER TABLE regress_app.two ADD gone text;
ALTER TABLE regress_app.two DROP gone;
CREATE TEMPORARY TABLE passing (id integer PRIMARY KEY, name text);
SELECT e, pg_temp.error_of('SELECT ext_storage_' || e) FROM unnest(ARRAY[
    'attach_users(NULL)',
    'attach_users(''regress_app.nowhere'')',
    'attach_users(''regress_app.keyless'')',
    'attach_users(''regress_app.wide'')',
    'attach_users(''regress_app.two'')',
    'attach_users(''regress_app.seen'')',
    'attach_users(''passing'')',
    'attach_resource(''t'', ''passing'', ''name'')',
    'attach_users(''extension_storage'')',
    'attach_resource(''t'', ''extension_storage_usage'', ''extension_id'')',
    'attach_resource(NULL, ''regress_app.two'', ''a'')',
    'attach_resource(''chart'', NULL, ''a'')',
    'attach_resource(''chart'', ''regress_app.two'', NULL)',
    'attach_resource('''', ''regress_app.two'', ''a'')',
    'attach_resource(repeat(''x'', 65), ''regress_app.two'', ''a'')',
    'attach_resource(''chart'', ''regress_app.two'')',
    'attach_resource(''chart'', ''regress_app.two'', ''ctid'')',
    'attach_resource(''chart'', ''regress_app.two'', ''gone'')',
    'attach_resource(''chart'', ''regress_app.two'', ''........pg.dropped.3........'')',
    'attach_resource(''chart'', ''regress_app.seen'')',
    'detach(NULL)', 'detach(''regress_app.nowhere'')',
    'users_deleted()']) e;
-- Triggers that these functions did not make.
CREATE TRIGGER by_hand AFTER DELETE ON regress_app.wide
    FOR EACH ROW EXECUTE FUNCTION ext_storage_users_deleted('id');
INSERT INTO regress_app.wide VALUES (1);
SELECT pg_temp.error_of('DELETE FROM regress_app.wide');
DROP TRIGGER by_hand ON regress_app.wide;
CREATE TRIGGER by_hand AFTER UPDATE ON regress_app.wide REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION ext_storage_users_deleted('id');
SELECT pg_temp.error_of('UPDATE regress_app.wide SET id = 2');
CREATE OR REPLACE TRIGGER by_hand AFTER INSERT ON regress_app.wide
    FOR EACH STATEMENT EXECUTE FUNCTION ext_storage_resources_deleted('chart', 'id');
SELECT pg_temp.error_of('INSERT INTO regress_app.wide VALUES (2)');
CREATE OR REPLACE TRIGGER by_hand AFTER UPDATE ON regress_app.wide REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION ext_storage_resources_deleted('chart', 'id');
SELECT pg_temp.error_of('UPDATE regress_app.wide SET id = 2');
-- Nor are the extension's own tables attached: the deletion of an entry would delete those of its user.
CREATE TRIGGER by_hand AFTER DELETE ON extension_storage REFERENCING OLD TABLE AS deleted_rows
    FOR EACH STATEMENT EXECUTE FUNCTION ext_storage_users_deleted('user_fk');
SELECT pg_temp.error_of('DELETE FROM extension_storage');
DROP TRIGGER by_hand ON extension_storage;
CREATE TRIGGER by_hand AFTER TRUNCATE ON extension_storage_usage
    FOR EACH STATEMENT EXECUTE FUNCTION ext_storage_resources_deleted('chart', 'extension_id');
SELECT pg_temp.error_of('TRUNCATE extension_storage_usage');
DROP TRIGGER by_hand ON extension_storage_usage;
-- A trigger function that was taken out of the extension goes on.
BEGIN;
ALTER EXTENSION extension_storage DROP FUNCTION ext_storage_users_deleted();
SELECT ext_storage_attach_users('regress_app.wide');
DELETE FROM regress_app.wide;
ROLLBACK;

-- Who may attach: needs the right to make triggers there, and ours.
CREATE ROLE regress_plain;
GRANT USAGE ON SCHEMA regress_app TO regress_plain;
GRANT EXECUTE ON FUNCTION ext_storage_attach_users, ext_storage_attach_resource,
    ext_storage_detach TO regress_plain, regress_superset;
SET ROLE regress_superset;
SELECT pg_temp.error_of($$SELECT ext_storage_attach_users('regress_app.ab_user')$$);
RESET ROLE;
GRANT EXECUTE ON FUNCTION ext_storage_users_deleted TO regress_superset, regress_plain;
SET ROLE regress_superset;
SELECT ext_storage_attach_users('regress_app.ab_user');
SET ROLE regress_plain;
SELECT pg_temp.error_of($$SELECT ext_storage_attach_users('regress_app.ab_user')$$),
    pg_temp.error_of($$SELECT ext_storage_detach('regress_app.ab_user')$$);
RESET ROLE;
SELECT * FROM pg_temp.attached;

-- One table of resources of two types, as Superset's are not: each type has
-- triggers of its own, and attached again with another column it has only that.
CREATE TABLE regress_app.things (id bigint PRIMARY KEY, uuid uuid, slug text);
SELECT ext_storage_attach_resource('dashboard', 'regress_app.things'),
    ext_storage_attach_resource('chart', 'regress_app.things', 'id'),
    ext_storage_attach_resource('chart', 'regress_app.things', 'slug');
SELECT tgname, substring(encode(tgargs, 'escape') FROM '.*[^0\\]') AS args FROM pg_trigger
WHERE tgrelid = 'regress_app.things'::regclass ORDER BY 1;
INSERT INTO regress_app.things VALUES (1, 'aaaaaaaa-0000-4000-8000-000000000001', 'one');
SELECT count(*) FROM (VALUES ('dashboard', 'aaaaaaaa-0000-4000-8000-000000000001'), ('dashboard', 'one'),
    ('chart', 'aaaaaaaa-0000-4000-8000-000000000001'), ('chart', 'one'), ('chart', '1')) v (type, uuid),
    ext_storage_set('acme.things', 'k', 'x', resource_type => type, resource_uuid => uuid);
DELETE FROM regress_app.things;
SELECT resource_type, resource_uuid FROM extension_storage WHERE extension_id = 'acme.things'
ORDER BY 1, 2;
-- What 1.1 made for a type gives way to what 1.2 makes.
CREATE TRIGGER extension_storage_resources_deleted AFTER DELETE ON regress_app.things
    REFERENCING OLD TABLE AS deleted_rows FOR EACH STATEMENT
    EXECUTE FUNCTION ext_storage_resources_deleted('dashboard', 'uuid');
SELECT ext_storage_attach_resource('dashboard', 'regress_app.things', 'id');
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'regress_app.things'::regclass;
SELECT ext_storage_detach('regress_app.things');
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'regress_app.things'::regclass;
TRUNCATE extension_storage;

-- Users with ids that no entry can have, by a wider column or by another one,
-- can be deleted all the same.
SELECT ext_storage_attach_users('regress_app.things');
INSERT INTO regress_app.things (id) VALUES (1), (2), (2147483648), (9223372036854775807);
SELECT count(*) FROM generate_series(1, 2) i, ext_storage_set('acme.things', 'k', 'x', user_fk => i);
DELETE FROM regress_app.things WHERE id <> 2;
SELECT user_fk FROM extension_storage;
ALTER TABLE regress_app.things ALTER id TYPE text;
INSERT INTO regress_app.things (id) VALUES ('someone'), (''), ('92233720368547758080');
DELETE FROM regress_app.things;
SELECT user_fk FROM extension_storage;
SELECT ext_storage_detach('regress_app.things');

-- Orphans: rows that went where no trigger fires.  By partition, by a change of
-- the id, with triggers disabled.
CREATE TABLE regress_app.members (id integer PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE regress_app.members_1 PARTITION OF regress_app.members FOR VALUES FROM (1) TO (10);
CREATE TABLE regress_app.members_2 PARTITION OF regress_app.members FOR VALUES FROM (10) TO (20);
CREATE TABLE regress_app.members_3 PARTITION OF regress_app.members FOR VALUES FROM (20) TO (30);
CREATE TABLE regress_app.guests (id integer PRIMARY KEY);
INSERT INTO regress_app.members SELECT generate_series(1, 29);
INSERT INTO regress_app.guests VALUES (100), (101);
-- Nothing that another role has put on an attached table is run.
SELECT pg_temp.error_of('SELECT ext_storage_purge_orphans()');
REASSIGN OWNED BY regress_superset TO CURRENT_USER;
SELECT ext_storage_purge_orphans();
SELECT ext_storage_attach_users('regress_app.members'), ext_storage_attach_users('regress_app.guests'),
    ext_storage_attach_resource('board', 'regress_app.things', 'slug'),
    ext_storage_attach_resource('dashboard', 'regress_app.things');
INSERT INTO regress_app.things VALUES
    ('1', 'aaaaaaaa-0000-4000-8000-000000000001', 'AAAAAAAA-0000-4000-8000-000000000001'),
    ('2', 'aaaaaaaa-0000-4000-8000-000000000002', '{aaaaaaaa000040008000000000000002}'),
    ('3', NULL, 'urn:uuid:aaaaaaaa-0000-4000-8000-000000000003'), ('4', NULL, 'Legacy-7');
TRUNCATE extension_storage;
SELECT count(*) FROM generate_series(1, 29) i, ext_storage_set('acme.own', 'k', 'x', user_fk => i, actor_fk => i);
SELECT count(*) FROM (VALUES (100), (101)) v (i), ext_storage_set('acme.own', 'k', 'x', user_fk => i);
SELECT count(*) FROM unnest(ARRAY['board', 'dashboard', 'unattached']) type,
    unnest(ARRAY['aaaaaaaa-0000-4000-8000-000000000001', 'aaaaaaaa-0000-4000-8000-000000000002',
        'aaaaaaaa-0000-4000-8000-000000000003', 'Legacy-7', 'legacy-7']) uuid,
    ext_storage_set('acme.own', 'k', 'x', resource_type => type, resource_uuid => uuid, actor_fk => 5);
SELECT count(*) FROM ext_storage_set('acme.own', 'k', 'x', actor_fk => 15);
DELETE FROM regress_app.members WHERE id = 1;
SELECT count(*) FROM extension_storage WHERE user_fk IS NOT NULL;
DELETE FROM regress_app.members_1 WHERE id = 2;
UPDATE regress_app.guests SET id = 102 WHERE id = 101;
DROP TABLE regress_app.members_2;
ALTER TABLE regress_app.members DETACH PARTITION regress_app.members_3;
SELECT count(*) FROM extension_storage WHERE user_fk IS NOT NULL;
-- 1 of members_1, 10 of members_2, 10 of members_3, 1 of guests; and of
-- resources 1 of board, 3 of dashboard.
SELECT ext_storage_purge_orphans();
SELECT ext_storage_purge_orphans();
SELECT array_agg(user_fk ORDER BY user_fk) FROM extension_storage WHERE user_fk IS NOT NULL;
SELECT resource_type, array_agg(resource_uuid ORDER BY resource_uuid COLLATE "C")
FROM extension_storage WHERE resource_type IS NOT NULL GROUP BY 1 ORDER BY 1;
SELECT key, created_by_fk, changed_by_fk FROM extension_storage WHERE user_fk IS NULL AND resource_type IS NULL;
-- Nor does it matter which collation their column has.
BEGIN;
CREATE COLLATION regress_app.other FROM "C";
CREATE TABLE regress_app.collated (slug text COLLATE regress_app.other);
SELECT ext_storage_attach_resource('collated', 'regress_app.collated', 'slug');
INSERT INTO regress_app.collated VALUES ('there');
SELECT count(*) FROM unnest(ARRAY['there', 'gone']) slug,
    ext_storage_set('acme.own', 'k', 'x', resource_type => 'collated', resource_uuid => slug);
SELECT ext_storage_purge_orphans();
SELECT resource_uuid FROM extension_storage WHERE resource_type = 'collated';
ROLLBACK;
-- For an older snapshot a table that is written anew meanwhile would be empty.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT pg_temp.error_of('SELECT ext_storage_purge_orphans()');
ROLLBACK;
-- What only looks like a UUID is an identifier as it stands.
INSERT INTO regress_app.things VALUES ('5', NULL, 'aaaaaaaa000040008000000000000005-'),
    ('6', NULL, '{aaaaaaaa000040008000000000000006-}');
SELECT count(*) FROM (VALUES ('aaaaaaaa000040008000000000000005-'), ('{aaaaaaaa000040008000000000000006-}')) v (uuid),
    ext_storage_set('acme.own', 'odd', 'x', resource_type => 'board', resource_uuid => uuid);
SELECT ext_storage_purge_orphans();
SELECT resource_uuid FROM extension_storage WHERE key = 'odd' ORDER BY 1;
DELETE FROM extension_storage WHERE key = 'odd';
-- Blanks that char(n) adds are no part of an identifier, nor decimals of a user's.
BEGIN;
CREATE TABLE regress_app.padded (uuid char(36));
INSERT INTO regress_app.padded VALUES ('short'), ('AAAAAAAA000040008000000000000007');
CREATE TABLE regress_app.decimals (id integer PRIMARY KEY);
INSERT INTO regress_app.decimals VALUES (71), (72);
SELECT ext_storage_attach_resource('padded', 'regress_app.padded'), ext_storage_attach_users('regress_app.decimals');
ALTER TABLE regress_app.decimals ALTER id TYPE numeric(10, 2);
SELECT count(ext_storage_set('acme.own', 'odd', 'x', resource_type => 'padded', resource_uuid => id))
FROM unnest(ARRAY['short', rpad('short', 36), 'other', 'aaaaaaaa000040008000000000000007']) id;
SELECT count(ext_storage_set('acme.own', 'odd', 'x', user_fk => id)) FROM generate_series(71, 72) id;
DELETE FROM regress_app.decimals WHERE id = 71;
SELECT user_fk FROM extension_storage WHERE key = 'odd' AND user_fk IS NOT NULL;
SAVEPOINT s;
SELECT ext_storage_purge_orphans();
SELECT user_fk, resource_uuid FROM extension_storage WHERE key = 'odd' ORDER BY 1, 2;
ROLLBACK TO s;
DELETE FROM regress_app.padded;
SELECT resource_uuid FROM extension_storage WHERE key = 'odd' AND resource_uuid IS NOT NULL;
ROLLBACK;
-- Of two tables that are attached for the same, one is truncated: nothing goes
-- that may belong to the other.
CREATE TABLE regress_app.more_things (slug text);
SELECT ext_storage_attach_resource('board', 'regress_app.more_things', 'slug');
-- Each of the two counts alone when rows are deleted.
BEGIN;
INSERT INTO regress_app.things VALUES (9, NULL, 'in both');
INSERT INTO regress_app.more_things VALUES ('in both');
SELECT count(*) FROM ext_storage_set('acme.own', 'both', 'x', resource_type => 'board', resource_uuid => 'in both');
DELETE FROM regress_app.more_things;
SELECT count(*) FROM extension_storage WHERE key = 'both';
ROLLBACK;
BEGIN;
TRUNCATE regress_app.more_things;
TRUNCATE regress_app.members;
SELECT user_fk IS NULL AS resource, count(*) FROM extension_storage
WHERE user_fk IS NOT NULL OR resource_type = 'board' GROUP BY 1 ORDER BY 1;
SELECT ext_storage_purge_orphans();
SELECT ext_storage_detach('regress_app.guests'), ext_storage_detach('regress_app.ab_user'),
    ext_storage_detach('regress_app.more_things'), ext_storage_detach('regress_app.wide');
TRUNCATE regress_app.members;
TRUNCATE regress_app.things;
SELECT user_fk IS NULL AS resource, count(*) FROM extension_storage
WHERE user_fk IS NOT NULL OR resource_type = 'board' GROUP BY 1 ORDER BY 1;
ROLLBACK;
SELECT ext_storage_detach('regress_app.more_things');
-- So it is if other tables inherit from the one that is truncated.
BEGIN;
CREATE TABLE regress_app.parents (slug text);
CREATE TABLE regress_app.children () INHERITS (regress_app.parents);
INSERT INTO regress_app.children VALUES ('of a child');
SELECT ext_storage_attach_resource('parent', 'regress_app.parents', 'slug');
SELECT count(*) FROM unnest(ARRAY['of a child', 'of none']) slug,
    ext_storage_set('acme.own', 'k', 'x', resource_type => 'parent', resource_uuid => slug);
TRUNCATE ONLY regress_app.parents;
SELECT count(*) FROM extension_storage WHERE resource_type = 'parent';
SELECT ext_storage_purge_orphans();
SELECT resource_uuid FROM extension_storage WHERE resource_type = 'parent';
DROP TABLE regress_app.children;
TRUNCATE regress_app.parents;
SELECT count(*) FROM extension_storage WHERE resource_type = 'parent';
ROLLBACK;
-- An old row that a later constraint refuses keeps no user from being deleted,
-- and is not shown.
SELECT count(*) FROM ext_storage_set('acme.own', 'long', 'a value', actor_fk => 100);
BEGIN;
ALTER TABLE extension_storage ADD CONSTRAINT regress_short CHECK (key <> 'long') NOT VALID;
DELETE FROM regress_app.guests WHERE id = 100;
SELECT key, user_fk, created_by_fk FROM extension_storage WHERE user_fk = 100 OR created_by_fk = 100;
SELECT ext_storage_purge_orphans();
ALTER TABLE extension_storage DROP CONSTRAINT regress_short;
SELECT ext_storage_purge_orphans();
SELECT key, user_fk, created_by_fk FROM extension_storage WHERE user_fk = 100 OR created_by_fk = 100;
ROLLBACK;
DELETE FROM extension_storage WHERE key = 'long';
-- A cast that the owner of an attached table has made of its column is not used.
BEGIN;
CREATE TYPE regress_app.own AS ENUM ('one', '(one)');
CREATE FUNCTION regress_app.own_cast(regress_app.own) RETURNS bigint LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE FUNCTION regress_app.own_text(regress_app.own) RETURNS text LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE CAST (regress_app.own AS bigint) WITH FUNCTION regress_app.own_cast(regress_app.own);
CREATE CAST (regress_app.own AS text) WITH FUNCTION regress_app.own_text(regress_app.own);
CREATE TABLE regress_app.owned (id integer PRIMARY KEY, "sl\üg" text, padded char(9));
SELECT ext_storage_attach_users('regress_app.owned'),
    ext_storage_attach_resource('owned', 'regress_app.owned', 'sl\üg'),
    ext_storage_attach_resource('padded', 'regress_app.owned', 'padded');
ALTER TABLE regress_app.owned ALTER "sl\üg" TYPE regress_app.own USING 'one';
INSERT INTO regress_app.owned VALUES (1, '(one)', 'one');
SELECT count(*) FROM (VALUES ('owned', '(one)'), ('owned', 'one'), ('padded', 'one'), ('padded', 'two')) v (type, uuid),
    ext_storage_set('acme.owned', 'k', 'x', resource_type => type, resource_uuid => uuid);
SELECT ext_storage_purge_orphans();
SELECT resource_type, resource_uuid FROM extension_storage WHERE extension_id = 'acme.owned' ORDER BY 1;
ALTER TABLE regress_app.owned ALTER id TYPE regress_app.own USING 'one';
SELECT pg_temp.error_of('SELECT ext_storage_purge_orphans()');
ROLLBACK;
-- Nor is a user's id whose text depends on a setting.
BEGIN;
CREATE TABLE regress_app.rounded (id integer PRIMARY KEY);
SELECT ext_storage_attach_users('regress_app.rounded');
INSERT INTO regress_app.rounded VALUES (123456789);
ALTER TABLE regress_app.rounded ALTER id TYPE numeric;
SELECT count(ext_storage_set('acme.owned', 'k', 'x', user_fk => id)) FROM unnest(ARRAY[123456789, 1234]) id;
SELECT ext_storage_purge_orphans();
ALTER TABLE regress_app.rounded ALTER id TYPE float8;
SELECT pg_temp.error_of('SELECT ext_storage_purge_orphans()');
ROLLBACK;
-- Nor is a part of such a table that another role owns read by anybody else.
CREATE SCHEMA regress_parts AUTHORIZATION regress_superset;
CREATE TABLE regress_parts.part PARTITION OF regress_app.members FOR VALUES FROM (40) TO (50);
CREATE FUNCTION regress_parts.trap(integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1; END';
CREATE INDEX trap ON regress_parts.part (id) WHERE regress_parts.trap(1) = 1;
CREATE OR REPLACE FUNCTION regress_parts.trap(integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
ALTER TABLE regress_parts.part OWNER TO regress_superset;
SELECT pg_temp.error_of('SELECT ext_storage_purge_orphans()');
DROP INDEX regress_parts.trap;
GRANT USAGE ON SCHEMA regress_app TO regress_superset;
GRANT SELECT ON ALL TABLES IN SCHEMA regress_app TO regress_superset;
SELECT ext_storage_grant('regress_superset', 'write');
SET ROLE regress_superset;
SELECT ext_storage_purge_orphans();
RESET ROLE;
SELECT ext_storage_revoke('regress_superset');
DROP TABLE regress_parts.part;
DROP FUNCTION regress_parts.trap;
DROP SCHEMA regress_parts;
-- Rows that its caller may not see are no reason to purge: an error.
CREATE ROLE regress_sweeper;
SELECT ext_storage_grant('regress_sweeper', 'write');
GRANT USAGE ON SCHEMA regress_app TO regress_sweeper;
GRANT SELECT ON ALL TABLES IN SCHEMA regress_app TO regress_sweeper;
SET ROLE regress_sweeper;
SELECT ext_storage_purge_orphans();
RESET ROLE;
ALTER TABLE regress_app.guests ENABLE ROW LEVEL SECURITY;
SET ROLE regress_sweeper;
SELECT pg_temp.error_of('SELECT ext_storage_purge_orphans()');
RESET ROLE;
SELECT count(*) FROM extension_storage WHERE user_fk = 100;
SELECT ext_storage_detach('regress_app.members'), ext_storage_detach('regress_app.guests'),
    ext_storage_detach('regress_app.things');
SET client_min_messages = warning;
DROP OWNED BY regress_sweeper;
DROP ROLE regress_sweeper;
RESET client_min_messages;
TRUNCATE extension_storage;

-- The schema is renamed, and a stranger makes one of the old name with what
-- could be taken for the extension's own.
CREATE ROLE regress_stranger;
CREATE DATABASE regression_renamed TEMPLATE template0;
\c regression_renamed
SET client_min_messages = warning;
CREATE SCHEMA es;
CREATE EXTENSION extension_storage SCHEMA es CASCADE;
CREATE TABLE public.ab_user (id integer PRIMARY KEY);
CREATE TABLE public.slices (uuid uuid);
INSERT INTO public.ab_user VALUES (1), (2), (3);
SELECT es.ext_storage_attach_users('public.ab_user');
ALTER SCHEMA es RENAME TO "es 2";
CREATE SCHEMA es AUTHORIZATION regress_stranger;
SET ROLE regress_stranger;
CREATE FUNCTION es.ext_storage_users_deleted() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE FUNCTION es.ext_storage_resources_deleted() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE FUNCTION es.ext_storage_functions(OUT function regprocedure, OUT level text) RETURNS SETOF record
LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE TABLE es.extension_storage (user_fk integer, resource_type text, resource_uuid text);
CREATE TYPE es.ext_storage_entry AS (x integer);
RESET ROLE;
SET search_path = "es 2", public;
SELECT count(*) FROM generate_series(1, 3) i, ext_storage_set('acme.app', 'k', 'x', user_fk => i);
DELETE FROM ab_user WHERE id = 1;
SELECT ext_storage_attach_users('public.ab_user'), ext_storage_attach_resource('chart', 'public.slices');
DELETE FROM ab_user WHERE id = 2;
DELETE FROM slices;
SELECT user_fk FROM extension_storage;
SELECT DISTINCT tgfoid::regprocedure FROM pg_trigger WHERE tgrelid IN ('ab_user'::regclass, 'slices'::regclass)
ORDER BY 1;
SELECT ext_storage_grant('regress_stranger', 'read'), ext_storage_take_over();
SELECT has_table_privilege('regress_stranger', '"es 2".extension_storage', 'SELECT') AS table_,
    has_function_privilege('regress_stranger', '"es 2".ext_storage_usage()', 'EXECUTE') AS function;
ALTER TABLE ab_user DISABLE TRIGGER ALL;
DELETE FROM ab_user;
SELECT ext_storage_purge_orphans();
SELECT ext_storage_detach('public.ab_user'), ext_storage_detach('public.slices');
SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'extension_storage%' AND tgrelid = 'ab_user'::regclass;
SET extension_storage.quota_per_extension = 10;
SELECT ext_storage_set('acme.app', 'k', '01234567890');
\c contrib_regression
\i :setup
SET client_min_messages = warning;
DROP DATABASE regression_renamed;
DROP ROLE regress_stranger;
RESET client_min_messages;

-- The library's file is gone: deletes fail until the table's owner disables the
-- triggers, but not those of foreign keys; what is left over then goes when it is
-- back.
INSERT INTO regress_app.ab_user VALUES (70, 'user70'), (71, 'user71');
SELECT count(*) FROM generate_series(70, 71) i, ext_storage_set('acme.gone', 'k', 'x', user_fk => i);
BEGIN;
UPDATE pg_proc SET probin = 'no_such_library' WHERE proname = 'ext_storage_users_deleted';
SELECT pg_temp.error_of('DELETE FROM regress_app.ab_user WHERE id = 70');
CREATE TABLE regress_app.favorites (user_id integer REFERENCES regress_app.ab_user ON DELETE CASCADE);
INSERT INTO regress_app.favorites VALUES (70), (71);
CREATE ROLE regress_dba;
ALTER TABLE regress_app.ab_user OWNER TO regress_dba;
GRANT USAGE ON SCHEMA regress_app TO regress_dba;
SET ROLE regress_dba;
SELECT left(pg_temp.error_of('ALTER TABLE regress_app.ab_user DISABLE TRIGGER ALL'), 5);
ALTER TABLE regress_app.ab_user DISABLE TRIGGER USER;
DELETE FROM regress_app.ab_user WHERE id = 70;
RESET ROLE;
SELECT * FROM regress_app.favorites;
UPDATE pg_proc SET probin = '$libdir/extension_storage' WHERE proname = 'ext_storage_users_deleted';
SET ROLE regress_dba;
ALTER TABLE regress_app.ab_user ENABLE TRIGGER USER;
RESET ROLE;
ALTER TABLE regress_app.ab_user OWNER TO CURRENT_USER;
SELECT ext_storage_detach('regress_app.wide');
SELECT ext_storage_purge_orphans();
SELECT user_fk FROM extension_storage;
-- A column that was renamed since, or has another type, is an error: no other
-- one of that name is taken for it.
CREATE TABLE regress_app.renamed (uuid text, day text);
INSERT INTO regress_app.renamed VALUES ('a', '1.1.2026');
SELECT ext_storage_attach_resource('renamed', 'regress_app.renamed'),
    ext_storage_attach_resource('day', 'regress_app.renamed', 'day');
SELECT count(ext_storage_set('acme.gone', t, 'x', resource_type => t, resource_uuid => u))
FROM (VALUES ('renamed', 'a'), ('day', '1.1.2026')) r (t, u);
ALTER TABLE regress_app.renamed RENAME uuid TO called;
SELECT pg_temp.error_of('SELECT ext_storage_purge_orphans()');
SELECT pg_temp.error_of('DELETE FROM regress_app.renamed');
ALTER TABLE regress_app.renamed RENAME called TO uuid;
ALTER TABLE regress_app.renamed DROP uuid;
SELECT pg_temp.error_of('SELECT ext_storage_purge_orphans()');
ALTER TABLE regress_app.renamed ADD uuid text DEFAULT 'a', ALTER day TYPE date USING '2026-01-01';
SELECT pg_temp.error_of('SELECT ext_storage_purge_orphans()');
ALTER TABLE regress_app.renamed ALTER day TYPE text USING '1.1.2026';
ALTER TABLE regress_app.ab_user RENAME id TO user_id;
SELECT pg_temp.error_of('SELECT ext_storage_purge_orphans()');
ALTER TABLE regress_app.ab_user RENAME user_id TO id;
SELECT ext_storage_purge_orphans();
SELECT key FROM extension_storage WHERE extension_id = 'acme.gone' ORDER BY key;
-- The right to read the attached columns is enough.
CREATE ROLE regress_columns;
SELECT ext_storage_grant('regress_columns', 'write');
GRANT USAGE ON SCHEMA regress_app TO regress_columns;
DO $$
DECLARE
    attached record;
BEGIN
    FOR attached IN
        SELECT t.tgrelid::regclass AS id, string_agg(DISTINCT quote_ident(a.attname), ', ') AS columns
        FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
        JOIN pg_attribute a ON a.attrelid = t.tgrelid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE p.proname IN ('ext_storage_users_deleted', 'ext_storage_resources_deleted')
        GROUP BY t.tgrelid
    LOOP
        EXECUTE format('GRANT SELECT (%s) ON %s TO regress_columns', attached.columns, attached.id);
    END LOOP;
END $$;
SELECT count(ext_storage_set('acme.gone', 'gone', 'x', resource_type => 'renamed', resource_uuid => 'gone'));
SET ROLE regress_columns;
SELECT ext_storage_purge_orphans();
RESET ROLE;
ROLLBACK;
DELETE FROM extension_storage WHERE extension_id = 'acme.gone';
DELETE FROM regress_app.ab_user WHERE id IN (70, 71);

-- What the owner of the entries puts off to the end of the transaction of who
-- deletes a user would run with the rights of that role: an error.
BEGIN;
CREATE ROLE regress_holder;
GRANT USAGE ON SCHEMA public TO regress_holder;
ALTER TABLE extension_storage OWNER TO regress_holder;
CREATE FUNCTION pg_temp.hostile() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN RAISE WARNING ''runs as %'', current_user; RETURN NULL; END';
CREATE CONSTRAINT TRIGGER hostile AFTER DELETE ON extension_storage DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION pg_temp.hostile();
GRANT USAGE ON SCHEMA regress_app TO regress_superset;
GRANT ALL ON regress_app.ab_user TO regress_superset;
INSERT INTO regress_app.ab_user VALUES (72, 'user72');
INSERT INTO extension_storage (extension_id, key, value, user_fk) VALUES ('acme.own', 'k', 'x', 72);
SAVEPOINT before;
SET ROLE regress_superset;
DELETE FROM regress_app.ab_user WHERE id = 72;
ROLLBACK TO before;
-- what is not put off runs as the owner
SET CONSTRAINTS ALL IMMEDIATE;
SET ROLE regress_superset;
DELETE FROM regress_app.ab_user WHERE id = 72;
ROLLBACK;

-- What a user plants on its search_path is not used.
CREATE SCHEMA regress_trap;
CREATE FUNCTION regress_trap.trap(integer, integer) RETURNS boolean LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE OPERATOR regress_trap.= (FUNCTION = regress_trap.trap, LEFTARG = integer,
    RIGHTARG = integer);
CREATE FUNCTION regress_trap.unnest(anyarray) RETURNS SETOF integer LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE TEMP TABLE extension_storage (user_fk integer);
INSERT INTO regress_app.ab_user VALUES (1, 'user1');
TRUNCATE public.extension_storage;
SELECT count((ext_storage_set('acme.tasks', 'own', 'x', user_fk => 1)).version);
SET search_path = regress_trap, pg_catalog, public;
DELETE FROM regress_app.ab_user;
SELECT ext_storage_purge_user(1);
RESET search_path;
SELECT count(*) FROM public.extension_storage;
DROP TABLE pg_temp.extension_storage;

SET client_min_messages = warning;
DROP SCHEMA regress_app, regress_trap CASCADE;
REVOKE EXECUTE ON FUNCTION ext_storage_attach_users, ext_storage_attach_resource,
    ext_storage_detach, ext_storage_users_deleted FROM regress_superset, regress_plain;
DROP ROLE regress_superset, regress_plain;
TRUNCATE extension_storage;
