/* extension_storage--1.1--1.2.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION extension_storage UPDATE TO '1.2'" to load this file. \quit

-- Functions and triggers of the table: section "table".

-- Keys and rotation: section "keys".

-- The column source comes last.  The function stays the one that it is, with
-- the rights to it and the views that use it, where DROP FUNCTION would lose
-- the former and stop at the latter.
UPDATE pg_catalog.pg_proc SET
    proallargtypes = proallargtypes
        OPERATOR(pg_catalog.||) 'pg_catalog.text'::pg_catalog.regtype::pg_catalog.oid,
    proargmodes = proargmodes OPERATOR(pg_catalog.||) 't'::pg_catalog."char",
    proargnames = proargnames OPERATOR(pg_catalog.||) 'source'::pg_catalog.text
WHERE oid OPERATOR(pg_catalog.=) '@extschema@.ext_storage_key_status()'::pg_catalog.regprocedure;

CREATE FUNCTION @extschema@.ext_storage_configured_keys()
RETURNS TABLE (ordinal integer, fingerprint text, role text, source text)
AS 'MODULE_PATHNAME', 'ext_storage_configured_keys'
LANGUAGE C STABLE PARALLEL RESTRICTED ROWS 2;
REVOKE ALL ON FUNCTION @extschema@.ext_storage_configured_keys() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.ext_storage_configured_keys() IS
    'Which keys the session has, and where each comes from';

-- Quota and life cycle: section "life cycle".

-- Lists with values, several keys at once, rename, moving in: section "batches".

-- Rights of the holder: section "rights", always last.
