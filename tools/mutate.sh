# Whether the tests notice faults.

## mutate [--count N] [--seed S] [--jobs N] [FILE...]
##                 change src/*.c, or the files named, in a hundred random
##                 places, one at a time, and see whether the tests notice
cmd_mutate() {
    local work
    need_test
    need python3-venv ca-certificates
    build_with_assertions
    make_venv mutate
    work=$state/mutate
    as_user mkdir -p "$work"
    as_user rm -rf "$work/base"
    as_user cp -r src "$work/base"
    # From here on another ./dev may run
    exec 8<&-
    make_foreign_key_file
    as_user "$venv/bin/python" -B "$work/base/tools/mutate.py" --folder "$work" \
        --pg-config "$PG_CONFIG" --settings "$conf" --installed "$install" "$@"
}
