# Tests: each run_NAME ends with closing lines of its own, which cmd_test
# counts; test/README.md says what each proves.

run_unit() {
    run_make check-unit
}

run_regress() {
    run_make installcheck ISOLATION= TAP_TESTS= ${1:+"REGRESS=$*"} && return
    as_user cat "$build/regression.diffs"
    false
}

run_isolation() {
    run_make installcheck REGRESS= TAP_TESTS= ${1:+"ISOLATION=$*"} && return
    as_user cat "$build/output_iso/regression.diffs"
    false
}

# A key file of somebody else's for the tests, which only root can make
make_foreign_key_file() {
    if [[ $EUID == 0 ]]; then
        export FOREIGN_KEY_FILE=$build/foreign_keys
        install -o nobody -m 644 /dev/null "$FOREIGN_KEY_FILE"
    fi
}

run_tap() {
    make_foreign_key_file
    run_make installcheck REGRESS= ISOLATION= PROVE_FLAGS='-j 2 --timer' \
        ${1:+PROVE_TESTS="$(printf 'test/t/%s.pl ' "$@")"} && return
    as_user sh -c 'grep -lE "not ok|Looks like| line [0-9]+\.$" "$0"/regress_log_* |
        xargs -r tail -n 40' "$build/tmp_check/log"
    false
}

all_runners=(lint unit regress isolation tap fuzz bench superset show)

# Runs the named runners on what is built, and leaves in $failed how many tests
# failed.
run_tests() {
    local runner names status began counts passed=0 summary=
    for runner in "$@"; do
        declare -F "run_${runner%%:*}" >/dev/null || die "no runner $runner"
        [[ ! $runner =~ ^(lint|unit|fuzz|bench|show): ]] ||
            die "$runner: ${runner%%:*} has no single tests"
    done
    failed=0
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    for runner in "$@"; do
        names=()
        [[ $runner != *:* ]] || IFS=, read -ra names <<<"${runner#*:}"
        runner=${runner%%:*}
        echo "=== $runner"
        began=$SECONDS
        # this one runs ./dev, which builds: the lock must be free
        [[ $runner != show ]] || flock -u 8
        set +e
        (
            set -e
            "run_$runner" "${names[@]}"
        ) 2>&1 </dev/null 8<&- | tee "$log"
        status=${PIPESTATUS[0]}
        set -e
        [[ $runner != show ]] || flock 8
        counts=$(awk -v status="$status" -f tools/count_results.awk "$log")
        passed=$((passed + ${counts% *}))
        failed=$((failed + ${counts#* }))
        summary+="$(printf '%-10s %4d s  ' "$runner" $((SECONDS - began)))"
        summary+="$(grep -E '^(Files=|[# ]*(All )?[0-9]+ .*(passed|failed))' \
            "$log" | tail -n 1 || echo "no closing line")"$'\n'
    done
    printf '===\n%s%d passed, %d failed\n' "$summary" "$passed" "$failed"
}

## test [RUNNER[:NAME,...]...]
##                 all tests, or those of lint, unit, regress, isolation, tap,
##                 fuzz, bench, superset, show
cmd_test() {
    [[ $# -gt 0 ]] || set -- "${all_runners[@]}"
    need_test
    build_with_assertions
    run_tests "$@"
    [[ $failed == 0 ]]
}
