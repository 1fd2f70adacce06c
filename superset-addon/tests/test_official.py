"""Superset 7's storage API for extensions, on the Superset of these tests."""

from __future__ import annotations

import datetime
import pickle
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from decimal import Decimal
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import numpy as np
import pandas as pd
import pytest
from werkzeug.datastructures import MultiDict

from bundles import tool
from conftest import END, README, Client, Superset, sql

NOTES, OTHER = "acme.notes", "acme.other-notes"
TABLE = "ext_storage.extension_storage"
BACK_END = Path(__file__).with_name("official_extension.py").read_text()


class Point(NamedTuple):
    """What the encoder makes an object of."""

    x: Any
    y: Any


class Named:
    """Something else of which it does."""

    def __init__(self, columns: dict[Any, Any]) -> None:
        self.columns = columns

    def _asdict(self) -> dict[Any, Any]:
        return self.columns


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two extensions with one source, made by the official command line."""
    folder, made = tmp_path_factory.mktemp("extensions"), {}
    for extension_id in (NOTES, OTHER):
        publisher, name = extension_id.split(".")
        tool(
            *("init", "--no-frontend", "--backend", "--license=Apache-2.0"),
            *(f"--publisher={publisher}", f"--name={name}"),
            *(f"--display-name={name.title()}", "--version=1.2.3"),
            cwd=folder,
        )
        (entry_point,) = (folder / name).glob("backend/src/*/*/entrypoint.py")
        # Superset 6.1 takes no two APIs of one class name.
        entry_point.write_text(
            BACK_END.replace("CallsApi", f"{entry_point.parent.name.title()}Api")
        )
        tool("bundle", cwd=folder / name)
        made[extension_id] = folder / name
    return made


@pytest.fixture
def official(app: Any, bundles: dict[str, Path]) -> Iterator[Any]:
    """The application's context; both extensions are known, neither is loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            app.config, "LOCAL_EXTENSIONS", [str(b) for b in bundles.values()]
        )
        with app.app_context():
            from superset.extensions import db

            import superset_extension_storage.official as official

            yield official
            db.session.rollback()


def rows(columns: str) -> list[Any]:
    """Read what other connections see, by key."""
    return sql(f"SELECT {columns} FROM {TABLE} ORDER BY key")


def stored(key: str) -> tuple[bytes, str, bool]:
    ((value, value_type, encrypted),) = sql(
        f"SELECT value, value_type, is_encrypted FROM {TABLE} WHERE key = %s", key
    )
    return bytes(value), value_type, encrypted


# Contexts


def test_no_context(official: Any) -> None:
    from superset_core.extensions.context import get_context
    from superset_core.extensions.storage.persistent import PersistentState
    from superset_core.extensions.storage.secrets import SecretsState

    with official.extension_context(NOTES, user_id=1):
        pass
    for call in (
        get_context,
        lambda: PersistentState.get("k"),
        lambda: PersistentState.shared.get("k"),
        lambda: PersistentState.set("k", 1),
        lambda: SecretsState.get("k"),
        lambda: SecretsState.shared.list_names(),
    ):
        with pytest.raises(RuntimeError, match="must be called in an extension"):
            call()


def test_context_tells_extension_and_user(official: Any) -> None:
    from superset_core.extensions.context import get_context

    with official.extension_context(NOTES, user_id=5) as context:
        assert get_context() is context
        assert (context.extension.id, context.user_id) == (NOTES, 5)
        assert (context.extension.publisher, context.extension.name) == (
            "acme",
            "notes",
        )
        assert context.extension.version == "1.2.3"
        assert context.extension.displayName == "Notes"


def test_user_of_the_request_unless_named(official: Any, app: Any) -> None:
    from flask import g
    from superset.extensions import security_manager

    with app.test_request_context():
        g.user = security_manager.find_user("gamma")
        with official.extension_context(NOTES) as context:
            assert context.user_id == g.user.id
            context.storage.persistent.set("k", "gamma's")
        with official.extension_context(NOTES, user_id=5) as context:
            assert context.storage.persistent.get("k") is None
            context.storage.persistent.set("k", "5's")
        gamma = g.user.id
    found = sql(f"SELECT user_fk, created_by_fk FROM {TABLE} ORDER BY id")
    assert found == [(gamma, gamma), (5, 5)]


def test_no_user(official: Any) -> None:
    with official.extension_context(NOTES) as context:
        assert context.user_id is None
        for state in (context.storage.persistent, context.storage.secrets):
            for call in (
                lambda: state.get("k"),  # noqa: B023
                lambda: state.set("k", 1),  # noqa: B023
                lambda: state.remove("k"),  # noqa: B023
            ):
                with pytest.raises(RuntimeError, match="there is no user"):
                    call()
            state.shared.set("k", 1)
            assert state.shared.get("k") == 1
    assert rows("user_fk, created_by_fk") == [(None, None), (None, None)]


def test_bad_contexts(official: Any) -> None:
    for bad in ("1", 1.0, True):
        with pytest.raises(TypeError), official.extension_context(NOTES, bad):
            pass
    for unknown in ("acme.unknown", "notes", "", "acme/notes"):
        with pytest.raises(LookupError), official.extension_context(unknown, 1):
            pass
    for bad in (None, 5, b"acme.notes", object()):
        with (
            pytest.raises(TypeError, match="must be a manifest"),
            official.extension_context(bad, 1),
        ):
            pass


def open_transactions() -> list[Any]:
    """Give what sessions of Superset's role do that have a transaction open."""
    return sql(
        "SELECT state, query FROM pg_stat_activity"
        " WHERE usename = 'superset' AND xact_start IS NOT NULL"
    )


@pytest.mark.parametrize("in_transaction", [False, True])
def test_user_that_is_not_there(official: Any, in_transaction: bool) -> None:
    """Nothing would ever delete the entries; and to ask leaves no transaction open."""
    from superset.extensions import db, security_manager

    db.session.remove()
    gone = max(sql("SELECT max(id) FROM ab_user")[0]) + 1
    for user_id in (0, -1, gone, 2**31, 2**70):
        if in_transaction:
            db.session.execute("SELECT 1")
        with (
            pytest.raises(LookupError, match=f"there is no user {user_id}"),
            official.extension_context(NOTES, user_id),
        ):
            pass
    with official.extension_context(NOTES, 1):
        assert bool(open_transactions()) is in_transaction
        # one that the caller's transaction has made
        role = security_manager.find_role("Gamma")
        made = security_manager.user_model(
            username="new", first_name="n", last_name="n", email="n", roles=[role]
        )
        db.session.add(made)
        db.session.flush()
        with official.extension_context(NOTES, made.id) as context:
            assert context.user_id == made.id
        db.session.rollback()


def test_context_of_one_request_is_not_of_another(official: Any, app: Any) -> None:
    """Nor of none, nor is one of none of a request: each has its own user."""
    from superset_core.extensions.context import get_context
    from superset_core.extensions.storage.persistent import PersistentState

    def outside() -> None:
        for call in (get_context, lambda: PersistentState.get("k")):
            with pytest.raises(RuntimeError, match="must be called in an extension"):
                call()

    with app.test_request_context("/one"):
        left_open = official.extension_context(NOTES, user_id=1)
        left_open.__enter__()
        PersistentState.set("k", "of 1")
        with app.test_request_context("/two"):
            outside()
            with official.extension_context(NOTES, user_id=2) as context:
                assert context.storage.persistent.get("k") is None
            outside()
        assert PersistentState.get("k") == "of 1"
    outside()
    with app.test_request_context("/three"):
        outside()
    left_open.__exit__(None, None, None)
    left_open = official.extension_context(NOTES, user_id=1)
    left_open.__enter__()
    with app.test_request_context("/four"):
        outside()
    assert PersistentState.get("k") == "of 1"
    left_open.__exit__(None, None, None)
    outside()


def test_left_in_another_order(official: Any) -> None:
    from superset_core.extensions.context import get_context

    def within(extension_id: str, user_id: int) -> Iterator[Any]:
        with official.extension_context(extension_id, user_id) as context:
            yield context
            assert get_context() is context
            yield context

    first, second = within(NOTES, 1), within(OTHER, 2)
    next(first), next(second)
    first.close()
    assert get_context() is next(second)
    second.close()
    with pytest.raises(RuntimeError):
        get_context()
    third = within(NOTES, 1)
    next(third)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(third.close).result()
    with pytest.raises(RuntimeError):
        get_context()


def test_left_in_a_copy(official: Any) -> None:
    """What was left is valid in no copy of the context, in an event loop either."""
    import asyncio

    from superset_core.extensions.context import get_context

    with official.extension_context(NOTES, 1) as context:
        copy = copy_context()
        assert copy.run(get_context) is context
    with pytest.raises(RuntimeError):
        copy.run(get_context)

    async def numbers() -> Any:
        with official.extension_context(NOTES, 1):
            yield 1
            yield 2

    async def loop() -> None:
        async for _ in numbers():
            break

    async def work(extension_id: str, user_id: int) -> None:
        with official.extension_context(extension_id, user_id) as context:
            await asyncio.sleep(0)
            assert get_context() is context
            assert await asyncio.to_thread(get_context) is context

    async def together() -> None:
        await asyncio.gather(work(NOTES, 1), work(OTHER, 1), work(NOTES, 2))

    for run in (loop, together):
        asyncio.run(run())
        with pytest.raises(RuntimeError):
            get_context()


# Threads in copies of a request's context


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run it in threads that have the context and are there at the same time."""
    together = threading.Barrier(count, timeout=60)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            together.wait()
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=copy_context().run, args=(run, number))
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


@pytest.fixture
def with_quota(request: pytest.FixtureRequest) -> Iterator[None]:
    if not request.param:
        yield
        return
    from superset.extensions import db

    name = "extension_storage.quota_per_extension"
    sql(f"ALTER DATABASE superset SET {name} = 1000000")
    db.session.remove()
    db.engine.dispose()
    try:
        yield
    finally:
        sql(f"ALTER DATABASE superset RESET {name}")
        db.session.remove()
        db.engine.dispose()
        sql(  # they count as long as they are not told to stop
            f"ALTER TABLE {TABLE} DISABLE TRIGGER extension_storage_count,"
            " DISABLE TRIGGER extension_storage_count_rows"
        )


@pytest.mark.parametrize("with_quota", [False, True], indirect=True)
@pytest.mark.parametrize("in_transaction", [False, True])
@pytest.mark.parametrize("count", [6, 80])
def test_parallel_threads(
    official: Any, app: Any, count: int, in_transaction: bool, with_quota: None
) -> None:
    """What each stores is committed, and no session stays in a transaction."""
    from flask import g
    from superset.extensions import db, security_manager
    from superset.utils.decorators import transaction

    def work(number: int) -> None:
        storage = context.storage
        storage.persistent.set(f"k{number}", number)
        assert storage.persistent.get(f"k{number}") == number
        storage.persistent.shared.set(f"s{number}", number)
        storage.secrets.set(f"t{number}", number)
        assert f"t{number}" in storage.secrets.list_names()
        assert list_(storage.persistent).count > 0
        storage.persistent.shared.remove(f"s{number}")
        assert not db.session.registry.has()

    def request() -> None:
        in_threads(count, work)
        assert open_transactions() == []

    db.session.remove()
    with app.test_request_context("/x"):
        g.user = security_manager.find_user("gamma")
        gamma = g.user.id
        with official.extension_context(NOTES) as context:
            db.session.commit()  # the user expires; no thread may load it
            (transaction()(request) if in_transaction else request)()
        db.session.remove()
    found = sql(f"SELECT key, user_fk, created_by_fk FROM {TABLE}")
    assert sorted(found) == sorted(
        (f"{kind}{number}", gamma, gamma) for number in range(count) for kind in "kt"
    )


def test_thread_and_transaction_of_the_request(
    official: Any, app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each commits what is its own; a lock of the one does not stop both for good."""
    from superset.extensions import db
    from superset.utils.decorators import transaction
    from superset_core.extensions.storage.persistent import PersistentState

    from superset_extension_storage.errors import InvalidArgument, StorageBusy
    from superset_extension_storage.official import sessions

    monkeypatch.setattr(sessions, "LOCK_TIMEOUT", "100ms")

    def refused(_: int) -> None:
        with pytest.raises(InvalidArgument):
            PersistentState.set("k" * 256, 1)
        with pytest.raises(StorageBusy):
            PersistentState.set("request's", "thread's")
        assert PersistentState.get("request's") is None
        assert not db.session.registry.has()

    def own_transaction(_: int) -> None:
        db.session.execute("CREATE TEMPORARY TABLE thread_s () ON COMMIT DROP")
        PersistentState.get("k")
        assert db.session.execute("SELECT * FROM thread_s").all() == []
        db.session.remove()

    @transaction()
    def request(fail: bool) -> None:
        PersistentState.set("request's", 1)
        in_threads(1, lambda _: PersistentState.set("thread's", 1))
        assert rows("key") == [("thread's",)]
        in_threads(1, refused)
        in_threads(1, own_transaction)
        assert PersistentState.get("request's") == 1
        if fail:
            raise KeyError

    with app.test_request_context("/x"), storage(official):
        with pytest.raises(KeyError):
            request(True)
        assert rows("key") == [("thread's",)]
        PersistentState.remove("thread's")
        request(False)
        assert rows("key") == [("request's",), ("thread's",)]


def test_user_that_no_one_has_loaded(official: Any, app: Any) -> None:
    """A thread that asks first leaves the request its user, whole."""
    from flask import g, session
    from flask_login import current_user
    from superset.extensions import db, security_manager

    gamma = security_manager.find_user("gamma").id
    with app.test_request_context("/x"):
        session["_user_id"], g.user = str(gamma), current_user
        with official.extension_context(NOTES) as context:
            db.session.remove()
            in_threads(6, lambda n: context.storage.persistent.set(f"k{n}", n))
            assert open_transactions() == []
        assert [role.name for role in g.user.roles] == ["Gamma"]
    assert {user for (user,) in rows("user_fk")} == {gamma}


def test_nested_contexts(official: Any) -> None:
    from superset_core.extensions.context import get_context
    from superset_core.extensions.storage.persistent import PersistentState

    with official.extension_context(NOTES, user_id=1) as outer:
        PersistentState.set("k", "outer")
        with official.extension_context(OTHER, user_id=1) as inner:
            assert get_context() is inner
            assert PersistentState.get("k") is None
            PersistentState.set("k", "inner")
            with official.extension_context(OTHER, user_id=2):
                assert PersistentState.get("k") is None
                with pytest.raises(RuntimeError, match="another user"):
                    inner.storage.persistent.get("k")
            for state in (outer.storage.persistent, outer.storage.secrets):
                for call in (
                    lambda: state.get("k"),  # noqa: B023
                    lambda: state.set("k", 1),  # noqa: B023
                    lambda: state.shared.get("k"),  # noqa: B023
                    lambda: state.shared.remove("k"),  # noqa: B023
                ):
                    with pytest.raises(RuntimeError, match=f"context of {NOTES}"):
                        call()
        assert get_context() is outer
        assert outer.storage.persistent.get("k") == "outer"
    with pytest.raises(ValueError), official.extension_context(NOTES, user_id=1):
        raise ValueError
    with pytest.raises(RuntimeError):
        get_context()


def test_two_threads_in_two_contexts(official: Any, app: Any) -> None:
    """Each step waits for the other thread's, so they are always both inside."""
    from superset_core.extensions.context import get_context
    from superset_core.extensions.storage.persistent import PersistentState

    step = threading.Barrier(2, timeout=END)

    def work(extension_id: str, user_id: int) -> list[Any]:
        seen = []
        with app.app_context(), official.extension_context(extension_id, user_id):
            step.wait()
            PersistentState.set("k", extension_id)
            PersistentState.shared.set("s", extension_id)
            step.wait()
            seen += [get_context().extension.id, get_context().user_id]
            seen += [PersistentState.get("k"), PersistentState.shared.get("s")]
            step.wait()
        return seen

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(work, NOTES, 1)
        second = pool.submit(work, OTHER, 2)
    assert first.result() == [NOTES, 1, NOTES, NOTES]
    assert second.result() == [OTHER, 2, OTHER, OTHER]


def test_a_thread_starts_without_context(official: Any, app: Any) -> None:
    from superset_core.extensions.context import get_context

    def work() -> None:
        with app.app_context():
            get_context()

    with official.extension_context(NOTES, 1), ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
    with pytest.raises(RuntimeError, match="must be called in an extension"):
        done.result()


def test_requests_and_contexts(official: Any, app: Any) -> None:
    """A request to an extension's path is its own, whoever sends it."""
    from superset_core.extensions.context import get_context

    rule = "/extensions/acme/other-notes/plain"
    adapter = [r for r in app.url_map.iter_rules() if r.rule == rule]
    if not adapter:
        app.view_functions["plain_view"] = lambda: get_context().extension.id
        app.url_map.add(app.url_rule_class(rule, endpoint="plain_view"))
    with app.test_request_context(rule):
        assert get_context().extension.id == OTHER
        with official.extension_context(NOTES, 1):
            assert get_context().extension.id == NOTES
    with official.extension_context(NOTES, 1) as context:
        with app.test_request_context(rule):
            assert get_context().extension.id == OTHER
        assert get_context() is context
    for other in ("/health", "/extensions/list/", "/nowhere"):
        with app.test_request_context(other), pytest.raises(RuntimeError):
            get_context()


def test_loading(official: Any, bundles: dict[str, Path]) -> None:
    from superset.extensions.context import extension_context
    from superset.extensions.utils import get_extensions
    from superset_core.extensions.context import get_context

    with extension_context(get_extensions()[NOTES].manifest):
        assert get_context().extension.id == NOTES
        get_context().storage.persistent.shared.set("k", 1)
    assert rows("extension_id, user_fk") == [(NOTES, None)]


def test_accessor(official: Any) -> None:
    """What annotations name has the calls of what it is used for."""
    from superset_core.extensions.storage import persistent

    protocol = persistent.PersistentStateAccessor
    for name in ("get", "set", "list", "remove"):
        named = list(signature(getattr(protocol, name)).parameters)[1:]
        for state in (persistent.PersistentState, persistent.PersistentState.shared):
            assert (
                list(signature(getattr(state, name)).parameters)[: len(named)] == named
            )


def test_ephemeral_is_in_nobodys_way(official: Any) -> None:
    ephemeral = import_module("superset_core.extensions.storage.ephemeral")
    assert not hasattr(ephemeral, "add")


def test_ephemeral(official: Any) -> None:
    with (
        official.extension_context(NOTES, 1) as context,
        pytest.raises(NotImplementedError, match="cache of Superset 7"),
    ):
        context.storage.ephemeral  # noqa: B018
    with pytest.raises(ImportError, match="cache of Superset 7"):
        from superset_core.extensions.storage.ephemeral import (  # noqa: F401
            EphemeralSetOptions,
        )


@pytest.mark.parametrize("name", ["dao", "unheard_of"])
def test_modules_that_are_not_here(official: Any, name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module(f"superset_core.extensions.storage.{name}")


# Values


@contextmanager
def storage(official: Any, user_id: int = 1) -> Iterator[Any]:
    with official.extension_context(NOTES, user_id=user_id) as context:
        yield context.storage


def set_options(**options: Any) -> Any:
    from superset_core.extensions.storage.persistent import PersistentSetOptions

    return PersistentSetOptions(**options)


def test_dataclasses() -> None:
    """The official names, defaults and frozenness."""
    from dataclasses import MISSING, FrozenInstanceError, fields

    from superset_core.extensions.storage import persistent

    shapes = {
        "PersistentSetOptions": {"encrypt": False, "codec": "json"},
        "PersistentListOptions": {
            "page": MISSING,
            "page_size": MISSING,
            "resource_type": None,
            "resource_uuid": None,
        },
        "PersistentListEntry": {"key": MISSING, "value": MISSING, "codec": MISSING},
        "PersistentListResult": {"entries": MISSING, "count": 0},
    }
    for name, shape in shapes.items():
        cls = getattr(persistent, name)
        assert {f.name: f.default for f in fields(cls)} == shape, name
    assert persistent.PersistentListResult().entries == []
    with pytest.raises(FrozenInstanceError):
        persistent.PersistentSetOptions().encrypt = True


@pytest.mark.parametrize(
    "value",
    [None, True, 0, 1.5, "", "ünï\0", [], {"a": [1, {"b": None}]}, "\ud800", 2**70],
)
def test_json(official: Any, value: Any) -> None:
    import json

    with storage(official) as state:
        state.persistent.set("k", value)
        assert state.persistent.get("k") == value
    content, value_type, encrypted = stored("k")
    assert json.loads(content) == value
    assert (value_type, encrypted) == ("application/json", False)


def test_binary(official: Any) -> None:
    with storage(official) as state:
        for value in (b"\0\xff", bytearray(b"\0\xff"), memoryview(b"\0\xff")):
            state.persistent.set("k", value, set_options(codec="binary"))
            assert state.persistent.get("k") == b"\0\xff"
    assert stored("k") == (b"\0\xff", "application/octet-stream", False)


def test_what_http_and_dao_wrote(official: Any) -> None:
    """Types of others: JSON in any spelling is decoded, the rest is bytes."""
    from superset_core.common.daos import ExtensionStorageDAO

    with storage(official) as state:
        for value_type, value in (
            ("application/json", {"a": 1}),
            ("Application/JSON; charset=utf-8", {"a": 1}),
            ("text/plain", b'{"a":1}'),
            ("application/jsonp", b'{"a":1}'),
            ("application/X-python-pickle", b'{"a":1}'),
        ):
            ExtensionStorageDAO.set(NOTES, "k", b'{"a":1}', value_type, user_fk=1)
            assert state.persistent.get("k") == value
        ExtensionStorageDAO.set(NOTES, "k", b"{broken", user_fk=1)
        with pytest.raises(
            ValueError, match='"k" of extension "acme.notes" is not JSON'
        ):
            state.persistent.get("k")


def test_pickle_is_read_only_when_asked_for(official: Any, app: Any) -> None:
    value, day = set_options(codec="pickle"), datetime.date(2026, 11, 25)
    with storage(official) as state:
        state.persistent.set("k", {day}, value)
        assert stored("k")[1] == "application/x-python-pickle"
        with pytest.raises(ValueError, match="is pickled"):
            state.persistent.get("k")
        assert state.persistent.get("k", pickle=True) == {day}
        (entry,) = list_(state.persistent, pickle=True).entries
        assert (entry.value, entry.codec) == ({day}, "pickle")
        (entry,) = list_(state.persistent).entries
        assert (entry.key, entry.codec) == ("k", "pickle")
        with pytest.raises(ValueError, match="is pickled"):
            entry.value  # noqa: B018
        app.config["EXTENSION_STORAGE_UNPICKLE"].append(OTHER)
        try:
            with pytest.raises(ValueError, match="is pickled"):
                state.persistent.get("k")
            app.config["EXTENSION_STORAGE_UNPICKLE"].append(NOTES)
            assert state.persistent.get("k") == {day}
        finally:
            app.config["EXTENSION_STORAGE_UNPICKLE"].clear()


class Exploit:
    """What takes over whoever unpickles it."""

    ran = False

    def __reduce__(self) -> Any:
        return setattr, (Exploit, "ran", True)


def test_foreign_pickles_are_not_read(official: Any, app: Any) -> None:
    """Bytes that came by another way, from another entry, or under another key."""
    from superset_core.common.daos import ExtensionStorageDAO

    def refused(key: str) -> None:
        with pytest.raises(ValueError, match="not pickled by this Superset"):
            state.persistent.get(key, pickle=True)

    kind = "application/x-python-pickle"
    with storage(official) as state:
        for planted in (pickle.dumps(Exploit()), b"", b"." * 50):
            ExtensionStorageDAO.set(NOTES, "k", planted, kind, user_fk=1)
            refused("k")
        state.persistent.set("k", {1}, set_options(codec="pickle"))
        ExtensionStorageDAO.set(NOTES, "copy", stored("k")[0], kind, user_fk=1)
        refused("copy")
        state.persistent.set("copy", {2}, set_options(codec="pickle"))
        key = app.secret_key
        try:
            app.secret_key = "another key that is long enough"
            refused("k")
            app.config["PREVIOUS_SECRET_KEY"] = key
            assert state.persistent.get("k", pickle=True) == {1}
        finally:
            app.secret_key = key
            del app.config["PREVIOUS_SECRET_KEY"]
    assert Exploit.ran is False


def test_what_was_pickled_is_not_renamed(official: Any) -> None:
    """It would be lost: it is signed for its key."""
    from superset_core.common.daos import ExtensionStorageDAO

    with storage(official) as state:
        state.persistent.set("k", {1}, set_options(codec="pickle"))
        for _ in range(2):  # the transaction stays usable
            with pytest.raises(ValueError, match="signed for its key"):
                ExtensionStorageDAO.rename(NOTES, "k", "new", user_fk=1)
        assert state.persistent.get("k", pickle=True) == {1}
        assert state.persistent.get("new") is None


def test_secrets_are_encrypted_whoever_writes_them(official: Any) -> None:
    from superset.extensions import db
    from superset_core.common.daos import ExtensionStorageDAO

    from superset_extension_storage.dao import SECRETS

    address = {**SECRETS, "user_fk": 1}
    with storage(official) as state:
        ExtensionStorageDAO.set(NOTES, "a", b'"1"', **address)
        ExtensionStorageDAO.set(NOTES, "a", b'"2"', is_encrypted=True, **address)
        many = [{"key": key, "value": b'"3"'} for key in ("b", "c")]
        ExtensionStorageDAO.set_many(NOTES, many, **address)
        ExtensionStorageDAO.rename(NOTES, "c", "d", **address)
        for flag in (False, 0, "no"):
            with pytest.raises(ValueError, match="of a secret must be True"):
                ExtensionStorageDAO.set(NOTES, "a", b"1", is_encrypted=flag, **address)
            with pytest.raises(ValueError, match=r"entries\[1\] of a secret must be"):
                ExtensionStorageDAO.set_many(
                    NOTES,
                    [{"key": "e", "value": b"1", "is_encrypted": flag}],
                    **address,
                )
        db.session.commit()
        assert [state.secrets.get(key) for key in "abd"] == ["2", "3", "3"]
    for encrypted, value in rows("is_encrypted, value"):
        assert encrypted and bytes(value).startswith(b"gAAAA")


@pytest.mark.parametrize(
    ("key", "value", "options", "message"),
    [
        ("k", 1, {"codec": "yaml"}, "codec must be one of json, binary, pickle"),
        ("k", 1, {"codec": None}, "codec must be one of"),
        ("k", 1, {"codec": ["json"]}, "codec must be one of"),
        ("k", 1, {"encrypt": "no"}, "encrypt must be True or False"),
        ("k", 1, {"encrypt": None}, "encrypt must be True or False"),
        ("k", {"a": [float("nan")]}, {}, "a number that is not finite"),
        ("k", (float("-inf"),), {}, "a number that is not finite"),
        ("k", {float("nan"): 1}, {}, "a number that is not finite"),
        ("k", {1: "a", "1": "b"}, {}, "two keys with the same text"),
        ("k", [{None: "a", "null": "b"}], {}, "two keys with the same text"),
        ("k", {b"a": "a", "a": "b"}, {}, "two keys with the same text"),
        (
            "k",
            {Decimal(1): "a", "1": "b"},
            {},
            "a Decimal, which JSON cannot represent",
        ),
        ("k", [MultiDict([("a", 1), ("a", 2)])], {}, "a dict that holds more than"),
        ("k", {"a": {1}}, {}, "a set, which JSON cannot represent"),
        ("k", frozenset(), {}, "a set, which JSON cannot represent"),
        ("k", [Decimal("1.1")], {}, "a Decimal, which JSON cannot represent"),
        ("k", np.array([np.nan]), {}, "a number that is not finite"),
        ("k", {"a": pd.NaT}, {}, "a time that is NaT"),
        ("k", np.ma.array([1, 2], mask=[0, 1]), {}, "an array with masked elements"),
        ("k", [np.array(["2026-01-01"], "M8[ns]")], {}, "an array of times"),
        ("k", Point(1, Decimal(2)), {}, "a Decimal, which JSON cannot represent"),
        ("k", [Point(1, float("nan"))], {}, "a number that is not finite"),
        ("k", {"a": Named({"b": {1}})}, {}, "a set, which JSON cannot represent"),
        ("k", Named({1: "a", "1": "b"}), {}, "two keys with the same text"),
        ("k", [Named({"b": i}) for i in (1, {2})], {}, "a set"),
        ("k", object(), {}, "type object cannot be encoded as json"),
        ("k", b"\xff", {}, "type bytes cannot be encoded as json"),
        ("k", lambda: 1, {"codec": "pickle"}, "function cannot be encoded as pickle"),
        ("k", "text", {"codec": "binary"}, "must be bytes"),
        ("k" * 256, 1, {}, "key is too long"),
        ("", 1, {}, "key"),
        ("a\0b", 1, {}, "NUL"),
        ("\ud800", 1, {}, "surrogate"),
        (5, 1, {}, "key must be a string"),
        (None, 1, {}, "key must be a string"),
    ],
)
def test_bad_values(
    official: Any, key: Any, value: Any, options: dict[str, Any], message: str
) -> None:
    from superset_extension_storage.errors import InvalidArgument

    with storage(official) as state:
        for states in (state.persistent, state.persistent.shared):
            with pytest.raises(InvalidArgument, match=message):
                states.set(key, value, set_options(**options))
        if not options:
            with pytest.raises(InvalidArgument, match=message):
                state.secrets.set(key, value)
    assert rows("key") == []


@pytest.mark.parametrize("in_list", [False, True])
def test_rows_of_a_query(official: Any, in_list: bool) -> None:
    """The encoder makes objects of them: what is in them is looked at all the same."""
    from superset.extensions import db

    from superset_extension_storage.errors import InvalidArgument

    def row(columns: str) -> Any:
        found = db.session.connection().exec_driver_sql(f"SELECT {columns}").one()
        return [found] if in_list else found

    with storage(official) as state:
        state.persistent.set("k", row("1 AS a, 'b' AS c"))
        expected = {"a": 1, "c": "b"}
        assert state.persistent.get("k") == ([expected] if in_list else expected)
        for columns, message in (
            ("1.50::numeric AS a", "a Decimal"),
            ("'NaN'::float8 AS a", "a number that is not finite"),
            ("1 AS a, 2 AS a", "two keys with the same text"),
        ):
            with pytest.raises(InvalidArgument, match=message):
                state.persistent.set("k", row(columns))


def test_what_has_one_form(official: Any) -> None:
    """It comes back in that form, as the README says."""
    for value, form in (
        (Point(1, 2), {"x": 1, "y": 2}),
        ((1, 2), [1, 2]),
        (b"text", "text"),
        ({1: None}, {"1": None}),
        (datetime.date(2026, 1, 2), "2026-01-02"),
    ):
        with storage(official) as state:
            state.persistent.set("k", value)
            assert state.persistent.get("k") == form


def test_what_a_manifest_is_changed_to(official: Any) -> None:
    """A copy is changed: entries stay those of the extension, for all contexts."""
    from superset.extensions.utils import get_extensions
    from superset_core.extensions.context import get_context

    manifest = get_extensions()[NOTES].manifest.model_copy(deep=True)
    for extension in (NOTES, manifest):
        with official.extension_context(extension, user_id=1) as context:
            context.storage.persistent.set("k", 1)
            for changed in (context.extension, get_context().extension, manifest):
                changed.id = OTHER
                changed.dependencies.append("x")
            assert get_context().extension.id == NOTES
            assert get_context().extension.dependencies == []
            assert get_context().storage.persistent.get("k") == 1
        manifest.id, manifest.dependencies = NOTES, []
    with official.extension_context(NOTES) as context:
        assert context.extension.id == NOTES
    assert rows("extension_id") == [(NOTES,)]


def test_options_of_other_types(official: Any) -> None:
    with storage(official) as state:
        for options in ({"encrypt": True}, "json", 0):
            with pytest.raises(ValueError, match="must be PersistentSetOptions"):
                state.persistent.set("k", 1, options)
        for options in ({"page": 0, "page_size": 1}, None, set_options()):
            with pytest.raises(ValueError, match="must be PersistentListOptions"):
                state.persistent.list(options)
        for bad in (
            {"resource_type": b"x"},
            {"resource_type": "x", "resource_uuid": 5},
        ):
            with pytest.raises(ValueError, match="must be a string"):
                list_(state.persistent, **bad)
    assert rows("key") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"NaN", "is not JSON"),
        (b'"\xff"', "is not JSON"),
        (b"", "is not JSON"),
        (b"1" * 5000, "has a number with more digits than Python reads"),
        (b"[" * 100000 + b"]" * 100000, "is nested too deep for Python to read"),
    ],
)
def test_json_that_python_does_not_read(
    official: Any, content: bytes, message: str
) -> None:
    from superset_core.common.daos import ExtensionStorageDAO

    with storage(official) as state:
        ExtensionStorageDAO.set(NOTES, "k", content, user_fk=1)
        with pytest.raises(ValueError, match=message):
            state.persistent.get("k")


def test_recursion(official: Any) -> None:
    from superset_extension_storage.errors import InvalidArgument

    value: list[Any] = []
    value.append(value)
    with storage(official) as state, pytest.raises(InvalidArgument):
        state.persistent.set("k", value)


def test_errors_do_not_show_the_value(official: Any) -> None:
    import traceback

    value = "".join(["s3cret", "-", "value"])
    with storage(official) as state:
        for call in (
            lambda: state.persistent.set("k", {value: {object()}}),
            lambda: state.secrets.set("k", {value: {object()}}),
            lambda: state.secrets.set("k" * 256, value),
        ):
            with pytest.raises(ValueError) as caught:
                call()
            assert value not in "".join(traceback.format_exception(caught.value))


def test_too_large(official: Any) -> None:
    from superset_extension_storage.errors import ValueTooLarge

    with storage(official) as state:
        for call in (
            lambda: state.secrets.set("k", "x" * 16777214),
            lambda: state.persistent.set(
                "k", bytes(16777216), set_options(codec="binary")
            ),
        ):
            with pytest.raises(ValueTooLarge):
                call()
        state.secrets.set("k", "x" * 16777213)
        assert len(state.secrets.get("k")) == 16777213


def test_encryption_is_never_taken_back(official: Any) -> None:
    with storage(official) as state:
        state.persistent.set("k", "v", set_options(encrypt=True))
        assert stored("k")[0].startswith(b"gAAAA") and stored("k")[2]
        state.persistent.set("k", "w")
        state.persistent.set("k", "x", set_options(encrypt=False))
        assert state.persistent.get("k") == "x"
        assert stored("k")[0].startswith(b"gAAAA") and stored("k")[2]


def test_undecryptable(official: Any) -> None:
    """An error that the caller's transaction survives; a new value mends it."""
    from superset.extensions import db

    from superset_extension_storage.errors import ValueUndecryptable

    with storage(official) as state:
        state.persistent.set("k", "v", set_options(encrypt=True))
        state.secrets.set("k", "v")
        sql(f"UPDATE {TABLE} SET value = 'gAAAAAbroken'")
        for states in (state.persistent, state.secrets):
            with pytest.raises(ValueUndecryptable):
                states.get("k")
            assert db.session.connection().exec_driver_sql("SELECT 1").scalar() == 1
            states.set("k", "w")
            assert states.get("k") == "w"


def test_remove(official: Any) -> None:
    with storage(official) as state:
        for states in (state.persistent, state.persistent.shared, state.secrets):
            states.set("k", 1)
            assert states.remove("k") is None
            assert states.get("k") is None
            assert states.remove("k") is None
    assert rows("key") == []


# Transactions


def test_commits(official: Any) -> None:
    from superset.extensions import db

    with storage(official) as state:
        state.persistent.set("k", 1)
        assert rows("key") == [("k",)]
        state.persistent.remove("k")
        assert rows("key") == []
        state.secrets.set("k", 1)
        db.session.rollback()
        assert rows("key") == [("k",)]


def test_transaction_of_the_caller(official: Any) -> None:
    from superset.utils.decorators import transaction

    from superset_extension_storage.errors import InvalidArgument

    @transaction()
    def work(fail: bool) -> None:
        state.persistent.set("k", 1)
        with pytest.raises(InvalidArgument):
            state.persistent.set("k" * 256, 1)
        state.secrets.set("s", 1)
        assert state.persistent.get("k") == 1
        assert rows("key") == []
        if fail:
            raise KeyError

    with storage(official) as state:
        with pytest.raises(KeyError):
            work(True)
        assert rows("key") == []
        work(False)
        assert rows("key") == [("k",), ("s",)]


def test_what_the_caller_changed_is_not_flushed(official: Any) -> None:
    from superset.extensions import db
    from superset.models.dashboard import Dashboard

    dashboard = Dashboard(dashboard_title="unsaved")
    db.session.add(dashboard)
    with storage(official) as state:
        state.persistent.get("k")
        list_(state.persistent)
        state.secrets.list_names()
    assert dashboard in db.session.new


def test_keys_survive_a_rollback(official: Any, app: Any) -> None:
    """Of the transaction in which a connection got them, by reads or by a failure."""
    from superset.extensions import db

    from superset_extension_storage.errors import InvalidArgument

    with storage(official) as state:
        state.secrets.set("k", 1)
        for fail in (False, True):
            db.session.remove()
            db.engine.dispose()
            if fail:
                with pytest.raises(InvalidArgument):
                    state.secrets.get("k" * 256)
            for _ in range(3):
                assert state.secrets.get("k") == 1
            db.session.rollback()
            for _ in range(3):
                assert state.secrets.get("k") == 1
                db.session.rollback()


# Lists


def list_(state: Any, page: int = 0, page_size: int = 25, **arguments: Any) -> Any:
    from superset_core.extensions.storage.persistent import PersistentListOptions

    pickle = {"pickle": True} if arguments.pop("pickle", False) else {}
    return state.list(PersistentListOptions(page, page_size, **arguments), **pickle)


def test_list(official: Any) -> None:
    """The newest change first, a page of them, of the user or of all."""
    with storage(official, user_id=2) as state:
        state.persistent.set("other", 0)
    with storage(official) as state:
        for key in ("b", "a", "c"):
            state.persistent.set(key, key.upper())
            state.secrets.set(key, key)
        state.persistent.set("a", b"A", set_options(codec="binary", encrypt=True))
        state.persistent.shared.set("s", 1)
        found = list_(state.persistent)
        assert [(e.key, e.value, e.codec) for e in found.entries] == [
            ("a", b"A", "binary"),
            ("c", "C", "json"),
            ("b", "B", "json"),
        ]
        assert found.count == 3
        pages = [list_(state.persistent, page, 2) for page in range(3)]
        assert [[e.key for e in p.entries] for p in pages] == [["a", "c"], ["b"], []]
        assert {p.count for p in pages} == {3}
        assert [e.key for e in list_(state.persistent, -1, 0).entries] == ["a"]
        assert [e.key for e in list_(state.persistent.shared).entries] == ["s"]
        for time in ("2026-01-01", "infinity", "20000-01-01", "0044-03-15 BC"):
            sql(f"UPDATE {TABLE} SET changed_on = %s, created_on = changed_on", time)
            keys = [e.key for e in list_(state.persistent).entries]
            assert keys == ["c", "b", "a"]
            assert state.persistent.get("c") == "C" and state.secrets.get("c") == "c"
            assert state.secrets.list_names() == ["a", "b", "c"]
        for page, page_size in ((None, 1), (0, "2"), (0.0, 1), (True, 1)):
            with pytest.raises(ValueError, match="must be integers"):
                list_(state.persistent, page, page_size)
    with official.extension_context(OTHER, user_id=1) as context:
        assert list_(context.storage.persistent).count == 0


def test_long_list(official: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superset_extension_storage.dao.LIST_STEP", 2)
    with storage(official) as state:
        for number in range(5):
            state.persistent.set(str(number), number)
            state.secrets.set(str(number), number)
        assert list_(state.persistent, 0, 3).count == 5
        assert state.secrets.list_names() == list("01234")


def test_pickle_in_a_list_of_a_resource(official: Any) -> None:
    """However the uuid was given, one that was not pickled here is not read."""
    from superset_core.common.daos import ExtensionStorageDAO

    from superset_extension_storage.official.codecs import ValueUndecodable

    place = {"resource_type": "dashboard", "resource_uuid": str(uuid4())}
    with storage(official) as state:
        ExtensionStorageDAO.set(
            NOTES, "k", b"x", value_type="application/x-python-pickle", **place
        )
        options = {**place, "resource_uuid": UUID(place["resource_uuid"])}
        (entry,) = list_(state.persistent.shared, pickle=True, **options).entries
        with pytest.raises(ValueUndecodable, match="was not pickled by this Superset"):
            _ = entry.value


def test_list_of_a_resource(official: Any) -> None:
    from superset_core.common.daos import ExtensionStorageDAO

    resource = {"resource_type": "dashboard", "resource_uuid": str(uuid4())}
    other = {**resource, "resource_uuid": str(uuid4())}
    for key, scope in (
        ("shared", resource),
        ("mine", {**resource, "user_fk": 1}),
        ("another's", {**resource, "user_fk": 2}),
        ("elsewhere", {**other, "user_fk": 1}),
    ):
        ExtensionStorageDAO.set(NOTES, key, b"1", **scope)
    with storage(official) as state:
        assert [e.key for e in list_(state.persistent, **resource).entries] == ["mine"]
        found = list_(state.persistent.shared, **resource)
        assert [(e.key, e.value) for e in found.entries] == [("shared", 1)]
        with pytest.raises(ValueError):
            list_(state.persistent, resource_type="dashboard")
        state.secrets.set("k", 1)
        with pytest.raises(ValueError, match="reserved"):
            list_(
                state.persistent,
                resource_type="superset.secrets",
                resource_uuid="secrets",
            )


def test_unreadable_entries_in_a_list(official: Any) -> None:
    """They are told apart, and the others come."""
    from superset_extension_storage.errors import ValueUndecryptable

    with storage(official) as state:
        for key in ("good", "lost", "broken"):
            state.persistent.set(key, key, set_options(encrypt=key == "lost"))
        sql(f"UPDATE {TABLE} SET value = 'gAAAAAbroken' WHERE key = 'lost'")
        sql(f"UPDATE {TABLE} SET value = '{{' WHERE key = 'broken'")
        found = list_(state.persistent)
        assert found.count == 3
        entries = {entry.key: entry for entry in found.entries}
        assert entries["good"].value == "good"
        for key, error in (("lost", ValueUndecryptable), ("broken", ValueError)):
            assert entries[key].codec == "json" and repr(entries[key])
            assert entries[key] != entries["good"] and len({entries[key]}) == 1
            for _ in range(2):
                with pytest.raises(error):
                    entries[key].value  # noqa: B018


def test_list_is_bounded_by_bytes(
    official: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from superset_extension_storage.errors import ValueTooLarge
    from superset_extension_storage.official import persistent

    monkeypatch.setattr(persistent, "MAX_LIST_BYTES", 10)
    with storage(official) as state:
        for key in "abc":
            state.persistent.set(key, "12345678")
        with pytest.raises(ValueTooLarge, match="30 bytes, more than 10"):
            list_(state.persistent)
        assert len(list_(state.persistent, 1, 1).entries) == 1


# Secrets


def test_secrets(official: Any) -> None:
    with storage(official) as state:
        state.secrets.set("token", {"a": "mine"})
        state.secrets.shared.set("token", "ours")
        state.secrets.set("b", 1)
        assert state.persistent.get("token") is None
        state.persistent.set("token", "no secret")
        assert state.secrets.get("token") == {"a": "mine"}
        assert state.secrets.shared.get("token") == "ours"
        assert state.secrets.list_names() == ["b", "token"]
        assert state.secrets.shared.list_names() == ["token"]
        assert state.secrets.get("none") is None
    with storage(official, user_id=2) as state:
        assert state.secrets.get("token") is None and state.secrets.list_names() == []
        assert state.secrets.shared.get("token") == "ours"
    with official.extension_context(OTHER, user_id=1) as context:
        assert context.storage.secrets.get("token") is None
        assert context.storage.secrets.shared.list_names() == []
    found = sql(
        f"SELECT is_encrypted, convert_from(value, 'UTF8') FROM {TABLE}"
        " WHERE resource_type IS NOT NULL"
    )
    assert len(found) == 3
    assert all(flag and token.startswith("gAAAA") for flag, token in found)


def test_secrets_of_a_deleted_user(official: Any) -> None:
    with storage(official) as state:
        state.secrets.set("k", 1)
        state.secrets.shared.set("k", 1)
        sql("SELECT ext_storage.ext_storage_purge_user(1)")
        assert state.secrets.list_names() == []
        assert state.secrets.shared.list_names() == ["k"]


SPELLINGS = [
    "superset.secrets",
    "Superset.Secrets",
    "SUPERSET.SECRETS",
    "superset%2Esecrets",
    "%73uperset.secrets",
    "superset.secrets%20",
    "%20superset.secrets",
    "superset.secrets%09",
    "superset.secrets%0A",
    "superset.secrets%C2%A0",
    "superset.secrets%E2%80%8B",
    "%EF%BB%BFsuperset.secrets",
    "super%C2%ADset.secrets",
    "superset%EF%BC%8Esecrets",
    "%EF%BD%93uperset.secrets",
    "%C5%BFuperset.secrets",
    "superset%E2%80%A4secrets",
    "superset.other",
]
# Spelled like it, but another type.
LOOK_ALIKES = ["%D1%95uperset.secrets", "supersetXsecrets", "secrets"]


@pytest.fixture
def secret_rows(official: Any) -> list[Any]:
    """Secrets of acme.my-ext, the admin's and the extension's own."""
    from superset_core.extensions.types import Manifest

    extension = Manifest(
        id="acme.my-ext", publisher="acme", name="my-ext", displayName="My"
    )
    admin = sql("SELECT id FROM ab_user WHERE username = 'admin'")[0][0]
    with official.extension_context(extension, admin) as context:
        for state in (context.storage.secrets, context.storage.secrets.shared):
            state.set("token", "the secret value")
    return secrets_as_they_are()


def secrets_as_they_are() -> list[Any]:
    return sql(
        f"SELECT * FROM {TABLE} WHERE resource_type = 'superset.secrets' ORDER BY id"
    )


def requests_of_the_storage(app: Any, **names: str) -> list[tuple[str, str]]:
    """Give each method of each URL of the storage API, with these names in it."""
    names = {"publisher": "acme", "name": "my-ext", **names}
    found = []
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/api/v1/extensions/<publisher>/<name>/storage/"):
            path = re.sub("<([a-z_]+)>", lambda part: names[part[1]], rule.rule)
            found += [(method, path) for method in sorted(rule.methods - {"OPTIONS"})]
    return found


@pytest.mark.parametrize("spelling", [*SPELLINGS, *LOOK_ALIKES])
def test_no_request_reaches_secrets(
    secret_rows: list[Any], app: Any, admin: Client, spelling: str
) -> None:
    """Every method of every URL, in any spelling of the place where secrets are."""
    for uuid in ("secrets", "SECRETS", "secrets%20", "%73ecrets"):
        asked = requests_of_the_storage(
            app, resource_type=spelling, resource_uuid=uuid, key="token"
        )
        assert {"GET", "HEAD", "PUT", "DELETE"} <= {method for method, _ in asked}
        for method, path in asked:
            for headers in ({}, {"If-Match": "*"}):
                answer = admin.request(
                    method, path, json={"value": "planted"}, headers=headers
                )
                assert "secret value" not in answer.text
                if "/resources/" in path and spelling in SPELLINGS:
                    assert answer.status_code == 400, (method, path)
                    if method != "HEAD":
                        message = answer.json()["message"]
                        assert message.startswith("resource_type is reserved")
                else:
                    assert answer.status_code < 500, (method, path)
        assert secrets_as_they_are() == secret_rows


@pytest.mark.parametrize(
    "key",
    [
        "token",
        "superset.secrets",
        "superset.secrets%2Fsecrets%2Ftoken",
        "..%2Fresources%2Fsuperset.secrets%2Fsecrets%2Ftoken",
        "token%00",
    ],
)
def test_no_key_reaches_secrets(
    secret_rows: list[Any], app: Any, admin: Client, key: str
) -> None:
    place = {"resource_type": "thing", "resource_uuid": "secrets", "key": key}
    for query in (
        "",
        "?page_size=100",
        "?resource_type=superset.secrets&resource_uuid=secrets",
        "?category=superset.secrets",
        "?user_fk=",
    ):
        for method, path in requests_of_the_storage(app, **place):
            if method == "PUT":
                continue
            answer = admin.request(method, path + query)
            assert "secret value" not in answer.text
            if method == "GET" and path.endswith("/"):
                assert answer.json() == {"count": 0, "result": []}
            elif method != "HEAD":
                assert answer.status_code in (400, 404), (method, path)
    assert secrets_as_they_are() == secret_rows


# Superset 7


def test_own_modules_stay_unless_a_setting_says_so(
    official: Any, app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules of the names and places that Superset 7 has, as its start leaves them."""
    from superset_extension_storage.official import persistent, secrets

    class Own:
        pass

    names = [
        "superset_core.extensions.context",
        "superset_core.extensions.storage",
        "superset_core.extensions.storage.persistent",
        "superset_core.extensions.storage.secrets",
        "superset.extensions.storage",
        "superset.extensions.storage.persistent",
        "superset.extensions.storage.secrets",
    ]
    own = {}
    for name in names:
        own[name] = ModuleType(name)
        own[name].__path__ = []
        own[name].PersistentState = own[name].SecretsState = Own
        monkeypatch.setitem(sys.modules, name, own[name])
        parent, _, child = name.rpartition(".")
        monkeypatch.setattr(sys.modules[parent], child, own[name], raising=False)

    official.install(app)
    assert {n: sys.modules[n] for n in names} == own
    for module in own.values():
        assert module.PersistentState is module.SecretsState is Own

    # Its contexts say whose code runs; ours is one of them.
    class Context:
        extension = official.context._installed(NOTES)
        user_id = None

    context = Context()

    @contextmanager
    def extension_context(manifest: Any, user_id: int | None = None) -> Iterator[Any]:
        context.extension, context.user_id = manifest, user_id
        yield context

    monkeypatch.setattr(
        "superset.extensions.context.extension_context", extension_context
    )
    own["superset_core.extensions.context"].get_context = lambda: context
    with official.extension_context(OTHER, user_id=3) as entered:
        assert entered is context and context.extension.id == OTHER

        monkeypatch.setitem(app.config, "EXTENSION_STORAGE_REPLACE_API", True)
        official.install(app)
        assert {n: sys.modules[n] for n in names} == own
        for place in ("superset_core", "superset"):
            stored_by = own[f"{place}.extensions.storage.persistent"].PersistentState
            kept_by = own[f"{place}.extensions.storage.secrets"].SecretsState
            assert stored_by is persistent.PersistentState
            assert kept_by is secrets.SecretsState
        stored_by.set("k", "v")
        kept_by.set("s", "v")
    assert rows("key, extension_id, user_fk, created_by_fk") == [
        ("k", OTHER, 3, 3),
        ("s", OTHER, 3, 3),
    ]


# A real extension


@pytest.fixture(scope="module")
def extended(
    app: Any, bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Superset]:
    """A Superset that has both, one from a folder and one from a bundle."""
    folder = tmp_path_factory.mktemp("superset")
    superset = Superset(folder / "extended")
    found = folder / "bundles"
    found.mkdir()
    (bundle,) = bundles[OTHER].glob("*.supx")
    bundle.rename(found / bundle.name)
    superset.config.update(
        FEATURE_FLAGS={"ENABLE_EXTENSIONS": True},
        LOCAL_EXTENSIONS=[str(bundles[NOTES])],
        EXTENSIONS_PATH=str(found),
        EXTENSION_STORAGE_ENCRYPTION_KEYS=["first", "other"],
        EXTENSION_STORAGE_UNPICKLE=[NOTES],
    )
    superset.start()
    yield superset
    superset.stop()


class Caller:
    """A user's calls of the storage through an extension's API."""

    def __init__(self, client: Client, extension_id: str) -> None:
        self.client = client
        self.path = "/extensions/" + extension_id.replace(".", "/")

    def post(self, view: str, state: str, call: str, **arguments: Any) -> Any:
        asked = {"state": state, "call": call, **arguments}
        return self.client.request("POST", f"{self.path}/{view}", json=asked)

    def __call__(self, state: str, call: str, **arguments: Any) -> Any:
        answer = self.post("call", state, call, **arguments)
        assert answer.status_code == 200, answer.text
        return answer.json()["result"]

    def who(self) -> Any:
        return self.client.get(f"{self.path}/who").json()


@pytest.fixture
def callers(extended: Superset) -> dict[tuple[str, str], Caller]:
    return {
        (user, extension_id): Caller(client, extension_id)
        for user in ("admin", "gamma")
        for client in [extended.client(user)]
        for extension_id in (NOTES, OTHER)
    }


def test_who_calls(callers: dict[tuple[str, str], Caller]) -> None:
    users = dict(sql("SELECT username, id FROM ab_user"))
    for (user, extension_id), caller in callers.items():
        publisher, name = extension_id.split(".")
        assert caller.who() == {
            "extension": {
                "id": extension_id,
                "publisher": publisher,
                "name": name,
                "version": "1.2.3",
                "displayName": name.title(),
            },
            "user_id": users[user],
        }


def test_every_call(callers: dict[tuple[str, str], Caller]) -> None:
    caller = callers["gamma", NOTES]
    for state in ("persistent", "shared", "PersistentState", "PersistentState.shared"):
        for codec, value in (
            ("json", {"a": [1]}),
            ("binary", "\0\xff"),
            ("pickle", "2026-11-25"),
        ):
            options = {"codec": codec, "encrypt": codec == "binary"}
            assert caller(state, "set", key=codec, value=value, options=options) is None
            assert caller(state, "get", key=codec) == value
        assert caller(state, "list", options={"page": 0, "page_size": 2}) == {
            "entries": [
                ["pickle", "2026-11-25", "pickle"],
                ["binary", "\0\xff", "binary"],
            ],
            "count": 3,
        }
        for codec in ("json", "binary", "pickle"):
            assert caller(state, "remove", key=codec) is None
            assert caller(state, "get", key=codec) is None
    for state in ("secrets", "SecretsState"):
        assert caller(state, "set", key="k", value={"a": 1}) is None
        assert caller(state, "get", key="k") == {"a": 1}
        assert caller(state, "remove", key="k") is None
        assert caller(state, "get", key="k") is None
    assert rows("key") == []


def test_two_users_and_two_extensions(callers: dict[tuple[str, str], Caller]) -> None:
    for who, caller in callers.items():
        for state in ("persistent", "secrets"):
            caller(state, "set", key="k", value=[*who, state])
    for who, caller in callers.items():
        for state in ("persistent", "secrets"):
            assert caller(state, "get", key="k") == [*who, state]
        assert caller("of the loading", "get", key="k") == [*who, "persistent"]
    callers["admin", NOTES]("shared", "set", key="s", value=1)
    assert callers["gamma", NOTES]("shared", "get", key="s") == 1
    assert callers["admin", OTHER]("shared", "get", key="s") is None


def test_http_sees_the_same(
    extended: Superset, callers: dict[tuple[str, str], Caller]
) -> None:
    caller = callers["gamma", NOTES]
    caller("persistent", "set", key="k", value={"a": 1})
    answer = caller.client.get("user/k", extension="acme/notes")
    assert answer.json() == {"a": 1}
    assert answer.headers["Content-Type"] == "application/json"
    caller.client.put("user/k", "[2]", extension="acme/notes")
    assert caller("persistent", "get", key="k") == [2]


def test_background_thread(callers: dict[tuple[str, str], Caller]) -> None:
    """A thread has a context where it is given one, and no other."""
    for (user, _), caller in callers.items():
        arguments = {"key": "k", "value": user}
        answer = caller.post("thread", "persistent", "set", **arguments)
        assert answer.json() == {"result": [None, "RuntimeError"]}
        assert caller("persistent", "get", key="k") == user
    assert len(rows("key")) == 4


def test_restart(extended: Superset, callers: dict[tuple[str, str], Caller]) -> None:
    caller = callers["gamma", NOTES]
    caller("persistent", "set", key="k", value=1, options={"encrypt": True})
    caller("secrets", "set", key="k", value=2)
    extended.restart()
    again = Caller(extended.client("gamma"), NOTES)
    assert again("persistent", "get", key="k") == 1
    assert again("secrets", "get", key="k") == 2
    # What the extension did while it was loaded
    assert again("shared", "get", key="loaded") == "1.2.3"
    found = sql(
        f"SELECT extension_id FROM {TABLE} WHERE key = 'user while loading' ORDER BY 1"
    )
    assert found == [(NOTES,), (OTHER,)]


def test_errors_over_http(callers: dict[tuple[str, str], Caller]) -> None:
    """What an extension does not catch is an error of its own API, with no value."""
    caller = callers["gamma", OTHER]
    for arguments in (
        {"key": "k" * 256, "value": "s3cret"},
        {"key": "k", "value": "s3cret", "options": {"codec": "yaml"}},
    ):
        answer = caller.post("call", "persistent", "set", **arguments)
        assert answer.status_code == 500 and "s3cret" not in answer.text
    caller(
        "persistent", "set", key="k", value="2026-11-25", options={"codec": "pickle"}
    )
    assert caller.post("call", "persistent", "get", key="k").status_code == 500
    assert caller("persistent", "remove", key="k") is None


def test_without_login(extended: Superset) -> None:
    caller = Caller(extended.client(None), NOTES)
    assert caller.post("call", "persistent", "get", key="k").status_code == 401


def test_extension_is_removed_while_a_request_runs(
    callers: dict[tuple[str, str], Caller], bundles: dict[str, Path]
) -> None:
    """Its files and all its entries; the request ends as if nothing was."""
    caller = callers["gamma", NOTES]
    dist, gone = bundles[NOTES] / "dist", bundles[NOTES] / "gone"
    caller("persistent", "set", key="old", value=1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            caller.post, "wait", "persistent", "set", key="new", value=2
        )
        while not sql(f"SELECT 1 FROM {TABLE} WHERE key = 'here'"):
            assert not waiting.done(), waiting.result().text
            time.sleep(0.05)
        dist.rename(gone)
        try:
            try:
                sql("SELECT ext_storage.ext_storage_purge_extension(%s)", NOTES)
            finally:
                sql(
                    f"INSERT INTO {TABLE} (extension_id, key, value)"
                    " VALUES (%s, 'go on', 'true')",
                    NOTES,
                )
            answer = waiting.result(60)
            assert answer.status_code == 200, answer.text
            assert caller("persistent", "get", key="old") is None
            assert caller("persistent", "get", key="new") == 2
            assert caller.who()["extension"]["id"] == NOTES
        finally:
            gone.rename(dist)


# The README


def test_readme_examples(official: Any) -> None:
    """The Python blocks of the section on the official API, as written."""
    section = README.read_text().partition("### The API of Superset 7")[2]
    section = section.partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    with official.extension_context(NOTES, user_id=1):
        exec(blocks[0], names)
    assert names["theme"] == "dark" and names["token"] == "s3cret"
    exec(blocks[1].replace("acme.my-ext", NOTES), names)
    assert sql(f"SELECT user_fk FROM {TABLE} WHERE key = 'report'") == [(1,)]


# The README's table of the official API, and what proves each line of it.
PROVED_BY = {
    "`get_context()`, `.extension`, `RuntimeError` elsewhere": (
        test_no_context,
        test_context_tells_extension_and_user,
        test_what_a_manifest_is_changed_to,
        test_requests_and_contexts,
        test_loading,
    ),
    "`.user_id`": (test_user_of_the_request_unless_named, test_who_calls),
    "`.storage.persistent`, `.storage.secrets`": (
        test_every_call,
        test_nested_contexts,
    ),
    "`.storage.ephemeral`, `superset_core.extensions.storage.ephemeral`": (
        test_ephemeral,
    ),
    "`superset_core.extensions.storage.dao`": (test_modules_that_are_not_here,),
    "`PersistentSetOptions`, `PersistentListOptions`, `PersistentListEntry`,"
    " `PersistentListResult`": (test_dataclasses,),
    "`PersistentStateAccessor`": (test_accessor,),
    "`PersistentState.get`, `.shared.get`": (
        test_every_call,
        test_undecryptable,
        test_pickle_is_read_only_when_asked_for,
    ),
    "`PersistentState.set`, `.shared.set`": (
        test_every_call,
        test_encryption_is_never_taken_back,
        test_bad_values,
    ),
    "`PersistentState.list`, `.shared.list`": (
        test_every_call,
        test_list,
        test_unreadable_entries_in_a_list,
        test_list_is_bounded_by_bytes,
    ),
    "`PersistentState.remove`, `.shared.remove`": (test_every_call, test_remove),
    "codecs `json`, `binary`": (
        test_json,
        test_binary,
        test_bad_values,
        test_rows_of_a_query,
        test_what_has_one_form,
    ),
    "codec `pickle`": (test_foreign_pickles_are_not_read,),
    "commit by `set` and `remove`, unless in a `transaction()`": (
        test_commits,
        test_transaction_of_the_caller,
    ),
    "no user: `RuntimeError`": (test_no_user,),
    "other errors": (test_bad_values, test_too_large, test_undecryptable),
    "`SecretsState.get`, `.set`, `.remove`": (test_every_call, test_secrets),
    "`SecretsState.shared`, `SecretsState.list_names`": (test_secrets,),
}


def test_readme_has_every_name(official: Any) -> None:
    """The table has a line for each public name of the modules, and each is proved."""
    import superset_core.extensions.storage.persistent as persistent
    import superset_core.extensions.storage.secrets as secrets

    section = README.read_text().partition("### The API of Superset 7")[2]
    table = section.partition("| name | as in Superset 7? |\n|---|---|\n")[2]
    lines = re.findall(r"^\| (.*?) \|", table.partition("\n\n")[0], re.MULTILINE)
    assert lines == list(PROVED_BY)
    named = " ".join(lines)
    for name in (n for n in vars(persistent) if n.startswith("Persistent")):
        assert f"`{name}" in named, name
    for name, state in (
        ("PersistentState", persistent.PersistentState),
        (".shared", persistent.PersistentState.shared),
        ("SecretsState", secrets.SecretsState),
    ):
        calls = [n for n in dir(state) if n[0] != "_" and callable(getattr(state, n))]
        for call in calls:
            assert re.search(rf"({re.escape(name)})?\.{call}\b", named), (name, call)
