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
if ($primary->pg_version >= 19)
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
like($err, qr/ERROR:  cannot execute .* in a read-only transaction/, 'a standby does not write');
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

$subscriber->stop;
$primary->stop;
done_testing();
