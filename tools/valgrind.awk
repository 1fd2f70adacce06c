# Prints memcheck's errors that are ours, and how many of each kind are not.
# An error is ours if a line of our source (below the folder given as sources),
# or our library, is in any of its stacks; but not where a commit of ours only
# writes out the padding of PostgreSQL's WAL, or a lock that we take only has it
# read the padding of its invalidation messages.

function is_ours(stack) {
    return index(stack, sources) || stack ~ /extension_storage\.so/
}

function count() {
    if (block == "")
        return
    if ((first ~ /^Syscall param pwrite64/ && block ~ /by [^ ]+ XLogFlush /) ||
        (match(block, /by [^ ]+ ReceiveSharedInvalidMessages /) &&
         !is_ours(substr(block, 1, RSTART))))
        others[first]++
    else if (is_ours(block)) {
        ours++
        print block
    } else
        others[first]++
    block = ""
}

/^==[0-9]+== [^ ]/ {
    count()
    first = $0
    sub(/^==[0-9]+== /, "", first)
}

/^==[0-9]+==/ { block = block $0 "\n" }

/^[{]/ { count() }

END {
    count()
    for (kind in others)
        print others[kind] " in PostgreSQL: " kind
    print "errors with a frame of extension_storage: " ours + 0
    exit ours > 0
}
