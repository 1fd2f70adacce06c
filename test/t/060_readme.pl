# Every statement in the README runs, in the order in which it stands there.

use strict;
use warnings FATAL => 'all';

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $readme = slurp_file("$FindBin::Bin/../../README.md");
my @blocks = $readme =~ /^```sql\n(.*?)^```$/msg;
my @runbook = $readme =~ /`((?:CALL|SELECT)[^`]*;)`/g;
my $node = PostgreSQL::Test::Cluster->new('main');
my $file = $node->basedir . '/keys';

append_to_file($file, "a secret\n");
chmod 0600, $file or die "chmod $file: $!";
$node->init;
$node->append_conf('postgresql.conf',
	"shared_preload_libraries = 'extension_storage'\n"
	  . "extension_storage.encryption_keys_file = '$file'");
$node->start;
$node->safe_psql('postgres', q{
	CREATE ROLE superset; CREATE ROLE old_owner; CREATE ROLE new_owner;
	CREATE TABLE ab_user (id integer PRIMARY KEY);
	CREATE TABLE dashboards (id integer PRIMARY KEY, uuid uuid);
	CREATE TABLE slices (id integer PRIMARY KEY, uuid uuid);
});

cmp_ok(@blocks, '>=', 5, 'the README has blocks of SQL');
is(@runbook, 3, 'and three statements in its runbook');
for my $number (0 .. $#blocks)
{
	my ($status, undef, $errors) =
	  $node->psql('postgres', $blocks[$number], on_error_stop => 1);
	is($status, 0, "block " . ($number + 1) . " runs") or diag $errors;
}
for my $statement (@runbook)
{
	my ($status, undef, $errors) = $node->psql('postgres', $statement);
	is($status, 0, "$statement") or diag $errors;
}
is( $node->safe_psql(
		'postgres', q{SELECT count(*) FROM ext_storage.ext_storage_list('acme.notes')}),
	2, 'what the tour leaves is there: n1 is deleted again');

$node->stop;
done_testing();
