"""Figures of the whole store, for the administrator's page.

What would take long is estimated from a sample of the table's pages, and says
so; who asks for it gets it exactly, within a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from math import sqrt
from time import monotonic
from typing import Any

from superset.extensions import db

from .cli import NEEDED_VERSION, is_older
from .dao import (
    call,
    check_dialect,
    database_errors,
    key_status,
    moment,
    qualified,
    spelled,
)
from .errors import SET_UP, ExtensionStorageError, StorageUnavailable

# A table of more pages is not read whole unless somebody asks for it.
EXACT_PAGES = 16384
SAMPLE_PAGES = 4096

# Extensions of which a sample has fewer rows are counted by the index: the
# first so many, if they have no more entries than that.
FEW_ROWS = 20
COUNTED_APART = 50
MOST_APART = 1000

# More tokens or bytes are not decrypted unless somebody asks for it.
FEW_TOKENS = 50_000
FEW_TOKEN_BYTES = 64_000_000

EXAMPLES = 100

_QUERY_CANCELED = "57014"


class TakesTooLong(Exception):
    """The server has not answered within the time that was given."""


@dataclass(frozen=True)
class Usage:
    """What an extension stores; a margin tells how far an estimate may be off.

    It is two standard errors: of a hundred estimates, about five are off more.
    Where a sample has no entry of the extension, a figure may not be known.
    """

    extension_id: str
    entries: float | None
    encrypted: float | None
    size: float | None  # bytes, as a quota counts them
    token_size: float | None
    newest: datetime | str | None  # text where no datetime can hold it
    entries_margin: float = 0
    size_margin: float = 0
    at_least: int = 0  # entries that were counted before the counting ended


@dataclass(frozen=True)
class UsageReport:
    """What all extensions store, largest first.

    In a sample, an extension's newest change is the newest that it has read.
    """

    extensions: list[Usage]
    quota: int  # bytes, 0 where there is none
    sampled: float | None  # the share of the table that was read

    def total(self, figure: str) -> float:
        """Add up what is known.

        The extensions are in the same pages: their margins add up at most.
        """
        return sum(getattr(usage, figure) or 0 for usage in self.extensions)

    def unknown(self, figure: str) -> int:
        """Return the number of extensions that are not in the total."""
        return sum(getattr(usage, figure) is None for usage in self.extensions)

    def has_few_tokens(self) -> bool:
        return (
            self.total("encrypted") <= FEW_TOKENS
            and self.total("token_size") <= FEW_TOKEN_BYTES
        )


@dataclass(frozen=True)
class KeyReport:
    """The configured keys and, where tokens were read, what they are needed for.

    The keys are those of key_status, or rows of ext_storage_configured_keys.
    """

    keys: list[Any]
    counted: bool
    unreadable: int = 0
    examples: Sequence[Any] = ()


# The transaction's: no name is looked for in a schema that others may write to,
# and a policy that hides rows is an error.
_SETTINGS = """
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true),
    pg_catalog.set_config('row_security', 'off', true)
"""

# Once its library is loaded, the setting is checked, and a number of bytes.
_LOAD_LIBRARY = "SELECT FROM {usage}() LIMIT 0"
_PAGES_AND_QUOTA = """
SELECT pg_relation_size(CAST('{literal}' AS regclass))
    / CAST(current_setting('block_size') AS bigint),
    (SELECT CAST(setting AS float8) FROM pg_settings
     WHERE name = 'extension_storage.quota_per_extension'),
    to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL
"""

# Where Citus has spread the table over servers, its pages are not here, and Citus
# plans no sample and no recursion over all of them: it is read whole.
_DISTRIBUTED = """
SELECT true FROM pg_catalog.pg_dist_partition
WHERE logicalrelid = CAST('{literal}' AS regclass)
"""

# As the store counts them: src/quota.c of extension_storage.
_BYTES = """
    COALESCE(CASE WHEN is_encrypted AND value_size >= 0
        AND octet_length(value)
            = ((CAST(value_size AS bigint) / 16 + 1) * 16 + 59) / 3 * 4
        THEN value_size ELSE octet_length(value) END, 0)
    + COALESCE(octet_length(description), 0)
"""
_FIGURES = f"""
    count(*) AS entries,
    count(*) FILTER (WHERE is_encrypted) AS encrypted,
    CAST(COALESCE(sum({_BYTES}), 0) AS bigint) AS size,
    COALESCE(sum(octet_length(value)) FILTER (WHERE is_encrypted), 0) AS token_size
"""
_NEWEST = f"{spelled('max(changed_on)')} AS newest"

# A page comes into the sample by itself, with the probability %(share)s: so a
# sum over those that came, divided by it, estimates the sum over all.
_SAMPLE = f"""
WITH page AS (
    SELECT extension_id, {_FIGURES}, max(changed_on) AS newest
    FROM {{table}} TABLESAMPLE SYSTEM (100 * %(share)s) REPEATABLE (1)
    GROUP BY extension_id, (CAST(CAST(ctid AS text) AS point))[0]
)
SELECT extension_id, sum(entries) AS rows,
    CAST(sum(entries) AS float8) AS entries,
    CAST(sum(encrypted) AS float8) AS encrypted,
    CAST(sum(size) AS float8) AS size,
    CAST(sum(token_size) AS float8) AS token_size,
    {spelled("max(newest)")} AS newest,
    CAST(sum(entries ^ 2) AS float8) AS entries_squares,
    CAST(sum(size ^ 2) AS float8) AS size_squares
FROM page GROUP BY extension_id
"""

# Have what follows in the transaction use the indexes.  LIMIT has the planner
# believe that a scan of the table soon meets enough rows of any name: of a name
# that is rare, that scan reads the whole table.
_BY_INDEX = """
SELECT set_config(name, 'off', true)
FROM unnest(ARRAY['enable_seqscan', 'enable_bitmapscan', 'jit']) AS name
"""

# All names, each found in the index behind the one before.
_NAMES = """
WITH RECURSIVE name AS (
    (SELECT extension_id FROM {table} ORDER BY extension_id LIMIT 1)
    UNION ALL
    SELECT (SELECT e.extension_id FROM {table} e
            WHERE e.extension_id > name.extension_id
            ORDER BY e.extension_id LIMIT 1)
    FROM name WHERE name.extension_id IS NOT NULL
)
SELECT extension_id FROM name WHERE extension_id IS NOT NULL
"""

_COUNTED_APART = f"""
SELECT name AS extension_id, figures.*
FROM unnest(CAST(%(names)s AS text[])) AS name
CROSS JOIN LATERAL (
    SELECT {_FIGURES}, {_NEWEST}
    FROM (SELECT * FROM {{table}} WHERE extension_id = name LIMIT %(most)s) AS e
) AS figures
"""

# The bytes that the store itself counts, while both triggers are as it made them.
_KEPT_BYTES = """
SELECT u.extension_id, u.value_bytes FROM {table}_usage AS u
WHERE NOT pg_is_in_recovery() AND (SELECT count(*) FROM pg_trigger
       WHERE tgrelid = CAST('{literal}' AS regclass) AND tgenabled = 'A'
           AND tgname IN ('extension_storage_count', 'extension_storage_count_rows')) = 2
"""


def usage_report(exact: bool, until: float | None) -> UsageReport:
    """Tell what each extension stores: exactly where asked to, or where it is little.

    `until` is a time of time.monotonic(), None for all the time that it takes.
    """
    with _reading(until) as run:
        check_version(run)
        run(_LOAD_LIBRARY)
        ((pages, quota, has_citus),) = run(_PAGES_AND_QUOTA)
        whole = exact or pages <= EXACT_PAGES or (has_citus and run(_DISTRIBUTED))
        share = None if whole else SAMPLE_PAGES / pages
        if share is None:
            found = [
                _usage(row)
                for row in run(
                    f"SELECT extension_id, {_FIGURES}, {_NEWEST} FROM {{table}}"
                    " GROUP BY extension_id"
                )
            ]
        else:
            found = _estimates(run, share)
    found.sort(key=lambda usage: (-(usage.size or 0), usage.extension_id))
    return UsageReport(found, int(quota), share)


def _run(statement: str, **arguments: Any) -> list[Any]:
    """Run a statement in which {verify} and {usage} are those functions, {table} is
    the store's table, and {literal} the table's name in a string.
    """
    check_dialect()
    table = qualified("extension_storage")
    statement = statement.format(
        table=table,
        literal=table.replace("'", "''"),
        verify=qualified("ext_storage_verify"),
        usage=qualified("ext_storage_usage"),
    )
    with database_errors():
        return db.session.connection().exec_driver_sql(statement, arguments).all()


def check_version(run: Callable[..., list[Any]] = _run) -> None:
    """Refuse an extension that is missing, or older than the add-on needs."""
    found = run(
        "SELECT extversion FROM pg_catalog.pg_extension"
        " WHERE extname OPERATOR(pg_catalog.=) 'extension_storage'"
    )
    if not found:
        raise StorageUnavailable(
            "the extension extension_storage is not in the metadata database",
            action=SET_UP,
        )
    if is_older(found[0].extversion):
        raise StorageUnavailable(
            f"the extension is version {found[0].extversion}, the add-on needs"
            f" {NEEDED_VERSION}",
            action=SET_UP,
        )


def _estimates(run: Callable[..., list[Any]], share: float) -> list[Usage]:
    sample = {row.extension_id: row for row in run(_SAMPLE, share=share)}
    run(_BY_INDEX)
    found = {name: Usage(name, None, None, None, None, None) for (name,) in run(_NAMES)}
    found |= {name: _estimate(row, share) for name, row in sample.items()}
    few = [n for n in found if n not in sample or sample[n].rows < FEW_ROWS]
    few.sort(key=lambda name: name in sample)
    for row in run(_COUNTED_APART, names=few[:COUNTED_APART], most=MOST_APART):
        if row.entries < MOST_APART:
            found[row.extension_id] = _usage(row)
        elif row.extension_id not in sample:
            found[row.extension_id] = replace(
                found[row.extension_id], at_least=MOST_APART
            )
    ((may_read,),) = run(
        "SELECT has_table_privilege(to_regclass('{literal}_usage'), 'SELECT')"
    )
    if may_read:
        for name, size in run(_KEPT_BYTES):
            if name in found:
                found[name] = replace(found[name], size=size, size_margin=0)
    return list(found.values())


def _usage(row: Any) -> Usage:
    *figures, newest = row
    return Usage(*figures, moment(newest))


def _estimate(row: Any, share: float) -> Usage:
    def margin(squares: float) -> float:
        return 2 * sqrt((1 - share) * squares) / share

    return Usage(
        row.extension_id,
        row.entries / share,
        row.encrypted / share,
        row.size / share,
        row.token_size / share,
        moment(row.newest),
        margin(row.entries_squares),
        margin(row.size_squares),
    )


def key_report(counted: bool, until: float | None) -> KeyReport:
    """Tell which keys there are and, from all tokens, what each is needed for."""
    with _reading(until) as run:
        _limit_time(until)
        if not counted:
            return KeyReport(call("ext_storage_configured_keys"), counted)
        rows = key_status()
        unreadable = sum(row.entries for row in rows if row.role == "unknown")
        examples = ()
        if unreadable:
            # The server has the keys until the transaction ends.
            examples = run("SELECT * FROM {verify}() LIMIT %(most)s", most=EXAMPLES)
    keys = [row for row in rows if row.role != "unknown"]
    return KeyReport(keys, counted, unreadable, examples)


@contextmanager
def _reading(until: float | None) -> Iterator[Callable[..., list[Any]]]:
    """Return what runs statements that only read, all before `until`; end their
    transaction.
    """

    def run(statement: str, **arguments: Any) -> list[Any]:
        _limit_time(until)
        return _run(statement, **arguments)

    try:
        _run(_SETTINGS)
        yield run
    except ExtensionStorageError as error:
        if error.sqlstate == _QUERY_CANCELED:
            raise TakesTooLong from None
        raise
    finally:
        db.session.rollback()


def _limit_time(until: float | None) -> None:
    """Have the next statement end by then."""
    if until is not None:
        left = max(until - monotonic(), 0)
        _run(
            "SELECT pg_catalog.set_config('statement_timeout', %(limit)s, true)",
            limit=f"{left * 1000 + 1:.0f}ms",
        )
