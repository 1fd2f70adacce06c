/* extension_storage--1.1--1.2.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION extension_storage UPDATE TO '1.2'" to load this file. \quit

-- Functions and triggers of the table: section "table".

-- Keys and rotation: section "keys".

-- Quota and life cycle: section "life cycle".

-- Lists with values, several keys at once, rename, moving in: section "batches".

-- Rights of the holder: section "rights", always last.
