-- The caller's rights count, and nothing that a user can create is used in
-- place of PostgreSQL's own.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup
SET extension_storage.encryption_keys = 'old-secret';
SELECT count(*) FROM ext_storage_set('acme.s', 'k', '{}'),
    ext_storage_set('acme.s', 's', '{}', is_encrypted => true) s;
SET extension_storage.encryption_keys = 'new-secret,old-secret';
CREATE TEMP TABLE call (n serial, statement text);
INSERT INTO call (statement) VALUES
    ($$SELECT ext_storage_get('acme.s', 'k')$$),
    ($$SELECT ext_storage_get_json('acme.s', 'k')$$),
    ($$SELECT ext_storage_get_entry('acme.s', 'k')$$),
    ($$SELECT ext_storage_list('acme.s')$$),
    ($$SELECT ext_storage_count('acme.s')$$),
    ($$SELECT ext_storage_key_status()$$),
    ($$SELECT ext_storage_verify()$$),
    ($$SELECT ext_storage_set('acme.s', 'k', '[]')$$),
    ($$SELECT ext_storage_set('acme.s', 'k', '[]', if_version => 9)$$),
    ($$SELECT ext_storage_set_json('acme.s', 'new', '[]')$$),
    ($$SELECT ext_storage_delete('acme.s', 'k')$$),
    ($$CALL ext_storage_rotate_keys()$$),
    ($$SELECT ext_storage_usage()$$),
    ($$SELECT ext_storage_purge_extension('acme.s')$$),
    ($$SELECT ext_storage_purge_user(7)$$),
    ($$SELECT ext_storage_purge_resource('chart', '42')$$),
    ($$SELECT ext_storage_attach_users('pg_class')$$),
    ($$SELECT ext_storage_attach_resource('chart', 'pg_class', 'relname')$$),
    ($$SELECT ext_storage_detach('pg_class')$$),
    ($$SELECT ext_storage_grant('regress_caller', 'read')$$),
    ($$SELECT fernet_decrypt(fernet_encrypt('x', fernet_derive_key('x')), fernet_derive_key('x'))$$),
    ($$SELECT fernet_generate_key()$$),
    ($$SELECT fernet_timestamp('')$$);
CREATE ROLE regress_caller;
GRANT SELECT ON call TO regress_caller;

-- Without rights, no function at all.
SET client_min_messages = warning;
SET ROLE regress_caller;
SELECT statement, pg_temp.error_of(statement) FROM call ORDER BY n;
RESET ROLE;
-- EXECUTE alone: functions do not lend their owner's rights on the table.
DO $$
DECLARE
    member regprocedure;
BEGIN
    FOR member IN SELECT oid FROM pg_proc
    WHERE pronamespace = 'public'::regnamespace AND proname ~ '^(ext_storage|fernet)_' LOOP
        EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO regress_caller', member);
    END LOOP;
END $$;
SET ROLE regress_caller;
SELECT statement, pg_temp.error_of(statement) FROM call ORDER BY n;
RESET ROLE;
-- SELECT as well: reading works, writing does not.
GRANT SELECT ON extension_storage TO regress_caller;
SET ROLE regress_caller;
SELECT statement, pg_temp.error_of(statement) FROM call ORDER BY n;
RESET ROLE;
-- To set takes INSERT and UPDATE, to delete DELETE.
GRANT INSERT ON extension_storage TO regress_caller;
SET ROLE regress_caller;
SELECT pg_temp.error_of($$SELECT ext_storage_set('acme.s', 'new', '[]')$$);
RESET ROLE;
GRANT UPDATE ON extension_storage TO regress_caller;
SET ROLE regress_caller;
SELECT statement, pg_temp.error_of(statement) FROM call WHERE statement ~ 'set|delete|purge|CALL' ORDER BY n;
RESET ROLE;
SELECT key, version FROM ext_storage_list('acme.s');
RESET client_min_messages;
DELETE FROM extension_storage;
DROP OWNED BY regress_caller;
DROP ROLE regress_caller;

-- A plain user plants, in a database's public schema, operators, functions,
-- aggregates, casts, types and relations, before the extension is installed
-- there by a superuser whose search_path has PostgreSQL's own objects last.
CREATE ROLE regress_mallory;
CREATE DATABASE regression_hostile TEMPLATE template0;
\c regression_hostile
GRANT CREATE ON SCHEMA public TO regress_mallory;
SET SESSION AUTHORIZATION regress_mallory;
DO $$
DECLARE
    sort text;
    operator text;
    pair text[];
BEGIN
    FOREACH sort IN ARRAY ARRAY['boolean', 'bigint', 'text', 'timestamptz', 'uuid', 'regclass', 'name'] LOOP
        EXECUTE pg_catalog.format('CREATE FUNCTION public.hostile_%s() RETURNS %1$s LANGUAGE plpgsql AS '
            '$f$BEGIN RAISE EXCEPTION ''something hostile was used''; END$f$', sort);
    END LOOP;
    FOR pair IN SELECT ARRAY[l, r]
    FROM unnest(ARRAY['text', 'varchar', 'name', 'integer', 'bigint', 'boolean', 'bytea', 'uuid', 'oid',
        'regrole', 'regclass', 'timestamp', '"char"', 'text[]', 'integer[]', 'jsonb']) l,
        unnest(ARRAY['text', 'varchar', 'name', 'integer', 'bigint', 'boolean', 'bytea', 'uuid', 'oid',
            'regrole', 'regclass', 'timestamp', '"char"', 'text[]', 'integer[]', 'jsonb']) r LOOP
        EXECUTE pg_catalog.format('CREATE FUNCTION public.hostile(%s, %s) RETURNS boolean LANGUAGE plpgsql AS '
            '$f$BEGIN RAISE EXCEPTION ''a hostile operator was used''; END$f$', pair[1], pair[2]);
        FOREACH operator IN ARRAY ARRAY['=', '<>', '<', '<=', '>', '>=', '+', '||'] LOOP
            EXECUTE format('CREATE OPERATOR public.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = public.hostile)', operator, pair[1], pair[2]);
        END LOOP;
    END LOOP;
    FOREACH sort IN ARRAY ARRAY['now() RETURNS timestamptz', 'current_database() RETURNS name',
        'to_regclass(text) RETURNS regclass', 'pg_get_serial_sequence(text, text) RETURNS text',
        'format(text, text) RETURNS text',
        'format(text, regrole) RETURNS text', 'format(text, regprocedure, regrole) RETURNS text',
        'format(text, text, text) RETURNS text',
        'timezone(text, timestamptz) RETURNS timestamptz', 'unnest(integer[]) RETURNS bigint',
        'unnest(bytea[]) RETURNS text'] LOOP
        EXECUTE pg_catalog.format('CREATE FUNCTION public.%s LANGUAGE sql AS $f$SELECT public.hostile_%s()$f$',
            sort, regexp_replace(sort, '.* ', ''));
    END LOOP;
END $$;
CREATE FUNCTION public.pg_extension_config_dump(regclass, text) RETURNS void
LANGUAGE sql AS 'SELECT public.hostile_text()';
CREATE FUNCTION public.hostile_step(bigint) RETURNS bigint LANGUAGE sql AS 'SELECT public.hostile_bigint()';
CREATE FUNCTION public.hostile_step(bigint, integer) RETURNS bigint
LANGUAGE sql AS 'SELECT public.hostile_bigint()';
CREATE AGGREGATE public.count(*) (SFUNC = public.hostile_step, STYPE = bigint);
CREATE AGGREGATE public.max(integer) (SFUNC = public.hostile_step, STYPE = bigint);
CREATE TYPE public.evil AS (x pg_catalog.int4);
CREATE FUNCTION public.evil(pg_catalog.text) RETURNS public.evil
LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''a hostile cast was used''; END';
CREATE FUNCTION public.text(public.evil) RETURNS pg_catalog.text
LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''a hostile cast was used''; END';
CREATE CAST (pg_catalog.text AS public.evil) WITH FUNCTION public.evil(pg_catalog.text) AS IMPLICIT;
CREATE CAST (public.evil AS pg_catalog.text) WITH FUNCTION public.text(public.evil) AS IMPLICIT;
CREATE TABLE public.pg_roles (oid oid, rolsuper boolean);
CREATE TABLE public.pg_extension (oid oid, extname name);
CREATE TABLE public.pg_depend (objid oid, refobjid oid, classid oid, refclassid oid, deptype "char");
CREATE TABLE public.pg_database (datname name, datdba oid);
-- Types last: what follows must name PostgreSQL's own in full.
CREATE DOMAIN public.bytea AS pg_catalog.int4;
CREATE DOMAIN public.uuid AS pg_catalog.int4;
CREATE DOMAIN public.jsonb AS pg_catalog.int4;
CREATE DOMAIN public.oid AS pg_catalog.bool;
CREATE DOMAIN public.regclass AS pg_catalog.bool;
CREATE DOMAIN public.regrole AS pg_catalog.bool;
CREATE DOMAIN public.regprocedure AS pg_catalog.bool;
CREATE DOMAIN public.text AS pg_catalog.int4;
RESET SESSION AUTHORIZATION;

-- The trap works: this is what careless SQL runs into.
SET search_path = pg_temp, public, pg_catalog;
SELECT 'a'::pg_catalog.text = 'a'::pg_catalog.text;
SELECT count(*) FROM pg_catalog.pg_class;
SELECT 'a'::text;

-- The extension is installed into that schema; no member of it depends on
-- anything of that user's.
SET client_min_messages = warning;
CREATE EXTENSION extension_storage SCHEMA public CASCADE;
SELECT pg_catalog.pg_describe_object(d.classid, d.objid, 0),
    pg_catalog.pg_describe_object(d.refclassid, d.refobjid, 0)
FROM pg_catalog.pg_shdepend s
JOIN pg_catalog.pg_depend d ON d.refclassid OPERATOR(pg_catalog.=) s.classid
    AND d.refobjid OPERATOR(pg_catalog.=) s.objid
JOIN pg_catalog.pg_depend m ON m.classid OPERATOR(pg_catalog.=) d.classid
    AND m.objid OPERATOR(pg_catalog.=) d.objid
WHERE s.refobjid OPERATOR(pg_catalog.=) 'regress_mallory'::pg_catalog.regrole
    AND s.deptype OPERATOR(pg_catalog.=) 'o'
    AND m.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass;
SELECT extconfig::pg_catalog.regclass[] FROM pg_catalog.pg_extension;

-- More of it in pg_temp: relations and types of the extension's own names.
CREATE TEMP TABLE extension_storage (extension_id pg_catalog.text, key pg_catalog.text,
    value pg_catalog.bytea, is_encrypted boolean);
INSERT INTO pg_temp.extension_storage VALUES ('acme.s', 'k', 'hostile', false);
CREATE TYPE pg_temp.ext_storage_entry AS (x integer);
CREATE FUNCTION pg_temp.ext_storage_get(pg_catalog.text, pg_catalog.text) RETURNS pg_catalog.bytea
LANGUAGE sql AS $$SELECT '\xbaad'::pg_catalog.bytea$$;

-- Everything works ...
SET extension_storage.encryption_keys = 'old-secret';
SELECT key, version, is_encrypted
FROM public.ext_storage_set('acme.s', 'k', 'one', 'text/plain', category => 'c', if_version => 0);
SELECT key, version, is_encrypted
FROM public.ext_storage_set('acme.s', 'k', 'two', 'text/plain', category => 'c', if_version => 1);
SELECT key, version, is_encrypted
FROM public.ext_storage_set('acme.s', 'k', 'three', 'text/plain', category => 'c');
SELECT key, version, is_encrypted
FROM public.ext_storage_set_json('acme.s', 'j', '{"a": 1}', is_encrypted => true);
SELECT key, version, is_encrypted FROM public.ext_storage_set_json('acme.s', 'j', '{"a": 2}');
SELECT version FROM public.ext_storage_set('acme.s', 'k', 'mine', 'text/plain', 7, 'chart', '42');
SELECT public.ext_storage_get('acme.s', 'k'), public.ext_storage_get('acme.s', 'k', 7, 'chart', '42'),
    public.ext_storage_get_json('acme.s', 'j');
SELECT key, value FROM public.ext_storage_get_entry('acme.s', 'k');
SELECT key FROM public.ext_storage_list('acme.s', category => 'c', key_prefix => 'k', after_key => 'a');
SELECT key FROM public.ext_storage_list('acme.s');
SELECT public.ext_storage_count('acme.s', category => 'c', key_prefix => 'k'),
    public.ext_storage_count('acme.s', 7, 'chart', '42');
SET extension_storage.encryption_keys = 'new-secret,old-secret';
CALL public.ext_storage_rotate_keys();
SELECT role, entries, removable FROM public.ext_storage_key_status();
SELECT key FROM public.ext_storage_verify();
SELECT public.fernet_decrypt(public.fernet_encrypt('x', public.fernet_derive_key('x')),
    public.fernet_derive_key('x'), '1 hour');
SELECT public.ext_storage_delete('acme.s', 'k', 7, 'chart', '42', if_version => 1),
    public.ext_storage_delete('acme.s', 'none');
SELECT public.ext_storage_grant('regress_mallory', 'write');
CREATE TABLE public.person (id integer PRIMARY KEY);
CREATE TABLE public.chart (uuid pg_catalog.uuid);
SELECT public.ext_storage_attach_users('public.person'),
    public.ext_storage_attach_resource('chart', 'public.chart');
INSERT INTO public.person VALUES (7);
INSERT INTO public.chart VALUES ('0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e11');
SET extension_storage.quota_per_extension = 1000;
SELECT version FROM public.ext_storage_set('acme.s', 'k', 'counted', user_fk => 7);
SELECT version FROM public.ext_storage_set('acme.s', 'k', 'counted', resource_type => 'chart',
    resource_uuid => '0b0e8f0a-6a3c-4c55-9d62-3e9a3b1b7e11');
SELECT * FROM public.ext_storage_usage();
DELETE FROM public.person;
DELETE FROM public.chart;
SELECT * FROM public.ext_storage_usage();
SELECT public.ext_storage_detach('public.person'), public.ext_storage_detach('public.chart');
SELECT public.ext_storage_purge_user(7), public.ext_storage_purge_resource('chart', '42'),
    public.ext_storage_purge_extension('acme.s');
-- ... and for a row that another program writes without saying much.
INSERT INTO public.extension_storage (extension_id, key, value) VALUES ('acme.s', 'foreign', '{}');
SELECT key, version FROM public.ext_storage_list('acme.s', key_prefix => 'f');
-- The functions cannot be replaced.
SET SESSION AUTHORIZATION regress_mallory;
CREATE OR REPLACE FUNCTION public.fernet_generate_key() RETURNS pg_catalog.text LANGUAGE sql
AS $$SELECT 'known to mallory'::pg_catalog.text$$;
RESET SESSION AUTHORIZATION;

\c contrib_regression
DROP DATABASE regression_hostile;
DROP ROLE regress_mallory;
