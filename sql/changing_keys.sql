-- A function changes the keys while a statement of ours reads rows: the answer
-- is right, or an error.  It is called by a view in the table's place; where a
-- policy could call it, what tells of all rows refuses to work.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/test/setup.sql'
\i :setup

CREATE ROLE regress_changing_keys;
SELECT ext_storage_grant('regress_changing_keys', 'admin');

SET extension_storage.secret_key = 'old-secret';
INSERT INTO extension_storage (extension_id, key, value, is_encrypted, value_size)
SELECT 'acme.app', 'key' || i, convert_to(fernet_encrypt(convert_to(repeat('x', i), 'UTF8'), derived), 'UTF8'), true, i
FROM generate_series(1, 300) i, fernet_derive_key('old-secret') derived;

-- The function, called for the n-th row, sets other keys.
CREATE TABLE change (keys text);
GRANT SELECT ON change TO regress_changing_keys;
CREATE SEQUENCE calls;
GRANT ALL ON SEQUENCE calls TO regress_changing_keys;
CREATE FUNCTION change_keys() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('SET extension_storage.encryption_keys = %L', (SELECT keys FROM change));
    RETURN true;
END $$;
ALTER TABLE extension_storage RENAME TO changing_table;
CREATE VIEW extension_storage AS SELECT * FROM changing_table WHERE nextval('calls') <> 1000 OR change_keys();
GRANT ALL ON extension_storage TO regress_changing_keys;
CREATE PROCEDURE change_at(n integer, keys text) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM setval('calls', 1000 - n);
    DELETE FROM change;
    INSERT INTO change VALUES (keys);
END $$;

-- What a statement does while the keys change in its middle, at 450 after it has
-- counted the rows: their number grows, they become others, they become fewer.
CREATE FUNCTION answers(statement text, from_keys text, at_call integer DEFAULT 450, OUT to_keys text, OUT answer text)
RETURNS SETOF record LANGUAGE plpgsql AS $$
BEGIN
    FOREACH to_keys IN ARRAY ARRAY['new-secret,old-secret', 'a,b,c,d,e,f,old-secret', 'third-secret'] LOOP
        RESET ROLE;
        CALL change_at(at_call, to_keys);
        SET ROLE regress_changing_keys;
        EXECUTE format('SET extension_storage.encryption_keys = %L', from_keys);
        answer := pg_temp.error_of(statement);
        RETURN NEXT;
    END LOOP;
    RESET ROLE;
END $$;

SET client_min_messages = error;
SELECT * FROM answers('SELECT * FROM ext_storage_key_status()', 'new-secret,old-secret');
SELECT * FROM answers('SELECT * FROM ext_storage_verify()', 'new-secret,old-secret');
SELECT * FROM answers('CALL ext_storage_rotate_keys(batch_size => 70)', 'new-secret,old-secret');
SELECT * FROM answers('SELECT * FROM ext_storage_list_values(''acme.app'', page_size => 100)', 'new-secret,old-secret', 150);
SELECT * FROM answers($$SELECT * FROM ext_storage_get_many('acme.app',
    ARRAY(SELECT 'key' || i FROM generate_series(1, 100) i))$$, 'new-secret,old-secret', 50);
SELECT * FROM answers($$SELECT * FROM ext_storage_get_entry('acme.app', 'key2')$$, 'new-secret,old-secret', 1);
SELECT * FROM answers($$SELECT ext_storage_set('acme.app', 'key1', 'x')$$, 'new-secret,old-secret', 1);
SELECT * FROM answers($$SELECT * FROM ext_storage_set_many('acme.app', ARRAY(SELECT 'key' || i FROM generate_series(1, 9) i),
    ARRAY(SELECT convert_to(repeat('x', i), 'UTF8') FROM generate_series(1, 9) i))$$, 'new-secret,old-secret', 5);

-- Whatever they were rotated to, all are read, by one key or another.
RESET ROLE;
CALL change_at(0, '');
SET extension_storage.encryption_keys = 'new-secret,third-secret,a,old-secret';
SELECT sum(entries) FROM ext_storage_key_status() WHERE role <> 'unknown';
SELECT * FROM ext_storage_verify();
SELECT count(*) FROM ext_storage_get_many('acme.app', ARRAY(SELECT 'key' || i FROM generate_series(1, 300) i))
WHERE value = convert_to(repeat('x', value_size), 'UTF8') AND key = 'key' || value_size;
SELECT count(*) FROM generate_series(50, 300, 50) i
WHERE ext_storage_get('acme.app', 'key' || i) = convert_to(repeat('x', i), 'UTF8');

-- A get that takes its own key away.
CALL change_at(1, '');
SET ROLE regress_changing_keys;
SET extension_storage.encryption_keys = 'new-secret,third-secret,a,old-secret';
SELECT pg_temp.error_of($$SELECT ext_storage_get('acme.app', 'key1')$$);
RESET ROLE;

DROP VIEW extension_storage;
ALTER TABLE changing_table RENAME TO extension_storage;
DELETE FROM extension_storage;
DROP FUNCTION answers, change_keys;
DROP PROCEDURE change_at;
DROP TABLE change;
DROP SEQUENCE calls;
DROP OWNED BY regress_changing_keys;
DROP ROLE regress_changing_keys;
