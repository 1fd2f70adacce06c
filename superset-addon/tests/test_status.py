"""The command that tells operators how the store is."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from conftest import README, SECRET_KEY, Superset, sql
from test_operation import TABLE, fernet, other_database, plant, uncommitted_entry


def status(app: Any, *arguments: str) -> tuple[int, Any]:
    """Give the exit code, and the output or what the JSON of it says."""
    from superset_extension_storage.status import status as command

    done = app.test_cli_runner().invoke(command, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit)
    if "--json" in arguments:
        return done.exit_code, json.loads(done.stdout)
    return done.exit_code, done.stdout


def lines(output: str) -> list[list[str]]:
    """Split the lines of tables into cells."""
    return [re.split(r" {2,}", line.strip()) for line in output.splitlines() if line]


def test_empty_store(app: Any) -> None:
    code, output = status(app)
    assert code == 0
    assert output.startswith("No extension stores anything.\n\n")
    assert [line[1:] for line in lines(output) if "decrypts" in line] != []
    code, report = status(app, "--json")
    assert (code, report["extensions"], report["unreadable"]) == (0, [], [])
    assert [key["role"] for key in report["keys"]] == [
        "encrypts",
        "decrypts",
        "decrypts",
    ]


def test_extensions_and_keys(app: Any) -> None:
    plant("first", 2)
    sql(f"INSERT INTO {TABLE} (extension_id, key, value) VALUES ('acme.b', 'k', '123')")
    code, output = status(app)
    assert code == 0
    table = lines(output)
    assert table[0] == ["extension", "entries", "encrypted", "bytes", "quota", "used"]
    assert table[1:3] == [
        ["acme.b", "1", "0", "3", "none"],
        ["acme.my-ext", "2", "2", table[2][3], "none"],
    ]
    (first,) = [line for line in table if "encrypts" in line]
    assert "2" in first and first[-1] == "no"
    code, report = status(app, "--json")
    assert code == report["exit_code"] == 0
    assert report["extensions"][0] == {
        "extension_id": "acme.b",
        "entries": 1,
        "encrypted_entries": 0,
        "value_bytes": 3,
        "quota_bytes": 0,
        "share": None,
    }
    first, *others = report["keys"]
    assert re.fullmatch("[0-9a-f]{8}", first["fingerprint"])
    assert (first["entries"], first["removable"]) == (2, False)
    assert first["oldest"] <= first["newest"] and "T" in first["oldest"]
    assert [key["removable"] for key in others] == [True, False]


def test_times_that_no_datetime_holds(app: Any) -> None:
    """Of a token whose maker's clock was wrong."""
    plant("first", 1)
    sql(
        f"INSERT INTO {TABLE} (extension_id, key, value, is_encrypted)"
        " VALUES ('acme.b', 'k', %s, true)",
        fernet("first").encrypt_at_time(b"value", 1_000_000_000_000),
    )
    code, output = status(app)
    (first,) = [line for line in lines(output) if "encrypts" in line]
    assert code == 0 and first[5].startswith("33658-09-27T")
    code, report = status(app, "--json")
    assert report["keys"][0]["newest"] == first[5]
    oldest = report["keys"][0]["oldest"]
    assert code == 0 and datetime.fromisoformat(oldest).tzinfo is not None


def test_removable_is_not_known(app: Any) -> None:
    """What another transaction writes now is no reason to wake an operator."""
    with uncommitted_entry():
        code, output = status(app)
        assert (code, status(app, "--json")[0]) == (0, 0)
        _, report = status(app, "--json")
    assert [key["removable"] for key in report["keys"]] == [False, None, None]
    shown = [line[-1] for line in lines(output) if "crypts" in " ".join(line)]
    assert shown == ["no", "unknown", "unknown"]


def test_no_secret_is_shown(app: Any) -> None:
    plant("other", 1)
    plant("a lost secret", 1)
    for arguments in ((), ("--json",)):
        shown = json.dumps(status(app, *arguments)[1])
        assert not any(s in shown for s in (SECRET_KEY, "a lost secret", '"value"'))


@pytest.mark.parametrize(
    ("planted", "quota", "code", "names"),
    [
        (["first"], 0, 0, []),
        (["lost"], 0, 4, ["unreadable"]),
        (["first"], 5, 8, ["90 %"]),
        (["first"], 6, 0, []),
        (["other"], 0, 16, ["old key"]),
        ([SECRET_KEY], 0, 16, ["old key"]),
        (["lost", "other"], 10, 28, ["unreadable", "90 %", "old key"]),
    ],
)
def test_exit_codes(
    app: Any, planted: list[str], quota: int, code: int, names: list[str]
) -> None:
    """Each entry has 5 bytes, and each bit of the code its sentence."""
    from superset.extensions import db

    for secret in planted:
        plant(secret, 1)
    sql(f"UPDATE {TABLE} SET value_size = 5")
    sql(f"ALTER DATABASE superset SET extension_storage.quota_per_extension = {quota}")
    try:
        with app.app_context():
            db.engine.dispose()
        assert status(app, "--json")[0] == code
        found, output = status(app)
        assert found == code
        said = [n for n in ("unreadable:", "90 %", "old key") if n in output]
        assert len(said) == len(names) == bin(code).count("1")
        assert all(name in output for name in names)
    finally:
        sql("ALTER DATABASE superset RESET extension_storage.quota_per_extension")
        with app.app_context():
            db.engine.dispose()


def test_unreadable_entries_are_named(app: Any) -> None:
    plant("lost", 1)
    sql(
        f"INSERT INTO {TABLE} (extension_id, user_fk, resource_type, resource_uuid,"
        " key, value, is_encrypted) VALUES"
        " ('acme.b', 7, 'dashboard', 'd', E'evil\\x1b[2J\nline', 'broken', true)"
    )
    code, output = status(app)
    assert code == 4 and "\x1b" not in output
    table = lines(output)
    at = table.index(["unreadable entry of", "scope", "key", "problem"])
    assert table[at + 1][:3] == [
        "acme.b",
        "user 7 dashboard d",
        r"'evil\x1b[2J\nline'",
    ]
    assert table[at + 2][:3] == ["acme.my-ext", "global", "los0"]
    report = status(app, "--json")[1]
    assert [entry["key"] for entry in report["unreadable"]] == [
        "evil\x1b[2J\nline",
        "los0",
    ]
    assert report["unreadable"][0]["user_fk"] == 7


MISSING = "the extension extension_storage is not in the metadata database"
SET_UP = "Run superset init-extension-storage"


@pytest.mark.parametrize(
    ("statements", "config", "words"),
    [
        ([], {}, [MISSING, SET_UP]),
        (
            [
                "CREATE EXTENSION pgcrypto; CREATE SCHEMA ext_storage",
                "CREATE EXTENSION extension_storage SCHEMA ext_storage VERSION '1.1'",
            ],
            {},
            ["version 1.1", "needs 1.2", SET_UP],
        ),
        (
            [
                "CREATE EXTENSION pgcrypto; CREATE SCHEMA ext_storage",
                "CREATE EXTENSION extension_storage SCHEMA ext_storage",
            ],
            {},
            ["permission denied for schema ext_storage", SET_UP],
        ),
        (
            ["CREATE EXTENSION extension_storage CASCADE"],
            {},
            ['schema "ext_storage" does not exist', SET_UP],
        ),
        (
            [],
            {"EXTENSION_STORAGE_ENCRYPTION_KEYS": "notalist"},
            ["EXTENSION_STORAGE_ENCRYPTION_KEYS must be a list of strings"],
        ),
        (
            [],
            {"EXTENSION_STORAGE_ENCRYPTION_KEYS": ["", "x"]},
            ["EXTENSION_STORAGE_ENCRYPTION_KEYS, item 1, must not be empty"],
        ),
        (
            [],
            {"EXTENSION_STORAGE_KEYS_BY": "post"},
            ["EXTENSION_STORAGE_KEYS_BY must be one of"],
        ),
    ],
)
def test_store_that_cannot_be_asked(
    tmp_path: Path, statements: list[str], config: dict[str, Any], words: list[str]
) -> None:
    """A line says what to do; for monitoring it is in the JSON, too."""
    with other_database(tmp_path, "postgres", *statements) as superset:
        superset.config.update(config)
        for arguments in ((), ("--json",)):
            done = superset.run("extension-storage-status", *arguments, check=False)
            assert done.returncode == 1
            assert "Traceback" not in done.stderr + done.stdout
            assert len(re.findall("^Error: ", done.stderr, re.MULTILINE)) == 1
            assert all(word in done.stderr for word in words), done.stderr
        last = json.loads(done.stdout.splitlines()[-1])
        assert last["exit_code"] == 1 and set(last) == {"error", "exit_code"}
        assert f"Error: {last['error']}\n" in done.stderr


def test_keys_that_others_need(app: Any) -> None:
    """Superset needs its SECRET_KEY, whatever the entries need."""
    table = lines(status(app)[1])
    found = {line[0]: line[-1] for line in table}
    assert found["SECRET_KEY"] == "no: Superset itself needs it"
    listed = "item 2 of EXTENSION_STORAGE_ENCRYPTION_KEYS"
    assert found[listed] == "yes"
    keys = {key["source"]: key for key in status(app, "--json")[1]["keys"]}
    own = keys["SECRET_KEY"]
    assert (own["removable"], own["remark"]) == (False, "Superset itself needs it")
    other = keys[listed]
    assert (other["removable"], other["remark"]) == (True, None)


def test_without_the_line_in_the_configuration(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from superset_extension_storage.status import status as command

    monkeypatch.delitem(app.extensions, "extension_storage")
    done = app.test_cli_runner().invoke(command)
    assert done.exit_code == 1
    assert "import install as FLASK_APP_MUTATOR" in done.stderr


def test_not_postgresql(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from superset.extensions import db

    from superset_extension_storage.status import status as command

    with app.app_context():
        monkeypatch.setattr(db.session.get_bind().dialect, "name", "sqlite")
    done = app.test_cli_runner().invoke(command, ["--json"])
    assert done.exit_code == 1 and "PostgreSQL" in done.stderr
    assert "PostgreSQL" in json.loads(done.stdout)["error"]


def test_bad_option(installed: Superset) -> None:
    assert (
        installed.run("extension-storage-status", "--yaml", check=False).returncode == 2
    )


def test_as_the_readme_tells(installed: Superset) -> None:
    command = "superset extension-storage-status --json"
    assert f"\n{command}\n" in README.read_text()
    done = installed.run(*command.split()[1:])
    assert json.loads(done.stdout.splitlines()[-1])["exit_code"] == 0
