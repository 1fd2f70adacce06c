#!/bin/sh
#
# pg_upgrade from one major version of PostgreSQL to another: encrypted values,
# the accounts of a quota, attached tables and the sequence come over and go on.
# Run by ./dev matrix in a throw-away folder that has both versions, with the
# extension installed into each.
#
#   test/pg_upgrade.sh OLD_MAJOR NEW_MAJOR

set -eu
old=/usr/lib/postgresql/$1/bin
new=/usr/lib/postgresql/$2/bin
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
export PGHOST="$dir" PGUSER=postgres PGDATABASE=postgres

# Data checksums are on by default from 18 on, and must be alike.
make_cluster() {
    if "$1/initdb" --help | grep -q -- --no-data-checksums; then
        set -- "$1" "$2" --no-data-checksums
    fi
    "$1/initdb" -D "$2" -U postgres -A trust -E UTF8 --locale=C ${3:+"$3"} \
        >/dev/null
    cat >>"$2/postgresql.conf" <<SETTINGS
listen_addresses = ''
unix_socket_directories = '$dir'
shared_preload_libraries = 'extension_storage'
extension_storage.encryption_keys_file = '$dir/keys'
extension_storage.quota_per_extension = '1GB'
SETTINGS
}

start() {
    "$1/pg_ctl" -D "$2" -l "$2.log" -w -s start || {
        cat "$2.log"
        exit 1
    }
}

expect() {
    if [ "$2" != "$3" ]; then
        echo "$1: expected $2, got $3"
        exit 1
    fi
}

rows="SELECT count(*), md5(string_agg(e::text || encode(ext_storage_get(extension_id, key), 'hex'), '|' ORDER BY id))
    FROM extension_storage e WHERE user_fk IS NULL"
usage='SELECT entries, value_bytes, quota_bytes FROM ext_storage_usage()'
counted='SELECT u::text FROM extension_storage_usage u ORDER BY 1'
attached="SELECT string_agg(concat_ws(' ', tgrelid::regclass, tgname, tgenabled), ', ' ORDER BY tgname)
    FROM pg_trigger WHERE tgname LIKE 'extension_storage%'"

(umask 077; echo 'secret of the upgrade' >keys)
make_cluster "$old" old
make_cluster "$new" new
start "$old" old
"$old/psql" -Xq -v ON_ERROR_STOP=1 >/dev/null <<'SQL'
CREATE EXTENSION extension_storage CASCADE;
CREATE TABLE ab_user (id integer PRIMARY KEY);
INSERT INTO ab_user VALUES (1), (2);
SELECT ext_storage_attach_users('ab_user');
SELECT ext_storage_set('acme.app', 'k' || i, decode(repeat(md5(i::text), i * i), 'hex'),
    is_encrypted => i % 2 = 0) FROM generate_series(1, 100) i;
SELECT ext_storage_set('acme.app', 'own', 'x', user_fk => i) FROM generate_series(1, 2) i;
SQL
# The minor releases of November 2026 number each column's changes in an option of
# the column that an older pg_dump takes for one of the user's, and an older
# server refuses.  To such a release goes a cluster without them, as older ones are:
# it is there to test the extension, and nothing to do with a cluster of worth.
without=
if grep -q pg_attver "$old/pg_dump" && ! grep -q pg_attver "$new/pg_dump"; then
    without=pg_attver
    for database in postgres template1; do
        "$old/psql" -Xq -v ON_ERROR_STOP=1 -d "$database" <<'SQL'
SET allow_system_table_mods = on;
UPDATE pg_attribute SET attoptions = (SELECT array_agg(o) FROM unnest(attoptions) o
    WHERE o NOT LIKE 'pg\_attver=%')
WHERE EXISTS (SELECT FROM unnest(attoptions) o WHERE o LIKE 'pg\_attver=%');
SQL
    done
fi
rows_before=$("$old/psql" -XAtc "$rows")
usage_before=$("$old/psql" -XAtc "$usage")
counted_before=$("$old/psql" -XAtc "$counted")
attached_before=$("$old/psql" -XAtc "$attached")
"$old/pg_ctl" -D old -w -s stop

"$new/pg_upgrade" -b "$old" -B "$new" -d old -D new -U postgres >upgrade.log || {
    cat upgrade.log
    find new/pg_upgrade_output.d -name '*.log' -exec tail -n 20 {} +
    exit 1
}
start "$new" new
query() {
    "$new/psql" -XAt -v ON_ERROR_STOP=1 -c "$1" 2>/dev/null
}
expect rows "$rows_before" "$(query "$rows")"
expect usage "$usage_before" "$(query "$usage")"
expect accounts "$counted_before" "$(query "$counted")"
expect 'attached tables' "$attached_before" "$(query "$attached")"
expect 'attached tables before' 1 "$(echo "$attached_before" | grep -c extension_storage)"
expect 'next version' 2 \
    "$(query "SELECT (ext_storage_set('acme.app', 'k2', 'new', is_encrypted => true)).version")"
expect 'new entry' 1 "$(query "SELECT (ext_storage_set('acme.app', 'new', 'x')).version")"
expect rotation '50|0|50|0' "$(query 'CALL ext_storage_rotate_keys()')"
expect purge '1|1' "$(query 'DELETE FROM ab_user WHERE id = 1;
    SELECT count(*), min(user_fk) - 1 FROM extension_storage WHERE user_fk IS NOT NULL' | tail -n 1)"
expect 'usage after all' "$(query "SELECT count(*), sum(octet_length(coalesce(ext_storage_get(extension_id, key, user_fk), '')))
    FROM extension_storage")" "$(query 'SELECT entries, value_bytes FROM ext_storage_usage()')"
"$new/pg_ctl" -D new -w -s stop
echo "1 passed, 0 failed${without:+, without $without}"
