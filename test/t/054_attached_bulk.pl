# Attached tables that lose 10,000 rows at once: one statement purges what
# belonged to all of them, by index, and not one entry more.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf(
	'postgresql.conf', q{
shared_preload_libraries = 'pg_stat_statements'
pg_stat_statements.track = all
extension_storage.quota_per_extension = 1MB
});
$node->start;
$node->safe_psql(
	'postgres', q{
	CREATE EXTENSION pg_stat_statements;
	CREATE EXTENSION extension_storage CASCADE;
	CREATE TABLE ab_user (id integer PRIMARY KEY);
	CREATE TABLE dashboards (id integer PRIMARY KEY, uuid uuid);
	CREATE TABLE slices (id integer PRIMARY KEY REFERENCES dashboards, uuid text);
	SELECT ext_storage_attach_users(), ext_storage_attach_resource('dashboard', 'dashboards'),
		ext_storage_attach_resource('chart', 'slices')});

# 12,000 users, dashboards and charts; each has an entry, and its neighbour
# made it.  Another 100 belong to nobody.
sub fill
{
	$node->safe_psql(
		'postgres', q{
		TRUNCATE extension_storage, ab_user, dashboards, slices;
		INSERT INTO ab_user SELECT generate_series(1, 12000);
		INSERT INTO dashboards SELECT i, md5('d' || i)::uuid FROM generate_series(1, 12000) i;
		INSERT INTO slices SELECT i, upper(md5('s' || i)) FROM generate_series(1, 12000) i;
		INSERT INTO extension_storage (extension_id, user_fk, resource_type, resource_uuid, key,
			value, value_size, created_by_fk, changed_by_fk)
		SELECT 'acme.app' || i % 3, u, t, r, 'k', 'xyz', 3, i % 12000 + 1, i FROM generate_series(1, 12000) i,
			LATERAL (VALUES (i, NULL, NULL), (NULL, 'dashboard', md5('d' || i)::uuid::text),
				(NULL, 'chart', md5('s' || i)::uuid::text)) v (u, t, r);
		INSERT INTO extension_storage (extension_id, key, value, value_size)
		SELECT 'acme.app1', 'k' || i, 'xyz', 3 FROM generate_series(1, 100) i;
		SELECT ext_storage_delete('acme.app', 'starts the counting')});
}

# Entries of users, dashboards, charts, nobody; are the audit columns those of
# users that are there; are the bytes counted right.
sub state
{
	return $node->safe_psql(
		'postgres', q{
		SELECT count(user_fk), count(*) FILTER (WHERE resource_type = 'dashboard'),
			count(*) FILTER (WHERE resource_type = 'chart'),
			count(*) FILTER (WHERE user_fk IS NULL AND resource_type IS NULL),
			count(created_by_fk), count(changed_by_fk),
			(SELECT count(*) FROM extension_storage, unnest(ARRAY[created_by_fk, changed_by_fk]) u
				WHERE u IS NOT NULL AND u NOT IN (SELECT id FROM ab_user)),
			(SELECT sum(value_bytes) FROM extension_storage_usage)
				- coalesce(sum(value_size), 0)
		FROM extension_storage});
}

# The entries that a statement deletes, and by how many statements below it.
sub purges
{
	my ($sql) = @_;

	return $node->safe_psql(
		'postgres', qq{SELECT pg_stat_statements_reset() \\g /dev/null
		$sql;
		SELECT sum(calls), sum(rows) FROM pg_stat_statements
		WHERE query LIKE '%DELETE FROM public.extension_storage %'});
}

fill();
is(state(), '12000|12000|12000|100|36000|36000|0|0', 'all is there');
is(purges('DELETE FROM ab_user WHERE id <= 10000'),
	'1|10000', 'one statement purges 10,000 users');
is(state(), '2000|12000|12000|100|5999|6000|0|0', 'no more and no less goes');
is(purges('DELETE FROM slices WHERE id > 2000'), '1|10000', 'and 10,000 charts');
is(state(), '2000|12000|2000|100|3999|4000|0|0', 'no more and no less goes');
is(purges('DELETE FROM dashboards WHERE id > 2000'), '1|10000', 'and 10,000 dashboards');

fill();
is(purges('TRUNCATE dashboards CASCADE'),
	'2|24000', 'TRUNCATE of two tables purges both kinds of resources');
is(state(), '12000|0|0|100|12000|12000|0|0', 'and nothing else');
is(purges('TRUNCATE ab_user'), '1|12000', 'TRUNCATE purges all users');
is(state(), '0|0|0|100|0|0|0|0', 'what belongs to nobody stays');

$node->stop;
done_testing();
