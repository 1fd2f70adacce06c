# Keys in a file: a new key by reload, rotation, the old key's end, and a key
# file that is not to be trusted.

use strict;
use warnings FATAL => 'all';

use File::Path qw(rmtree);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
my $file = $node->basedir . '/keys';

sub write_keys
{
	unlink $file;
	append_to_file($file, join('', map { "$_\n" } @_));
	chmod 0600, $file or die "chmod $file: $!";
}

# What a new session answers, or the SQLSTATE of its error.
sub answer
{
	my ($sql) = @_;
	my ($rc, $out, $err) =
	  $node->psql('postgres', $sql, extra_params => [ '-v', 'VERBOSITY=verbose' ]);

	return $rc == 0 ? $out : $err =~ /ERROR:  (\w{5}):/ ? $1 : $err;
}

my $read = q{SELECT convert_from(ext_storage_get('acme.app', 'k1'), 'UTF8')};
my $write = q{SELECT version FROM ext_storage_set('acme.app', 'k9', 'x',
	'text/plain', is_encrypted => true)};
my $rows = q{SELECT string_agg(concat_ws(' ', key, version, changed_on,
	fernet_timestamp(convert_from(value, 'UTF8'))), ',' ORDER BY id)
	FROM extension_storage WHERE is_encrypted};
my $status = q{SELECT string_agg(concat_ws(' ', role, entries, removable), ','
	ORDER BY ordinal) FROM ext_storage_key_status()};

write_keys('old-secret');
$node->init;
$node->append_conf('postgresql.conf',
	"extension_storage.encryption_keys_file = '$file'");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION extension_storage CASCADE');
$node->safe_psql(
	'postgres', q{
	SELECT ext_storage_set('acme.app', 'k' || i,
		convert_to('secret ' || i, 'UTF8'), 'text/plain', is_encrypted => true)
	FROM generate_series(1, 3) i;
	SELECT ext_storage_set('acme.app', 'plain', 'x', 'text/plain')});

is(answer($read), 'secret 1', 'an encrypted value reads');
is(answer($status), 'encrypts 3 f,unknown 0', 'one key has them all');

my $session = $node->background_psql('postgres');
is($session->query($read), 'secret 1', 'a session that stays reads too');

my $rows_before = answer($rows);
write_keys('new-secret', 'old-secret');
$node->reload;
$node->poll_query_until('postgres',
	q{SELECT count(*) = 3 FROM ext_storage_key_status()})
  or die 'the key file was not read again';
is(answer($status), 'encrypts 0 f,decrypts 3 f,unknown 0',
	'after the reload the new key encrypts, the old one is needed');

my ($rc, $out, $err) = $node->psql('postgres', 'CALL ext_storage_rotate_keys()');
is($out, '3|3|0|0', 'the rotation returns its counts');
like(
	$err,
	qr/rotate_keys: 3 scanned, 3 re-encrypted, 0 already current, 0 failed$/,
	'and says them last');
is(answer($rows), $rows_before,
	'versions, times and the tokens\' timestamps are as before');
is(answer($status), 'encrypts 3 f,decrypts 0 t,unknown 0',
	'the old key may go');

write_keys('new-secret');
$node->reload;
is(answer($read), 'secret 1', 'a new session reads with the new key alone');
is($session->query($read), 'secret 1',
	'the session that stayed has taken the keys of both reloads');
$session->quit;

write_keys('another-secret');
$node->reload;
is(answer($read), 'ES001', 'another key is an error, no missing value');
is(answer($status), 'encrypts 0 f,unknown 3',
	'the entries that no key reads are counted');

write_keys('new-secret');
chmod 0644, $file or die "chmod $file: $!";
$node->reload;
unlike(answer($read), qr/secret/, 'a file open to others is not used to read');
unlike(answer($write), qr/^\d$/, 'nor to write');

unlink $file;
$node->reload;
unlike(answer($read), qr/secret/, 'nor does a missing file give a value');
unlike(answer($write), qr/^\d$/, 'or store one');
is(answer(q{SELECT count(*) FROM extension_storage WHERE key = 'k9'}),
	0, 'nothing was stored');

# ---------------------------------------------------------------------------
# A volume of Kubernetes: the folder that a link leads to is replaced while
# sessions read.  Each state of the file has the key.  The folders before stay
# until no session can be on its way into one.

my $volume = $node->basedir . '/volume';
my $states = 0;

sub swap_volume
{
	my @keys = @_;
	my $folder = '..state_' . ++$states;

	mkdir $volume;
	mkdir "$volume/$folder" or die "mkdir: $!";
	append_to_file("$volume/$folder/keys", join '', map { "$_\n" } @keys);
	chmod 0440, "$volume/$folder/keys" or die "chmod: $!";
	symlink $folder, "$volume/..tmp" or die "symlink: $!";
	rename "$volume/..tmp", "$volume/..data" or die "rename: $!";
}

swap_volume('new-secret');
symlink '..data/keys', "$volume/keys" or die "symlink: $!";
$node->adjust_conf('postgresql.conf', 'extension_storage.encryption_keys_file',
	"'$volume/keys'");
$node->reload;
my $sources = q{SELECT string_agg(role || ' ' || split_part(source, ', ', 2), '; ' ORDER BY ordinal)
	FROM ext_storage_configured_keys()};
is(answer($sources), 'encrypts line 1', 'the file of a volume is read');
$session = $node->background_psql('postgres', on_error_stop => 0);
is($session->query($read), 'secret 1', 'an open session has its key');

my $script = $node->basedir . '/read.sql';
append_to_file($script, "$read;\n");
my ($reads, $read_errors) = ('', '');
my $readers = IPC::Run::start(
	[ 'pgbench', '-n', '-c', '3', '-t', '2000', '-f', $script,
		$node->connstr('postgres') ],
	'>', \$reads, '2>', \$read_errors);
my $swaps = 0;
while ($readers->pumpable || $swaps < 20)
{
	swap_volume($swaps++ % 2 ? 'new-secret' : ("other $swaps", 'new-secret'));
	$node->reload;
	$readers->pump_nb if $readers->pumpable;
}
ok($readers->finish, "no read fails while the file is replaced $swaps times")
  or diag($read_errors);
like($reads, qr{actually processed: 6000/6000$}m, 'and all are made');
swap_volume('newest-secret', 'other', 'new-secret');
rmtree(map { "$volume/..state_$_" } 1 .. $states - 1);
$node->reload;
is(answer($sources), 'encrypts line 1; decrypts line 2; decrypts line 3',
	'a new session has the last state');
ok(answers($session, $sources, qr/^encrypts line 1; decrypts line 2; decrypts line 3$/),
	'and so has the one that is open');
$session->quit;

# What an open session answers, once it has heard of a reload.
sub answers
{
	my ($session, $sql, $expected) = @_;

	for (1 .. 600)
	{
		my $out = $session->query($sql);
		my $err = $session->{stderr};
		$session->{stderr} = '';
		return 1 if ($out eq '' ? $err : $out) =~ $expected;
		select undef, undef, undef, 0.1;
	}
	return 0;
}

# ---------------------------------------------------------------------------
# A file that is named on the server's command line: a reload assigns no setting
# then, but the file may be another one all the same.

$node->adjust_conf('postgresql.conf', 'extension_storage.encryption_keys_file',
	undef, 1);
$node->stop;
write_keys('new-secret');
system_or_bail('pg_ctl', '-w', '-D', $node->data_dir, '-l', $node->logfile,
	'-o', "--cluster-name=main -c extension_storage.encryption_keys_file=$file", 'start');
$node->_update_pid(1);
$session = $node->background_psql('postgres', on_error_stop => 0);
is($session->query($read), 'secret 1', 'a file of the command line is read');
write_keys('another-secret');
is($session->query($read), 'secret 1', 'once');
$node->reload;
ok(answers($session, $read, qr/ERROR:  value of key "k1" .* cannot be decrypted/),
	'an open session does not go on with the old file after a reload');
$session->quit;

$node->stop;
done_testing();
