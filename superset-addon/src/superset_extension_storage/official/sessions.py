"""Whose session a call uses: threads share a request's context, not its session.

`flask.g` is the same in every copy of a context, and so is the flag by which
Superset's transaction() knows that one is open.  The session is the thread's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import Lock
from typing import Any, TypeVar

from flask import Flask, appcontext_pushed, appcontext_tearing_down, g, has_app_context
from sqlalchemy import inspect
from superset.extensions import db
from superset.utils.core import get_user_id
from superset.utils.decorators import transaction

Method = TypeVar("Method", bound=Callable[..., Any])

# For how long a thread waits for a lock while the request that may have it has a
# transaction open.  The request waits for the thread, of which the server knows
# nothing: that wait would have no end.
LOCK_TIMEOUT = "10s"

_THREAD = "_extension_storage_thread"  # in g, the thread that entered the context
_ENDED, _UNKNOWN = object(), object()

_loading_user = Lock()


def install(app: Flask) -> None:
    """Note which thread enters a context of the application."""
    appcontext_pushed.connect(_note_thread, app)
    appcontext_tearing_down.connect(_note_end, app)


def _note_thread(app: Flask, **_: Any) -> None:
    if g.get(_THREAD, _ENDED) is _ENDED:
        setattr(g, _THREAD, db.session.registry.scopefunc())


def _note_end(app: Flask, **_: Any) -> None:
    setattr(g, _THREAD, _ENDED)


def is_guest() -> bool:
    """Does this thread run in a copy of a context that another one has entered?"""
    if not has_app_context():
        return False
    thread = g.get(_THREAD, _UNKNOWN)
    return thread is not _UNKNOWN and thread != db.session.registry.scopefunc()


def reads(method: Method) -> Method:
    """Have a method leave no session behind that nobody else ends."""

    @wraps(method)
    def run(*arguments: Any, **options: Any) -> Any:
        if not is_guest():
            return method(*arguments, **options)
        with _session_of_a_guest():
            return method(*arguments, **options)

    return run


def writes(method: Method) -> Method:
    """Have a method commit, unless this thread's caller has a transaction open."""

    @wraps(method)
    def run(*arguments: Any, **options: Any) -> Any:
        if not is_guest():
            return transaction(on_error=None)(method)(*arguments, **options)
        with _session_of_a_guest():
            try:
                if g.get("in_transaction"):
                    _limit_waiting()
                result = method(*arguments, **options)
                db.session.commit()
            except BaseException:
                db.session.rollback()
                raise
            return result

    return run


@contextmanager
def _session_of_a_guest() -> Iterator[None]:
    """End the session that the thread has now, unless it had begun something."""
    registry = db.session.registry
    in_use = registry.has() and db.session().in_transaction()
    try:
        yield
    finally:
        if not in_use:
            db.session.remove()


def _limit_waiting() -> None:
    db.session.connection().exec_driver_sql(
        "SELECT pg_catalog.set_config('lock_timeout', %(limit)s, true)"
        " WHERE pg_catalog.current_setting('lock_timeout') OPERATOR(pg_catalog.=) '0'",
        {"limit": LOCK_TIMEOUT},
    )


def current_user_id() -> int | None:
    """Return the id of the user of the request or of `override_user`.

    A guest leaves the user as it is: to load what has expired would use the
    session of the thread that waits, and one that it loads would be in its own.
    """
    if not is_guest():
        return get_user_id()
    with _loading_user, _session_of_a_guest():
        loaded = "_login_user" in g
        try:
            user = g.get("user")
            user = getattr(user, "_get_current_object", lambda: user)()
            state = inspect(user, raiseerr=False)
            if state is not None and state.identity:
                return state.identity[0]
            return get_user_id()
        finally:
            if not loaded:
                g.pop("_login_user", None)
