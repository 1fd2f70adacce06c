# What the README says is so: its statements run, in the order in which they
# stand there, its example answers as shown, and its lists of functions,
# settings, errors and sources are those of the extension.

use strict;
use warnings FATAL => 'all';

use Cwd qw(abs_path);
use FindBin;
use JSON::PP qw(decode_json);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $root = abs_path("$FindBin::Bin/../..");
my $readme = slurp_file("$root/README.md");
my @blocks = $readme =~ /^```sql\n(.*?)^```$/msg;
my $uninstall = pop @blocks;
my @runbook = $readme =~ /`((?:CALL|SELECT)[^`]*;)`/g;
my $node = PostgreSQL::Test::Cluster->new('main');
my $file = $node->basedir . '/extension_storage.keys';

# The commands of a section that are about the key file, for this user and folder.
sub key_file_commands
{
	my ($title, $number) = @_;
	my $commands = (grep { /\.keys/ } section($title) =~ /^ *```sh\n(.*?)^ *```$/msg)[$number];

	return $commands =~ s{/etc/postgresql/15/main}{$node->basedir}egr =~ s/-o postgres -g postgres //gr;
}

system_or_bail('sh', '-ec', key_file_commands('Install it', 0));
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
	CREATE TABLE extension_storage (
		id serial PRIMARY KEY, uuid uuid, extension_id varchar(255), user_fk integer,
		resource_type varchar(64), resource_uuid varchar(36), key varchar(255), category varchar(64),
		description text, value bytea, value_type varchar(255), is_encrypted boolean,
		created_on timestamp, changed_on timestamp, created_by_fk integer, changed_by_fk integer);
});

# The lines of a text, sorted, each once.
sub lines
{
	my %seen = map { $_ => 1 } @_;

	return join "\n", sort keys %seen;
}

# The text of a section, up to the next one of the same level or a higher one.
sub section
{
	my ($title) = @_;
	my ($level, $text) = $readme =~ /^(#+) \Q$title\E\n(.*)/ms or die "no section $title";

	return $text =~ s/^#{1,${\length $level}} .*//msr;
}

# -- statements --

cmp_ok(@blocks, '>=', 6, 'the README has blocks of SQL');
cmp_ok(@runbook, '>=', 3, 'and statements in its text');
for my $number (0 .. $#blocks)
{
	my ($status, undef, $errors) =
	  $node->psql('postgres', $blocks[$number], on_error_stop => 1);
	is($status, 0, "block " . ($number + 1) . " runs") or diag $errors;
}
for my $statement (grep { !/\$1|…/ } @runbook)
{
	my ($status, undef, $errors) = $node->psql('postgres', $statement);
	is($status, 0, "$statement") or diag $errors;
}
is( $node->safe_psql(
		'postgres', q{SELECT count(*) FROM ext_storage.ext_storage_list('acme.notes')}),
	3, 'what the tour leaves is there: the rest is deleted again');

# -- the example of the first screen, and its answers --

my ($example) = $readme =~ /^```\n(=> .*?)^```$/ms;
my $answered = '';
for my $call ($example =~ /^=> (.*?;)\n/msg)
{
	my ($status, $out, $errors) = $node->psql('postgres', "SET search_path = ext_storage; $call",
		extra_params => [ '-P', 'format=aligned', '-P', 'tuples_only=off' ]);
	is($errors, '', 'an example runs');
	$answered .= "=> $call\n" . $out =~ s/ +$//mgr . "\n";
}
is($answered =~ s{\n+\z}{}r, $example =~ s{\n+\z}{}r, 'the examples answer as shown');

# -- a new first line --

my $keys = 'SELECT count(*) FROM ext_storage.ext_storage_configured_keys()';
is($node->safe_psql('postgres', $keys), 1, 'the key file has a line');
system_or_bail('sh', '-ec', key_file_commands('Rotate keys', 0));
is(sprintf('%o', (stat $file)[2] & 07777), '600', 'the new key file is the server\'s alone');
$node->reload;
ok($node->poll_query_until('postgres', "SELECT ($keys) = 2"), 'it has two');
is($node->safe_psql('postgres',
		q{SELECT count(*) FROM ext_storage.ext_storage_get_entry('acme.notes', 'login', 7)}),
	1, 'what was encrypted with the old one is read');
$node->safe_psql('postgres', 'CALL ext_storage.ext_storage_rotate_keys()');
system_or_bail('sh', '-ec', key_file_commands('Rotate keys', 1));
$node->reload;
ok($node->poll_query_until('postgres', "SELECT ($keys) = 1"), 'the old one is removed');
is($node->safe_psql('postgres', 'SELECT count(*) FROM ext_storage.ext_storage_verify()'),
	0, 'and no value needs it');

# -- what there is, and what the README lists --

is( $node->safe_psql('postgres', q{SELECT extversion FROM pg_extension WHERE extname = 'extension_storage'}),
	($readme =~ /^Version (\S+)/m)[0], 'the version');
is( lines(section('Functions') =~ /`((?:ext_storage|fernet)_\w+)\(/g),
	$node->safe_psql('postgres', q{
		SELECT DISTINCT p.proname COLLATE "C" FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
		WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass
			AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'extension_storage')
		ORDER BY 1}),
	'all functions, and no other one');

# A function's arguments as its table row gives them: scope stands for three.
my @rows = section('Functions') =~ /^\| (`\w+\([^|]*) \|/mg;
for my $row (@rows)
{
	while ($row =~ /`(\w+)\(([^`]*)\)`/g)
	{
		my ($name, $arguments) = ($1, $2);

		next if $arguments =~ /…/;
		$arguments =~ s/\bscope\b/user_fk, resource_type, resource_uuid/;
		$arguments =~ s/(\w+) \w+/$1/g;
		is( $node->safe_psql('postgres', qq{
				SELECT array_to_string(proargnames[1:pronargs], ', ') FROM pg_proc
				WHERE proname = '$name'}) =~ s/, (?:scanned|rotated|moved)\b.*//r,
			$arguments, "arguments of $name");
	}
}

# What a level may call is its own row and those before it.
my %level;
for (section('Rights') =~ /^\| (`(?:read|write|admin)` \| .*) \|$/mg)
{
	my ($level, @names) = /`(\w+)`/g;

	$level{$level} = lines(map { "ext_storage_$_" } @names);
}
for my $level (qw(read write admin))
{
	is( $level{$level},
		$node->safe_psql('postgres', qq{
			SELECT DISTINCT p.proname COLLATE "C" FROM ext_storage.ext_storage_functions() f
			JOIN pg_proc p ON p.oid = f.function WHERE f.level = '$level' ORDER BY 1}),
		"functions of level $level");
}

is( lines(section('Settings') =~ /^\| `(extension_storage\.\w+)` \|/mg),
	lines(split /\n/, $node->safe_psql('postgres', q{
		SELECT name FROM pg_settings WHERE name LIKE 'extension\_storage.%'})
		# which pg_settings does not show
		. "\n" . join("\n", map { "extension_storage.$_" } qw(encryption_keys secret_key previous_secret_key))),
	'all settings, and no other one');
is( $node->safe_psql('postgres', 'SHOW extension_storage.rotation_lock_wait'),
	'10s', 'with the defaults that it names: rotation_lock_wait');
is($node->safe_psql('postgres', 'SHOW extension_storage.max_value_size'),
	16777215, 'and max_value_size');

# -- errors: those that the sources raise, by PostgreSQL's list of their names --

my (%state, %state_of_condition);
for (split /\n/, slurp_file($node->config_data('--sharedir') . '/errcodes.txt'))
{
	next unless /^(\w{5})\s+([EWS])\s+(ERRCODE_\w+)(?:\s+(\w+))?/;
	$state{$3} = $1;
	$state_of_condition{$4} //= $1 if $2 eq 'E' && defined $4;
}
my $sources = join '', map { slurp_file($_) } glob("$root/src/*.[ch]");
my $scripts = join '', map { slurp_file($_) } glob("$root/*.sql");
my @raised = map { "ES00$_" } $sources =~ /MAKE_SQLSTATE\('E', 'S', '0', '0', '(\d)'\)/g;

push @raised, '58P01', '42501' if $sources =~ /errcode_for_file_access/;
# not those that are compared with
$sources =~ s/\bcase ERRCODE_\w+|[=!]=\s+ERRCODE_\w+|ERRCODE_TO_CATEGORY//g;
push @raised, map { $state{$_} // die "no $_" } $sources =~ /\b(ERRCODE_(?!ES_)\w+)/g;
push @raised, map { $state_of_condition{$_} // die "no $_" } $scripts =~ /ERRCODE = '(\w+)'/g;
my @listed = map { /\b([0-9A-Z]{5})\b/g } section('Errors') =~ /^\| ([^|]*) \|/mg;
is(lines(@listed), lines(@raised), 'all SQLSTATEs that are raised, and no other one');

# -- messages by which an operator looks for a way out, except PostgreSQL's own --

my $text = "$sources$scripts" =~ s/\\"/"/gr;
for my $row (section('At 3 a.m.') =~ /^\| ([^|]*) \|/mg)
{
	for my $message (grep { !/^(?:nextval:|integer out of range|permission denied for function|could not find function|cannot change table|could not access file|cannot be changed now|permission denied to set parameter|removable$)/ }
		$row =~ /`([^`]+)`/g)
	{
		my $pattern = join '[^\n]{0,60}', map { quotemeta s/^ +| +$//gr } split /…/, $message;

		like($text, qr/$pattern/, "there is a message: $message");
	}
}

# -- the folder --

is( lines(section('The source') =~ /^(src\/\w+\.c) /mg),
	lines(map { s/^\Q$root\E\///r } glob("$root/src/*.c")),
	'all sources, and no other one');
for my $link ($readme =~ /\]\(([^)#:]+)[^):]*\)/g)
{
	ok(-e "$root/$link", "$link exists");
}
my %anchor = map { (lc s/[^\w -]//gr) =~ s/ /-/gr => 1 } $readme =~ /^#+ (.*)$/mg;
my @gone = grep { !$anchor{$_} } $readme =~ /\]\(#([^)]*)\)/g;
is("@gone", '', 'what links name within the page is there');

# -- the figure of the first screen, as the benchmark last had it --

sub median
{
	my @sorted = sort { $a <=> $b } @_;

	return $sorted[ $#sorted / 2 ];
}

# In two digits, as 69,000
sub rounded
{
	my $number = sprintf '%.1e', $_[0];

	return reverse(scalar(reverse($number + 0)) =~ s/(\d{3})(?=\d)/$1,/gr);
}
my ($rotation) = grep { $_->{number} eq '9' }
  @{ decode_json(slurp_file("$root/bench/results.json"))->{rows} };
my ($ours, $peers) = $readme =~ /a rotation re-encrypts ([\d,]+) rows per second\..*?re-encrypts ([\d,]+)/s;
is($ours, rounded(median(@{ $rotation->{ours} })), 'rows per second of a rotation');
is($peers, rounded(median(@{ $rotation->{peer} })), 'and those of the first implementation');

# -- where the page's block has put pgcrypto: other programs look for it there --

is( $node->safe_psql('postgres', q{
		SELECT string_agg(extname || ' in ' || extnamespace::regnamespace, ', ' ORDER BY extname)
		FROM pg_extension WHERE extname <> 'plpgsql'}),
	'extension_storage in ext_storage, pgcrypto in public', 'schemas of the extensions');

# -- the way out, which the page's last block is --

$node->safe_psql('postgres', $uninstall);
is( $node->safe_psql('postgres', q{
		SELECT (SELECT count(*) FROM pg_extension WHERE extname = 'extension_storage'),
			(SELECT count(*) FROM pg_namespace WHERE nspname = 'ext_storage'),
			(SELECT count(*) FROM pg_trigger WHERE tgrelid = 'ab_user'::regclass)}),
	'0|0|0', 'nothing of it is left');

$node->stop;
done_testing();
