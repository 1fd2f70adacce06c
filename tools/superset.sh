# A real Superset, with the add-on.

# Makes a virtual environment with Superset, kept until the pins change.
make_superset_venv() {
    local pins=$state/src/superset-addon/tests/requirements.txt
    venv=$state/venv-$( (/usr/bin/python3 --version && as_user cat "$pins") |
        sha256sum | cut -c 1-12)
    as_user test -e "$venv/complete" && return
    echo "dev: installing Superset"
    as_user sh -c 'rm -rf venv-[0-9a-f]*'
    as_user /usr/bin/python3 -m venv "$venv"
    as_user "$venv/bin/pip" install -q "$(as_user grep ^uv== "$pins")"
    as_user "$venv/bin/uv" pip install -q -p "$venv/bin/python" --no-deps \
        --system-certs --compile-bytecode -r "$pins"
    as_user touch "$venv/complete"
}

# Where there is no Python for Superset, the tests run in a folder with Debian
# 12.  Of its output, its own summary is left out.
run_superset() {
    if has_python; then
        test_superset "$@"
    else
        PG_MAJOR='' "$root/dev" debian bookworm test \
            "superset$(printf ':%s' "$*" | sed 's/^:$//; s/ /,/g')" |
            sed '/^===$/,$d'
    fi
}

# Starts a server for a Superset that has the add-on; a file of settings may be
# named.
start_superset_server() {
    need_superset
    make_superset_venv
    as_user "$venv/bin/uv" pip install -q -p "$venv/bin/python" --no-deps \
        --no-build-isolation --reinstall src/superset-addon
    start_server "$@"
    # The keys are Superset's; a test of the key file names one.
    as_user sed -i '/encryption_keys_file/d' "$run/data/postgresql.conf"
    as_user "$bindir/pg_ctl" -D "$run/data" -s reload 9<&-
}

test_superset() {
    local chosen=$*
    start_superset_server
    as_user mkdir -p superset
    as_user env PG_DATA="$run/data" ADDON_RESULTS="$state/superset" \
        "$venv/bin/pytest" src/superset-addon ${1:+-k "${chosen// / or }"} \
        9<&-
}

## superset        a Superset to look at, with the add-on, two users and entries
cmd_superset() {
    if ! has_python; then
        PG_MAJOR='' exec "$root/dev" debian bookworm superset
    fi
    build_library
    start_superset_server
    trap : INT
    # It must not outlive this script, however that ends.
    as_user setpriv --pdeathsig TERM "$venv/bin/python" \
        "$state/src/superset-addon/tests/show.py" "$run/superset" 9<&-
}

# `./dev superset` itself, in a terminal.
run_show() {
    local folder='' inside=$state psql=("$root/dev" psql)
    if ! has_python; then
        folder=$debians/bookworm
        inside=$folder/srv/extension_storage/.dev/postgres
        psql=(env PG_MAJOR= "$root/dev" debian bookworm psql)
    fi
    /usr/bin/python3 tools/check_superset.py "$root/dev" "$inside" "$folder" \
        "${psql[@]}"
}
