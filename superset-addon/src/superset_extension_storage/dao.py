"""The SQL functions of the extension as Python calls over Superset's session.

Nothing here flushes or commits: the caller owns the transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from flask import current_app
from sqlalchemy.exc import DBAPIError
from superset.extensions import db
from superset.utils.core import get_user_id

from .errors import InvalidArgument, StorageUnavailable, from_database
from .keys import hand_over

_TYPES = {
    "value": "bytea",
    "user_fk": "integer",
    "actor_fk": "integer",
    "page": "integer",
    "page_size": "integer",
    "is_encrypted": "boolean",
    "if_version": "bigint",
}


@dataclass(frozen=True)
class Entry:
    """An entry of the store; lists leave out the value."""

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
    value: bytes | None = None


# The columns of an entry, in the order of its fields; with and without the value.
_ENTRY_AND_VALUE = ", ".join(field.name for field in fields(Entry))
_ENTRY = _ENTRY_AND_VALUE.removesuffix(", value")


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
        hand_over(connection, function, arguments)
        return connection.exec_driver_sql(statement, arguments).all()
    except DBAPIError as error:
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
    ) -> Entry | None:
        """Give an entry with its value, or None where there is none."""
        rows = call(
            "ext_storage_get_entry",
            _ENTRY_AND_VALUE,
            extension_id=extension_id,
            key=key,
            user_fk=user_fk,
            resource_type=resource_type,
            resource_uuid=resource_uuid,
        )
        if not rows:
            return None
        *fields, value = rows[0]
        return Entry(*fields, bytes(value))

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
    ) -> Entry:
        """Make an entry or replace its value, type, category and description.

        `is_encrypted=None` keeps what the entry has, which is False for a new
        one. `if_version` writes only over that version, 0 only a new entry.
        """
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise InvalidArgument("value must be bytes", "22023")
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
            actor_fk=get_user_id(),
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
    def list_global(cls, extension_id: str, **page: Any) -> list[Entry]:
        """List global entries by key: category, key_prefix, page, page_size."""
        return cls.list_scope(extension_id=extension_id, **page)

    @classmethod
    def list_user(cls, extension_id: str, user_fk: int, **page: Any) -> list[Entry]:
        """List a user's entries by key: category, key_prefix, page, page_size."""
        if user_fk is None:
            raise InvalidArgument("user_fk must not be None", "22004")
        return cls.list_scope(extension_id=extension_id, user_fk=user_fk, **page)

    @classmethod
    def list_resource(
        cls,
        extension_id: str,
        resource_type: str,
        resource_uuid: str,
        user_fk: int | None = None,
        **page: Any,
    ) -> list[Entry]:
        """List a resource's shared entries, or a user's own on it."""
        if resource_type is None or resource_uuid is None:
            raise InvalidArgument("a resource has a type and a uuid", "22004")
        return cls.list_scope(
            extension_id=extension_id,
            resource_type=resource_type,
            resource_uuid=resource_uuid,
            user_fk=user_fk,
            **page,
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
        page: int = 0,
        page_size: int = 25,
    ) -> list[Entry]:
        """List the entries of the scope that the arguments name."""
        rows = call(
            "ext_storage_list",
            _ENTRY,
            extension_id=extension_id,
            user_fk=user_fk,
            resource_type=resource_type,
            resource_uuid=resource_uuid,
            category=category,
            key_prefix=key_prefix,
            page=page,
            page_size=page_size,
        )
        return [Entry(*row) for row in rows]

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
