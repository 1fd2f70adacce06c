# A value is where it belongs and nowhere else: not in a temporary file, not in
# an error, not in the log, not in a tuple of an encrypted entry.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', "log_temp_files = 0\nlog_statement = none\nwork_mem = 64kB");
$node->start;
$node->safe_psql('postgres',
	'CREATE EXTENSION extension_storage CASCADE');

my $keys = q{SET extension_storage.encryption_keys = 'a secret';};

# Runs statements; returns what psql says and what the log got meanwhile.
sub run
{
	my ($sql, $database) = @_;
	my $start = -s $node->logfile;
	my ($rc, $out, $err) = $node->psql($database // 'postgres',
		"LOAD 'extension_storage'; $keys $sql");

	return ("$out\n$err", slurp_file($node->logfile, $start));
}

# A decrypted value of 8 MB goes to no temporary file.  (In FROM, the executor
# keeps what ext_storage_get returns as it keeps all that is no set.)
run(q{SELECT FROM ext_storage_set('acme.v', 'large', repeat('plain', 1600000)::bytea, is_encrypted => true);
	SELECT FROM ext_storage_set('acme.v', 'json', convert_to(to_jsonb(repeat('plain', 400000))::text, 'UTF8'), is_encrypted => true)});
for my $read (
	q{SELECT length(value) FROM ext_storage_get_entry('acme.v', 'large')},
	q{SELECT length((ext_storage_get_entry('acme.v', 'large')).value)},
	q{SELECT length(ext_storage_get('acme.v', 'large'))},
	q{SELECT length(ext_storage_get_json('acme.v', 'json')::text)},
	q{SELECT length(value) FROM generate_series(1, 3), LATERAL ext_storage_get_entry('acme.v', 'large')},
	q{SELECT length(value) FROM ext_storage_get_entry('acme.v', 'large') WITH ORDINALITY},
	q{SELECT length(value) FROM ext_storage_get_many('acme.v', ARRAY['large'])},
	q{SELECT sum(length(value)) FROM ext_storage_list_values('acme.v', key_prefix => 'large')})
{
	my ($said, $log) = run($read);

	like($said, qr/^(8000000|2000002)\b/, "it is read: $read");
	unlike($log, qr/temporary file/, 'and is in no temporary file');
}
my ($said, $log) = run(q{SELECT count(*) FROM (SELECT i FROM generate_series(1, 100000) i ORDER BY -i) s});
like($log, qr/temporary file/, 'others are noticed');

# An encrypted entry that is overwritten without a word of encryption: triggers,
# constraints and errors get to see the token alone.
run(q{CREATE TABLE seen (operation text, value text);
	CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS
		'BEGIN INSERT INTO seen VALUES (TG_OP, encode(NEW.value, ''escape'')); RETURN NEW; END';
	SELECT FROM ext_storage_set('acme.v', 'secret', 'first', is_encrypted => true);
	CREATE TRIGGER look BEFORE INSERT OR UPDATE ON extension_storage FOR EACH ROW EXECUTE FUNCTION look();
	CREATE TRIGGER look_after AFTER INSERT OR UPDATE ON extension_storage FOR EACH ROW EXECUTE FUNCTION look();
	SELECT FROM ext_storage_set('acme.v', 'secret', 'pLaInTeXt', description => 'new');
	SELECT FROM ext_storage_set('acme.v', 'secret', 'pLaInTeXt', if_version => 2);
	SELECT FROM ext_storage_set_json('acme.v', 'secret', '"pLaInTeXt"')});
is( $node->safe_psql('postgres',
		q{SELECT DISTINCT operation, left(value, 5) FROM seen}),
	'UPDATE|gAAAA', 'triggers see the token');
run('DROP TRIGGER look ON extension_storage; DROP TRIGGER look_after ON extension_storage');
run(q{ALTER TABLE extension_storage ADD CONSTRAINT look CHECK (description <> 'bad'), ADD CONSTRAINT small CHECK (value_size <> 9) NOT VALID});
for my $write (
	q{SELECT ext_storage_set('acme.v', 'secret', 'pLaInTeXt', description => 'bad')},
	q{SELECT ext_storage_set('acme.v', 'secret', 'pLaInTeXt')},
	q{SELECT ext_storage_set('acme.v', 'plain', 'pLaInTeXt')},
	q{SELECT ext_storage_set_json('acme.v', 'plain', '"pLaInTeX"', description => 'bad')})
{
	($said, $log) = run($write);
	like($said, qr/violates check constraint/, "a constraint refuses it: $write");
	unlike($said . $log, qr/pLaInTeX|\\x/, 'and shows no value');
}
run('ALTER TABLE extension_storage DROP CONSTRAINT look, DROP CONSTRAINT small');

# A statement that fails is logged by default; not where a value is in it.
for my $write (
	q{SELECT ext_storage_set('acme.v', 'secret', 'pLaInTeXt', if_version => 1)},
	q{SELECT ext_storage_set('acme.v', '', 'pLaInTeXt')},
	q{SELECT ext_storage_set('acme.v', 'k', 'pLaInTeXt', 'no type')},
	q{SELECT ext_storage_set('acme.v', 'k', 'pLaInTeXt', resource_type => 'chart')},
	q{SELECT ext_storage_set_json('acme.v', 'k', '"pLaInTeXt"', category => repeat('x', 65))},
	q{SET default_transaction_read_only = on; SELECT ext_storage_set('acme.v', 'k', 'pLaInTeXt')},
	q{SET extension_storage.encryption_keys = ''; SELECT ext_storage_set('acme.v', 'k', 'pLaInTeXt', is_encrypted => true)},
	q{SET extension_storage.max_value_size = 3; SELECT ext_storage_set('acme.v', 'k', 'pLaInTeXt')},
	q{SET extension_storage.quota_per_extension = 3; SELECT ext_storage_set('acme.v', 'k', 'pLaInTeXt')},
	q{DO $$ BEGIN PERFORM ext_storage_set('acme.v', 'k', 'pLaInTeXt', 'no type'); END $$},
	q{PREPARE p AS SELECT ext_storage_set('acme.v', 'k', $1, 'no type'); SET log_parameter_max_length_on_error = -1; EXECUTE p ('pLaInTeXt')},
	q{SELECT * FROM ext_storage_set_many('acme.v', ARRAY['k', 'k'], ARRAY['pLaInTeXt', '']::bytea[])},
	q{SELECT fernet_encrypt('pLaInTeXt', 'no key')},
	q{SELECT fernet_encrypt(NULL, 'pLaInTeXt')},
	q{SELECT fernet_decrypt('no token', 'pLaInTeXt')},
	q{SELECT fernet_decrypt('pLaInTeXt', fernet_generate_key())},
	q{SELECT fernet_timestamp('pLaInTeXt')})
{
	($said, $log) = run($write);
	like($log, qr/ERROR:  /, "it fails: $write");
	unlike($log, qr/pLaInTeXt/, 'and is not in the log');
}
($said, $log) = run(q{SELECT ext_storage_list('acme.v', page => -1)});
like($log, qr/STATEMENT:  SELECT ext_storage_list/, 'a statement without a value is logged');

# In a database whose text may be any bytes, an error quotes none of them.
$node->safe_psql('postgres',
	q{CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0});
$node->safe_psql('ascii', 'CREATE EXTENSION extension_storage CASCADE');
for my $write (
	q{SELECT ext_storage_set_json('acme.v', 'k', ('"' || chr(200) || chr(40) || '"')::jsonb)},
	q{SELECT FROM ext_storage_set('acme.v', 'k', '\x22c828'); SELECT ext_storage_get_json('acme.v', 'k')},
	q{SELECT FROM ext_storage_set('acme.v', 'k', '\x22c82822'); SELECT ext_storage_get_json('acme.v', 'k')})
{
	($said, $log) = run($write, 'ascii');
	like($said, qr/ERROR:  value /, "bytes that are no text: $write");
	unlike($said . $log, qr/0xc8|\xc8/, 'are not quoted');
}

# What a database cannot represent is no fault of the value.
$node->safe_psql('postgres',
	q{CREATE DATABASE latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0});
$node->safe_psql('latin1', 'CREATE EXTENSION extension_storage CASCADE');
for my $value (
	[ '\x22e282ac22', 'is JSON that cannot be converted to jsonb', 'a character that LATIN1 lacks' ],
	[ '\x225c753230616322', 'is JSON that cannot be converted to jsonb', 'an escape for one' ],
	[ '\x22c82822', 'is not JSON', 'bytes that are not UTF-8' ])
{
	my ($bytes, $message, $name) = @$value;
	($said) = run("SELECT FROM ext_storage_set('acme.v', 'k', '$bytes'); SELECT ext_storage_get_json('acme.v', 'k')", 'latin1');
	like($said, qr/ERROR:  value of .* $message/, $name);
}
($said) = run(q{SELECT FROM ext_storage_set('acme.v', 'k', '\x22c3a422'); SELECT ascii(ext_storage_get_json('acme.v', 'k') #>> '{}')}, 'latin1');
like($said, qr/^228$/m, 'a character that LATIN1 has is converted');

# An overwrite takes no id, and works when there is none left.
sub last_id
{
	return $node->safe_psql('postgres',
		q{SELECT last_value FROM extension_storage_id_seq});
}
run(q{SELECT FROM ext_storage_set('acme.v', 'often', 'x')});
my $id = last_id();
run(q{SELECT max((ext_storage_set('acme.v', 'often', i::text::bytea)).version) FROM generate_series(1, 100) i;
	SELECT max((ext_storage_set('acme.v', 'secret', i::text::bytea)).version) FROM generate_series(1, 100) i;
	SELECT ext_storage_set('acme.v', 'often', 'x', if_version => 0)});
is(last_id(), $id, 'overwrites take no id');
run(q{SELECT setval('extension_storage_id_seq', 2147483647)});
($said) = run(q{SELECT version FROM ext_storage_set('acme.v', 'often', 'z')});
like($said, qr/^102$/m, 'an entry can be overwritten without an id left');
($said) = run(q{SELECT version FROM ext_storage_set('acme.v', 'another', 'z')});
like($said, qr/ERROR:  nextval: .*\nHINT:  Widen the ids: ALTER TABLE/,
	'a new one says what to do');

$node->stop;
done_testing();
