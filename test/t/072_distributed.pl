# Tables distributed by Citus: ext_storage_distribute(), and what the library
# sends to such tables.  No Citus is needed.  A stand-in of that name notes which
# tables it is given, and refuses what Citus does; the statements are taken from
# the log and compared with what Citus can plan.

use strict;
use warnings FATAL => 'all';

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# The superuser's name, whoever runs this.
$ENV{PGUSER} = 'postgres';

my $source = "$FindBin::Bin/../..";
my $pg_config = $ENV{PG_CONFIG} // 'pg_config';
chomp(my $sharedir = `$pg_config --sharedir`);
chomp(my $includedir = `$pg_config --includedir-server`);
chomp(my $cc = `$pg_config --cc`);
my $home = '"Odd Home"';
my $owner = 'Odd "Owner"';
my $node = PostgreSQL::Test::Cluster->new('main');

# -- the stand-in --

# Citus's rules for a table that is to be distributed; how it calls itself is
# the documented interface.
my $control = q{
comment = 'stand-in for Citus'
default_version = '1.0'
relocatable = false
schema = pg_catalog
};
my $script = <<'END_SCRIPT';
CREATE SCHEMA citus;
CREATE TYPE citus.distribution_type AS ENUM ('hash', 'range', 'append');
CREATE TABLE citus.pg_dist_partition (
    logicalrelid regclass PRIMARY KEY, partkey text, colocationid serial,
    partmethod "char" NOT NULL DEFAULT 'h');
ALTER TABLE citus.pg_dist_partition SET SCHEMA pg_catalog;
GRANT SELECT ON pg_catalog.pg_dist_partition TO public;

CREATE FUNCTION pg_catalog.create_distributed_table(
    table_name regclass, distribution_column text,
    distribution_type citus.distribution_type DEFAULT 'hash',
    colocate_with text DEFAULT 'default', shard_count int DEFAULT NULL)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF (SELECT pg_get_userbyid(relowner) <> session_user FROM pg_class WHERE oid = table_name) THEN
        RAISE EXCEPTION 'must be owner of table %', table_name;
    END IF;
    IF EXISTS (
        SELECT FROM pg_index i WHERE indrelid = table_name AND (indisunique OR indisprimary)
            AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = table_name
                AND a.attname = distribution_column AND a.attnum = ANY (i.indkey))) THEN
        RAISE EXCEPTION 'cannot create constraint on "%"', table_name;
    END IF;
    IF EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = table_name AND attidentity <> ''
            AND atttypid <> 'bigint'::regtype) THEN
        RAISE EXCEPTION 'cannot complete operation on % with smallint/int identity column', table_name;
    END IF;
    IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = table_name AND NOT tgisinternal)
        AND coalesce(current_setting('citus.enable_unsafe_triggers', true), '') <> 'on' THEN
        RAISE EXCEPTION 'cannot distribute relation % because it has triggers', table_name;
    END IF;
    IF current_setting('stand_in.fails_at', true) = (SELECT relname FROM pg_class WHERE oid = table_name) THEN
        RAISE EXCEPTION 'a worker is down';
    END IF;
    IF colocate_with = 'none' THEN
        INSERT INTO pg_catalog.pg_dist_partition VALUES (table_name, distribution_column);
    ELSE
        INSERT INTO pg_catalog.pg_dist_partition
        SELECT table_name, distribution_column, colocationid FROM pg_catalog.pg_dist_partition
        WHERE logicalrelid = colocate_with::regclass;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'relation % is not distributed', colocate_with;
        END IF;
    END IF;
END $$;
END_SCRIPT

# Makes it an extension that the server finds, beside those that it found.
sub install_stand_in
{
	my $folder = $node->basedir . '/stand-in';
	my %found = map { split /\|/, $_, 2 } split /\n/, $node->safe_psql('postgres',
		q{SELECT name, setting FROM pg_settings
			WHERE name IN ('extension_control_path', 'extension_destdir')});
	my $files;

	mkdir $folder or die "mkdir $folder: $!";
	if (defined $found{extension_control_path})
	{
		$files = "$folder/extension";
		$node->append_conf('postgresql.conf',
			"extension_control_path = '$folder:$found{extension_control_path}'");
	}
	else
	{
		my $before = $found{extension_destdir};

		$files = "$folder$sharedir/extension";
		system_or_bail('cp', '-rs', "$before/.", $folder) if $before ne '';
		$node->append_conf('postgresql.conf', "extension_destdir = '$folder'");
	}
	system_or_bail('mkdir', '-p', $files);
	append_to_file("$files/citus.control", $control);
	append_to_file("$files/citus--1.0.sql", $script);
	$node->restart;
}

# -- ext_storage_distribute() --

$node->init(extra => [ '-U', 'postgres', '-E', 'UTF8', '--no-locale' ]);
$node->append_conf('postgresql.conf', q{
	max_prepared_transactions = 2
	shared_preload_libraries = 'extension_storage'});
$node->start;
install_stand_in();
$node->safe_psql('postgres', qq{
	CREATE ROLE "Odd ""Owner""" LOGIN;
	CREATE ROLE friend LOGIN;
	CREATE ROLE stranger LOGIN;
	CREATE DATABASE app OWNER "Odd ""Owner"""});
$node->safe_psql('app', qq{CREATE EXTENSION pgcrypto; CREATE SCHEMA $home; CREATE EXTENSION extension_storage SCHEMA $home;
	GRANT ALL ON SCHEMA $home TO PUBLIC});

# Runs SQL as a role, by default the holder's.  Returns what came out, and what
# was said, with its SQLSTATE.
sub run
{
	my ($sql, $role, $database) = @_;
	my ($rc, $out, $err) = $node->psql(
		$database // 'app', "SET search_path = $home, public; $sql",
		on_error_die => 0,
		extra_params => [ '-U', $role // $owner, '-v', 'VERBOSITY=verbose', '-v', 'SHOW_CONTEXT=never' ]);
	$err =~ s/^psql:<stdin>:\d+: //mg;
	$err =~ s/^LOCATION:.*\n?//mg;
	chomp $err;
	return wantarray ? ($out, $err) : $out;
}

sub error
{
	my ($out, $err) = run(@_);
	return $err;
}

my $distribute = 'SELECT ext_storage_distribute()';
my $constraints = q{SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
	WHERE conrelid = 'extension_storage'::regclass AND contype IN ('p', 'u') ORDER BY 1};
my $state = qq{$constraints;
	SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'extension_storage'::regclass ORDER BY 1;
	SELECT atttypid::regtype FROM pg_attribute WHERE attrelid = 'extension_storage'::regclass AND attname = 'id';
	SELECT seqtypid::regtype FROM pg_sequence
		WHERE seqrelid = pg_get_serial_sequence('extension_storage', 'id')::regclass;
	SELECT count(*) FROM extension_storage_usage};
my $rows = q{SELECT id, uuid, extension_id, user_fk, resource_type, resource_uuid, key, category, description,
	value, value_type, is_encrypted, created_on, changed_on, created_by_fk, changed_by_fk, version, value_size
	FROM extension_storage ORDER BY id};

# A table with data, of which bytes were counted, and a table attached to it.
run(q{
	CREATE TABLE ab_user (id integer PRIMARY KEY);
	CREATE TABLE dashboards (id integer PRIMARY KEY, uuid uuid);
	INSERT INTO ab_user VALUES (1), (2), (3), (4);
	INSERT INTO dashboards VALUES (1, md5('1')::uuid), (2, md5('2')::uuid);
	SELECT ext_storage_attach_users('ab_user'), ext_storage_attach_resource('dashboard', 'dashboards')});
run(q{
	SET extension_storage.quota_per_extension = '1MB';
	SELECT ext_storage_set('acme.a', 'first', 'x');
	RESET extension_storage.quota_per_extension}, 'postgres');
run(q{
	SET extension_storage.encryption_keys = 'old';
	SELECT ext_storage_set('acme.' || x, 'k' || i, 'words', is_encrypted => true, actor_fk => i)
	FROM unnest('{a,b}'::text[]) x, generate_series(1, 3) i;
	SELECT ext_storage_set('acme.a', 'mine', 'words', user_fk => i) FROM generate_series(1, 4) i;
	SELECT ext_storage_set('acme.b', 'its', 'words', resource_type => 'dashboard', resource_uuid => uuid::text)
	FROM dashboards});
my $rows_before = run($rows);
my $state_before = run($state);

is(scalar(split /\n/, $rows_before), 13, 'the table has data');
like($state_before, qr/^extension_storage_count\|A\n.*^integer\ninteger\n2$/ms, 'and its bytes are counted');

is(error($distribute), q{ERROR:  0A000: extension "citus" is not installed in this database
DETAIL:  It is what distributes tables over several servers.
HINT:  Install Citus, and then let a superuser run CREATE EXTENSION citus.},
	'without Citus');
like(error($distribute, 'stranger'), qr/^ERROR:  42501: permission denied for function ext_storage_distribute$/,
	'a role without the right to call it');
run('GRANT EXECUTE ON FUNCTION ext_storage_distribute() TO friend');
my $not_owner = qr/^ERROR:  42501: must be owner of table \Q$home\E\.extension_storage
HINT:  Connect as role "Odd ""Owner"""\.$/;
like(error($distribute, 'friend'), $not_owner, 'a role with the right, which is not the holder');
like(error($distribute, 'postgres'), $not_owner, 'a superuser who is not the holder');
$node->safe_psql('app', 'CREATE EXTENSION citus');
like(error($distribute, 'friend'), $not_owner, 'the same where Citus is');

$node->append_conf('postgresql.conf', "extension_storage.quota_per_extension = '1MB'");
$node->reload;
$node->poll_query_until('app', q{SELECT current_setting('extension_storage.quota_per_extension') = '1048576'});
is(error($distribute), q{ERROR:  0A000: quotas are not supported where table "extension_storage" is distributed
HINT:  Set extension_storage.quota_per_extension to 0.}, 'under a quota');
$node->append_conf('postgresql.conf', 'extension_storage.quota_per_extension = 0');
$node->reload;
$node->poll_query_until('app', q{SELECT current_setting('extension_storage.quota_per_extension') = '0'});

like(error("SET stand_in.fails_at = 'extension_storage_usage'; $distribute"), qr/^ERROR:  P0001: a worker is down$/m,
	'Citus fails at the second table');
is(run($state), $state_before, 'what was there before the errors is there after them');
is(run('SELECT count(*) FROM pg_dist_partition'), '0', 'nothing is distributed');
is(run("BEGIN; $distribute; ROLLBACK; $state"), "BEGIN\n\nROLLBACK\n$state_before" =~ s/^(BEGIN|ROLLBACK)\n//mgr,
	'it can be rolled back');

run("INSERT INTO pg_catalog.pg_dist_partition VALUES ('extension_storage_usage', NULL, 1, 'n')", 'postgres');
is(error($distribute), qq{ERROR:  55000: table $home.extension_storage_usage is a table of Citus that is not distributed by a column
HINT:  Restore a dump into another database, where it is an ordinary table: Citus does not undistribute a table of an extension.}, 'where one is a reference table');
run('DELETE FROM pg_catalog.pg_dist_partition', 'postgres');

my $notice = qr/^NOTICE:  00000: tables \Q$home\E\.extension_storage and \Q$home\E\.extension_storage_usage are distributed by extension_id
DETAIL:  A uuid is unique within its extension only\. Quotas and ext_storage_purge_orphans are refused, and ext_storage_key_status does not know whether a key is removable\.
HINT:  A dump does not contain this: see "Beyond one machine" in the README before you restore one\.$/;
my ($out, $err) = run("SET citus.enable_unsafe_triggers = off; $distribute; SHOW citus.enable_unsafe_triggers");
like($err, $notice, 'it says what no longer holds');
is($out, "\noff", 'the setting of Citus is as it was');
is(run(q{SELECT logicalrelid, partkey, colocationid = min(colocationid) OVER () FROM pg_dist_partition ORDER BY 1}),
	"extension_storage|extension_id|t\nextension_storage_usage|extension_id|t",
	'both tables are distributed, colocated');
my $distributed = q{extension_storage_pkey|PRIMARY KEY (extension_id, id)
uq_extension_storage_scoped_key|UNIQUE NULLS NOT DISTINCT (extension_id, user_fk, resource_type, resource_uuid, key)
uq_extension_storage_uuid|UNIQUE (extension_id, uuid)
extension_storage_count|D
extension_storage_count_rows|D
bigint
bigint
0};
is(run($state), $distributed, 'each unique constraint has extension_id, and nothing is counted');
is(run($rows), $rows_before, 'every row is there');
like(run(q{INSERT INTO extension_storage (extension_id, key, value) VALUES ('acme.c', 'plain', 'x') RETURNING id}),
	qr/^1\d$/, 'ids go on');

($out, $err) = run($distribute);
like($err, qr/^NOTICE:  00000: tables \Q$home\E\.extension_storage and \Q$home\E\.extension_storage_usage are already distributed$/,
	'a second call says so');
is(run($state), $distributed, 'and changes nothing');
run('DELETE FROM pg_catalog.pg_dist_partition WHERE logicalrelid = ' . "'extension_storage_usage'::regclass", 'postgres');
like(error($distribute), $notice, 'one that finds half of it done');
is(run('SELECT count(DISTINCT colocationid), count(*) FROM pg_dist_partition'), '1|2', 'does the rest');

# -- what is refused, and what is not known --

like(error(q{SET extension_storage.quota_per_extension = 100; SELECT ext_storage_set('acme.a', 'k', 'x')}, 'postgres'),
	qr/^ERROR:  0A000: quotas are not supported where table "extension_storage" is distributed
HINT:  Set extension_storage\.quota_per_extension to 0\.$/, 'a write under a quota');
is_deeply([ run(q{SET extension_storage.quota_per_extension = 100; SELECT ext_storage_purge_extension('acme.c')}, 'postgres') ],
	[ '1', '' ], 'a purge works');
is(error('SELECT ext_storage_purge_orphans()'),
	q{ERROR:  0A000: ext_storage_purge_orphans is not supported where table "extension_storage" is distributed
DETAIL:  It compares the table with others, which are not distributed in the same way.
HINT:  Call ext_storage_purge_user or ext_storage_purge_resource for each user or resource that is gone.},
	'ext_storage_purge_orphans');
is(run(q{SELECT key, value_size FROM ext_storage_get_many('acme.a', '{first,none,first}')}), "first|1\nfirst|1",
	'several keys, in their order');
my $status = q{SELECT ordinal, entries, removable FROM ext_storage_key_status()};
($out, $err) = run("SET extension_storage.encryption_keys = 'new,old,older'; $status");
is($out, "1|0|f\n2|6|f\n3|0|\n|0|", 'removable is null where it would be true');
like($err, qr/^WARNING:  55006: it is not known whether a key is removable
DETAIL:  The table is distributed, and this server does not know what is being written on others\.
HINT:  Ask again while nothing writes\. A key that has no entries then is not needed\.$/, 'and a warning says why');

# -- the statements --

# The conditions that a statement's rows must all fulfil.
sub conditions
{
	my ($sql) = @_;
	my @conditions = ('');
	my $depth = 0;
	my $inside = 0;

	for my $word ($sql =~ /[()]|[^\s()]+|\s+/g)
	{
		$depth += $word eq '(' ? 1 : $word eq ')' ? -1 : 0;
		if ($depth == 0 && $word =~ /^(WHERE|ON|CONFLICT)$/) { $inside = 1; next }
		last if $inside && $depth == 0 && $word =~ /^(ORDER|GROUP|LIMIT|FOR|RETURNING)$/;
		if ($inside && $depth == 0 && $word eq 'AND') { push @conditions, ''; next }
		$conditions[-1] .= $word if $inside;
	}
	return map { s/^\s+|\s+$//gr } @conditions;
}

my $equals = qr/OPERATOR\(pg_catalog\.=\)/;

# Does a statement go to one shard, whatever its parameters are?  Citus has a
# generic plan for it only if it reads this table alone.
sub is_for_one
{
	my ($sql) = @_;

	return $sql =~ /^INSERT INTO [^()]+ \(extension_id, [^()]*\) VALUES \(\$1, .* ON CONFLICT (?:\(extension_id, [^()]*\) )?DO NOTHING/
	  if $sql =~ /^INSERT/;
	return 0 if $sql =~ / FROM .*( FROM |JOIN|LATERAL)/;
	return grep { /^e\.extension_id\s+$equals\s+\$1$/ } conditions($sql);
}

# Is a statement over all shards one that Citus can plan once for all
# parameters?  A SELECT must not have any, nor lock rows; a change must not read
# any other table.
sub is_for_all
{
	my ($sql) = @_;

	return $sql !~ /\$\d| FOR / if $sql =~ /^SELECT/;
	return $sql =~ /^(UPDATE|DELETE) / && $sql !~ /SELECT|USING| FROM .* FROM /;
}

my $eq = 'OPERATOR(pg_catalog.=)';
ok(is_for_one("DELETE FROM s.extension_storage AS e WHERE e.extension_id $eq \$1 AND (e.key $eq \$2 OR \$2 IS NULL)"),
	'such a statement names its extension');
ok(!is_for_one($_), "such a one does not: $_")
  for "SELECT 1 FROM s.extension_storage AS e WHERE (\$1 IS NULL OR e.extension_id $eq \$1)",
  "SELECT 1 FROM s.extension_storage AS e WHERE e.extension_id $eq \$1 OR e.id $eq \$2",
  "SELECT e.extension_id $eq \$1 FROM s.extension_storage AS e WHERE e.id $eq \$2",
  "SELECT 1 FROM s.extension_storage AS e WHERE e.id $eq \$1 ORDER BY e.extension_id $eq \$1",
  'INSERT INTO s.extension_storage AS e (key, extension_id) VALUES ($1, $2) ON CONFLICT DO NOTHING',
  'INSERT INTO s.extension_storage AS e (extension_id, key) VALUES ($1, $2) ON CONFLICT (uuid) DO NOTHING';
ok(!is_for_all($_), "Citus cannot plan: $_")
  for "SELECT 1, \$1 FROM s.extension_storage AS e", 'SELECT 1 FROM s.extension_storage AS e FOR UPDATE',
  'UPDATE s.extension_storage AS e SET key = $1 WHERE e.user_fk IN (SELECT 1)',
  'INSERT INTO s.extension_storage AS e SELECT 1';

my $explain = q{
	LOAD 'auto_explain';
	SET auto_explain.log_min_duration = 0;
	SET auto_explain.log_nested_statements = on;
	SET extension_storage.rotation_lock_wait = 0;
};
my $old = "SET extension_storage.encryption_keys = 'old';";
my $new = "SET extension_storage.encryption_keys = 'new,old';";
my $third = "SET extension_storage.encryption_keys = 'third,new,old';";
my @seen;

# Statements that a call runs over the table.
sub statements_of
{
	my ($sql) = @_;
	my $offset = -s $node->logfile;
	my ($out, $err) = run("$explain $sql", 'postgres');

	unlike($err, qr/ERROR/, "no error: $sql");
	my @texts = grep { /\.extension_storage AS e\b/ }
	  map { s/\s+$//r } slurp_file($node->logfile, $offset) 
	  =~ m{^\s*Query Text: (?:/\* statement of extension_storage \*/ )?(.*)$}mg;
	push @seen, @texts;
	return @texts;
}

# A rotation of rows of which a prepared transaction has locked one.
run(q{
	BEGIN; SELECT FROM extension_storage WHERE extension_id = 'acme.b' AND key = 'k2' FOR UPDATE;
	PREPARE TRANSACTION 'locks'});
is(join("\n", grep { !is_for_one($_) } statements_of("$new CALL ext_storage_rotate_keys('acme.b')")), '',
	'a rotation of an extension names it in each statement');
is(run("$new SELECT entries FROM ext_storage_key_status() WHERE ordinal = 1"), '2', 'it has rotated two rows of three');
run("ROLLBACK PREPARED 'locks'");

run(q{
	CREATE TABLE first_storage (
		id serial PRIMARY KEY, uuid uuid, extension_id varchar(255), user_fk integer,
		resource_type varchar(64), resource_uuid varchar(36), key varchar(255), category varchar(64),
		description text, value bytea, value_type varchar(255), is_encrypted boolean,
		created_on timestamp, changed_on timestamp, created_by_fk integer, changed_by_fk integer);
	INSERT INTO first_storage (extension_id, key, value, changed_on) VALUES
		('acme.moved', 'k', 'x', 'now'), ('acme.a', 'first', 'y', '2100-01-01'), ('acme.a', 'mine', 'y', NULL)});

# The calls that are about one extension, and those over all.
my @scopes = ('', ', user_fk => 1', ", resource_type => 'chart', resource_uuid => 'c'",
	", user_fk => 1, resource_type => 'chart', resource_uuid => 'c'");
my @for_one = (
	(map { "$old SELECT ext_storage_set('acme.a', 'n', '1', is_encrypted => $_)" } qw(NULL false true NULL)),
	"SELECT ext_storage_set('acme.a', 'v', '1', if_version => 0); SELECT ext_storage_set('acme.a', 'v', '1', if_version => 1)",
	"SELECT ext_storage_set_json('acme.a', 'j', '1')",
	"SELECT ext_storage_set_many('acme.a', '{x,y,z}', '{1,2,3}')",
	"SELECT ext_storage_get_json('acme.a', 'j')",
	"SELECT ext_storage_rename('acme.a', 'j', 'i'); SELECT ext_storage_rename('acme.a', 'j', 'i2')",
	"SELECT ext_storage_delete('acme.a', 'v', if_version => 2); SELECT ext_storage_delete('acme.a', 'v')",
	"SELECT ext_storage_delete_many('acme.a', '{x,none}')",
	"SELECT ext_storage_delete_prefix('acme.a', 'y')",
	(
		map {
			my $scope = $_;
			map { sprintf $_, $scope }
			  "SELECT ext_storage_get('acme.a', 'x'%s)",
			  "SELECT * FROM ext_storage_get_entry('acme.a', 'x'%s)",
			  "SELECT * FROM ext_storage_get_many('acme.a', '{first,x}'%s)",
			  "SELECT * FROM ext_storage_list('acme.a'%s)",
			  "SELECT * FROM ext_storage_list('acme.a'%s, category => 'c', key_prefix => 'x', after_key => 'x')",
			  "SELECT * FROM ext_storage_list_newest('acme.a'%s)",
			  "SELECT * FROM ext_storage_list_newest('acme.a'%s, after_changed_on => 'now', after_key => 'x')",
			  "SELECT * FROM ext_storage_list_values('acme.a'%s)",
			  "SELECT * FROM ext_storage_list_values('acme.a'%s, newest_first => true)",
			  "SELECT ext_storage_count('acme.a'%s)",
			  "SELECT ext_storage_count('acme.a'%s, category => 'c', key_prefix => 'x')"
		} @scopes),
	"$new SELECT * FROM ext_storage_verify('acme.a')",
	"$old CALL ext_storage_move_in('first_storage', dry_run => true)",
	"$old CALL ext_storage_move_in('first_storage')",
	"SELECT ext_storage_purge_extension('acme.moved')");
my @for_all = (
	"$new SELECT * FROM ext_storage_verify()",
	"$new SELECT * FROM ext_storage_key_status()",
	"SELECT * FROM ext_storage_usage()",
	"SELECT ext_storage_purge_user(1)",
	"SELECT ext_storage_purge_resource('chart', 'c')",
	'DELETE FROM ab_user WHERE id = 2',
	'DELETE FROM dashboards WHERE id = 1',
	'TRUNCATE ab_user',
	'TRUNCATE dashboards');

for my $call (@for_one)
{
	my @statements = statements_of($call);

	ok(@statements > 0, 'its statements are in the log');
	is(join("\n", grep { !is_for_one($_) } @statements), '', 'each of them names the extension');
}
for my $call (@for_all)
{
	my @statements = statements_of($call);

	ok(@statements > 0, 'its statements are in the log');
	is(join("\n", grep { !is_for_one($_) && !is_for_all($_) } @statements), '',
		'each of them names an extension, or can be planned over all');
	if ($call =~ /ab_user WHERE/)
	{
		is(run('SELECT count(*) FROM extension_storage WHERE 2 IN (user_fk, created_by_fk, changed_by_fk)'), '0',
			'the deleted user is in no entry');
		is(run('SELECT count(*) FROM extension_storage WHERE 3 IN (user_fk, created_by_fk)'), '3', 'another one is');
	}
}

# Rotation, over all, comes last; one extension has one row.
run("$old SELECT ext_storage_set('acme.one', 'k', 'words', is_encrypted => true)");
{
	my @statements = statements_of("$third CALL ext_storage_rotate_keys()");

	is(join("\n", grep { !is_for_one($_) && !is_for_all($_) } @statements), '',
		'a rotation names one extension after the other');
	is(scalar(grep { !is_for_one($_) } @statements), 1, 'after it has asked which there are');
}
is(run("$third SELECT entries FROM ext_storage_key_status() WHERE ordinal > 1"), "0\n0", 'it has rotated all');

# Is each function called above, and each statement of the sources seen?
my @functions = split /\n/, run(q{SELECT DISTINCT proname FROM ext_storage_functions() f
	JOIN pg_proc p ON p.oid = f.function WHERE f.level IN ('read', 'write', 'admin')
	AND proname NOT IN ('ext_storage_functions', 'ext_storage_configured_keys', 'ext_storage_purge_orphans')});
my $calls = join "\n", @for_one, @for_all, 'ext_storage_rotate_keys()';
is(join(' ', grep { $calls !~ /\b$_\(/ } @functions), '', 'every function is called');

my $statements = 0;
for my $file (glob "$source/src/*.c")
{
	my $c = `$cc -E -P -I'$source/src' -I'$includedir' '$file' 2>&1`;

	die "$cc -E $file: $c" if $? != 0;
	while ($c =~ /\.sql = ((?:"[^"]*"\s*)+)/g)
	{
		my $sql = join '', $1 =~ /"([^"]*)"/g;

		# bytes are not counted here
		next if $sql !~ /\.extension_storage AS e\b/ || $sql =~ /extension_storage_usage/;
		# get_many reads key by key, and set_many writes so; rows are locked in no
		# order, and nobody asks which are left
		next if $sql =~ /LATERAL|\(\$categories\)|FOR UPDATE\) AS locked|LIMIT 1$/;
		# the update to 1.2 comes before the release that distributes
		next if $sql =~ /65535|SET value_size = NULL WHERE/;
		my $pattern = join '', map { /^\@/ ? '.*' : /^\$/ ? '\$\d+' : quotemeta }
		  split /(\@\w+\@|\$[a-z_]+)/, $sql;
		$statements++;
		ok(scalar(grep { /^$pattern$/ } @seen), "seen: $sql");
	}
}
cmp_ok($statements, '>=', 30, 'statements were found in the sources');

# -- dumps --

my $folder = $node->basedir;
run(q{
	INSERT INTO ab_user VALUES (7);
	SELECT ext_storage_set('acme.d', 'd', 'words', user_fk => 7);
	SELECT setval(pg_get_serial_sequence('extension_storage', 'id'), 5000000000);
	SELECT ext_storage_set('acme.d', 'big', 'words')});
$rows_before = run($rows);
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$folder/dump", $node->connstr('app') ], 'pg_dump');
for my $part ('whole', 'sections')
{
	my $connection = $node->connstr($part) . ' user=postgres';
	my $restore = sub {
		$node->command_ok([ 'pg_restore', '--exit-on-error', @_, '-d', $connection, "$folder/dump" ], "pg_restore @_");
	};

	$node->safe_psql('postgres', qq{CREATE DATABASE $part OWNER "Odd ""Owner"""});
	if ($part eq 'whole')
	{
		$node->command_fails_like([ 'pg_restore', '--exit-on-error', '-d', $connection, "$folder/dump" ],
			qr/integer out of range|out of range for type integer/, 'a whole dump with bigger ids does not fit');
		next;
	}
	$restore->('--section=pre-data');
	like(error($distribute, $owner, $part), $notice, 'distributed between the sections');
	$restore->('--section=data', '--section=post-data');
	is(run($rows, $owner, $part), $rows_before, 'every row is there');
	is(run('SELECT version FROM ext_storage_set(\'acme.d\', \'next\', \'x\')', $owner, $part), '1', 'and can be added to');
	is(run(q{SELECT id FROM extension_storage WHERE key = 'next'}, $owner, $part), '5000000002', 'with the next id');
	run('DELETE FROM ab_user WHERE id = 7', $owner, $part);
	is(run(q{SELECT count(*) FROM extension_storage WHERE key = 'd'}, $owner, $part), '0', 'attached tables are attached');
}
run(q{DELETE FROM extension_storage WHERE id > 2147483647});
run(q{SELECT setval(pg_get_serial_sequence('extension_storage', 'id'), max(id)) FROM extension_storage});
$rows_before = run($rows);
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$folder/small", $node->connstr('app') ], 'pg_dump with small ids');
$node->safe_psql('postgres', q{CREATE DATABASE small OWNER "Odd ""Owner"""});
$node->command_ok(
	[ 'pg_restore', '--exit-on-error', '-d', $node->connstr('small') . ' user=postgres', "$folder/small" ],
	'pg_restore');
is(run($rows, $owner, 'small'), $rows_before, 'every row is there, in a table that is not distributed');
is((split /\n/, run($constraints, $owner, 'small'))[0], 'extension_storage_pkey|PRIMARY KEY (id)', 'as it was made');

$node->stop;
done_testing();
