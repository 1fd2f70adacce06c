# Other versions of PostgreSQL, in folders with a Debian of their own.

# Runs a command in such a folder; its mounts end with it.
in_debian() {
    unshare --mount --propagation private sh -c '
        mount -t proc proc "$0/proc"
        mount --rbind /dev "$0/dev"
        exec chroot "$0" env PATH=/usr/sbin:/usr/bin:/sbin:/bin \
            LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
        ' "$debians/$1" "${@:2}" </dev/null
}

# Makes the folder of a release, where there is none, and copies the checkout
# there.
make_debian() {
    local folder=$debians/$1
    if [[ ! -e $folder/ready ]]; then
        rm -rf "$folder"
        debootstrap --variant=minbase "$1" "$folder" || return
        # a release that is no longer updated has an expired list
        echo 'Acquire::Check-Valid-Until "false";' \
            >"$folder/etc/apt/apt.conf.d/99valid"
        touch "$folder/ready"
    fi
    mkdir -p "$folder/srv/extension_storage"
    find "$folder/srv/extension_storage" -mindepth 1 -maxdepth 1 \
        ! -name .dev -exec rm -rf {} +
    tar -c --exclude=./.dev --exclude=./.git . |
        tar -x -C "$folder/srv/extension_storage"
    in_debian "$1" apt-get update
}

# Upgrades a data folder from bookworm's PostgreSQL to trixie's, in trixie.
upgrade_in_trixie() {
    local folder=$debians/trixie version
    echo 'deb http://deb.debian.org/debian bookworm main' \
        >"$folder/etc/apt/sources.list.d/bookworm.list"
    in_debian trixie apt-get update &&
        in_debian trixie apt-get install -y --no-install-recommends \
            postgresql-15 || return
    rm "$folder/etc/apt/sources.list.d/bookworm.list"
    for version in bookworm trixie; do
        cp -r "$debians/$version"/srv/extension_storage/.dev/postgres/build-*/install/. \
            "$folder/"
    done
    in_debian trixie setpriv --reuid=postgres --regid=postgres --init-groups \
        /srv/extension_storage/test/pg_upgrade.sh 15 17
}

## matrix          the tests on PostgreSQL 15, 17 and 18, each in a folder with
##                 the Debian that has it, and pg_upgrade from 15 to 17
cmd_matrix() {
    local release result table= status=0
    [[ $EUID == 0 ]] || die "needs root, for chroot"
    need debootstrap
    debians=$root/.dev/matrix
    mkdir -p "$debians"
    for release in bookworm:15 trixie:17 sid:18; do
        local name=${release%:*} major=${release#*:} log
        log=$debians/$name.log
        echo "=== PostgreSQL $major of Debian $name, log in $log"
        if make_debian "$name" >"$log" 2>&1 &&
            in_debian "$name" env PG_MAJOR="$major" \
                /srv/extension_storage/dev test unit regress isolation tap \
                >>"$log" 2>&1
        then
            result=passed
        else
            result=FAILED
            status=1
        fi
        table+=$(printf '%-14s %-9s %s: %s' "PostgreSQL $major" "$name" \
            "$result" "$(tail -n 1 "$log")")$'\n'
    done
    echo "=== pg_upgrade from 15 to 17, log in $debians/upgrade.log"
    if upgrade_in_trixie >"$debians/upgrade.log" 2>&1; then
        result=passed
    else
        result=FAILED
        status=1
    fi
    table+=$(printf '%-24s %s' "pg_upgrade 15 to 17" "$result")
    echo "==="
    echo "$table"
    return $status
}

