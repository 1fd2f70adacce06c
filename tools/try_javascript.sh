#!/bin/sh
#
# In a fresh folder of Debian: installs the JavaScript package into an application
# and uses it there.

set -eu
exec </dev/null
apt-get -qq update
apt-get install -qq -y --no-install-recommends nodejs npm >/tmp/log 2>&1 || {
    tail /tmp/log
    exit 1
}
mkdir /srv/app
cd /srv/app
npm install --silent --offline --no-audit --no-fund \
    /packages/superset-extension-storage-*.tgz
cp /source/tools/try_use.mjs .
node try_use.mjs
