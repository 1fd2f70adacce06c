# Secrets and keys are wiped from a backend's memory when they are replaced.
#
# A session reads its own memory through /proc/self/mem, so nothing but the
# rights of a superuser is needed.

use strict;
use warnings FATAL => 'all';
no warnings 'portable';    # addresses have 64 bits

use Digest::SHA qw(sha256);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
my $file = $node->basedir . '/keys';
my $dump = $node->basedir . '/memory';
my @secrets = map { sprintf '%s-secret-%08x%08x', $_, rand 2**32, rand 2**32 }
  qw(first second third fourth);

sub write_keys
{
	unlink $file;
	append_to_file($file, join '', map { "$_\n" } @_);
	chmod 0600, $file or die "chmod $file: $!";
}

# What HMAC keeps of a key, as SHA-256 holds it in memory: the state after the
# key and the inner padding.  It signs as well as the key does.
sub hmac_state
{
	my ($signing) = @_;
	my $block = ($signing . "\0" x 48) ^ ("\x36" x 64);
	my ($state) = Digest::SHA->new(256)->add($block)->getstate =~ /^H:(\S+)/m
	  or die 'no state';

	return pack 'L*', unpack 'N*', pack 'H*', $state =~ s/://gr;
}

# What a session's private memory holds of a secret: its text, the halves of
# its key, or what is made of the signing half.
sub memory_holds
{
	my ($session, $secret) = @_;
	my $key = sha256($secret);
	my %wanted = (
		text => $secret,
		'HMAC state' => hmac_state(substr($key, 0, 16)),
		'signing half' => substr($key, 0, 16),
		'encrypting half' => substr($key, 16));
	my %held;
	my $maps = $session->query("SELECT pg_read_file('/proc/self/maps', 0, 100000)");

	for my $map (split /\n/, $maps)
	{
		my ($from, $to, $mode, $name) =
		  $map =~ /^(\w+)-(\w+) (\S+) \S+ \S+ \S+ *(.*)$/
		  or die "no map: $map";

		next if $mode !~ /^rw.p/;
		my $start = hex $from;
		my $len = hex($to) - $start;
		$session->query("SELECT encode(pg_read_binary_file('/proc/self/mem', $start, $len), 'hex') \\g $dump");
		# a mapping that the query before this one had made is gone: no memory
		my $memory = pack 'H*', slurp_file($dump) =~ s/\s//gr;
		index($memory, $wanted{$_}) < 0 or $held{$_}++ for keys %wanted;
	}
	return join ', ', sort keys %held;
}

my $read = q{SELECT convert_from(ext_storage_get('acme.app', 'k'), 'UTF8')};

write_keys($secrets[0]);
$node->init;
$node->append_conf('postgresql.conf',
	"extension_storage.encryption_keys_file = '$file'");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION extension_storage CASCADE');
$node->safe_psql('postgres',
	q{SELECT ext_storage_set('acme.app', 'k', 'value', is_encrypted => true)});

my $looked = $node->background_psql('postgres', on_error_stop => 0);
my $stayed = $node->background_psql('postgres', on_error_stop => 0);

is($_->query($read), "value", "a session reads with the first key")
  for $looked, $stayed;
like(memory_holds($looked, $secrets[0]), qr/HMAC state.*encrypting half.*signing half/,
	'the search finds the key that is in force');
unlike(memory_holds($looked, $secrets[0]), qr/text/,
	'the text of the key file is wiped once the keys are made');

write_keys($secrets[1], $secrets[0]);
$node->reload;
is($stayed->query($read), 'value', 'it reads with two keys');
$node->safe_psql('postgres', 'CALL ext_storage_rotate_keys()');
write_keys($secrets[1]);
$node->reload;
is($stayed->query($read), 'value', 'and with the second one');
is(memory_holds($stayed, $secrets[0]), '',
	'the key that was taken out of the file is wiped');

# A key that was set: only its masked form outlives the statement.
my $set = $node->background_psql('postgres', on_error_stop => 0);
$set->query("SELECT ext_storage_count('acme.app')");
$set->query("SET extension_storage.encryption_keys = '$secrets[2]'");
$set->query(
	q{SELECT ext_storage_set('acme.app', 'k3', 'value', is_encrypted => true)});
$set->query('RESET extension_storage.encryption_keys');
is($set->query($read), 'value', 'a session resets the key that it had set');
unlike(memory_holds($set, $secrets[2]), qr/half/, 'which is then wiped');


# The text of a setting, which no statement contains: it is made by a function.
# PostgreSQL's own copies of it are in memory that the next statements use
# again; the one that the setting keeps is wiped by nobody else.  A setting of
# another name shows that it would be found, also when it is gone.
my $backwards = reverse $secrets[3];
my $same_length = 'x' x length $backwards;
for my $setting ('other.setting', map { "extension_storage.$_" }
	qw(encryption_keys secret_key previous_secret_key))
{
	for my $how ('set', 'set and reset', 'refused')
	{
		my $value = $how eq 'refused' ? "reverse('$backwards\"') || '\"'"
		  : "reverse('$backwards')";
		my $session = $node->background_psql('postgres', on_error_stop => 0);
		$session->query("LOAD 'extension_storage'");
		$session->query("SELECT set_config('$setting', $value, false)");
		$session->query("RESET $setting") if $how eq 'set and reset';
		for (1 .. 20)
		{
			$session->query("SELECT length(reverse('$same_length')), length(reverse('$same_length\"') || '\"')");
		}
		print STDERR "$setting $how: ", memory_holds($session, $secrets[3]), "\n";
		$session->{stderr} = '';
		$session->quit;
	}
}

$_->quit for $looked, $stayed, $set;
$node->stop;
done_testing();
