# Fuzzing: the codec and the parsers of keys, without a server.

fuzzers=(fernet keylist mime)

# Builds a fuzzer into the file named last, with the sanitizers named.  The
# ciphers are not what is looked for, so they are fast instead.
build_fuzzer() {
    local flags=(-DFRONTEND -DUSE_ASSERT_CHECKING -D_GNU_SOURCE -Isrc/src
        -isystem "$("$PG_CONFIG" --includedir-server)")
    as_user clang -O3 "${flags[@]}" -c src/test/unit/ciphers.c -o "$3.ciphers.o"
    as_user clang -g -O1 -fsanitize="fuzzer,$2" -fno-sanitize-recover=all \
        "${flags[@]}" "${@:4}" "src/test/fuzz/fuzz_$1.c" src/src/fernet.c \
        src/src/keylist.c src/src/mime.c "$3.ciphers.o" \
        -L"$("$PG_CONFIG" --pkglibdir)" -L"$("$PG_CONFIG" --libdir)" \
        -lpgcommon -lpgport -o "$3"
}

# Runs the fuzzers side by side for so many seconds, from the corpus in the
# checkout.  What they find out goes to $fuzz/corpus-NAME, what they find wrong
# to $fuzz/NAME-*.
run_fuzzers() {
    local name passed=0 failed=0 executions
    need_fuzz
    fuzz=$state/fuzz
    as_user rm -rf "$fuzz"
    for name in "${fuzzers[@]}"; do
        as_user mkdir -p "$fuzz/corpus-$name"
        build_fuzzer "$name" address,undefined "$fuzz/$name"
        as_user sh -c '"$0/$1" -max_total_time="$2" -max_len=4096 -timeout=10 \
            -print_final_stats=1 -artifact_prefix="$0/$1-" "$0/corpus-$1" \
            "src/test/fuzz/corpus/$1" >"$0/$1.log" 2>&1' \
            "$fuzz" "$name" "$1" &
    done
    for name in "${fuzzers[@]}"; do
        wait -n || true
    done
    for name in "${fuzzers[@]}"; do
        executions=$(sed -n 's/^stat::number_of_executed_units: *//p' \
            "$fuzz/$name.log")
        if [[ -z $executions || -n $(compgen -G "$fuzz/$name-*") ]]; then
            tail -n 50 "$fuzz/$name.log"
            failed=$((failed + 1))
        else
            passed=$((passed + 1))
        fi
        echo "fuzz_$name: ${executions:-0} executions in $1 s," \
            "$(compgen -G "$fuzz/$name-*" | wc -l) findings," \
            "lines covered: $(fuzz_coverage "$name")"
    done
    echo "$passed passed, $failed failed"
    [[ $failed == 0 ]]
}

# Prints how much of its source file the corpus of a fuzzer covers.
fuzz_coverage() {
    build_fuzzer "$1" undefined "$fuzz/$1.cov" -fprofile-instr-generate \
        -fcoverage-mapping
    as_user env LLVM_PROFILE_FILE="$fuzz/$1.raw" "$fuzz/$1.cov" -runs=0 \
        "$fuzz/corpus-$1" "src/test/fuzz/corpus/$1" 2>/dev/null
    as_user llvm-profdata merge "$fuzz/$1.raw" -o "$fuzz/$1.profile"
    as_user llvm-cov report "$fuzz/$1.cov" -instr-profile="$fuzz/$1.profile" \
        "$state/src/src/$1.c" | awk '/^TOTAL/ { print $10 }'
}

run_fuzz() {
    run_fuzzers 20
}

## fuzz [SECONDS]  fuzz the codec and the parsers, for 10 minutes by default;
##                 new inputs are added to test/fuzz/corpus
cmd_fuzz() {
    local name
    build_library
    run_fuzzers "${1:-600}"
    for name in "${fuzzers[@]}"; do
        as_user mkdir "$fuzz/merged-$name"
        as_user "$fuzz/$name" -merge=1 "$fuzz/merged-$name" \
            "src/test/fuzz/corpus/$name" "$fuzz/corpus-$name" 2>/dev/null
        cp -n "$fuzz/merged-$name"/* "test/fuzz/corpus/$name/"
    done
}
