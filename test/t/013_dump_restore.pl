# Dump and restore: plain, custom and in parallel, by a superuser and by the
# owner of the database, who is no superuser.  Every row, the id sequence, the
# encrypted values and the rights come back.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# The superuser's name, whoever runs this.
$ENV{PGUSER} = 'postgres';

my $node = PostgreSQL::Test::Cluster->new('main');
my $keys = $node->basedir . '/keys';
my $dump = $node->basedir . '/dump';

append_to_file($keys, "secret of the dump test\n");
chmod 0600, $keys or die "chmod $keys: $!";
$node->init(extra => [ '-U', 'postgres' ]);
$node->append_conf('postgresql.conf',
	"extension_storage.encryption_keys_file = '$keys'");
$node->start;
$node->safe_psql('postgres',
	'CREATE ROLE app_owner LOGIN; CREATE ROLE app_reader LOGIN;'
	  . 'CREATE DATABASE source OWNER app_owner');

# What a role gets from a statement.
sub answer
{
	my ($database, $role, $sql) = @_;
	my ($rc, $out, $err) =
	  $node->psql($database, $sql, extra_params => [ '-U', $role ]);

	die "$role in $database: $err" if $rc != 0;
	return $out;
}

sub run_dump
{
	my (@options) = @_;
	my ($out, $err) = ('', '');
	local $ENV{PGHOST} = $node->host;
	local $ENV{PGPORT} = $node->port;
	my $ok = IPC::Run::run([ 'pg_dump', @options ], '>', \$out, '2>', \$err);

	return ($ok ? 0 : 1, $out, $err);
}

# -- a trusted install, with its own schema, and something in the table --

answer('source', 'app_owner', 'CREATE SCHEMA ext_storage;
	CREATE EXTENSION extension_storage SCHEMA ext_storage CASCADE');
is( answer('source', 'app_owner', q{
		SELECT string_agg(extname || ' ' || extowner::regrole, ', ' ORDER BY extname)
		FROM pg_extension WHERE extname IN ('extension_storage', 'pgcrypto')}),
	'extension_storage app_owner, pgcrypto app_owner',
	'the owner of the database, no superuser, installs it with CASCADE');

answer('source', 'app_owner', q{
	SET search_path = ext_storage, pg_catalog;
	-- values of all sizes, among them some in TOAST, in every scope
	SELECT count(ext_storage_set('acme.app', 'k' || i,
		decode(repeat(md5(i::text), 1 + i * i / 8), 'hex'), 'application/octet-stream',
		user_fk => CASE WHEN i % 3 = 1 THEN i END,
		resource_type => CASE WHEN i % 5 = 1 THEN 'dashboard' END,
		resource_uuid => CASE WHEN i % 5 = 1 THEN gen_random_uuid()::text END,
		category => CASE WHEN i % 2 = 1 THEN 'odd' END, description => E'tab\t, "quote" and \\.',
		is_encrypted => i % 2 = 0, actor_fk => i))
	FROM generate_series(1, 200) i;
	SELECT ext_storage_set('acme.app', 'k3', '\x00', 'text/plain');
	SELECT ext_storage_set('acme.app', 'empty', '', is_encrypted => true);
	SELECT ext_storage_delete('acme.app', 'k200');
	-- a row of another program, without the columns it does not know
	INSERT INTO extension_storage (extension_id, key, value, value_size)
		VALUES ('other.app', 'k', 'x', NULL);
	GRANT USAGE ON SCHEMA ext_storage TO app_reader;
	GRANT SELECT ON extension_storage TO app_reader;
	GRANT EXECUTE ON FUNCTION ext_storage_get, ext_storage_list TO app_reader});

my $rows = q{SELECT count(*), md5(string_agg(e::text, '|' ORDER BY id))
	FROM ext_storage.extension_storage e};
my $read = q{SELECT count(*), md5(string_agg(encode(ext_storage.ext_storage_get(extension_id,
		key, user_fk, resource_type, resource_uuid), 'hex'), '|' ORDER BY id))
	FROM ext_storage.extension_storage WHERE is_encrypted};
# Who owns the table and may do what; functions are a superuser's, whichever.
my $rights = q{
	SELECT 'table ' || relowner::regrole::text || ' ' || coalesce((SELECT string_agg(a::text, ',' ORDER BY a::text)
		FROM unnest(relacl) a), '')
	FROM pg_class WHERE oid = 'ext_storage.extension_storage'::regclass
	UNION ALL
	SELECT p.oid::regprocedure || ' ' || coalesce((SELECT string_agg(
		grantee::regrole || ' ' || privilege_type || ' ' || is_grantable, ', ' ORDER BY grantee::regrole::text)
		FROM aclexplode(p.proacl) WHERE grantee <> p.proowner), '')
	FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass
	JOIN pg_extension x ON x.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
	WHERE x.extname = 'extension_storage'
	ORDER BY 1};
my $next_id = q{INSERT INTO ext_storage.extension_storage (extension_id, key, value)
	VALUES ('new.app', 'k', 'x') RETURNING id};
my %before = map { $_ => answer('source', 'app_owner', $_) } $rows, $read, $rights;
my $last_id = answer('source', 'app_owner',
	'SELECT max(id) FROM ext_storage.extension_storage');

like($before{$rights}, qr/^table app_owner .*app_reader=r\/app_owner/m,
	'the owner of the database owns the table');
like($before{$rights},
	qr/^ext_storage\.ext_storage_get\(.*app_owner EXECUTE true, app_reader EXECUTE false$/m,
	'and may execute every function and grant that on');
is_deeply([ $before{$rights} =~ /^(.*)\(.* - EXECUTE/mg ], ['ext_storage.ext_storage_take_over'],
	'PUBLIC may call what checks its caller, and nothing else');

# -- dumps --

my %restore = (
	plain => [ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f' ],
	custom => [ 'pg_restore', '--exit-on-error' ],
	directory => [ 'pg_restore', '--exit-on-error', '-j', '2' ]);

for my $role ('postgres', 'app_owner')
{
	for my $format ('plain', 'custom', 'directory')
	{
		my $name = "$format, by $role";
		my $target = "${format}_$role";
		my $file = "$dump.$target";

		$node->safe_psql('postgres', "CREATE DATABASE $target OWNER app_owner");
		my ($rc, $out, $err) = run_dump('-U', $role, '-F', $format,
			$format eq 'directory' ? ('-j', '2') : (), '-f', $file, 'source');
		is("$rc $err", '0 ', "$name: dumps, without a warning");
		$node->command_ok(
			[
				@{ $restore{$format} },
				$format eq 'plain' ? ($file, '-d', $target) : ('-d', $target, $file),
				'-U', $role
			],
			"$name: restores into an empty database");
		is(answer($target, 'app_owner', $rows), $before{$rows}, "$name: every row is there");
		is(answer($target, 'app_owner', $read), $before{$read}, "$name: encrypted rows read");
		is(answer($target, 'app_owner', $rights), $before{$rights}, "$name: the rights are as before");
		is((split /\n/, answer($target, 'app_owner', $next_id))[0], $last_id + 1,
			"$name: the id sequence goes on");
		is( answer($target, 'app_reader',
				q{SELECT length(ext_storage.ext_storage_get('acme.app', 'k12'))}),
			304, "$name: a granted role reads");
		# again, from there
		is( answer($target, 'app_owner',
				q{SELECT (ext_storage.ext_storage_set('acme.app', 'after', 'x', is_encrypted => true)).version}),
			1, "$name: and the owner writes");
	}
}

# -- a change of owner: the new one holds what the old one held --

$node->safe_psql('postgres', 'CREATE ROLE new_owner LOGIN; CREATE ROLE stranger LOGIN; CREATE ROLE superset LOGIN');
my $writes = q{SELECT (ext_storage.ext_storage_set('acme.app', 'by new', 'x')).version};

# What the owner of a table may ask for, and others not.
sub take_over
{
	my ($database, $role) = @_;
	my ($rc, $out, $err) = $node->psql($database,
		'SELECT ext_storage.ext_storage_take_over()', extra_params => [ '-U', $role ]);

	return $err =~ s/\n.*//sr;
}

my %change = (
	reassign => 'REASSIGN OWNED BY app_owner TO new_owner',
	alter => q{ALTER DATABASE owner_alter OWNER TO new_owner; ALTER SCHEMA ext_storage OWNER TO new_owner;
		ALTER TABLE ext_storage.extension_storage OWNER TO new_owner});
for my $way (sort keys %change)
{
	my $database = "owner_$way";

	$node->safe_psql('postgres', "CREATE DATABASE $database OWNER app_owner");
	answer($database, 'app_owner', q{CREATE SCHEMA ext_storage;
		CREATE EXTENSION extension_storage SCHEMA ext_storage CASCADE;
		SELECT ext_storage.ext_storage_grant('superset', 'write');
		GRANT EXECUTE ON FUNCTION ext_storage.fernet_generate_key TO superset WITH GRANT OPTION});
	answer($database, 'superset', q{SELECT ext_storage.ext_storage_set('acme.app', 'k', 'x')});
	$node->safe_psql($database, $change{$way});

	my ($rc, $out, $err) = $node->psql($database, $writes, extra_params => [ '-U', 'new_owner' ]);
	like($err, qr/permission denied for function/, "$way: functions stay with the old owner at first");
	$node->safe_psql($database, 'GRANT USAGE ON SCHEMA ext_storage TO stranger');
	like(take_over($database, 'stranger'), qr/ERROR:  must be owner of table ext_storage\.extension_storage$/,
		"$way: a stranger is refused");
	like(take_over($database, 'new_owner'), $way eq 'alter'
		? qr/^\S* ?WARNING:  extension "extension_storage" still belongs to role app_owner$/
		: qr/^$/, "$way: the new owner takes over");
	is(answer($database, 'new_owner', $writes), 1, "$way: and writes");
	is(answer($database, 'superset', $writes), 2, "$way: Superset still does");
	is(answer($database, 'new_owner', q{
			SELECT ext_storage.ext_storage_grant('stranger', 'admin');
			SELECT bool_and(has_function_privilege('stranger', function, 'EXECUTE'))
			FROM ext_storage.ext_storage_functions() WHERE level IN ('read', 'write', 'admin')}) =~ s/\s//r,
		't', "$way: and grants every level");
	# the old one goes, with all that it has granted
	$node->safe_psql($database, 'REASSIGN OWNED BY app_owner TO new_owner; DROP OWNED BY app_owner');
	is(answer($database, 'superset', $writes), 3, "$way: Superset still writes when the old owner is gone");
	is(answer($database, 'superset', q{SELECT has_function_privilege('superset',
			'ext_storage.fernet_generate_key()', 'EXECUTE WITH GRANT OPTION')}),
		't', "$way: with what else it was granted");
	is(answer($database, 'new_owner', q{SELECT string_agg(DISTINCT relowner::regrole::text, ',')
			FROM pg_class WHERE relname ~ '^extension_storage(_usage)?$'}),
		'new_owner', "$way: both tables are the new owner's");
	is(take_over($database, 'postgres'), '', "$way: a superuser can call it too, and twice");

	my $dump_file = "$dump.$way.sql";
	($rc, $out, $err) = run_dump('-f', $dump_file, $database);
	is("$rc $err", '0 ', "$way: a dump has no warning");
	$node->safe_psql('postgres', "CREATE DATABASE ${database}_restored OWNER new_owner");
	$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump_file,
			'-d', "${database}_restored" ], "$way: and restores");
	is(answer("${database}_restored", $_, $writes =~ s/by new/$_/r), 1, "$way: $_ writes there")
	  for 'new_owner', 'superset';
}

# The old role itself goes: PostgreSQL before 17 leaves its number behind, and a
# dump would name it.
$node->safe_psql('postgres', "DROP DATABASE $_")
  for 'source', map { ("plain_$_", "custom_$_", "directory_$_") } 'postgres', 'app_owner';
$node->safe_psql($_, 'REASSIGN OWNED BY app_owner TO new_owner; DROP OWNED BY app_owner')
  for 'owner_reassign', 'owner_alter', 'owner_reassign_restored', 'owner_alter_restored', 'postgres';
$node->safe_psql('postgres', 'DROP ROLE app_owner');
for my $database ('owner_reassign', 'owner_alter')
{
	is(take_over($database, 'new_owner'), '', "$database: taken over once more when the role is gone");
	my ($rc, $out, $err) = run_dump($database);
	is("$rc $err", '0 ', "$database: dumped without the role");
	unlike($out, qr/(FROM|TO) "?\d/, "$database: and no number stands for it");
	$node->safe_psql('postgres', "CREATE DATABASE again_$database OWNER new_owner");
	my $file = "$dump.again.$database";
	append_to_file($file, $out);
	$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $file,
			'-d', "again_$database" ], "$database: and restored");
	is(answer("again_$database", 'superset', $writes), 4, "$database: with Superset's rights");
}

# The schema stays the one that it is.
my ($rc, $out, $err) = $node->psql('owner_alter', 'ALTER EXTENSION extension_storage SET SCHEMA public');
like($err, qr/ERROR:  extension "extension_storage" does not support SET SCHEMA/,
	'ALTER EXTENSION SET SCHEMA is refused');

$node->stop;
done_testing();
