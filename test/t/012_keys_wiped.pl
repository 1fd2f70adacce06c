# No key, nothing that is made of a key, and no plaintext of ours stays in a
# backend's memory: not where pgcrypto and the server have freed it, either.
#
# A library that is loaded before the server searches the memory of a session, when that
# opens a file of a certain name: also within the statement of a call, when nothing
# has yet used again what the call has freed, or its stack.

use strict;
use warnings FATAL => 'all';

use Digest::SHA qw(sha256);
use MIME::Base64 qw(encode_base64url);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

# What the server has of a large value is in mappings of its own, which are gone
# when it is freed; a piece of it in our hands is not.
$ENV{MALLOC_MMAP_THRESHOLD_} = 100_000;

# AES that fails, as long as a file is there: no other way makes pgcrypto raise
# an error while it has a key in its hands.
my $folder = PostgreSQL::Test::Utils::tempdir();
my $fails = "$folder/aes_fails";
my ($wanted, $report) = ("$folder/wanted", "$folder/report");
append_to_file("$folder/preloaded.c", <<'END');
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char maps[1 << 20];
static char wanted[1 << 16];

/* Reads a file, of which more than fits would be an error of this test. */
static void
slurp(const char *name, char *text, size_t size)
{
	int			file = open(name, O_RDONLY);
	size_t		len = 0;
	ssize_t		n;

	while ((n = read(file, text + len, size - 1 - len)) > 0)
		len += n;
	if (file < 0 || n < 0 || len == size - 1)
		abort();
	close(file);
	text[len] = '\0';
}

/*
 * Counts the byte strings of the file of what is wanted, in all private memory
 * that can be written.  They are written there as hex digits, so that neither
 * they nor this search are found.
 */
static void
search(void)
{
	int			file = open(getenv("SEARCH_REPORT"), O_WRONLY | O_CREAT | O_TRUNC, 0600);

	slurp("/proc/self/maps", maps, sizeof(maps));
	slurp(getenv("SEARCH_WANTED"), wanted, sizeof(wanted));
	for (char *hex = wanted; *hex != '\0'; hex = strchr(hex, '\n') + 1)
	{
		size_t		len = strcspn(hex, "\n") / 2;
		unsigned char inverted[len];
		long		count = 0;
		uint64_t	searched = 0;
		int			name_len = 0;
		char	   *name = "";

		for (size_t i = 0; i < len; i++)
		{
			char		digits[3] = {hex[2 * i], hex[2 * i + 1]};

			inverted[i] = ~strtoul(digits, NULL, 16);
		}
		for (char *map = maps; *map != '\0'; map = strchr(map, '\n') + 1)
		{
			char	   *end;
			unsigned char *at = (unsigned char *) strtoul(map, &end, 16);
			unsigned char *last = (unsigned char *) strtoul(end + 1, &end, 16);

			/* of a sanitizer's mappings, the large ones are no memory */
			if (strncmp(end, " rw", 3) != 0 || end[4] != 'p' || last - at > 1 << 30)
				continue;
			searched += last - at;
			for (; at + len <= last; at++)
			{
				size_t		i = 0;

				while (i < len && at[i] == (unsigned char) ~inverted[i])
					i++;
				if (i < len)
					continue;
				count++;
				name_len = strcspn(end, "\n");
				name = end;
			}
		}
		dprintf(file, "%ld %" PRIu64 "%.*s\n", count, searched, name_len, name);
	}
	close(file);
}

typedef FILE *(*Open) (const char *, const char *);

#define OPEN(function) \
	FILE * \
	function(const char *name, const char *mode) \
	{ \
		if (strcmp(name, getenv("SEARCH_REPORT")) == 0) \
			search(); \
		return ((Open) dlsym(RTLD_NEXT, #function)) (name, mode); \
	}

OPEN(fopen)
OPEN(fopen64)

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
system_or_bail('cc', '-O2', '-shared', '-fPIC', '-o', "$folder/preloaded.so", "$folder/preloaded.c", '-ldl');
$ENV{AES_FAILS} = $fails;
$ENV{SEARCH_WANTED} = $wanted;
$ENV{SEARCH_REPORT} = $report;
my $node = PostgreSQL::Test::Cluster->new('main');
my $file = $node->basedir . '/keys';
my ($nsearches, $nbytes) = (0, 0);

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

# Changes the keys of the file, and waits until new sessions and those given know.
sub change_keys
{
	my ($sessions, @keys) = @_;
	my $now = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
	my $loaded = "SELECT pg_conf_load_time() > '$now'";

	write_keys(@keys);
	$node->reload;
	$node->poll_query_until('postgres', $loaded) or die 'no reload';
	for my $session (@$sessions)
	{
		sleep 0.05 until $session->query($loaded) eq 't';
	}
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

# How often a session's memory holds each of some byte strings; none that it does
# not hold.  Searched at once or, where there is a call, within its statement.
sub count_in_memory
{
	my ($session, $call, %strings) = @_;
	my @names = sort keys %strings;
	my %held;

	unlink $wanted;
	append_to_file($wanted, join '', map { unpack('H*', $strings{$_}) . "\n" } @names);
	my $sql = $call // 'SELECT @';
	$sql =~ s/\@/pg_read_file('$report')/ or die "no place for the search: $call";
	my @lines = split /\n/, $session->query($sql) =~ s/^.*\|//r;
	@lines == @names or die "no report: @lines $session->{stderr}";
	$nsearches++;
	for my $i (0 .. $#names)
	{
		my ($count, $searched, $where) = $lines[$i] =~ /^(\d+) (\d+)(.*)$/ or die "no count: $lines[$i]";

		$nbytes += $searched;
		note("$names[$i]: $count, the last in$where") if $count > 0;
		$held{ $names[$i] } = $count if $count > 0;
	}
	return %held;
}

sub memory_holds
{
	my ($session, %strings) = @_;
	my %held = count_in_memory($session, undef, %strings);

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
	local $ENV{LD_PRELOAD} = join ' ', grep { defined } $ENV{LD_PRELOAD}, "$folder/preloaded.so";
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

change_keys([$stayed], $secrets[1], $secrets[0]);
is($stayed->query($read), 'value', 'it reads with two keys');
$node->safe_psql('postgres', 'CALL ext_storage_rotate_keys()');
change_keys([$stayed], $secrets[1]);
is($stayed->query($read), 'value', 'and with the second one');
is(secret_in_memory($stayed, $secrets[0]), '',
	'the key that was taken out of the file is wiped');

# A file with a line that cannot be used: what was read is wiped as well.
change_keys([], $secrets[0], '"no end');
my $failed = $node->background_psql('postgres', on_error_stop => 0);
$failed->query($read);
like($failed->{stderr}, qr/ERROR:  line 2 of encryption key file/, 'a file is refused');
$failed->{stderr} = '';
is(secret_in_memory($failed, $secrets[0]), '', 'and nothing of it stays in memory');
$failed->quit;
change_keys([], $secrets[1]);

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
		my %held = count_in_memory($session, undef, text => $found);
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

change_keys([], $old);
$node->safe_psql(
	'postgres', qq{
	DELETE FROM extension_storage;
	SELECT count(ext_storage_set('acme.app', 'key' || i, '$small', is_encrypted => true))
		FROM generate_series(1, 200) i;
	SELECT ext_storage_set('acme.app', 'large', convert_to($large, 'UTF8'), is_encrypted => true);
	SELECT ext_storage_set('acme.app', 'damaged', 'damaged', is_encrypted => true);
	UPDATE extension_storage SET value = set_byte(value, 60, 65 + get_byte(value, 60) % 2)
		WHERE key = 'damaged';
	CREATE TABLE toasted AS SELECT convert_to($large, 'UTF8') AS value LIMIT 0;
	ALTER TABLE toasted ALTER COLUMN value SET STORAGE EXTERNAL;
	INSERT INTO toasted SELECT convert_to($large, 'UTF8');
	SELECT ext_storage_set('acme.app', 'plain', '$small');
	SELECT ext_storage_set('acme.app', 'plain large', convert_to($large, 'UTF8'))});

# Name, statement, its result, and the statement that does the same without
# encryption, if it has to do with a plaintext.  @ is the place for a search.
my @paths = (
	[ 'get', q{SELECT length(ext_storage_get('acme.app', 'key1')), @}, qr/^74$/,
		q{SELECT length(ext_storage_get('acme.app', 'plain')), @} ],
	[ 'get of a large value',
		q{SELECT length(ext_storage_get('acme.app', 'large') || ''), @}, qr/^222000$/,
		q{SELECT length(ext_storage_get('acme.app', 'plain large') || ''), @} ],
	[ 'get_entry',
		q{SELECT length(value), @ FROM ext_storage_get_entry('acme.app', 'key1')}, qr/^74$/,
		q{SELECT length(value), @ FROM ext_storage_get_entry('acme.app', 'plain')} ],
	[ 'set', qq{SELECT version, \@ FROM ext_storage_set('acme.app', 'key1', '$small')}, qr/^[2-9]$/,
		qq{SELECT version, \@ FROM ext_storage_set('acme.app', 'plain', '$small')} ],
	[ 'set of a large value',
		qq{SELECT version, \@ FROM ext_storage_set('acme.app', 'large', convert_to($large, 'UTF8'))},
		qr/^[2-9]$/,
		qq{SELECT version, \@ FROM ext_storage_set('acme.app', 'plain large', convert_to($large, 'UTF8'))} ],
	[ 'set of a value in TOAST',
		q{SELECT version, @ FROM toasted, ext_storage_set('acme.app', 'large', value)}, qr/^[2-9]$/,
		q{SELECT version, @ FROM toasted, ext_storage_set('acme.app', 'plain large', value)} ],
	[ 'verify', q{SELECT count(*), @ FROM ext_storage_verify()}, qr/^1$/ ],
	[ 'key status',
		q{SELECT string_agg(entries::text, '|' ORDER BY ordinal), @ FROM ext_storage_key_status()},
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
		qq{SELECT count(fernet_encrypt('$small', '$key')), \@ FROM generate_series(1, 3)}, qr/^3$/ ],
	[ 'fernet_decrypt',
		qq{SELECT count(fernet_decrypt(convert_from(value, 'UTF8'), '$key')), \@
			FROM extension_storage WHERE key = 'key1'}, qr/^1$/ ],
	[ 'fernet_decrypt of a damaged token',
		qq{SELECT fernet_decrypt(convert_from(value, 'UTF8'), '$key')
			FROM extension_storage WHERE key = 'damaged'}, qr/^$/ ],
	[ 'fernet_derive_key', qq{SELECT length(fernet_derive_key('$old')), \@}, qr/^44$/ ]);

sub plaintext_copies
{
	my ($session, $call) = @_;
	my %held = count_in_memory($session, $call, plaintext => $small);

	return $held{plaintext} // 0;
}

for my $path (@paths)
{
	my ($name, $sql, $result, $plain_sql) = @$path;

	change_keys([], $old);
	my ($encrypted, $plain, $first) =
	  map { $node->background_psql('postgres', on_error_stop => 0) } 1 .. 3;

	if ($sql =~ s/, \@//)
	{
		# A session's first call makes its keys, too.  The fernet_* functions keep
		# theirs, and a cipher with half of it, as long as the statement runs.
		my %during = count_in_memory($first, $path->[1], %traces);
		my %after = count_in_memory($first, undef, %traces);

		if ($name =~ /^fernet_(?:en|de)crypt/)
		{
			$after{$_}++ for keys %traces;
			$after{'encrypting half'}++;
		}
		is( join(' ', map { "$_: $during{$_}" } grep { $during{$_} > ($after{$_} // 0) } sort keys %during),
			'', "$name: within the statement, no copy of the key but those that are kept");
	}
	like($encrypted->query($sql), $result, $name);
	if (defined $plain_sql)
	{
		$plain->query($plain_sql =~ s/, \@//r);
		my ($copies, $plain_copies) =
		  (plaintext_copies($encrypted, $path->[1]), plaintext_copies($plain, $plain_sql));
		cmp_ok($copies, '<=', $plain_copies,
			"$name: within the statement, no more copies of the plaintext than without encryption");
		note("$name: $copies copies of the plaintext within the statement, $plain_copies without encryption");
		($copies, $plain_copies) = map { plaintext_copies($_) } $encrypted, $plain;
		cmp_ok($copies, '<=', $plain_copies, "$name: nor after it");
	}
	change_keys([$encrypted], $secrets[1]);
	$encrypted->query('SELECT count(*) FROM ext_storage_key_status()');
	is(memory_holds($encrypted, text => $old, %traces), '', "$name: nothing of the key is left");
	$_->quit for $encrypted, $plain, $first;
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

	change_keys([], $old);
	my ($encrypted, $plain) =
	  map { $node->background_psql('postgres', on_error_stop => 0) } 1, 2;

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
	change_keys([$encrypted], $secrets[1]);
	$encrypted->query('SELECT count(*) FROM ext_storage_key_status()');
	is(memory_holds($encrypted, %traces), '', "$name: nothing of the key is left by a failure");
	$_->quit for $encrypted, $plain;
}

# A rotation has both keys, and every plaintext.  So has one that moves entries in.
$node->safe_psql('postgres', q{
	CREATE TABLE first AS SELECT id, uuid, extension_id, user_fk, resource_type, resource_uuid, key, category,
		description, value, value_type, is_encrypted, created_on, changed_on, created_by_fk, changed_by_fk
		FROM extension_storage WHERE key = 'key1';
	DELETE FROM extension_storage WHERE key = 'key1'});
for ([ 'moving in', q{CALL ext_storage_move_in('first')}, qr/^1\|1\|0\|0\|0\|0$/ ],
	[ 'rotation', 'CALL ext_storage_rotate_keys()', qr/^202\|201\|0\|1$/ ])
{
	my ($name, $call, $result) = @$_;

	change_keys([], $secrets[1], $old);
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	like($session->query($call), $result, $name);
	change_keys([$session], $secrets[1]);
	is($session->query(q{SELECT count(*) FROM ext_storage_key_status()}), '2',
		"$name: the old key is out of use");
	is(memory_holds($session, text => $old, %traces, plaintext => $small), '',
		"$name: nothing of the old key and of a plaintext is left");
	$session->quit;
}

$node->stop;
note("$nsearches searches of $nbytes bytes");
done_testing();
