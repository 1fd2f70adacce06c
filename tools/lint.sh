# Format and usual faults of the code.

shopt -s nullglob
c_files=(src/*.[ch] test/unit/*.[ch] test/fuzz/*.[ch] tools/*.[ch])
shopt -u nullglob
python_folders=(bench superset-addon test tools)

# Prints a C file in PostgreSQL's format.  The options and the names of the
# server's types are in .indent.pro; one that is missing there shows as
# "Type * name".  The type text goes by another name meanwhile, as variables
# have that one too; then two flaws of the formatter are put right, the first
# as pgindent does.
format_c() {
    local own_types
    mapfile -t own_types < <(sed -n 's/^} \([A-Za-z0-9_]*\);.*/-T\1/p' \
        "${c_files[@]}")
    sed -E 's/\btext([ \t]+\*)/teXt\1/g' "$1" | HOME=$root \
        pg_bsd_indent "${own_types[@]}" |
        sed -E 's/\bteXt\b/text/g
            s/^([A-Za-z_][A-Za-z0-9_ ]*)\b[ \t]+\*$/\1 */
            /^\t*\.[a-z_]+ = /s/,\.([a-z_]+ = )/, .\1/g'
}

# Runs ruff on the copied sources.
ruff() {
    make_venv lint
    as_user sh -c 'cd src && exec "$@"' sh "$venv/bin/ruff" "$@" --no-cache \
        "${python_folders[@]}"
}

format_is_right() {
    local file status=0
    for file in "${c_files[@]}"; do
        format_c "$file" | diff -u "$file" - || status=1
    done
    ruff format --diff || status=1
    [[ $status == 0 ]] || echo "lint: ./dev lint --fix puts the format right"
    return $status
}

c_is_clean() {
    printf '%s\0' src/*.c | xargs -0 -P 2 -I {} clang-tidy --quiet {} -- \
        -D_GNU_SOURCE -DUSE_ASSERT_CHECKING -Isrc \
        -I"$("$PG_CONFIG" --includedir-server)" \
        2> >(grep -v '^[0-9]* warnings* generated\.$')
}

python_is_clean() {
    ruff check -q
}

# The source lines of dev have its parts in tools checked along with it.
shell_is_clean() {
    shellcheck --check-sourced dev .ci/run test/*.sh tools/try_*.sh \
        debian/tests/installcheck
}

# The version is typed in the control file; the rest follows it.
versions_agree() {
    /usr/bin/python3 -B tools/check_versions.py
}

# Where there is no formatter, the checks run in a folder with Debian 12.
run_lint() {
    local check passed=0 failed=0
    if ! has_formatter; then
        PG_MAJOR='' "$root/dev" debian bookworm lint
        return
    fi
    need_lint
    for check in format_is_right c_is_clean python_is_clean shell_is_clean \
        versions_agree; do
        if "$check"; then
            passed=$((passed + 1))
        else
            echo "lint: not $check"
            failed=$((failed + 1))
        fi
    done
    echo "$passed passed, $failed failed"
    [[ $failed == 0 ]]
}

# Puts formatted text in a file's place, unless it is that already.
replace_if_changed() {
    local formatted
    formatted=$(cat)
    [[ $formatted == "$(<"$1")" ]] || echo "$formatted" >"$1"
}

fix_format() {
    local file
    for file in "${c_files[@]}"; do
        format_c "$file" | replace_if_changed "$file"
    done
    ruff check -q --fix-only --select I
    ruff format -q
    find "${python_folders[@]}" -name '*.py' -print0 |
        while IFS= read -rd '' file; do
            as_user cat "src/$file" | replace_if_changed "$file"
        done
}

## lint [--fix]    check format and code, or correct the format
cmd_lint() {
    [[ $# == 0 || "$*" == --fix ]] || die "usage: ./dev lint [--fix]"
    if [[ ${1:-} == --fix ]]; then
        has_formatter || die "no package pg-bsd-indent here"
        need_lint
        copy_sources
        fix_format
    else
        ! has_formatter || { need_lint; copy_sources; }
        run_lint
    fi
}
