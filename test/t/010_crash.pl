# Crashes during rotation: of 20,000 rows, at 20 random moments, the server by
# an immediate stop or the rotating backend by SIGKILL, in turns.  After each,
# every value still reads, nothing is lost and nothing is there twice; the
# rotation, run again, gets to its end.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

my $rounds = 20;
my $rows = 20_000;
my $seed = int rand 2**31;
my $node = PostgreSQL::Test::Cluster->new('main');
my $file = $node->basedir . '/keys';

note "random seed $seed";
srand $seed;

sub write_keys
{
	unlink $file;
	append_to_file($file, join '', map { "$_\n" } @_);
	chmod 0600, $file or die "chmod $file: $!";
}

# Starts a rotation and waits until it has said that so many rows are done.
# Returns the client and the process id of its backend.
sub start_rotation
{
	my $done = shift;
	my ($out, $err) = ('', '');
	my $psql = IPC::Run::start(
		[
			'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c',
			'SELECT pg_backend_pid()', '-c',
			'CALL ext_storage_rotate_keys(batch_size => 100)'
		],
		'>', \$out, '2>', \$err);

	$psql->pump until ($err =~ /.*rotate_keys: (\d+) of/s ? $1 : 0) >= $done;
	$out =~ /^(\d+)$/m or die "no process id: $out";
	return ($psql, $1);
}

# What must be the same before and after, whatever happened.
my $state = q{SELECT count(*), count(DISTINCT key), sum(version), min(uuid::text), max(uuid::text),
	md5(string_agg(uuid || ' ' || key || ' ' || changed_on
		|| ' ' || convert_from(ext_storage_get(extension_id, key), 'UTF8'), ',' ORDER BY id))
	FROM extension_storage};
my $by_key = q{SELECT string_agg(entries::text, ' ' ORDER BY ordinal) FROM ext_storage_key_status()};

write_keys('secret 0');
$node->init;
$node->append_conf('postgresql.conf', qq{
extension_storage.encryption_keys_file = '$file'
restart_after_crash = on
checkpoint_timeout = 1h});
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION extension_storage CASCADE');
$node->safe_psql('postgres', qq{
	SELECT count(ext_storage_set('acme.app' || i % 3, 'k' || i, convert_to('value ' || i, 'UTF8'),
		is_encrypted => true)) FROM generate_series(1, $rows) i});
my $expected = $node->safe_psql('postgres', $state);
like($expected, qr/^$rows\|$rows\|$rows\|/, 'the rows are there');

my ($survived, $interrupted) = (0, 0);
for my $round (1 .. $rounds)
{
	write_keys("secret $round", 'secret ' . ($round - 1));
	$node->reload;
	my ($psql, $pid) = start_rotation(100 + int rand 0.9 * $rows);
	sleep rand 0.01;    # not always right after a commit
	if ($round % 2)
	{
		$node->stop('immediate');
		$node->start;
	}
	else
	{
		# the server restarts by itself, a moment after the client knows
		my $offset = -s $node->logfile;
		kill 'KILL', $pid;
		$node->wait_for_log(qr/database system is ready to accept connections/, $offset);
	}
	IPC::Run::finish($psql);
	$node->poll_query_until('postgres', 'SELECT true')
	  or die 'the server does not come back';

	# all values, some with either key
	my $after = $node->safe_psql('postgres', $state);
	my ($new, $old, $unknown) = split / /, $node->safe_psql('postgres', $by_key);
	$interrupted++ if $new > 0 && $old > 0;

	my $resumed = $node->safe_psql('postgres', 'CALL ext_storage_rotate_keys()');
	my $end = $node->safe_psql('postgres', $by_key);
	my $ok = $after eq $expected && $new + $old == $rows && $unknown == 0
	  && $resumed eq "$rows|$old|$new|0" && $end eq "$rows 0 0";
	$survived++ if $ok;
	ok($ok, ($round % 2 ? 'immediate stop' : 'SIGKILL') . " with $new of $rows rows done")
	  or diag "state $after\nexpected $expected\nunknown $unknown, resumed $resumed, in the end $end";
}
write_keys("secret $rounds");
$node->reload;
is($node->safe_psql('postgres', $state), $expected, 'in the end everything reads with the last key alone');
is($survived, $rounds, "$survived of $rounds crashes with nothing lost, nothing doubled");
cmp_ok($interrupted, '>=', $rounds / 2, "$interrupted of them in the middle of the rows");

$node->stop;
done_testing();
