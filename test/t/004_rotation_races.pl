# Rotations while clients write the same rows: no client gets an error, no
# newer value is overwritten, and what is left is rotated by the next call.

use strict;
use warnings FATAL => 'all';

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $seconds = 5;
my $clients = 4;
my $entries = 400;
my $node = PostgreSQL::Test::Cluster->new('main');

sub query
{
	return $node->safe_psql('postgres', $_[0]);
}

$node->init(extra => [ '-E', 'UTF8', '--no-locale' ]);
$node->append_conf('postgresql.conf', 'deadlock_timeout = 100ms');
$node->start;
query('CREATE EXTENSION extension_storage CASCADE');

# Each client writes its own keys, several in a transaction and in any order:
# a deadlock could only be one with the rotation.  A log in the same
# transaction knows what was committed last.
query(q{
	CREATE TABLE log (key text, version bigint, value text,
		PRIMARY KEY (key, version));
	CREATE FUNCTION write(client integer, n integer) RETURNS void
	LANGUAGE plpgsql AS $$
	DECLARE
		k text;
		written text;
	BEGIN
		FOR k IN SELECT key FROM extension_storage
			WHERE user_fk = client ORDER BY random() LIMIT n
		LOOP
			written := k || ' ' || gen_random_uuid();
			INSERT INTO log SELECT k, version, written FROM ext_storage_set(
				'acme.' || client % 3, k, convert_to(written, 'UTF8'), 'text/plain', client);
			PERFORM pg_sleep(0.001);
			IF convert_from(ext_storage_get('acme.' || client % 3, k, client), 'UTF8') <> written
			THEN
				RAISE '% is not what was just written', k;
			END IF;
		END LOOP;
	END $$});
my $script = $node->basedir . '/write.sql';
append_to_file($script, <<'END');
SELECT write(:first + :client_id, (random() * 6)::integer);
END

# Starts clients whose sessions have a list of keys.
sub start_clients
{
	my ($keys, $first, $result) = @_;
	local $ENV{PGOPTIONS} = "-c extension_storage.encryption_keys=$keys";
	return IPC::Run::start(
		[
			$node->installed_command('pgbench'), '-n', '-c', $clients / 2,
			'-T', $seconds, '-D', "first=$first", '-f', $script,
			'-h', $node->host, '-p', $node->port, 'postgres'
		],
		'>', $result, '2>', $result);
}

sub rotate
{
	my ($level, $batch_size) = @_;
	local $ENV{PGOPTIONS} = '-c extension_storage.encryption_keys=new,old'
	  . " -c default_transaction_isolation=$level";
	my ($rc, $out, $err) = $node->psql('postgres',
		"CALL ext_storage_rotate_keys(batch_size => $batch_size)");
	return $rc == 0 ? split(/\|/, $out) : die "rotation failed: $err";
}

foreach my $level ('read\ committed', 'repeatable\ read', 'serializable')
{
	query(qq{
		TRUNCATE log;
		DELETE FROM extension_storage;
		SET extension_storage.encryption_keys = 'old';
		INSERT INTO log SELECT key, version, 'first' FROM
			generate_series(1, $clients) client, generate_series(1, $entries / $clients) i,
			LATERAL ext_storage_set('acme.' || client % 3, client || '.' || i, 'first',
				'text/plain', client, is_encrypted => true)});

	# half of the clients have not heard of the new key's place yet
	my ($result_old, $result_new) = ('', '');
	my $old = start_clients('old,new', 1, \$result_old);
	my $new = start_clients('new,old', 1 + $clients / 2, \$result_new);
	my ($calls, $rotated) = (0, 0);
	my $end = time + $seconds;
	while (time < $end)
	{
		my ($scanned, $rotated_now, $current, $failed) =
		  rotate($level, 10 + 37 * ($calls % 4));
		die 'counts do not add up'
		  if $scanned != $rotated_now + $current + $failed;
		die "$failed of $scanned entries failed" if $failed > 0;
		$rotated += $rotated_now;
		$calls++;
	}
	my $name = $level =~ s/\\//r;
	ok($old->finish, "$name: no error for clients with the old key")
	  or diag($result_old);
	ok($new->finish, "$name: nor for those with the new one")
	  or diag($result_new);
	unlike($result_old . $result_new, qr/deadlock|ERROR|aborted/,
		"$name: no deadlock");
	cmp_ok($calls, '>', 3, "$name: several rotations ran meanwhile");
	cmp_ok($rotated, '>', $entries,
		"$name: and rotated entries more than once");

	rotate($level, 500);
	my @again = rotate($level, 500);
	is("@again", "$entries 0 $entries 0", "$name: nothing is left to do");
	is( query(q{
			SET extension_storage.encryption_keys = 'new';
			SELECT count(*), count(*) FILTER (WHERE l.value =
				convert_from(ext_storage_get(e.extension_id, e.key, e.user_fk), 'UTF8'))
			FROM extension_storage e JOIN log l USING (key, version)}),
		"$entries|$entries",
		"$name: every entry has what was committed last");
	my $versions = query('SELECT sum(version) FROM extension_storage');
	is(query('SELECT count(*) FROM log'),
		$versions, "$name: every version was counted");
	note("$name: $calls rotations, $rotated re-encrypted, $versions versions");
}
unlike(slurp_file($node->logfile), qr/deadlock detected|could not serialize/,
	'the log knows of no deadlock and no serialization failure');

$node->stop;
done_testing();
