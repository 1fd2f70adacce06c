/* extension_storage--1.1--1.2.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION extension_storage UPDATE TO '1.2'" to load this file. \quit

-- Functions and triggers of the table: section "table".

-- Keys and rotation: section "keys".

-- A rotation and what tells about it walk the encrypted rows of an extension by
-- id.  The index is small, as it holds these rows alone; writers wait while it
-- is made.
CREATE INDEX ix_extension_storage_encrypted ON @extschema@.extension_storage
    (extension_id, id) WHERE is_encrypted;

-- The column source comes last.  The function stays the one that it is, with
-- the rights to it and the views that use it, where DROP FUNCTION would lose
-- the former and stop at the latter.
UPDATE pg_catalog.pg_proc SET
    proallargtypes = proallargtypes
        OPERATOR(pg_catalog.||) 'pg_catalog.text'::pg_catalog.regtype::pg_catalog.oid,
    proargmodes = proargmodes OPERATOR(pg_catalog.||) 't'::pg_catalog."char",
    proargnames = proargnames OPERATOR(pg_catalog.||) 'source'::pg_catalog.text
WHERE oid OPERATOR(pg_catalog.=) '@extschema@.ext_storage_key_status()'::pg_catalog.regprocedure;

-- It takes a snapshot of its own, which a parallel query does not allow.
ALTER FUNCTION @extschema@.ext_storage_key_status() PARALLEL UNSAFE;

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

-- The holder of the extension has on what is new what it has on the rest.
-- Nothing is granted again: that would make rights that others were given
-- since part of the extension, and they would be missing from dumps.
DO $holder$
DECLARE
    holder pg_catalog.regrole;
    member pg_catalog.regprocedure;
BEGIN
    SELECT relowner INTO STRICT holder FROM pg_catalog.pg_class
    WHERE oid OPERATOR(pg_catalog.=) '@extschema@.extension_storage'::pg_catalog.regclass;
    FOR member IN
        SELECT d.objid
        FROM pg_catalog.pg_depend d
        JOIN pg_catalog.pg_extension x ON x.oid OPERATOR(pg_catalog.=) d.refobjid
        WHERE x.extname OPERATOR(pg_catalog.=) 'extension_storage'
            AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
            AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
            AND d.deptype OPERATOR(pg_catalog.=) 'e'
            AND NOT pg_catalog.has_function_privilege(
                holder, d.objid, 'EXECUTE WITH GRANT OPTION')
    LOOP
        EXECUTE pg_catalog.format(
            'GRANT EXECUTE ON ROUTINE %s TO %s WITH GRANT OPTION', member, holder);
    END LOOP;
END
$holder$;
