#!/bin/sh
#
# pg_upgrade from one major version of PostgreSQL to another with encrypted
# values in the table.  Run by ./dev matrix in a throw-away folder that has both,
# with the extension installed into each.
#
#   test/pg_upgrade.sh OLD_MAJOR NEW_MAJOR

set -eu
old=/usr/lib/postgresql/$1/bin
new=/usr/lib/postgresql/$2/bin
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
export PGHOST="$dir" PGUSER=postgres PGDATABASE=postgres

(umask 077; echo 'secret of the upgrade' >keys)
for version in old new; do
    if [ $version = old ]; then bin=$old; else bin=$new; fi
    "$bin/initdb" -D $version -U postgres -A trust -E UTF8 --locale=C >/dev/null
    cat >>$version/postgresql.conf <<END
listen_addresses = ''
unix_socket_directories = '$dir'
extension_storage.encryption_keys_file = '$dir/keys'
END
done

"$old/pg_ctl" -D old -l old.log -w -s start
"$old/psql" -Xq -v ON_ERROR_STOP=1 >/dev/null <<'END'
CREATE EXTENSION extension_storage CASCADE;
SELECT ext_storage_set('acme.app', 'k' || i, decode(repeat(md5(i::text), i * i), 'hex'),
    is_encrypted => i % 2 = 0) FROM generate_series(1, 100) i;
END
rows="SELECT count(*), md5(string_agg(e::text || encode(ext_storage_get(extension_id, key), 'hex'), '|' ORDER BY id))
    FROM extension_storage e"
before=$("$old/psql" -XAtc "$rows")
"$old/pg_ctl" -D old -w -s stop

"$new/pg_upgrade" -b "$old" -B "$new" -d old -D new -U postgres >upgrade.log || {
    cat upgrade.log
    exit 1
}
"$new/pg_ctl" -D new -l new.log -w -s start
after=$("$new/psql" -XAtc "$rows")
next=$("$new/psql" -XAtc "SELECT (ext_storage_set('acme.app', 'k2', 'new', is_encrypted => true)).version")
rotated=$("$new/psql" -XAtc 'CALL ext_storage_rotate_keys()' 2>/dev/null)
"$new/pg_ctl" -D new -w -s stop

if [ "$before" != "$after" ] || [ "$next" != 2 ] || [ "$rotated" != "50|0|50|0" ]; then
    echo "before $before, after $after, next version $next, rotation $rotated"
    exit 1
fi
