"""The SQL functions of the extension as Python calls over Superset's session.

Nothing here flushes or commits: the caller owns the transaction.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from flask import current_app
from psycopg2.extensions import encodings
from sqlalchemy.exc import SQLAlchemyError
from superset.extensions import db
from superset.utils.core import get_user_id

from .errors import (
    InvalidArgument,
    KeyTaken,
    StorageUnavailable,
    ValueTooLarge,
    from_database,
)
from .keys import handed_over, is_psycopg2

MAX_VALUE_SIZE = 16777215  # the maximum of extension_storage.max_value_size

# Entries that a list without a page reads at once.
LIST_STEP = 1000

# Bytes of values that list_values gives at once, unless it is told another number.
LIST_BYTES = 1048576

_TYPES = {
    "value": "bytea",
    "keys": "text[]",
    "new_values": "bytea[]",
    "value_types": "text[]",
    "categories": "text[]",
    "descriptions": "text[]",
    "if_versions": "bigint[]",
    "after_changed_on": "timestamp",
    "max_bytes": "integer",
    "newest_first": "boolean",
    "user_fk": "integer",
    "actor_fk": "integer",
    "page": "integer",
    "page_size": "integer",
    "is_encrypted": "boolean",
    "ext_storage_set_many.is_encrypted": "boolean[]",
    "if_version": "bigint",
}

# The arguments that are values: they come last in a statement, behind as many blanks
# as the server keeps of one, by default, for pg_stat_activity and for its log, where
# it names the statements of a deadlock or of a process that has crashed.
_VALUES = ("value", "new_values")
BEYOND_SIGHT = " " * 1024

# What an argument of an SQL type, or an element of it, is in Python.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "text": ((str,), "a string"),
    "bytea": ((bytes, bytearray, memoryview), "bytes"),
    "integer": ((int,), "an integer"),
    "bigint": ((int,), "an integer"),
    "boolean": ((bool,), "True or False"),
    "timestamp": ((datetime, str), "a datetime, or a text that an entry has as time"),
}
_LIMITS = {"integer": 2**31, "bigint": 2**63}


# Types of resources that are Superset's own, which HTTP does not reach, and the
# one among them that secrets of extensions have.
RESERVED_TYPES = "superset."
SECRETS = {"resource_type": "superset.secrets", "resource_uuid": "secrets"}

# The type of values that are signed for their address.
PICKLED = "application/x-python-pickle"


def is_reserved(resource_type: str) -> bool:
    """Is a type of resources Superset's own, or does it look like that?"""
    looks_like = unicodedata.normalize("NFKC", resource_type).casefold()
    visible = (c for c in looks_like if unicodedata.category(c)[0] in "LMNPS")
    return "".join(visible).startswith(RESERVED_TYPES)


@dataclass(frozen=True)
class Entry:
    """What the store knows of an entry; its value is only in what `get` gives.

    A time that no datetime can hold is the text that PostgreSQL has for it.
    """

    key: str
    uuid: UUID
    value_type: str
    category: str | None
    description: str | None
    is_encrypted: bool
    user_fk: int | None
    value_size: int | None
    version: int
    created_on: datetime | str | None
    changed_on: datetime | str | None

    def __getattr__(self, name: str) -> Any:
        if name == "value":
            raise AttributeError(
                f"the value of {self.key!r} was not read: get and get_value read one"
            )
        raise AttributeError(f"an entry has no {name!r}")


@dataclass(frozen=True)
class EntryWithValue(Entry):
    """An entry and its value, decrypted, or what the problem is with it."""

    value: bytes | None
    problem: str | None = None


# How PostgreSQL's JSON spells the times that a datetime cannot hold.
SPELLED = re.compile(
    r"-?infinity|\d{4,6}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?: BC)?"
)


def spelled(time: str) -> str:
    """Have SQL give a time as text, which JSON spells alike in every session.

    psycopg2 raises an error where no datetime can hold a time, or gives another.
    """
    json_of = f"pg_catalog.to_json({time})"
    return f"{json_of} OPERATOR(pg_catalog.#>>) CAST(ARRAY[] AS pg_catalog.text[])"


def moment(text: str | None) -> datetime | str | None:
    """Return what was spelled as a datetime, or as it is if none can hold it."""
    if text is None:
        return None
    try:
        # Python 3.10 reads microseconds, and no shorter fraction.
        return datetime.fromisoformat(
            re.sub(r"(?<=\.)\d+", lambda fraction: fraction[0].ljust(6, "0"), text)
        )
    except ValueError:
        return text


# The columns of an entry, in the order of its fields, and which of them are times.
_TIMES = [
    number
    for number, field in enumerate(fields(Entry))
    if field.name in ("created_on", "changed_on")
]
_COLUMNS = [
    f"{spelled(field.name)} AS {field.name}" if number in _TIMES else field.name
    for number, field in enumerate(fields(EntryWithValue))
]
_ENTRY = ", ".join(_COLUMNS[: len(fields(Entry))])
_ENTRY_WITH_VALUE = ", ".join(_COLUMNS)

# The fields of an entry for set_many: as set has them, and its arrays of them.
_NEW_ENTRY = {
    "key": "keys",
    "value": "new_values",
    "value_type": "value_types",
    "category": "categories",
    "description": "descriptions",
    "is_encrypted": "is_encrypted",
    "if_version": "if_versions",
}


def call(function: str, columns: str = "*", **arguments: Any) -> list[Any]:
    """Call a function of the extension that gives rows; give them."""
    return _select(function, f"{columns} FROM", arguments)


def call_scalar(function: str, **arguments: Any) -> Any:
    """Call a function of the extension that gives a value; give it.

    In FROM the executor would keep it, and write a large one to a temporary file.
    """
    return _select(function, "", arguments)[0][0]


def key_status() -> list[SimpleNamespace]:
    """Return the rows of ext_storage_key_status, with the columns that it has."""
    name = "ext_storage_key_status"
    rows = call(name, f"CAST(pg_catalog.to_json({name}) AS pg_catalog.text)")
    keys = [SimpleNamespace(**json.loads(row)) for (row,) in rows]
    for key in keys:
        key.oldest, key.newest = map(_utc, (key.oldest, key.newest))
    return keys


def _utc(text: str | None) -> datetime | str | None:
    """Return a time of the session's zone in UTC."""
    time = moment(text)
    try:
        return time.astimezone(timezone.utc) if isinstance(time, datetime) else time
    except OverflowError:
        return text


def _select(function: str, what: str, arguments: dict[str, Any]) -> list[Any]:
    check_dialect()
    if isinstance(arguments.get("resource_uuid"), UUID):
        arguments["resource_uuid"] = str(arguments["resource_uuid"])
    types = {name: _type(function, name) for name in arguments}
    for name, argument in arguments.items():
        _check_type(name, argument, types[name])
        _check_text(name, argument)
    # What the server shows of a statement must not reach the values.
    passed = ", ".join(
        f"{BEYOND_SIGHT * (name in _VALUES)}{name} => CAST(%({name})s AS {types[name]})"
        for name in sorted(types, key=_VALUES.__contains__)
    )
    # For psycopg2 itself: text() would be parsed and compiled at each call.
    statement = f"SELECT {what} {qualified(function)}({passed})"
    with database_errors():
        connection = db.session.connection()
        _check_encoding(connection, arguments)
        with handed_over(connection, function, arguments):
            return connection.exec_driver_sql(statement, arguments).all()


def check_dialect() -> None:
    """Refuse a metadata database, or a driver, that the store cannot use."""
    dialect = db.session.get_bind().dialect
    if dialect.name != "postgresql":
        raise StorageUnavailable("the metadata database is not PostgreSQL")
    if not is_psycopg2(dialect):
        raise StorageUnavailable(
            f"the driver of the metadata database is {dialect.driver}",
            action="Have SQLALCHEMY_DATABASE_URI begin with postgresql+psycopg2://.",
        )


@contextmanager
def database_errors() -> Iterator[None]:
    """Have what a statement raises be an error of this package."""
    try:
        yield
    except SQLAlchemyError as error:
        raise from_database(error) from None
    except UnicodeDecodeError:  # the bytes, which may be a secret, are in that error
        raise StorageUnavailable(
            "the store has text that is not in the encoding of the connection",
            action="The database has the encoding SQL_ASCII, that is none, and another"
            " program has stored that text: correct it.",
        ) from None


@contextmanager
def savepoint() -> Iterator[None]:
    """Keep the caller's transaction usable where what is in it fails.

    The session's own savepoints would flush what the caller has changed.
    """
    with database_errors():
        begun = db.session.connection().begin_nested()
    with begun:
        yield


def qualified(function: str) -> str:
    """Return a function's name with the extension's schema."""
    quote = db.session.get_bind().dialect.identifier_preparer.quote
    return f"{quote(current_app.config['EXTENSION_STORAGE_SCHEMA'])}.{function}"


def _type(function: str, name: str) -> str:
    """Return the SQL type of an argument."""
    # set_many has several of what set has one of
    return _TYPES.get(f"{function}.{name}") or _TYPES.get(name, "text")


def _parts(name: str, argument: Any) -> Iterator[tuple[str, Any]]:
    """Return an argument, or the elements of one that is a list, with their names."""
    if isinstance(argument, list):
        for number, element in enumerate(argument, 1):
            yield f"{name}[{number}]", element
    else:
        yield name, argument


def _texts(name: str, argument: Any) -> Iterator[tuple[str, str]]:
    """Return the texts in an argument, with the names of where they are."""
    return (part for part in _parts(name, argument) if isinstance(part[1], str))


def _check_type(name: str, argument: Any, sql_type: str) -> None:
    """Refuse what PostgreSQL would convert, or psycopg2 could not hand over.

    A number would become a text, True the user 1, and 1.5 the user 2.
    """
    kind = sql_type.removesuffix("[]")
    allowed, expected = _KINDS[kind]
    if isinstance(argument, list) and kind == sql_type:
        raise InvalidArgument(f"{name} must be {expected}, not a list", "22023")
    for where, part in _parts(name, argument):
        if part is None:
            continue
        is_bool = isinstance(part, bool)  # which is a kind of int
        if not isinstance(part, allowed) or (is_bool and bool not in allowed):
            raise InvalidArgument(f"{where} must be {expected}", "22023")
        if kind in _LIMITS and not -_LIMITS[kind] <= part < _LIMITS[kind]:
            raise InvalidArgument(f"{where} is out of range", "22003")
        if kind == "timestamp":
            _check_time(where, part)


def _check_time(name: str, time: datetime | str) -> None:
    """Refuse a time that is no entry's: PostgreSQL would read `now`, or convert."""
    if isinstance(time, str) and not SPELLED.fullmatch(time):
        raise InvalidArgument(f"{name} must be {_KINDS['timestamp'][1]}", "22007")
    if isinstance(time, datetime) and time.tzinfo is not None:
        raise InvalidArgument(f"{name} must be in UTC, without a time zone", "22023")


def _check_text(name: str, argument: Any) -> None:
    """Refuse text that no PostgreSQL text can hold."""
    for where, text in _texts(name, argument):
        if "\0" in text:
            raise InvalidArgument(f"{where} contains a NUL character", "22023")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(
                f"{where} contains half a surrogate pair", "22023"
            ) from None


def _server_encoding(connection: Any) -> str:
    """Return the database's encoding; where a pooler does not tell it, it is asked."""
    psycopg = connection.connection.dbapi_connection
    name = "extension_storage_server_encoding"
    found = psycopg.get_parameter_status("server_encoding") or connection.info.get(name)
    if found is None:
        found = connection.exec_driver_sql("SHOW server_encoding").scalar()
        connection.info[name] = found
    return found


def _check_encoding(connection: Any, arguments: dict[str, Any]) -> None:
    """Refuse text that the database or its client, not being UTF-8, cannot hold."""
    psycopg = connection.connection.dbapi_connection
    # A server of no encoding takes all bytes; psycopg2 takes it for ASCII.
    server = _server_encoding(connection).replace("SQL_ASCII", "")
    for encoding in {server, psycopg.encoding} - {"", "UTF8"}:
        for name, argument in arguments.items():
            for where, text in _texts(name, argument):
                try:
                    text.encode(encodings.get(encoding, "utf_8"))
                except UnicodeEncodeError:
                    raise InvalidArgument(
                        f"{where} has a character that the metadata database cannot"
                        f" hold: its encoding is {encoding}",
                        "22P05",
                    ) from None


def _check_value(name: str, value: Any) -> None:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise InvalidArgument(f"{name} must be bytes", "22023")
    if not memoryview(value).c_contiguous:  # which psycopg2 cannot hand over
        raise InvalidArgument(f"{name} must be bytes in one piece", "22023")
    if memoryview(value).nbytes > MAX_VALUE_SIZE:
        raise ValueTooLarge(
            f"{name} has {memoryview(value).nbytes} bytes, more than the"
            f" {MAX_VALUE_SIZE} that a value may have",
            "54000",
        )


def _encryption_of(
    name: str, is_encrypted: bool | None, resource_type: str | None
) -> bool | None:
    """Return what an entry's `is_encrypted` is to be: True for a secret."""
    if resource_type != SECRETS["resource_type"]:
        return is_encrypted
    if is_encrypted not in (None, True):
        raise InvalidArgument(f"{name} of a secret must be True", "22023")
    return True


def _check_selection(method: str, selection: dict[str, Any]) -> None:
    """Refuse more of a scope than a method's name and arguments say."""
    for name in ("user_fk", "resource_type", "resource_uuid"):
        if selection.get(name) is not None:
            raise InvalidArgument(f"{method} takes no {name}", "22023")


def _list_of(name: str, argument: Any) -> list[Any]:
    """Return an argument as a list; a text would be one of its characters."""
    if isinstance(argument, (str, bytes)) or not isinstance(argument, Sequence):
        raise InvalidArgument(f"{name} must be a list", "22023")
    return list(argument)


def _fields(row: Any) -> list[Any]:
    """Return the fields of an entry, those of _ENTRY first."""
    found = list(row)
    for number in _TIMES:
        found[number] = moment(found[number])
    return found


def _with_values(rows: list[Any]) -> list[EntryWithValue]:
    entries = []
    for row in rows:
        *entry, value, problem = _fields(row)
        value = None if value is None else bytes(value)
        entries.append(EntryWithValue(*entry, value, problem))
    return entries


def uuids_deleted(
    extension_id: str,
    keys: Sequence[str],
    *,
    if_versions: Sequence[int | None] | None,
    **scope: Any,
) -> dict[str, UUID | None]:
    """Delete entries as delete_many does; give the uuid of each that there was."""
    rows = call(
        "ext_storage_delete_many",
        "key, uuid",
        extension_id=extension_id,
        keys=_list_of("keys", keys),
        if_versions=None
        if if_versions is None
        else _list_of("if_versions", if_versions),
        **scope,
    )
    return dict(map(tuple, rows))


# The value of a row, unless it and those before it are more than one may be.
_VALUE_WITHIN = (
    "CASE WHEN pg_catalog.row_number() OVER () OPERATOR(pg_catalog.=) 1"
    " OR pg_catalog.sum(pg_catalog.octet_length(value))"
    " OVER (ROWS UNBOUNDED PRECEDING)"
    f" OPERATOR(pg_catalog.<=) {MAX_VALUE_SIZE} THEN value END"
)


def get_first(
    extension_id: str, keys: Sequence[str], **scope: Any
) -> list[EntryWithValue]:
    """Return entries as get_many does, but only the first values, of 16 MB in all.

    One that is left out is None, without a problem; that of the first entry is not.
    """
    rows = call(
        "ext_storage_get_many",
        f"{_ENTRY}, {_VALUE_WITHIN} AS value, problem",
        extension_id=extension_id,
        keys=_list_of("keys", keys),
        **scope,
    )
    return _with_values(rows)


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
        resource_uuid: str | UUID | None = None,
    ) -> EntryWithValue | None:
        """Return an entry with its value, or None if there is none."""
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
        *entry, value = _fields(rows[0])
        return EntryWithValue(*entry, bytes(value))

    @staticmethod
    def get_value(
        extension_id: str,
        key: str,
        *,
        user_fk: int | None = None,
        resource_type: str | None = None,
        resource_uuid: str | UUID | None = None,
    ) -> bytes | None:
        """Return the value of an entry, decrypted, or None if there is none."""
        value = call_scalar(
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
        resource_uuid: str | UUID | None = None,
        if_version: int | None = None,
        actor_fk: int | None = None,
    ) -> Entry:
        """Make an entry or replace its value, type, category and description.

        `is_encrypted=None` keeps what the entry has, which is False for a new
        one; secrets are always encrypted. `if_version` writes only over that
        version, 0 only a new entry. `actor_fk` is noted as who did it, else the
        current user.
        """
        _check_value("value", value)
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
            is_encrypted=_encryption_of("is_encrypted", is_encrypted, resource_type),
            actor_fk=get_user_id() if actor_fk is None else actor_fk,
            if_version=if_version,
        )
        return Entry(*_fields(row))

    @staticmethod
    def delete(
        extension_id: str,
        key: str,
        *,
        user_fk: int | None = None,
        resource_type: str | None = None,
        resource_uuid: str | UUID | None = None,
        if_version: int | None = None,
    ) -> bool:
        """Delete an entry; True if there was one."""
        return call_scalar(
            "ext_storage_delete",
            extension_id=extension_id,
            key=key,
            user_fk=user_fk,
            resource_type=resource_type,
            resource_uuid=resource_uuid,
            if_version=if_version,
        )

    @staticmethod
    def get_many(
        extension_id: str,
        keys: Sequence[str],
        *,
        user_fk: int | None = None,
        resource_type: str | None = None,
        resource_uuid: str | UUID | None = None,
    ) -> list[EntryWithValue]:
        """Return the entries of up to 1,000 keys that there are, in their order.

        One that cannot be decrypted has `value` None, and `problem` says why.
        """
        return _with_values(
            call(
                "ext_storage_get_many",
                _ENTRY_WITH_VALUE,
                extension_id=extension_id,
                keys=_list_of("keys", keys),
                user_fk=user_fk,
                resource_type=resource_type,
                resource_uuid=resource_uuid,
            )
        )

    @staticmethod
    def set_many(
        extension_id: str,
        entries: Sequence[Mapping[str, Any]],
        *,
        user_fk: int | None = None,
        resource_type: str | None = None,
        resource_uuid: str | UUID | None = None,
        actor_fk: int | None = None,
    ) -> list[Entry]:
        """Make or replace up to 1,000 entries, all or none; no key twice.

        Each has `key`, `value` and what else `set` takes: `value_type`, `category`,
        `description`, `is_encrypted`, `if_version`.
        """
        entries = _list_of("entries", entries)
        for number, entry in enumerate(entries, 1):
            if not isinstance(entry, Mapping) or not {"key", "value"} <= set(entry):
                raise InvalidArgument(
                    f"entries[{number}] must have a key and a value", "22023"
                )
            if surplus := set(entry) - set(_NEW_ENTRY):
                raise InvalidArgument(
                    f"entries[{number}] has an unknown field {min(map(ascii, surplus))}",
                    "22023",
                )
            _check_value(f"value of entries[{number}]", entry["value"])
        new = {
            argument: [entry.get(field) for entry in entries]
            for field, argument in _NEW_ENTRY.items()
        }
        new["is_encrypted"] = [
            _encryption_of(f"is_encrypted of entries[{number}]", flag, resource_type)
            for number, flag in enumerate(new["is_encrypted"], 1)
        ]
        rows = call(
            "ext_storage_set_many",
            _ENTRY,
            extension_id=extension_id,
            user_fk=user_fk,
            resource_type=resource_type,
            resource_uuid=resource_uuid,
            actor_fk=get_user_id() if actor_fk is None else actor_fk,
            **new,
        )
        return [Entry(*_fields(row)) for row in rows]

    @staticmethod
    def delete_many(
        extension_id: str,
        keys: Sequence[str],
        *,
        user_fk: int | None = None,
        resource_type: str | None = None,
        resource_uuid: str | UUID | None = None,
        if_versions: Sequence[int | None] | None = None,
    ) -> dict[str, bool]:
        """Delete up to 1,000 entries, all or none; say of each key if it had one.

        `if_versions` has the version of each, None where it may have any.
        """
        deleted = uuids_deleted(
            extension_id,
            keys,
            user_fk=user_fk,
            resource_type=resource_type,
            resource_uuid=resource_uuid,
            if_versions=if_versions,
        )
        return {key: uuid is not None for key, uuid in deleted.items()}

    @staticmethod
    def delete_prefix(
        extension_id: str,
        key_prefix: str,
        *,
        user_fk: int | None = None,
        resource_type: str | None = None,
        resource_uuid: str | UUID | None = None,
    ) -> int:
        """Delete the entries whose keys start with a prefix; give their number."""
        return call_scalar(
            "ext_storage_delete_prefix",
            extension_id=extension_id,
            key_prefix=key_prefix,
            user_fk=user_fk,
            resource_type=resource_type,
            resource_uuid=resource_uuid,
        )

    @staticmethod
    def rename(
        extension_id: str,
        key: str,
        new_key: str,
        *,
        user_fk: int | None = None,
        resource_type: str | None = None,
        resource_uuid: str | UUID | None = None,
        if_version: int | None = None,
        actor_fk: int | None = None,
    ) -> Entry | None:
        """Give an entry another key; None if there is no entry.

        It keeps its uuid and value. A new key that has an entry is an error, KeyTaken.
        One that was pickled cannot be renamed: it is signed for its key.
        """
        try:
            with savepoint():
                (row,) = call(
                    "ext_storage_rename",
                    _ENTRY,
                    extension_id=extension_id,
                    key=key,
                    new_key=new_key,
                    user_fk=user_fk,
                    resource_type=resource_type,
                    resource_uuid=resource_uuid,
                    if_version=if_version,
                    actor_fk=get_user_id() if actor_fk is None else actor_fk,
                )
                entry = None if row[0] is None else Entry(*_fields(row))
                if entry is not None and entry.value_type == PICKLED:
                    raise InvalidArgument(
                        "a pickled value is signed for its key and cannot be renamed:"
                        " set it with the new key, and delete this one",
                        "22023",
                    )
        except StorageUnavailable as error:
            if error.sqlstate != "42710":  # what else has it, is a fault of the set-up
                raise
            raise KeyTaken(error.message, error.sqlstate) from None
        return entry

    @classmethod
    def list_global(cls, extension_id: str, **selection: Any) -> list[Entry]:
        """List global entries; category, key_prefix, page as in list_scope."""
        _check_selection("list_global", selection)
        return cls.list_scope(extension_id=extension_id, **selection)

    @classmethod
    def list_user(
        cls, extension_id: str, user_fk: int, **selection: Any
    ) -> list[Entry]:
        """List a user's entries; category, key_prefix, page as in list_scope."""
        if user_fk is None:
            raise InvalidArgument("user_fk must not be None", "22004")
        _check_selection("list_user", selection)
        return cls.list_scope(extension_id=extension_id, user_fk=user_fk, **selection)

    @classmethod
    def list_resource(
        cls,
        extension_id: str,
        resource_type: str,
        resource_uuid: str | UUID,
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
        resource_uuid: str | UUID | None = None,
        category: str | None = None,
        key_prefix: str | None = None,
        page: int | None = None,
        page_size: int | None = None,
        newest_first: bool = False,
        after_key: str | None = None,
        after_changed_on: datetime | str | None = None,
    ) -> list[Entry]:
        """List the entries of the scope that the arguments name, by key.

        All of them, or a page, which counts from 0 and has 25 entries unless
        `page_size` says otherwise. With `newest_first` by time of change. Only
        those after an entry that had `after_key` and, with `newest_first`,
        `after_changed_on`.
        """
        paged = page is not None or page_size is not None
        size = 25 if page_size is None else page_size
        if after_changed_on is not None and not newest_first:
            raise InvalidArgument("after_changed_on requires newest_first", "22023")
        entries: list[Entry] = []
        while True:
            after: dict[str, Any] = {"after_key": after_key}
            if newest_first:
                after["after_changed_on"] = after_changed_on
            rows = call(
                "ext_storage_list_newest" if newest_first else "ext_storage_list",
                _ENTRY,
                extension_id=extension_id,
                user_fk=user_fk,
                resource_type=resource_type,
                resource_uuid=resource_uuid,
                category=category,
                key_prefix=key_prefix,
                page=page or 0,
                page_size=size if paged else LIST_STEP,
                **after,
            )
            entries += (Entry(*_fields(row)) for row in rows)
            if paged or len(rows) < LIST_STEP:
                return entries
            after_key, after_changed_on = entries[-1].key, entries[-1].changed_on

    @staticmethod
    def list_values(
        extension_id: str,
        *,
        user_fk: int | None = None,
        resource_type: str | None = None,
        resource_uuid: str | UUID | None = None,
        category: str | None = None,
        key_prefix: str | None = None,
        page: int = 0,
        page_size: int = 25,
        newest_first: bool = False,
        after_key: str | None = None,
        after_changed_on: datetime | str | None = None,
        max_bytes: int = LIST_BYTES,
    ) -> list[EntryWithValue]:
        """List a page of entries with their values, in the order of list_scope.

        It ends before the values have more than `max_bytes`, but not before the
        first. One that cannot be decrypted has `value` None, and `problem` says why.
        """
        return _with_values(
            call(
                "ext_storage_list_values",
                _ENTRY_WITH_VALUE,
                extension_id=extension_id,
                user_fk=user_fk,
                resource_type=resource_type,
                resource_uuid=resource_uuid,
                category=category,
                key_prefix=key_prefix,
                page=page,
                page_size=page_size,
                newest_first=newest_first,
                after_key=after_key,
                after_changed_on=after_changed_on,
                max_bytes=max_bytes,
            )
        )

    @staticmethod
    def count(
        extension_id: str,
        *,
        user_fk: int | None = None,
        resource_type: str | None = None,
        resource_uuid: str | UUID | None = None,
        category: str | None = None,
        key_prefix: str | None = None,
    ) -> int:
        """Count the entries of a scope."""
        return call_scalar(
            "ext_storage_count",
            extension_id=extension_id,
            user_fk=user_fk,
            resource_type=resource_type,
            resource_uuid=resource_uuid,
            category=category,
            key_prefix=key_prefix,
        )
