# Where keys come from, and what happens when a source is broken: an error at
# the moment of use, never another source.

use strict;
use warnings FATAL => 'all';

use POSIX qw(mkfifo);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# The superuser's name, whoever runs this.
$ENV{PGUSER} = 'postgres';

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
$node->init(extra => [ '-U', 'postgres', '-E', 'UTF8', '--no-locale' ]);
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
write_file("other\n\"file-secret\"\n");
is(answer($read), 'value', 'a line in double quotes');
write_file("file-secret\n", 0400);
is(answer($read), 'value', 'a file that its owner may only read');
write_file("file-secret\nother\nother\nfile-secret\n");
is(answer('SELECT count(*) FROM ext_storage_key_status()'),
	3, 'a secret that is there twice is one key');
write_file("other\n\n\" blanks \"\n\"a\"\"b\"\n\"#c\"\n\nother\nfile-secret\n");
is( answer(q{SELECT string_agg(concat_ws(' ', ordinal, role, source), '; ' ORDER BY ordinal)
		FROM ext_storage_configured_keys()}),
	join('; ',
		map { "$$_[0] $$_[1] extension_storage.encryption_keys_file, line $$_[2]" }
		  [ 1, 'encrypts', 1 ], [ 2, 'decrypts', 3 ], [ 3, 'decrypts', 4 ],
		  [ 4, 'decrypts', 5 ], [ 5, 'decrypts', 8 ]),
	'each key knows its line');
is( answer(q{SET extension_storage.encryption_keys = '" blanks ","a""b","#c",other,file-secret'},
		'SELECT count(DISTINCT fingerprint), count(*) FROM ext_storage_configured_keys()'),
	'5|5', 'which is quoted as the item of a list is');
write_file(join('', map { "key $_\n" } 1 .. 99) . "file-secret\n");
is(answer($read), 'value', 'a hundred keys');

remove_file();
refused(qr/ERROR:  58P01: could not open encryption key file "\Q$file\E": No such file or directory$/,
	'missing');
write_file("file-secret\n", 0000);
refused(qr/ERROR:  42501: could not open encryption key file "\Q$file\E": Permission denied$/,
	'unreadable');
foreach my $mode (0620, 0610, 0604, 0602, 0601, 0644, 0660, 0444)
{
	write_file("file-secret\n", $mode);
	refused(qr/ERROR:  F0000: encryption key file "\Q$file\E" has group or world access/,
		sprintf('mode %04o', $mode));
}
like(
	($node->psql('postgres', $read))[2],
	qr/HINT:  Correct them with chmod, or for a Kubernetes volume with "defaultMode: 0400" and "fsGroup", then reload/,
	'the hint knows of volumes where chmod is of no use');
my ($group) = split ' ', $);
foreach my $mode (0640, 0440)
{
	write_file("file-secret\n", $mode);
	chown -1, $group, $file or die "chown $file: $!";
	is(answer($read), 'value',
		sprintf('mode %04o, where the group is the server\'s', $mode));
}

# A group that the server belongs to, but does not run with
SKIP:
{
	my ($other) = grep { $_ != $group } split ' ', $);
	skip 'this user belongs to one group alone', 5 unless defined $other;
	write_file("file-secret\n", 0640);
	chown -1, $other, $file or die "chown $file: $!";
	refused(qr/ERROR:  F0000: encryption key file "\Q$file\E" has group or world access/,
		'mode 0640, where the group is another one');
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
refused(qr/ERROR:  F0000: line 2 of encryption key file "\Q$file\E" cannot be used\nDETAIL:  The line is not a valid secret: it contains a NUL byte.$/,
	'NUL');
write_file("file-secret\n\n\xFF\xFE\n");
refused(qr/ERROR:  F0000: line 3 of encryption key file "\Q$file\E" cannot be used\nDETAIL:  The line is not a valid secret: it is not valid UTF-8.$/,
	'not UTF-8');
write_file("\xEF\xBB\xBFfile-secret\n");
refused(qr/ERROR:  F0000: line 1 of encryption key file "\Q$file\E" cannot be used\nDETAIL:  The line is not a valid secret: it starts with a byte order mark.$/,
	'byte order mark');
write_file("file-secret\n" . 'x' x (65536 - 12));
is(answer($read), 'value', 'a file of the largest size');
write_file("file-secret\n" . 'x' x (65536 - 11));
refused(qr/ERROR:  F0000: encryption key file "\Q$file\E" is larger than 65536 bytes$/,
	'too large');
write_file("file-secret\n" x 101);
refused(qr/ERROR:  F0000: line 101 of .*\nDETAIL:  The line is not a valid secret: only 100 secrets are allowed.$/,
	'too many lines');
foreach ([ "file-secret \n", 1, 'it starts or ends with a blank and is not in double quotes' ],
	[ "file-secret\n\n\tother\n", 3, 'it starts or ends with a blank and is not in double quotes' ],
	[ "file-secret\n  \n", 2, 'it starts or ends with a blank and is not in double quotes' ],
	[ "# the new one\nfile-secret\n", 1, 'it starts with "#" and is not in double quotes' ],
	[ "file-secret\n\"other\n", 2, 'its double quote is not closed' ],
	[ "file-secret\n\"other\"s\n", 2, 'it contains a double quote that does not enclose the whole of it' ],
	[ "file-secret\n\"\"\n", 2, 'it is empty' ],
	[ "file-secret\rother\r", 1, 'it contains a carriage return' ])
{
	my ($contents, $line, $reason) = @$_;
	write_file($contents);
	refused(qr/ERROR:  F0000: line $line of encryption key file "\Q$file\E" cannot be used\nDETAIL:  The line is not a valid secret: \Q$reason\E.$/,
		"line $line, $reason");
}
# What openssl rand -base64 64 prints is two lines.
my $broken = 'Zm9vYmFy' x 8 . "\n" . 'Zm9vYmFy' x 2 . "Zm9vYg==\n";
write_file($broken);
like(answer('SELECT count(*) FROM ext_storage_configured_keys()', 'SELECT 1/0'),
	qr/^WARNING:  01000: line 2 of encryption key file "\Q$file\E" looks like the rest of the line before\nDETAIL:  Each line is a secret of its own; .*\nERROR:/,
	'a secret that was broken into two lines makes a warning');
write_file($broken =~ s/\n(.*)\n/\n"$1"\n/r);
like(answer('SELECT count(*) FROM ext_storage_configured_keys()', 'SELECT 1/0'),
	qr/^ERROR:/, 'and none where the second line is in double quotes');
write_file($broken =~ s/Yg==\n/YmF!\n/r);
like(answer('SELECT count(*) FROM ext_storage_configured_keys()', 'SELECT 1/0'),
	qr/^ERROR:/, 'or ends with what is no base64');
# A file that is longer than it was a moment ago, as a file that is being
# written: those of /proc say that they are empty.
symlink '/proc/self/auxv', "$file.auxv" or die "symlink: $!";
remove_file();
rename "$file.auxv", $file or die "rename: $!";
refused(qr/ERROR:  F0000: encryption key file "\Q$file\E" was changed while it was read$/,
	'changed while it is read');

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
# ---------------------------------------------------------------------------
# Settings that not everybody may set, before the library is loaded

$node->safe_psql('postgres', q{
	CREATE ROLE app_plain LOGIN;
	GRANT EXECUTE ON FUNCTION ext_storage_get, ext_storage_set TO app_plain;
	GRANT SELECT ON extension_storage TO app_plain});
$node->append_conf('postgresql.conf', q{
extension_storage.max_value_size = 777
extension_storage.quota_per_extension = 888});
$node->reload;
my %guarded = map { split / / } split /\n/, answer(q{LOAD 'extension_storage'},
	q{SELECT name || ' ' || context FROM pg_settings
	WHERE name ~ '^extension_storage\.' AND context <> 'user'});
cmp_ok(scalar(keys %guarded), '>=', 3, 'there are such settings');
for my $setting (sort keys %guarded)
{
	my $value = $setting =~ /file/ ? '/etc/passwd' : 5;
	my $superuser_may = $guarded{$setting} eq 'superuser';
	my $shown = answer(q{LOAD 'extension_storage'}, "SHOW $setting");
	my $displaced = qr/ERROR:  42501: parameter "$setting" cannot be set with a connection, role, or database\nDETAIL:  Its value has replaced the one of the server's configuration in this session\.$/;
	my $with = sub {
		my ($user, @sql) = @_;
		local $ENV{PGUSER} = $user;
		return answer(@sql);
	};
	{
		local $options = "-c $setting=$value";
		like($with->('app_plain', $read), $displaced,
			"$setting with the connection: the library is not loaded");
		local $ENV{PGOPTIONS} = $options;
		my ($rc, $out, $err) = $node->psql('postgres', "$read;$read",
			on_error_stop => 0,
			extra_params => [ '-U', 'app_plain', '-v', 'VERBOSITY=verbose' ]);
		is(() = $err =~ /ERROR:  42501: parameter "$setting" cannot/g, 2,
			"$setting: nor at a second try");
		my $answer = $with->('postgres', q{LOAD 'extension_storage'}, "SHOW $setting");
		$superuser_may ? is($answer, $value, "$setting: a superuser may")
		  : like($answer, $displaced, "$setting: nor may a superuser");
	}
	is($with->('app_plain', "SET $setting = '$value'", $read), 'value',
		"$setting set before the library is loaded: that works");
	is( answer('SET SESSION AUTHORIZATION app_plain', "SET $setting = '$value'",
			$read, 'RESET SESSION AUTHORIZATION', "SHOW $setting"),
		"value\n$shown", "$setting: and changes nothing");
	$node->safe_psql('postgres', "ALTER ROLE app_plain SET $setting = '$value'");
	my $answer = $with->('app_plain', $read);
	$superuser_may ? is($answer, 'value', "$setting: a superuser may set it for a role")
	  : like($answer, $displaced, "$setting: not for a role, however");
	$node->safe_psql('postgres', 'ALTER ROLE app_plain RESET ALL');
	next if !$superuser_may;
	$node->safe_psql('postgres', "GRANT SET ON PARAMETER $setting TO app_plain");
	{
		local $options = "-c $setting=$value";
		is($with->('app_plain', $read), 'value',
			"$setting: who was granted SET may, too");
	}
	$node->safe_psql('postgres', "REVOKE SET ON PARAMETER $setting FROM app_plain");
}

# A parallel worker has no keys of the session; it may not use others instead.
$node->safe_psql('postgres', q{
	CREATE FUNCTION wrapped() RETURNS text PARALLEL SAFE LANGUAGE plpgsql AS $$
	BEGIN RETURN convert_from(ext_storage_get('acme.app', 'k'), 'UTF8'); END $$;
	CREATE TABLE one AS SELECT 1 AS n});
my $force = answer('SHOW server_version_num') < 160000 ? 'force_parallel_mode' : 'debug_parallel_query';
is(answer($read, "SET $force = on", 'SELECT wrapped()'), "value\nvalue",
	'a worker reads the key file');
like(answer("SET $force = on", 'SELECT wrapped()'),
	qr/ERROR:  25000: extension_storage cannot be loaded during a parallel operation\nDETAIL:  Its settings cannot be read then\.$/m,
	'a worker cannot load the library: it would lose all settings');
{
	local $options = '-c session_preload_libraries=extension_storage';
	is(answer("SET $force = on", 'SELECT wrapped()'), 'value',
		'it has it where every session does');
}
like(answer("SET $force = on", 'EXPLAIN (COSTS OFF) SELECT wrapped()'),
	qr/^Gather\b/, 'it is one');
for my $setting ('encryption_keys', 'secret_key', 'previous_secret_key')
{
	my $refused = qr/ERROR:  0A000: the keys of a session cannot be used in a parallel worker\nDETAIL:  Parameter "extension_storage\.$setting" is set, and is not passed on to workers\.$/m;
	local $options = "-c extension_storage.$setting=file-secret";
	like(answer($read, "SET $force = on", 'SELECT wrapped()'), $refused,
		"a worker without the $setting of the connection");
	$options = '';
	like(answer($read, "SET extension_storage.$setting = 'another'", "SET $force = on", 'SELECT wrapped()'),
		$refused, "nor has it a $setting that was set");
	$node->append_conf('postgresql.conf', "extension_storage.$setting = 'file-secret'");
	$node->reload;
	like(answer($read, "SET $force = on", 'SELECT wrapped()'), $refused,
		"nor one of postgresql.conf");
	$node->adjust_conf('postgresql.conf', "extension_storage.$setting", undef, 1);
	$node->reload;
	is(answer($read, "SET extension_storage.$setting = 'another'", "RESET extension_storage.$setting",
			"SET $force = on", 'SELECT wrapped()'),
		"value\nvalue", "where $setting was reset, it uses the file");
}

# ---------------------------------------------------------------------------
# The other sources

my $status = 'SELECT count(*) - 1 FROM ext_storage_key_status()';
write_file("file-secret\n");
{
	local $options = '-c extension_storage.encryption_keys=session-secret';
	my $keys = q{SELECT string_agg(role || ' ' || source, '; ' ORDER BY ordinal)
		FROM ext_storage_configured_keys()};
	is( answer($keys),
		'encrypts extension_storage.encryption_keys, item 1; decrypts extension_storage.encryption_keys_file, line 1',
		'a list at the connection encrypts');
	is(answer($read), 'value', 'and the file still decrypts');
	is( answer(q{SET extension_storage.encryption_keys = ''}, $keys),
		'encrypts extension_storage.encryption_keys_file, line 1',
		'an empty list gives the file back');
	is( answer(q{SET extension_storage.encryption_keys = 'a,"file-secret",b'}, $read, $keys),
		"value\nencrypts extension_storage.encryption_keys, item 1; decrypts extension_storage.encryption_keys, item 2; decrypts extension_storage.encryption_keys, item 3",
		'SET replaces the list; a key that is in both is the list\'s');
	{
		local $options = "$options -c extension_storage.secret_key=x -c extension_storage.previous_secret_key=y";
		is( answer($keys),
			'encrypts extension_storage.encryption_keys, item 1; decrypts extension_storage.encryption_keys_file, line 1; decrypts extension_storage.secret_key; decrypts extension_storage.previous_secret_key',
			'all sources, in order of precedence');
	}
	remove_file();
	refused(qr/ERROR:  58P01: could not open encryption key file/,
		'a broken file, where the list would encrypt');
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
for my $setting ('encryption_keys', 'secret_key', 'previous_secret_key')
{
	local $options = "-c extension_storage.$setting=********";
	like(answer($read),
		qr/ERROR:  22023: invalid value for parameter "extension_storage.$setting"\nDETAIL:  (?:Item 1 of the list|The value) cannot be used: it is the text that is shown in place of a secret.$/,
		"what SHOW shows is no $setting");
}
{
	local $options = '-c extension_storage.secret_key=superset';
	is(answer($status), 2, 'secret_key comes after the file');
	is(answer($write, q{SELECT entries FROM ext_storage_key_status()
			WHERE role = 'encrypts'}),
		"1\n2", 'which encrypts');
	local $options = "$options -c extension_storage.encryption_keys=a,b";
	is(answer($status), 4, 'and after a list');
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
	local $options = '-c extension_storage.previous_secret_key=file-secret';
	is(answer($read), 'value', 'previous_secret_key alone reads');
	like(answer($write), qr/ERROR:  ES002: /, 'and does not write');
}
like(answer("SET extension_storage.encryption_keys = '" . 'a,' x 40000 . "a'", $read),
	qr/ERROR:  22023: invalid value for parameter "extension_storage.encryption_keys"\nDETAIL:  The value cannot be used: it is longer than 65536 bytes.$/,
	'a long list set before the library is loaded');
{
	local $options = '-c extension_storage.secret_key=a,b';
	is(answer($status), 1, 'secret_key is one secret, whatever it contains');
}

# Two processes that bring their keys, at each step of the README's order: what
# either writes, both read.
sub as_process
{
	local $options = "-c extension_storage.encryption_keys=$_[0]";
	return answer($_[1]);
}
my $set = q{SELECT FROM ext_storage_set('acme.app', 'shared', 'value', is_encrypted => true)};
my $get = $read =~ s/'k'/'shared'/r;
sub both_read_all
{
	my (@lists) = @_;
	my @read;

	for my $writer (@lists)
	{
		as_process($writer, $set);
		push @read, map { as_process($_, $get) } @lists;
	}
	return join ' ', map { $_ eq 'value' ? 'value' : substr $_, 8, 5 } @read;
}
is(both_read_all(@$_), 'value value value value', "at once: @$_")
  for [ 'old', 'old' ], [ 'old,new', 'old' ], [ 'old,new', 'old,new' ],
  [ 'new,old', 'old,new' ], [ 'new,old', 'new,old' ];
is(both_read_all('new,old', 'old'), 'value ES001 value value',
	'a new key that is first at once is not read by the other');
as_process('old', $set);
as_process('new,old', 'CALL ext_storage_rotate_keys()');
is( as_process('new,old', 'SELECT removable FROM ext_storage_key_status() WHERE ordinal = 2'),
	't', 'once rotated, the old key may go');
is(both_read_all('new', 'new,old'), 'value value value value', 'from one after the other');

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
