# PostgreSQL built with what looks for faults, from Debian's source package.

# Unpacks the newest source that there is into a folder.  Not every mirror keeps
# the sources of security updates.
fetch_source() {
    local candidate
    make_apt source deb-src
    as_user rm -rf "$1"
    as_user mkdir -p "$1"
    for candidate in $(as_user apt-cache "${apt_options[@]}" showsrc \
        "postgresql-$PG_MAJOR" | sed -n 's/^Version: //p' | sort -rV); do
        as_user sh -c 'cd "$0" && exec "$@"' "$1" apt-get "${apt_options[@]}" -qq \
            source "postgresql-$PG_MAJOR=$candidate" && return
    done
    die "no source of PostgreSQL $PG_MAJOR"
}

# Builds it where that is not done, and chooses it: kind, what configure gets.
build_postgres() {
    local folder=$state/$1-$PG_MAJOR source
    if ! as_user test -e "$folder/ready"; then
        echo "dev: building PostgreSQL $PG_MAJOR ($1)"
        need dpkg-dev gcc make bison flex pkg-config libipc-run-perl libssl-dev \
            zlib1g-dev liblz4-dev libicu-dev
        fetch_source "$folder"
        source=$(as_user find "$folder" -mindepth 1 -maxdepth 1 -type d)
        # In a folder of its own: else PGXS could not build in one of its own
        as_user mkdir "$folder/build"
        as_user sh -c 'cd "$1/build" && exec >"$1/build.log" 2>&1 &&
            folder=$1 && source=$2 && shift 2 &&
            "$source/configure" --prefix="$folder/install" --enable-debug \
                --enable-tap-tests --with-openssl --with-lz4 --with-icu \
                --without-readline "$@" &&
            make -j 2 && make install &&
            for module in pgcrypto auto_explain pageinspect pg_stat_statements; do
                make -C "contrib/$module" install || exit
            done' \
            sh "$folder" "$source" "${@:2}" || die "see $folder/build.log"
        as_user rm -rf "$source" "$folder/build"
        as_user touch "$folder/ready"
    fi
    PG_CONFIG=$folder/install/bin/pg_config
}

## cassert [--discard-caches] [RUNNER[:NAME,...]...]
##                 tests on a PostgreSQL built with assertions; by default
##                 regress, isolation and tap, then regress once more on one
##                 without, with debug_discard_caches = 1, as --discard-caches
##                 does alone: that takes hours
cmd_cassert() {
    local failed_before
    [[ -z ${PG_CONFIG:-} ]] || die "./dev cassert builds PostgreSQL: set PG_MAJOR"
    need_test
    find_state
    if [[ $# == 0 ]]; then
        test_cassert regress isolation tap
        failed_before=$failed
        test_discarding regress
        failed=$((failed_before + failed))
    elif [[ $1 == --discard-caches ]]; then
        test_discarding "${@:2}"
    else
        test_cassert "$@"
    fi
    [[ $failed == 0 ]]
}

test_cassert() {
    build_postgres cassert --enable-cassert
    variant=-cassert
    build_with_assertions
    run_tests "$@"
}

# The server's own assertions would make this slower still, and its own caches
# are not what is tested.
test_discarding() {
    build_postgres discard \
        CPPFLAGS="-DDISCARD_CACHES_ENABLED -DCLOBBER_FREED_MEMORY"
    variant=-discard
    server_settings="debug_discard_caches = 1"
    echo "=== with $server_settings"
    build_with_assertions
    run_tests "$@"
}
