# What a holder without superuser does by chance, for longer than in the tests.

## hostile [SECONDS]
##                 random changes of the table and calls of every function by
##                 its owner, for 10 minutes by default; a failure names its
##                 seed, which HOSTILE_SEED with HOSTILE_ROUNDS=1 and
##                 HOSTILE_SESSIONS=1 in the environment repeats
cmd_hostile() {
    need_test
    build_with_assertions
    export HOSTILE_SECONDS=${1:-600}
    run_tests tap:018_hostile
    as_user grep -o '[0-9]* rounds, .*' "$build/tmp_check/log/regress_log_018_hostile"
    [[ $failed == 0 ]]
}
