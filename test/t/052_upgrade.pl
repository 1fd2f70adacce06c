# The way from 1.0 and 1.1 to the version here: with data in the table, it ends
# where a new installation starts, whoever made it; a dump of it restores.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# The superuser's name, whoever runs this.
$ENV{PGUSER} = 'postgres';

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init(extra => [ '-U', 'postgres' ]);
$node->start;
$node->safe_psql('postgres', q{CREATE ROLE app_owner LOGIN; CREATE ROLE app_user});

# All that the extension is: one line an object, with what can be asked of it.
my $describe = q{
SELECT line FROM (
	SELECT 'version ' || extversion || ' in ' || extnamespace::regnamespace::text
		|| ', dumped: ' || extconfig::regclass[]::text || extcondition::text
	FROM pg_extension WHERE extname = 'extension_storage'
	UNION ALL
	SELECT pg_describe_object(classid, objid, 0) || ': '
		|| coalesce(obj_description(objid, classid::regclass::name), 'no comment')
	FROM pg_depend d JOIN pg_extension x ON x.oid = refobjid
		AND refclassid = 'pg_extension'::regclass
	WHERE extname = 'extension_storage' AND d.deptype = 'e'
	UNION ALL
	SELECT concat_ws(' ', attrelid::regclass, attnum, attname,
		format_type(atttypid, atttypmod), attnotnull, attidentity, attstorage,
		attcollation::regcollation, attacl, pg_get_expr(adbin, adrelid),
		col_description(attrelid, attnum))
	FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
	WHERE attrelid::regclass::text ~ 'ext(ension)?_storage' AND attnum > 0
	UNION ALL
	SELECT concat_ws(' ', oid::regclass, relkind, relowner::regrole, relacl,
		relpersistence, reloptions, relrowsecurity, relreplident)
	FROM pg_class WHERE relname ~ '^(uq_|ck_|ix_)?ext(ension)?_storage'
	UNION ALL
	SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid))
	FROM pg_constraint WHERE conrelid::regclass::text ~ 'extension_storage'
	UNION ALL
	SELECT pg_get_indexdef(indexrelid) FROM pg_index
	WHERE indrelid::regclass::text ~ 'extension_storage'
	UNION ALL
	SELECT concat_ws(' ', pg_get_triggerdef(t.oid), tgenabled,
		obj_description(t.oid, 'pg_trigger'))
	FROM pg_trigger t WHERE tgrelid::regclass::text ~ 'extension_storage'
	UNION ALL
	SELECT concat_ws(' ', oid::regprocedure, proowner::regrole, prorettype::regtype,
		pg_get_function_arguments(oid), pg_get_function_result(oid), md5(prosrc), probin,
		provolatile, proparallel, prosecdef, proisstrict, prorows, proconfig,
		(SELECT string_agg(a::text, ',' ORDER BY a::text COLLATE "C") FROM unnest(proacl) a))
	FROM pg_proc WHERE proname ~ '^(ext_storage|fernet)_'
	UNION ALL
	SELECT concat_ws(' ', oid::regtype, typowner::regrole, typacl)
	FROM pg_type WHERE typname ~ '^ext(ension)?_storage'
	UNION ALL
	SELECT concat_ws(' ', nspname, nspowner::regrole, nspacl) FROM pg_namespace
	WHERE nspname = 'ext_storage'
	UNION ALL
	SELECT pg_describe_object(classoid, objoid, objsubid) || ' at first: '
		|| (SELECT string_agg(a::text, ',' ORDER BY a::text COLLATE "C") FROM unnest(initprivs) a)
	FROM pg_init_privs
	WHERE pg_describe_object(classoid, objoid, objsubid) ~ '(ext(ension)?_storage|fernet_)'
) l (line) ORDER BY line COLLATE "C"};
my $rows = q{SELECT md5(string_agg(e::text, ';' ORDER BY id)), count(*), max(id)
	FROM ext_storage.extension_storage e};
my $keys = q{SET extension_storage.encryption_keys = 'a secret';};

# A database of app_owner, with a version, or the newest, that a role installs.
sub install
{
	my ($db, $role, $version) = @_;
	my $which = defined $version ? "VERSION '$version'" : '';

	$node->safe_psql('postgres', "CREATE DATABASE $db OWNER app_owner");
	$node->safe_psql($db, "SET ROLE $role; CREATE SCHEMA ext_storage;
		CREATE EXTENSION extension_storage SCHEMA ext_storage $which CASCADE");
	$node->safe_psql($db, 'GRANT USAGE ON SCHEMA ext_storage TO app_owner') if $role ne 'app_owner';
}

# Every kind of entry, and ids that have run ahead.
sub fill
{
	my ($db) = @_;

	$node->safe_psql(
		$db, $keys . q{
		SELECT ext_storage.ext_storage_set('acme.app', k, decode(repeat('00ff', i * 100), 'hex'),
			'image/png', u, t, CASE t WHEN 'chart' THEN 'c1' END, 'cat', 'a text',
			i % 2 = 0, 7)
		FROM generate_series(1, 3) i, unnest(ARRAY['a', 'b']) k,
			unnest(ARRAY[NULL, 1, 2]) u, unnest(ARRAY[NULL, 'chart']) t;
		INSERT INTO ext_storage.extension_storage (extension_id, key, value)
		VALUES ('raw.app', 'k', 'by another program');
		DELETE FROM ext_storage.extension_storage WHERE key = 'a' AND user_fk = 2
			AND resource_type IS NOT NULL;
		GRANT SELECT ON ext_storage.extension_storage TO app_user;
		GRANT EXECUTE ON FUNCTION ext_storage.ext_storage_get TO app_user;
		GRANT EXECUTE ON FUNCTION ext_storage.ext_storage_key_status TO app_user;
		DO $$ BEGIN
			IF (SELECT extversion FROM pg_extension WHERE extname = 'extension_storage') = '1.1' THEN
				GRANT EXECUTE ON FUNCTION ext_storage.ext_storage_count_rows TO PUBLIC, app_user;
			END IF;
		END $$;
		CREATE VIEW public.key_use AS SELECT * FROM ext_storage.ext_storage_key_status()});
}

for my $role (qw(postgres app_owner))
{
	my ($old, $new, $restored) = map { "${_}_$role" } qw(old new restored);

	install($old, $role, '1.0');
	install($new, $role);
	fill($_) for $old, $new;
	my ($rc, $out, $err) = $node->psql($old,
		q{SET extension_storage.quota_per_extension = 1000;
		SELECT ext_storage.ext_storage_set('acme.app', 'new', 'x')});
	like($err, qr/HINT:  Run ALTER EXTENSION extension_storage UPDATE\./,
		"$role: 1.0 says that a quota needs an update");

	is($node->safe_psql($old, $keys . 'SELECT ordinal, role, removable FROM key_use ORDER BY 1'),
		"1|encrypts|f\n|unknown|", "$role: the status of 1.0's keys, from the new library");
	my $before = $node->safe_psql($old, $rows);
	my $update = "ALTER EXTENSION extension_storage UPDATE";
	if ($role eq 'postgres')
	{
		# The holder owns the table, and cannot get at it.
		my $hint = 'GRANT USAGE ON SCHEMA ext_storage TO app_owner';
		$node->safe_psql($old, 'REVOKE USAGE ON SCHEMA ext_storage FROM app_owner');
		($rc, $out, $err) = $node->psql($old, "BEGIN; $update; SET LOCAL client_min_messages = error;
			SET extension_storage.quota_per_extension = 7000;
			SELECT ext_storage.ext_storage_set('acme.app', 'new', 'x')");
		like($err, qr/WARNING:  role app_owner .* no right to use schema.*\n.*\nHINT:  Run $hint$/m,
			'the update warns of a holder who may not use the schema');
		like($err, qr/ERROR:  permission denied for schema ext_storage\nDETAIL:  .*app_owner.*\nHINT:  .*: $hint$/m,
			'and a quota, and a superuser, are refused then');
		$node->safe_psql($old, $hint);
	}
	$node->safe_psql($old, "SET ROLE $role; $update");
	is($node->safe_psql($old, $rows), $before, "$role: every row is as it was");

	my $description = $node->safe_psql($new, $describe);
	my @lines = split /\n/, $description;
	cmp_ok(scalar(@lines), '>', 150, "$role: a new one is described");
	is($node->safe_psql($old, $describe), $description,
		"$role: the updated one is what a new one is");

	is( $node->safe_psql(
			$old, $keys . q{
			SET search_path = ext_storage;
			SET extension_storage.quota_per_extension = 7000;
			SELECT octet_length(ext_storage_get('acme.app', 'b', 1));
			SELECT version FROM ext_storage_set('acme.app', 'b', 'new', user_fk => 1);
			SELECT version FROM ext_storage_set('acme.app', 'next', 'new');
			SELECT key FROM extension_storage ORDER BY id DESC LIMIT 1;
			SELECT ext_storage_purge_user(2);
			SELECT count(*) FROM ext_storage_verify();
			SELECT u.value_bytes = c.value_bytes FROM ext_storage_usage() u
				JOIN extension_storage_usage c USING (extension_id)
				WHERE extension_id = 'acme.app'}),
		"600\n4\n1\nnext\n3\n0\nt",
		"$role: it works");

	# ext_storage_key_status has one column more, and who may call it still may;
	# a view from before has the columns that it had.
	my $sources = q{SELECT string_agg(coalesce(source, role), '; ' ORDER BY ordinal)
		FROM ext_storage.ext_storage_key_status()};
	my $rights = q{SELECT string_agg(concat_ws(' ', role,
			has_function_privilege(role, 'ext_storage.ext_storage_key_status()', 'EXECUTE'),
			has_function_privilege(role, 'ext_storage.ext_storage_key_status()', 'EXECUTE WITH GRANT OPTION')), ', ')
		FROM unnest(ARRAY['app_owner', 'app_user']) role};
	is($node->safe_psql($old, $keys . $sources),
		'extension_storage.encryption_keys, item 1; unknown',
		"$role: each key says where it comes from");
	is($node->safe_psql($old, $rights), 'app_owner t t, app_user t f',
		"$role: rights to a function that the update changes stay");
	is($node->safe_psql($old, $keys . 'SELECT ordinal, role, removable FROM key_use ORDER BY 1'),
		"1|encrypts|f\n|unknown|", "$role: and so do views of it");

	# Updated, dumped and restored.
	$before = $node->safe_psql($old, $rows);
	my $dump = $node->basedir . "/$role.dump";
	$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr($old) ],
		"$role: it is dumped");
	$node->safe_psql('postgres', "CREATE DATABASE $restored OWNER app_owner");
	$node->command_ok(
		[ 'pg_restore', '--exit-on-error', '-d', $node->connstr($restored), $dump ],
		"$role: and restored");
	is($node->safe_psql($restored, $rows), $before, "$role: with every row");
	is(without_counting($node->safe_psql($restored, $describe)),
		without_counting($node->safe_psql($old, $describe)),
		"$role: and everything else");
	is($node->safe_psql($restored, $rights), 'app_owner t t, app_user t f',
		"$role: with the rights to what the update changed");
	is($node->safe_psql($restored, $keys . 'SELECT ordinal, role, removable FROM key_use ORDER BY 1'),
		"1|encrypts|f\n|unknown|", "$role: and the views of it");
}

# From 1.1, with counting switched on, rights by level, attached tables, and
# rows that the newest would not take.
{
	my ($old, $new, $restored) = ('old_1', 'new_1', 'restored_1');

	$node->safe_psql('postgres', 'CREATE ROLE app_writer LOGIN; CREATE ROLE app_admin LOGIN');
	install($old, 'app_owner', '1.1');
	install($new, 'app_owner');
	fill($_) for $old, $new;
	my $setup = q{SET ROLE app_owner;
		SELECT ext_storage.ext_storage_grant('app_writer', 'write');
		SELECT ext_storage.ext_storage_grant('app_admin', 'admin');
		CREATE SCHEMA app; CREATE TABLE app.ab_user (id integer PRIMARY KEY);
		CREATE TABLE app.slices (uuid text);
		INSERT INTO app.ab_user VALUES (1), (2); INSERT INTO app.slices VALUES ('c1');
		SELECT ext_storage.ext_storage_attach_users('app.ab_user');
		SELECT ext_storage.ext_storage_attach_resource('chart', 'app.slices', 'uuid')};
	$node->safe_psql($old, $setup);
	$node->safe_psql($old, q{
		SET extension_storage.quota_per_extension = '1MB';
		SELECT ext_storage.ext_storage_set('acme.app', 'counted', '12345');
		INSERT INTO ext_storage.extension_storage (extension_id, key, value, value_size, description)
		VALUES ('bad.app', 'size', 'xyz', -5, NULL), ('bad.app', 'words', 'xyz', 3, repeat('x', 65536))});
	# what an update cannot know: the counts in a publication, a rule of their own for rows
	$node->safe_psql($old, q{CREATE PUBLICATION counts FOR TABLE ext_storage.extension_storage_usage;
		INSERT INTO ext_storage.extension_storage (extension_id, key, value, value_size) VALUES ('bad.app', 'kept', 'xyz', -5);
		ALTER TABLE ext_storage.extension_storage ADD CONSTRAINT own CHECK (key <> 'kept') NOT VALID});
	my ($failed, undef, $reason) = $node->psql($old, 'ALTER EXTENSION extension_storage UPDATE');
	like($reason, qr/WARNING:  entries with a negative value_size remain\nDETAIL:  [^\n]*"own"\n/,
		'what the own constraint refuses is left and named');
	like($reason, qr/ERROR:  cannot change table "extension_storage_usage" to unlogged because it is (?:part of|referenced by) a publication/,
		'a publication of the counts stops an update');
	$node->safe_psql($old, q{ALTER PUBLICATION counts DROP TABLE ext_storage.extension_storage_usage;
		BEGIN; ALTER EXTENSION extension_storage UPDATE; ROLLBACK;
		ALTER TABLE ext_storage.extension_storage DROP CONSTRAINT own;
		DELETE FROM ext_storage.extension_storage WHERE key = 'kept'});
	is($node->safe_psql($old, q{SELECT string_agg(tgenabled::text, '') FROM pg_trigger
			WHERE tgrelid = 'ext_storage.extension_storage'::regclass}), 'AA', '1.1 counts');
	my $sizes = q{UPDATE ext_storage.extension_storage SET value_size = NULL WHERE value_size < 0; };
	my $before = $node->safe_psql($old, "BEGIN; $sizes $rows; ROLLBACK");
	my ($rc, $out, $err) = $node->psql($old,
		"SET SESSION AUTHORIZATION app_owner; BEGIN; DECLARE own CURSOR FOR SELECT 'own';
		ALTER EXTENSION extension_storage UPDATE; FETCH own; COMMIT");
	is($rc, 0, '1.1 is updated, whatever is in the table, and whatever cursor its owner has open');
	like($err, qr/WARNING:  1 entries have a description of more than 65535 characters\n.*\n.*HINT:  .*SELECT id/s,
		'and says what is not as it should be');
	is($node->safe_psql($old, $rows), $before, 'every row is as it was, but for a size that was none');
	($rc, $out, $err) = $node->psql($old,
		q{UPDATE ext_storage.extension_storage SET version = 2 WHERE key = 'words'});
	like($err, qr/violates check constraint "ck_extension_storage_description"/,
		'a row that breaks a constraint can be read, not changed');
	# what the README tells to do about it
	my ($shorten) = slurp_file('README.md') =~ /^(UPDATE [^;]*\bdescription = left[^;]*);/m;
	is($node->safe_psql($old, "$shorten RETURNING key"), 'words', 'its statement finds it');

	is( $node->safe_psql($old, q{SET extension_storage.quota_per_extension = '1MB';
			SELECT count(*) FROM ext_storage.extension_storage_usage;
			SELECT version FROM ext_storage.ext_storage_set('acme.app', 'counted', '123');
			SELECT count(*), bool_and(u.value_bytes = c.value_bytes) FROM ext_storage.ext_storage_usage() u
			FULL JOIN ext_storage.extension_storage_usage c USING (extension_id)}),
		"0\n2\n3|t", 'the next write counts anew');
	$node->safe_psql($old, q{DELETE FROM ext_storage.extension_storage
			WHERE extension_id = 'bad.app' OR key = 'counted';
		ALTER TABLE ext_storage.extension_storage DISABLE TRIGGER extension_storage_count_rows,
			DISABLE TRIGGER extension_storage_count});
	$node->safe_psql($new, $setup);

	# the attached tables work on, and again attached have what is new
	is($node->safe_psql($old, q{BEGIN; DELETE FROM app.ab_user WHERE id = 1; DELETE FROM app.slices;
			SELECT count(*) FROM ext_storage.extension_storage WHERE user_fk = 1 OR resource_type = 'chart';
			ROLLBACK}), 0, 'attached tables work on');
	$node->safe_psql($old, q{SET ROLE app_owner;
		SELECT ext_storage.ext_storage_attach_resource('chart', 'app.slices', 'uuid')});
	# so do the levels, and given again they have what is new
	my $new_functions = q{SELECT string_agg(concat_ws(' ', role, has_function_privilege(role, function, 'EXECUTE')), ', ' ORDER BY role)
		FROM unnest(ARRAY['app_writer', 'app_admin']) role, ext_storage.ext_storage_functions()
		WHERE function::text LIKE '%ext_storage_rename(%'};
	is($node->safe_psql($old, $new_functions), 'app_admin f, app_writer f', 'what is new is granted to nobody');
	$node->safe_psql($old, q{SET ROLE app_owner; SELECT ext_storage.ext_storage_grant('app_writer', 'write');
		SELECT ext_storage.ext_storage_grant('app_admin', 'admin')});
	is($node->safe_psql($old, $new_functions), 'app_admin t, app_writer t', 'until the level is granted again');
	is($node->safe_psql($old, $describe), $node->safe_psql($new, $describe),
		'then the updated 1.1 is what a new one is');

	$before = $node->safe_psql($old, $rows);
	my $dump = $node->basedir . '/1.1.dump';
	my $warnings = '';
	ok(IPC::Run::run([ 'pg_dump', '-Fc', '-f', $dump, '-d', $node->connstr($old) ], '2>', \$warnings)
		&& $warnings eq '', 'it is dumped without a warning') or diag($warnings);
	$node->safe_psql('postgres', "CREATE DATABASE $restored OWNER app_owner");
	$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr($restored), $dump ],
		'and restored');
	is($node->safe_psql($restored, $rows), $before, 'with every row');
	is(without_counting($node->safe_psql($restored, $describe)),
		without_counting($node->safe_psql($old, $describe)), 'and everything else');
	is($node->safe_psql($restored, q{SET ROLE app_owner; DELETE FROM app.slices;
			SELECT count(*) FROM ext_storage.extension_storage WHERE resource_type = 'chart'}),
		0, 'attached tables too');
}

# The description without what a restore does not bring back: the counting of
# bytes, and who was superuser enough to own the functions.
sub without_counting
{
	my ($description) = @_;

	$description =~ s/^(CREATE TRIGGER .*\)) [AD] /$1 /mg;
	return $description;
}

$node->stop;
done_testing();
