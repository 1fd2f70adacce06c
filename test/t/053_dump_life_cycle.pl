# What the life cycle of entries needs comes back from a dump: the triggers of
# attached tables, the rights given by level, and the quota, whoever restores.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# The superuser's name, whoever runs this.
$ENV{PGUSER} = 'postgres';

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init(extra => [ '-U', 'postgres' ]);
$node->append_conf('postgresql.conf', q{
extension_storage.quota_per_extension = 1000
});
$node->start;

# Everything belongs to app_owner, who is no superuser.
$node->safe_psql(
	'postgres', q{
	CREATE ROLE app_owner LOGIN;
	CREATE ROLE app_read LOGIN;
	CREATE ROLE app_write LOGIN;
	CREATE ROLE "app ""Admin""" LOGIN;
	CREATE ROLE superset LOGIN;
	CREATE DATABASE source OWNER app_owner});
$node->safe_psql(
	'source', q{
	SET SESSION AUTHORIZATION app_owner;
	CREATE SCHEMA ext_storage;
	CREATE EXTENSION extension_storage SCHEMA ext_storage CASCADE;
	SET search_path = public, ext_storage;
	SELECT ext_storage_grant('app_read', 'read');
	SELECT ext_storage_grant('app_write', 'write');
	SELECT ext_storage_grant('"app ""Admin"""', 'admin');
	CREATE TABLE ab_user (id integer PRIMARY KEY);
	CREATE TABLE dashboards (id integer PRIMARY KEY, uuid uuid);
	INSERT INTO ab_user VALUES (1), (2);
	INSERT INTO dashboards VALUES (1, 'aaaaaaaa-0000-4000-8000-000000000001');
	SELECT ext_storage_attach_users();
	SELECT ext_storage_attach_resource('dashboard', 'dashboards');
	GRANT DELETE, SELECT ON ab_user TO superset;
	SELECT ext_storage_set('acme.app', concat('k', u), convert_to(repeat('x', 100), 'UTF8'),
		user_fk => u, actor_fk => 1) FROM unnest(ARRAY[1, 2, NULL]) u;
	SELECT ext_storage_set('acme.app', 'd', 'xx', resource_type => 'dashboard',
		resource_uuid => 'AAAAAAAA-0000-4000-8000-000000000001', actor_fk => 2)});

my $rows = q{SELECT string_agg(e::text, E'\n' ORDER BY id)
	FROM ext_storage.extension_storage e};
my $counting = q{SELECT string_agg(tgenabled::text, '') || (SELECT count(*)
	FROM ext_storage.extension_storage_usage) FROM pg_trigger
	WHERE tgrelid = 'ext_storage.extension_storage'::regclass};
my $attached = q{SELECT string_agg(concat(pg_get_triggerdef(oid), tgenabled), E'\n' ORDER BY tgname)
	FROM pg_trigger WHERE tgrelid IN ('ab_user'::regclass, 'dashboards'::regclass)};
# Who may do what, and may hand it on.
my $rights = q{
	SELECT r, o, has_function_privilege(r, p.oid, 'EXECUTE') || '/'
		|| has_function_privilege(r, p.oid, 'EXECUTE WITH GRANT OPTION')
	FROM (SELECT oid, oid::regprocedure::text AS o FROM pg_proc
		WHERE proname ~ '^(ext_storage|fernet)_') p,
		unnest(ARRAY['app_owner', 'app_read', 'app_write', 'app "Admin"', 'superset']) r
	UNION ALL
	SELECT r, x, has_table_privilege(r, 'ext_storage.extension_storage', x)::text
	FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) x,
		unnest(ARRAY['app_owner', 'app_read', 'app_write', 'app "Admin"', 'superset']) r
	UNION ALL
	SELECT r, 'schema, type, usage', concat_ws(' ',
		has_schema_privilege(r, 'ext_storage', 'USAGE'),
		has_type_privilege(r, 'ext_storage.ext_storage_entry', 'USAGE'),
		has_table_privilege(r, 'ext_storage.extension_storage_usage', 'SELECT'))
	FROM unnest(ARRAY['app_owner', 'app_read', 'app_write', 'app "Admin"', 'superset']) r
	UNION ALL
	SELECT c.oid::regclass::text, relowner::regrole::text, x.extowner::regrole::text
	FROM pg_class c, pg_extension x
	WHERE relname ~ '^extension_storage(_usage)?$' AND extname = 'extension_storage'
	ORDER BY 1, 2};

my %source = map { $_->[0] => $node->safe_psql('source', $_->[1]) }
  [ rows => $rows ], [ attached => $attached ], [ rights => $rights ];
is($node->safe_psql('source', $counting), 'AA1', 'the source counts bytes');
is(scalar(split /\n/, $source{attached}), 4, 'and has four triggers');
# The owner is whoever made the extension: a superuser's restore makes the
# superuser its owner, and leaves the table and the rights to app_owner.
my $extension_owner = qr/^((?:ext_storage\.)?extension_storage\w*\|app_owner\|)\w+$/m;
like($source{rights}, $extension_owner, 'the table is app_owner\'s');

my $folder = $node->basedir;
$node->command_ok([ 'pg_dump', '-f', "$folder/plain", $node->connstr('source') ], 'plain dump');
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$folder/custom", $node->connstr('source') ],
	'custom dump');
$node->command_ok(
	[ 'pg_dump', '-Fd', '-j2', '-f', "$folder/folder", $node->connstr('source') ],
	'parallel dump');

my $n = 0;
for my $by (qw(postgres app_owner))
{
	for my $form (qw(plain custom folder))
	{
		my $db = 'restored' . ++$n;
		my $name = "$form dump, restored by $by";
		my $to = $node->connstr($db) . " user=$by";

		$node->safe_psql('postgres', "CREATE DATABASE $db OWNER app_owner");
		$node->command_ok(
			$form eq 'plain'
			? [ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', "$folder/plain", $to ]
			: [
				'pg_restore', $form eq 'folder' ? '-j2' : '--exit-on-error',
				'-d', $to, "$folder/$form"
			],
			"$name: without an error");
		is($node->safe_psql($db, $rows), $source{rows}, "$name: every row");
		is($node->safe_psql($db, $attached), $source{attached}, "$name: the triggers");
		my $restored = $node->safe_psql($db, $rights);
		like($restored, qr/\|app_owner\|$by$/m, "$name: the extension is ${by}'s");
		(my $expected = $source{rights}) =~ s/$extension_owner/$1/g;
		$restored =~ s/$extension_owner/$1/g;
		is($restored, $expected, "$name: all rights");

		# The counting of bytes starts with the first write, of a role that has
		# been given the level, and is exact to the byte.
		is($node->safe_psql($db, $counting), 'DD0', "$name: nothing is counted yet");
		my $set = sub {
			my ($bytes) = @_;
			my ($rc, $out, $err) = $node->psql(
				$db, qq{SELECT version FROM ext_storage.ext_storage_set('acme.app', 'new',
				convert_to(repeat('x', $bytes), 'UTF8'))},
				extra_params => [ '-U', 'app_write', '-v', 'VERBOSITY=verbose' ]);
			return $rc == 0 ? $out : $err =~ /ERROR:  (\w{5}):/ ? $1 : $err;
		};
		is($set->(699), 'ES003', "$name: 302 bytes and 699 are too many");
		is($set->(698), '1', "$name: 302 bytes and 698 fit");
		is($node->safe_psql($db, $counting), 'AA1', "$name: bytes are counted now");

		# Deletes in attached tables, by a role that may do nothing else.
		$node->safe_psql($db, 'DELETE FROM ab_user WHERE id = 1',
			extra_params => [ '-U', 'superset' ]);
		is( $node->safe_psql(
				$db, q{SELECT string_agg(concat_ws(':', key, created_by_fk), ',' ORDER BY key)
				FROM ext_storage.extension_storage}),
			'd:2,k,k2,new',
			"$name: a deleted user's entries go");
		$node->safe_psql($db, 'DELETE FROM dashboards', extra_params => [ '-U', 'app_owner' ]);
		is( $node->safe_psql(
				$db, q{SELECT string_agg(key, ',' ORDER BY key)
				FROM ext_storage.extension_storage}),
			'k,k2,new',
			"$name: and a deleted dashboard's");
		is( $node->safe_psql(
				$db, q{SELECT value_bytes FROM ext_storage.extension_storage_usage}),
			'898', "$name: which gives their bytes back");
	}
}

# A dump of public alone has no entries, and its restore no triggers; what the
# README says of it brings them back.
$node->command_ok(
	[ 'pg_dump', '-n', 'public', '-f', "$folder/public", $node->connstr('source') ],
	'dump of public');
$node->safe_psql('postgres', 'CREATE DATABASE public_only OWNER app_owner');
my $restore = $node->connstr('public_only') . ' user=app_owner';
my ($out, $err) = run_command([ 'psql', '-X', '-q', '-f', "$folder/public", $restore ]);
is(scalar(() = $err =~ /ERROR:  schema "ext_storage" does not exist/g), 4,
	'the restore of public fails to make the four triggers');
is($node->safe_psql('public_only', 'SELECT count(*) FROM ab_user'), '2', 'and has the tables');
$node->safe_psql(
	'public_only', q{
	CREATE SCHEMA ext_storage;
	CREATE EXTENSION extension_storage SCHEMA ext_storage CASCADE;
	SELECT ext_storage.ext_storage_attach_users();
	SELECT ext_storage.ext_storage_attach_resource('dashboard', 'dashboards');
	SELECT ext_storage.ext_storage_set('acme.app', 'k', 'x', user_fk => 1)},
	extra_params => [ '-U', 'app_owner' ]);
is($node->safe_psql('public_only', $attached), $source{attached}, 'they come back');
$node->safe_psql('public_only', 'DELETE FROM ab_user WHERE id = 1',
	extra_params => [ '-U', 'app_owner' ]);
is($node->safe_psql('public_only', 'SELECT count(*) FROM ext_storage.extension_storage'),
	'0', 'and delete');

# What a role was granted is taken back by whoever granted it, or a superuser,
# whose own REVOKE would take back nothing of what the holder granted.
for my $by (qw(app_owner postgres))
{
	$node->safe_psql('postgres', 'CREATE ROLE leaver');
	$node->safe_psql('public_only', q{SELECT ext_storage.ext_storage_grant('leaver', 'admin')},
		extra_params => [ '-U', 'app_owner' ]);
	$node->safe_psql('public_only', q{SELECT ext_storage.ext_storage_revoke('leaver')},
		extra_params => [ '-U', $by ]);
	is(($node->psql('postgres', 'DROP ROLE leaver'))[2], '', "$by takes everything back");
}
$node->safe_psql('postgres', 'CREATE ROLE leaver');
$node->safe_psql('public_only', q{SELECT ext_storage.ext_storage_grant('leaver', 'read')});
like(
	($node->psql('public_only', q{SELECT ext_storage.ext_storage_revoke('leaver')},
		extra_params => [ '-U', 'app_owner' ]))[2],
	qr/ERROR:  role leaver has rights that role postgres granted\n.*HINT:  Role postgres or a superuser can take them back\./s,
	'the holder cannot take back what a superuser granted');
like(
	($node->psql('public_only', q{SELECT ext_storage.ext_storage_revoke('app_owner')}))[2],
	qr/ERROR:  role app_owner owns table ext_storage\.extension_storage\n/,
	'nobody takes anything from the holder');
is($node->safe_psql('public_only', q{SELECT has_table_privilege('leaver', 'ext_storage.extension_storage', 'SELECT')}),
	't', 'and then takes back nothing');
$node->safe_psql('public_only', q{SELECT ext_storage.ext_storage_revoke('leaver')});
$node->safe_psql('postgres', 'DROP ROLE leaver');

$node->stop;
done_testing();
