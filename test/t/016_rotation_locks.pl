# Rows that a rotation cannot have, and entries that it cannot see: it waits for
# locked rows without holding anything up, and key_status calls no key removable
# that a transaction in progress, a prepared one for instance, may have used.
# move_in waits, too, for as long as lock_timeout allows.

use strict;
use warnings FATAL => 'all';

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init(extra => [ '-E', 'UTF8', '--no-locale' ]);
$node->append_conf('postgresql.conf', 'max_prepared_transactions = 5');
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION extension_storage CASCADE');

my $old = q{SET extension_storage.encryption_keys = 'old'};
my $both = q{SET extension_storage.encryption_keys = 'new,old'};

sub query
{
	return $node->safe_psql('postgres', $_[0]);
}

# Starts anew with the entries a, b and c, made with the old key.
sub fill
{
	query(qq{DELETE FROM extension_storage; $old;
		SELECT count(ext_storage_set('acme.app', k, convert_to(k || 0, 'UTF8'), is_encrypted => true))
		FROM string_to_table('a,b,c', ',') k});
}

# A transaction that goes on without a session.
sub prepare
{
	my ($name, $sql) = @_;
	query("$old; BEGIN; $sql; PREPARE TRANSACTION '$name'");
}

# Starts a rotation.
sub start_rotation
{
	my ($settings, $output) = @_;
	return IPC::Run::start(
		[
			$node->installed_command('psql'), '-X', '-A', '-t', '-q',
			'-d', $node->connstr('postgres'),
			'-c', $both, '-c', $settings, '-c', 'CALL ext_storage_rotate_keys()'
		],
		'>', $output, '2>', $output);
}

# Waits until so many entries have the new key.
sub wait_for_rotated
{
	my ($n) = @_;
	local $ENV{PGOPTIONS} = '-c extension_storage.encryption_keys=new,old';
	$node->poll_query_until('postgres',
		"SELECT entries = $n FROM ext_storage_key_status() WHERE role = 'encrypts'")
	  or die "never $n entries rotated";
}

my $values = qq{$both; SELECT string_agg(key || '=' ||
	convert_from(ext_storage_get('acme.app', key), 'UTF8'), ',' ORDER BY key) FROM extension_storage};
my $status = "$both; SELECT ordinal, entries, removable FROM ext_storage_key_status()";

# -- it waits, and takes the row as it is by then --

foreach my $case (
	[ 'written', q{SELECT ext_storage_set('acme.app', 'b', 'written')},
		'COMMIT PREPARED', 'a=a0,b=written,c=c0', '3|3|0|0' ],
	[ 'rolled back', q{SELECT ext_storage_set('acme.app', 'b', 'written')},
		'ROLLBACK PREPARED', 'a=a0,b=b0,c=c0', '3|3|0|0' ],
	[ 'deleted', q{SELECT ext_storage_delete('acme.app', 'b')},
		'COMMIT PREPARED', 'a=a0,c=c0', '3|2|1|0' ])
{
	my ($name, $sql, $end, $expected, $counts) = @$case;
	my $output = '';

	fill();
	prepare('writer', $sql);
	my $rotation = start_rotation(q{SET extension_storage.rotation_lock_wait = '1h'}, \$output);
	wait_for_rotated(2);
	ok( $node->poll_query_until('postgres',
			q{SELECT backend_xid IS NULL AND backend_xmin IS NULL FROM pg_stat_activity
			WHERE query ~ '^CALL ext_storage_rotate_keys'}),
		"$name: while it waits it has no snapshot, so vacuum is not held back");
	query("$end 'writer'");
	ok($rotation->finish, "$name: the rotation ends");
	like($output, qr/^\Q$counts\E$/m, "$name: and has counted all rows");
	like($output, qr/waiting up to 3600 s for 1 locked rows/, "$name: and has said that it waits");
	unlike($output, qr/WARNING/, "$name: nothing is left");
	is(query($values), $expected, "$name: the row is what it was by then");
}

# Many rows, whose ids and keys are in opposite order.
query(qq{DELETE FROM extension_storage; $old;
	SELECT count(ext_storage_set('acme.app', 'k' || 1000 - i, convert_to('value ' || i, 'UTF8'), is_encrypted => true))
	FROM generate_series(1, 200) i});
prepare('writer', q{SELECT count(*) FROM (SELECT FROM extension_storage FOR UPDATE) r});
my $many = '';
my $waiting = start_rotation(q{SET extension_storage.rotation_lock_wait = '1h'}, \$many);
$node->poll_query_until('postgres',
	q{SELECT count(*) > 0 FROM pg_stat_activity WHERE query ~ '^CALL ext_storage_rotate_keys' AND wait_event = 'Extension'})
  or die 'the rotation does not wait';
query(q{COMMIT PREPARED 'writer'});
$waiting->finish;
like($many, qr/^200\|200\|0\|0$/m, 'many locked rows: each gets its own token') or diag($many);
is(query(q{SET extension_storage.encryption_keys = 'new'; SELECT count(*) FROM generate_series(1, 200) i
	WHERE ext_storage_get('acme.app', 'k' || 1000 - i) = convert_to('value ' || i, 'UTF8')}),
	200, 'and is read');

# -- it can be cancelled while it waits, and a timeout of each batch is no
# timeout of the call --

fill();
prepare('writer', q{SELECT ext_storage_set('acme.app', 'b', 'written')});
my $output = '';
my $rotation = start_rotation(
	q{SET extension_storage.rotation_lock_wait = '1h'; SET statement_timeout = '2s'}, \$output);
wait_for_rotated(2);
ok( $node->poll_query_until('postgres',
		q{SELECT clock_timestamp() > query_start + interval '3 seconds' FROM pg_stat_activity
		WHERE query ~ '^CALL ext_storage_rotate_keys'}),
	'statement_timeout counts anew with each batch');
query(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query ~ '^CALL ext_storage_rotate_keys'});
$rotation->finish;
like($output, qr/ERROR:  canceling statement due to user request/, 'it can be cancelled while it waits');
like(query($status), qr/^1\|2\|f$/m, 'and what it has committed stays');

my ($rc, $out, $err);

# In a transaction block, where nothing is committed, the timeout is that of the
# statement.
($rc, $out, $err) = $node->psql('postgres', "$both;
	SET extension_storage.rotation_lock_wait = '1h'; SET statement_timeout = '500ms';
	BEGIN; CALL ext_storage_rotate_keys()");
like($err, qr/ERROR:  canceling statement due to statement timeout/,
	'in a transaction block statement_timeout ends it');

# -- a call that takes longer than statement_timeout, and one that is cut off --

query(q{
	ROLLBACK PREPARED 'writer';
	DELETE FROM extension_storage;
	CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_sleep(0.005);
		IF new.key = current_setting('test.stop_at', true) THEN
			PERFORM pg_terminate_backend(pg_backend_pid());
		END IF;
		RETURN new;
	END $$;
	CREATE TRIGGER slow BEFORE UPDATE ON extension_storage FOR EACH ROW EXECUTE FUNCTION slow()});
query("$old; SELECT count(ext_storage_set('acme.app', 'k' || i, 'x', is_encrypted => true))
	FROM generate_series(1, 500) i");
is(query("$both; SET statement_timeout = '2s'; CALL ext_storage_rotate_keys()"), '500|500|0|0',
	'a rotation that takes longer than statement_timeout comes to its end in one call');

my $versions = q{SELECT md5(string_agg(ctid || ' ' || xmin, ',' ORDER BY id)) FROM extension_storage};
my $done = query($versions);
is(query("$both; CALL ext_storage_rotate_keys()"), '500|0|500|0', 'a second call finds all done');
is(query($versions), $done, 'and writes nothing');

# The next call begins with what is left: it names the damaged entry, which is
# among the first, after it has re-encrypted the rest.
my $newer = q{SET extension_storage.encryption_keys = 'newer,new'};
query(q{UPDATE extension_storage SET value = 'damaged' WHERE key = 'k3'});
$node->psql('postgres', "$newer; SET test.stop_at = 'k300'; CALL ext_storage_rotate_keys(batch_size => 20)");
my ($left) = query("$newer; SELECT entries FROM ext_storage_key_status() WHERE role = 'decrypts'");
cmp_ok($left, '<=', 300, 'what a call has committed before it was cut off stays');
cmp_ok($left, '>=', 201, 'and something is left');
($rc, $out, $err) = $node->psql('postgres', "$newer; CALL ext_storage_rotate_keys(batch_size => 20)");
is($out, "500|$left|@{[499 - $left]}|1", 'the next call re-encrypts what is left alone');
my ($first) = $err =~ /(.*?)WARNING:  key "k3"/s;
cmp_ok(scalar(() = $first =~ /rows done/g), '>=', $left / 20 - 1, 'and begins with it');
query(q{DELETE FROM extension_storage WHERE key = 'k3'});
query('DROP TRIGGER slow ON extension_storage; DROP FUNCTION slow()');
fill();
prepare('writer', q{SELECT ext_storage_set('acme.app', 'b', 'written')});
query("$both; SET extension_storage.rotation_lock_wait = 0; CALL ext_storage_rotate_keys()");

# -- it does not wait for ever --

($rc, $out, $err) = $node->psql('postgres', "$both;
	SET extension_storage.rotation_lock_wait = '100ms'; CALL ext_storage_rotate_keys()");
is($rc, 0, 'it goes on without a row that stays locked');
is($out, '3|0|2|0', 'which is neither current nor failed');
my @lines = grep { !/^(?:DETAIL|HINT)/ } split /\n/, $err;
like($lines[-3], qr/WARNING:  key "b" of extension "acme\.app" \(global\), uuid [-0-9a-f]{36}, is locked by another transaction and is left as it is$/,
	'but named');
like($lines[-2], qr/WARNING:  rotate_keys: 1 locked rows and 0 that cannot be written were left$/,
	'and counted');
like($lines[-1], qr/NOTICE:  rotate_keys: 3 scanned, 0 re-encrypted, 2 already current, 0 failed$/,
	'before the last line');
query(q{ROLLBACK PREPARED 'writer'});
is(query("$both; CALL ext_storage_rotate_keys()"), '3|1|2|0', 'the next call does the rest');

# -- what key_status cannot see --

is(query($status), "1|3|f\n2|0|t\n|0|", 'nothing needs the old key');
prepare('insert "x"', q{SELECT ext_storage_set('acme.app', 'd', 'd0', is_encrypted => true)});
($rc, $out, $err) = $node->psql('postgres', $status);
is($out, "1|3|f\n2|0|\n|0|", 'a prepared transaction may: removable is null');
like($err, qr/WARNING:  it is not known whether a key is removable\nDETAIL:  .*: prepared transaction "insert "x""\.\nHINT:  Ask again/,
	'and the transaction is named');
is(query("$both; CALL ext_storage_rotate_keys()"), '3|0|3|0', 'a rotation does not see its entry');
query(q{COMMIT PREPARED 'insert "x"'});
is(query($status), "1|3|f\n2|1|f\n|0|", 'indeed it did');

# A prepared transaction of another table, or another database, does not matter.
query('CREATE TABLE other (i integer); CREATE DATABASE other');
query("BEGIN; INSERT INTO other VALUES (1); PREPARE TRANSACTION 'other table'");
$node->safe_psql('other', "CREATE TABLE t (i integer); BEGIN; INSERT INTO t VALUES (1);
	PREPARE TRANSACTION 'other database'");
query("$both; CALL ext_storage_rotate_keys()");
is(query($status), "1|4|f\n2|0|t\n|0|", 'transactions that write elsewhere do not matter');
query("COMMIT PREPARED 'other table'");
$node->safe_psql('other', "COMMIT PREPARED 'other database'");

# A session that has written and not committed, the asking one too.
my ($in, $writer_out, $writer_err) = ('', '', '');
my $writer = IPC::Run::start(
	[ $node->installed_command('psql'), '-X', '-A', '-t', '-q', '-d', $node->connstr('postgres') ],
	'<', \$in, '>', \$writer_out, '2>', \$writer_err);
$in .= "$old; BEGIN; SELECT version FROM ext_storage_set('acme.app', 'e', 'e0', is_encrypted => true);\n"
  . "\\echo ready\n";
$writer->pump until $writer_out =~ /ready/ || !$writer->pumpable;
my $pid = query(q{SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction'});
($rc, $out, $err) = $node->psql('postgres', $status);
is($out, "1|4|f\n2|0|\n|0|", 'a session that has not committed may need it, too');
like($err, qr/DETAIL:  .*: process $pid\.$/m, 'and is named');
($rc, $out, $err) = $node->psql('postgres', "BEGIN; DELETE FROM extension_storage WHERE key = 'd'; $status");
like($err, qr/DETAIL:  .*: this transaction, process $pid\.$/m, 'after the asking one');
$in .= "ROLLBACK;\n\\q\n";
$writer->finish;
($rc, $out, $err) = $node->psql('postgres', "BEGIN; DELETE FROM extension_storage WHERE key = 'd'; $status; ROLLBACK");
is($out, "1|3|f\n2|0|\n|0|", 'what the asking transaction has written, it sees, and may be rolled back');

($in, $writer_out) = ('', '');
$writer = IPC::Run::start(
	[ $node->installed_command('psql'), '-X', '-A', '-t', '-q', '-d', $node->connstr('postgres') ],
	'<', \$in, '>', \$writer_out, '2>', \$writer_err);
$in .= "$both; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM extension_storage;\n"
  . "\\echo ready\n";
$writer->pump until $writer_out =~ /ready/ || !$writer->pumpable;
query("$old; SELECT ext_storage_set('acme.app', 'f', 'f0', is_encrypted => true)");
$in .= "SELECT ordinal, entries, removable FROM ext_storage_key_status();\n\\q\n";
$writer->finish;
like($writer_out, qr/^2\|1\|f$/m, 'an older snapshot does not hide an entry from key_status');

# -- what move_in cannot write --

query(q{CREATE TABLE source AS SELECT id, extension_id, 'm' || key AS key, uuid, user_fk, resource_type,
	resource_uuid, category, description, convert_to('v', 'UTF8') AS value, value_type, false AS is_encrypted,
	created_on, changed_on, created_by_fk, changed_by_fk FROM extension_storage});
my $rows = query('SELECT count(*) FROM source');
prepare('writer', q{SELECT ext_storage_set('acme.app', 'ma', 'written')});
($rc, $out, $err) = $node->psql('postgres', q{SET lock_timeout = '100ms'; CALL ext_storage_move_in('source')});
is($out, join('|', $rows, $rows - 1, 0, 0, 0, 1), 'move_in waits for a locked row as long as lock_timeout allows');
like($err, qr/WARNING:  move_in: row \d+, key "ma" .*, is left out: 55P03: /, 'and leaves it out by name');
query(q{ROLLBACK PREPARED 'writer'});
is(query(q{CALL ext_storage_move_in('source')}), join('|', $rows, 1, $rows - 1, 0, 0, 0), 'a second call moves it');

# Where each read of the table takes as long as a batch may, also of no row, it
# ends all the same.
fill();
query(q{ALTER TABLE extension_storage RENAME TO slow_table;
	CREATE VIEW extension_storage AS SELECT * FROM slow_table WHERE (SELECT pg_sleep(1.1)) IS NOT NULL});
is( $node->safe_psql('postgres', "$both; SET client_min_messages = error; CALL ext_storage_rotate_keys('acme.app')",
		timeout => 4 * $PostgreSQL::Test::Utils::timeout_default),
	'3|3|0|0', 'a rotation whose reads are slow ends');
query('DROP VIEW extension_storage; ALTER TABLE slow_table RENAME TO extension_storage');

$node->stop;
done_testing();
