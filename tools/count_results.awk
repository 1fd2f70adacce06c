# Prints how many tests passed and failed by the closing lines in a log.  A
# TAP file that dies or is skipped is a failure, and so is a runner that
# fails (its exit status is given as status) or says nothing.

function numbers() {
    gsub(/[^0-9]+/, " ")
    $0 = $0
}

/All [0-9]+ tests passed/ {
    numbers()
    passed += $1
}

/[0-9]+ of [0-9]+ tests failed/ {
    numbers()
    passed += $2 - $1
    failed += $1
}

/^[0-9]+ passed, [0-9]+ failed$/ {
    numbers()
    passed += $1
    failed += $2
}

# pytest
/ in [0-9.]+s( \([0-9:]+\))?$/ {
    for (i = 2; i <= NF; i++)
        if ($i ~ /^passed/)
            passed += $(i - 1)
        else if ($i ~ /^(failed|errors?|skipped|xfailed|xpassed),?$/)
            failed += $(i - 1)
}

# prove
/^Files=[0-9]+, Tests=[0-9]+/ {
    numbers()
    passed += $2
}

/\(Wstat: .*Failed: [0-9]+\)/ {
    sub(/.*Failed: /, "")
    passed -= $1
    failed += $1 > 0 ? $1 + 0 : 1
}

/\.pl \.+ skipped/ {
    failed++
}

END {
    if (passed + failed == 0 || (status != 0 && failed == 0))
        failed++
    print passed + 0, failed + 0
}
