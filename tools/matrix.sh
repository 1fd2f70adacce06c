# Other versions of PostgreSQL, each with the Debian or Ubuntu that has it and the
# compilers that build it beside that release's own gcc.

versions=(15:bookworm:clang 16:noble:clang 17:trixie:clang '18:sid:clang,gcc-15'
    '19:sid:clang,gcc-15')
upgrades=(15:17:trixie:bookworm 17:18:sid:trixie 18:19:sid:sid)

# Writes a line of the table; the log says more.
matrix_row() {
    local name=$1 log=$2 result=passed status
    shift 2
    echo "=== $name, log in $log"
    strictly "$@" >"$log" 2>&1
    if [[ $status != 0 ]]; then
        result=FAILED
        tail -n 20 "$log"
        failed=$((failed + 1))
    fi
    table+=$(printf '%-32s %-7s %s' "$name" "$result" "$(tail -n 1 "$log")")$'\n'
}

# Adds to the table which server and compiler a row was of.
matrix_programs() {
    table+=$(in_debian "$1" sh -c '
        "/usr/lib/postgresql/$0/bin/postgres" --version
        "$1" --version | head -n 1' "$2" "$3" | sed 's/^/    /')$'\n' || true
}

# Upgrades a cluster in the folder that has the new version, to which the old one
# comes from another release.
upgrade_in_debian() {
    local old=$1 new=$2 release=$3 from=$4 major
    local list=$debians/$release/etc/apt/sources.list.d/$from.list
    make_debian "$release"
    copy_checkout "$release"
    if [[ $from != "$release" ]]; then
        echo "deb http://deb.debian.org/debian $from main" >"$list"
    fi
    # At the end of the row's subshell, where this variable is gone
    # shellcheck disable=SC2064
    trap "rm -f '$list'" EXIT
    in_debian "$release" apt-get -qq update
    in_debian "$release" apt-get install -qq -y --no-install-recommends gcc make \
        uuid-dev "postgresql-$old" "postgresql-server-dev-$old" \
        "postgresql-$new" "postgresql-server-dev-$new"
    for major in "$old" "$new"; do
        in_debian "$release" make -s -C /srv/extension_storage with_llvm=no \
            PG_CONFIG="/usr/lib/postgresql/$major/bin/pg_config" clean install
    done
    in_debian "$release" setpriv --reuid=postgres --regid=postgres --init-groups \
        /srv/extension_storage/test/pg_upgrade.sh "$old" "$new"
}

## matrix [MAJOR...]
##                 on PostgreSQL 15 to 19, or those named, each in a folder with
##                 the Debian or Ubuntu that has it: builds by gcc, clang and,
##                 in sid, gcc 15 without a warning, the tests, and pg_upgrade
cmd_matrix() {
    local row major old new from release compilers compiler log
    [[ $EUID == 0 ]] || die "needs root, for chroot"
    mkdir -p "$debians"
    table=
    failed=0
    for row in "${versions[@]}"; do
        IFS=: read -r major release compilers <<<"$row"
        [[ $# == 0 || " $* " == *" $major "* ]] || continue
        log=$debians/$major
        export PG_MAJOR=$major
        matrix_row "PostgreSQL $major, $release, gcc" "$log-gcc.log" \
            ./dev debian "$release" test unit regress isolation tap
        matrix_programs "$release" "$major" gcc
        for compiler in ${compilers//,/ }; do
            matrix_row "PostgreSQL $major, $release, $compiler" \
                "$log-$compiler.log" ./dev debian "$release" build "$compiler"
            matrix_programs "$release" "$major" "$compiler"
        done
    done
    unset PG_MAJOR
    for row in "${upgrades[@]}"; do
        IFS=: read -r old new release from <<<"$row"
        [[ $# == 0 || " $* " == *" $new "* ]] || continue
        matrix_row "pg_upgrade $old to $new, $release" \
            "$debians/upgrade-$old-$new.log" \
            upgrade_in_debian "$old" "$new" "$release" "$from"
    done
    [[ -n $table ]] || die "no such version: $*"
    printf '===\n%s' "$table"
    [[ $failed == 0 ]]
}
