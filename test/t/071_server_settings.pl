# Settings of the server whose defaults differ between versions: JIT, compression,
# the meaning of a backslash in a string.  All answers are the same.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
my $keys = $node->basedir . '/keys';

append_to_file($keys, "a secret\n");
chmod 0600, $keys or die "chmod $keys: $!";
$node->init;
$node->append_conf('postgresql.conf',
	"extension_storage.encryption_keys_file = '$keys'");
$node->start;

my $major = int($node->pg_version->major);
my $pg_config = $ENV{PG_CONFIG} // 'pg_config';
my $has_llvm = `$pg_config --configure` =~ /--with-llvm/;
my %default = map { $_ => $node->safe_psql('postgres', "SHOW $_") }
  qw(jit default_toast_compression standard_conforming_strings);

is( "$default{jit} $default{default_toast_compression}",
	$major >= 19 ? 'off lz4' : 'on pglz',
	"the defaults of PostgreSQL $major");
is($default{standard_conforming_strings}, 'on', 'and of all versions');

my $use = q{
	SELECT convert_to(repeat(E'a\\\\b''c"d ', 5000), 'UTF8') AS value \gset
	SELECT version FROM ext_storage_set('acme.app', E'k\\\\1''', :'value'::bytea,
		description => E'back\\\\slash ''quoted''');
	SELECT version FROM ext_storage_set('acme.app', 'secret', :'value'::bytea, is_encrypted => true);
	SELECT ext_storage_attach_users(E'odd."user \\\\ ''s"');
	SELECT key, md5(ext_storage_get(extension_id, key)) = md5(:'value'::bytea), description
	FROM ext_storage_list('acme.app'), (SELECT 'acme.app' AS extension_id) x;
	SELECT entries, value_bytes FROM ext_storage_usage();
	CALL ext_storage_rotate_keys();
	SELECT count(*) FROM ext_storage_verify();
	DELETE FROM odd."user \\ 's";
	SELECT ext_storage_detach(E'odd."user \\\\ ''s"');
	SELECT ext_storage_purge_extension('acme.app')};

my @variants = (
	'jit = off',
	'jit = on; SET jit_above_cost = 0; SET jit_inline_above_cost = 0',
	'default_toast_compression = pglz',
	'default_toast_compression = lz4',
	'standard_conforming_strings = on');
push @variants, 'standard_conforming_strings = off' if $major < 19;

my $expected;
for my $variant (@variants)
{
	$node->safe_psql('postgres', 'DROP DATABASE IF EXISTS app');
	$node->safe_psql('postgres', 'CREATE DATABASE app');
	$node->safe_psql('app', q{
		CREATE EXTENSION extension_storage CASCADE;
		CREATE SCHEMA odd;
		CREATE TABLE odd."user \ 's" (id integer PRIMARY KEY)});
	if ($variant =~ /^jit = on/ && $has_llvm)
	{
		like($node->safe_psql('app', "SET $variant; EXPLAIN (ANALYZE) SELECT sum(n) FROM generate_series(1, 9) n"),
			qr/^JIT:/m, 'queries are compiled');
	}
	my ($rc, $out, $err) = $node->psql('app', "SET $variant;\n$use");
	is($rc, 0, "$variant: all statements run") or diag($err);
	$expected //= $out;
	is($out, $expected, "$variant: the answers");
}
like($expected, qr/^k\\1'\|t\|back\\slash 'quoted'$/m, 'which are right');

if ($major >= 19)
{
	my ($rc, $out, $err) =
	  $node->psql('postgres', 'SET standard_conforming_strings = off');
	isnt($rc, 0, 'standard_conforming_strings is always on');
}

# compressed as the server says, and counted as it was given
$node->safe_psql('postgres', 'CREATE EXTENSION extension_storage CASCADE');
for my $method ('pglz', 'lz4')
{
	$node->safe_psql('postgres', qq{
		SET default_toast_compression = $method;
		SELECT ext_storage_set('acme.$method', 'k', convert_to(repeat('text ', 20000), 'UTF8'))});
	is( $node->safe_psql('postgres', qq{
			SELECT pg_column_compression(value), octet_length(value), value_size
			FROM extension_storage WHERE extension_id = 'acme.$method'}),
		"$method|100000|100000", "a value compressed by $method");
}
$node->stop;

done_testing();
