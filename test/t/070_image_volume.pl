# The layout of an image volume, as Kubernetes mounts one for CloudNativePG:
# share/extension and lib below a folder of any name, which is not the server's.
# PostgreSQL 18 and later find an extension there; before, only the layout is
# tested.

use strict;
use warnings FATAL => 'all';

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
my $volume = $node->basedir . '/volume';
my $mounted = $node->basedir . '/extensions/extension-storage';
my $source = "$FindBin::Bin/../..";
my $build = "$PostgreSQL::Test::Utils::tmp_check/..";
my $control = slurp_file("$source/extension_storage.control");
my ($version) = $control =~ /^default_version = '(.*)'$/m;
my $pg_config = $ENV{PG_CONFIG} // 'pg_config';

command_ok(
	[
		'make', '-s', '-C', $build, '-f', "$source/Makefile",
		"PG_CONFIG=$pg_config", 'with_llvm=no', 'install',
		"prefix=$volume"
	],
	'make install prefix=');
is( join("\n", sort map { s{^\Q$volume\E/}{}r } glob("$volume/*/* $volume/*/*/*")),
	join("\n", sort 'lib/extension_storage.so', 'share/extension',
		map { "share/extension/$_" } 'extension_storage.control',
		map { s{.*/}{}r } glob("$source/extension_storage--*.sql")),
	'the layout of an image volume');

# The path of a mounted volume is not that of the build.
mkdir $node->basedir . '/extensions' or die "mkdir: $!";
rename $volume, $mounted or die "rename: $!";

my $keys = $node->basedir . '/keys';
append_to_file($keys, "a secret\n");
chmod 0600, $keys or die "chmod $keys: $!";
$node->init;

SKIP:
{
	my ($major) = `$pg_config --version` =~ /^PostgreSQL ([0-9]+)/;

	if ($major < 18)
	{
		$node->start;
		is($node->safe_psql('postgres',
				q{SELECT count(*) FROM pg_settings WHERE name = 'extension_control_path'}),
			0, "PostgreSQL $major has no path for extensions");
		last SKIP;
	}
	$node->append_conf('postgresql.conf', <<"END_CONF");
extension_control_path = '\$system:$mounted/share'
dynamic_library_path = '\$libdir:$mounted/lib'
shared_preload_libraries = 'extension_storage'
extension_storage.encryption_keys_file = '$keys'
END_CONF
	# what the build's own settings say of another folder
	$node->append_conf('postgresql.conf', "extension_destdir = ''")
	  if `postgres --describe-config` =~ /^extension_destdir\t/m;
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION extension_storage CASCADE');
	$node->safe_psql('postgres',
		q{SELECT ext_storage_set('acme.app', 'k', 'value', is_encrypted => true)});
	is($node->safe_psql('postgres',
			q{SELECT convert_from(ext_storage_get('acme.app', 'k'), 'UTF8')}),
		'value', 'an encrypted entry comes back');
	is($node->safe_psql('postgres',
			q{SELECT module_name, version, file_name FROM pg_get_loaded_modules()
			  WHERE file_name = 'extension_storage.so'}),
		"extension_storage|$version|extension_storage.so",
		'the server names the module and its version');
	is($node->safe_psql('postgres',
			q{SELECT installed FROM pg_available_extension_versions
			  WHERE name = 'extension_storage' AND version = '} . "$version'"),
		't', 'and shows it among the installed extensions');
}
$node->stop;

done_testing();
