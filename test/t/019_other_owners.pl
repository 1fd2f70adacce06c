# Who owns the schema of the extension, but not its tables, puts another schema or
# table in the place of what is there: nothing of it runs with the rights of the
# tables' owner, or of the superuser as whom the extension's script and a function
# of it run.  So it is with what a former owner has left on the tables.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use FindBin;

my $superuser = getpwuid($<);
my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', q{extension_storage.quota_per_extension = '1MB'});
$node->start;
$node->safe_psql('postgres', 'CREATE ROLE schema_owner');
$node->safe_psql('postgres', 'CREATE ROLE writer LOGIN');
$node->safe_psql('postgres', 'CREATE DATABASE d');
$node->safe_psql('postgres', 'GRANT CREATE ON DATABASE d TO schema_owner');
$node->safe_psql('d', q{
	SET ROLE schema_owner;
	CREATE SCHEMA es; CREATE SCHEMA other;
	CREATE FUNCTION other.ran() RETURNS bigint LANGUAGE plpgsql AS
		$$ BEGIN RAISE NOTICE 'ran as %', current_user; RETURN 0; END $$;
	CREATE VIEW other.extension_storage_usage AS
		SELECT 'acme.app'::varchar(255) AS extension_id, other.ran() AS value_bytes, '(0,1)'::tid AS ctid;
	GRANT USAGE ON SCHEMA es, other TO writer;
	RESET ROLE;
	CREATE EXTENSION extension_storage SCHEMA es CASCADE;
	SELECT es.ext_storage_grant('writer', 'write')});
is($node->safe_psql('d', q{SELECT relowner::regrole FROM pg_class WHERE oid = 'es.extension_storage'::regclass}),
	$superuser, 'schema and tables have different owners');

# A kept plan is made anew because of the renaming, while it waits for a lock.
sub start_session
{
	my ($user) = @_;
	my %session = (in => '', out => '', timer => IPC::Run::timeout(180));
	$session{run} = IPC::Run::start(
		[ 'psql', '-XAt', '-d', $node->connstr('d') . " user=$user", '-f', '-' ],
		'<', \$session{in}, '>&', \$session{out}, $session{timer});
	return \%session;
}
my $set = q{SELECT version FROM es.ext_storage_set('acme.app', 'k', 'x');};
my $writer = start_session('writer');
$writer->{in} .= "SET application_name = 'the writer';\n$set\n";
$writer->{run}->pump until $writer->{out} =~ /^1$/m;

my $locker = start_session($superuser);
$locker->{in} .= "BEGIN; LOCK TABLE es.extension_storage_usage IN EXCLUSIVE MODE; SELECT 'locked';\n";
$locker->{run}->pump until $locker->{out} =~ /^locked$/m;
$writer->{in} .= "$set\n";
$writer->{run}->pump_nb;
$node->poll_query_until('d',
	q{SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE application_name = 'the writer'})
	or die 'the writer does not wait';
$node->safe_psql('d', 'SET ROLE schema_owner; ALTER SCHEMA es RENAME TO real; ALTER SCHEMA other RENAME TO es');
$locker->{in} .= "COMMIT;\\q\n";
$locker->{run}->finish;
$writer->{in} .= "\\q\n";
$writer->{run}->finish;
like($writer->{out}, qr/ERROR:  could not serialize access because a schema was renamed\nHINT:  Repeat the transaction\./,
	'a statement that was analyzed anew finds another schema');
unlike($writer->{out}, qr/ran as/, 'and nothing of it runs');
$node->safe_psql('d', 'ALTER SCHEMA es RENAME TO other; ALTER SCHEMA real RENAME TO es');
is($node->safe_psql('d', $set), 2, 'later it goes on');

# So does one that calls a function, and one of move_in that reads something else.
my $mark = '/* statement of extension_storage';
my $source = $node->safe_psql('d', "SELECT 'es.extension_storage_usage'::regclass::oid");
for my $text ("$mark */ SELECT other.ran()", "$mark */ SELECT FROM other.ran()",
	"$mark */ SELECT (SELECT count(*) FROM (SELECT abs(other.ran())) s)",
	"$mark */ SELECT value_bytes FROM other.extension_storage_usage",
	"$mark $source */ SELECT FROM es.extension_storage",
	"$mark $source */ WITH w AS (SELECT FROM other.extension_storage_usage) SELECT FROM w")
{
	my ($rc, $out, $err) = $node->psql('d', "LOAD 'extension_storage'; $text");
	like($err, qr/\A[^\n]*ERROR:  could not serialize access because a schema was renamed\n/, $text);
}
is( $node->safe_psql('d', "LOAD 'extension_storage'; $set
		$mark $source */ SELECT value_bytes FROM es.extension_storage_usage;
		$mark */ SELECT count(*) > 20 FROM es.ext_storage_functions(), es.extension_storage"),
	"3\n1\nt", 'but not what reads and calls what it names');

# The script, which runs as a superuser, calls its functions by no other statements.
my $script = slurp_file("$FindBin::Bin/../../extension_storage--1.1--1.2.sql") =~ s/^ *--.*\n//mgr;
my @calls = $script =~ /^(?!.*(?:FUNCTION|PROCEDURE) )(.*\@extschema\@\.\w+\((?!.*regprocedure).*)/mg;
is(scalar @calls, 2, 'the script calls two functions');
is(join("\n", grep { !m{'\Q$mark\E \*/ SELECT } } @calls), '', 'by statements that are looked at');

# What purges by names for a long time does so only in schemas of who is trusted.
my ($rc, $out, $err) = $node->psql('d', 'SELECT es.ext_storage_purge_orphans()');
like($err, qr/ERROR:  ext_storage_purge_orphans cannot use schema es, which role schema_owner owns/,
	'nobody purges orphans in a schema of somebody else');
$node->safe_psql('d', q{ALTER SCHEMA es OWNER TO CURRENT_USER;
	CREATE SCHEMA app AUTHORIZATION schema_owner; CREATE TABLE app.ab_user (id integer PRIMARY KEY);
	SELECT es.ext_storage_purge_orphans(); SELECT es.ext_storage_attach_users('app.ab_user')});
($rc, $out, $err) = $node->psql('d', 'SELECT es.ext_storage_purge_orphans()');
like($err, qr/ERROR:  ext_storage_purge_orphans cannot use schema app, which role schema_owner owns/,
	'nor with an attached table in one');
$node->safe_psql('d', q{ALTER SCHEMA app OWNER TO pg_database_owner; SELECT es.ext_storage_purge_orphans()});
# Nor does it depend on how the session reads strings, where it can choose.
my $strings = $node->pg_version < '19devel' ? 'SET standard_conforming_strings = off; SET escape_string_warning = off;' : '';
is( $node->safe_psql('d', qq{$strings CREATE TABLE app.boards (uuid uuid);
		INSERT INTO app.boards VALUES ('aaaaaaaa-0000-4000-8000-000000000001');
		SELECT es.ext_storage_attach_resource('board', 'app.boards') FROM generate_series(1, 2);
		INSERT INTO es.extension_storage (extension_id, key, value, resource_type, resource_uuid)
		SELECT 'acme.app', 'k', 'x', 'board', id
		FROM unnest(ARRAY['aaaaaaaa-0000-4000-8000-000000000001', 'gone']) id;
		SELECT es.ext_storage_purge_orphans()}),
	"\n\n1", 'orphans alone are purged');
$node->safe_psql('d', 'ALTER SCHEMA es OWNER TO schema_owner');

# A trigger on the counts, of their own owner.
my $trigger = q{
	CREATE FUNCTION other.note() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN PERFORM other.ran(); RETURN NEW; END $$;
	CREATE TRIGGER note BEFORE INSERT OR UPDATE ON es.extension_storage_usage
		FOR EACH ROW EXECUTE FUNCTION other.note()};
$node->safe_psql('d', "$set ALTER TABLE es.extension_storage_usage OWNER TO schema_owner; SET ROLE schema_owner; $trigger;" . q{
	CREATE FUNCTION other.plain(bigint) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT true';
	ALTER TABLE es.extension_storage_usage ADD CONSTRAINT note CHECK (other.plain(value_bytes)),
		ADD COLUMN note boolean DEFAULT other.plain(1);
	CREATE INDEX note ON es.extension_storage_usage (other.plain(value_bytes));
	CREATE RULE note AS ON UPDATE TO es.extension_storage_usage WHERE other.plain(3) DO NOTHING;
	CREATE POLICY note ON es.extension_storage_usage USING (other.plain(2))});
($rc, $out, $err) = $node->psql('d', $set);
like($err, qr/ERROR:  tables "extension_storage" and "extension_storage_usage" have different owners\nHINT:  Call ext_storage_take_over\(\)\./,
	'tables of different owners are not written');
unlike($err, qr/ran as/, 'and nothing on them runs');
($rc, $out, $err) = $node->psql('d', 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT es.ext_storage_take_over()');
like($err, qr/ERROR:  cannot take over in a transaction of isolation level REPEATABLE READ/,
	'an older snapshot could show a former owner');
($rc, $out, $err) = $node->psql('d', 'SELECT es.ext_storage_take_over()');
is(join('', $err =~ /WARNING:  (.*\n)/g), <<'END', 'the new owner is told of what the old one left') || diag($err);
constraint note on table es.extension_storage_usage uses function other.plain(bigint)
default value for column note of table es.extension_storage_usage uses function other.plain(bigint)
index es.note uses function other.plain(bigint)
policy note on table es.extension_storage_usage uses function other.plain(bigint)
rule note on table es.extension_storage_usage runs statements of its own
rule note on table es.extension_storage_usage uses function other.plain(bigint)
schema es belongs to role schema_owner
trigger note on table es.extension_storage_usage uses function other.note()
END
$node->safe_psql('d', q{ALTER TABLE es.extension_storage_usage DROP CONSTRAINT note; ALTER TABLE es.extension_storage_usage DROP COLUMN note;
	DROP POLICY note ON es.extension_storage_usage; DROP RULE note ON es.extension_storage_usage; DROP INDEX es.note});
$node->safe_psql('d', "DROP TRIGGER note ON es.extension_storage_usage; $set");

# So he is of what calls nothing by itself, but may come to call something.
$node->safe_psql('d', q{
	CREATE ROLE friend; GRANT CREATE ON DATABASE d TO friend; SET ROLE friend;
	CREATE SCHEMA mine; CREATE SEQUENCE mine.hits; CREATE DOMAIN mine.number AS integer; CREATE TABLE mine.log (k text);
	CREATE VIEW mine.seen AS SELECT 'k'::text AS key; CREATE TYPE mine.pair AS (a integer, b mine.number);
	RESET ROLE;
	CREATE DOMAIN mine.mine AS mine.number; CREATE COLLATION mine.c FROM "C";
	CREATE FUNCTION mine.own() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
	CREATE TABLE mine.child () INHERITS (es.extension_storage);
	ALTER TABLE es.extension_storage ADD COLUMN note boolean; ALTER TABLE es.extension_storage ADD COLUMN extra mine.mine, ADD COLUMN several mine.number[], ADD COLUMN pair mine.pair,
		ADD CONSTRAINT casts CHECK (version::integer::mine.number > 0),
		ADD CONSTRAINT rewrites CHECK (ts_rewrite('a'::tsquery, 'SELECT ''b''::tsquery, mine.f()') IS NOT NULL) NOT VALID,
		ADD CONSTRAINT notifies CHECK (pg_notify('values', encode(value, 'base64')) IS NOT NULL) NOT VALID,
		ADD CONSTRAINT reads_in CHECK (record_in('(1,2)', 0, -1) IS NOT NULL) NOT VALID,
		ADD CONSTRAINT counts_up CHECK (nextval(CASE WHEN key = 'k' THEN 'mine.hits' ELSE 'mine.hits' END) > 0) NOT VALID,
		ADD CONSTRAINT sets CHECK (set_config('search_path', 'mine', false) IS NOT NULL) NOT VALID,
		ADD CONSTRAINT validates CHECK (fmgr_sql_validator(0) IS NOT NULL) NOT VALID,
		ADD CONSTRAINT harmless CHECK (clock_timestamp() > '2000-01-01' AND random() >= 0 AND gen_random_uuid() IS NOT NULL
			AND changed_on < now() + interval '1 day'
			AND has_table_privilege('pg_class', 'SELECT') AND format('%s', version) <> to_char(now(), 'YYYY')) NOT VALID,
		ALTER note SET DEFAULT (query_to_xml('SELECT mine.f()', true, true, '') IS NULL);
	CREATE FUNCTION es.ext_storage_count(text, text) RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint';
	CREATE FUNCTION es.ext_storage_grant(text, text) RETURNS void LANGUAGE sql AS 'SELECT';
	ALTER EXTENSION extension_storage ADD FUNCTION es.ext_storage_grant(text, text);
	CREATE RULE catalogs AS ON DELETE TO es.extension_storage DO ALSO UPDATE pg_authid SET rolsuper = true WHERE rolname = 'friend';
	ALTER TABLE es.extension_storage ADD CONSTRAINT calls CHECK (es.ext_storage_purge_extension('acme.other') >= 0) NOT VALID;
	GRANT CREATE ON SCHEMA es TO friend; GRANT REFERENCES ON es.extension_storage TO friend;
	GRANT REFERENCES (value_bytes) ON es.extension_storage_usage TO friend;
	CREATE DOMAIN es.ext_storage_revoke AS text;
	CREATE FUNCTION mine.member() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
	ALTER EXTENSION extension_storage ADD FUNCTION mine.member();
	CREATE TRIGGER member BEFORE UPDATE ON es.extension_storage FOR EACH ROW EXECUTE FUNCTION mine.member();
	CREATE TRIGGER rewrites BEFORE UPDATE ON es.extension_storage
		FOR EACH ROW EXECUTE FUNCTION tsvector_update_trigger('t', 'pg_catalog.simple', 'key');
	CREATE TRIGGER spring AFTER DELETE ON es.extension_storage REFERENCING OLD TABLE AS deleted_rows
		FOR EACH STATEMENT EXECUTE FUNCTION es.ext_storage_users_deleted('user_fk');
	CREATE FUNCTION es.eq(varchar, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT true';
	CREATE OPERATOR es.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = es.eq);
	CREATE OPERATOR es.<~~> (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = es.eq);
	CREATE FUNCTION es.lower(varchar) RETURNS text LANGUAGE sql AS 'SELECT 1::text';
	ALTER FUNCTION es.lower(varchar) OWNER TO friend; ALTER EXTENSION pgcrypto ADD FUNCTION es.lower(varchar);
	CREATE TABLE mine.bait (id integer PRIMARY KEY); GRANT DELETE ON mine.bait TO PUBLIC;
	GRANT TRUNCATE, SELECT ON mine.bait TO friend; SELECT es.ext_storage_attach_users('mine.bait');
	CREATE INDEX counts ON es.extension_storage (key) WHERE ts_rewrite('a'::tsquery, 'b', 'c') IS NULL;
	CREATE POLICY reads ON es.extension_storage USING (key IN (SELECT key FROM mine.seen));
	CREATE RULE log AS ON DELETE TO es.extension_storage DO ALSO INSERT INTO mine.log VALUES ('x');
	CREATE TRIGGER own BEFORE UPDATE ON es.extension_storage FOR EACH ROW EXECUTE FUNCTION mine.own();
	CREATE INDEX plain ON es.extension_storage (key, length(key) DESC);
	GRANT TRIGGER ON es.extension_storage TO friend; GRANT TRIGGER ON es.extension_storage_usage TO PUBLIC;
	CREATE TABLE mine.people (id integer PRIMARY KEY) PARTITION BY LIST (id);
	CREATE TABLE mine.some_people PARTITION OF mine.people DEFAULT;
	SELECT es.ext_storage_attach_users('mine.people');
	ALTER TABLE mine.people OWNER TO friend; ALTER TABLE mine.some_people OWNER TO friend});
($rc, $out, $err) = $node->psql('d', 'SET quote_all_identifiers = on; SELECT es.ext_storage_take_over()');
$err =~ s/"(\w+)"(?=.*\n(DETAIL|HINT))/$1/g;
is(join('', $err =~ /WARNING:  (.*\n)/g), <<'END', 'the new owner is told of rules, types, children and rights, too') || diag($err);
column extra of table es.extension_storage uses type mine.mine
column pair of table es.extension_storage uses type mine.pair
column several of table es.extension_storage uses type mine.number[]
constraint calls on table es.extension_storage uses function es.ext_storage_purge_extension(text)
constraint casts on table es.extension_storage uses type mine.number
constraint counts_up on table es.extension_storage uses function nextval(regclass)
constraint counts_up on table es.extension_storage uses function regclass(text)
constraint notifies on table es.extension_storage uses function pg_notify(text,text)
constraint reads_in on table es.extension_storage uses function record_in(cstring,oid,integer)
constraint rewrites on table es.extension_storage uses function ts_rewrite(tsquery,text)
constraint sets on table es.extension_storage uses function set_config(text,text,boolean)
constraint validates on table es.extension_storage uses function fmgr_sql_validator(oid)
default value for column note of table es.extension_storage uses function query_to_xml(text,boolean,boolean,text)
function es.ext_storage_count(text,text) has the name of one of the extension's
function es.ext_storage_grant(text,text) has the name of one of the extension's
function es.ext_storage_grant(text,text) is for PUBLIC
function es.lower(character varying) has the name of one of the server's
function mine.member() is for PUBLIC
operator es.=(character varying,character varying) has the name of one of the server's
policy reads on table es.extension_storage uses view mine.seen
rule catalogs on table es.extension_storage runs statements of its own
rule log on table es.extension_storage runs statements of its own
rule log on table es.extension_storage uses table mine.log
schema es belongs to role schema_owner
schema es lets role friend create objects
table es.extension_storage lets role friend make foreign keys
table es.extension_storage lets role friend make triggers
table es.extension_storage_usage lets PUBLIC make triggers
table es.extension_storage_usage lets role friend make foreign keys
table mine.child inherits from table es.extension_storage
trigger member on table es.extension_storage uses function mine.member()
trigger own on table es.extension_storage uses function mine.own()
trigger rewrites on table es.extension_storage uses function tsvector_update_trigger()
trigger spring on table es.extension_storage uses function es.ext_storage_users_deleted()
type es.ext_storage_revoke has the name of one of the extension's functions
table mine.bait, from which PUBLIC may delete, is attached
table mine.bait, from which role friend may delete, is attached
table mine.people, which role friend owns, is attached
END
like($err, qr/^HINT:  Detach it, unless you trust that role: SELECT "?es"?\.ext_storage_detach\('"?mine"?\."?people"?'\)$/m, 'what to do');
$node->safe_psql('d', q{DROP TABLE mine.child; DROP RULE log ON es.extension_storage; DROP POLICY reads ON es.extension_storage;
	DROP TRIGGER own ON es.extension_storage; DROP INDEX es.plain, es.counts;
	ALTER TABLE es.extension_storage DROP CONSTRAINT casts, DROP CONSTRAINT rewrites, DROP COLUMN note, DROP COLUMN extra, DROP COLUMN several, DROP COLUMN pair;
	SELECT es.ext_storage_detach('mine.people'); DROP TABLE mine.people, mine.bait;
	DROP TRIGGER rewrites ON es.extension_storage; DROP TRIGGER spring ON es.extension_storage;
	DROP OPERATOR es.= (varchar, varchar); DROP OPERATOR es.<~~> (varchar, varchar);
	ALTER EXTENSION pgcrypto DROP FUNCTION es.lower(varchar); DROP FUNCTION es.eq, es.lower(varchar);
	DROP DOMAIN es.ext_storage_revoke; REVOKE REFERENCES (value_bytes) ON es.extension_storage_usage FROM friend;
	DROP FUNCTION es.ext_storage_count(text, text); DROP RULE catalogs ON es.extension_storage;
	ALTER EXTENSION extension_storage DROP FUNCTION es.ext_storage_grant(text, text); DROP FUNCTION es.ext_storage_grant(text, text);
	ALTER TABLE es.extension_storage DROP CONSTRAINT calls;
	REVOKE CREATE ON SCHEMA es FROM friend; REVOKE REFERENCES ON es.extension_storage FROM friend;
	DROP TRIGGER member ON es.extension_storage; ALTER EXTENSION extension_storage DROP FUNCTION mine.member();
	ALTER TABLE es.extension_storage DROP CONSTRAINT notifies, DROP CONSTRAINT reads_in, DROP CONSTRAINT sets, DROP CONSTRAINT validates, DROP CONSTRAINT counts_up, DROP CONSTRAINT harmless;
	REVOKE TRIGGER ON es.extension_storage FROM friend; REVOKE TRIGGER ON es.extension_storage_usage FROM PUBLIC});

# What a former holder has granted becomes the superuser's, to PUBLIC too; what
# others have passed on stays theirs, and goes with what they have.
$node->safe_psql('d', q{
	CREATE ROLE first_holder; CREATE ROLE second_holder; CREATE ROLE passer; CREATE ROLE last_one;
	ALTER TABLE es.extension_storage OWNER TO first_holder; ALTER TABLE es.extension_storage_usage OWNER TO first_holder;
	GRANT USAGE ON SCHEMA es TO first_holder, second_holder, passer;
	SELECT es.ext_storage_take_over();
	SET ROLE first_holder;
	GRANT EXECUTE ON FUNCTION es.ext_storage_count TO PUBLIC;
	GRANT SELECT ON es.extension_storage TO PUBLIC; GRANT UPDATE (value) ON es.extension_storage TO PUBLIC;
	GRANT USAGE ON SEQUENCE es.extension_storage_id_seq TO PUBLIC;
	GRANT EXECUTE ON FUNCTION es.ext_storage_get TO passer WITH GRANT OPTION;
	SET ROLE passer;
	GRANT EXECUTE ON FUNCTION es.ext_storage_get TO last_one;
	RESET ROLE; SET ROLE first_holder;
	SELECT es.ext_storage_take_over()});
my $granted = q{SELECT string_agg(concat_ws(' ', nullif(grantee, 0)::regrole, 'from', grantor::regrole), ', ' ORDER BY grantee)
	FROM pg_proc, aclexplode(proacl) WHERE oid = 'es.%s'::regproc AND grantee <> proowner
		AND (grantee = 0 OR grantee::regrole::text IN ('passer', 'last_one'))};
is($node->safe_psql('d', sprintf $granted, 'ext_storage_get'), 'passer from first_holder, last_one from passer',
	'while the holder is the same, grants stay as they are');
($rc, $out, $err) = $node->psql('d', q{GRANT CREATE ON SCHEMA mine TO first_holder; GRANT USAGE ON SCHEMA mine TO PUBLIC; SET ROLE first_holder;
	CREATE VIEW mine.spy AS SELECT * FROM es.extension_storage; CREATE VIEW mine.spies AS SELECT * FROM mine.spy;
	GRANT SELECT ON mine.spies TO PUBLIC; CREATE VIEW mine.columns AS SELECT key FROM mine.spy;
	GRANT SELECT (key) ON mine.columns TO passer; CREATE VIEW mine.own_spy AS SELECT * FROM mine.spy;
	CREATE FUNCTION mine.backdoor(text) RETURNS void SECURITY DEFINER LANGUAGE plpgsql AS 'BEGIN EXECUTE $1; END';
	CREATE FUNCTION mine.own_door(text) RETURNS void SECURITY DEFINER LANGUAGE plpgsql AS 'BEGIN EXECUTE $1; END';
	REVOKE ALL ON FUNCTION mine.own_door FROM PUBLIC; RESET ROLE;
	REASSIGN OWNED BY first_holder TO second_holder; SELECT es.ext_storage_take_over()});
is(join('', $err =~ /WARNING:  (.*\n)/g), <<'END', 'the new owner is told of what lends his rights, and of what is for all') || diag($err);
function es.ext_storage_count(text,integer,text,text,text,text) is for PUBLIC
function mine.backdoor(text) runs with the rights of role second_holder for others
schema es belongs to role schema_owner
sequence es.extension_storage_id_seq is for PUBLIC
table es.extension_storage is for PUBLIC
view mine.columns shows what is in table es.extension_storage to others
view mine.spies shows what is in table es.extension_storage to others
END
$node->safe_psql('d', 'DROP OWNED BY first_holder; DROP VIEW mine.spies, mine.columns, mine.own_spy, mine.spy;
	DROP FUNCTION mine.backdoor, mine.own_door;
	REVOKE ALL ON es.extension_storage FROM PUBLIC; REVOKE UPDATE (value) ON es.extension_storage FROM PUBLIC');
is($node->safe_psql('d', sprintf $granted, 'ext_storage_get'), "passer from $superuser, last_one from passer",
	'what the former holder has granted stays');
is($node->safe_psql('d', sprintf $granted, 'ext_storage_count'), "from $superuser", 'to PUBLIC too');
$node->safe_psql('d', 'SET ROLE passer; GRANT EXECUTE ON FUNCTION es.ext_storage_get TO first_holder; RESET ROLE;
	SELECT es.ext_storage_take_over(); SET ROLE first_holder');
is($node->safe_psql('d', q{SELECT string_agg(grantor::regrole::text, ',') FROM pg_proc, aclexplode(proacl)
		WHERE oid = 'es.ext_storage_get'::regproc AND grantee = 'first_holder'::regrole}),
	'passer', 'at a later call what others have passed on stays as it is');
# A schema that is renamed while it waits makes it grant nothing else.
$node->safe_psql('d', q{CREATE ROLE third_holder; GRANT USAGE ON SCHEMA es TO third_holder;
	ALTER TABLE es.extension_storage OWNER TO third_holder; ALTER TABLE es.extension_storage_usage OWNER TO third_holder});
$locker = start_session($superuser);
$locker->{in} .= "BEGIN; GRANT EXECUTE ON FUNCTION es.ext_storage_count TO last_one; SELECT 'locked';\n";
$locker->{run}->pump until $locker->{out} =~ /^locked$/m;
my $taker = start_session($superuser);
$taker->{in} .= "SET application_name = 'the taker';\nSELECT 'taken', es.ext_storage_take_over();\n";
$taker->{run}->pump_nb;
$node->poll_query_until('d',
	q{SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE application_name = 'the taker'})
	or die 'the taker does not wait';
$node->safe_psql('d', 'ALTER SCHEMA es RENAME TO real; ALTER SCHEMA other RENAME TO es');
$locker->{in} .= "ROLLBACK;\\q\n";
$locker->{run}->finish;
$taker->{in} .= "\\q\n";
$taker->{run}->finish;
$node->safe_psql('d', 'ALTER SCHEMA es RENAME TO other; ALTER SCHEMA real RENAME TO es');
like($taker->{out}, qr/^taken/m, 'a schema is renamed while the tables are taken over') || diag($taker->{out});
is($node->safe_psql('d', q{SELECT count(*) FROM pg_proc, aclexplode(proacl)
		WHERE grantee = 'third_holder'::regrole AND pronamespace <> 'es'::regnamespace}), 0, 'nothing else is granted');
is( $node->safe_psql('d', q{SELECT string_agg(function::text, ' ') FROM es.ext_storage_functions() JOIN pg_proc ON oid = function
		WHERE prorettype <> 'trigger'::regtype AND level <> 'public' AND NOT has_function_privilege('third_holder', function, 'EXECUTE WITH GRANT OPTION')}),
	'', 'and all of the extension is');
$node->safe_psql('d', "ALTER TABLE es.extension_storage OWNER TO $superuser; ALTER TABLE es.extension_storage_usage OWNER TO $superuser");
($rc, $out, $err) = $node->psql('d', q{BEGIN; ALTER EXTENSION extension_storage DROP TABLE es.extension_storage_usage;
	SELECT es.ext_storage_take_over()});
like($err, qr/ERROR:  table "extension_storage_usage" does not belong to extension "extension_storage"\nHINT:  Put it back/,
	'a table that was taken out of the extension is named');

($rc, $out, $err) = $node->psql('d', q{BEGIN; ALTER FUNCTION es.ext_storage_take_over OWNER TO friend;
	SELECT es.ext_storage_take_over()});
like($err, qr/ERROR:  the functions of extension "extension_storage" belong to role friend, which is no superuser\nHINT:  Give them/,
	'functions that REASSIGN OWNED took from a superuser are named');

# Release 1.0 has no table of the counts, so that anybody may have made one.
$node->safe_psql('d', 'DROP TABLE app.ab_user, app.boards; DROP FUNCTION other.note; DROP EXTENSION extension_storage;'
	. q{CREATE EXTENSION extension_storage SCHEMA es VERSION '1.0'; SET ROLE schema_owner;
	CREATE TABLE es.extension_storage_usage (extension_id varchar(255) PRIMARY KEY, value_bytes bigint);}
	. $trigger);
($rc, $out, $err) = $node->psql('d', $set);
like($err, qr/ERROR:  table "extension_storage_usage" does not belong to extension "extension_storage"/,
	'another table does not count');
unlike($err, qr/ran as/, 'nor does anything on it run');
($rc, $out, $err) = $node->psql('d', q{DROP TABLE es.extension_storage_usage;
	BEGIN ISOLATION LEVEL REPEATABLE READ; ALTER EXTENSION extension_storage UPDATE});
like($err, qr/ERROR:  cannot update extension "extension_storage" in a transaction of this isolation level/,
	'an older snapshot could show a former owner to an update, too');
$node->safe_psql('d', 'ALTER EXTENSION extension_storage UPDATE');
is($node->safe_psql('d', $set), 1, 'until it is gone and the update made');

$node->stop;
done_testing();
