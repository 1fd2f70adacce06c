# Dump and restore: plain, custom and in parallel, by a superuser and by the
# owner of the database, who is no superuser.  Every row, the id sequence, the
# encrypted values and the rights come back.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
my $keys = $node->basedir . '/keys';
my $dump = $node->basedir . '/dump';

append_to_file($keys, "secret of the dump test\n");
chmod 0600, $keys or die "chmod $keys: $!";
$node->init;
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
unlike($before{$rights}, qr/ - EXECUTE/, 'PUBLIC may not');

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
		$node->command_ok(
			[
				'pg_dump', '-U', $role, '-F', $format,
				$format eq 'directory' ? ('-j', '2') : (), '-f', $file, 'source'
			],
			"$name: dumps");
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

$node->stop;
done_testing();
