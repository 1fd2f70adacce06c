# Tokens in both directions between the server and Python's cryptography, at
# lengths 0 to 100, 1,000, 100,000 and 16,777,215.

use strict;
use warnings FATAL => 'all';

use File::Basename;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $python = $ENV{PYTHON} // '/usr/bin/python3';
my $script = dirname(__FILE__) . '/interop.py';
my $node = PostgreSQL::Test::Cluster->new('main');
my $file = $node->basedir . '/tokens';

sub query
{
	return $node->safe_psql('postgres', $_[0]);
}

$node->init(extra => [ '-E', 'UTF8', '--no-locale' ]);
$node->append_conf('postgresql.conf', 'autovacuum = off');
$node->start;
query('CREATE EXTENSION extension_storage CASCADE');

# ---------------------------------------------------------------------------
# Python's tokens, read here

command_ok([ $python, $script, 'make', $file ], 'Python makes tokens');
query(qq{
	CREATE TABLE python (name text PRIMARY KEY, message bytea, token text, secret text);
	COPY python FROM '$file'});
is(query('SELECT count(*), max(length(message)) FROM python'),
	'310|16777215', 'they arrive');
is(query(q{SELECT count(*) FROM python
		WHERE fernet_decrypt(token, fernet_derive_key(secret)) = message}),
	310, 'each gives its message with its own key');
is(query(q{SELECT count(*) FROM python
		WHERE fernet_decrypt(token, fernet_derive_key(secret), '1 hour') = message
			AND fernet_timestamp(token) BETWEEN now() - interval '1 hour' AND now()}),
	310, 'and was made now');
my ($rc, $out, $err) = $node->psql('postgres',
	q{SELECT fernet_decrypt(token, fernet_derive_key('other')) FROM python});
like($err, qr/invalid Fernet token/, 'another key reads none');

# Rows that another program has written
query(q{
	INSERT INTO extension_storage (extension_id, key, value, value_type, is_encrypted)
	SELECT 'python', name, convert_to(token, 'UTF8'), 'application/octet-stream', true
	FROM python});
is(query(q{
		SET extension_storage.encryption_keys = 'new,öld';
		SELECT count(*) FROM python
		WHERE ext_storage_get('python', name) = message}),
	310, 'rows with such tokens read as values');

# ---------------------------------------------------------------------------
# The server's tokens, read there

query(qq{
	COPY (SELECT name, message, fernet_encrypt(message, fernet_derive_key(secret)),
			secret FROM python)
	TO '$file'});
command_like([ $python, $script, 'check', $file ], qr/^310$/,
	'Python reads what fernet_encrypt() makes');

query(q{
	SET extension_storage.encryption_keys = 'new,öld';
	SELECT count(ext_storage_set('server', name, message,
		'application/octet-stream', is_encrypted => true)) FROM python});
query(qq{
	COPY (SELECT name, message, convert_from(value, 'UTF8'), 'new'
		FROM extension_storage JOIN python ON key = name
		WHERE extension_id = 'server')
	TO '$file'});
command_like([ $python, $script, 'check', $file ], qr/^310$/,
	'and what ext_storage_set() stores');

is(query(q{
		SET extension_storage.encryption_keys = 'new,öld';
		CALL ext_storage_rotate_keys('python')}),
	'310|104|206|0', 'a rotation finds those that need it');
query(qq{
	COPY (SELECT name, message, convert_from(value, 'UTF8'), 'new'
		FROM extension_storage JOIN python ON key = name
		WHERE extension_id = 'python')
	TO '$file'});
command_like([ $python, $script, 'check', $file ], qr/^310$/,
	'Python reads what the rotation writes, with the new key');
is(query(q{SELECT count(*) FROM extension_storage JOIN python ON key = name
		WHERE extension_id = 'python' AND fernet_timestamp(token)
			= fernet_timestamp(convert_from(value, 'UTF8'))}),
	310, 'and Python\'s times are in the new tokens');

$node->stop;
done_testing();
