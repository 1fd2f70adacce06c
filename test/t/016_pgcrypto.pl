# Encryption goes through pgcrypto's own functions, wherever the extension
# pgcrypto is and whatever it is set to; the library calls no cryptographic
# library, and no SQL function that somebody could replace.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf',
	"extension_storage.secret_key = 'secret'\nlog_statement = none");
$node->start;

# In a schema of its own, with functions of the same names in front of it.
$node->safe_psql(
	'postgres', q{
	CREATE SCHEMA "odd ""schema";
	CREATE EXTENSION pgcrypto SCHEMA "odd ""schema";
	CREATE EXTENSION extension_storage;
	CREATE FUNCTION encrypt_iv(bytea, bytea, bytea, text) RETURNS bytea LANGUAGE sql AS 'SELECT $1';
	CREATE FUNCTION decrypt_iv(bytea, bytea, bytea, text) RETURNS bytea LANGUAGE sql AS 'SELECT $1';
	CREATE FUNCTION hmac(bytea, bytea, text) RETURNS bytea LANGUAGE sql AS 'SELECT $2'});

my $round_trip = q{
	SELECT version > 0 FROM ext_storage_set('acme.app', 'k', 'the value', is_encrypted => true);
	SELECT convert_from(ext_storage_get('acme.app', 'k'), 'UTF8'),
		(SELECT position('the value'::bytea IN value) FROM extension_storage WHERE key = 'k')};
is($node->safe_psql('postgres', $round_trip), "t\nthe value|0",
	'values are encrypted with pgcrypto in an odd schema');
$node->safe_psql(
	'postgres', q{
	CREATE SCHEMA another;
	ALTER EXTENSION pgcrypto SET SCHEMA another});
is($node->safe_psql('postgres', $round_trip), "t\nthe value|0",
	'and after it has moved');

# What is mapped into a backend, before it encrypts and afterwards.
my $session = $node->background_psql('postgres');
my $libraries = q{SELECT DISTINCT substring(map FROM '\S+/(\S+)\.so\S*$')
	FROM regexp_split_to_table(pg_read_file('/proc/self/maps', 0, 1000000), E'\n') map
	WHERE map ~ '/(pgcrypto|extension_storage)\.so' ORDER BY 1};
$session->query(q{SELECT ext_storage_count('acme.app')});
is($session->query($libraries), 'extension_storage', 'pgcrypto is not loaded until it is needed');
$session->query($round_trip);
is($session->query($libraries), "extension_storage\npgcrypto", 'and then it is');
my $library = $session->query(q{SELECT DISTINCT substring(map FROM '\S+/extension_storage\.so$')
	FROM regexp_split_to_table(pg_read_file('/proc/self/maps', 0, 1000000), E'\n') map
	WHERE map ~ '/extension_storage\.so'});
$session->quit;

# What the library is linked with, and what it calls.
my ($dynamic) = run_command([ 'readelf', '-d', $library ]);
is(join(' ', sort grep { !/^lib[au]b?san/ } $dynamic =~ /\(NEEDED\).*\[(.*)\]/g),
	'libc.so.6 libuuid.so.1',
	'the library is linked with libuuid and libc alone');
my ($undefined) = run_command([ 'nm', '-D', '--undefined-only', $library ]);
like($undefined, qr/ pg_hmac_create$/m, 'it calls the functions of the server');
unlike($undefined, qr/ (EVP|HMAC|SHA|AES|CRYPTO|RAND|OPENSSL|ERR|SSL)_/,
	'and none of a cryptographic library');

# PostgreSQL 18 can switch the ciphers off that pgcrypto has of its own; AES is
# not among them.
my $setting = 'pgcrypto.builtin_crypto_enabled';
my $has_setting = $node->safe_psql('postgres',
	"LOAD 'pgcrypto'; SELECT count(*) FROM pg_settings WHERE name = '$setting'");
is($has_setting, $node->pg_version >= '18devel' ? 1 : 0, "$setting is there from 18 on");
for my $value ($has_setting ? qw(on off fips) : ())
{
	$node->append_conf('postgresql.conf', "$setting = $value");
	$node->reload;
	is($node->safe_psql('postgres', "LOAD 'pgcrypto'; SHOW $setting; $round_trip"),
		"$value\nt\nthe value|0", "encryption with $setting = $value");
}

# What a cipher gives is not taken on trust: a rotation keeps a token until the
# new one decrypts to the same value.
my $folder = PostgreSQL::Test::Utils::tempdir;
append_to_file("$folder/fault.c", qq{
	#define _GNU_SOURCE
	#include <dlfcn.h>
	#include <string.h>
	#include <unistd.h>
	int
	EVP_EncryptUpdate(void *ctx, unsigned char *out, int *outlen, const unsigned char *in, int inlen)
	{
		int			(*next) (void *, unsigned char *, int *, const unsigned char *, int) = dlsym(RTLD_NEXT, "EVP_EncryptUpdate");
		int			done = next(ctx, out, outlen, in, inlen);
		Dl_info		caller;

		if (dladdr(__builtin_return_address(0), &caller) == 0 || strstr(caller.dli_fname, "pgcrypto") == NULL)
			return done;
		if (access("$folder/flips", F_OK) == 0)
			out[0] ^= 1;
		return access("$folder/fails", F_OK) == 0 ? 0 : done;
	}
});
system_or_bail('cc', '-O2', '-shared', '-fPIC', '-o', "$folder/fault.so", "$folder/fault.c", '-ldl');
{
	local $ENV{LD_PRELOAD} = join ' ', grep { defined } $ENV{LD_PRELOAD}, "$folder/fault.so";
	$node->restart;
}
$node->safe_psql('postgres', q{DELETE FROM extension_storage; SET extension_storage.encryption_keys = 'old';
	SELECT ext_storage_set('acme.app', 'k', convert_to(repeat('v', 100), 'UTF8'), is_encrypted => true)});
my $token = $node->safe_psql('postgres', 'SELECT value FROM extension_storage');
my $rotate = q{SET client_min_messages = error; SET extension_storage.encryption_keys = 'new,old'; CALL ext_storage_rotate_keys()};
foreach my $fault ([ 'flips', qr/ERROR:  new token of key "k" .* does not decrypt to the old value/ ],
	[ 'fails', qr/ERROR:  encrypt_iv error/ ])
{
	my ($name, $expected) = @$fault;
	append_to_file("$folder/$name", '');
	my ($rc, $out, $err) = $node->psql('postgres', $rotate);
	like($err, $expected, "a cipher that $name stops a rotation");
	is($node->safe_psql('postgres', 'SELECT value FROM extension_storage'), $token, 'and the old token stays');
	unlink "$folder/$name";
}
is($node->safe_psql('postgres', "$rotate; SELECT convert_from(ext_storage_get('acme.app', 'k'), 'UTF8') = repeat('v', 100)"),
	"1|1|0|0\nt", 'later it goes on');

$node->stop;
done_testing();
