# Other processors.

## arm64           compile for arm64, with warnings as errors
cmd_arm64() {
    local folder architecture
    need gcc-aarch64-linux-gnu libc6-dev-arm64-cross binutils
    need_headers
    copy_sources
    make_apt arm64 deb -o APT::Architecture=arm64 -o APT::Architectures=arm64
    folder=$state/arm64
    as_user rm -rf "$folder"
    as_user mkdir "$folder"
    as_user sh -c 'cd "$0" && apt-get "$@" && for file in *.deb; do
        dpkg -x "$file" . || exit; done' "$folder" "${apt_options[@]}" -qq \
        download "postgresql-server-dev-${version%%[!0-9]*}" uuid-dev libuuid1
    as_user sh -c 'aarch64-linux-gnu-gcc -shared -fPIC -O2 -Wall -Wextra -Werror \
        -D_GNU_SOURCE -DUSE_ASSERT_CHECKING "-DEXTENSION_VERSION=\"\"" -Isrc/src \
        -isystem "$0/usr/include/postgresql/$1/server" -isystem "$0/usr/include" \
        src/src/*.c -L "$0/usr/lib/aarch64-linux-gnu" -L "$0/lib/aarch64-linux-gnu" \
        -luuid -o "$0/extension_storage.so"' "$folder" "${version%%[!0-9]*}"
    architecture=$(readelf -h "$folder/extension_storage.so" |
        sed -n 's/^ *Machine: *//p')
    echo "extension_storage.so for $architecture"
    [[ $architecture == AArch64 ]]
}
