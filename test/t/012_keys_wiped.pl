# No key, nothing that is made of a key, and no plaintext of ours stays in a
# backend's memory: not where pgcrypto and the server have freed it, either.
#
# A session reads its own memory through /proc/self/mem, so nothing but the
# rights of a superuser is needed.

use strict;
use warnings FATAL => 'all';
no warnings 'portable';    # addresses have 64 bits

use Digest::SHA qw(sha256);
use MIME::Base64 qw(encode_base64url);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# What the server has of a large value is in mappings of its own, which are gone
# when it is freed; a piece of it in our hands is not.
$ENV{MALLOC_MMAP_THRESHOLD_} = 100_000;

# AES that fails, as long as a file is there: no other way makes pgcrypto raise
# an error while it has a key in its hands.
my $fails = PostgreSQL::Test::Utils::tempdir() . '/aes_fails';
my $failing = PostgreSQL::Test::Utils::tempdir() . '/failing';
append_to_file("$failing.c", <<'END');
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int (*Update) (void *, unsigned char *, int *, const unsigned char *, int);

/* OpenSSL calls these for random bytes too; only pgcrypto is to fail. */
static int
update(const char *name, void *caller, void *context, unsigned char *out,
	   int *outlen, const unsigned char *in, int inlen)
{
	Dl_info		info;

	if (access(getenv("AES_FAILS"), F_OK) == 0 &&
		dladdr(caller, &info) != 0 && strstr(info.dli_fname, "pgcrypto") != NULL)
		return 0;
	return ((Update) dlsym(RTLD_NEXT, name)) (context, out, outlen, in, inlen);
}

int
EVP_EncryptUpdate(void *context, unsigned char *out, int *outlen,
				  const unsigned char *in, int inlen)
{
	return update("EVP_EncryptUpdate", __builtin_return_address(0), context, out,
				  outlen, in, inlen);
}

int
EVP_DecryptUpdate(void *context, unsigned char *out, int *outlen,
				  const unsigned char *in, int inlen)
{
	return update("EVP_DecryptUpdate", __builtin_return_address(0), context, out,
				  outlen, in, inlen);
}
END
system_or_bail('cc', '-shared', '-fPIC', '-o', "$failing.so", "$failing.c", '-ldl');
$ENV{AES_FAILS} = $fails;
my $node = PostgreSQL::Test::Cluster->new('main');
my $file = $node->basedir . '/keys';
my $dump = $node->basedir . '/memory';
my ($nsearches, $nmaps, $ngone, $nbytes) = (0, 0, 0, 0);

sub new_secret
{
	return sprintf '%s-secret-%08x%08x', $_[0], rand 2**32, rand 2**32;
}

my @secrets = map { new_secret($_) } qw(first second third fourth);

sub write_keys
{
	unlink $file;
	append_to_file($file, join '', map { "$_\n" } @_);
	chmod 0600, $file or die "chmod $file: $!";
}

# What HMAC keeps of a key, as SHA-256 holds it in memory: the state after the
# key and a padding.  It signs as well as the key does.
sub hmac_state
{
	my ($signing, $padding) = @_;
	my $block = ($signing . "\0" x 48) ^ ($padding x 64);
	my ($state) = Digest::SHA->new(256)->add($block)->getstate =~ /^H:(\S+)/m
	  or die 'no state';

	return pack 'L*', unpack 'N*', pack 'H*', $state =~ s/://gr;
}

# What gives a key away, in memory.
sub traces_of_key
{
	my ($key) = @_;

	return (
		'signing half' => substr($key, 0, 16),
		'encrypting half' => substr($key, 16),
		'HMAC state' => hmac_state(substr($key, 0, 16), "\x36"),
		'outer HMAC state' => hmac_state(substr($key, 0, 16), "\x5c"));
}

# How often a session's private memory holds each of some byte strings; none
# that it does not hold.
sub count_in_memory
{
	my ($session, %wanted) = @_;
	my %held;
	my $maps = $session->query("SELECT pg_read_file('/proc/self/maps', 0, 1000000)");

	$nsearches++;
	for my $map (split /\n/, $maps)
	{
		my ($from, $to, $mode, $name) =
		  $map =~ /^(\w+)-(\w+) (\S+) \S+ \S+ \S+ *(.*)$/
		  or die "no map: $map";

		next if $mode !~ /^rw.p/;
		my $start = hex $from;
		my $len = hex($to) - $start;
		unlink $dump;
		$session->query("SELECT encode(pg_read_binary_file('/proc/self/mem', $start, $len), 'hex') \\g $dump");
		# one that the query before this one had made for its result is gone
		if (!-s $dump)
		{
			$ngone++;
			next;
		}
		my $memory = pack 'H*', slurp_file($dump) =~ s/\s//gr;
		length $memory == $len or die "$len bytes of $map, not " . length $memory;
		$nmaps++;
		$nbytes += length $memory;
		for my $name (keys %wanted)
		{
			my $n = () = $memory =~ /\Q$wanted{$name}\E/gs;
			$held{$name} += $n if $n > 0;
		}
	}
	return %held;
}

sub memory_holds
{
	my %held = count_in_memory(@_);

	return join ', ', map { "$_: $held{$_}" } sort keys %held;
}

# The same of the traces of a secret's key, and of its text.
sub secret_in_memory
{
	my ($session, $secret) = @_;

	return memory_holds($session, text => $secret, traces_of_key(sha256($secret)));
}

my $read = q{SELECT convert_from(ext_storage_get('acme.app', 'k'), 'UTF8')};

write_keys($secrets[0]);
$node->init;
$node->append_conf('postgresql.conf',
	"extension_storage.encryption_keys_file = '$file'");
{
	local $ENV{LD_PRELOAD} = join ' ', grep { defined } $ENV{LD_PRELOAD}, "$failing.so";
	$node->start;
}
$node->safe_psql('postgres', 'CREATE EXTENSION extension_storage CASCADE');
$node->safe_psql('postgres',
	q{SELECT ext_storage_set('acme.app', 'k', 'value', is_encrypted => true)});

my $looked = $node->background_psql('postgres', on_error_stop => 0);
my $stayed = $node->background_psql('postgres', on_error_stop => 0);

is($_->query($read), "value", "a session reads with the first key")
  for $looked, $stayed;
like(secret_in_memory($looked, $secrets[0]),
	qr/HMAC state.*encrypting half.*outer HMAC state/,
	'the search finds the key that is in force');
unlike(secret_in_memory($looked, $secrets[0]), qr/text/,
	'the text of the key file is wiped once the keys are made');

write_keys($secrets[1], $secrets[0]);
$node->reload;
is($stayed->query($read), 'value', 'it reads with two keys');
$node->safe_psql('postgres', 'CALL ext_storage_rotate_keys()');
write_keys($secrets[1]);
$node->reload;
is($stayed->query($read), 'value', 'and with the second one');
is(secret_in_memory($stayed, $secrets[0]), '',
	'the key that was taken out of the file is wiped');

# A file with a line that cannot be used: what was read is wiped as well.
write_keys($secrets[0], '"no end');
$node->reload;
my $failed = $node->background_psql('postgres', on_error_stop => 0);
$failed->query($read);
like($failed->{stderr}, qr/ERROR:  line 2 of encryption key file/, 'a file is refused');
$failed->{stderr} = '';
is(secret_in_memory($failed, $secrets[0]), '', 'and nothing of it stays in memory');
$failed->quit;
write_keys($secrets[1]);
$node->reload;

# A key that was set: only its masked form outlives the statement.
my $set = $node->background_psql('postgres', on_error_stop => 0);
$set->query("SELECT ext_storage_count('acme.app')");
$set->query("SET extension_storage.encryption_keys = '$secrets[2]'");
$set->query(
	q{SELECT ext_storage_set('acme.app', 'k3', 'value', is_encrypted => true)});
$set->query('RESET extension_storage.encryption_keys');
is($set->query($read), 'value', 'a session resets the key that it had set');
unlike(secret_in_memory($set, $secrets[2]), qr/half|state/, 'which is then wiped');
$_->quit for $looked, $stayed, $set;

# The text of a setting, which no statement contains: a function makes it.
# PostgreSQL's own copies are in memory that the next statements use again.  The
# one that it keeps for the setting, of a size that is asked for seldom, stays
# where it is, also when it is freed: a setting of another name shows that it
# would be found.  The allocator writes into the start of what is freed.
my $text = $secrets[3] . join '', map { sprintf '%04d.', $_ } 1 .. 140;
my $found = substr $text, 32, 64;
my $backwards = reverse $text;
$node->safe_psql('postgres', q{CREATE DATABASE latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0});
for ([ 'postgres', 'other.setting' ],
	[ 'postgres', 'extension_storage.encryption_keys' ],
	[ 'postgres', 'extension_storage.secret_key' ],
	[ 'postgres', 'extension_storage.previous_secret_key' ],
	[ 'latin1', 'extension_storage.secret_key' ])
{
	my ($db, $setting) = @$_;
	my $is_secret = $setting ne 'other.setting';
	my @ways = ('set', 'set and reset');

	push @ways, 'refused' if $setting eq 'extension_storage.encryption_keys';
	for my $way (@ways)
	{
		my $value = ($way eq 'refused' ? '"' : '') . $backwards;
		my $session = $node->background_psql($db, on_error_stop => 0);

		$session->query("LOAD 'extension_storage'");
		$session->query("SELECT set_config('$setting', reverse('$value'), false)");
		is($session->{stderr} =~ /ERROR/ ? 1 : 0, $way eq 'refused' ? 1 : 0,
			"$setting in $db, $way");
		$session->{stderr} = '';
		$session->query("RESET $setting") if $way eq 'set and reset';
		for my $more (0 .. 39)
		{
			my $other = 'x' x (length($value) + $more);
			$session->query("SELECT length(reverse('$other')), length(reverse('$other') || '$other')");
		}
		my %held = count_in_memory($session, text => $found);
		is(defined $held{text} ? 'held' : 'wiped', $is_secret ? 'wiped' : 'held',
			$is_secret ? 'its text is wiped' : 'its text is found, as it is no secret');
		$session->quit;
	}
}

# Whatever a session has done with a key: once the key is replaced, nothing is
# left that was made of it.  And it has no more of a plaintext than if that had
# not been encrypted: what a statement is given and returns is the server's.
my $old = new_secret('old');
my $key = encode_base64url(sha256($old)) . '=';
my %traces = traces_of_key(sha256($old));
my $small = 'plaintext ' . unpack 'H*', sha256(new_secret('small'));
my $large = sprintf "repeat('%s', 3000)", $small;

write_keys($old);
$node->reload;
$node->safe_psql(
	'postgres', qq{
	DELETE FROM extension_storage;
	SELECT count(ext_storage_set('acme.app', 'key' || i, '$small', is_encrypted => true))
		FROM generate_series(1, 200) i;
	SELECT ext_storage_set('acme.app', 'large', convert_to($large, 'UTF8'), is_encrypted => true);
	SELECT ext_storage_set('acme.app', 'damaged', 'damaged', is_encrypted => true);
	UPDATE extension_storage SET value = set_byte(value, 60, 65 + get_byte(value, 60) % 2)
		WHERE key = 'damaged';
	SELECT ext_storage_set('acme.app', 'plain', '$small');
	SELECT ext_storage_set('acme.app', 'plain large', convert_to($large, 'UTF8'))});

# Name, statement, its result, and the statement that does the same without
# encryption, if it has to do with a plaintext.
my @paths = (
	[ 'get', q{SELECT length(ext_storage_get('acme.app', 'key1'))}, qr/^74$/,
		q{SELECT length(ext_storage_get('acme.app', 'plain'))} ],
	[ 'get of a large value',
		q{SELECT length(ext_storage_get('acme.app', 'large'))}, qr/^222000$/,
		q{SELECT length(ext_storage_get('acme.app', 'plain large'))} ],
	[ 'get_entry',
		q{SELECT length(value) FROM ext_storage_get_entry('acme.app', 'key1')}, qr/^74$/,
		q{SELECT length(value) FROM ext_storage_get_entry('acme.app', 'plain')} ],
	[ 'set', qq{SELECT version FROM ext_storage_set('acme.app', 'key1', '$small')}, qr/^[2-9]$/,
		qq{SELECT version FROM ext_storage_set('acme.app', 'plain', '$small')} ],
	[ 'set of a large value',
		qq{SELECT version FROM ext_storage_set('acme.app', 'large', convert_to($large, 'UTF8'))},
		qr/^[2-9]$/,
		qq{SELECT version FROM ext_storage_set('acme.app', 'plain large', convert_to($large, 'UTF8'))} ],
	[ 'verify', q{SELECT count(*) FROM ext_storage_verify()}, qr/^1$/ ],
	[ 'key status',
		q{SELECT string_agg(entries::text, '|' ORDER BY ordinal) FROM ext_storage_key_status()},
		qr/^201\|1$/ ],
	[ 'rotation with nothing to do', q{CALL ext_storage_rotate_keys()}, qr/^202\|0\|201\|1$/ ],
	[ 'error', q{SELECT ext_storage_get('acme.app', 'damaged')}, qr/^$/ ],
	[ 'error that is caught',
		q{DO $$
		BEGIN
			PERFORM ext_storage_get('acme.app', 'damaged');
		EXCEPTION WHEN SQLSTATE 'ES001' THEN
			PERFORM count(*) FROM ext_storage_verify();
		END $$}, qr/^$/ ],
	[ 'fernet_encrypt',
		qq{SELECT count(fernet_encrypt('$small', '$key')) FROM generate_series(1, 3)}, qr/^3$/ ],
	[ 'fernet_decrypt',
		qq{SELECT count(fernet_decrypt(convert_from(value, 'UTF8'), '$key'))
			FROM extension_storage WHERE key = 'key1'}, qr/^1$/ ],
	[ 'fernet_decrypt of a damaged token',
		qq{SELECT fernet_decrypt(convert_from(value, 'UTF8'), '$key')
			FROM extension_storage WHERE key = 'damaged'}, qr/^$/ ],
	[ 'fernet_derive_key', qq{SELECT length(fernet_derive_key('$old'))}, qr/^44$/ ]);

sub plaintext_copies
{
	my ($session) = @_;
	my %held = count_in_memory($session, plaintext => $small);

	return $held{plaintext} // 0;
}

for my $path (@paths)
{
	my ($name, $sql, $result, $plain_sql) = @$path;
	my ($encrypted, $plain) =
	  map { $node->background_psql('postgres', on_error_stop => 0) } 1, 2;

	write_keys($old);
	$node->reload;
	like($encrypted->query($sql), $result, $name);
	if (defined $plain_sql)
	{
		$plain->query($plain_sql);
		my ($copies, $plain_copies) = map { plaintext_copies($_) } $encrypted, $plain;
		cmp_ok($copies, '<=', $plain_copies,
			"$name: copies of the plaintext, as many as without encryption at most");
		note("$name: $copies copies of the plaintext, $plain_copies without encryption");
	}
	write_keys($secrets[1]);
	$node->reload;
	$encrypted->query('SELECT count(*) FROM ext_storage_key_status()');
	is(memory_holds($encrypted, text => $old, %traces), '', "$name: nothing of the key is left");
	$_->quit for $encrypted, $plain;
}

# pgcrypto's error is the one that is reported, wherever it comes, and has left
# nothing.
my @failing = (
	[ 'get', q{SELECT ext_storage_get('acme.app', 'key1')}, 'decrypt_iv error: Decryption failed' ],
	[ 'get of a large value', q{SELECT ext_storage_get('acme.app', 'large')},
		'decrypt_iv error: Decryption failed' ],
	[ 'set', qq{SELECT ext_storage_set('acme.app', 'key1', '$small')},
		'encrypt_iv error: Encryption failed',
		qq{SELECT version FROM ext_storage_set('acme.app', 'plain', '$small')} ],
	[ 'verify', q{SELECT * FROM ext_storage_verify()}, 'decrypt_iv error: Decryption failed' ],
	[ 'fernet_encrypt', qq{SELECT fernet_encrypt('message', '$key')},
		'encrypt_iv error: Encryption failed' ]);

for my $path (@failing)
{
	my ($name, $sql, $error, $plain_sql) = @$path;
	my ($encrypted, $plain) =
	  map { $node->background_psql('postgres', on_error_stop => 0) } 1, 2;

	write_keys($old);
	$node->reload;
	append_to_file($fails, 'now');
	$encrypted->query("\\set VERBOSITY sqlstate\n$sql");
	like($encrypted->{stderr}, qr/ERROR:  39000/, "$name fails");
	like(slurp_file($node->logfile), qr/ERROR:  \Q$error\E/, "$name: as pgcrypto says");
	if (defined $plain_sql)
	{
		$plain->query($plain_sql);
		cmp_ok(plaintext_copies($encrypted), '<=', plaintext_copies($plain),
			"$name: no copies of the plaintext are left by the failure");
	}
	unlink $fails or die "unlink $fails: $!";
	is($encrypted->query(q{SELECT convert_from(ext_storage_get('acme.app', 'key2'), 'UTF8')}),
		$small, "$name: the session goes on");
	write_keys($secrets[1]);
	$node->reload;
	$encrypted->query('SELECT count(*) FROM ext_storage_key_status()');
	is(memory_holds($encrypted, %traces), '', "$name: nothing of the key is left by a failure");
	$_->quit for $encrypted, $plain;
}

# A rotation has both keys, and every plaintext.
write_keys($secrets[1], $old);
$node->reload;
my $rotating = $node->background_psql('postgres', on_error_stop => 0);
like($rotating->query('CALL ext_storage_rotate_keys()'), qr/^202\|201\|0\|1$/, 'rotation');
write_keys($secrets[1]);
$node->reload;
is($rotating->query(q{SELECT entries FROM ext_storage_key_status() LIMIT 1}), '201',
	'the old key is out of use');
is(memory_holds($rotating, text => $old, %traces, plaintext => $small), '',
	'rotation: nothing of the old key and of a plaintext is left');
$rotating->quit;

$node->stop;
note("$nsearches searches of $nmaps mappings, $nbytes bytes; $ngone mappings were gone");
cmp_ok($ngone, '<=', 2 * $nsearches, 'what a search cannot read is few');
done_testing();
