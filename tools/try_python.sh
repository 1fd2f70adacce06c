#!/bin/sh
#
# In a fresh folder of Debian: installs the add-on's wheel, then its source
# distribution, which have the same files and commands, beside a Superset, whose
# command runs.

set -eu
exec </dev/null
apt-get -qq update
apt-get install -qq -y --no-install-recommends python3-venv ca-certificates \
    >/tmp/log 2>&1 || {
    tail /tmp/log
    exit 1
}
python3 -m venv /srv/venv
pins=/source/superset-addon/tests/requirements.txt
/srv/venv/bin/pip install -q "$(grep ^uv== $pins)"
/srv/venv/bin/uv pip install -q -p /srv/venv/bin/python --no-deps --system-certs -r $pins
for made in /packages/*.whl /packages/superset_extension_storage-*.tar.gz; do
    /srv/venv/bin/pip install -q --force-reinstall --no-deps --no-build-isolation "$made"
    /srv/venv/bin/python /source/tools/show_addon.py >"/tmp/shown-${made##*.}"
    # the licence wants its text in every copy
    find /srv/venv -path '*superset_extension_storage-*' -name LICENSE -exec cmp /source/LICENSE {} \; -print |
        grep -q LICENSE
done
cmp /tmp/shown-whl /tmp/shown-gz
grep -q 'flask.commands' /tmp/shown-whl
cp /source/tools/try_config.py /srv/superset_config.py
status=0
PYTHONPATH=/srv /srv/venv/bin/superset init-extension-storage >/tmp/log 2>&1 || status=$?
cat /tmp/log
[ $status = 1 ]
grep -q 'the store needs PostgreSQL' /tmp/log
