"""Values that stay, for a user of an extension or for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol
from uuid import UUID

from ..dao import EntryWithValue, is_reserved
from ..errors import (
    ExtensionStorageError,
    InvalidArgument,
    ValueTooLarge,
    ValueUndecryptable,
)
from .codecs import JSON, ValueUndecodable, codec_of
from .sessions import reads
from .state import State, UserState, newest_first, with_values

# A page of more than one entry has no more bytes of values.
MAX_LIST_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True)
class PersistentSetOptions:
    """How a value is stored."""

    encrypt: bool = False
    codec: str = JSON


@dataclass(frozen=True)
class PersistentListOptions:
    """Which page is listed, from 0, and of which resource, if of one."""

    page: int
    page_size: int
    resource_type: str | None = None
    resource_uuid: str | None = None


_LIST_OPTIONS = [option.name for option in fields(PersistentListOptions)]


@dataclass(frozen=True)
class PersistentListEntry:
    """An entry of a page."""

    key: str
    value: Any
    codec: str


@dataclass(frozen=True)
class PersistentListResult:
    """A page, and how many entries there are on all pages."""

    entries: list[PersistentListEntry] = field(default_factory=list)
    count: int = 0


class PersistentStateAccessor(Protocol):
    """What annotations call the entries of a scope: `PersistentState`, its `.shared`."""

    def get(self, key: str) -> Any: ...

    def set(
        self, key: str, value: Any, options: PersistentSetOptions | None = None
    ) -> None: ...

    def list(self, options: PersistentListOptions) -> PersistentListResult: ...

    def remove(self, key: str) -> None: ...


class UnreadableListEntry(PersistentListEntry):
    """An entry of a page whose value cannot be read, and says why when asked."""

    def __init__(self, key: str, codec: str, error: ExtensionStorageError) -> None:
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "codec", codec)
        object.__setattr__(self, "error", error)

    @property
    def value(self) -> Any:
        raise self.error

    # Those of a data class would ask for the value.
    __eq__ = object.__eq__
    __hash__ = object.__hash__
    __repr__ = object.__repr__


class SharedPersistentState(State):
    """What all users of the extension share."""

    def get(self, key: str, *, pickle: bool = False) -> Any:
        """Return the value of a key, or None if there is none.

        With `pickle` one that was stored by the codec pickle, too.
        """
        return self._get(key, pickle)

    def set(
        self, key: str, value: Any, options: PersistentSetOptions | None = None
    ) -> None:
        """Store a value, and commit unless a transaction of the caller is open.

        An entry that is encrypted stays so, whatever the options say.
        """
        options = PersistentSetOptions() if options is None else options
        # Superset 7 has classes of its own with these fields.
        if not hasattr(options, "codec") or not hasattr(options, "encrypt"):
            raise InvalidArgument("options must be PersistentSetOptions", "22023")
        if not isinstance(options.encrypt, bool):
            raise InvalidArgument("encrypt must be True or False", "22023")
        self._set(key, value, options.codec, options.encrypt)

    @reads
    def list(
        self, options: PersistentListOptions, *, pickle: bool = False
    ) -> PersistentListResult:
        """Return a page of the entries, the newest change first.

        One whose value cannot be read raises the error when its value is used.
        """
        if not all(hasattr(options, name) for name in _LIST_OPTIONS):
            raise InvalidArgument("options must be PersistentListOptions", "22023")
        for name in ("resource_type", "resource_uuid"):
            if not isinstance(getattr(options, name), (str, UUID, type(None))):
                raise InvalidArgument(f"{name} must be a string", "22023")
        if options.resource_type is not None and is_reserved(
            str(options.resource_type)
        ):
            raise InvalidArgument("resource_type is reserved", "22023")
        scope = {
            **self._scope(),
            "resource_type": options.resource_type,
            "resource_uuid": options.resource_uuid,
        }
        page, count = newest_first(scope, options.page, options.page_size)
        size = sum(entry.value_size or 0 for entry in page)
        if len(page) > 1 and size > MAX_LIST_BYTES:
            raise ValueTooLarge(
                f"the values of this page have {size} bytes, more than"
                f" {MAX_LIST_BYTES}: ask for a smaller page_size"
            )
        listed = [
            self._listed(entry, scope, pickle) for entry in with_values(scope, page)
        ]
        return PersistentListResult(listed, count)

    def remove(self, key: str) -> None:
        """Remove an entry if there is one, and commit as `set` does."""
        self._remove(key)

    def _listed(
        self, entry: EntryWithValue, scope: dict[str, Any], unpickle: bool
    ) -> PersistentListEntry:
        codec = codec_of(entry)
        try:
            if entry.problem is not None:
                raise ValueUndecryptable(
                    f"the value of {entry.key!r} cannot be decrypted: {entry.problem}",
                    "ES001",
                )
            value = self._decode(entry, {**scope, "key": entry.key}, unpickle)
        except (ValueUndecryptable, ValueUndecodable) as error:
            return UnreadableListEntry(entry.key, codec, error)
        return PersistentListEntry(entry.key, value, codec)


class UserPersistentState(UserState, SharedPersistentState):
    """What is the user's own."""

    @property
    def shared(self) -> SharedPersistentState:
        """What all users of the extension share."""
        return SharedPersistentState(self._owner)


class PersistentState:
    """What is the user's own, and `.shared` what all users share."""

    get = staticmethod(UserPersistentState().get)
    set = staticmethod(UserPersistentState().set)
    list = staticmethod(UserPersistentState().list)
    remove = staticmethod(UserPersistentState().remove)
    shared: ClassVar[SharedPersistentState] = SharedPersistentState()
