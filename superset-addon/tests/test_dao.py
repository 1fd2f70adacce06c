"""ExtensionStorageDAO inside a Superset application."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import date, datetime, timezone
from typing import Any
from uuid import uuid4

import pytest

from conftest import README, TIMES, fill_times, sql

EXT = "acme.my-ext"


@pytest.fixture
def dao(app: Any) -> Iterator[Any]:
    with app.app_context():
        from superset.extensions import db
        from superset_core.common.daos import ExtensionStorageDAO

        yield ExtensionStorageDAO
        db.session.rollback()


def rows() -> int:
    """Count what other connections see."""
    return sql("SELECT count(*) FROM ext_storage.extension_storage")[0][0]


def test_readme_examples(dao: Any) -> None:
    """The Python blocks of the README, as written."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    examples = [block for block in blocks if "DAO" in block]
    assert len(examples) == 3
    names: dict[str, Any] = {}
    exec(examples[0], names)
    assert names["value"] == b'{"lang":"fr"}'
    state = dao.get(
        EXT,
        "state",
        resource_type="dashboard",
        resource_uuid="6f1c0d1e-5f0a-4c3b-9d5e-2f8a7b6c4d3e",
    )
    assert state.value == b'{"zoom":3}'
    exec(examples[1], names)
    assert [entry.key for entry in names["newest"]] == ["snippet:2", "snippet:1"]
    assert (names["renamed"].key, names["renamed"].version) == ("snippet:3", 2)
    exec(examples[2], names)
    assert names["entry"].value == b'{"theme":"dark"}'


def test_commits_nothing(dao: Any) -> None:
    from superset.extensions import db

    dao.set(EXT, "k", b"x")
    assert dao.get_value(EXT, "k") == b"x"
    assert rows() == 0
    db.session.rollback()
    assert dao.get_value(EXT, "k") is None
    dao.set(EXT, "k", b"x")
    db.session.commit()
    assert rows() == 1


def test_flushes_nothing(dao: Any) -> None:
    from superset.extensions import db
    from superset.models.dashboard import Dashboard

    dashboard = Dashboard(dashboard_title="unsaved")
    db.session.add(dashboard)
    dao.set(EXT, "k", b"x")
    dao.get(EXT, "k")
    dao.list_global(EXT)
    dao.delete(EXT, "k")
    assert dashboard in db.session.new


def test_entry(dao: Any) -> None:
    made = dao.set(EXT, "k", b"\0\xff", "image/png", "c", "d", True)
    entry = dao.get(EXT, "k")
    assert entry.value == b"\0\xff"
    assert (entry.key, entry.uuid, entry.value_type) == ("k", made.uuid, "image/png")
    assert (entry.category, entry.description, entry.is_encrypted) == ("c", "d", True)
    assert (entry.user_fk, entry.value_size, entry.version) == (None, 2, 1)
    assert entry.created_on == entry.changed_on
    assert dao.get(EXT, "none") is None


def test_is_encrypted_none_keeps(dao: Any) -> None:
    dao.set(EXT, "k", b"1", is_encrypted=True)
    assert dao.set(EXT, "k", b"2").is_encrypted is True
    assert dao.set(EXT, "k", b"3", is_encrypted=False).is_encrypted is False


def test_lists(dao: Any) -> None:
    resource = {"resource_type": "chart", "resource_uuid": str(uuid4())}
    dao.set(EXT, "g1", b"", category="c")
    dao.set(EXT, "g2", b"")
    dao.set(EXT, "u", b"", user_fk=7)
    dao.set(EXT, "r", b"", **resource)
    dao.set(EXT, "ru", b"", user_fk=7, **resource)

    def keys(entries: list[Any]) -> list[str]:
        return [entry.key for entry in entries]

    assert keys(dao.list_global(EXT)) == ["g1", "g2"]
    assert keys(dao.list_global(EXT, category="c")) == ["g1"]
    assert keys(dao.list_global(EXT, page=1, page_size=1)) == ["g2"]
    assert keys(dao.list_global(EXT, key_prefix="g2")) == ["g2"]
    assert keys(dao.list_user(EXT, 7)) == ["u"]
    assert keys(dao.list_resource(EXT, **resource)) == ["r"]
    assert keys(dao.list_resource(EXT, user_fk=7, **resource)) == ["ru"]
    assert dao.count(EXT) == 2 and dao.count(EXT, category="c") == 1
    from superset_extension_storage.errors import InvalidArgument

    with pytest.raises(InvalidArgument):
        dao.list_user(EXT, None)
    with pytest.raises(InvalidArgument):
        dao.list_resource(EXT, None, None)


def test_lists_are_whole(dao: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a page, all entries come, read in steps."""
    from superset_extension_storage import dao as module

    monkeypatch.setattr(module, "LIST_STEP", 10)
    resource = {"resource_type": "chart", "resource_uuid": str(uuid4())}
    keys = [f"k{number:02}" for number in range(30)]
    for key in keys:
        for scope in ({}, {"user_fk": 7}, resource, {"user_fk": 7, **resource}):
            dao.set(
                EXT, key, b"x", category="even" if int(key[1:]) % 2 else "odd", **scope
            )
    for entries in (
        dao.list_global(EXT),
        dao.list_user(EXT, 7),
        dao.list_resource(EXT, **resource),
        dao.list_resource(EXT, user_fk=7, **resource),
    ):
        assert [entry.key for entry in entries] == keys
    assert len(dao.list_global(EXT, category="odd")) == 15
    assert len(dao.list_global(EXT, key_prefix="k2")) == 10
    assert [e.key for e in dao.list_global(EXT, page=1)] == keys[25:]
    assert [e.key for e in dao.list_global(EXT, page_size=3)] == keys[:3]
    assert dao.list_global(EXT, page=9) == dao.list_global("acme.other") == []


def test_value_that_was_not_read(dao: Any) -> None:
    made = dao.set(EXT, "k", b"x")
    for entry in (made, *dao.list_global(EXT)):
        with pytest.raises(AttributeError, match="get"):
            _ = entry.value
        with pytest.raises(AttributeError, match="'surprise'"):
            _ = entry.surprise
    assert dao.get(EXT, "k").value == b"x"


def test_delete(dao: Any) -> None:
    dao.set(EXT, "k", b"")
    assert dao.delete(EXT, "k") is True
    assert dao.delete(EXT, "k") is False


def test_newest_first(dao: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from superset.extensions import db

    from superset_extension_storage import dao as module
    from superset_extension_storage.errors import InvalidArgument

    monkeypatch.setattr(module, "LIST_STEP", 2)
    for key in "abcde":
        dao.set(EXT, key, key.encode(), category="odd" if key in "ace" else None)
    db.session.commit()
    sql(
        "UPDATE ext_storage.extension_storage SET changed_on = CASE key"
        " WHEN 'a' THEN '2026-01-02'::timestamp WHEN 'e' THEN NULL"
        " ELSE '2026-01-01' END"
    )

    def keys(**selection: Any) -> str:
        entries = dao.list_global(EXT, newest_first=True, **selection)
        return "".join(entry.key for entry in entries)

    assert keys() == "adcbe"
    assert keys(page_size=2, page=1) == "cb"
    assert keys(category="odd") == "ace" and keys(key_prefix="c") == "c"
    second = dao.list_global(EXT, newest_first=True)[1]
    after = {"after_key": second.key, "after_changed_on": second.changed_on}
    assert keys(**after) == "cbe"
    assert [e.key for e in dao.list_global(EXT, after_key="c")] == ["d", "e"]
    with pytest.raises(InvalidArgument, match="newest_first"):
        dao.list_global(EXT, **after)
    values = dao.list_values(EXT, newest_first=True, page_size=3, **after)
    assert [e.value for e in values] == [b"c", b"b", b"e"]


def test_times_that_no_datetime_holds(
    dao: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hide no entry, and a list goes on behind each."""
    from superset_extension_storage import dao as module

    monkeypatch.setattr(module, "LIST_STEP", 1)
    keys = fill_times(EXT)

    def check(entry: Any) -> None:
        time = [*TIMES, None][int(entry.key[0])]
        expected = time and (TIMES[time] or datetime.fromisoformat(time))
        assert (entry.created_on, entry.changed_on) == (expected, expected)
        assert type(entry.changed_on) is type(expected)

    newest = dao.list_global(EXT, newest_first=True)
    assert [entry.key for entry in newest] == keys
    for read in (
        newest,
        dao.list_global(EXT),
        dao.get_many(EXT, keys),
        dao.list_values(EXT, newest_first=True),
        [dao.get(EXT, key) for key in keys],
    ):
        assert sorted(entry.key for entry in read) == sorted(keys)
        for entry in read:
            check(entry)
    for number, entry in enumerate(newest, 1):
        after = {"after_key": entry.key, "after_changed_on": entry.changed_on}
        for read in (dao.list_global, dao.list_values):
            found = read(EXT, newest_first=True, **after)
            assert [e.key for e in found] == keys[number:]
    for key in keys:
        before = dao.get(EXT, key)
        for written in (
            dao.set(EXT, key, b"y"),
            dao.set_many(EXT, [{"key": key, "value": b"z"}])[0],
            dao.rename(EXT, key, f"{key}new"),
        ):
            assert written.created_on == before.created_on
            assert written.changed_on.tzinfo is None
            assert written.changed_on.year == datetime.now(timezone.utc).year


def test_list_values(dao: Any) -> None:
    from superset.extensions import db

    for key in "abc":
        dao.set(EXT, key, key.encode() * 1000, is_encrypted=key == "b")
    dao.set(EXT, "d", b"other", user_fk=7)
    db.session.commit()

    def keys(**selection: Any) -> str:
        return "".join(e.key for e in dao.list_values(EXT, **selection))

    assert [e.value for e in dao.list_values(EXT)] == [
        b"a" * 1000,
        b"b" * 1000,
        b"c" * 1000,
    ]
    assert keys(max_bytes=0) == keys(max_bytes=1999) == "a"
    assert keys(max_bytes=2100) == "ab" and keys(max_bytes=1073741824) == "abc"
    assert keys(after_key="a", page_size=1) == "b" and keys(key_prefix="c") == "c"
    assert keys(user_fk=7) == "d" and keys(category="none") == ""
    sql(
        "UPDATE ext_storage.extension_storage SET value = 'gAAAAAbroken' WHERE key = 'b'"
    )
    for found in (dao.list_values(EXT), dao.get_many(EXT, ["a", "b", "c"])):
        assert [e.value and e.value[:1] for e in found] == [b"a", None, b"c"]
        assert found[1].problem and found[0].problem is found[2].problem is None


def test_many(dao: Any) -> None:
    from superset_extension_storage.errors import VersionMismatch

    resource = {"resource_type": "chart", "resource_uuid": str(uuid4())}
    for scope in ({}, {"user_fk": 7}, resource):
        made = dao.set_many(
            EXT,
            [
                {"key": "b", "value": b"\0\xff", "value_type": "image/png"},
                {"key": "a", "value": bytearray(b"1"), "is_encrypted": True},
                {
                    "key": "c",
                    "value": memoryview(b""),
                    "category": "x",
                    "description": "d",
                },
            ],
            actor_fk=3,
            **scope,
        )
        assert [(e.key, e.value_type, e.is_encrypted, e.version) for e in made] == [
            ("b", "image/png", False, 1),
            ("a", "application/json", True, 1),
            ("c", "application/json", False, 1),
        ]
        assert (made[2].category, made[2].description) == ("x", "d")
        found = dao.get_many(EXT, ["c", "none", "a", "b"], **scope)
        assert [(e.key, e.value) for e in found] == [
            ("c", b""),
            ("a", b"1"),
            ("b", b"\0\xff"),
        ]
    assert dao.set_many(EXT, [{"key": "a", "value": b"2"}])[0].is_encrypted is True
    for bad in ({"if_versions": [None, 7]}, {"if_versions": [7, None]}):
        with pytest.raises(VersionMismatch):
            from superset.extensions import db

            with db.session.begin_nested():
                dao.delete_many(EXT, ["a", "b"], **bad)
    deleted = dao.delete_many(EXT, ["c", "none", "a"], if_versions=[1, None, 2])
    assert deleted == {"c": True, "none": False, "a": True}
    assert [e.key for e in dao.list_global(EXT)] == ["b"]
    assert dao.delete_prefix(EXT, "a", user_fk=7) == 1
    assert [e.key for e in dao.list_user(EXT, 7)] == ["b", "c"]
    assert dao.count(EXT, user_fk=7, key_prefix="c") == 1


def test_rename(dao: Any) -> None:
    from superset.extensions import db

    from superset_extension_storage.errors import KeyTaken, VersionMismatch

    made = dao.set(EXT, "old", b"x", is_encrypted=True)
    dao.set(EXT, "taken", b"y")
    renamed = dao.rename(EXT, "old", "new", if_version=1, actor_fk=3)
    assert (renamed.key, renamed.uuid, renamed.version) == ("new", made.uuid, 2)
    assert dao.get_value(EXT, "new") == b"x" and dao.get_value(EXT, "old") is None
    assert dao.rename(EXT, "old", "other") is None
    for error, arguments in (
        (KeyTaken, {"new_key": "taken"}),
        (VersionMismatch, {"new_key": "other", "if_version": 1}),
    ):
        with pytest.raises(error), db.session.begin_nested():
            dao.rename(EXT, "new", **arguments)


def test_more_of_a_scope_than_a_list_has(dao: Any) -> None:
    """It would be a list of another scope."""
    from superset_extension_storage.errors import InvalidArgument

    resource = {"resource_type": "chart", "resource_uuid": "c"}
    for scope in ({}, {"user_fk": 7}, resource, {"user_fk": 7, **resource}):
        dao.set(EXT, "k", b"x", **scope)
    for method, arguments, scope in (
        ("list_global", [], {"user_fk": 7}),
        ("list_global", [], {"resource_type": "chart"}),
        ("list_global", [], {"resource_uuid": "c"}),
        ("list_user", [7], resource),
        ("list_user", [7], {"resource_uuid": "c"}),
    ):
        for page in ({}, {"page": 0}):
            with pytest.raises(InvalidArgument, match=f"{method} takes no") as caught:
                getattr(dao, method)(EXT, *arguments, **scope, **page)
            assert caught.value.sqlstate == "22023"
        for twice in ({"extension_id": EXT}, {"user": 7}):
            with pytest.raises(TypeError, match=next(iter(twice))):
                getattr(dao, method)(EXT, *arguments, **twice)
    with pytest.raises(TypeError, match="user_fk"):
        dao.list_user(EXT, 7, user_fk=8)
    with pytest.raises(TypeError, match="resource_type"):
        dao.list_resource(EXT, "chart", "c", resource_type="dashboard")
    for error, scope in (("22023", resource), ("22004", dict.fromkeys(resource))):
        for half in resource:
            with pytest.raises(InvalidArgument) as caught:
                dao.list_resource(EXT, **{**scope, half: None})
            assert caught.value.sqlstate in (error, "22004")
    assert len(dao.list_global(EXT, user_fk=None, resource_type=None)) == 1


WRONG: dict[str, tuple[str, list[Any]]] = {
    "extension_id": ("a string", [7, b"acme.my-ext", ["acme.my-ext"], True, object()]),
    "key": ("a string", [7, b"k", ["k"], uuid4(), {"k": 1}, object()]),
    "user_fk": ("an integer", ["7", "", True, False, 7.0, [7], uuid4(), object()]),
    "resource_type": ("a string", [7, b"chart", ["chart"], True, object()]),
    "resource_uuid": ("a string", [7, b"u", ["u"], True, object()]),
    "if_version": ("an integer", ["1", True, 1.0, [1]]),
    "actor_fk": ("an integer", ["1", True, 1.0, [1]]),
    "is_encrypted": ("True or False", ["no", 0, 1, 0.5, [True]]),
    "value_type": ("a string", [7, b"text/plain", ["text/plain"]]),
    "category": ("a string", [7, b"c", ["c"]]),
    "description": ("a string", [7, b"d", ["d"]]),
    "key_prefix": ("a string", [7, b"k", ["k"]]),
    "new_key": ("a string", [7, b"k", ["k"]]),
    "page": ("an integer", ["1", True, 1.5, [1]]),
    "page_size": ("an integer", ["1", True, 1.5, [1]]),
    "max_bytes": ("an integer", ["1", True, 1.5, [1]]),
    "after_key": ("a string", [7, b"k", ["k"]]),
    "newest_first": ("True or False", ["no", 1, [True]]),
    "after_changed_on": ("a datetime", [7, "now", "2026", "", date(2026, 1, 1), [None]]),
}  # fmt: skip
OF_METHODS: dict[str, dict[str, Any]] = {
    "get": {"key": "k"},
    "get_value": {"key": "k"},
    "set": {"key": "k", "value": b"x", "value_type": "a/b", "category": None,
            "description": None, "is_encrypted": None, "if_version": None,
            "actor_fk": None},
    "delete": {"key": "k", "if_version": None},
    "get_many": {"keys": ["k"]},
    "set_many": {"entries": [{"key": "k", "value": b"x"}], "actor_fk": None},
    "delete_many": {"keys": ["k"], "if_versions": None},
    "delete_prefix": {"key_prefix": "k"},
    "rename": {"key": "k", "new_key": "n", "if_version": None, "actor_fk": None},
    "list_scope": {"category": None, "key_prefix": None, "page": 0, "page_size": 1,
                   "after_key": None},
    "list_values": {"category": None, "key_prefix": None, "page": 0, "page_size": 1,
                    "newest_first": True, "after_key": "k", "after_changed_on": None,
                    "max_bytes": 1},
    "count": {"category": None, "key_prefix": None},
}  # fmt: skip


@pytest.mark.parametrize("method", OF_METHODS)
def test_arguments_of_other_types(dao: Any, method: str) -> None:
    """None is converted: True would be the user 1, and 7 a key."""
    from superset_extension_storage.errors import InvalidArgument

    for resource in (None, "chart"):
        dao.set(
            EXT, "k", b"x", user_fk=1, resource_type=resource, resource_uuid=resource
        )
    good = {
        "extension_id": EXT,
        "user_fk": 1,
        "resource_type": "chart",
        "resource_uuid": "chart",
        **OF_METHODS[method],
    }
    for name in good:
        expected, wrong = WRONG.get(name, ("", []))
        for argument in wrong:
            with pytest.raises(InvalidArgument) as caught:
                getattr(dao, method)(**{**good, name: argument})
            assert caught.value.message.startswith(f"{name} must be {expected}")
            assert caught.value.sqlstate in ("22023", "22007")
    for name, limit in (("user_fk", 2**31), ("if_version", 2**63)):
        for argument in (limit, -limit - 1) if name in good else ():
            with pytest.raises(InvalidArgument, match=f"{name} is out of range"):
                getattr(dao, method)(**{**good, name: argument})
    getattr(dao, method)(**good)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("get_many", {"keys": ["a", 7]}, "keys[2] must be a string"),
        ("get_many", {"keys": bytearray(b"ab")}, "keys[1] must be a string"),
        ("delete_many", {"keys": [b"a"]}, "keys[1] must be a string"),
        ("delete_many", {"keys": ["a"], "if_versions": [True]}, "if_versions[1] must be an integer"),
        ("delete_many", {"keys": ["a"], "if_versions": ["1"]}, "if_versions[1] must be an integer"),
        ("delete_many", {"keys": ["a"], "if_versions": 1}, "if_versions must be a list"),
        ("set_many", {"entries": [{"key": 7, "value": b""}]}, "keys[1] must be a string"),
        ("set_many", {"entries": [{"key": "a", "value": b"", "is_encrypted": 1}]}, "is_encrypted[1] must be True or False"),
        ("set_many", {"entries": [{"key": "a", "value": b"", "category": ["c"]}]}, "categories[1] must be a string"),
        ("set_many", {"entries": [{"key": "a", "value": b"", "if_version": 2**63}]}, "if_versions[1] is out of range"),
    ],
)  # fmt: skip
def test_elements_of_other_types(
    dao: Any, method: str, arguments: dict[str, Any], message: str
) -> None:
    from superset_extension_storage.errors import InvalidArgument

    with pytest.raises(InvalidArgument) as caught:
        getattr(dao, method)(EXT, **arguments)
    assert caught.value.message == message


def test_uuid_of_a_resource(dao: Any) -> None:
    """As an object, too, which models of Superset have."""
    uuid = uuid4()
    dao.set(EXT, "k", b"x", resource_type="chart", resource_uuid=uuid)
    for spelling in (uuid, str(uuid), uuid.hex.upper()):
        resource = {"resource_type": "chart", "resource_uuid": spelling}
        assert dao.get_value(EXT, "k", **resource) == b"x"
        assert len(dao.list_resource(EXT, **resource)) == 1


def test_time_with_a_zone(dao: Any) -> None:
    from superset_extension_storage.errors import InvalidArgument

    with pytest.raises(InvalidArgument, match="UTC"):
        dao.list_global(
            EXT,
            newest_first=True,
            after_key="k",
            after_changed_on=datetime.now(timezone.utc),
        )


@pytest.mark.parametrize(
    ("error", "sqlstate", "method", "arguments"),
    [
        ("InvalidArgument", "22023", "get_many", {"keys": []}),
        ("InvalidArgument", "22023", "get_many", {"keys": "abc"}),
        ("InvalidArgument", "22023", "get_many", {"keys": None}),
        ("InvalidArgument", "22023", "get_many", {"keys": ["a", "b\0"]}),
        ("InvalidArgument", "22023", "get_many", {"keys": ["\ud800"]}),
        ("InvalidArgument", "22004", "get_many", {"keys": ["a", None]}),
        ("InvalidArgument", "22001", "get_many", {"keys": ["k" * 256]}),
        ("InvalidArgument", "22023", "get_many", {"keys": ["k"] * 1001}),
        ("InvalidArgument", "22023", "delete_many", {"keys": ["a", "a"]}),
        ("InvalidArgument", "22023", "delete_many", {"keys": ["a"], "if_versions": []}),
        ("InvalidArgument", "22023", "delete_prefix", {"key_prefix": ""}),
        ("InvalidArgument", "22004", "delete_prefix", {"key_prefix": None}),
        ("InvalidArgument", "22023", "rename", {"key": "a", "new_key": ""}),
        ("InvalidArgument", "22023", "list_values", {"max_bytes": -1}),
        ("InvalidArgument", "22023", "set_many", {"entries": []}),
        ("InvalidArgument", "22023", "set_many", {"entries": {"key": "a"}}),
        ("InvalidArgument", "22023", "set_many", {"entries": [{"key": "a"}]}),
        ("InvalidArgument", "22023", "set_many", {"entries": [{"key": "a", "value": "x"}]}),
        ("InvalidArgument", "22023", "set_many", {"entries": [{"key": "a", "value": b"", "ttl": 1}]}),
        ("InvalidArgument", "22023", "set_many", {"entries": [{"key": "a", "value": b""}] * 2}),
        ("InvalidArgument", "22001", "set_many", {"entries": [{"key": "a", "value": b"", "category": "c" * 65}]}),
        ("ValueTooLarge", "54000", "set_many", {"entries": [{"key": "a", "value": bytes(16777216)}]}),
        ("VersionMismatch", "ES004", "set_many", {"entries": [{"key": "a", "value": b"", "if_version": 2}]}),
    ],
)  # fmt: skip
def test_typed_errors_of_many(
    dao: Any, error: str, sqlstate: str, method: str, arguments: dict[str, Any]
) -> None:
    from superset_extension_storage import errors

    with pytest.raises(getattr(errors, error)) as caught:
        getattr(dao, method)(EXT, **arguments)
    assert caught.value.sqlstate == sqlstate and caught.value.message


def test_large_values_leave_no_temporary_file(dao: Any) -> None:
    """Decrypted, a value would be on the disk of the server."""
    from sqlalchemy import text
    from superset.extensions import db

    def temporary_files() -> int:
        db.session.execute(text("SELECT pg_stat_force_next_flush()"))
        db.session.commit()
        return sql(
            "SELECT temp_files FROM pg_stat_database WHERE datname = current_database()"
        )[0][0]

    dao.set(EXT, "k", bytes(8_000_000), is_encrypted=True)
    before = temporary_files()
    for value in (
        dao.get_value(EXT, "k"),
        dao.get(EXT, "k").value,
        dao.get_many(EXT, ["k"])[0].value,
        dao.list_values(EXT)[0].value,
    ):
        assert value == bytes(8_000_000)
    assert temporary_files() == before
    db.session.execute(
        text("SELECT * FROM ext_storage.ext_storage_get(:e, 'k')"), {"e": EXT}
    )
    assert temporary_files() > before


@pytest.mark.parametrize(
    ("error", "sqlstate", "arguments"),
    [
        ("InvalidArgument", "22001", {"key": "k" * 256}),
        ("InvalidArgument", "22023", {"resource_type": "chart"}),
        ("InvalidArgument", "22023", {"key": ""}),
        ("InvalidArgument", "22023", {"key": "a\0b"}),
        ("InvalidArgument", "22023", {"category": "\ud800"}),
        ("InvalidArgument", "22023", {"value": "text"}),
        ("InvalidArgument", "22023", {"value": memoryview(b"abcd")[::2]}),
        ("InvalidArgument", "22004", {"key": None}),
        ("ValueTooLarge", "54000", {"value": bytes(16777216)}),
        ("VersionMismatch", "ES004", {"if_version": 9}),
    ],
)
def test_typed_errors(
    dao: Any, error: str, sqlstate: str, arguments: dict[str, Any]
) -> None:
    from superset_extension_storage import errors

    with pytest.raises(getattr(errors, error)) as caught:
        dao.set(**{"extension_id": EXT, "key": "k", "value": b"x", **arguments})
    assert caught.value.sqlstate == sqlstate and caught.value.message


def test_undecryptable(dao: Any) -> None:
    from superset.extensions import db

    from superset_extension_storage.errors import ValueUndecryptable

    dao.set(EXT, "k", b"x", is_encrypted=True)
    db.session.commit()
    sql("UPDATE ext_storage.extension_storage SET value = 'gAAAAAbroken'")
    for read in (dao.get, dao.get_value):
        with pytest.raises(ValueUndecryptable) as caught:
            read(EXT, "k")
        assert caught.value.sqlstate == "ES001"
        db.session.rollback()


def test_errors_do_not_show_the_value(dao: Any) -> None:
    import traceback

    from superset_extension_storage.errors import ExtensionStorageError

    value = "".join(["s3cret", "-", "value"])
    with pytest.raises(ExtensionStorageError) as caught:
        dao.set(EXT, "k", value.encode(), if_version=5)
    assert value not in "".join(traceback.format_exception(caught.value))


def test_actor_is_the_user(app: Any) -> None:
    from flask import g

    with app.test_request_context():
        from superset.extensions import db, security_manager
        from superset_core.common.daos import ExtensionStorageDAO

        g.user = security_manager.find_user("gamma")
        user_id = g.user.id
        ExtensionStorageDAO.set(EXT, "k", b"")
        db.session.commit()
    found = sql(
        "SELECT created_by_fk, changed_by_fk FROM ext_storage.extension_storage"
    )
    assert found == [(user_id, user_id)]


def test_not_postgresql(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from superset.extensions import db

    from superset_extension_storage.errors import StorageUnavailable

    with app.app_context():
        monkeypatch.setattr(db.session.get_bind().dialect, "name", "sqlite")
        from superset_core.common.daos import ExtensionStorageDAO

        with pytest.raises(StorageUnavailable, match="PostgreSQL"):
            ExtensionStorageDAO.get_value(EXT, "k")


def test_another_driver(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.dialects.postgresql import pg8000, psycopg2cffi
    from superset.extensions import db

    from superset_extension_storage.cli import init
    from superset_extension_storage.dao import check_dialect
    from superset_extension_storage.errors import StorageUnavailable
    from superset_extension_storage.status import status

    words = "Have SQLALCHEMY_DATABASE_URI begin with postgresql+psycopg2://."
    with app.app_context():
        engine = db.session.get_bind()
        monkeypatch.setattr(engine, "dialect", psycopg2cffi.dialect())
        check_dialect()
        monkeypatch.setattr(engine, "dialect", pg8000.dialect())
        from superset_core.common.daos import ExtensionStorageDAO

        with pytest.raises(StorageUnavailable, match="is pg8000") as caught:
            ExtensionStorageDAO.get_value(EXT, "k")
        assert caught.value.action == words
    for command in (init, status):
        done = app.test_cli_runner().invoke(command)
        assert (done.exit_code, done.stdout) == (1, "")
        assert f"is pg8000. {words}" in done.stderr


def test_encoding_that_is_not_told(app: Any) -> None:
    """By a pooler that keeps the server's parameters to itself: it is asked once."""
    import sqlalchemy
    from psycopg2.extensions import connection as Told

    from superset_extension_storage import dao
    from superset_extension_storage.errors import InvalidArgument

    class NotTold(Told):
        def get_parameter_status(self, name: str) -> None:
            return None

    sql(
        "CREATE DATABASE not_told TEMPLATE template0 ENCODING LATIN1 LOCALE 'C'",
        database="postgres",
    )
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg2://superset@/not_told?host=" + os.environ["PGHOST"],
        connect_args={"connection_factory": NotTold},
    )
    asked = []
    sqlalchemy.event.listen(
        engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2])
    )
    for _ in range(2):
        with engine.connect() as connection:
            dao._check_encoding(connection, {"key": "caf\xe9"})
            with pytest.raises(InvalidArgument, match="its encoding is LATIN1"):
                dao._check_encoding(connection, {"key": "😀"})
    engine.dispose()
    assert asked.count("SHOW server_encoding") == 1


def test_no_model(app: Any) -> None:
    """Flask-AppBuilder would create the table of one."""
    from flask_appbuilder import Model

    assert not [t for t in Model.metadata.tables if "extension_storage" in t]
    assert not sql("SELECT to_regclass('public.extension_storage')")[0][0]
