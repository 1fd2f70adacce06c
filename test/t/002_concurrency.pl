# Eight clients on the same keys: one row a key, every write counted.

use strict;
use warnings FATAL => 'all';

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 8;
my $keys = 50;
my $node = PostgreSQL::Test::Cluster->new('main');
$node->init(extra => [ '-E', 'UTF8', '--no-locale' ]);
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION extension_storage CASCADE');

# Each client sets all keys, new to all of them, in each scope.  They start
# together: each waits for a lock that is let go when all do.
my %scopes = (
	'global' => '',
	'user' => ', user_fk => 7',
	'shared resource' => q{, resource_type => 'chart', resource_uuid => '9'},
	'private resource' =>
	  q{, user_fk => 7, resource_type => 'chart', resource_uuid => '9'});
my $start = $node->background_psql('postgres');
$start->query('SELECT pg_advisory_lock(1)');

my $script = $node->basedir . '/set.sql';
append_to_file($script, "SELECT pg_advisory_lock_shared(1);\n");
foreach my $key (1 .. $keys)
{
	append_to_file($script, <<"END") foreach sort values %scopes;
SELECT ext_storage_set('acme.app', 'k$key', convert_to(:client_id::text, 'UTF8')$_);
END
}
my ($out, $err) = ('', '');
my $bench = IPC::Run::start(
	[
		$node->installed_command('pgbench'), '-n', '-c', $clients, '-t', 1,
		'-f', $script, '-h', $node->host, '-p', $node->port, 'postgres'
	],
	'>', \$out, '2>', \$err);
$node->poll_query_until('postgres', qq{SELECT count(*) = $clients
	FROM pg_locks WHERE locktype = 'advisory' AND NOT granted})
  or die 'the clients do not wait';
$start->quit;
ok($bench->finish, 'all clients set all keys') or diag($err);
foreach my $scope (sort keys %scopes)
{
	my ($user, $resource) = ($scopes{$scope} =~ /user/ ? 'NOT' : '',
		$scopes{$scope} =~ /resource/ ? 'NOT' : '');
	is( $node->safe_psql(
			'postgres', qq{
			SELECT count(*), count(DISTINCT key), min(version), max(version)
			FROM extension_storage
			WHERE user_fk IS $user NULL AND resource_uuid IS $resource NULL}),
		"$keys|$keys|$clients|$clients",
		"$scope: one row a key, every version counted");
}

# A counter, from no entry on: read, add one, write if nobody else has.
$node->safe_psql(
	'postgres', q{
	CREATE TABLE retries (n integer);
	CREATE PROCEDURE increment() LANGUAGE plpgsql AS $$
	DECLARE
		found record;
		n integer := 0;
	BEGIN
		LOOP
			SELECT max(version) AS version, max(convert_from(value, 'UTF8')) AS value
			INTO found FROM ext_storage_get_entry('acme.app', 'counter');
			BEGIN
				PERFORM ext_storage_set('acme.app', 'counter',
					convert_to((coalesce(found.value, '0')::integer + 1)::text, 'UTF8'),
					if_version => coalesce(found.version, 0));
				EXIT;
			EXCEPTION WHEN SQLSTATE 'ES004' THEN
				n := n + 1;
			END;
		END LOOP;
		INSERT INTO retries VALUES (n);
	END $$});
$node->pgbench(
	"-n -c $clients -t 500",
	0, [qr{processed: 4000/4000}], [qr/^$/],
	'eight clients count to 500 each',
	{ '002_counter' => 'CALL increment();' });
is( $node->safe_psql('postgres',
		q{SELECT convert_from(value, 'UTF8'), version FROM extension_storage
		WHERE key = 'counter'}),
	'4000|4000',
	'the counter says 4000');
my $retries = $node->safe_psql('postgres', 'SELECT sum(n) FROM retries');
cmp_ok($retries, '>', 0, 'they were in each other\'s way');
note("$retries retries");

# Two writers of the same 50 keys in opposite order, also of deletions: no deadlock,
# and no write is lost.
$node->safe_psql('postgres', 'DELETE FROM extension_storage');
my $set_many = q{SELECT FROM ext_storage_set_many('acme.many', ARRAY(SELECT 'k' || i FROM generate_series(1, 50) i
	ORDER BY i * (1 - 2 * (:client_id % 2))), array_fill('x'::bytea, ARRAY[50]));};
$node->pgbench('-n -c 2 -t 1000', 0, [qr{processed: 2000/2000}], [qr/^$/],
	'two clients set the same keys in opposite order', { '002_set_many' => $set_many });
is( $node->safe_psql('postgres', 'SELECT count(*), min(version), max(version) FROM extension_storage'),
	'50|2000|2000', 'each write is there');
$node->pgbench(
	'-n -c 4 -t 200', 0, [qr{processed: 800/800}], [qr/^$/],
	'beside others that delete them',
	{
		'002_set_many_again' => $set_many,
		'002_delete_many' => q{SELECT FROM ext_storage_delete_many('acme.many',
			ARRAY(SELECT 'k' || i FROM generate_series(1, 50) i ORDER BY i * (1 - 2 * (:client_id % 2))));}
	});
is($node->safe_psql('postgres', 'SELECT sum(deadlocks) FROM pg_stat_database'), '0', 'without a deadlock');

$node->stop;
done_testing();
