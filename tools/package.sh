# What users install.

need_package() {
    need debhelper dpkg-dev fakeroot lintian postgresql-server-dev-all uuid-dev \
        gcc make git zip unzip python3-venv ca-certificates
}

# Debian packages, one for each PostgreSQL of this release; the source package
# that they are built from is checked with them, and not kept.
package_debian() {
    local version
    as_user rm -rf package
    as_user cp -r src package
    tar -c debian LICENSE CHANGELOG.md | as_user tar -x -C package
    version=$(sed -n '1s/.*(\(.*\)-.*/\1/p' debian/changelog)
    as_user sh -c 'tar -cz --exclude=./package/debian \
            --transform="s,^\./package,extension-storage-$0," \
            -f "extension-storage_$0.orig.tar.gz" ./package &&
        cd package && pg_buildext updatecontrol && dpkg-buildpackage -us -uc' \
        "$version" >"$1/debian.log" 2>&1 ||
        { tail -n 30 "$1/debian.log"; false; }
    # No bug of Debian's asks for a package that is not in its archive
    as_user sh -c 'lintian --fail-on error,warning \
        --suppress-tags initial-upload-closes-no-bugs extension-storage_*.changes'
    as_user sh -c 'mv postgresql-*-extension-storage*.deb "$0" &&
        rm -f extension-storage_* postgresql-*-extension-storage*' "$1"
}

# The add-on's wheel and source distribution.
package_python() {
    make_venv package
    as_user "$venv/bin/python" -m build -q --no-isolation --outdir "$1" \
        src/superset-addon
    as_user sh -c '"$0/bin/twine" check --strict "$1"/*.whl "$1"/*.tar.gz' \
        "$venv" "$1"
    if tar -tzf "$1"/superset_extension_storage-*.tar.gz | grep /tests/; then
        echo "the source distribution has some of the tests, which need the rest"
        return 1
    fi
}

# The JavaScript package, if there is one here.
package_javascript() {
    [[ -d superset-addon/js ]] || return 0
    command -v npm >/dev/null || need nodejs npm
    as_user sh -c 'cd src/superset-addon/js && npm ci --silent &&
        npm pack --silent --pack-destination "$0"' "$1"
}

# The archive for PGXN, of the last commit, named as PGXN names it.
package_pgxn() {
    local made
    export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory
    export GIT_CONFIG_VALUE_0=$root
    made=extension_storage-$(python3 -c \
        'import json; print(json.load(open("META.json"))["version"])')
    if [[ -n $(git status --porcelain) ]]; then
        echo "the archive would be of the last commit, the packages of what is here"
        return 1
    fi
    rm -f extension_storage-*.zip
    make -s PG_CONFIG="$PG_CONFIG" dist
    mv "$made.zip" "$1"
    unzip -Z1 "$1/$made.zip" >"$root/.dev/archive.list"
    if grep -E '/\.' "$root/.dev/archive.list" ||
        grep -v "^$made/" "$root/.dev/archive.list"; then
        echo "the archive has files that are no part of a release"
        return 1
    fi
}

# Installs what was made in a fresh folder with this machine's release and uses
# it.
try_packages() {
    local release own folder=$debians/packages-tried script
    own=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    for script in debian pgxn python javascript; do
        [[ $script != javascript || -d superset-addon/js ]] || continue
        release=$own
        [[ $script != python ]] || has_python || release=bookworm
        make_debian "$release.fresh"
        rm -rf "$folder"
        cp -a "$debians/$release.fresh" "$folder"
        cp -r "$1" "$folder/packages"
        cp -r "$state/src" "$folder/source"
        cp "tools/try_$script.sh" "$folder/try.sh"
        cp -r debian "$folder/source"
        # An index that a pip in there would not reach
        PIP_INDEX_URL=http://127.0.0.1:9 in_debian packages-tried sh /try.sh ||
            return
        echo "$script: installed and used"
    done
    rm -rf "$folder"
}

## package         Debian packages, the add-on's wheel and source, the npm
##                 package and the archive for PGXN, into .dev; each is
##                 installed in a fresh folder and used
cmd_package() {
    local made kind passed=0 failed=0 status
    [[ $EUID == 0 ]] || die "needs root, for chroot"
    need_package
    need_build
    copy_sources
    made=$state/packages
    as_user rm -rf "$made"
    as_user mkdir "$made"
    for kind in package_debian package_python package_javascript package_pgxn \
        try_packages; do
        echo "=== $kind"
        strictly "$kind" "$made"
        if [[ $status == 0 ]]; then
            passed=$((passed + 1))
        else
            echo "dev: not $kind"
            failed=$((failed + 1))
        fi
    done
    ls -l "$made"/*
    echo "$passed passed, $failed failed"
    [[ $failed == 0 ]]
}
