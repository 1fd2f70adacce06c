# A table whose ids no longer fit an integer: how they are widened, that all
# goes on, also a rotation that commits, and how a dump of it is restored.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
my $dump = $node->basedir . '/dump';
$node->init(extra => [ '-E', 'UTF8', '--no-locale' ]);
$node->start;
$node->safe_psql('postgres', 'CREATE ROLE app_owner LOGIN; CREATE DATABASE source OWNER app_owner');

my $widen = 'ALTER TABLE ext_storage.extension_storage ALTER COLUMN id TYPE bigint';
my $old = q{SET extension_storage.encryption_keys = 'old'};
my $both = q{SET extension_storage.encryption_keys = 'new,old'};
my $new = q{SET extension_storage.encryption_keys = 'new'};

# What the owner of the database, who is no superuser, gets from a statement.
sub answer
{
	my ($database, $sql) = @_;
	my ($rc, $out, $err) = $node->psql($database, "SET search_path = ext_storage, public; $sql",
		extra_params => [ '-U', 'app_owner' ]);
	die "in $database: $err" if $rc != 0;
	return $out;
}

answer('source', "CREATE SCHEMA ext_storage; CREATE EXTENSION extension_storage SCHEMA ext_storage CASCADE;
	$old; SELECT count(ext_storage_set('acme.app', 'k' || i, convert_to('value ' || i, 'UTF8'),
		is_encrypted => i % 2 = 0)) FROM generate_series(1, 20) i");
answer('source', q{SELECT setval('extension_storage_id_seq', 2147483647)});
my ($rc, $out, $err) = $node->psql('source', q{SELECT ext_storage.ext_storage_set('acme.app', 'more', 'x')});
like($err, qr/^psql:.*ERROR:  nextval: reached maximum value .*\nHINT:  Widen the ids: ALTER TABLE .* ALTER COLUMN id TYPE bigint/m,
	'there are no more ids, and the hint says what to do');

answer('source', $widen);
is( answer('source', "$old; SELECT count(ext_storage_set('acme.app', 'k' || i,
		convert_to('value ' || i, 'UTF8'), is_encrypted => i % 2 = 0)) FROM generate_series(1, 60) i"),
	60, 'the owner of the database widens them, and entries can be made again');
is(answer('source', 'SELECT min(id), max(id) FROM extension_storage WHERE id > 2147483647'),
	'2147483648|2147483687', 'with ids beyond an integer');

# -- a rotation in batches, each committed --

is(answer('source', "$both; SELECT role, entries, removable FROM ext_storage_key_status()"),
	"encrypts|0|f\ndecrypts|30|f\nunknown|0|", 'key_status sees them all');
is(answer('source', "$both; CALL ext_storage_rotate_keys(batch_size => 7)"), '30|30|0|0',
	'and so does a rotation');
is(answer('source', "$both; SELECT role, entries, removable FROM ext_storage_key_status()"),
	"encrypts|30|f\ndecrypts|0|t\nunknown|0|", 'the old key is removable');
my $read = qq{$new; SELECT count(*) FROM generate_series(1, 60) i
	WHERE ext_storage_get('acme.app', 'k' || i) = convert_to('value ' || i, 'UTF8')};
is(answer('source', $read), 60, 'indeed, all is read without it');

# -- dump and restore, by the section --

my $rows = q{SELECT count(*), max(id), md5(string_agg(e::text, '|' ORDER BY id)) FROM extension_storage e};
my $before = answer('source', $rows);
$node->command_ok([ 'pg_dump', '-U', 'app_owner', '-F', 'custom', '-f', $dump, 'source' ], 'it can be dumped');

$node->safe_psql('postgres', 'CREATE DATABASE narrow OWNER app_owner');
$node->command_fails_like([ 'pg_restore', '-U', 'app_owner', '--exit-on-error', '-d', 'narrow', $dump ],
	qr/"2147483648" is out of range for type integer/,
	'a dump does not know that the ids were widened, and says so where it is restored');

$node->safe_psql('postgres', 'CREATE DATABASE target OWNER app_owner');
my @restore = ('pg_restore', '-U', 'app_owner', '--exit-on-error', '-d', 'target');
$node->command_ok([ @restore, '--section=pre-data', $dump ], 'restore: what comes before the data,');
answer('target', $widen);
$node->command_ok([ @restore, '--section=data', '--section=post-data', $dump ], 'then, after they are widened, the rest');
is(answer('target', $rows), $before, 'every row is there');
is(answer('target', $read), 60, 'and can be read');
is( answer('target', q{SELECT version FROM ext_storage_set('acme.app', 'next', 'x');
		SELECT max(id) FROM extension_storage}),
	"1\n2147483688", 'the id sequence goes on');
is(answer('target', q{SELECT ext_storage_purge_extension('acme.app')}), 61, 'all can be purged');

$node->stop;
done_testing();
