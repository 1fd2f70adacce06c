"""Values for the back end alone, always encrypted."""

from __future__ import annotations

from typing import Any, ClassVar

from ..dao import SECRETS
from .codecs import JSON
from .sessions import reads
from .state import State, UserState, entries_by_key


class SharedSecretsState(State):
    """Secrets of the extension itself."""

    resource = SECRETS

    def get(self, key: str) -> Any:
        """Return a secret, or None if there is none."""
        return self._get(key)

    def set(self, key: str, value: Any) -> None:
        """Store a secret, and commit unless a transaction of the caller is open."""
        self._set(key, value, JSON, encrypt=True)

    def remove(self, key: str) -> None:
        """Remove a secret if there is one, and commit as `set` does."""
        self._remove(key)

    @reads
    def list_names(self) -> list[str]:
        """Return the keys of all secrets in order."""
        return [entry.key for entry in entries_by_key(self._scope())]


class UserSecretsState(UserState, SharedSecretsState):
    """Secrets of the user."""

    @property
    def shared(self) -> SharedSecretsState:
        """Secrets of the extension itself."""
        return SharedSecretsState(self._owner)


class SecretsState:
    """Secrets of the user, and `.shared` those of the extension itself."""

    get = staticmethod(UserSecretsState().get)
    set = staticmethod(UserSecretsState().set)
    remove = staticmethod(UserSecretsState().remove)
    list_names = staticmethod(UserSecretsState().list_names)
    shared: ClassVar[SharedSecretsState] = SharedSecretsState()
