# Errors of memory.

## valgrind [RUNNER[:NAME,...]...]
##                 regress and isolation, or other tests, under memcheck
cmd_valgrind() {
    local status=0
    variant=-debug
    variant_cflags="-O0 -g"
    # what loads LLVM has errors of its own, in stacks that have our code
    server_settings="jit = off"
    need valgrind
    need_test
    build_with_assertions

    # A program that starts a server looks for it in its own folder.
    as_user rm -rf "$build/bin" "$build/valgrind"
    as_user mkdir "$build/bin" "$build/valgrind"
    as_user ln -s "$bindir"/* "$build/bin"
    as_user cp --remove-destination "$bindir/pg_ctl" "$build/bin"
    as_user rm "$build/bin/postgres"
    as_user tee "$build/bin/postgres" >/dev/null <<SCRIPT
#!/bin/sh
exec valgrind --quiet --trace-children=yes --track-origins=yes \\
    --gen-suppressions=all --error-limit=no --num-callers=40 --leak-check=no \\
    --fullpath-after= --log-file='$build/valgrind/%p' \\
    '$bindir/postgres' "\$@"
SCRIPT
    as_user chmod +x "$build/bin/postgres"
    programs=$build/bin
    export PGCTLTIMEOUT=600 PG_TEST_TIMEOUT_DEFAULT=1800
    [[ $# -gt 0 ]] || set -- regress isolation
    run_tests "$@"
    as_user sh -c 'cat "$0"/valgrind/*' "$build" |
        awk -v sources="$state/src/src/" -f tools/valgrind.awk || status=1
    [[ $failed == 0 && $status == 0 ]]
}

## sanitize [RUNNER[:NAME,...]...]
##                 unit, regress, isolation and tap, or other tests, on a build
##                 that is checked for memory errors and undefined behaviour
##                 (ASan and UBSan)
cmd_sanitize() {
    need_test
    copy_sources
    local reports=$state/sanitizer status=0 options
    variant=-sanitize
    variant_cflags="-g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined"
    variant_cflags+=" -fno-sanitize-recover=undefined"
    as_user rm -rf "$reports"
    as_user mkdir "$reports"
    # The server itself is not built so, hence the preload
    as_user gcc -O0 -shared -fPIC -Wl,-z,initfirst -o "$reports.so" \
        src/tools/initfirst.c
    # The server ends without freeing, so leaks say nothing; a test ends
    # backends by SIGSEGV; another one measures what a process needs, which
    # must not be what the sanitizer holds back.
    options=detect_leaks=0:handle_segv=0:quarantine_size_mb=1
    options+=:thread_local_quarantine_size_kb=64:log_path=$reports/report
    instrument=(env LD_PRELOAD="$(gcc -print-file-name=libasan.so) $reports.so"
        ASAN_OPTIONS="$options" UBSAN_OPTIONS="print_stacktrace=1")
    [[ $# -gt 0 ]] || set -- unit regress isolation tap
    build_with_assertions
    run_tests "$@"
    # ASan writes files of its own, UBSan to where the server's messages go
    grep -raE 'runtime error: ' "$build" --include='*.log' \
        --include='regress_log_*' >"$reports/undefined" || rm "$reports/undefined"
    if compgen -G "$reports/*" >/dev/null; then
        cat "$reports"/*
        status=1
    fi
    echo "$(compgen -G "$reports/*" | wc -l) files of reports by the sanitizers"
    [[ $failed == 0 && $status == 0 ]]
}
