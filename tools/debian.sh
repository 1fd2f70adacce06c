# Folders with a Debian or Ubuntu of their own, made by debootstrap in
# .dev/debian.

debians=$root/.dev/debian

# Runs a command in such a folder; its mounts and processes end with it, and it
# with us, however that is.  The folder is mounted on itself, as in a folder that
# is no mount there can be no other of its kind.  Of the caller's environment,
# which may name files that are not there, it has what says how to reach the
# network and what a test is told.
in_debian() {
    local name kept=()
    for name in {http,https,no}_proxy {HTTP,HTTPS,NO}_PROXY ${!HOSTILE_@}; do
        [[ -z ${!name:-} ]] || kept+=("$name=${!name}")
    done
    setpriv --pdeathsig KILL unshare --mount --propagation private \
        --pid --fork --kill-child sh -ec '
        trap : INT
        mount --bind "$0" "$0"
        mount -t proc proc "$0/proc"
        mount --rbind /dev "$0/dev"
        chroot "$0" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
            LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
        ' "$debians/$1" "${kept[@]}" "${@:2}" </dev/null
}

# Makes the folder of a release, where there is none.
make_debian() {
    local folder=$debians/$1 name=${1%.fresh} sources
    [[ ! -e $folder/ready ]] || return 0
    need debootstrap ca-certificates
    rm -rf "$folder"
    mkdir -p "$folder"
    sources=$folder/etc/apt/sources.list
    case $name in
        noble)
            # By https, as Debian does not have the key of Ubuntu's archive
            debootstrap --variant=minbase --no-check-gpg noble "$folder" \
                https://archive.ubuntu.com/ubuntu gutsy
            printf 'deb http://archive.ubuntu.com/ubuntu %s main universe\n' \
                noble noble-updates noble-security >"$sources"
            ;;
        sid)
            debootstrap --variant=minbase sid "$folder"
            echo 'deb http://deb.debian.org/debian experimental main' \
                >>"$sources"
            printf '%s\n' 'Package: postgresql-*19 libpq* libecpg* libpgtypes*' \
                'Pin: release a=experimental' 'Pin-Priority: 600' \
                >"$folder/etc/apt/preferences.d/experimental"
            ;;
        *)
            debootstrap --variant=minbase "$name" "$folder"
            printf 'deb http://deb.debian.org/%s main\n' \
                "debian $name" "debian $name-updates" \
                "debian-security $name-security" >"$sources"
            ;;
    esac
    echo force-unsafe-io >"$folder/etc/dpkg/dpkg.cfg.d/unsafe-io"
    # a release that is no longer updated has an expired list
    echo 'Acquire::Check-Valid-Until "false";' \
        >"$folder/etc/apt/apt.conf.d/99valid"
    # whom this machine trusts, for what comes by https
    mkdir -p "$folder/usr/local/share/ca-certificates"
    [[ ! -d /usr/local/share/ca-certificates ]] ||
        find /usr/local/share/ca-certificates -name '*.crt' \
            -exec cp -t "$folder/usr/local/share/ca-certificates" {} +
    in_debian "$1" apt-get -qq update
    touch "$folder/ready"
}

# Copies the checkout to /srv/extension_storage in the folder.
copy_checkout() {
    local target=$debians/$1/srv/extension_storage
    mkdir -p "$target"
    find "$target" -mindepth 1 -maxdepth 1 ! -name .dev -exec rm -rf {} +
    tar -c --exclude=./.dev --exclude=./.git . | tar -x -C "$target"
}

## debian RELEASE COMMAND [ARG...]
##                 a command of ./dev in a folder with bookworm, trixie, sid or
##                 noble, made if there is none
cmd_debian() {
    local status
    if [[ $EUID != 0 ]]; then
        as_root env PG_MAJOR="${PG_MAJOR:-}" "$root/dev" debian "$@"
        return
    fi
    [[ $# -ge 2 ]] || die "which release, and which command?"
    mkdir -p "$debians/$1"
    exec 7<"$debians/$1"
    flock 7
    strictly make_debian "$1" >"$debians/$1.log" 2>&1
    [[ $status == 0 ]] || die "see $debians/$1.log"
    copy_checkout "$1"
    in_debian "$1" env PG_MAJOR="${PG_MAJOR:-}" /srv/extension_storage/dev "${@:2}" 7<&-
}
