# The benchmark.

# Runs it on a server of its own; Debian's packages are for Debian's Python.
run_benchmark() {
    start_server "$state/src/bench/postgresql.conf"
    PATH=$bindir:$PATH as_user /usr/bin/python3 -B "$state/src/bench/bench.py" \
        "$@" 9<&-
}

# Times requests to a Superset of their own, for the measure "wire".
time_requests() {
    start_superset_server "$state/src/bench/postgresql.conf"
    as_user mkdir -p superset
    as_user env PG_DATA="$run/data" ADDON_RESULTS="$state/superset" \
        WIRE_RESULTS="$1" \
        "$venv/bin/pytest" -q src/superset-addon -k test_wire 9<&-
    remove_server "$run"
}

## bench [NAME...] compare with what one would use instead; without a name,
##                 bench/results.json and the charts are rewritten
cmd_bench() {
    local made wire
    need_bench
    build_library
    made=$state/bench-results
    wire=$made/wire.json
    as_user mkdir -p "$made"
    if [[ $# == 0 || " $* " == *" wire "* ]]; then
        has_python || die "the measure wire needs Superset: ./dev debian bookworm bench"
        time_requests "$wire"
    fi
    [[ $# -gt 0 ]] || set -- --output "$made"
    run_benchmark --wire "$wire" "$@"
    [[ $1 != --output ]] || cp "$made"/{results.json,results.svg,overview.svg} bench
}

# All measures run to their ends, on a small size, and make JSON and charts.
run_bench() {
    need_bench
    local made=$build/bench-results
    as_user rm -rf "$made"
    as_user mkdir "$made"
    run_benchmark --quick --output "$made"
    /usr/bin/python3 -B tools/check_bench.py "$made"
}
