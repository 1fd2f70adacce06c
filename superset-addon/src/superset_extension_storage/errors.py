"""What can go wrong, as SQLSTATEs of the server tell it.

Source of the SQLSTATEs: the extension's README and PostgreSQL's appendix A.
"""

from __future__ import annotations

from typing import Any

from psycopg2 import NotSupportedError, ProgrammingError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout


class ExtensionStorageError(Exception):
    """An error of the store; the attributes are the server's own words.

    `action` says what an operator does about it, where that is not in `hint`, and
    `operation` which one of several it was, from 0, where that is known.
    """

    operation: int | None = None

    def __init__(
        self,
        message: str,
        sqlstate: str | None = None,
        detail: str | None = None,
        hint: str | None = None,
        action: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.sqlstate = sqlstate
        self.detail = detail
        self.hint = hint
        self.action = action


class InvalidArgument(ExtensionStorageError, ValueError):
    """An argument is missing, too long or malformed."""


class ValueTooLarge(ExtensionStorageError):
    """The value is larger than extension_storage.max_value_size."""


class ValueUndecryptable(ExtensionStorageError):
    """None of the configured keys reads the stored value."""


class QuotaExceeded(ExtensionStorageError):
    """The extension's quota would be exceeded."""


class VersionMismatch(ExtensionStorageError):
    """The entry has another version than the one that was asked for."""


class KeyTaken(ExtensionStorageError):
    """The key that an entry would get has an entry."""


class StorageUnavailable(ExtensionStorageError):
    """The store cannot be used until an operator has done something."""


class StorageBusy(ExtensionStorageError):
    """The store could not be used just now; the same call may work later."""


class Conflict(StorageBusy):
    """Another transaction was in the way; this one can begin again at once."""


def printable(value: Any) -> str:
    """Spell out what would do something to a terminal, a log or a table."""
    text = str(value)
    return text if text.isprintable() else ascii(text)


SET_UP = (
    "Run superset init-extension-storage: it sets the store up or updates it, or says"
    " what an administrator of the database must do."
)
_RIGHTS = (
    f"{SET_UP} If it finds no right missing, a row-level security policy of the"
    " store's table refuses the entry."
)
_KEYS = "The README of superset-extension-storage says where keys are configured."
_LOCKS = (
    "If this keeps happening, pg_stat_activity and pg_locks show who holds the locks."
)
_TABLE = (
    "Something that was added to the store's table, a constraint, a trigger or a"
    " policy, refuses the entry."
)
_COLUMNS = (
    "The store's tables must be as the extension made them: undo what was changed."
)
_DISK = "Give the database server more room, or purge extensions that are gone."
_SERVER_LOG = "See the log of the database server."
_DAMAGE = f"{_SERVER_LOG} It may be damage: make a backup before anything else."
_CONNECTION = (
    "If this keeps happening, see whether the database server is running, what its log"
    " says, and what is between Superset and the server."
)
_TIME_OUT = (
    "The setting {} ended the session: give Superset's role a longer time, or none,"
    " with ALTER ROLE."
)

# Of class 22, those that an argument of the caller's makes.
_OF_ARGUMENTS = (
    *("22001", "22003", "22004", "22007", "22008"),
    *("22021", "22023", "22P02", "22P03"),
)

# An SQLSTATE, or the class that begins it: the error, and what an operator does.
_ERRORS: dict[str, tuple[type[ExtensionStorageError], str | None]] = {
    "ES001": (ValueUndecryptable, _KEYS),
    "ES002": (StorageUnavailable, _KEYS),
    "ES003": (QuotaExceeded, None),
    "ES004": (VersionMismatch, None),
    **dict.fromkeys(_OF_ARGUMENTS, (InvalidArgument, None)),
    "22": (StorageUnavailable, _TABLE),
    "2200H": (
        StorageUnavailable,
        "The ids of the store's table are used up: the README of extension_storage"
        " says how to widen them.",
    ),
    "22P05": (
        StorageUnavailable,
        "The encoding of the database or of its client cannot hold what is stored:"
        " remove client_encoding from the configuration.",
    ),
    "F0": (StorageUnavailable, _KEYS),
    "58P01": (
        StorageUnavailable,
        "The database server lacks the file that it names: a library comes with the"
        " package of extension_storage, a key file is named by its configuration.",
    ),
    "42": (StorageUnavailable, SET_UP),
    "42501": (StorageUnavailable, _RIGHTS),
    "42703": (StorageUnavailable, _COLUMNS),
    "42804": (StorageUnavailable, _COLUMNS),
    "42809": (StorageUnavailable, _COLUMNS),
    "42P10": (StorageUnavailable, _COLUMNS),
    "42P17": (StorageUnavailable, _TABLE),
    "3D": (
        StorageUnavailable,
        "The database that SQLALCHEMY_DATABASE_URI names does not exist.",
    ),
    "3F": (StorageUnavailable, SET_UP),
    "0A": (StorageUnavailable, _SERVER_LOG),
    "28": (
        StorageUnavailable,
        "The database server does not let Superset's role in: see whether the role"
        f" exists and may log in. {_SERVER_LOG}",
    ),
    "55": (StorageUnavailable, _SERVER_LOG),
    "23": (StorageUnavailable, _TABLE),
    "23505": (
        StorageUnavailable,
        "Either the sequence of the ids is behind the ids in the table, and setval()"
        " moves it, or a unique constraint was added to the store's table.",
    ),
    **dict.fromkeys(
        ("09", "20", "27", "2F", "38", "39", "44", "P0"), (StorageUnavailable, _TABLE)
    ),
    "25000": (StorageUnavailable, _SERVER_LOG),
    "25006": (
        StorageUnavailable,
        "The database takes no writes: connect Superset to the primary server, or see"
        " who set default_transaction_read_only.",
    ),
    "53100": (StorageUnavailable, _DISK),
    "53400": (StorageUnavailable, _SERVER_LOG),
    "54": (StorageUnavailable, _SERVER_LOG),
    "58": (StorageUnavailable, _SERVER_LOG),
    "XX": (StorageUnavailable, _SERVER_LOG),
    "XX001": (StorageUnavailable, _DAMAGE),
    "XX002": (StorageUnavailable, f"{_DAMAGE} REINDEX rebuilds an index."),
    "57P04": (StorageUnavailable, "The database was dropped."),
    "40": (Conflict, _LOCKS),
    "40001": (
        Conflict,
        "If this keeps happening, see whether default_transaction_isolation is stricter"
        " than read committed; on a standby, max_standby_streaming_delay ends"
        " statements that are in the way of what comes from the primary server.",
    ),
    "55P03": (
        StorageBusy,
        f"The setting lock_timeout ended it, or a trigger did not wait. {_LOCKS}",
    ),
    "57014": (
        StorageBusy,
        "The setting statement_timeout, or a person, ended it: see whether the time is too"
        f" short for values of this size. {_LOCKS}",
    ),
    "57": (StorageBusy, _CONNECTION),
    "57P05": (StorageBusy, _TIME_OUT.format("idle_session_timeout")),
    "08": (StorageBusy, _CONNECTION),
    "25P03": (StorageBusy, _TIME_OUT.format("idle_in_transaction_session_timeout")),
    "25P04": (StorageBusy, _TIME_OUT.format("transaction_timeout")),
    "53": (StorageBusy, _SERVER_LOG),
    "53300": (
        StorageBusy,
        "Raise max_connections, or let Superset keep fewer connections.",
    ),
}

# Where the server has a hint of its own, it is about another cause than ours.
_HINTED = ("42501", "42804", "42809")


def from_database(error: SQLAlchemyError) -> ExtensionStorageError:
    """Return the typed error; it has no trace of the statement, which has the value."""
    if isinstance(error, PoolTimeout):
        return StorageBusy(
            "no connection became free",
            action="Raise pool_size in SQLALCHEMY_ENGINE_OPTIONS.",
        )
    if not isinstance(error, DBAPIError):
        return ExtensionStorageError(f"{type(error).__name__} of SQLAlchemy")
    sqlstate = getattr(error.orig, "pgcode", None)
    diagnosis = getattr(error.orig, "diag", None)
    if sqlstate is None and isinstance(
        error.orig, (NotSupportedError, ProgrammingError)
    ):
        return ExtensionStorageError(
            " ".join(str(error.orig).split()),
            action="It is psycopg2 that refuses it; the server was not asked.",
        )
    if sqlstate is None:
        # libpq's own words: there is no connection, or there is none any more
        return StorageBusy(" ".join(str(error.orig).split()), action=_CONNECTION)
    kind, action = _ERRORS.get(sqlstate) or _ERRORS.get(
        sqlstate[:2], (ExtensionStorageError, _SERVER_LOG)
    )
    if diagnosis.message_hint and sqlstate in _HINTED:
        action = None
    if sqlstate == "54000" and diagnosis.column_name == "value":
        kind, action = ValueTooLarge, None  # not a limit of PostgreSQL's own
    return kind(
        diagnosis.message_primary or str(error.orig),
        sqlstate,
        diagnosis.message_detail,
        diagnosis.message_hint,
        action,
    )
