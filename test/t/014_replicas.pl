# Reads on a hot standby and in a read-only transaction, with the same key
# fingerprints; logical replication to a second server that reads the values.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = PostgreSQL::Test::Cluster->new('primary');
my $keys = $primary->basedir . '/keys';
my $setting = "extension_storage.encryption_keys_file = '$keys'";

append_to_file($keys, "first secret\nsecond secret\n");
chmod 0600, $keys or die "chmod $keys: $!";
$primary->init(allows_streaming => 'logical');
$primary->append_conf('postgresql.conf', $setting);
$primary->start;
$primary->safe_psql('postgres', 'CREATE EXTENSION extension_storage CASCADE');

my $fill = q{SELECT count(ext_storage_set('acme.app', 'k' || i, convert_to('value ' || i, 'UTF8'),
	is_encrypted => i %% 2 = 0)) FROM generate_series(%d, %d) i};
$primary->safe_psql('postgres', sprintf $fill, 1, 50);
# made with the second key, and with a key that nobody has
for my $name ('second', 'lost')
{
	$primary->safe_psql('postgres', qq{
		SET extension_storage.encryption_keys = '$name secret';
		SELECT ext_storage_set('acme.app', '$name', 'x', is_encrypted => true)});
}

my %read = (
	get => q{SELECT string_agg(convert_from(ext_storage_get('acme.app', 'k' || i), 'UTF8'), ',')
		FROM generate_series(1, 50) i},
	get_json => q{SELECT ext_storage_get_json('acme.app', 'none') IS NULL},
	get_entry => q{SELECT key, version, is_encrypted, value FROM ext_storage_get_entry('acme.app', 'k2')},
	list => q{SELECT string_agg(key, ',') FROM ext_storage_list('acme.app', page_size => 100)},
	count => q{SELECT ext_storage_count('acme.app')},
	get_many => q{SELECT string_agg(key || convert_from(value, 'UTF8'), ',')
		FROM ext_storage_get_many('acme.app', ARRAY['k2', 'none', 'k1'])},
	list_values => q{SELECT string_agg(key || coalesce(convert_from(value, 'UTF8'), problem), ',')
		FROM ext_storage_list_values('acme.app', page_size => 100)},
	list_newest => q{SELECT string_agg(key, ',') FROM ext_storage_list_newest('acme.app', page_size => 100)},
	verify => q{SELECT key, problem FROM ext_storage_verify()},
	usage => q{SELECT * FROM ext_storage_usage()},
	key_status => q{SELECT ordinal, fingerprint, role, entries, removable FROM ext_storage_key_status()});
my %expected = map { $_ => $primary->safe_psql('postgres', $read{$_}) } keys %read;

is($expected{count}, 52, 'there is something to read');
like($expected{verify}, qr/^lost\|[^\n]+$/, 'and something that cannot be read');
like($expected{key_status}, qr/\A1\|[0-9a-f]{8}\|encrypts\|25\|f\n2\|[0-9a-f]{8}\|decrypts\|1\|f\n\|\|unknown\|1\|\z/,
	'and two keys, each with a fingerprint of its own');

# -- a read-only transaction --

is( $primary->safe_psql('postgres', "BEGIN READ ONLY; $read{$_}; COMMIT"),
	$expected{$_}, "$_ in a read-only transaction") for sort keys %read;

# -- hot standby --

$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
$primary->safe_psql('postgres', q{SELECT ext_storage_set('acme.app', 'later', 'on its way',
	is_encrypted => true)});

# Who has written reads it on a standby, even on one that lags: by WAIT FOR, which
# PostgreSQL has from 19 on; before, the caller has to watch the positions.
my $lsn = $primary->safe_psql('postgres', 'SELECT pg_current_wal_insert_lsn()');
if ($primary->pg_version >= '19devel')
{
	$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
	$standby->poll_query_until('postgres',
		q{SELECT pg_get_wal_replay_pause_state() = 'paused'});
	my $unread = $primary->safe_psql('postgres', q{
		SELECT (ext_storage_set('acme.app', 'later', 'on its way', is_encrypted => true)).version;
		SELECT pg_current_wal_insert_lsn()});
	($lsn) = $unread =~ /^2\n(.*)$/ or die "no position in $unread";
	is( $standby->safe_psql('postgres',
			"WAIT FOR LSN '$lsn' WITH (TIMEOUT '100ms', NO_THROW)"),
		'timeout', 'a standby that lags says so');
	$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
	is( $standby->safe_psql('postgres', "WAIT FOR LSN '$lsn'"),
		'success', 'and has it after a wait');
}
else
{
	$primary->wait_for_catchup($standby, 'replay', $lsn);
}
is( $standby->safe_psql('postgres',
		q{SELECT convert_from(ext_storage_get('acme.app', 'later'), 'UTF8')}),
	'on its way', 'a standby reads what was written after it was made');
$primary->safe_psql('postgres', q{SELECT ext_storage_delete('acme.app', 'later')});
$primary->wait_for_catchup($standby);
is($standby->safe_psql('postgres', $read{$_}), $expected{$_}, "$_ on a hot standby")
  for sort keys %read;
my ($rc, $out, $err) = $standby->psql('postgres',
	q{SELECT ext_storage_set('acme.app', 'k1', 'x')});
like($err, qr/ERROR:  cannot execute ext_storage_set\(\) during recovery/, 'a standby does not write');
$primary->safe_psql('postgres', q{SET extension_storage.quota_per_extension = '1MB';
	SELECT ext_storage_set('acme.quota', 'k1', 'x'), ext_storage_delete('acme.quota', 'k1')});
$primary->wait_for_catchup($standby);
foreach my $call (q{ext_storage_set('acme.app', 'k1', 'x')}, q{ext_storage_rename('acme.app', 'k1', 'k9')},
	q{ext_storage_purge_extension('acme.app')}, q{ext_storage_set_many('acme.app', '{k1}', '{x}')})
{
	($rc, $out, $err) = $standby->psql('postgres', "SELECT $call");
	like($err, qr/ERROR:  cannot execute ext_storage_\w+\(\) during recovery/, "nor where bytes are counted: $call");
}
($rc, $out, $err) = $standby->psql('postgres', q{
	SET extension_storage.encryption_keys = 'first secret,second secret,not needed';
	SELECT removable FROM ext_storage_key_status() WHERE ordinal = 3});
is($out, '', 'a standby does not know whether a key can be removed');
like($err, qr/WARNING:  it is not known whether a key is removable\nDETAIL:  .*standby/, 'and says why');
$standby->stop;

# -- logical replication --

my $subscriber = PostgreSQL::Test::Cluster->new('subscriber');
$subscriber->init;
$subscriber->append_conf('postgresql.conf', $setting);
$subscriber->start;
$subscriber->safe_psql('postgres', 'CREATE EXTENSION extension_storage CASCADE');
$primary->safe_psql('postgres', 'CREATE PUBLICATION storage FOR TABLE extension_storage');
$subscriber->safe_psql('postgres', sprintf
	q{CREATE SUBSCRIPTION storage CONNECTION '%s dbname=postgres' PUBLICATION storage},
	$primary->connstr);
$subscriber->wait_for_subscription_sync($primary, 'storage');
is($subscriber->safe_psql('postgres', $read{$_}), $expected{$_}, "$_ on a logical replica")
  for sort keys %read;

$primary->safe_psql('postgres', q{
	SELECT ext_storage_set('acme.app', 'k2', 'new', is_encrypted => true);
	SELECT ext_storage_delete('acme.app', 'k4')});
$primary->safe_psql('postgres', 'CALL ext_storage_rotate_keys()');
$primary->wait_for_catchup('storage');
is($subscriber->safe_psql('postgres', $read{$_}), $primary->safe_psql('postgres', $read{$_}),
	"$_ after writes and a rotation") for sort keys %read;

# -- a subscriber with a quota, of a publication of all tables --

my $limited = PostgreSQL::Test::Cluster->new('limited');
$limited->init(allows_streaming => 'logical');
$limited->append_conf('postgresql.conf', "$setting\nextension_storage.quota_per_extension = 500");
$limited->start;
# the first write starts the counting; ids of its own
$limited->safe_psql('postgres', q{
	CREATE EXTENSION extension_storage CASCADE;
	SELECT setval('extension_storage_id_seq', 1000000);
	SELECT ext_storage_set('local.app', 'k', 'x')});
$primary->safe_psql('postgres', q{
	SET extension_storage.quota_per_extension = '1MB';
	SELECT ext_storage_set('acme.app', 'k2', 'counted here too', description => 'words')});
$primary->safe_psql('postgres', 'CREATE PUBLICATION everything FOR ALL TABLES');
is($primary->safe_psql('postgres',
		q{SELECT string_agg(tablename, ',') FROM pg_publication_tables WHERE pubname = 'everything'}),
	'extension_storage', 'the counts are in no publication');
$limited->safe_psql('postgres', sprintf
	q{CREATE SUBSCRIPTION everything CONNECTION '%s dbname=postgres' PUBLICATION everything},
	$primary->connstr);
$limited->wait_for_subscription_sync($primary, 'everything');

# What is counted and stored, of each extension, and whether that is the same.
my $counted = q{SELECT string_agg(concat_ws(' ', extension_id, u.value_bytes,
		u.value_bytes IS NOT DISTINCT FROM c.value_bytes), ', ' ORDER BY extension_id)
	FROM ext_storage_usage() u FULL JOIN extension_storage_usage c USING (extension_id)
	WHERE u.value_bytes IS NOT NULL OR c.value_bytes <> 0};
my $bytes = $primary->safe_psql('postgres',
	q{SELECT value_bytes FROM ext_storage_usage() WHERE extension_id = 'acme.app'});
cmp_ok($bytes, '>', 300, 'there is something to count');
is($limited->safe_psql('postgres', $counted), "acme.app $bytes t, local.app 1 t",
	'the initial copy is counted');

$primary->safe_psql('postgres', q{
	BEGIN;
	SELECT ext_storage_set('acme.app', 'k2', 'longer than it was before', is_encrypted => true);
	SELECT ext_storage_delete('acme.app', 'k6');
	SAVEPOINT s;
	SELECT ext_storage_set('acme.app', 'k7', 'rolled back, and long');
	ROLLBACK TO s;
	INSERT INTO extension_storage (extension_id, key, value)
	SELECT 'app.' || i % 3, 'k' || i, repeat('x', i)::bytea FROM generate_series(1, 100) i;
	COMMIT});
$primary->safe_psql('postgres', 'CALL ext_storage_rotate_keys()');
$primary->safe_psql('postgres', q{UPDATE extension_storage SET extension_id = 'app.3', description = 'moved'
	WHERE extension_id = 'app.1' AND key < 'k5'});
$primary->wait_for_catchup('everything');
my $published = $primary->safe_psql('postgres', $counted);
like($published, qr/^acme\.app \d+ t, app\.0 1683 t, app\.1 \d+ t, app\.2 1650 t, app\.3 \d+ t$/,
	'the publisher counts');
is($limited->safe_psql('postgres', $counted), "$published, local.app 1 t",
	'and so does the subscriber, past its own quota');
($rc, $out, $err) = $limited->psql('postgres', q{SELECT ext_storage_set('app.0', 'more', 'x')});
like($err, qr/ERROR:  quota of extension "app\.0" would be exceeded/, 'which holds for its own writes');

# A crash empties the counts; the next write makes them anew, and what is
# applied before that is in them.
$limited->stop('immediate');
$limited->start;
$primary->safe_psql('postgres', q{INSERT INTO extension_storage (extension_id, key, value)
	VALUES ('app.4', 'k', repeat('x', 77)::bytea)});
$primary->wait_for_catchup('everything');
$limited->safe_psql('postgres', q{INSERT INTO extension_storage (extension_id, key, value)
	VALUES ('local.raw', 'k', 'xyz')});
is($limited->safe_psql('postgres', 'SELECT count(*) FROM extension_storage_usage'),
	0, 'after a crash, nothing is counted');
# ... not in a transaction that is rolled back
$limited->safe_psql('postgres', q{BEGIN; SELECT ext_storage_set('local.app', 'k', 'xx'); ROLLBACK});
$limited->safe_psql('postgres', q{INSERT INTO extension_storage (extension_id, key, value)
	VALUES ('local.raw', 'k2', 'xyz')});
is($limited->safe_psql('postgres', 'SELECT count(*) FROM extension_storage_usage'),
	0, 'nor after a first write that is rolled back');
($rc, $out, $err) = $limited->psql('postgres', q{SELECT ext_storage_set('app.4', 'k', repeat('x', 501)::bytea)});
like($err, qr/ERROR:  quota of extension "app\.4" would be exceeded\nDETAIL:  It has 77 of 500 bytes in use/,
	'the quota holds at once');
$limited->safe_psql('postgres', q{SELECT ext_storage_set('local.app', 'k', 'xx')});
is($limited->safe_psql('postgres', $counted), "$published, app.4 77 t, local.app 2 t, local.raw 6 t",
	'and all is counted again');

# A server that is promoted has no counts either.
$limited->safe_psql('postgres', 'ALTER SUBSCRIPTION everything DISABLE');
$limited->backup('base');
my $promoted = PostgreSQL::Test::Cluster->new('promoted');
$promoted->init_from_backup($limited, 'base', has_streaming => 1);
$promoted->start;
$limited->wait_for_catchup($promoted);
is($promoted->safe_psql('postgres', q{SELECT sum(value_bytes) FROM ext_storage_usage()}),
	$limited->safe_psql('postgres', q{SELECT sum(value_bytes) FROM ext_storage_usage()}),
	'usage on a standby');
$promoted->promote;
($rc, $out, $err) = $promoted->psql('postgres', q{SELECT ext_storage_set('app.4', 'k2', repeat('x', 424)::bytea)});
like($err, qr/quota of extension "app\.4" would be exceeded\nDETAIL:  It has 77 of 500/,
	'the quota holds on a promoted standby');
$promoted->safe_psql('postgres', q{SELECT ext_storage_set('app.4', 'k2', repeat('x', 423)::bytea)});
is($promoted->safe_psql('postgres', q{SELECT bool_and(u.value_bytes = c.value_bytes)
		FROM ext_storage_usage() u LEFT JOIN extension_storage_usage c USING (extension_id)}),
	't', 'and counts');
$promoted->stop;

$limited->safe_psql('postgres', 'ALTER SUBSCRIPTION everything ENABLE');
$primary->safe_psql('postgres', 'TRUNCATE extension_storage');
$primary->wait_for_catchup('everything');
is($limited->safe_psql('postgres', $counted), '', 'a TRUNCATE is counted');
$primary->safe_psql('postgres', q{SELECT ext_storage_set('acme.app', 'k', 'xyz')});
$primary->wait_for_catchup('everything');
is($limited->safe_psql('postgres', $counted), 'acme.app 3 t', 'and what comes after it');

# Counting may start in the middle of what is applied, by a trigger that writes.
$_->safe_psql('postgres', 'CREATE TABLE told (key text)') for $primary, $limited;
$limited->safe_psql('postgres', q{
	CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM public.ext_storage_set('local.app', NEW.key, 'xx');
		RETURN NULL;
	END $$;
	CREATE TRIGGER tell AFTER INSERT ON told FOR EACH ROW EXECUTE FUNCTION tell();
	ALTER TABLE told ENABLE ALWAYS TRIGGER tell;
	ALTER SUBSCRIPTION everything REFRESH PUBLICATION;
	TRUNCATE extension_storage_usage});
$limited->wait_for_subscription_sync($primary, 'everything');
$primary->safe_psql('postgres', q{
	BEGIN;
	INSERT INTO extension_storage (extension_id, key, value) VALUES ('app.5', 'k', 'before');
	INSERT INTO told VALUES ('k');
	INSERT INTO extension_storage (extension_id, key, value) VALUES ('app.5', 'k2', 'after');
	COMMIT});
$primary->wait_for_catchup('everything');
is($limited->safe_psql('postgres', $counted), 'acme.app 3 t, app.5 11 t, local.app 2 t',
	'each row once');
$limited->stop;

$subscriber->stop;
$primary->stop;
done_testing();
