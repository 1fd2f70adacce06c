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

-- It takes a snapshot of its own, which a parallel query does not allow.
ALTER FUNCTION @extschema@.ext_storage_key_status() PARALLEL UNSAFE;

-- Quota and life cycle: section "life cycle".

-- Lists with values, several keys at once, rename, moving in: section "batches".

-- Rights of the holder: section "rights", always last.
