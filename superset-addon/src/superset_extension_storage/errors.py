"""What can go wrong, as SQLSTATEs of the server tell it."""

from __future__ import annotations

from typing import ClassVar

from sqlalchemy.exc import DBAPIError


class ExtensionStorageError(Exception):
    """An error of the store; the attributes are the server's own words."""

    sqlstates: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        message: str,
        sqlstate: str | None = None,
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.sqlstate = sqlstate
        self.detail = detail
        self.hint = hint


class InvalidArgument(ExtensionStorageError, ValueError):
    """An argument is missing, too long or malformed."""

    sqlstates = frozenset({"22001", "22003", "22004", "22023"})


class ValueTooLarge(ExtensionStorageError):
    """The value is larger than extension_storage.max_value_size."""

    sqlstates = frozenset({"54000"})


class ValueUndecryptable(ExtensionStorageError):
    """None of the configured keys reads the stored value."""

    sqlstates = frozenset({"ES001"})


class QuotaExceeded(ExtensionStorageError):
    """The extension's quota would be exceeded."""

    sqlstates = frozenset({"ES003"})


class VersionMismatch(ExtensionStorageError):
    """The entry has another version than the one that was asked for."""

    sqlstates = frozenset({"ES004"})


class StorageUnavailable(ExtensionStorageError):
    """The store cannot be used until an operator has done something.

    Extension or schema missing or old, rights missing, no key, broken key file.
    """

    sqlstates = frozenset(
        {"ES002", "42883", "3F000", "42P01", "42501", "F0000", "58P01"}
    )


_BY_SQLSTATE = {
    sqlstate: error
    for error in ExtensionStorageError.__subclasses__()
    for sqlstate in error.sqlstates
}


def from_database(error: DBAPIError) -> ExtensionStorageError:
    """Give the typed error; it has no trace of the statement, which has the value."""
    sqlstate = getattr(error.orig, "pgcode", None)
    diagnosis = getattr(error.orig, "diag", None)
    message = getattr(diagnosis, "message_primary", None)
    return _BY_SQLSTATE.get(sqlstate, ExtensionStorageError)(
        message or str(error.orig),  # libpq's own words: the connection is gone
        sqlstate,
        getattr(diagnosis, "message_detail", None),
        getattr(diagnosis, "message_hint", None),
    )
