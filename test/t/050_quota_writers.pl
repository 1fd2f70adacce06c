# The quota under 16 concurrent writers: it is never passed by one byte, it is
# filled, and the first of them to come start the counting without a deadlock.

use strict;
use warnings FATAL => 'all';

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $quota = 1_000_000;
my $writers = 16;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf(
	'postgresql.conf', qq{
extension_storage.quota_per_extension = $quota
deadlock_timeout = 100ms
max_connections = 40
});
$node->start;
$node->safe_psql(
	'postgres', q{
	CREATE EXTENSION extension_storage CASCADE;
	-- Stores so many bytes, or says that they do not fit.
	CREATE FUNCTION put(key text, bytes integer) RETURNS boolean LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM ext_storage_set('acme.app', key,
			convert_to(repeat('x', bytes), 'UTF8'), 'text/plain');
		RETURN true;
	EXCEPTION WHEN SQLSTATE 'ES003' THEN
		RETURN false;
	END $$;
	-- Stores ever smaller values until not one byte fits.
	CREATE FUNCTION fill(client integer) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		bytes integer := 2048;
		n integer := 0;
	BEGIN
		WHILE bytes > 0 LOOP
			n := n + 1;
			IF NOT put(format('fill %s %s', client, n), bytes) THEN
				bytes := bytes / 2;
			END IF;
		END LOOP;
	END $$;
});

# Starts pgbench with scripts, each of a weight.
sub start_writers
{
	my ($options, @scripts) = @_;
	my ($n, @files) = 0;

	while (my ($weight, $text) = splice @scripts, 0, 2)
	{
		my $file = $node->basedir . '/script' . $n++;
		unlink $file;
		append_to_file($file, $text);
		push @files, '-f', "$file\@$weight";
	}
	my $run = { out => '', err => '' };
	$run->{handle} = IPC::Run::start(
		[
			'pgbench', '-n', '-c', $writers, '-j', 2, @$options, @files,
			'-h', $node->host, '-p', $node->port, 'postgres'
		],
		'<', \undef, '>', \$run->{out}, '2>', \$run->{err});
	return $run;
}

# Waits for it; returns its errors.  A deadlock is none to pgbench, but is said.
sub finish
{
	my ($run) = @_;

	$run->{handle}->finish;
	return $run->{handle}->result == 0
	  && $run->{out} =~ /failed transactions: 0 / ? '' : "$run->{out}$run->{err}";
}

# Sixteen sessions at once are the first to write under the quota.
my $gate = $node->background_psql('postgres');
for my $round (1 .. 4)
{
	$node->safe_psql('postgres',
		q{TRUNCATE extension_storage; ALTER TABLE extension_storage DISABLE TRIGGER ALL});
	$gate->query_safe('SELECT pg_advisory_lock(1)');
	my $run = start_writers(
		[ '-t', 1 ], 1, q{
SELECT pg_advisory_lock_shared(1);
BEGIN;
SELECT ext_storage_set('acme.app', 'first' || :client_id % 4, 'abc');
SELECT ext_storage_set('acme.app', 'second' || :client_id % 4, 'abcdef');
END;
});
	$node->poll_query_until(
		'postgres', qq{SELECT count(*) = $writers FROM pg_stat_activity
		WHERE wait_event = 'advisory'}) or die 'the writers do not wait';
	$gate->query_safe('SELECT pg_advisory_unlock(1)');
	is(finish($run), '', "round $round: 16 first writers, no error");
	is( $node->safe_psql('postgres', q{
		SELECT u.value_bytes, sum(e.value_size)
		FROM extension_storage_usage u JOIN extension_storage e USING (extension_id)
		GROUP BY u.value_bytes}),
		'36|36', "round $round: counted right");
}
$gate->quit;
$node->safe_psql('postgres', 'TRUNCATE extension_storage');

# Writes, overwrites and deletes, single and several in a transaction, some of
# them rolled back, of more bytes than fit; another session watches.
my $run = start_writers(
	[ '-T', 6, '--random-seed=1' ],
	6, q{
\set key random(1, 400)
\set bytes random(0, 12000)
SELECT put('key' || :key, :bytes);
},
	1, q{
\set key random(1, 400)
SELECT ext_storage_delete('acme.app', 'key' || :key);
},
	1, q{
\set key1 random(1, 400)
\set key2 random(1, 400)
\set bytes random(0, 4000)
BEGIN;
SELECT put('key' || :key1, :bytes);
SAVEPOINT s;
SELECT ext_storage_delete('acme.app', 'key' || :key2);
SELECT put('key' || :key2, 4000 - :bytes);
ROLLBACK TO s;
SELECT put('key' || :key2, :bytes);
END;
},
	1, q{
\set key random(1, 400)
BEGIN;
SELECT put('key' || :key, 12000);
ROLLBACK;
},
	1, q{
\set bytes random(0, 12000)
SELECT put('own' || :client_id, :bytes);
DELETE FROM extension_storage WHERE extension_id = 'acme.app' AND key = 'own' || :client_id;
});
my $watcher = $node->background_psql('postgres');
my ($samples, $max, $wrong) = (0, 0, 0);
while ($run->{handle}->pumpable)
{
	$run->{handle}->pump_nb;
	my ($stored, $counted) = split /\|/, $watcher->query_safe(
		q{SELECT coalesce(sum(value_size), 0),
		(SELECT coalesce(sum(value_bytes), 0) FROM extension_storage_usage)
		FROM extension_storage WHERE extension_id = 'acme.app'});
	$samples++;
	$max = $stored if $stored > $max;
	$wrong++ if $stored != $counted;
}
$watcher->quit;
is(finish($run), '', '16 writers: no error but a full quota');
my ($transactions) = $run->{out} =~ /actually processed: (\d+)/;
note("$transactions transactions, $samples samples, at most $max bytes");
cmp_ok($transactions, '>', 1000, 'they wrote');
cmp_ok($samples, '>', 100, 'and were watched');
cmp_ok($max, '<=', $quota, 'the quota was not passed by one byte');
cmp_ok($max, '>', $quota * 0.99, 'and filled');
is($wrong, 0, 'every sample: counted what is stored');

# Without deletes, sixteen writers fill it to the last byte.
is(finish(start_writers([ '-t', 1 ], 1, 'SELECT fill(:client_id);')),
	'', '16 writers fill the rest');
is( $node->safe_psql(
		'postgres', q{SELECT sum(value_size),
		(SELECT value_bytes FROM extension_storage_usage) FROM extension_storage}),
	"$quota|$quota",
	'to the last byte');
is($node->safe_psql('postgres', q{SELECT put('one more', 1)}),
	'f', 'one more is refused');
ok(!$node->log_contains('deadlock detected'), 'no deadlock in the log');

$node->stop;
done_testing();
