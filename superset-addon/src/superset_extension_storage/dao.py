"""The SQL functions of the extension as Python calls over Superset's session.

Nothing here flushes or commits: the caller owns the transaction.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from flask import current_app
from psycopg2.extensions import encodings
from sqlalchemy.exc import SQLAlchemyError
from superset.extensions import db
from superset.utils.core import get_user_id

from .errors import InvalidArgument, StorageUnavailable, ValueTooLarge, from_database
from .keys import hand_over

MAX_VALUE_SIZE = 16777215  # the maximum of extension_storage.max_value_size

# Entries that a list without a page reads at once.
LIST_STEP = 1000

_TYPES = {
    "value": "bytea",
    "user_fk": "integer",
    "actor_fk": "integer",
    "page": "integer",
    "page_size": "integer",
    "is_encrypted": "boolean",
    "if_version": "bigint",
}


# Types of resources that are Superset's own, which HTTP does not reach, and the
# one among them that secrets of extensions have.
RESERVED_TYPES = "superset."
SECRETS = {"resource_type": "superset.secrets", "resource_uuid": "secrets"}


def is_reserved(resource_type: str) -> bool:
    """Is a type of resources Superset's own, or does it look like that?"""
    looks_like = unicodedata.normalize("NFKC", resource_type).casefold()
    visible = (c for c in looks_like if unicodedata.category(c)[0] in "LMNPS")
    return "".join(visible).startswith(RESERVED_TYPES)


@dataclass(frozen=True)
class Entry:
    """What the store knows of an entry; its value is only in what `get` gives."""

    key: str
    uuid: UUID
    value_type: str
    category: str | None
    description: str | None
    is_encrypted: bool
    user_fk: int | None
    value_size: int | None
    version: int
    created_on: datetime | None
    changed_on: datetime | None

    def __getattr__(self, name: str) -> Any:
        if name == "value":
            raise AttributeError(
                f"the value of {self.key!r} was not read: get and get_value read one"
            )
        raise AttributeError(f"an entry has no {name!r}")


@dataclass(frozen=True)
class EntryWithValue(Entry):
    """An entry and its value, decrypted."""

    value: bytes


# The columns of an entry, in the order of its fields.
_ENTRY = ", ".join(field.name for field in fields(Entry))


def call(function: str, columns: str = "*", **arguments: Any) -> list[Any]:
    """Call a set-returning or scalar function of the extension; give its rows."""
    if db.session.get_bind().dialect.name != "postgresql":
        raise StorageUnavailable("the metadata database is not PostgreSQL")
    for name, argument in arguments.items():
        _check_text(name, argument)
    passed = ", ".join(
        f"{name} => CAST(%({name})s AS {_TYPES.get(name, 'text')})"
        for name in arguments
    )
    # For psycopg2 itself: text() would be parsed and compiled at each call.
    statement = f"SELECT {columns} FROM {qualified(function)}({passed})"
    try:
        connection = db.session.connection()
        _check_encoding(connection, arguments)
        hand_over(connection, function, arguments)
        return connection.exec_driver_sql(statement, arguments).all()
    except SQLAlchemyError as error:
        raise from_database(error) from None


def qualified(function: str) -> str:
    """Give a function's name with the extension's schema."""
    quote = db.session.get_bind().dialect.identifier_preparer.quote
    return f"{quote(current_app.config['EXTENSION_STORAGE_SCHEMA'])}.{function}"


def _check_text(name: str, argument: Any) -> None:
    """Refuse text that no PostgreSQL text can hold."""
    if isinstance(argument, str):
        if "\0" in argument:
            raise InvalidArgument(f"{name} contains a NUL character", "22023")
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(
                f"{name} contains half a surrogate pair", "22023"
            ) from None


def _check_encoding(connection: Any, arguments: dict[str, Any]) -> None:
    """Refuse text that the database or its client, not being UTF-8, cannot hold."""
    psycopg = connection.connection.dbapi_connection
    # A server of no encoding takes all bytes; psycopg2 takes it for ASCII.
    server = psycopg.get_parameter_status("server_encoding").replace("SQL_ASCII", "")
    for encoding in {server, psycopg.encoding} - {"", "UTF8"}:
        for name, argument in arguments.items():
            if isinstance(argument, str):
                try:
                    argument.encode(encodings.get(encoding, "utf_8"))
                except UnicodeEncodeError:
                    raise InvalidArgument(
                        f"{name} has a character that the metadata database cannot"
                        f" hold: its encoding is {encoding}",
                        "22P05",
                    ) from None


class ExtensionStorageDAO:
    """Read and write the entries of an extension, `publisher.name`.

    Without `user_fk` and resource an entry is global; a resource entry with
    `user_fk` is that user's own. Errors are those of `errors.py`.
    """

    @staticmethod
    def get(
        extension_id: str,
        key: str,
        *,
        user_fk: int | None = None,
        resource_type: str | None = None,
        resource_uuid: str | None = None,
    ) -> EntryWithValue | None:
        """Give an entry with its value, or None where there is none."""
        rows = call(
            "ext_storage_get_entry",
            f"{_ENTRY}, value",
            extension_id=extension_id,
            key=key,
            user_fk=user_fk,
            resource_type=resource_type,
            resource_uuid=resource_uuid,
        )
        if not rows:
            return None
        *fields, value = rows[0]
        return EntryWithValue(*fields, bytes(value))

    @staticmethod
    def get_value(
        extension_id: str,
        key: str,
        *,
        user_fk: int | None = None,
        resource_type: str | None = None,
        resource_uuid: str | None = None,
    ) -> bytes | None:
        """Give the value of an entry, decrypted, or None where there is none."""
        ((value,),) = call(
            "ext_storage_get",
            extension_id=extension_id,
            key=key,
            user_fk=user_fk,
            resource_type=resource_type,
            resource_uuid=resource_uuid,
        )
        return None if value is None else bytes(value)

    @staticmethod
    def set(
        extension_id: str,
        key: str,
        value: bytes,
        value_type: str = "application/json",
        category: str | None = None,
        description: str | None = None,
        is_encrypted: bool | None = None,
        *,
        user_fk: int | None = None,
        resource_type: str | None = None,
        resource_uuid: str | None = None,
        if_version: int | None = None,
        actor_fk: int | None = None,
    ) -> Entry:
        """Make an entry or replace its value, type, category and description.

        `is_encrypted=None` keeps what the entry has, which is False for a new
        one. `if_version` writes only over that version, 0 only a new entry.
        `actor_fk` is noted as who did it, else the current user.
        """
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise InvalidArgument("value must be bytes", "22023")
        if memoryview(value).nbytes > MAX_VALUE_SIZE:
            raise ValueTooLarge(
                f"value has {memoryview(value).nbytes} bytes, more than the"
                f" {MAX_VALUE_SIZE} that a value may have",
                "54000",
            )
        (row,) = call(
            "ext_storage_set",
            _ENTRY,
            extension_id=extension_id,
            key=key,
            value=value,
            value_type=value_type,
            user_fk=user_fk,
            resource_type=resource_type,
            resource_uuid=resource_uuid,
            category=category,
            description=description,
            is_encrypted=is_encrypted,
            actor_fk=get_user_id() if actor_fk is None else actor_fk,
            if_version=if_version,
        )
        return Entry(*row)

    @staticmethod
    def delete(
        extension_id: str,
        key: str,
        *,
        user_fk: int | None = None,
        resource_type: str | None = None,
        resource_uuid: str | None = None,
        if_version: int | None = None,
    ) -> bool:
        """Delete an entry; True if there was one."""
        ((deleted,),) = call(
            "ext_storage_delete",
            extension_id=extension_id,
            key=key,
            user_fk=user_fk,
            resource_type=resource_type,
            resource_uuid=resource_uuid,
            if_version=if_version,
        )
        return deleted

    @classmethod
    def list_global(cls, extension_id: str, **selection: Any) -> list[Entry]:
        """List global entries; category, key_prefix, page as in list_scope."""
        return cls.list_scope(extension_id=extension_id, **selection)

    @classmethod
    def list_user(
        cls, extension_id: str, user_fk: int, **selection: Any
    ) -> list[Entry]:
        """List a user's entries; category, key_prefix, page as in list_scope."""
        if user_fk is None:
            raise InvalidArgument("user_fk must not be None", "22004")
        return cls.list_scope(extension_id=extension_id, user_fk=user_fk, **selection)

    @classmethod
    def list_resource(
        cls,
        extension_id: str,
        resource_type: str,
        resource_uuid: str,
        user_fk: int | None = None,
        **selection: Any,
    ) -> list[Entry]:
        """List a resource's shared entries, or a user's own on it."""
        if resource_type is None or resource_uuid is None:
            raise InvalidArgument("a resource has a type and a uuid", "22004")
        return cls.list_scope(
            extension_id=extension_id,
            resource_type=resource_type,
            resource_uuid=resource_uuid,
            user_fk=user_fk,
            **selection,
        )

    @staticmethod
    def list_scope(
        *,
        extension_id: str,
        user_fk: int | None = None,
        resource_type: str | None = None,
        resource_uuid: str | None = None,
        category: str | None = None,
        key_prefix: str | None = None,
        page: int | None = None,
        page_size: int | None = None,
    ) -> list[Entry]:
        """List the entries of the scope that the arguments name, by key.

        All of them, or a page, which counts from 0 and has 25 entries unless
        `page_size` says otherwise.
        """
        paged = page is not None or page_size is not None
        size = 25 if page_size is None else page_size
        entries: list[Entry] = []
        while True:
            rows = call(
                "ext_storage_list",
                _ENTRY,
                extension_id=extension_id,
                user_fk=user_fk,
                resource_type=resource_type,
                resource_uuid=resource_uuid,
                category=category,
                key_prefix=key_prefix,
                page=page or 0,
                page_size=size if paged else LIST_STEP,
                after_key=entries[-1].key if entries else None,
            )
            entries += (Entry(*row) for row in rows)
            if paged or len(rows) < LIST_STEP:
                return entries

    @staticmethod
    def count(
        extension_id: str,
        *,
        user_fk: int | None = None,
        resource_type: str | None = None,
        resource_uuid: str | None = None,
        category: str | None = None,
    ) -> int:
        """Count the entries of a scope."""
        ((entries,),) = call(
            "ext_storage_count",
            extension_id=extension_id,
            user_fk=user_fk,
            resource_type=resource_type,
            resource_uuid=resource_uuid,
            category=category,
        )
        return entries
