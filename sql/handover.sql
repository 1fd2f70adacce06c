-- Secrets handed over by COPY: the view ext_storage_secrets
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS extension_storage CASCADE;
RESET client_min_messages;

CREATE ROLE regress_handover;
SELECT ext_storage_grant('regress_handover', 'read');
SET ROLE regress_handover;
CREATE TEMP VIEW keys AS
    SELECT role, source FROM ext_storage_configured_keys() ORDER BY ordinal;

-- until the transaction ends, or what is in it is rolled back
BEGIN;
COPY ext_storage_secrets FROM STDIN;
\\x612c62	\\x63	\\x64	f
\.
SELECT * FROM keys;
SAVEPOINT inner_;
COPY ext_storage_secrets (secret_key) FROM STDIN;
\\x65
\.
SELECT * FROM keys;
ROLLBACK TO SAVEPOINT inner_;
SELECT * FROM keys;
COMMIT;
SELECT * FROM keys;

-- until the session ends; the next row replaces all of it
COPY ext_storage_secrets (encryption_keys, for_session) FROM STDIN;
\\x61	t
\.
SELECT * FROM keys;
COPY ext_storage_secrets (secret_key, for_session) FROM STDIN;
\\x63	t
\.
SELECT * FROM keys;
COPY ext_storage_secrets (for_session) FROM STDIN;
t
\.
SELECT * FROM keys;
SELECT * FROM ext_storage_secrets;

-- not by a statement, which would carry them
INSERT INTO ext_storage_secrets (secret_key) VALUES ('marker-of-a-statement');
DO $$BEGIN
    INSERT INTO ext_storage_secrets (secret_key) VALUES ('marker-of-a-statement');
END$$;
COPY (INSERT INTO ext_storage_secrets (secret_key) VALUES ('marker-of-a-statement') RETURNING 1) TO STDOUT;

-- no error quotes what was copied
COPY ext_storage_secrets (encryption_keys) FROM STDIN;
marker-of-a-list,"
\.
COPY ext_storage_secrets (encryption_keys) FROM STDIN;
marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker,marker
\.
COPY ext_storage_secrets (secret_key) FROM STDIN;
marker-that-is-not-utf-8\\377
\.
COPY ext_storage_secrets (secret_key) FROM STDIN;
marker-with-a-nul\\000
\.
SELECT * FROM keys;

-- whoever has no right to it has none
RESET ROLE;
CREATE ROLE regress_stranger;
SET ROLE regress_stranger;
\copy ext_storage_secrets (secret_key) FROM /dev/null
RESET ROLE;

-- the trigger's function on a view of another shape, a table, or alone
CREATE VIEW other AS SELECT 1::integer AS for_session, ''::text AS secret_key;
CREATE TRIGGER other INSTEAD OF INSERT ON other
    FOR EACH ROW EXECUTE FUNCTION ext_storage_secrets_insert();
COPY other FROM STDIN;
1	x
\.
CREATE OR REPLACE VIEW other2 AS SELECT true AS for_session;
CREATE TRIGGER other INSTEAD OF INSERT ON other2
    FOR EACH ROW EXECUTE FUNCTION ext_storage_secrets_insert();
COPY other2 FROM STDIN;
t
\.
CREATE TABLE other3 (for_session boolean);
CREATE TRIGGER other BEFORE INSERT ON other3
    FOR EACH ROW EXECUTE FUNCTION ext_storage_secrets_insert();
COPY other3 FROM STDIN;
t
\.
SELECT ext_storage_secrets_insert();
SELECT * FROM keys;

DROP VIEW other, other2, keys;
DROP TABLE other3;
DROP OWNED BY regress_handover;
DROP ROLE regress_handover, regress_stranger;
