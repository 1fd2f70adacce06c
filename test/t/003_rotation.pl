# A rotation from end to end: a thousand entries, ten of them damaged by hand.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
my $file = $node->basedir . '/keys';

sub write_keys
{
	unlink $file;
	append_to_file($file, join('', map { "$_\n" } @_));
	chmod 0600, $file or die "chmod $file: $!";
}

sub query
{
	return $node->safe_psql('postgres', $_[0]);
}

# What must not change, of the entries that a condition selects.
sub state_of
{
	my ($columns, $condition) = @_;
	return query("SELECT md5(string_agg(concat_ws(' ', $columns), ',' ORDER BY id))
		FROM extension_storage WHERE $condition");
}

# How many of all entries a new session reads, and what the others answer.
my $read_all = q{SELECT answer, count(*) FROM extension_storage,
	read(key) answer GROUP BY 1 ORDER BY 1};

write_keys('old-secret');
$node->init(extra => [ '-E', 'UTF8', '--no-locale' ]);
$node->append_conf('postgresql.conf',
	"extension_storage.encryption_keys_file = '$file'");
$node->start;
query('CREATE EXTENSION extension_storage CASCADE');
query(q{
	CREATE FUNCTION read(key text) RETURNS text LANGUAGE plpgsql AS $$
	BEGIN
		RETURN CASE ext_storage_get('acme.app', key)
			WHEN convert_to('value of ' || key, 'UTF8') THEN 'right'
			ELSE 'wrong' END;
	EXCEPTION WHEN SQLSTATE 'ES001' THEN
		RETURN SQLSTATE;
	END $$});
query(q{
	SELECT count(ext_storage_set('acme.app', 'k' || i,
		convert_to('value of k' || i, 'UTF8'), 'text/plain',
		is_encrypted => true, actor_fk => i))
	FROM generate_series(1, 1000) i});
query(q{SELECT count(ext_storage_set('acme.app', 'k' || i,
		convert_to('value of k' || i, 'UTF8'), 'text/plain', actor_fk => 9))
	FROM generate_series(1, 300) i});
is(query($read_all), 'right|1000', 'all read before the damage');

# Ten kinds of damage: form, length, version, time, IV, ciphertext, MAC.
query(q{
	CREATE TABLE damaged AS
		SELECT id, uuid, row_number() OVER (ORDER BY id) AS n
		FROM extension_storage WHERE id % 100 = 50;
	UPDATE extension_storage e SET value = CASE n
		WHEN 1 THEN ''
		WHEN 2 THEN 'no token'
		WHEN 3 THEN substr(value, 1, length(value) - 4)
		WHEN 4 THEN substr(value, 2)
		WHEN 5 THEN value || value
		ELSE set_byte(value, place, CASE get_byte(value, place) WHEN 65 THEN 66 ELSE 65 END)
		END
	FROM (SELECT id, n, ('{0,9,20,50,95}'::integer[])[n - 5] AS place
		FROM damaged) d
	WHERE d.id = e.id});
my $is_damaged = 'id IN (SELECT id FROM damaged)';
my $bytes = state_of('value', $is_damaged);
my $all_columns = q{id, uuid, extension_id, key, value_type, is_encrypted,
	created_on, changed_on, created_by_fk, changed_by_fk, version, value_size};
my $others = "$all_columns, fernet_timestamp(convert_from(value, 'UTF8'))";
my $before = state_of($others, "NOT $is_damaged");
my $before_damaged = state_of($all_columns, $is_damaged);

# The second key comes first; the file is read again without a restart.
my $status = q{SELECT role, entries, removable FROM ext_storage_key_status()
	ORDER BY ordinal};
write_keys('new-secret', 'old-secret');
$node->reload;
$node->poll_query_until('postgres',
	q{SELECT count(*) = 3 FROM ext_storage_key_status()})
  or die 'the key file was not read again';
is(query($status), "encrypts|0|f\ndecrypts|990|f\nunknown|10|",
	'key_status says beforehand: 990 to rotate, 10 unreadable');
is(query('SELECT count(*) FROM ext_storage_verify() v JOIN damaged d USING (uuid)'),
	10, 'verify names the ten');

my ($rc, $out, $err) =
  $node->psql('postgres', 'CALL ext_storage_rotate_keys(batch_size => 300, dry_run => true)');
is($out, '1000|990|0|10', 'a dry run counts them');
is(query($status), "encrypts|0|f\ndecrypts|990|f\nunknown|10|",
	'and writes nothing');

($rc, $out, $err) =
  $node->psql('postgres', 'CALL ext_storage_rotate_keys(batch_size => 300)');
is($rc, 0, 'the rotation ends well');
is($out, '1000|990|0|10', '990 rotated, 10 failed');
my @lines = split(/\n/, $err);
like(
	pop @lines,
	qr/NOTICE:  rotate_keys: 1000 scanned, 990 re-encrypted, 0 already current, 10 failed$/,
	'the last line says so');
my @progress = grep { /NOTICE/ } @lines;
is(scalar(@progress), 4, 'one NOTICE a batch');
like(
	$progress[$_],
	qr/NOTICE:  rotate_keys: @{[(300, 600, 900, 1000)[$_]]} of 1000 rows done, \d+ rows\/s, \d+ s left$/,
	'progress of batch ' . ($_ + 1)) foreach 0 .. 3;
my @warnings = sort map { /WARNING:  (.*)/ ? $1 : () } @lines;
is_deeply(
	\@warnings,
	[ sort split(/\n/, query(q{SELECT format(
		'key "%s" of extension "acme.app" (global), uuid %s, cannot be decrypted and is left as it is',
		key, uuid) FROM extension_storage JOIN damaged USING (id, uuid)})) ],
	'a WARNING names each of the ten');

is(state_of('value', $is_damaged), $bytes, 'their bytes are unchanged');
is(state_of($all_columns, $is_damaged), $before_damaged,
	'and all else of them');
is(state_of($others, "NOT $is_damaged"),
	$before, 'versions, times and token times of the others too');
is(query($status), "encrypts|990|f\ndecrypts|0|t\nunknown|10|",
	'the old key may go');
is(query('CALL ext_storage_rotate_keys()'),
	'1000|0|990|10', 'a second call finds nothing to do');

write_keys('new-secret');
$node->reload;
$node->poll_query_until('postgres',
	q{SELECT count(*) = 2 FROM ext_storage_key_status()})
  or die 'the key file was not read again';
is(query($read_all), "ES001|10\nright|990",
	'with the new key alone 990 read, 10 answer ES001');
is(query(q{SELECT problem, count(*) FROM ext_storage_verify() GROUP BY 1 ORDER BY 1}),
	"damaged, or its key is not configured|4\nnot a Fernet token|6",
	'and verify says why');

# Inside a transaction block: the same without a commit.
write_keys('third-secret', 'new-secret');
$node->reload;
$node->poll_query_until('postgres',
	q{SELECT count(*) = 3 FROM ext_storage_key_status()})
  or die 'the key file was not read again';
($rc, $out, $err) = $node->psql('postgres',
	"BEGIN; CALL ext_storage_rotate_keys(batch_size => 300); $status; ROLLBACK; $status");
like($err, qr/^.*NOTICE:  rotate_keys: inside a transaction block, nothing is committed until the block is\n/,
	'inside BEGIN it says that it does not commit');
is($out, "1000|990|0|10\nencrypts|990|f\ndecrypts|0|\nunknown|10|\n"
	  . "encrypts|0|f\ndecrypts|990|f\nunknown|10|",
	'a rollback undoes it')
  or diag($err);
is(query($read_all), "ES001|10\nright|990", 'and all is as before');

# Moving in says the same of itself.
query(q{CREATE TABLE legacy AS SELECT id, uuid, 'acme.moved' AS extension_id, user_fk, resource_type, resource_uuid, key,
	category, description, value, value_type, is_encrypted, created_on, changed_on, created_by_fk, changed_by_fk
	FROM extension_storage});
my $progress = 'NOTICE:  move_in: \d+ of \d+ rows done, \d+ rows/s, \d+ s left\n';
my $call = 'CALL ext_storage_move_in(\'legacy\', batch_size => 300';
($rc, $out, $err) = $node->psql('postgres', "$call, dry_run => true)");
like($err, qr/^.*NOTICE:  move_in: dry run, nothing is written\n(?s:.*)$progress(?s:.*)NOTICE:  move_in: 1000 scanned, 1000 moved, /,
	'a dry run says so, and what it would do');
($rc, $out, $err) = $node->psql('postgres', "BEGIN; $call); ROLLBACK");
like($err, qr/^.*NOTICE:  move_in: inside a transaction block, nothing is committed until the block is\n(?s:.*)$progress/,
	'inside BEGIN it says that it does not commit');
is(query(q{SELECT count(*) FROM extension_storage WHERE extension_id = 'acme.moved'}), 0, 'and does not');

$node->stop;
done_testing();
