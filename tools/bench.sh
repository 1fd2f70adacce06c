# The benchmark.

# Runs it on a server of its own; Debian's packages are for Debian's Python.
run_benchmark() {
    start_server "$state/src/bench/postgresql.conf"
    PATH=$bindir:$PATH as_user /usr/bin/python3 -B "$state/src/bench/bench.py" \
        "$@" 9<&-
}

## bench [NAME...] compare with what one would use instead; without a name,
##                 bench/results.json and the charts are made anew
cmd_bench() {
    need_bench
    build_library
    local made=$state/bench-results
    as_user mkdir -p "$made"
    [[ $# -gt 0 ]] || set -- --output "$made"
    run_benchmark "$@"
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
