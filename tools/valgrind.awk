# Prints memcheck's errors that are ours, and how many of each kind are not.
# An error is ours if a line of our source (below the folder given as sources),
# or our library, is in any of its stacks; but not where a commit of ours only
# writes out the padding of PostgreSQL's WAL.

function count() {
    if (block == "")
        return
    if (first ~ /^Syscall param pwrite64/ && block ~ /by [^ ]+ XLogFlush /)
        others[first]++
    else if (index(block, sources) || block ~ /extension_storage\.so/) {
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
