# Installing beside a table extension_storage of another origin: the error says
# what is there and what to do, and doing that works.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->start;
$node->safe_psql('postgres', 'CREATE TABLE extension_storage (superset text);
	INSERT INTO extension_storage VALUES (\'stays\')');

my ($rc, $out, $err) =
  $node->psql('postgres', 'CREATE EXTENSION extension_storage CASCADE');
isnt($rc, 0, 'it is not installed over the other table');
like($err, qr/ERROR:  schema public has a table extension_storage that does not belong to this extension/,
	'the error says what is there');
like($err, qr/HINT:  .*CREATE EXTENSION extension_storage SCHEMA/, 'the hint says what to do');

$node->safe_psql('postgres', 'CREATE SCHEMA ext_storage;
	CREATE EXTENSION extension_storage SCHEMA ext_storage CASCADE');
is( $node->safe_psql('postgres', q{
		SELECT (ext_storage.ext_storage_set('acme.app', 'k', 'x')).version;
		SELECT count(*) FROM ext_storage.extension_storage;
		SELECT superset FROM public.extension_storage}),
	"1\n1\nstays", 'in a schema of its own it works beside the other one');

$node->stop;
done_testing();
