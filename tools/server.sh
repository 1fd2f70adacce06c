# A private server, on a socket alone.

# Removes the servers of ./dev runs that were killed.  A run holds a lock on
# its folder as long as it lives.
sweep_servers() {
    local run
    for run in "$state"/run.*; do
        [[ -d $run ]] || continue
        exec 9<"$run"
        if flock -n 9; then
            remove_server "$run"
        fi
        exec 9<&-
    done
}

# Stops the server of a run, if it is that server which has the process id
# left there, and removes its folders.
remove_server() {
    local run=$1 pid
    pid=$(as_user head -n 1 "$run/data/postmaster.pid" 2>/dev/null || true)
    if [[ -n $pid && $(readlink "/proc/$pid/cwd") == "$run/data" ]]; then
        as_user "$bindir/pg_ctl" -D "$run/data" -m immediate -s stop
    fi
    as_user rm -rf "$(readlink "$run/socket" || true)" "$run"
}

# Starts one, with a key file whose path is in $keys_file and a database
# "demo" that has the extension, as the README installs it; a file of settings may
# be named.
start_server() {
    sweep_servers
    run=$(as_user mktemp -d "$state/run.XXXXXX")
    exec 9<"$run"
    flock 9
    exec 8<&-
    trap 'remove_server "$run"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM

    socket=$(as_user mktemp -d /tmp/extension_storage.XXXXXX)
    as_user ln -s "$socket" "$run/socket"
    keys_file=$run/keys
    as_user sh -c "umask 077; head -c 32 /dev/urandom | base64 >'$keys_file'"
    as_user "$bindir/initdb" -D "$run/data" -U postgres -A trust -E UTF8 \
        --locale=C --no-sync >/dev/null
    as_user tee -a "$run/data/postgresql.conf" >/dev/null <<SETTINGS
include '$conf'
listen_addresses = ''
unix_socket_directories = '$socket'
extension_storage.encryption_keys_file = '$keys_file'
${1:+include '$1'}
SETTINGS
    as_user "$bindir/pg_ctl" -D "$run/data" -l "$run/log" -s start 9<&- ||
        { as_user cat "$run/log"; die "the server does not start"; }
    export PGHOST=$socket PGUSER=postgres PGDATABASE=demo
    as_user "$bindir/createdb" demo
    as_user "$bindir/psql" -Xq -v ON_ERROR_STOP=1 <<'STATEMENTS'
CREATE EXTENSION pgcrypto;
CREATE SCHEMA ext_storage;
CREATE EXTENSION extension_storage SCHEMA ext_storage;
ALTER DATABASE demo SET search_path = public, ext_storage;
STATEMENTS
}

## psql [ARG...]   psql on a private server that has the extension and a key
cmd_psql() {
    build_library
    start_server
    trap : INT
    "$bindir/psql" "$@" 9<&-
}

## demo            a walk through sets, gets, encryption and a key rotation
cmd_demo() {
    build_library
    start_server
    KEYS_FILE=$keys_file as_user "$bindir/psql" -X -q -v ON_ERROR_STOP=1 \
        <test/demo.sql 2>&1 9<&-
}
