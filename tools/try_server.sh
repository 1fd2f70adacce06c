# shellcheck shell=sh
# For the scripts that try packages: uses the extension on a server of each
# version that is installed, and says what came of it.

try_servers() {
    control=$1/extension_storage.control
    version=$(sed -n "s/^default_version = '\(.*\)'/\1/p" "$control")
    for bin in /usr/lib/postgresql/*/bin; do
        data=$(mktemp -d)
        chmod 755 "$data"
        cat >"$data/run.sh" <<SCRIPT
set -e
cd $data
umask 077
echo "secret of a try" >keys
$bin/initdb -D data -A trust -U postgres >/dev/null
cat >>data/postgresql.conf <<SETTINGS
listen_addresses = ''
unix_socket_directories = '$data'
shared_preload_libraries = 'extension_storage'
extension_storage.encryption_keys_file = '$data/keys'
SETTINGS
$bin/pg_ctl -D data -l log -w -s start || { cat log; exit 1; }
status=0
$bin/psql -h $data -U postgres -XAt -f $data/use.sql || status=1
$bin/pg_ctl -D data -w -s stop
exit \$status
SCRIPT
        cp "$1/tools/try_use.sql" "$data/use.sql"
        chown -R postgres: "$data"
        setpriv --reuid=postgres --regid=postgres --init-groups \
            sh "$data/run.sh" >"/tmp/out" 2>&1 || {
            cat /tmp/out
            exit 1
        }
        grep -qx "value new, version $version" /tmp/out || {
            cat /tmp/out
            exit 1
        }
    done
}
