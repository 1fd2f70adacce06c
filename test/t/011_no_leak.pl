# Keys cannot leak: secrets come from every source, everything that could show
# them is provoked, and then they are searched wherever somebody could look.
#
# What a user types into a statement is shown by PostgreSQL itself, in the log
# and in pg_stat_statements; those secrets are told from the others, and must
# be nowhere else.

use strict;
use warnings FATAL => 'all';

use Digest::SHA qw(sha256);
use File::Find;
use MIME::Base64 qw(encode_base64url);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# The superuser's name, whoever runs this.
$ENV{PGUSER} = 'postgres';

# A crash is provoked; its core would hold what a server's memory holds.
system("prlimit --pid $$ --core=0:") == 0 or die 'prlimit failed';

my @roles = qw(postgres app_owner app_monitor app_plain);
my @sizes = (1, 100, 1_900, 2_100, 9_000, 40_000, 3_000_000);
my %texts;    # what must not be seen: class => [texts]
my %seen;     # what somebody got to see: kind => text

# Makes a secret of a class: safe (a file, the connection request), conf (a
# configuration file) or typed (a statement).
sub secret
{
	my ($class, $name) = @_;
	my $secret = sprintf 'sEcReT-%s-%08x%08x', $name, rand 2**32, rand 2**32;
	my $key = sha256($secret);

	push @{ $texts{$class} },
	  $secret, $key, encode_base64url($key), unpack('H*', $key);
	return $secret;
}

# Which texts of some classes a text holds.
sub found
{
	my ($text, @classes) = @_;

	return join ', ',
	  grep { index($text, $_) >= 0 } map { @{ $texts{$_} // [] } } @classes;
}

# All files below a folder that hold a text of some classes.
sub files_with
{
	my ($folder, $skip, @classes) = @_;
	my @files;

	find(
		{
			no_chdir => 1,
			wanted => sub {
				return if !-f || $_ =~ $skip;
				my $found = found(slurp_file($_), @classes);
				push @files, "$_: $found" if $found ne '';
			}
		},
		$folder);
	return join "\n", @files;
}

# Runs statements as a role and keeps what the role got to see.
sub run
{
	my ($node, $role, $sql, %opts) = @_;
	local $ENV{PGOPTIONS} = $opts{options} // '';
	my ($rc, $out, $err) = $node->psql(
		'app', $sql,
		on_error_stop => 0,
		extra_params => [ '-U', $role, '-v', 'VERBOSITY=verbose' ]);

	$seen{ $opts{kind} // 'answers' } .= "$out\n$err\n";
	return "$out\n$err";
}

# By pg_isready, which has no input: a psql that is refused leaves its own unread,
# and who writes it fails.
sub wait_for_server
{
	my ($node) = @_;

	for (1 .. 1800)
	{
		return if system('pg_isready', '-q', '-d', $node->connstr('postgres')) == 0;
		select undef, undef, undef, 0.1;
	}
	die 'the server does not come back';
}

# The log since the last call has a line like this.
my $log_at;

sub log_has
{
	my ($node, $pattern, $name) = @_;

	for (1 .. 1800)
	{
		if (slurp_file($node->logfile, $log_at) =~ $pattern)
		{
			$log_at = -s $node->logfile;
			return pass($name);
		}
		select undef, undef, undef, 0.1;
	}
	return fail($name);
}

sub test_leaks
{
	my ($preloaded) = @_;
	my $mode = $preloaded ? 'preloaded' : 'not preloaded';
	my $node = PostgreSQL::Test::Cluster->new($preloaded ? 'pre' : 'lazy');
	my $file = $node->basedir . '/keys';
	my $conf = $node->data_dir . '/postgresql.conf';
	my $extension = 'extension_storage';
	# A secret setting that is set
	my $hidden = qr/^\*{8}$/m;

	(%texts, %seen) = ();
	$log_at = 0;

	my $write_keys = sub {
		unlink $file;
		append_to_file($file, join '', map { "$_\n" } @_);
		chmod 0600, $file or die "chmod $file: $!";
		$node->reload;
	};
	my $old = secret('safe', 'file-old');
	my $new = secret('safe', 'file-new');

	$node->init(extra => [ '-U', 'postgres' ]);
	$node->append_conf('postgresql.conf',
		'shared_preload_libraries = '
		  . ($preloaded
			? "'pg_stat_statements,$extension'"
			: "'pg_stat_statements'"));
	$node->append_conf(
		'postgresql.conf', qq{
log_statement = all
log_min_messages = debug2
log_min_error_statement = debug1
log_duration = on
log_connections = on
restart_after_crash = on
full_page_writes = on
$extension.encryption_keys_file = '$file'
});
	$node->start;
	$write_keys->($old);

	# -- the stage --
	$node->safe_psql(
		'postgres', q{
		CREATE ROLE app_owner LOGIN;
		CREATE ROLE app_monitor LOGIN IN ROLE pg_monitor;
		CREATE ROLE app_plain LOGIN;
		CREATE DATABASE app OWNER app_owner});
	$node->safe_psql('app', 'CREATE EXTENSION pg_stat_statements');
	my $installed =
	  run($node, 'app_owner', 'CREATE EXTENSION extension_storage CASCADE');
	unlike($installed, qr/ERROR/, "$mode: the owner installs it");
	$node->safe_psql('app',
		"GRANT EXECUTE ON FUNCTION ext_storage_count, ext_storage_get, ext_storage_set TO app_monitor, app_plain;
		GRANT SELECT, INSERT, UPDATE, DELETE ON extension_storage TO app_monitor, app_plain");

	# Loads the library where it is not; any role that may call a function can.
	my $load = q{SELECT ext_storage_count('acme.app');};
	# Each call of set makes several values, which are made in the server so
	# that no statement has them in its text.  They hold random bytes: what is
	# not encrypted can be found, compression does not hide it.
	my $set = sub {
		my ($name, $encrypted, $mark) = @_;
		my $reversed = reverse $mark;

		return join ' ', map {
			"SELECT (ext_storage_set('acme.app', '$name-$_', (SELECT string_agg("
			  . "convert_to(reverse('$reversed'), 'UTF8') || decode(md5(random()::text) || md5(i::text), 'hex')"
			  . ", '') FROM generate_series(0, $_ / 56) i),"
			  . " 'application/octet-stream', is_encrypted => $encrypted)).key;"
		} @sizes;
	};
	my $plaintext = sprintf 'pLaInTeXt-%06x-%06x', rand 2**24, rand 2**24;
	my $control = sprintf 'cOnTrOl-%06x-%06x', rand 2**24, rand 2**24;
	push @{ $texts{plaintext} }, $plaintext, scalar reverse(unpack 'H*', $plaintext),
	  unpack('H*', $plaintext);
	push @{ $texts{control} }, $control;

	# -- writes and reads, as every role, with keys of every source --
	my %read = map { $_ => "SELECT length(ext_storage_get('acme.app', '$_'));" }
	  map { my $size = $_; map { "$_-$size" } @roles, 'startup', 'set' } @sizes;
	my $reads = sub {
		my ($name) = @_;
		return join ' ', map { $read{"$name-$_"} } @sizes;
	};

	for my $role (@roles)
	{
		my $answer = run($node, $role,
			$set->($role, 'true', $plaintext) . $reads->($role));
		unlike($answer, qr/ERROR/, "$mode: $role writes and reads with the key file");
	}
	my $startup = secret('safe', 'startup');
	my $startup_second = secret('safe', 'startup-second');
	for my $role (@roles)
	{
		my $answer = run(
			$node, $role,
			$load . $set->('startup', 'true', $plaintext) . $reads->('startup')
			  . "SHOW $extension.encryption_keys; SHOW $extension.secret_key",
			options => "-c $extension.encryption_keys=$startup,$startup_second"
			  . " -c $extension.secret_key=" . secret('safe', 'startup-superset')
			  . " -c $extension.previous_secret_key=" . secret('safe', 'startup-previous'));
		like($answer, $hidden,
			"$mode: $role passes keys when connecting and sees none of them");
		unlike($answer, qr/ERROR/, "$mode: and writes and reads with them");
	}
	for my $role (@roles)
	{
		my $one = secret('typed', 'set');
		my $two = secret('typed', 'set-config');
		my $answer = run(
			$node, $role,
			$load . "SET $extension.encryption_keys = '$one';"
			  . "BEGIN; SET LOCAL $extension.encryption_keys = '$one,$two'; SELECT 1/0; ROLLBACK;"
			  . "SELECT set_config('$extension.secret_key', '$two', false);"
			  . "SELECT set_config('$extension.previous_secret_key', '$one', false);"
			  . $set->('set', 'true', $plaintext) . $reads->('set')
			  . "SHOW $extension.encryption_keys; SHOW $extension.secret_key;"
			  . "RESET $extension.encryption_keys; RESET ALL; DISCARD ALL; SHOW $extension.encryption_keys");
		like($answer, $hidden, "$mode: $role sets keys and sees none of them");
	}
	run($node, 'postgres', $set->('control', 'false', $control));

	# -- settings made before the library is loaded --
	my $evil = $node->basedir . '/evil';
	my $evil_secret = secret('safe', 'other-file');
	append_to_file($evil, "$evil_secret\n");
	chmod 0600, $evil or die "chmod $evil: $!";
	for my $role (@roles)
	{
		my $early = secret('typed', 'early');
		my $answer = run(
			$node, $role,
			"SET $extension.encryption_keys_file = '$evil';"
			  . "SET $extension.encryption_keys = '$early';"
			  . "$load SHOW $extension.encryption_keys;"
			  . "RESET $extension.encryption_keys;"
			  . $read{"$role-100"});
		like($answer, $hidden, "$mode: a key that $role sets early is hidden");
		like($answer, qr/^110$/m, "$mode: a key file that $role names early is not used");
		$answer = run($node, $role,
			"SET $extension.encryption_keys = '\"$early'; $load"
			  . "SHOW $extension.encryption_keys;"
			  . $read{"$role-100"});
		like($answer, qr/Item 1 of the list cannot be used/,
			"$mode: a wrong one is refused, when it is set or when it is used");
	}

	# -- wrong settings, and sources that end in a catalog --
	for my $role (@roles)
	{
		my $answer = run($node, $role, join ';', $load, map {
			my $wrong = secret('typed', 'wrong');
			my $list = s/\?/$wrong/r;
			("SET $extension.encryption_keys = $list",
				"SELECT set_config('$extension.encryption_keys', $list, false)");
		} q{'"?'}, q{'?,,?'}, q{'?"?'}, q{E'?\\xff'}, q{',?'});
		unlike($answer, qr/^SET$/m, "$mode: $role cannot set wrong lists");
	}
	for my $statement (
		"ALTER ROLE app_owner SET $extension.encryption_keys = '?'",
		"ALTER ROLE ALL SET $extension.secret_key = '?'",
		"ALTER DATABASE app SET $extension.encryption_keys = '?'",
		"ALTER ROLE app_owner IN DATABASE app SET $extension.secret_key = '?'",
		"CREATE FUNCTION public.f() RETURNS int LANGUAGE sql SET $extension.encryption_keys = '?' AS 'SELECT 1'")
	{
		my $refused = secret('typed', 'catalog');
		like(
			run($node, 'postgres', $load . $statement =~ s/\?/$refused/r),
			qr/cannot be set for a role, database, or function/,
			"$mode: refused: " . $statement =~ s/ = .*//r);
	}

	# -- failing statements --
	for my $role (@roles)
	{
		run($node, $role, join ';',
			q{SELECT ext_storage_set('acme.app', NULL, 'x')},
			q{SELECT ext_storage_set('acme.app', 'k', 'x', 'no mime type')},
			q{SELECT ext_storage_set('acme.app', 'k', 'x', if_version => 77)},
			q{SELECT ext_storage_get('acme.app', 'startup-100')},
			q{SELECT ext_storage_get('acme.app', 'set-100')::text::int},
			q{UPDATE extension_storage SET value = value || 'x' WHERE key = 'set-1'},
			q{SELECT ext_storage_get('acme.app', 'set-1')},
			q{SELECT fernet_decrypt('gAAA', fernet_derive_key('x'))},
			q{SELECT * FROM ext_storage_key_status()},
			q{SELECT * FROM ext_storage_verify()},
			q{SELECT ext_storage_set('acme.app', 'big', repeat('x', 17000000)::bytea)});
	}

	# -- keys in configuration files: added, changed, wrong, removed --
	my $stay = $node->background_psql('app', on_error_stop => 0);
	$stay->query($load);
	my $conf_text = slurp_file($conf);
	my $write_conf = sub {
		my ($text) = @_;
		unlink $conf;
		append_to_file($conf, $conf_text . $text);
		$node->reload;
	};
	$write_conf->("$extension.encryption_keys = '" . secret('conf', 'added') . "'\n");
	log_has($node, qr/WARNING:  parameter "$extension.encryption_keys" is set in a configuration file/,
		"$mode: a key in postgresql.conf makes a warning in the log")
	  if $preloaded;
	$stay->query($load);
	my $loaded = run($node, 'app_owner', "$load SHOW $extension.encryption_keys");
	like($loaded, $hidden, "$mode: a key in postgresql.conf works");
	log_has($node, qr/WARNING:  parameter "$extension.encryption_keys" is set in a configuration file/,
		"$mode: a session that loads the library says so in the log")
	  if !$preloaded;
	$write_conf->("$extension.encryption_keys = '" . secret('conf', 'changed') . "'\n"
		. "$extension.secret_key = '" . secret('conf', 'superset') . "'\n");
	run($node, $_, "$load SHOW ALL") for @roles;
	$stay->query($load);
	$write_conf->("$extension.encryption_keys = '\"" . secret('conf', 'wrong') . "'\n");
	run($node, $_, "$load SHOW ALL;" . $read{"$_-100"}, kind => 'broken')
	  for @roles;
	$stay->query($load);
	log_has($node, qr/invalid value for parameter "$extension.encryption_keys"/,
		"$mode: a wrong list in postgresql.conf is reported");
	$write_conf->('');
	run($node, 'postgres',
		"$load ALTER SYSTEM SET $extension.encryption_keys = '"
		  . secret('typed', 'alter-system') . "'");
	$node->reload;
	run($node, $_, "$load SHOW ALL; SHOW $extension.encryption_keys") for @roles;
	$stay->query($load);
	run($node, 'postgres', "ALTER SYSTEM RESET $extension.encryption_keys");
	$node->reload;
	$stay->query($load);

	# -- the key file: changed, wrong, put right; rotation --
	$write_keys->("\x{FF}" . secret('safe', 'file-wrong'));
	run($node, $_, $load . $read{'postgres-1'}) for @roles;
	$write_keys->($new, $old);
	chmod 0644, $file or die "chmod $file: $!";
	$node->reload;
	run($node, $_, $load . $read{'postgres-1'}) for @roles;
	$write_keys->($new, $old);
	my $rotated = run($node, 'app_owner', 'CALL ext_storage_rotate_keys(batch_size => 5)');
	like($rotated, qr/^\d+\|28\|0\|\d+$/m, "$mode: the rotation re-encrypts what the file's keys read");
	$write_keys->($new);
	unlike(run($node, $_, $reads->($_)), qr/ERROR/, "$mode: $_ reads with the new key") for @roles;

	# -- what each role can look at --
	for my $role (@roles)
	{
		for my $library ('', $load)
		{
			run($node, $role, "$library SHOW ALL; SELECT * FROM pg_settings;
				SHOW $extension.encryption_keys; SHOW $extension.secret_key;
				SHOW $extension.encryption_keys_file;
				SELECT current_setting('$extension.encryption_keys', true),
					current_setting('$extension.secret_key', true),
					current_setting('$extension.encryption_keys_file', true);
				SELECT * FROM pg_db_role_setting;
				SELECT proname, proconfig FROM pg_proc WHERE proconfig IS NOT NULL;
				SELECT rolname, rolconfig FROM pg_roles;
				SELECT * FROM pg_prepared_statements; SELECT * FROM pg_cursors;
				SELECT * FROM pg_stat_activity WHERE pid <> pg_backend_pid()");
			run($node, $role, "$library SELECT * FROM pg_stat_activity;
				SELECT * FROM pg_stat_statements", kind => 'statements');
		}
	}

	# -- crashes --
	for my $signal ('SEGV', 'KILL')
	{
		my $victim = $node->background_psql('app', on_error_stop => 0);
		my $pid = $victim->query('SELECT pg_backend_pid()');
		$victim->query($read{'postgres-100'});
		# \echo comes first: the statement is on its way when the signal is sent
		$victim->query_until(qr/on its way/,
			"\\echo on its way\nSELECT length(ext_storage_get('acme.app', 'postgres-100')), pg_sleep(60);\n");
		$node->poll_query_until('postgres',
			"SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $pid")
		  or die 'no sleeping backend';
		kill $signal, $pid;
		log_has($node, qr/\(PID $pid\) was terminated by signal.*\n.*Failed process was running/,
			"$mode: a backend is ended by SIG$signal");
		eval { $victim->quit };
		eval { $stay->quit };
		wait_for_server($node);
		unlike(run($node, 'app_owner', $reads->('app_owner')), qr/ERROR/,
			"$mode: everything reads again");
	}
	$node->safe_psql('app', 'CHECKPOINT');
	$node->stop;

	# -- the search --
	my $log = slurp_file($node->logfile);
	my $data = $node->data_dir;
	my $conf_files = qr{/postgresql(\.auto)?\.conf$};
	my $statement_files = qr{/(pg_stat_tmp/pgss_query_texts|pg_stat/pg_stat_statements)\.stat$};

	isnt(files_with($data, qr/^$/, 'control'), '', "$mode: the search finds what is not encrypted");
	like($log, qr/sEcReT-set-/, "$mode: the search would find a secret in the log");
	is(files_with($data, qr/^$/, 'safe', 'plaintext'), '',
		"$mode: no file of the data folder has a secret of a safe source, or a plaintext");
	is(files_with($data, $conf_files, 'conf'), '',
		"$mode: and none has one of a configuration file, but that file");
	is(files_with($data, qr/$conf_files|$statement_files/, 'typed'), '',
		"$mode: and none has one out of a statement, but the statistics of statements");
	is(found($log, 'safe', 'plaintext'), '',
		"$mode: the log has no secret of a safe source, and no plaintext");

	# Without the library PostgreSQL does not know that these are secrets.
	my @lines = split /\n/, $log;
	@lines = grep { !/parameter "$extension\.\w+" changed to/ } @lines if !$preloaded;
	is(found(join("\n", @lines), 'conf'), '',
		"$mode: the log has no secret of a configuration file");
	@lines = grep { !/(LOG:  statement|STATEMENT|DETAIL:  Failed process was running): / } @lines;
	is(found(join("\n", @lines), 'typed'), '',
		"$mode: what is typed into a statement is in the log as that statement only");

	# Where the list is wrong, the placeholder stays what it was (PostgreSQL's).
	is(found($seen{$_}, 'safe', 'plaintext'), '', "$mode: no role sees a safe secret: $_")
	  for sort keys %seen;
	is(found($seen{answers}, 'conf', 'typed'), '',
		"$mode: no role sees any secret in answers, errors, settings or catalogs");
	is(found($seen{broken}, 'conf', 'typed'), '',
		"$mode: nor where a configuration file has a wrong one");
}

# What the server logs by default is enough to keep a statement that fails.  One
# that sets a secret, and fails for the secret's sake, is not kept.
sub test_failing_statements
{
	my $node = PostgreSQL::Test::Cluster->new('default_log');
	my $extension = 'extension_storage';
	my $script = $node->basedir . '/bind.sql';

	(%texts, %seen) = ();
	$node->init(extra => [ '-U', 'postgres' ]);
	# PostgreSQL::Test::Cluster logs every statement; this is the default.
	$node->append_conf('postgresql.conf', q{
log_statement = none
log_min_error_statement = error
log_parameter_max_length_on_error = -1});
	$node->start;
	$node->safe_psql('postgres', 'CREATE DATABASE app');
	$node->safe_psql('postgres', 'CREATE ROLE app_plain LOGIN');
	$node->safe_psql('app', 'CREATE EXTENSION extension_storage CASCADE');
	append_to_file($script, "SELECT set_config('$extension.encryption_keys', :secret, true);\n");

	my @wrong = (q{"?}, q{?,,?}, q{?"?}, q{,?}, '?,' x 101 . '?');
	my @statements;
	for my $setting (map { "$extension.$_" } qw(encryption_keys secret_key previous_secret_key))
	{
		push @statements, "ALTER ROLE app_plain SET $setting = '?'",
		  "ALTER DATABASE app SET $setting = '?'",
		  "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET $setting = '?' AS 'SELECT 1'",
		  "ALTER FUNCTION ext_storage_get SET $setting = '?'";
		for my $wrong ($setting =~ /encryption_keys/ ? @wrong : '?' x 3000)
		{
			push @statements, "SET $setting = '$wrong'",
			  "SET LOCAL $setting TO '$wrong'",
			  "ALTER SYSTEM SET $setting = '$wrong'",
			  "SELECT set_config('$setting', '$wrong', false)",
			  "DO \$\$ BEGIN EXECUTE 'SET $setting = ''$wrong'''; END \$\$",
			  "DO \$\$ BEGIN PERFORM set_config('$setting', '$wrong', true); END \$\$";
		}
	}
	for my $statement (@statements)
	{
		my $secret = secret('typed', 'failing');
		my $answer = run($node, 'postgres',
			"LOAD '$extension'; " . $statement =~ s/\?/$secret/gr);
		like($answer, qr/ERROR:  22023: (?:invalid value for parameter|parameter "\S+" cannot be set for)/,
			'fails: ' . substr $statement, 0, 100);
		$statement =~ /DO|SELECT/ or is(found($answer, 'typed'), '', 'and the answer has no secret');
	}
	# every function that is given a value, or could be, in a statement that has one
	for my $call (
		"ext_storage_set('', 'k', '?')",
		"ext_storage_set_json('', 'k', '\"?\"')",
		"ext_storage_set_many('', ARRAY['k'], ARRAY['?']::bytea[])",
		"ext_storage_rename('', 'k', 'l'), '?'",
		"fernet_encrypt('?', 'no key')",
		"fernet_decrypt('?', 'no key')",
		"fernet_derive_key('')::text || '?'",
		"fernet_timestamp('?')")
	{
		my $secret = secret('typed', 'called');
		like(run($node, 'postgres', 'SELECT ' . $call =~ s/\?/$secret/gr), qr/ERROR:  22/, "fails: $call");
	}
	# as a parameter, which is logged too
	for my $wrong (@wrong)
	{
		my $secret = secret('typed', 'bound');
		local $ENV{PGOPTIONS} = '-c session_preload_libraries=extension_storage';
		$node->command_checks_all(
			[ 'pgbench', '-n', '-t', '1', '-M', 'extended',
				'-D', 'secret=' . $wrong =~ s/\?/$secret/gr, '-f', $script,
				$node->connstr('app') ],
			2, [], [ qr/invalid value for parameter "$extension.encryption_keys"/ ],
			'fails: as a parameter');
	}
	# Of a deadlock the log gets the statements of all sessions, whichever finds it.
	for my $first ('set', 'delete')
	{
		my $value = secret('typed', 'deadlock');
		my ($one, $two) = map { $node->background_psql('app', on_error_stop => 0) } 1 .. 2;
		my %statement = (
			set => "SELECT version FROM ext_storage_set('acme.b', 'k', '$value')",
			delete => "SELECT ext_storage_delete('acme.b', 'k')");

		run($node, 'postgres', "SELECT version FROM ext_storage_set('acme.$_', 'k', 'x')") for 'a', 'b';
		$one->query("BEGIN; SELECT version FROM ext_storage_set('acme.a', 'k', 'x')");
		$two->query("BEGIN; SELECT version FROM ext_storage_set('acme.b', 'k', 'x')");
		$one->query_until(qr/on its way/, "\\echo on its way\n$statement{$first};\n");
		$node->poll_query_until('postgres',
			"SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
		  or die "the $first does not wait";
		$two->query($statement{ $first eq 'set' ? 'delete' : 'set' } =~ s/acme.b/acme.a/r);
		eval { $_->quit } for $one, $two;
	}
	# A value whose entry may be encrypted is a parameter of statements inside.
	my $plain = secret('typed', 'nested');
	push @{ $texts{typed} }, unpack 'H*', $plain;
	my $explained = run($node, 'postgres', qq{
		LOAD '$extension';
		SET $extension.encryption_keys = 'key';
		SELECT version FROM ext_storage_set('acme.c', 'source', '"$plain"', is_encrypted => true);
		SELECT version FROM ext_storage_set('acme.c', 'k', 'x', is_encrypted => true);
		LOAD 'auto_explain';
		SET auto_explain.log_min_duration = 0;
		SET auto_explain.log_nested_statements = on;
		SET auto_explain.log_verbose = on;
		SET plan_cache_mode = force_custom_plan;
		SELECT version FROM ext_storage_set('acme.c', 'k', ext_storage_get('acme.c', 'source'));
		SELECT version FROM ext_storage_set_json('acme.c', 'k', ext_storage_get_json('acme.c', 'source'));
		SELECT version FROM ext_storage_set_many('acme.c', ARRAY['k'], ARRAY[ext_storage_get('acme.c', 'source')]);
		SELECT version FROM ext_storage_set('acme.c', 'new', ext_storage_get('acme.c', 'source'));
		CREATE TABLE old AS SELECT id, uuid, extension_id, user_fk, resource_type, resource_uuid, key, category,
			description, value, value_type, is_encrypted, created_on, changed_on, created_by_fk, changed_by_fk
			FROM extension_storage WHERE key = 'new';
		SELECT ext_storage_delete('acme.c', 'new') IS NOT NULL;
		SET client_min_messages = warning;
		CALL ext_storage_move_in('old')});
	is($explained =~ s/\s+/ /gr, '1 1 2 3 4 1 t 1|1|0|0|0|0 ', 'values are set while each plan is logged');
	# What fails for another reason is kept: no extension sees it.
	my $control = secret('control', 'division');
	run($node, 'postgres', "LOAD '$extension'; SELECT set_config('$extension.secret_key', '$control', false), 1/0");
	$node->stop;

	my $log = slurp_file($node->logfile);
	my $times = () = $log =~ /ERROR:  (?:invalid value for parameter|parameter "\S+" cannot be set for)/g;
	is($times, @statements + @wrong, 'the log has all these errors');
	my $deadlocks = () = $log =~ /ERROR:  deadlock detected/g;
	is($deadlocks, 2, 'and both deadlocks');
	my $updates = () = $log =~ /Query Text: (?:\/\* [^*]+\*\/ )?UPDATE \S+\.extension_storage /g;
	cmp_ok($updates, '>=', 4, 'and the plans of statements inside');
	is(found($log, 'typed'), '', 'and none of the secrets');
	isnt(found($log, 'control'), '', 'it has statements that fail for another reason');
}

test_leaks(1);
test_leaks(0);
test_failing_statements();
done_testing();
