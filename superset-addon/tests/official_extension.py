"""An extension's back end that knows Superset's official API and nothing else.

It is bundled and loaded by the tests, which call its storage over HTTP.
"""

import datetime
import threading
import time
from contextvars import copy_context
from typing import Any

from flask import Response, request
from flask_appbuilder.api import expose, permission_name, protect, safe
from superset_core.extensions.context import get_context
from superset_core.extensions.storage.persistent import (
    PersistentListOptions,
    PersistentSetOptions,
    PersistentState,
)
from superset_core.extensions.storage.secrets import SecretsState
from superset_core.rest_api.api import RestApi
from superset_core.rest_api.decorators import api

context = get_context()
context.storage.persistent.shared.set("loaded", context.extension.version)
try:
    context.storage.persistent.get("loaded")
except RuntimeError:
    context.storage.persistent.shared.set("user while loading", None)

STATES = {
    "persistent": lambda: get_context().storage.persistent,
    "shared": lambda: get_context().storage.persistent.shared,
    "secrets": lambda: get_context().storage.secrets,
    "PersistentState": lambda: PersistentState,
    "PersistentState.shared": lambda: PersistentState.shared,
    "SecretsState": lambda: SecretsState,
    "of the loading": lambda: context.storage.persistent,
}


def call(asked: dict[str, Any]) -> Any:
    """Do one call of a state; bytes and moments stand in JSON as text."""
    state, key, value = STATES[asked["state"]](), asked.get("key"), asked.get("value")
    if asked["call"] == "list":
        found = state.list(PersistentListOptions(**asked["options"]))
        return {
            "entries": [[e.key, plain(e.value), e.codec] for e in found.entries],
            "count": found.count,
        }
    if asked["call"] != "set":
        return plain(getattr(state, asked["call"])(key))
    if "options" not in asked:
        return state.set(key, value)
    options = PersistentSetOptions(**asked["options"])
    if options.codec == "binary":
        value = value.encode("latin-1")
    if options.codec == "pickle":
        value = datetime.date.fromisoformat(value)
    return state.set(key, value, options)


def plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value.isoformat() if isinstance(value, datetime.date) else value


@api(id="calls", name="Calls", description="Calls of the storage")
class CallsApi(RestApi):
    """Does what it is told to do with the storage."""

    class_permission_name = "ExtensionStorage"

    @expose("/call", methods=("POST",))
    @protect()
    @safe
    @permission_name("read")
    def call(self) -> Response:
        """Do a call."""
        return self.response(200, result=call(request.json))

    @expose("/thread", methods=("POST",))
    @protect()
    @safe
    @permission_name("read")
    def thread(self) -> Response:
        """Do a call in a thread that has the context, and one in one without."""
        asked, done = request.json, []

        def work() -> None:
            try:
                done.append(call(asked))
            except RuntimeError as error:
                done.append(type(error).__name__)

        given = copy_context()
        for target in (lambda: given.run(work), work):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        return self.response(200, result=done)

    @expose("/wait", methods=("POST",))
    @protect()
    @safe
    @permission_name("read")
    def wait(self) -> Response:
        """Say that it is here, wait for an answer, and do a call."""
        state = get_context().storage.persistent.shared
        state.set("here", True)
        while state.get("go on") is None:
            time.sleep(0.05)
        return self.response(200, result=call(request.json))

    @expose("/who", methods=("GET",))
    @protect()
    @safe
    @permission_name("read")
    def who(self) -> Response:
        """Tell what the context says."""
        now = get_context()
        fields = ("id", "publisher", "name", "version", "displayName")
        return self.response(
            200,
            extension={field: getattr(now.extension, field) for field in fields},
            user_id=now.user_id,
        )
