# Who holds the extension, without being superuser, does to it what chance says, in
# one session or, each fourth time, in three at once: the worst is an error.
# Each statement ends, none ends the server, and none gives an internal error.
# A superuser who calls the functions then runs nothing of theirs as a superuser.
#
# HOSTILE_SEED, HOSTILE_ROUNDS and HOSTILE_SESSIONS in the environment repeat
# what failed, and with one session each statement meets the same state as
# before; HOSTILE_SECONDS goes on with whole rounds for that long.

use strict;
use warnings FATAL => 'all';

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $seed = $ENV{HOSTILE_SEED} // (time ^ $$ << 12) % 1_000_000_000;
my $rounds = $ENV{HOSTILE_ROUNDS} // 16;
my $sessions;               # in a round
my $seconds = $ENV{HOSTILE_SECONDS} // 0;
my $steps = 300;            # of a session in a round
my $steps_restored = 60;    # after so many the extension is made anew

# Internal errors that PostgreSQL itself gives where sessions change the same
# objects at once: it looks up by id, without a lock, what another one drops.
my $internal_of_postgres = qr/
	^tuple\ concurrently\ (updated|deleted)
	| ^could\ not\ open\ relation\ with\ OID
	| ^cache\ lookup\ failed\ for
	| ^could\ not\ find\ tuple\ for\ constraint
	| ^relation\ \d+\ deleted\ while\ still\ in\ use
/x;

# -- chance --

sub one_of
{
	return $_[ int rand @_ ];
}

sub percent
{
	return rand(100) < $_[0];
}

my $many;    # which of the arrays in a call have the same number of elements

# One of two arrays, the same of each argument of a call, or another one.
sub of_many
{
	my ($three, $one, @others) = @_;

	return percent(10) ? one_of(@others) : $many == 3 ? $three : $one;
}

my $columns = [
	qw(id uuid extension_id user_fk resource_type resource_uuid key category description value
	  value_type is_encrypted created_on changed_on created_by_fk changed_by_fk version value_size)
];
my $types = [
	qw(text bigint integer smallint bytea boolean uuid money name "char" varchar(3) char(5) oid json
	  jsonb numeric float8 timestamptz date interval text[] bytea[] xml tsvector int4range
	  hostile_domain hostile_enum hostile_row)
];
my $uuid = q('6f9619ff-8b86-d011-b42d-00cf4fc964ff');
my $key = q('AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=');
my %good = (
	extension_id => sub { one_of("'acme.a'", "'acme.a'", "'acme.b'") },
	key => sub { "'k" . int(rand 8) . "'" },
	new_key => sub { "'k" . int(rand 8) . "'" },
	after_key => sub { "'k" . int(rand 8) . "'" },
	key_prefix => sub { one_of("'k'", "'k1'", "''") },
	keys => sub { of_many(q('{k1,k2,k3}'), q('{k4}'), q('{}'), q('{k1,k1}')) },
	value_type => sub { one_of("'text/plain'", "'application/json'") },
	resource_type => sub { one_of("'chart'", 'NULL') },
	resource_uuid => sub { one_of($uuid, 'NULL') },
	user_fk => sub { one_of('1', '2', 'NULL') },
	level => sub { one_of("'read'", "'write'", "'admin'") },
	role => sub { one_of("'hostile_reader'", "'hostile_holder'") },
	users => sub { one_of("'people'", "'extension_storage'") },
	relation => sub { one_of("'people'", "'charts'", "'extension_storage'") },
	resources => sub { one_of("'charts'", "'extension_storage'") },
	source => sub { one_of("'legacy'", "'extension_storage'") },
	page => sub { int rand 3 },
	page_size => sub { one_of(1, 5, 100) },
	batch_size => sub { one_of(1, 2, 500) },
	max_bytes => sub { one_of(1, 1000, 1048576) },
	if_version => sub { int rand 4 },
	if_versions => sub { of_many(q('{NULL,NULL,1}'), q('{1}'), q('{0,1,2}')) },
	new_values => sub { of_many(q('{a,b,c}'), q('{\\x00}'), q('{}')) },
	token => sub { "fernet_encrypt('words', $key)" },
	secret => sub { one_of("'a'", "'old'") });
$good{old_key} = $good{key};
my %of_type = (
	text => [
		q(''), q('k1'), q(repeat('x', 256)), q(repeat('é', 70000)), q('../%_\\'), $key,
		q('acme.a'), q('chart')
	],
	bytea => [ q('words'), q(''), q('\\x00ff'), q(repeat('x', 3000)::bytea), q(repeat('x', 300000)::bytea) ],
	jsonb => [ q('{"a": 1}'), q('null'), q('[]'), q(to_jsonb(repeat('x', 5000))) ],
	integer => [ qw(0 1 -1 7 2147483647 -2147483648) ],
	bigint => [ qw(0 1 -1 9223372036854775807 -9223372036854775808) ],
	boolean => [ qw(true false) ],
	interval => [ q('1 hour'), q('-1 s'), q('178000000 years'), q('0') ],
	regclass => [ q('people'), q('charts'), q('legacy'), q('hostile_view'), q('pg_class'), '0', '4294967295' ],
	regrole => [ q('hostile_reader'), '0', '4294967295' ],
	name => [ q('uuid'), q('id'), q('nothing') ],
	'timestamp without time zone' => [ q('now'), q('infinity'), q('-infinity'), q('4713-01-01 BC') ],
	'text[]' => [ q('{}'), q('{NULL}'), q('{{k1,k2},{k3,k4}}'), q('[5:6]={k1,k2}'), q(array_fill('k'::text, '{600}')) ],
	'bytea[]' => [ q('{}'), q('{NULL,a}'), q('{{a,b},{c,d}}'), q('[5:6]={a,b}') ],
	'bigint[]' => [ q('{}'), q('{NULL,1}'), q('{{1,2},{3,4}}') ],
	'boolean[]' => [ q('{}'), q('{t,f,NULL}'), q('{{t},{f}}') ]);

# Arguments of a function, by name; most of them good.
sub arguments
{
	my ($function) = @_;
	my @arguments;

	$many = one_of(1, 3);
	for my $i (0 .. $#{ $function->{names} })
	{
		my ($name, $type) = ($function->{names}[$i], $function->{types}[$i]);
		my $needed = $i < @{ $function->{names} } - $function->{defaults};
		next unless percent($needed ? 98 : 30);
		my $value =
			percent(3) ? 'NULL'
		  : $good{$name} && percent(85) ? ($function->{name} =~ /^fernet_/ && $name eq 'key' ? $key : $good{$name}->())
		  : $of_type{$type} ? one_of(@{ $of_type{$type} })
		  :                   'NULL';
		push @arguments, "$name => $value";
	}
	return join ', ', @arguments;
}

my @functions;

sub call
{
	my ($schema) = @_;
	my $function = one_of(@functions);
	$function = one_of(@functions) if $function->{result} eq 'trigger';
	my $call = ($schema // '') . "$function->{name}(" . arguments($function) . ')';

	return "CALL $call" if $function->{kind} eq 'p';
	return "SELECT $call" if defined $schema || percent(10);
	return "SELECT count(*) FROM extension_storage, $call" if percent(5);
	return "SELECT * FROM $call";
}

sub secrets
{
	return one_of("'new,old'", "'old'", "'old,new'", "'third'", "''", "'\"'", "'a,'", "repeat('x,', 70000)");
}

# What a function of theirs does.  The function is run to a certain depth, as
# what swallows errors at each level and runs twice at each would not end.
sub deed
{
	my $action = one_of(
		sub { one_of('PERFORM * FROM ', 'PERFORM count(*) FROM ') . (call() =~ s/^SELECT .*? FROM (extension_storage, )?//r) },
		sub { my $call = call(); $call =~ /^CALL/ ? 'NULL' : "EXECUTE " . quoted($call) },
		sub { 'PERFORM set_config(' . one_of("'extension_storage.encryption_keys'", "'extension_storage.secret_key'") . ', ' . secrets() . ', ' . one_of('true', 'false') . ')' },
		sub { 'EXECUTE ' . quoted('CALL ext_storage_rotate_keys(batch_size => 1)') },
		sub { 'EXECUTE ' . quoted(change()) },
		sub { "RAISE EXCEPTION 'no' USING ERRCODE = " . one_of("'ES001'", "'23505'", "'40001'", "'XX001'", "'P0001'", "'57014'") },
		sub { "RAISE WARNING 'words'" },
		sub { 'PERFORM 1 / 0' },
		sub { "DELETE FROM extension_storage WHERE key = " . $good{key}->() },
		sub { 'DISCARD PLANS' })->();
	my ($begin, $end) = percent(50) ? ('BEGIN ', '; EXCEPTION WHEN OTHERS THEN NULL; END') : ('', '');

	return q(IF coalesce(nullif(current_setting('hostile.depth', true), ''), '0')::integer < 2 THEN)
	  . q( PERFORM set_config('hostile.depth', (coalesce(nullif(current_setting('hostile.depth', true), ''), '0')::integer + 1)::text, true);)
	  . " $begin$action$end;"
	  . q( PERFORM set_config('hostile.depth', (current_setting('hostile.depth')::integer - 1)::text, true); END IF;);
}

sub quoted
{
	my ($text) = @_;

	return "'" . $text =~ s/'/''/gr . "'";
}

my $tags = 0;
my $as_superuser = 'this runs as a superuser';
my %results = (
	boolean => [qw(true true true false NULL)],
	text => [qw('k1' 'acme.a' NULL)],
	integer => [qw(1 7 NULL)]);

# CREATE OR REPLACE of a function of theirs.
sub function
{
	my ($name, $result) = @_;
	my $tag = '$f' . $tags++ . '$';
	my $body = 'IF (SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.rolname OPERATOR(pg_catalog.=) current_user)'
	  . " THEN RAISE LOG '$as_superuser: $name'; END IF; "
	  . join ' ', map { deed() } 1 .. one_of(1, 1, 2);

	if ($result eq 'trigger')
	{
		my $column = one_of(@$columns);
		$body .= " BEGIN NEW.$column := " . one_of('NULL', "'1'", "'t'", "'k1'", "repeat('x', 400)", "'acme.c'") . '; EXCEPTION WHEN OTHERS THEN NULL; END;'
		  if percent(40);
		$body .= ' IF TG_OP = ' . one_of("'DELETE'", "'UPDATE'", "'INSERT'") . ' THEN RETURN NULL; END IF;' if percent(15);
		$body .= " IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN " . one_of('NEW', 'NEW', 'NEW', 'NULL', 'OLD') . ';';
	}
	else
	{
		$body .= ' RETURN ' . one_of(@{ $results{$result} }) . ';';
	}
	return "CREATE OR REPLACE FUNCTION $name RETURNS $result LANGUAGE plpgsql "
	  . one_of('', '', 'IMMUTABLE', 'SECURITY DEFINER', 'PARALLEL SAFE')
	  . " AS $tag BEGIN $body END $tag";
}

# What a rule does by several statements, of which the last of its kind counts.
sub rule_of_two
{
	my @statements = map {
		one_of(
			'UPDATE moved SET key = key WHERE ' . one_of('true', 'false') . one_of('', ' RETURNING moved.*'),
			'DELETE FROM moved WHERE ' . one_of('true', 'false') . one_of('', ' RETURNING moved.*'),
			'UPDATE extension_storage SET key = key WHERE false RETURNING extension_storage.*',
			'UPDATE people SET id = id', 'DELETE FROM charts', 'INSERT INTO charts VALUES (1, NULL)')
	} 1 .. 2;

	return one_of('ALSO', 'INSTEAD', 'INSTEAD') . ' (' . join('; ', @statements) . ')';
}

# A change of the table, or of what is around it.
sub change
{
	my $column = one_of(@$columns);
	my $type = one_of(@$types);
	my $table = one_of(('extension_storage') x 8, 'extension_storage_usage', 'ext_storage_secrets', 'people', 'charts');
	my $alter = "ALTER TABLE $table";

	return one_of(
		sub { "$alter ALTER $column TYPE $type USING " . one_of("NULL::$type", "$column\:\:text::$type") },
		sub { "$alter ALTER $column DROP NOT NULL, ALTER $column DROP DEFAULT, ALTER $column TYPE $type USING NULL::$type" },
		sub { "$alter ALTER $column TYPE " . one_of('bigint', 'text', 'bytea') },
		sub { "$alter ALTER $column DROP NOT NULL" },
		sub { "$alter ALTER $column DROP IDENTITY IF EXISTS" },
		sub { "UPDATE extension_storage SET $column = NULL" },
		sub { "$alter DROP COLUMN $column" . one_of('', ' CASCADE') },
		sub { "$alter RENAME $column TO " . one_of(@$columns, 'hostile') },
		sub { "$alter RENAME " . one_of('hostile', 'value') . " TO $column" },
		sub { "$alter ADD COLUMN $column $type" },
		sub { "$alter ADD COLUMN hostile$column $type DEFAULT NULL" },
		sub { "$alter ALTER $column SET DEFAULT " . one_of('NULL', "'x'", 'hostile_check()::text::integer', '1') },
		sub { "$alter DROP CONSTRAINT " . one_of('uq_extension_storage_scoped_key', 'uq_extension_storage_uuid', 'extension_storage_pkey', 'ck_extension_storage_resource', 'ck_extension_storage_description', 'ck_extension_storage_value_size') . one_of('', ' CASCADE') },
		sub { 'DROP INDEX ' . one_of('ix_extension_storage_category', 'ix_extension_storage_changed', 'ix_extension_storage_encrypted') },
		sub { "CREATE INDEX ON extension_storage (($column IS NULL AND hostile_check()))" },
		sub { "$alter ADD CHECK (hostile_check()) NOT VALID" },
		sub { "$alter ADD UNIQUE ($column)" },
		sub { "$alter RENAME TO " . one_of('moved', 'people') },
		sub { "ALTER TABLE moved RENAME TO extension_storage" },
		sub { "CREATE " . one_of('', 'TEMP ') . one_of('VIEW', 'TABLE') . " extension_storage AS SELECT * FROM " . one_of('moved', 'store.extension_storage') },
		sub { 'CREATE VIEW extension_storage AS SELECT id, uuid, extension_id, user_fk, resource_type, resource_uuid, key, category, description, value' . one_of('', '::text AS value', ' || hostile_check()::text::bytea AS value') . ', value_type, is_encrypted, created_on, changed_on, created_by_fk, changed_by_fk, version, value_size FROM moved' },
		sub { one_of('DROP VIEW', 'DROP TABLE') . ' ' . one_of('extension_storage', 'pg_temp.extension_storage', 'extension_storage_usage') . one_of('', ' CASCADE') },
		sub { 'CREATE MATERIALIZED VIEW extension_storage AS SELECT * FROM moved' },
		sub { 'CREATE TABLE extension_storage (LIKE moved INCLUDING ALL) PARTITION BY LIST (extension_id)' },
		sub { 'CREATE TABLE part PARTITION OF extension_storage DEFAULT' },
		sub { 'CREATE TABLE child () INHERITS (extension_storage)' },
		sub { "ALTER EXTENSION extension_storage DROP " . one_of('TABLE extension_storage', 'TABLE extension_storage_usage', 'TABLE ext_storage_secrets', 'TYPE ext_storage_entry') },
		sub { function('hostile_trigger()', 'trigger') },
		sub { function('hostile_check()', 'boolean') },
		sub { my $to = one_of('text', 'integer'); function("hostile_cast_$to(hostile_row)", $to) },
		sub { my $to = one_of('text', 'integer'); "CREATE CAST (hostile_row AS $to) WITH FUNCTION hostile_cast_$to(hostile_row) AS IMPLICIT" },
		sub { 'CREATE OR REPLACE TRIGGER ' . one_of('a_hostile', 'z_hostile', 'extension_storage_count') . ' ' . one_of('BEFORE', 'AFTER') . ' ' . one_of('INSERT', 'UPDATE', 'DELETE', 'INSERT OR UPDATE OR DELETE', 'TRUNCATE') . " ON $table FOR EACH " . one_of('ROW', 'ROW', 'STATEMENT') . ' EXECUTE FUNCTION ' . one_of('hostile_trigger()', 'hostile_trigger()', 'ext_storage_count_rows()', 'ext_storage_count_statement()', 'ext_storage_secrets_insert()', "ext_storage_users_deleted('id')", "ext_storage_resources_deleted('chart', 'uuid')", 'ext_storage_users_deleted()', 'ext_storage_resources_deleted()') },
		sub { 'CREATE TRIGGER r_hostile AFTER ' . one_of('UPDATE', 'DELETE', 'INSERT') . " ON $table REFERENCING " . one_of('OLD TABLE AS old_rows', 'OLD TABLE AS deleted', 'NEW TABLE AS new_rows') . ' FOR EACH STATEMENT EXECUTE FUNCTION ' . one_of('hostile_trigger()', "ext_storage_users_deleted('id')", "ext_storage_resources_deleted('chart', 'uuid')", 'ext_storage_count_statement()') },
		sub { 'CREATE TRIGGER i_hostile INSTEAD OF ' . one_of('UPDATE', 'DELETE', 'INSERT') . ' ON extension_storage FOR EACH ROW EXECUTE FUNCTION ' . one_of('hostile_trigger()', 'ext_storage_secrets_insert()', 'ext_storage_count_rows()') },
		sub { 'CREATE CONSTRAINT TRIGGER d_hostile AFTER INSERT OR UPDATE ON extension_storage DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hostile_trigger()' },
		sub { "$alter " . one_of('DISABLE', 'ENABLE', 'ENABLE ALWAYS', 'ENABLE REPLICA') . ' TRIGGER ' . one_of('USER', 'a_hostile', 'extension_storage_count') =~ s/(ALWAYS|REPLICA) TRIGGER USER/$1 TRIGGER a_hostile/r },
		sub { 'DROP TRIGGER ' . one_of('a_hostile', 'z_hostile', 'r_hostile', 'd_hostile', 'extension_storage_count', 'extension_storage_count_rows') . " ON $table" },
		sub { 'CREATE RULE hostile AS ON ' . one_of('INSERT', 'UPDATE', 'DELETE') . " TO $table DO " . one_of('INSTEAD NOTHING', "ALSO SELECT hostile_check()", "INSTEAD SELECT 1", rule_of_two()) },
		sub { "DROP RULE hostile ON $table" },
		sub { "$alter " . one_of('ENABLE', 'FORCE', 'DISABLE', 'NO FORCE') . ' ROW LEVEL SECURITY' },
		sub { "CREATE POLICY p" . int(rand 3) . " ON $table USING (" . one_of('true', 'hostile_check()', "key <> 'k1'", "hostile_check() OR key = 'k2'") . ')' . one_of('', ' WITH CHECK (hostile_check())') },
		sub { "DROP POLICY p" . int(rand 3) . " ON $table" },
		sub { 'ALTER DOMAIN hostile_domain ADD CHECK (hostile_check())' },
		sub { 'ALTER TYPE ext_storage_entry ' . one_of("ADD ATTRIBUTE more integer", "DROP ATTRIBUTE $column", "ALTER ATTRIBUTE $column TYPE $type", "RENAME ATTRIBUTE $column TO hostile") . one_of('', ' CASCADE') },
		sub { 'ALTER SCHEMA ' . one_of('store RENAME TO moved_store', 'moved_store RENAME TO store') },
		sub { 'ALTER EXTENSION ' . one_of('pgcrypto', 'extension_storage') . ' SET SCHEMA ' . one_of('public', 'store') },
		sub { 'TRUNCATE ' . one_of('extension_storage', 'extension_storage_usage') . one_of('', ' CASCADE') },
		sub { 'DELETE FROM ' . one_of('people', 'charts', 'extension_storage_usage', 'extension_storage') },
		sub { "INSERT INTO people VALUES (1), (2) ON CONFLICT DO NOTHING" },
		sub { "INSERT INTO charts VALUES (1, $uuid)" },
		sub { "INSERT INTO extension_storage (extension_id, key, value, is_encrypted) VALUES ('acme.a', $of_type{text}[one_of(1, 4, 5)], 'gAAAAAB', true)" },
		sub { "UPDATE extension_storage SET value = " . one_of("'gAAAA'", "value || 'x'", "''") . ', is_encrypted = ' . one_of('true', 'false', 'is_encrypted') },
		sub { 'UPDATE extension_storage_usage SET ' . one_of('value_bytes = 9223372036854775807', 'value_bytes = -1', "extension_id = 'acme.a'") },
		sub { "INSERT INTO ext_storage_secrets SELECT * FROM ext_storage_secrets" },
		sub { 'CREATE OR REPLACE FUNCTION store.' . one_of('encrypt_iv', 'decrypt_iv') . q((bytea, bytea, bytea, text) RETURNS bytea LANGUAGE sql AS $$ SELECT ) . one_of('NULL::bytea', q('x'::bytea), '$1 || $1', '$2') . one_of('', ' WHERE store.hostile_check()') . ' $$' },
		sub { one_of('DROP EXTENSION pgcrypto CASCADE', 'DROP EXTENSION extension_storage CASCADE', 'CREATE EXTENSION extension_storage SCHEMA store CASCADE') },
		sub { 'GRANT ALL ON ALL TABLES IN SCHEMA store TO hostile_reader' },
		sub { 'ALTER TABLE extension_storage OWNER TO hostile_reader' },
		sub { 'VACUUM ' . one_of('', 'FULL ') . 'extension_storage' },
		sub { 'ANALYZE extension_storage' })->();
}

# Changes of the table while nothing else is wrong with it: a column that C reads
# from a trigger's tuple has another type, or one that is never null is.
sub first_change
{
	my $counted = one_of(qw(extension_id extension_id value description is_encrypted value_size));
	my $column = one_of(@$columns);

	return one_of(
		sub { "SELECT 1" },
		sub { "ALTER TABLE extension_storage ALTER $counted TYPE " . one_of('name', 'text', 'bytea', '"char"', 'integer', 'bigint') . " USING $counted\:\:text" . one_of('', '::bytea', '::integer', '::integer::boolean::text', '::"char"') . ";\n"
			  . one_of('UPDATE extension_storage SET version = version', "DELETE FROM extension_storage WHERE key = 'k1'") },
		sub { "ALTER TABLE extension_storage ALTER $column DROP NOT NULL;\nUPDATE extension_storage SET $column = NULL" . one_of('', " WHERE key = 'k1'") . ";\n"
			  . one_of("SELECT * FROM ext_storage_list('acme.a')", "SELECT ext_storage_set('acme.a', 'k1', 'x')", "SELECT ext_storage_get('acme.a', 'k1')", "SELECT * FROM ext_storage_list_values('acme.a')", "SELECT ext_storage_delete('acme.a', 'k1', if_version => 1)") })->();
}

sub setting
{
	return one_of(
		sub { 'SET ' . one_of('', 'LOCAL ', '') . 'extension_storage.' . one_of('encryption_keys', 'secret_key') . ' = ' . one_of("'new,old'", "'old'", "'third'", "''", q('"'), "'a,'") },
		sub { 'SELECT set_config(' . one_of("'extension_storage.encryption_keys'", "'extension_storage.secret_key'") . ', ' . secrets() . ', ' . one_of('true', 'false') . ')' },
		sub { "SET extension_storage.encryption_keys = 'new,old'" },
		sub { 'SET extension_storage.' . one_of('quota_per_extension = ', 'max_value_size = ') . one_of(0, 1, 5000, 100000) },
		sub { 'SET extension_storage.rotation_lock_wait = ' . one_of(0, 50) },
		sub { 'SET row_security = ' . one_of('on', 'off') },
		sub { 'SET session_replication_role = replica' },
		sub { 'SET search_path = ' . one_of('store, public', "''", 'store, pg_catalog', 'public, store', 'pg_temp, store, public') },
		sub { 'SET search_path = store, moved_store, public' },
		sub { 'SET default_transaction_isolation = ' . one_of("'serializable'", "'repeatable read'", "'read committed'") },
		sub { 'SET default_transaction_read_only = ' . one_of('on', 'off', 'off') },
		sub { 'SET client_encoding = ' . one_of('LATIN1', 'SQL_ASCII', 'UTF8') },
		sub { 'SET plan_cache_mode = ' . one_of('force_generic_plan', 'force_custom_plan', 'auto') },
		sub { 'SET enable_' . one_of('seqscan', 'indexscan', 'bitmapscan') . ' = ' . one_of('on', 'off') },
		sub { 'SET max_parallel_workers_per_gather = ' . one_of(0, 2) . '; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0' },
		sub { 'SET ROLE ' . one_of('hostile_reader', 'hostile_holder', 'NONE') },
		sub { one_of('DISCARD ALL', 'DISCARD PLANS', 'RESET ALL', 'RESET ROLE', 'RESET search_path') },
		sub { "SET timezone = " . one_of("'Asia/Tokyo'", "'UTC'") . "; SET datestyle = " . one_of("'German'", "'ISO'") . "; SET bytea_output = " . one_of("'escape'", "'hex'") . '; SET standard_conforming_strings = ' . one_of('on', 'off') },
		sub { $sessions > 1 ? "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = 'hostile_holder' AND pid <> pg_backend_pid()" : 'SELECT 1' })->();
}

# Calls whose results are taken one by one, with changes between them; calls in
# blocks that swallow the error.
sub session_work
{
	return one_of(
		sub { 'BEGIN; DECLARE c CURSOR FOR ' . (call() =~ s/^CALL .*/SELECT * FROM ext_storage_list_values('acme.a')/r) . '; FETCH 1 FROM c; ' . change() . '; FETCH 2 FROM c; ' . setting() . '; FETCH ALL FROM c; ' . one_of('COMMIT', 'ROLLBACK') },
		sub { my $tag = '$d' . $tags++ . '$'; "DO $tag BEGIN " . join(' ', map { deed() } 1 .. 3) . " END $tag" },
		sub { 'PREPARE p AS ' . (call() =~ s/^CALL .*/SELECT 1/r) . '; EXECUTE p; ' . change() . '; EXECUTE p; DEALLOCATE p' },
		sub { "SELECT ext_storage_get(extension_id, key), ext_storage_delete(extension_id, key) FROM extension_storage" },
		sub { "SELECT ext_storage_set('acme.a', 'k' || i, repeat('x', i * 100)::bytea, is_encrypted => i % 2 = 0) FROM generate_series(1, 9) i" },
		sub { "COPY extension_storage TO STDOUT" })->();
}

# Whether there is nothing left to call.
my $look = <<'END';
\set gone true
SELECT NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'extension_storage')
	OR to_regclass('store.extension_storage') IS NULL AS gone \gset
END

# One session at a time puts all back, though others cancel the statement that waits.
# PostgreSQL itself crashes where a schema is dropped while CREATE EXTENSION goes from
# script to script in it: execute_extension_script() quotes a name that is NULL.
my $lock = "SELECT pg_advisory_lock(1) WHERE NOT EXISTS (SELECT FROM pg_locks
	WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid());\n" x 8;

# Puts all back as it was when the extension was new.
my $restore = <<"END";
ROLLBACK;
RESET SESSION AUTHORIZATION;
DISCARD ALL;
\\set VERBOSITY terse
${lock}DROP SCHEMA IF EXISTS store, moved_store CASCADE;
DROP EXTENSION IF EXISTS extension_storage, pgcrypto CASCADE;
CREATE SCHEMA store;
SET search_path = store, public;
CREATE EXTENSION extension_storage SCHEMA store CASCADE;
GRANT ALL ON SCHEMA store TO hostile_reader;
CREATE FUNCTION hostile_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE FUNCTION hostile_check() RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
CREATE DOMAIN hostile_domain AS text;
CREATE TYPE hostile_enum AS ENUM ('k1', 't');
CREATE TYPE hostile_row AS (a text, b integer);
CREATE FUNCTION hostile_cast_text(hostile_row) RETURNS text LANGUAGE sql AS 'SELECT ''k1''';
CREATE FUNCTION hostile_cast_integer(hostile_row) RETURNS integer LANGUAGE sql AS 'SELECT 1';
CREATE TABLE people (id integer PRIMARY KEY);
CREATE TABLE charts (id integer, uuid uuid);
CREATE VIEW hostile_view AS SELECT * FROM people;
CREATE TABLE legacy AS SELECT id, uuid, extension_id, user_fk, resource_type, resource_uuid, key, category,
	description, value, value_type, is_encrypted, created_on, changed_on, created_by_fk, changed_by_fk
	FROM extension_storage;
INSERT INTO legacy SELECT i, gen_random_uuid(), 'acme.a', NULL, NULL, NULL, 'l' || i, NULL, NULL,
	CASE WHEN i % 2 = 0 THEN fernet_encrypt('x', fernet_derive_key('old'))::bytea ELSE 'x' END, 'text/plain',
	i % 2 = 0, now(), now(), 1, 1 FROM generate_series(1, 5) i;
SET extension_storage.encryption_keys = 'old';
SELECT FROM generate_series(0, 7) i, ext_storage_set('acme.a', 'k' || i, 'words', is_encrypted => i % 2 = 0);
SELECT ext_storage_set('acme.a', 'k1', 'words', user_fk => 1, resource_type => 'chart', resource_uuid => 'x');
SET extension_storage.encryption_keys = 'new,old';
SELECT pg_advisory_unlock(1);
\\set VERBOSITY verbose
END

# A superuser calls functions, as they are by now; what is no function of the
# extension is looked up in pg_catalog first.
sub superuser_calls
{
	return "ROLLBACK;\n\\connect - postgres\nSET search_path = pg_catalog, store;\n"
	  . "SET extension_storage.encryption_keys = 'new,old';\n"
	  . 'SET extension_storage.quota_per_extension = ' . one_of(0, 0, 1000000) . ";\n"
	  . join('', map { call('store.') . ";\n" } 1 .. 20)
	  . "\\connect - hostile_holder\nSET search_path = store, public;\n";
}

# The statements of a session, which its seed alone decides.
sub script
{
	my ($session_seed, $steps) = @_;
	my $script = "\\set VERBOSITY verbose\n\\pset pager off\nSET search_path = store, public;\n";
	my $left = 0;    # statements to the end of the transaction
	my $restore_at = 1;

	srand $session_seed;
	for my $step (1 .. $steps)
	{
		if ($left == 0 && $step >= $restore_at)
		{
			$script .= superuser_calls() if $step > 1;
			$script .= $restore . '\set ON_ERROR_ROLLBACK ' . one_of('on', 'off') . "\n";
			$script .= 'SET extension_storage.quota_per_extension = ' . one_of(0, 1000000) . ";\n";
			$script .= "SELECT ext_storage_set('acme.a', 'k1', 'words', description => 'more');\n" . first_change() . ";\n";
			$restore_at = $step + $steps_restored;
		}
		elsif ($left == 0 && $step % 5 == 0)
		{
			$script .= "$look\\if :gone\n$restore\\endif\n";
		}
		if ($left > 0)
		{
			$left--;
			$script .= one_of('COMMIT', 'ROLLBACK') . ";\n" if $left == 0;
			$script .= one_of('SAVEPOINT s', 'ROLLBACK TO s', 'RELEASE s') . ";\n" if $left > 0 && percent(25);
		}
		elsif (percent(12))
		{
			$left = 1 + int rand 7;
			$script .= 'BEGIN' . one_of('', '', ' ISOLATION LEVEL SERIALIZABLE', ' ISOLATION LEVEL REPEATABLE READ', ' READ ONLY') . ";\n";
		}
		my $kind = rand 100;
		$script .= ($kind < 60 ? call() : $kind < 83 ? change() : $kind < 93 ? setting() : session_work()) . ";\n";
	}
	return $script . "ROLLBACK;\n";
}

# -- the server --

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init(extra => [ '-E', 'UTF8', '--no-locale' ]);
$node->append_conf('postgresql.conf', q{
	shared_preload_libraries = 'extension_storage'
	extension_storage.rotation_lock_wait = 100ms
	statement_timeout = 120s
	deadlock_timeout = 50ms
	restart_after_crash = off
	fsync = off
	log_statement = all
	log_line_prefix = '%m [%p] '
});
$node->start;
$node->safe_psql('postgres', q{
	CREATE ROLE hostile_holder LOGIN;
	CREATE ROLE hostile_reader;
	GRANT hostile_reader TO hostile_holder;
	GRANT SET ON PARAMETER extension_storage.quota_per_extension, extension_storage.max_value_size TO hostile_holder});
$node->safe_psql('postgres', 'CREATE DATABASE hostile OWNER hostile_holder');

# What there is to call.
$node->safe_psql('postgres', 'CREATE EXTENSION extension_storage CASCADE');
foreach (split /\n/, $node->safe_psql('postgres', q{
	SELECT p.proname, p.prokind, p.prorettype::regtype, p.pronargdefaults,
		array_to_string(p.proargnames[:p.pronargs], ','),
		(SELECT string_agg(format_type(t, NULL), ',' ORDER BY n) FROM unnest(p.proargtypes) WITH ORDINALITY a (t, n))
	FROM ext_storage_functions() f JOIN pg_proc p ON p.oid = f.function}))
{
	my ($name, $kind, $result, $defaults, $names, $argument_types) = split /\|/, $_, -1;
	push @functions,
	  {
		name => $name,
		kind => $kind,
		result => $result,
		defaults => $defaults,
		names => [ split /,/, $names ],
		types => [ split /,/, $argument_types ]
	  };
}
@functions = sort { $a->{name} cmp $b->{name} } @functions;
cmp_ok(@functions, '>', 30, 'there are functions to call');

my %count;
my ($round, $statements) = (0, 0);
my $end = time + $seconds;
my $alive = 1;
while ($alive && ($round < $rounds || time < $end))
{
	my $round_seed = $seed + $round++;
	$sessions = $ENV{HOSTILE_SESSIONS} // ($round % 4 == 0 ? 3 : 1);
	my @running;
	my @internal;

	note("seed $round_seed");
	for my $session (1 .. $sessions)
	{
		my $script = script($round_seed * 16 + $session, $steps);
		my $file = $node->basedir . "/$session.sql";

		open my $handle, '>', $file or die "open $file: $!";
		print $handle $script;
		close $handle;
		$statements += () = $script =~ /;$/mg;

		# To a file: a pipe that nobody empties would stop a session that has locks.
		my $run = IPC::Run::start(
			[
				$node->installed_command('psql'), '-Xq', '-h', $node->host, '-p', $node->port,
				'-U', 'hostile_holder', '-f', $file, 'hostile'
			],
			'<', \undef, '>', '/dev/null', '2>', "$file.err");
		push @running, { run => $run, err => "$file.err", session => $session };
	}
	foreach (@running)
	{
		$_->{run}->finish;
		my $result = $_->{run}->full_result;
		$alive = 0 if $result != 0;
		my $err = slurp_file($_->{err});
		foreach (split /\n/, $err)
		{
			next unless /^psql:\S*?\/(\d+\.sql:\d+): (?:ERROR|FATAL|PANIC):  (?:(\w{5}): )?(.*)/;
			my ($where, $state, $message) = ($1, $2 // 'none', $3);
			$count{$state}++;
			push @internal, "$where $message"
			  if $state =~ /^XX/ && !($sessions > 1 && $message =~ $internal_of_postgres) && $message ne 'no'
			  or $message =~ /statement timeout/;
		}
		note("session $_->{session} ended with $result: " . substr $err, -2000) if $result != 0;
	}
	ok($alive, "seed $round_seed, $sessions sessions: the server lives, and so do its sessions");
	is(join("\n", @internal), '', "seed $round_seed, $sessions sessions: no internal error, and each statement ends");
}
unlike(slurp_file($node->logfile), qr/terminated by signal|exited with exit code [2-9]|TRAP:|PANIC:/,
	'no process has crashed');
unlike(slurp_file($node->logfile), qr/LOG:  $as_superuser/, 'and nothing of theirs has run as a superuser');
note("$round rounds, $statements statements, from seed $seed; errors by SQLSTATE: ",
	join ', ', map { "$_ $count{$_}" } sort { $count{$b} <=> $count{$a} } keys %count);

done_testing();
