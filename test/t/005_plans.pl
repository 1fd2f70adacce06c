# What statements read, in a scope of 100,000 entries of 4 kB of random bytes:
# a list a page of the index and its rows, nothing of the values; a rotation
# the rows it writes by their primary key.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init(extra => [ '-E', 'UTF8', '--no-locale' ]);
$node->append_conf(
	'postgresql.conf', q{
	wal_level = minimal
	max_wal_senders = 0
	max_wal_size = 2GB
	autovacuum = off});
$node->start;

# In one transaction with the table, so that PostgreSQL need not log it all;
# in random order, so that a page of keys is not a page of the table.
$node->safe_psql(
	'postgres', q{
	BEGIN;
	CREATE EXTENSION extension_storage CASCADE;
	INSERT INTO extension_storage (extension_id, key, category, value, value_size)
	SELECT 'acme.app', 'k' || lpad(i::text, 6, '0'), 'c' || i % 10,
		gen_random_bytes(1024) || gen_random_bytes(1024) ||
		gen_random_bytes(1024) || gen_random_bytes(1024), 4096
	FROM generate_series(1, 100000) i ORDER BY hashint4(i);
	COMMIT;
	VACUUM ANALYZE extension_storage});
is( $node->safe_psql('postgres',
		q{SELECT min(pg_column_size(value)) FROM extension_storage}),
	4096,
	'no value could be compressed');

my $toast = q{SELECT toast_blks_read + toast_blks_hit + tidx_blks_read + tidx_blks_hit
	FROM pg_statio_user_tables WHERE relname = 'extension_storage'};
my $explain = q{
	LOAD 'auto_explain';
	SET auto_explain.log_min_duration = 0;
	SET auto_explain.log_nested_statements = on;
	SET auto_explain.log_analyze = on;
	SET auto_explain.log_buffers = on;
	SET auto_explain.log_timing = off;
};

# Runs a query in a session of its own.  Returns its result, the plan of the
# statement behind it that starts with a word, the buffers that the statement
# touched, and those of TOAST.
sub read_by
{
	my ($sql, $word) = @_;
	my $offset = -s $node->logfile;
	my $toast_before = $node->safe_psql('postgres', $toast);
	my $result = $node->safe_psql('postgres', "$explain $sql");
	my $toast_after = $node->safe_psql('postgres', $toast);
	my ($plan) =
	  slurp_file($node->logfile, $offset) =~
	  /Query Text: (?:\/\* [^*]+\*\/ )?$word (?:(?!Query Text).)*public\.extension_storage AS e.*\n((?:\t.*\n)+)/
	  or die 'no plan in the log';
	my ($hit, $read) =
	  $plan =~ /Buffers: shared(?: hit=(\d+))?(?: read=(\d+))?/;
	return ($result, $plan, ($hit // 0) + ($read // 0),
		$toast_after - $toast_before);
}

my $by_key = 'uq_extension_storage_scoped_key';
foreach my $case (
	[ 'the first page', '', 'k000001|k000025', $by_key ],
	[ 'a page of 100', ', page_size => 100', 'k000001|k000100', $by_key, 100 ],
	[ 'the next page by key', q{, after_key => 'k000025'}, 'k000026|k000050', $by_key ],
	[ 'a page far inside', q{, after_key => 'k099000'}, 'k099001|k099025', $by_key ],
	[ 'a page of a prefix', q{, key_prefix => 'k0500'}, 'k050000|k050024', $by_key ],
	[ 'a page of a category', q{, category => 'c5'}, 'k000005|k000245',
		'ix_extension_storage_category' ])
{
	my ($name, $arguments, $expected, $index, $page_size) = @$case;
	my ($result, $plan, $buffers, $toast_blocks) = read_by(
		"SELECT min(key), max(key) FROM ext_storage_list('acme.app'$arguments)",
		'SELECT');
	is($result, $expected, "$name: the right keys");
	like($plan, qr/Index Scan using $index on extension_storage e/,
		"$name: by the index");
	unlike($plan, qr/Sort|Seq Scan|Bitmap|Filter: .*key/, "$name: no sort")
	  or diag($plan);
	cmp_ok($buffers, '<=', ($page_size // 25) + 10,
		"$name: the buffers of a page");
	is($toast_blocks, 0, "$name: no TOAST");
	note("$name: $buffers buffers\n$plan");
}

# The newest change first.
foreach my $case (
	[ 'the newest page', '' ],
	[ 'the newest page with values', '', 'ext_storage_list_values', ', newest_first => true, max_bytes => 1' ],
	[ 'a newest page after a cursor', q{, after_changed_on => now()::timestamp, after_key => 'k050000'} ])
{
	my ($name, $arguments, $function, $more) = @$case;
	$function //= 'ext_storage_list_newest';
	$more //= '';
	my ($result, $plan, $buffers) = read_by(
		"SELECT count(*) > 0 FROM $function('acme.app'$arguments$more)", 'SELECT');
	is($result, 't', "$name: there are entries");
	like($plan, qr/Index Scan Backward using ix_extension_storage_changed on extension_storage e/,
		"$name: by the index");
	unlike($plan, qr/Sort|Seq Scan|Bitmap/, "$name: no sort") or diag($plan);
	cmp_ok($buffers, '<=', 100, "$name: the buffers of a page");
	note("$name: $buffers buffers\n$plan");
}

# Several keys at once: each by the index.
my ($many, $many_plan) = read_by(
	q{SELECT count(*) FROM ext_storage_get_many('acme.app', ARRAY['k000001', 'k000002', 'k000003'])}, 'SELECT');
is($many, 3, 'several keys are found');
like($many_plan, qr/Index Scan using $by_key on extension_storage e/, 'each by the index');
unlike($many_plan, qr/Seq Scan|Hash Join|Merge Join/, 'and no other row is read');

# The same measure sees what a get reads.
my ($result, $plan, $buffers, $toast_blocks) =
  read_by(q{SELECT length(ext_storage_get('acme.app', 'k050000') || '')}, 'SELECT');
is($result, 4096, 'a get returns a value');
cmp_ok($toast_blocks, '>', 0, 'and is seen to read TOAST');

# Statements that were planned while the table was empty find a key by its own
# index, too, when it is not.
$node->safe_psql('postgres', 'CREATE DATABASE empty');
$node->safe_psql('empty', 'CREATE EXTENSION extension_storage CASCADE');
my $offset = -s $node->logfile;
$node->safe_psql(
	'empty', q{
	SELECT ext_storage_get('acme.app', 'k1'), ext_storage_delete('acme.app', 'k1');
	SELECT ext_storage_set('acme.app', 'k1', 'x'), ext_storage_rename('acme.app', 'k2', 'k3');
	SELECT count(*) FROM ext_storage_get_many('acme.app', ARRAY['k1']);
	INSERT INTO extension_storage (extension_id, key, value)
	SELECT 'acme.app', 'k' || i, 'x' FROM generate_series(2, 1000) i;
	LOAD 'auto_explain';
	SET auto_explain.log_min_duration = 0;
	SET auto_explain.log_nested_statements = on;
	SELECT ext_storage_get('acme.app', 'k5');
	SELECT ext_storage_set('acme.app', 'k5', 'y');
	SELECT ext_storage_rename('acme.app', 'k6', 'six');
	SELECT ext_storage_delete('acme.app', 'k7');
	SELECT count(*) FROM ext_storage_get_many('acme.app', ARRAY['k8', 'k9'])});
my @by = slurp_file($node->logfile, $offset) =~ /Index Scan(?: Backward)? using (\w+) on extension_storage e/g;
cmp_ok(scalar(@by), '>=', 5, 'plans of an empty table are seen');
is(join(' ', grep { $_ ne $by_key } @by), '', 'and all go by the key');
my ($many_of_empty) = slurp_file($node->logfile, $offset) =~ /.*(Function Scan on unnest k .*)/s;
like($many_of_empty, qr/Index Cond: .*\bkey\)?(?:::text)? = \(?k\.key\b/,
	'of several keys, each is searched for');

# So it is of several that are written, each found by its id.
$offset = -s $node->logfile;
$node->safe_psql(
	'empty', q{
	TRUNCATE extension_storage;
	SELECT count(*) FROM ext_storage_set_many('acme.app', ARRAY['k1', 'k2'], ARRAY['x', 'x']::bytea[]);
	SELECT count(*) FROM ext_storage_set_many('acme.app', ARRAY['k1', 'k2'], ARRAY['y', 'y']::bytea[]);
	INSERT INTO extension_storage (extension_id, key, value)
	SELECT 'acme.app', 'k' || i, 'x' FROM generate_series(3, 1000) i;
	LOAD 'auto_explain';
	SET auto_explain.log_min_duration = 0;
	SET auto_explain.log_nested_statements = on;
	SELECT count(*) FROM ext_storage_set_many('acme.app', ARRAY['k8', 'k9'], ARRAY['y', 'y']::bytea[])});
my ($locks, $writes) = slurp_file($node->logfile, $offset) =~ /(LockRows .*?) LOG: .*(Update on extension_storage .*)/s;
like($locks, qr/Index Cond: .*\bkey\)?(?:::text)? = \(?k\.key\b/, 'several keys are locked one by one');
like($writes, qr/Index Scan using extension_storage_pkey on [^\n]*\n\s*Index Cond: \(id = ANY \(\$7\)\)\n(?!\s*Filter)/,
	'and written by id');

# Whatever is in a batch, each row is found by itself.
$offset = -s $node->logfile;
$node->safe_psql(
	'postgres', q{LOAD 'extension_storage';
	SET extension_storage.encryption_keys = 'old';
	SELECT ext_storage_set('acme.app', 'e' || i, 'x', is_encrypted => true)
	FROM generate_series(1, 100) i});
($result, $plan, $buffers) = read_by(
	q{LOAD 'extension_storage';
	SET client_min_messages = warning;
	SET extension_storage.encryption_keys = 'new,old';
	CALL ext_storage_rotate_keys()}, 'UPDATE');
is($result, '100|100|0|0', 'a rotation among entries that are not encrypted');
# The index on encrypted entries has the id too, and may be cheaper while it is small.
like(
	$plan,
	qr/Index\ Scan\ using\ (?:extension_storage_pkey|ix_extension_storage_encrypted)\ on\ .*\n
		\s*Index\ Cond:\ .*\bid\ =\ ANY\ \(\$2\)/x,
	'writes by id');
my ($rows) = $plan =~ /actual rows=(\d+)/;
cmp_ok($buffers / $rows, '<=', 20, 'and reads no other row');
note($plan);
like(
	slurp_file($node->logfile, $offset),
	qr/Index\ Scan\ using\ ix_extension_storage_encrypted\ on\ .*\n
		\s*Index\ Cond:\ .*extension_id.*\ =\ \$1\)\ AND\ \(id\ >=\ \$2\)\ AND\ \(id\ <=\ \$3\)\)\n
		(?!\s*Filter)/x,
	'and walks by the index on encrypted entries');

$node->stop;
done_testing();
