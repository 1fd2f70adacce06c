DO $$ DECLARE at bigint := (SELECT min(id) - 1 FROM extension_storage); last bigint := (SELECT max(id) FROM extension_storage);
BEGIN WHILE at < last LOOP UPDATE extension_storage SET value = value || '' WHERE id > at AND id <= at + 500 AND is_encrypted; COMMIT; at := at + 500; END LOOP; END $$;
