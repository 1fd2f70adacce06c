# The build, of a copy of the sources.

if [[ $EUID == 0 ]]; then user=postgres; else user=$(id -un); fi

# Chooses the folder for everything that is made here.  make cannot handle
# every character in a path.
find_state() {
    state=/
    if as_user test -x "$root" && [[ $root =~ ^[A-Za-z0-9._/+-]+$ ]]; then
        make_folder "$root/.dev" --reference="$root"
        state=$root/.dev/$user
    else
        state=/var/tmp/extension_storage-$(sha256sum <<<"$root" | cut -c 1-12)
    fi
    make_folder "$state" "$user:"
    [[ -d $state && ! -L $state && $(stat -c %U "$state") == "$user" ]] ||
        die "$state is not a folder of $user: remove it"
}

# Makes a folder where there is none; root gives it away.
make_folder() {
    if mkdir "$1" 2>/dev/null && [[ $EUID == 0 ]]; then
        chown "$2" "$1"
    fi
}

# Runs a command as the user who builds and serves, in a folder of theirs.
as_user() {
    (
        cd "$state"
        [[ $EUID == 0 ]] || exec "$@"
        exec setpriv --reuid="$user" --regid="$user" --init-groups \
            --inh-caps=-all env HOME="$state" USER="$user" LOGNAME="$user" "$@"
    )
}

# Copies the sources, for one ./dev at a time.
copy_sources() {
    find_state
    exec 8<"$state"
    flock -n 8 || { echo "dev: waiting for another ./dev"; flock 8; }
    as_user rm -rf src
    as_user mkdir src
    # posix: with fractions of seconds, or make would take an older file for newer
    tar -c --format=posix --exclude='*.o' --exclude='*.bc' --exclude='*.so' \
        --exclude=__pycache__ --exclude=node_modules \
        .gitignore Makefile ./*.md LICENSE META.json ruff.toml \
        extension_storage.control extension_storage--*.sql src sql expected \
        test bench tools superset-addon | as_user tar -x -C src
}

# Makes a virtual environment of the pins in tools/NAME-requirements.txt, kept
# until they change.
make_venv() {
    local pins=$state/src/tools/$1-requirements.txt
    venv=$state/venv-$1
    as_user cmp -s "$venv/pins" "$pins" && return
    as_user rm -rf "$venv"
    as_user /usr/bin/python3 -m venv "$venv"
    as_user "$venv/bin/pip" install -q --disable-pip-version-check -r "$pins"
    as_user cp "$pins" "$venv/pins"
}

# A build of another kind: a suffix of its folder, compiler options, settings
# of its servers, what to run make and the tests under, and the folder of the
# server's programs.
variant=
variant_cflags=
server_settings=
instrument=(env)
programs=
compiler=

# Runs make in the build folder, where its products are, on the copied
# sources.  Bitcode for the JIT compiler is of no use here.
run_make() {
    as_user "${instrument[@]}" make -s -C "$build" -f "$state/src/Makefile" \
        PG_CONFIG="$PG_CONFIG" with_llvm=no PG_CFLAGS="$cflags" \
        TEMP_CONFIG="$conf" ${compiler:+CC="$compiler"} \
        ${programs:+bindir="$programs"} "$@"
}

# What clang says of options of gcc, with which the server was built
clang_cflags="-Wno-unknown-warning-option -Wno-ignored-optimization-argument"

## build [COMPILER]
##                 build with warnings as errors, into .dev; with gcc, or with
##                 the compiler named, installed from the package of that name
cmd_build() {
    if [[ $# -gt 0 ]]; then
        compiler=$1
        need "$compiler"
        variant=-$compiler
        variant_cflags=$clang_cflags
    fi
    build_library
    echo "built without a warning: $build"
}

# Builds the library, and settings with which a server finds it.
build_library() {
    need_build
    copy_sources
    local include pkglibdir sharedir
    include=$("$PG_CONFIG" --includedir-server)
    pkglibdir=$("$PG_CONFIG" --pkglibdir)
    sharedir=$("$PG_CONFIG" --sharedir)
    build=$state/build-$version$variant
    install=$build/install
    conf=$build/server.conf
    # -isystem: the server's own headers are not warned about.
    cflags="-Wall -Wextra -Werror -isystem $include $variant_cflags"

    as_user mkdir -p "$build"
    run_make all
    as_user rm -rf "$install"
    run_make install DESTDIR="$install" >/dev/null

    # How a server finds an extension outside of its own folders: Debian's
    # setting, or PostgreSQL 18's.
    local settings
    settings=$(as_user "$bindir/postgres" --describe-config | cut -f 1)
    {
        if grep -qx extension_destdir <<<"$settings"; then
            echo "extension_destdir = '$install'"
        elif grep -qx extension_control_path <<<"$settings"; then
            echo "extension_control_path = '$install$sharedir:\$system'"
        else
            die "PostgreSQL $version can only use an extension from its own folders"
        fi
        echo "dynamic_library_path = '$install$pkglibdir:\$libdir'"
        echo "fsync = off"
        echo "$server_settings"
    } | as_user tee "$conf" >/dev/null
}

# Builds with assertions, which the released library does without; the server
# has what they call even if it was built without them.
build_with_assertions() {
    if [[ $variant != *-assert ]]; then
        variant+=-assert
        variant_cflags+=" -DUSE_ASSERT_CHECKING"
    fi
    build_library
    grep -q ExceptionalCondition "$install$("$PG_CONFIG" --pkglibdir)/extension_storage.so" ||
        die "the library was built without assertions"
}
