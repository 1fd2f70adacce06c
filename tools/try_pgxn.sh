#!/bin/sh
#
# In a fresh folder of Debian: builds and installs the archive for PGXN, without
# bitcode, and uses the extension.

set -eu
exec </dev/null
apt-get -qq update
apt-get install -qq -y --no-install-recommends gcc make unzip uuid-dev postgresql \
    postgresql-server-dev-all >/tmp/log 2>&1 || {
    tail /tmp/log
    exit 1
}
cd /srv
unzip -q /packages/extension_storage-*.zip
make -s -C extension_storage-* with_llvm=no all install
# shellcheck source=tools/try_server.sh
. /source/tools/try_server.sh
try_servers /source
