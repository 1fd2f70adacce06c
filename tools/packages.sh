# What the commands need of Debian's packages.

as_root() {
    if [[ $EUID == 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "needs root or sudo for: $*"
    fi
}

# Installs those of the named packages that are missing.  What is a service
# does not start, now or with the machine: tests run programs of their own.
need() {
    local package missing=()
    for package in "$@"; do
        [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) \
            == installed ]] || missing+=("$package")
    done
    [[ ${#missing[@]} == 0 ]] && return
    echo "dev: installing ${missing[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive sh -c '
        policy=/usr/sbin/policy-rc.d
        if [ ! -e $policy ]; then
            trap "rm -f $policy" EXIT
            printf "#!/bin/sh\nexit 101\n" >$policy
            chmod 755 $policy
        fi
        apt-get install -qq -y --no-install-recommends \
            -o DPkg::Lock::Timeout=600 "$@"' sh "${missing[@]}" </dev/null
    [[ ! -d /run/systemd/system ]] || for package in "${missing[@]}"; do
        [[ ! -e /lib/systemd/system/$package.service ]] ||
            as_root systemctl disable --quiet "$package"
    done
}

# Makes apt's folders for a purpose of its own, with the system's sources lists as
# those of another type, and leaves the options that choose them in $apt_options.
make_apt() {
    local file apt=$state/apt-$1
    apt_options=(-o Dir::Etc::SourceList=/dev/null
        -o Dir::Etc::SourceParts="$apt/sources" -o Dir::State::Lists="$apt/lists"
        -o Dir::Cache="$apt/cache" "${@:3}")
    as_user rm -rf "$apt/sources"
    as_user mkdir -p "$apt/sources" "$apt/lists/partial" \
        "$apt/cache/archives/partial"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}; do
        [[ -f $file ]] || continue
        sed -E "s/^deb(\s)/$2\1/; s/^Types:.*/Types: $2/" "$file" |
            as_user tee "$apt/sources/${file##*/}" >/dev/null
    done
    as_user apt-get "${apt_options[@]}" -qq update
}

# Finds PostgreSQL: PG_CONFIG, else Debian's PG_MAJOR, else Debian's default.
find_postgres() {
    if [[ -z ${PG_CONFIG:-} ]]; then
        if [[ -z ${PG_MAJOR:-} ]]; then
            debian_default
            [[ -n $PG_MAJOR ]] || { as_root apt-get update -qq; debian_default; }
            [[ -n $PG_MAJOR ]] || die "no package postgresql here: set PG_CONFIG"
        fi
        need "postgresql-$PG_MAJOR" "postgresql-server-dev-$PG_MAJOR"
        PG_CONFIG=/usr/lib/postgresql/$PG_MAJOR/bin/pg_config
    fi
    bindir=$("$PG_CONFIG" --bindir)
    read -r _ version _ < <("$PG_CONFIG" --version)
}

debian_default() {
    PG_MAJOR=$(apt-cache show postgresql 2>/dev/null |
        sed -n 's/^Depends:.*postgresql-\([0-9]\+\).*/\1/p' | head -n 1)
}

# The headers of the libraries that ours is linked with.
need_headers() {
    need uuid-dev
    find_postgres
}

need_build() {
    need gcc make
    need_headers
}

need_test() {
    need_build
    need libipc-run-perl python3-cryptography openssl
    # Where the server's JIT compiler is a package of its own
    [[ -z ${PG_MAJOR:-} ]] ||
        ! apt-cache show "postgresql-$PG_MAJOR-jit" >/dev/null 2>&1 ||
        need "postgresql-$PG_MAJOR-jit"
}

need_lint() {
    need clang-tidy pg-bsd-indent shellcheck python3-venv ca-certificates
    need_headers
}

# Whether this Debian has the formatter, whose later version, which comes with
# PostgreSQL 16, indents otherwise.
has_formatter() {
    apt-cache show pg-bsd-indent >/dev/null 2>&1
}

need_bench() {
    need openssl python3-cryptography python3-psycopg2 python3-sqlalchemy
}

need_superset() {
    need python3-venv ca-certificates git chromium chromium-driver \
        pgbouncer nginx apache2-bin
}

# Whether Debian's Python is one for Superset 6.1.
has_python() {
    local minor
    need python3
    minor=$(/usr/bin/python3 --version | sed 's/^Python 3\.\([0-9]*\)\..*/\1/')
    [[ $minor -ge 10 && $minor -le 12 ]]
}

need_fuzz() {
    need clang libclang-rt-dev llvm
}

## deps            install the Debian packages that build, test, bench, lint
##                 and fuzz need
cmd_deps() {
    need_test
    need_bench
    ! has_formatter || need_lint
    ! has_python || need_superset
    need_fuzz
}
