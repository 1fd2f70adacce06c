# A session that sets and gets all day does not grow.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init(extra => [ '-E', 'UTF8', '--no-locale' ]);
$node->append_conf('postgresql.conf', 'autovacuum = off');
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION extension_storage CASCADE');

# Two sizes of a value: in the row, and in TOAST.
$node->safe_psql(
	'postgres', q{
	CREATE PROCEDURE work(n integer) LANGUAGE plpgsql AS $$
	DECLARE
		small bytea := convert_to(repeat('s', 100), 'UTF8');
		large bytea := convert_to(repeat('l', 20000), 'UTF8');
		value bytea;
	BEGIN
		FOR i IN 1 .. n LOOP
			value := CASE WHEN i % 100 = 0 THEN large ELSE small END;
			PERFORM ext_storage_set('acme.app', 'k' || i % 40, value,
				is_encrypted => true);
			IF ext_storage_get('acme.app', 'k' || i % 40) <> value THEN
				RAISE 'another value';
			END IF;
			IF i % 100 = 0 THEN
				COMMIT;
			END IF;
		END LOOP;
	END $$;
	CREATE PROCEDURE errors(n integer) LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 1 .. n LOOP
			BEGIN
				PERFORM ext_storage_get('acme.app', 'damaged');
				RAISE 'no error';
			EXCEPTION WHEN SQLSTATE 'ES001' THEN
			END;
			IF i % 100 = 0 THEN
				COMMIT;
			END IF;
		END LOOP;
	END $$;
	CREATE PROCEDURE keys(n integer) LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 1 .. n LOOP
			PERFORM set_config('extension_storage.encryption_keys',
				'secret,' || repeat('x', i % 500 + 1), false);
			PERFORM ext_storage_get('acme.app', 'k1');
			IF i % 100 = 0 THEN
				COMMIT;
			END IF;
		END LOOP;
	END $$});

# What the contexts hold, and all that the process holds, malloc included.
my $memory = q{
	SELECT sum(total_bytes) FROM pg_backend_memory_contexts;
	SELECT substring(pg_read_file('/proc/self/status') FROM 'RssAnon:\s+(\d+)')::bigint * 1024};

my $session = $node->background_psql('postgres');
$session->query("SET extension_storage.encryption_keys = 'secret,other'");
$session->query(q{SELECT ext_storage_set('acme.app', 'damaged', 'x', is_encrypted => true)});
$session->query(q{UPDATE extension_storage SET value = set_byte(value, 50, 65 + get_byte(value, 50) % 2)
	WHERE key = 'damaged'});

foreach my $case (
	[ 'work', 1000, 100_000, 'encrypted sets and gets' ],
	[ 'errors', 1000, 20_000, 'errors' ],
	[ 'keys', 1000, 20_000, 'changes of keys' ])
{
	my ($procedure, $warm_up, $n, $name) = @$case;
	$session->query_safe("CALL $procedure($warm_up)");
	$session->query($memory);
	my @before = split(/\n/, $session->query($memory));
	$session->query_safe("CALL $procedure($n)");
	my @after = split(/\n/, $session->query($memory));
	note("$n $name: contexts $before[0] to $after[0] bytes, process $before[1] to $after[1]");
	cmp_ok($after[0] - $before[0], '<', 64 * 1024,
		"$n $name: memory contexts stay flat");
	cmp_ok($after[1] - $before[1], '<', 1024 * 1024,
		"$n $name: the process too");
}
$session->quit;

# A rotation needs no more for many rows than for few.
$node->safe_psql('postgres', q{
	CREATE TABLE measured (n serial, bytes bigint);
	CREATE FUNCTION measure() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO measured (bytes) SELECT sum(total_bytes) FROM pg_backend_memory_contexts;
		RETURN NULL;
	END $$;
	DELETE FROM extension_storage;
	SET extension_storage.encryption_keys = 'old';
	SELECT count(ext_storage_set('acme.app', 'k' || i, convert_to(repeat('x', 1000), 'UTF8'), is_encrypted => true))
	FROM generate_series(1, 10000) i;
	CREATE TRIGGER measure AFTER UPDATE ON extension_storage FOR EACH STATEMENT EXECUTE FUNCTION measure();
	SET client_min_messages = error;
	SET extension_storage.encryption_keys = 'new,old';
	CALL ext_storage_rotate_keys()});
my ($early, $late, $times) = split /\|/, $node->safe_psql('postgres', q{
	SELECT max(bytes) FILTER (WHERE n BETWEEN 20 AND 60), max(bytes) FILTER (WHERE n > 200), max(n) FROM measured});
note("memory contexts during a rotation: $early, later $late, $times statements");
cmp_ok($times, '>', 250, 'a rotation writes in many statements');
cmp_ok($late - $early, '<', 1024 * 1024, 'and its memory stays flat');

# Nor does a superuser's, which uses the rights of the table's owner, or a move
# with a quota.
$node->safe_psql('postgres', q{
	CREATE ROLE holder;
	ALTER TABLE extension_storage OWNER TO holder; ALTER TABLE extension_storage_usage OWNER TO holder;
	GRANT USAGE ON SCHEMA public TO holder; GRANT pg_read_all_stats TO holder;
	GRANT ALL ON measured TO holder; GRANT ALL ON measured_n_seq TO holder;
	CREATE TABLE source AS SELECT id, uuid, 'acme.moved' AS extension_id, user_fk, resource_type, resource_uuid, key, category,
		description, value, value_type, is_encrypted, created_on, changed_on, created_by_fk, changed_by_fk FROM extension_storage;
	ALTER TABLE source OWNER TO holder});
foreach my $case (
	[ 'UPDATE ON extension_storage FOR EACH STATEMENT', q{SET extension_storage.encryption_keys = 'newer,new';
		CALL ext_storage_rotate_keys(batch_size => 10)}, 'a rotation by a superuser' ],
	[ q{INSERT ON extension_storage FOR EACH ROW WHEN (NEW.key LIKE '%0')}, q{SET extension_storage.encryption_keys = 'new';
		SET extension_storage.quota_per_extension = '1GB'; CALL ext_storage_move_in('source')}, 'a move into another role\'s table' ])
{
	my ($event, $call, $name) = @$case;
	$node->safe_psql('postgres', qq{
		TRUNCATE measured RESTART IDENTITY;
		CREATE OR REPLACE TRIGGER measure AFTER $event EXECUTE FUNCTION measure();
		SET client_min_messages = error;
		$call});
	($early, $late, $times) = split /\|/, $node->safe_psql('postgres', q{
		SELECT max(bytes) FILTER (WHERE n BETWEEN 20 AND 60), max(bytes) FILTER (WHERE n > 900), max(n) FROM measured});
	note("memory contexts during $name: $early, later $late, $times times");
	cmp_ok($times, '>', 950, "$name writes many times");
	cmp_ok($late - $early, '<', 1024 * 1024, "and its memory stays flat");
}

$node->stop;
done_testing();
