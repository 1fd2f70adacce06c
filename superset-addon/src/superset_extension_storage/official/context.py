"""Which extension's code runs, and for whom."""

from __future__ import annotations

import re
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from flask import current_app, has_request_context, request
from flask.globals import request_ctx
from sqlalchemy import select
from superset.extensions import db, security_manager
from superset.extensions.context import get_current_extension_context
from superset.extensions.utils import get_extensions
from superset_core.extensions.types import BaseExtension, Manifest

from .persistent import UserPersistentState
from .secrets import UserSecretsState
from .sessions import current_user_id
from .state import MAX_INTEGER


@dataclass(frozen=True)
class ExtensionStorage:
    """The storage of a context's extension."""

    _context: ExtensionContext

    @property
    def persistent(self) -> UserPersistentState:
        """What the database keeps."""
        return UserPersistentState(self._context)

    @property
    def secrets(self) -> UserSecretsState:
        """What the database keeps for the back end alone, encrypted."""
        return UserSecretsState(self._context)

    @property
    def ephemeral(self) -> Any:
        """Superset 7's cache."""
        raise NotImplementedError(
            "storage.ephemeral is a cache of Superset 7, which this Superset does not"
            " have; storage.persistent and storage.secrets are there"
        )


@dataclass(frozen=True)
class ExtensionContext:
    """An extension, and the user that was named for it, if any was."""

    _manifest: BaseExtension
    named_user_id: int | None = None

    @property
    def extension(self) -> BaseExtension:
        """The manifest, as a copy: what is changed in it concerns nobody else."""
        return self._manifest.model_copy(deep=True)

    @property
    def extension_id(self) -> str:
        """The id, without the copy."""
        return self._manifest.id

    @property
    def user_id(self) -> int | None:
        """The user that was named, else the one of the request, None for neither."""
        named = self.named_user_id
        return current_user_id() if named is None else named

    @property
    def storage(self) -> ExtensionStorage:
        """The extension's storage; it can be used where this context is current."""
        return ExtensionStorage(self)


@dataclass(eq=False)
class _Entered:
    """A context that extension_context() has entered, and the request, if in one."""

    context: ExtensionContext
    request: weakref.ref[Any] | None
    left: bool = False

    def is_of(self, request: Any) -> bool:
        """May code of a request, or of none, run as this?"""
        if self.left:
            return False
        return (None if self.request is None else self.request()) is request

    def is_over(self) -> bool:
        return self.left or (self.request is not None and self.request() is None)


# What was entered, in that order.  Copies of it, in threads and in generators that
# are left late, have what was left: that is noted in it.
_entered: ContextVar[tuple[_Entered, ...]] = ContextVar(
    "extension_storage_contexts", default=()
)


def get_context() -> ExtensionContext:
    """Return the context of the extension whose code runs.

    Raises RuntimeError where that is no extension's.
    """
    request = _request()
    for entered in reversed(_entered.get()):
        if entered.is_of(request):
            return entered.context
    if loading := get_current_extension_context():
        return ExtensionContext(loading.manifest)
    if manifest := _manifest_of_request():
        return ExtensionContext(manifest)
    raise RuntimeError(
        "get_context() must be called in an extension: while it is being loaded, in a"
        " request to its API, or in an extension_context() that has not been left and"
        " was entered in the current request, or outside of any if there is none"
    )


@contextmanager
def extension_context(
    extension: Manifest | str, user_id: int | None = None
) -> Iterator[Any]:
    """Run the block as code of an extension, for a user.

    For what neither a request nor the loading of an extension tells: threads,
    tasks and commands. The extension is its manifest or the id of one that is
    installed; without a user the one of the request or of `override_user`
    stays. Contexts nest, and each thread has its own. One is valid in the request
    in which it was entered, or outside of requests, until it is left.
    """
    if isinstance(user_id, bool) or not isinstance(user_id, (int, type(None))):
        raise TypeError("user_id must be the integer id of a user")
    if not isinstance(extension, (str, Manifest)):
        raise TypeError("extension must be a manifest or the id of an extension")
    manifest = _installed(extension) if isinstance(extension, str) else extension
    if manifest is None:
        raise LookupError(f"no extension {ascii(extension)} is installed")
    if user_id is not None and not _is_user(user_id):
        raise LookupError(f"there is no user {user_id}")
    if sys.modules["superset_core.extensions.context"] is not sys.modules[__name__]:
        from superset.extensions.context import extension_context as superset_s_own

        with superset_s_own(manifest, user_id=user_id) as context:
            yield context
        return
    context = ExtensionContext(manifest.model_copy(deep=True), user_id)
    request = _request()
    entered = _Entered(context, None if request is None else weakref.ref(request))
    _entered.set((*(e for e in _entered.get() if not e.is_over()), entered))
    try:
        yield context
    finally:
        entered.left = True  # wherever it has been copied to
        _entered.set(tuple(e for e in _entered.get() if not e.is_over()))


def _is_user(user_id: int) -> bool:
    """Is there a user?  Nothing would delete the entries of one that is not."""
    if not 0 < user_id <= MAX_INTEGER:
        return False
    users = security_manager.user_model.__table__
    asked = select(users.c.id).where(users.c.id == user_id)
    session = db.session() if db.session.registry.has() else None
    if session is not None and session.in_transaction():
        return session.connection().execute(asked).first() is not None
    with db.engine.connect() as connection:  # so that no transaction stays open
        return connection.execute(asked).first() is not None


def _request() -> Any:
    return request_ctx._get_current_object() if has_request_context() else None


def _manifest_of_request() -> Manifest | None:
    """Tell to whose API the current request is.

    Superset notes it on the classes that extensions register with its `@api`;
    other views are told by the path that is reserved for their extension.
    """
    if not has_request_context() or request.url_rule is None:
        return None
    view = current_app.view_functions.get(request.endpoint)
    metadata = getattr(getattr(view, "__self__", None), "_api_metadata", None)
    if metadata and metadata["context"]:
        return metadata["context"].manifest
    path = re.match(r"/extensions/([^/<]+)/([^/<]+)(?:/|$)", request.url_rule.rule)
    return _installed(".".join(path.groups())) if path else None


def _installed(extension_id: str) -> Manifest | None:
    """Return the manifest of an extension.

    Once found it is kept: Superset reads all bundles to list them, and code of
    an extension that is removed meanwhile runs on.
    """
    known = current_app.extensions.setdefault("extension_storage_manifests", {})
    if extension_id not in known:
        for found, extension in get_extensions().items():
            known[found] = extension.manifest
    return known.get(extension_id)
