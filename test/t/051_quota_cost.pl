# What a quota costs: as much at 100,000 entries as at 100; nothing where there
# is none.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf(
	'postgresql.conf', q{
shared_preload_libraries = 'pg_stat_statements'
pg_stat_statements.track = all
autovacuum = off
});
$node->start;

# The calls and the statements below them, how often each, in a database that
# has a version of the extension.
sub statements
{
	my ($version) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE v$version");
	$node->safe_psql("v$version", qq{
		CREATE EXTENSION pg_stat_statements;
		CREATE EXTENSION extension_storage VERSION '1.$version' CASCADE});
	return $node->safe_psql(
		"v$version", q{
		SET extension_storage.encryption_keys = 'a secret';
		SELECT pg_stat_statements_reset() \g /dev/null
		SELECT ext_storage_set('acme.app', 'k', 'x') \g /dev/null
		SELECT ext_storage_set('acme.app', 'k', 'y', if_version => 1) \g /dev/null
		SELECT ext_storage_set('acme.app', 'k', 'z', user_fk => 1, is_encrypted => true) \g /dev/null
		SELECT ext_storage_set('acme.app', 'k', 'z', user_fk => 1) \g /dev/null
		SELECT ext_storage_set_json('acme.app', 'j', '{}', resource_type => 'chart', resource_uuid => 'c') \g /dev/null
		SELECT ext_storage_get('acme.app', 'k', 1) \g /dev/null
		SELECT ext_storage_list('acme.app') \g /dev/null
		SELECT ext_storage_delete('acme.app', 'k') \g /dev/null
		SELECT ext_storage_delete('acme.app', 'no such key') \g /dev/null
		SELECT calls, query FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
		WHERE datname = current_database() AND query !~ 'pg_stat_statements'
		ORDER BY query COLLATE "C"});
}

my $before = statements(0);
like($before, qr/INSERT INTO public\.extension_storage/, 'statements are seen');
is(statements(1), $before, 'without a quota, the same statements as in 1.0');

# The buffers of one overwrite, in a session that has its plans; the least of
# some, as a page is pruned now and then.
sub buffers
{
	my ($quota) = @_;
	my $explain = q{EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF)
		SELECT ext_storage_set('acme.app', 'k50', 'new value', 'text/plain');};
	my @runs = $node->safe_psql('v1',
		"SET extension_storage.quota_per_extension = '$quota';" . $explain x 12) =~
	  /Result .*\n\s+Buffers: shared (.*)/g;

	is(scalar(@runs), 12, 'every run tells its buffers');
	my @buffers = sort { $a <=> $b }
	  map { my $sum = 0; $sum += $1 while /(?:hit|read)=(\d+)/g; $sum } @runs;
	return $buffers[0];
}

my %cost;
my $entries = 0;
for my $n (100, 100_000)
{
	$node->safe_psql(
		'v1', qq{
		ALTER TABLE extension_storage DISABLE TRIGGER ALL;
		INSERT INTO extension_storage (extension_id, key, value, value_size)
		SELECT 'acme.app', 'k' || i, 'value', 5 FROM generate_series($entries + 1, $n) i;
		VACUUM ANALYZE extension_storage});
	$entries = $n;
	my $without = buffers(0);
	my $with = buffers('1GB');
	is( $node->safe_psql('v1', q{SELECT value_bytes = (SELECT sum(value_size)
			FROM extension_storage WHERE extension_id = 'acme.app')
			FROM extension_storage_usage WHERE extension_id = 'acme.app'}),
		't', "$n entries: they are counted");
	note("$n entries: $without buffers without a quota, $with with one");
	$cost{$n} = $with - $without;
}
cmp_ok($cost{100}, '>', 0, 'the cost of a quota is seen');
cmp_ok($cost{100_000}, '<=', $cost{100},
	'a quota costs no more buffers at 100,000 entries than at 100');

# A purge and the start of a count read the table; a write never does.
my ($scans) = $node->safe_psql(
	'v1', q{SET extension_storage.quota_per_extension = '1GB';
	SELECT ext_storage_set('acme.app', 'warm', 'x') \g /dev/null
	BEGIN;
	SELECT ext_storage_set('acme.app', 'new' || i, 'x') FROM generate_series(1, 50) i \g /dev/null
	SELECT ext_storage_set('acme.app', 'new' || i, 'xyz') FROM generate_series(1, 50) i \g /dev/null
	SELECT ext_storage_delete('acme.app', 'new' || i) FROM generate_series(1, 50) i \g /dev/null
	SELECT sum(seq_scan) FROM pg_stat_xact_user_tables WHERE relname ~ '^extension_storage';
	COMMIT});
is($scans, 0, 'no sequential scan');

# A statement that writes many extensions.
my $many = q{SELECT count(*), count(*) FILTER (WHERE u.value_bytes = octet_length(e.value))
	FROM extension_storage_usage u LEFT JOIN extension_storage e USING (extension_id)
	WHERE extension_id LIKE 'many.%' AND u.value_bytes <> 0;};
is( $node->safe_psql(
		'v1', qq{
		INSERT INTO extension_storage (extension_id, key, value)
		SELECT 'many.' || i, 'k', repeat('x', 1 + i % 90)::bytea FROM generate_series(1, 20000) i;
		$many
		DELETE FROM extension_storage WHERE extension_id LIKE 'many.%';
		$many}),
	"20000|20000\n0|0",
	'20,000 extensions in one statement are counted');

$node->stop;
done_testing();
