#!/bin/sh
#
# In a fresh folder of Debian: installs the add-on's wheel, then its source
# distribution, each without Superset; both have the same files and commands.

set -eu
exec </dev/null
apt-get -qq update
apt-get install -qq -y --no-install-recommends python3-venv ca-certificates \
    >/tmp/log 2>&1 || {
    tail /tmp/log
    exit 1
}
for made in /packages/*.whl /packages/superset_extension_storage-*.tar.gz; do
    python3 -m venv --clear /srv/venv
    if [ "${made%.whl}" = "$made" ]; then
        /srv/venv/bin/pip install -q setuptools wheel
    fi
    /srv/venv/bin/pip install -q --no-deps --no-build-isolation "$made"
    /srv/venv/bin/python /source/tools/show_addon.py >"/tmp/shown-${made##*.}"
done
cmp /tmp/shown-whl /tmp/shown-gz
grep -q 'flask.commands' /tmp/shown-whl
