"""What the states of an extension have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from flask import current_app

from ..dao import LIST_STEP, Entry, EntryWithValue, ExtensionStorageDAO, savepoint
from ..errors import InvalidArgument
from . import codecs
from .sessions import current_user_id, reads, writes

if TYPE_CHECKING:
    from .context import ExtensionContext


MAX_INTEGER = 2**31 - 1  # of SQL


class State:
    """Entries of the extension whose code runs, of all users.

    With `owner`, a context, of that context's extension alone: in the context
    of another one each call is an error.
    """

    resource: ClassVar[dict[str, str]] = {}

    def __init__(self, owner: ExtensionContext | None = None) -> None:
        self._owner = owner

    def _scope(self) -> dict[str, Any]:
        return {"extension_id": _extension_of(self._current()), **self.resource}

    def _current(self) -> Any:
        from superset_core.extensions.context import get_context

        current, owner = get_context(), self._owner
        if owner is not None and (
            owner.extension_id != _extension_of(current)
            or owner.named_user_id not in (None, current.user_id)
        ):
            raise RuntimeError(
                f"a context of {owner.extension_id} was used in one of"
                f" {_extension_of(current)} or of another user: call get_context()"
            )
        return current

    def _address(self, key: str) -> dict[str, Any]:
        if not isinstance(key, str):
            raise InvalidArgument("key must be a string", "22023")
        return {**self._scope(), "key": key}

    @reads
    def _get(self, key: str, unpickle: bool = False) -> Any:
        address = self._address(key)
        entry = read(address)
        return None if entry is None else self._decode(entry, address, unpickle)

    def _decode(self, entry: Entry, address: dict[str, Any], unpickle: bool) -> Any:
        allowed = current_app.config["EXTENSION_STORAGE_UNPICKLE"]
        return codecs.decode(
            entry, address, unpickle or address["extension_id"] in allowed
        )

    @writes
    def _set(self, key: str, value: Any, codec: str, encrypt: bool) -> None:
        address = self._address(key)
        encoded = codecs.encode(codec, value, address)
        with savepoint():
            ExtensionStorageDAO.set(
                **address,
                value=encoded,
                value_type=codecs.MIME_TYPES[codec],
                is_encrypted=True if encrypt else None,  # None keeps what it is
                actor_fk=_user_of(self._current()),
            )

    @writes
    def _remove(self, key: str) -> None:
        address = self._address(key)
        with savepoint():
            ExtensionStorageDAO.delete(**address)


class UserState(State):
    """Entries of the extension whose code runs, of the user for whom it runs."""

    def _scope(self) -> dict[str, Any]:
        user_fk = _user_of(self._current())
        if user_fk is None:
            raise RuntimeError(
                "there is no user: use .shared, or name one in extension_context()"
            )
        return {**super()._scope(), "user_fk": user_fk}


def _extension_of(context: Any) -> str:
    # Superset's own contexts have the manifest alone.
    return getattr(context, "extension_id", None) or context.extension.id


def _user_of(context: Any) -> int | None:
    # Superset's own contexts tell a user that was named, no other.
    return current_user_id() if context.user_id is None else context.user_id


def read(address: dict[str, Any]) -> Entry | None:
    with savepoint():
        return ExtensionStorageDAO.get(**address)


def newest_first(
    scope: dict[str, Any], page: int, page_size: int
) -> tuple[list[Entry], int]:
    """Return a page of a scope's entries, without values, and the number of all."""
    if type(page) is not int or type(page_size) is not int:  # True is an int, too
        raise InvalidArgument("page and page_size must be integers", "22023")
    with savepoint():
        entries = ExtensionStorageDAO.list_scope(
            **scope,
            page=min(max(page, 0), MAX_INTEGER),
            page_size=min(max(page_size, 1), MAX_INTEGER),
            newest_first=True,
        )
        return entries, ExtensionStorageDAO.count(**scope)


def with_values(scope: dict[str, Any], entries: list[Entry]) -> list[EntryWithValue]:
    """Read the values of entries, of those that are still there."""
    keys = [entry.key for entry in entries]
    found: list[EntryWithValue] = []
    with savepoint():
        for first in range(0, len(keys), LIST_STEP):
            found += ExtensionStorageDAO.get_many(
                **scope, keys=keys[first : first + LIST_STEP]
            )
    return found


def entries_by_key(scope: dict[str, Any]) -> list[Entry]:
    """Return all entries of a scope, without values."""
    with savepoint():
        return ExtensionStorageDAO.list_scope(**scope)
