\set ECHO none
-- What every file of sql/ starts with: the extension, and error_of().
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS extension_storage CASCADE;
RESET client_min_messages;
-- Until the library is loaded, its settings are unknown to the session.
LOAD 'extension_storage';

-- How a statement fails: SQLSTATE, message, detail and hint.
CREATE FUNCTION pg_temp.error_of(statement text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    said text;
    detail text;
    hint text;
BEGIN
    EXECUTE statement;
    RETURN 'no error';
EXCEPTION WHEN others THEN
    GET STACKED DIAGNOSTICS said = MESSAGE_TEXT,
        detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN concat_ws(E'\n    ', SQLSTATE || ' ' || said,
        nullif(detail, ''), nullif(hint, ''));
END $$;
\set ECHO all
