# Where keys come from, and what happens when a source is broken: an error at
# the moment of use, never another source.

use strict;
use warnings FATAL => 'all';

use POSIX qw(mkfifo);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
my $file = $node->basedir . '/keys';

sub remove_file
{
	-d $file ? rmdir $file : unlink $file;
}

sub write_file
{
	my ($contents, $mode) = @_;
	remove_file();
	append_to_file($file, $contents);
	chmod $mode // 0600, $file or die "chmod $file: $!";
}

# The sessions of a test take their keys from the file alone, unless options
# say otherwise.
our $options = '';

# What a new session answers: its result, or SQLSTATE, message and detail.
sub answer
{
	my (@sql) = @_;
	local $ENV{PGOPTIONS} = $options;
	my ($rc, $out, $err) = $node->psql(
		'postgres', join(';', @sql),
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	$err =~ s/^psql:\S+ //mg;
	$err =~ s/\n(?:LOCATION|HINT): .*//g;
	return $rc == 0 ? $out : $err;
}

my $read = q{SELECT convert_from(ext_storage_get('acme.app', 'k'), 'UTF8')};
my $write = q{SELECT version FROM ext_storage_set('acme.app', 'new', 'x',
	'text/plain', is_encrypted => true)};

# A source that cannot be used: reads and writes fail and say why, also where
# another source could be used.
sub refused
{
	my ($pattern, $name) = @_;

	foreach my $sources ('', '-c extension_storage.secret_key=file-secret')
	{
		local $options = "$options $sources";
		like(answer($read), $pattern, "$name: read");
		like(answer($write), $pattern, "$name: write");
	}
	is(answer(q{SELECT ext_storage_get('acme.app', 'plain')}), '\x78',
		"$name: what is not encrypted needs no key");
}

write_file("file-secret\n");
$node->init(extra => [ '-E', 'UTF8', '--no-locale' ]);
$node->append_conf('postgresql.conf',
	"extension_storage.encryption_keys_file = '$file'");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION extension_storage CASCADE');
$node->safe_psql('postgres', q{
	SELECT ext_storage_set('acme.app', 'k', 'value', is_encrypted => true);
	SELECT ext_storage_set('acme.app', 'plain', 'x')});

# ---------------------------------------------------------------------------
# The file

is(answer($read), 'value', 'a file with one secret');
write_file("other\r\n\r\nfile-secret\r\n");
is(answer($read), 'value', 'lines that end in CR LF, and an empty one');
write_file("other\nfile-secret");
is(answer($read), 'value', 'a last line without an end');
write_file("file-secret \n");
is(answer($read) =~ /ES001/, 1, 'a blank is part of a secret');
write_file("file-secret\n", 0400);
is(answer($read), 'value', 'a file that its owner may only read');
write_file("file-secret\nother\nother\nfile-secret\n");
is(answer('SELECT count(*) FROM ext_storage_key_status()'),
	3, 'a secret that is there twice is one key');
write_file(join('', map { "key $_\n" } 1 .. 1000) . "file-secret\n");
is(answer($read), 'value', 'a thousand keys');

remove_file();
refused(qr/ERROR:  58P01: could not open encryption key file "\Q$file\E": No such file or directory$/,
	'missing');
write_file("file-secret\n", 0000);
refused(qr/ERROR:  42501: could not open encryption key file "\Q$file\E": Permission denied$/,
	'unreadable');
foreach my $mode (0640, 0620, 0610, 0604, 0602, 0601, 0644, 0660)
{
	write_file("file-secret\n", $mode);
	refused(qr/ERROR:  F0000: encryption key file "\Q$file\E" has group or world access/,
		sprintf('mode %04o', $mode));
}
remove_file();
mkdir $file or die "mkdir $file: $!";
refused(qr/ERROR:  F0000: encryption key file "\Q$file\E" is not a regular file$/,
	'a folder');
remove_file();
mkfifo($file, 0600) or die "mkfifo $file: $!";
refused(qr/ERROR:  F0000: encryption key file "\Q$file\E" is not a regular file$/,
	'a pipe');
write_file('');
refused(qr/ERROR:  F0000: encryption key file "\Q$file\E" contains no key$/,
	'empty');
write_file("\n\r\n\n");
refused(qr/ERROR:  F0000: encryption key file "\Q$file\E" contains no key$/,
	'nothing but line ends');
write_file("file-secret\nab\0cd\n");
refused(qr/ERROR:  F0000: line 2 of encryption key file "\Q$file\E" cannot be used\nDETAIL:  The line is no secret: it contains a NUL byte.$/,
	'NUL');
write_file("file-secret\n\n\xFF\xFE\n");
refused(qr/ERROR:  F0000: line 3 of encryption key file "\Q$file\E" cannot be used\nDETAIL:  The line is no secret: it is not valid UTF-8.$/,
	'not UTF-8');
write_file("\xEF\xBB\xBFfile-secret\n");
refused(qr/ERROR:  F0000: line 1 of encryption key file "\Q$file\E" cannot be used\nDETAIL:  The line is no secret: it starts with a byte order mark.$/,
	'byte order mark');
write_file("file-secret\n" . 'x' x (1024 * 1024 - 12));
is(answer($read), 'value', 'a file of the largest size');
write_file("file-secret\n" . 'x' x (1024 * 1024 - 11));
refused(qr/ERROR:  F0000: encryption key file "\Q$file\E" is larger than 1048576 bytes$/,
	'too large');

# ./dev makes the file of somebody else when root calls it: only root can.
SKIP:
{
	skip 'root alone can make a file of somebody else\'s', 5
	  unless $ENV{FOREIGN_KEY_FILE};
	symlink $ENV{FOREIGN_KEY_FILE}, "$file.foreign" or die "symlink: $!";
	remove_file();
	rename "$file.foreign", $file or die "rename: $!";
	refused(qr/ERROR:  F0000: encryption key file "\Q$file\E" must be owned by the database user or root$/,
		'of somebody else');
}

# A file of root that everybody can read
remove_file();
symlink '/etc/passwd', $file or die "symlink: $!";
refused(qr/ERROR:  F0000: encryption key file "\Q$file\E" has group or world access/,
	'root\'s, open to others');
remove_file();

# ---------------------------------------------------------------------------
# Which file, and when it is read

write_file("file-secret\n");
my $session = $node->background_psql('postgres', on_error_stop => 0);

# What the session answers once it has heard of a reload, which is a signal.
sub session_answers
{
	my ($sql, $expected) = @_;
	for (1 .. 100)
	{
		my $out = $session->query($sql);
		my $err = $session->{stderr};
		$session->{stderr} = '';
		return 1 if ($out eq '' ? $err : $out) =~ $expected;
		select(undef, undef, undef, 0.1);
	}
	return 0;
}
is($session->query($read), 'value', 'a session reads the file');
remove_file();
is($session->query($read), 'value', 'once: it may go');
$node->reload;
ok(session_answers($read, qr/ERROR:  could not open encryption key file/),
	'until the configuration is reloaded');
write_file("new-secret\nfile-secret\n");
$node->reload;
ok(session_answers($read, qr/^value$/),
	'a session goes on with the next file');
is($session->query('SELECT count(*) FROM ext_storage_key_status()'),
	3, 'and has all its keys, with no restart');
$session->quit;

foreach my $path ('keys', './keys', '../keys')
{
	$node->adjust_conf('postgresql.conf',
		'extension_storage.encryption_keys_file', "'$path'");
	$node->reload;
	refused(qr/ERROR:  F0000: path of encryption key file "\Q$path\E" is not absolute$/,
		"path $path");
}
$node->adjust_conf('postgresql.conf', 'extension_storage.encryption_keys_file',
	"'$file'");
$node->reload;

like(answer($read, "SET extension_storage.encryption_keys_file = '/etc/passwd'"),
	qr/ERROR:  55P02:/, 'a session cannot choose the file');
is( answer("SET extension_storage.encryption_keys_file = '/etc/passwd'",
		$read, 'SHOW extension_storage.encryption_keys_file'),
	"value\n$file",
	'nor can it before the library is loaded');
{
	local $options = '-c extension_storage.encryption_keys_file=/etc/passwd';
	like(answer($read), qr/WARNING:  55P02: .*ERROR:  ES002: /s,
		'nor when it connects: that leaves it without a key');
}

# ---------------------------------------------------------------------------
# The other sources

my $status = 'SELECT count(*) - 1 FROM ext_storage_key_status()';
write_file("file-secret\n");
{
	local $options = '-c extension_storage.encryption_keys=session-secret';
	is(answer($status), 1, 'a list at the connection is used');
	like(answer($read), qr/ES001/, 'instead of the file');
	like(answer(q{SET extension_storage.encryption_keys = ''}, $read),
		qr/^value$/, 'an empty list gives the file back');
	is(answer(q{SET extension_storage.encryption_keys = 'a,"file-secret",b'},
			$read, $status),
		"value\n3", 'SET replaces the list');
	remove_file();
	is(answer($status), 1, 'where there is a list, a broken file is no error');
	write_file("file-secret\n");
}
{
	local $options = '-c extension_storage.encryption_keys=file-secret,,b';
	refused(qr/ERROR:  22023: invalid value for parameter "extension_storage.encryption_keys"\nDETAIL:  Item 2 of the list cannot be used: it is empty.$/,
		'a broken list at the connection');
	is(answer(q{SET extension_storage.encryption_keys = 'file-secret'}, $read),
		'value', 'until it is put right');
	is(answer(q{SELECT ext_storage_delete('acme.app', 'none')}), 'f',
		'nobody needs a key to delete');
}
like(answer("SET extension_storage.encryption_keys = 'file-secret,\"'", $read),
	qr/ERROR:  22023: .*\nDETAIL:  Item 2 of the list cannot be used: its double quote is not closed.$/,
	'a broken list set before the library is loaded');
like(answer($read, "SET extension_storage.encryption_keys = 'file-secret,\"'"),
	qr/ERROR:  22023: .*\nDETAIL:  Item 2 of the list cannot be used: its double quote is not closed.$/,
	'and after');
for my $setting ('encryption_keys', 'secret_key')
{
	local $options = "-c extension_storage.$setting=********";
	like(answer($read),
		qr/ERROR:  22023: invalid value for parameter "extension_storage.$setting"\nDETAIL:  Item 1 of the list cannot be used: it is the text that is shown in place of a secret.$/,
		"what SHOW shows is no $setting");
}
{
	local $options = '-c extension_storage.secret_key=superset';
	is(answer($status), 2, 'secret_key comes after the file');
	is(answer($write, q{SELECT entries FROM ext_storage_key_status()
			WHERE role = 'encrypts'}),
		"1\n2", 'which encrypts');
	local $options = "$options -c extension_storage.encryption_keys=a,b";
	is(answer($status), 3, 'and after a list');
}
$node->adjust_conf('postgresql.conf', 'extension_storage.encryption_keys_file',
	"''");
$node->reload;
like(answer($read), qr/ERROR:  ES002: /, 'no source at all: read');
like(answer($write), qr/ERROR:  ES002: /, 'no source at all: write');
{
	local $options = '-c extension_storage.secret_key=file-secret';
	is(answer($read), 'value', 'secret_key alone reads');
	is(answer($write), 2, 'and writes');
}
{
	local $options = '-c extension_storage.secret_key=a,b';
	is(answer($status), 1, 'secret_key is one secret, whatever it contains');
}

$node->append_conf('postgresql.conf',
	"extension_storage.encryption_keys = 'file-secret'");
$node->reload;
is(answer($read), 'value', 'a list in postgresql.conf works');
like(
	($node->psql('postgres', $read))[2],
	qr/WARNING:  parameter "extension_storage.encryption_keys" is set in a configuration file/,
	'and warns');

$node->stop;
done_testing();
