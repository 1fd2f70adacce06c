#!/bin/sh
#
# In a fresh folder of Debian: installs the Debian packages, uses the extension,
# and runs the package's own test.

set -eu
exec </dev/null
apt-get -qq update
apt-get install -qq -y --no-install-recommends /packages/*.deb >/tmp/log 2>&1 || {
    tail /tmp/log
    exit 1
}
# shellcheck source=tools/try_server.sh
. /source/tools/try_server.sh
try_servers /source
apt-get install -qq -y --no-install-recommends make postgresql-server-dev-all \
    >/tmp/log 2>&1
cd /source
debian/tests/installcheck
