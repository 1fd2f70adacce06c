"""ExtensionStorageDAO inside a Superset application."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from conftest import README, sql

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
    assert len(examples) == 2
    names: dict[str, Any] = {
        "user_id": 1,
        "payload": b"state",
        "dashboard": SimpleNamespace(uuid=uuid4()),
    }
    exec(examples[0], names)
    assert names["value"] == b'{"lang":"fr"}'
    state = dao.get(
        EXT,
        "state",
        resource_type="dashboard",
        resource_uuid=str(names["dashboard"].uuid),
    )
    assert state.value == b"state"
    exec(examples[1], names)
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


@pytest.mark.parametrize(
    ("error", "sqlstate", "arguments"),
    [
        ("InvalidArgument", "22001", {"key": "k" * 256}),
        ("InvalidArgument", "22023", {"resource_type": "chart"}),
        ("InvalidArgument", "22023", {"key": ""}),
        ("InvalidArgument", "22023", {"key": "a\0b"}),
        ("InvalidArgument", "22023", {"category": "\ud800"}),
        ("InvalidArgument", "22023", {"value": "text"}),
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


def test_no_model(app: Any) -> None:
    """Flask-AppBuilder would create the table of one."""
    from flask_appbuilder import Model

    assert not [t for t in Model.metadata.tables if "extension_storage" in t]
    assert not sql("SELECT to_regclass('public.extension_storage')")[0][0]
