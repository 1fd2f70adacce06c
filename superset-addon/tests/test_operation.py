"""What operators do and meet: set-up, rotation, deletions, a store out of order."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from cryptography.fernet import Fernet, InvalidToken

from conftest import (
    END,
    README,
    SECRET_KEY,
    Client,
    Superset,
    reload,
    session,
    setting,
    sql,
)
from services import wait_until

EXTVERSION = "SELECT extversion FROM pg_extension WHERE extname = 'extension_storage'"
SUMMARY = re.compile(r"^\d+ scanned, .*$", re.MULTILINE)
SECRETS = ["new-strong-secret", "old-secret"]
TABLE = "ext_storage.extension_storage"
COLUMNS = 40


def fernet(secret: str) -> Fernet:
    return Fernet(urlsafe_b64encode(sha256(secret.encode()).digest()))


def plant(secret: str, count: int, extension: str = "acme.my-ext") -> None:
    """Write entries as another program would, encrypted with a secret."""
    for number in range(count):
        sql(
            f"INSERT INTO {TABLE} (extension_id, key, value, is_encrypted)"
            " VALUES (%s, %s, %s, true)",
            extension,
            f"{secret[:3]}{number}",
            fernet(secret).encrypt(b"value"),
        )


@contextmanager
def uncommitted_entry() -> Iterator[None]:
    """Run while another transaction has written an entry."""
    connection = psycopg2.connect(dbname="superset")
    try:
        connection.cursor().execute(
            f"INSERT INTO {TABLE} (extension_id, key, value) VALUES ('acme.b', 'k', '')"
        )
        yield
    finally:
        connection.close()


def tokens() -> list[bytes]:
    return [bytes(value) for (value,) in sql(f"SELECT value FROM {TABLE} ORDER BY key")]


# Set-up


def test_installation_leaves_nothing_in_the_checkout(tmp_path: Path) -> None:
    """As the README installs it."""
    root = Path(__file__).parents[2]
    (command,) = re.findall(r"^pip (install .*)$", README.read_text(), re.MULTILINE)
    checkout = tmp_path / "checkout"
    shutil.copytree(root / "superset-addon", checkout / "superset-addon")
    shutil.copy(root / ".gitignore", checkout)

    def run(*program: str | Path) -> str:
        return subprocess.run(
            program, cwd=checkout, check=True, capture_output=True, text=True
        ).stdout

    run("git", "init", "-q")
    run("git", "add", ".")
    installed = tmp_path / "installed"
    run(
        *(sys.executable, "-m", "pip", *command.split(), "--target", installed),
        *("--no-deps", "--no-build-isolation"),
    )
    package = installed / "superset_extension_storage"
    assert package.joinpath("templates/extension_storage/page.html").exists()
    assert package.joinpath("static/page.css").exists()
    assert checkout.joinpath("superset-addon/build").exists()
    assert run("git", "ls-files", "--others", "--exclude-standard") == ""
    assert run("git", "diff", "--name-only") == ""


def test_init_again(app: Any) -> None:
    from superset_extension_storage.cli import init

    done = app.test_cli_runner().invoke(init)
    lines = done.stdout.splitlines()
    version = sql(EXTVERSION)[0][0]
    assert done.exit_code == 0
    assert lines[0].startswith("Server: PostgreSQL ")
    assert lines[1:6] == [
        f"Extension: {version}, already installed",
        "Rights: role superset may use the store",
        "Deleted users: their entries are already purged with them",
        "Deleted dashboards: their entries are already purged with them",
        "Deleted charts: their entries are already purged with them",
    ]
    assert [re.sub("[0-9a-f]{8}", "F", line) for line in lines[6:]] == [
        "Key 1, fingerprint F, item 1 of EXTENSION_STORAGE_ENCRYPTION_KEYS:"
        " encrypts, 0 entries; it is needed",
        "Key 2, fingerprint F, item 2 of EXTENSION_STORAGE_ENCRYPTION_KEYS:"
        " decrypts, 0 entries; it may be removed",
        "Key 3, fingerprint F, SECRET_KEY: decrypts, 0 entries; no entry needs it,"
        " but Superset does",
    ]


def test_init_while_a_transaction_writes(app: Any) -> None:
    """The key that it uses, if any, cannot be told."""
    from superset_extension_storage.cli import init

    with uncommitted_entry():
        done = app.test_cli_runner().invoke(init)
    assert done.exit_code == 0
    verdicts = re.findall(r"^Key (\d).*; (.*)$", done.stdout, re.MULTILINE)
    unknown = "it is not known whether it is needed: other transactions may use it"
    assert verdicts == [("1", "it is needed"), ("2", unknown), ("3", unknown)]


def test_token_of_a_time_that_no_datetime_holds(app: Any) -> None:
    sql(
        f"INSERT INTO {TABLE} (extension_id, key, value, is_encrypted)"
        " VALUES ('acme.b', 'k', %s, true)",
        fernet("first").encrypt_at_time(b"value", 1_000_000_000_000),
    )
    from superset_extension_storage.cli import init

    done = app.test_cli_runner().invoke(init)
    assert done.exit_code == 0 and "encrypts, 1 entries; it is needed" in done.stdout


def test_init_with_entries_that_no_key_reads(app: Any) -> None:
    from superset_extension_storage.cli import init

    plant("lost", 2)
    done = app.test_cli_runner().invoke(init)
    assert done.exit_code == 4
    assert "Error: Entries that no key reads: 2." in done.stderr


@pytest.mark.parametrize("state", ["DISABLE", "ENABLE REPLICA"])
@pytest.mark.parametrize(
    ("what", "table"),
    [("users", "ab_user"), ("dashboards", "dashboards"), ("charts", "slices")],
)
def test_init_repairs_triggers(app: Any, what: str, table: str, state: str) -> None:
    """A restore may have left them so: all of them, or one."""
    from superset_extension_storage.cli import init

    enabled = (
        "SELECT bool_and(tgenabled = 'O') FROM pg_trigger"
        f" WHERE tgrelid = '{table}'::regclass AND tgname LIKE 'extension_storage%%'"
    )
    names = sql(
        "SELECT tgname FROM pg_trigger WHERE tgrelid = %s::regclass"
        " AND tgname LIKE 'extension_storage%%'",
        table,
    )
    for triggers in ([*names], names[:1]):
        for (name,) in triggers:
            sql(f"ALTER TABLE {table} {state} TRIGGER {name}")
        assert sql(enabled) == [(False,)]
        done = app.test_cli_runner().invoke(init)
        assert (
            f"Deleted {what}: their entries are now purged with them\n" in done.stdout
        )
        assert done.stdout.count(" are already purged with them\n") == 2
        assert sql(enabled) == [(True,)]


def plain(superset: Superset, *command: str) -> str:
    """Run a command that cannot do its work; give the one line that says why."""
    done = superset.run(*command, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr, done.stderr
    (line,) = re.findall("^Error: .*$", done.stderr, re.MULTILINE)
    assert done.stderr.rstrip().endswith(line)
    return line


@pytest.mark.parametrize(
    "command", ["init-extension-storage", "rotate-extension-storage-keys"]
)
def test_commands_without_what_they_need(
    second: Superset, tmp_path: Path, command: str
) -> None:
    second.lines = ["del FLASK_APP_MUTATOR"]
    assert (
        "superset_config.py lacks the line: from superset_extension_storage import"
        " install as FLASK_APP_MUTATOR"
    ) in plain(second, command)

    second.lines = [f"SQLALCHEMY_DATABASE_URI = 'sqlite:///{tmp_path}/metadata.db'"]
    assert "The metadata database is sqlite: the store needs PostgreSQL." in plain(
        second, command
    )

    # the administrator has removed the extension's package from the server
    library = (
        "UPDATE pg_proc SET probin = %s WHERE probin = %s AND proname = %s"
        " RETURNING proname"
    )
    there, gone = "$libdir/extension_storage", "$libdir/gone"
    functions = ("ext_storage_key_status", "ext_storage_rotate_keys")
    second.lines = []
    for name in functions:
        assert sql(library, gone, there, name)
    try:
        line = plain(second, command)
        assert (
            'could not access file "$libdir/gone": No such file or directory.' in line
        )
        assert "What was done stays" not in line
    finally:
        for name in functions:
            assert sql(library, there, gone, name)


def test_commands_with_an_older_extension(tmp_path: Path) -> None:
    with other_database(
        tmp_path,
        "postgres",
        "CREATE SCHEMA ext_storage;"
        " CREATE EXTENSION extension_storage SCHEMA ext_storage VERSION '1.1' CASCADE",
    ) as superset:
        assert (
            "The extension is version 1.1, the add-on needs 1.2: the administrator of"
            " the server updates its package, and the extension's owner runs ALTER"
            " EXTENSION extension_storage UPDATE."
        ) in plain(superset, "init-extension-storage")
        assert "The extension is version 1.1, " in plain(
            superset, "rotate-extension-storage-keys"
        )
        sql("DROP SCHEMA ext_storage CASCADE", database="other")
        assert (
            "The extension is not installed: run superset init-extension-storage."
            in (plain(superset, "rotate-extension-storage-keys"))
        )


@pytest.fixture
def older(app: Any, tmp_path: Path) -> Iterator[Superset]:
    """A Superset on a copy of the database that has version 1.1 of the extension."""
    from superset.extensions import db

    with app.app_context():
        db.engine.dispose()
    sql(
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
        " WHERE datname = 'superset'",
        database="postgres",
    )
    sql("CREATE DATABASE older OWNER superset TEMPLATE superset", database="postgres")
    superset = Superset(tmp_path / "older", "older")
    try:
        for statement in (
            "DROP EXTENSION extension_storage CASCADE",
            "CREATE EXTENSION extension_storage SCHEMA ext_storage VERSION '1.1' CASCADE",
            "SELECT ext_storage.ext_storage_grant('superset', 'admin')",
        ):
            sql(statement, database="older")
        yield superset
    finally:
        superset.stop()
        sql("DROP DATABASE older WITH (FORCE)", database="postgres")


def test_everything_with_an_older_extension(older: Superset) -> None:
    """The page, the command and each call of the API say what to do."""
    done = older.run("extension-storage-status", "--json", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    for words in ("version 1.1", "needs 1.2", "Run superset init-extension-storage"):
        assert words in error and words in done.stderr
    older.start()
    admin = older.client("admin")
    for query in ("", "?usage=exact&keys=all"):
        answer = admin.get(f"/extension-storage/{query}")
        assert answer.status_code == 200
        assert "the extension is version 1.1, the add-on needs 1.2" in answer.text
        assert (
            "Run superset init-extension-storage: it sets the store up" in answer.text
        )
    operations = [{"op": "get", "key": "k"}, {"op": "set", "key": "l", "value": "v"}]
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "user/k", {}),
        ("PUT", "user/k", {"json": {"value": "v"}}),
        ("DELETE", "user/k", {}),
        ("DELETE", "user/?key_prefix=k", {}),
        *(
            ("GET", f"user/?{query}", {})
            for query in ("", "include=value", "order=newest", "order=newest&page=1")
        ),
        *(
            ("POST", "user/", {"json": {"operations": chosen}})
            for chosen in (operations, operations[:1], operations[1:])
        ),
    ]
    refused = 0
    for method, path, options in calls:
        answer = admin.request(method, path, **options)
        assert answer.status_code in (200, 201, 404, 503), (method, path, answer.text)
        refused += answer.status_code == 503
        if answer.status_code == 503:
            assert "Retry-After" not in answer.headers
    assert refused > 0
    log = older.log.read_text()
    assert log.count("Run superset init-extension-storage") >= refused


@contextmanager
def other_database(tmp_path: Path, owner: str, *statements: str) -> Iterator[Superset]:
    """A database with the tables that deletions are watched on."""
    sql(f"CREATE DATABASE other OWNER {owner}", database="postgres")
    try:
        for statement in (
            "GRANT CREATE ON SCHEMA public TO superset",
            "SET ROLE superset;"
            " CREATE TABLE ab_user (id integer PRIMARY KEY);"
            " CREATE TABLE dashboards (uuid uuid); CREATE TABLE slices (uuid uuid)",
            *statements,
        ):
            sql(statement, database="other")
        yield Superset(tmp_path / "other", "other")
    finally:
        sql("DROP DATABASE other WITH (FORCE)", database="postgres")


def test_init_updates(tmp_path: Path) -> None:
    with other_database(
        tmp_path,
        "superset",
        "SET ROLE superset; CREATE SCHEMA ext_storage;"
        " CREATE EXTENSION extension_storage SCHEMA ext_storage VERSION '1.0' CASCADE",
    ) as superset:
        output = superset.run("init-extension-storage").stdout
        version = sql(EXTVERSION, database="other")[0][0]
        assert f"Extension: {version}, updated from 1.0\n" in output
        assert "Deleted users: their entries are now purged with them\n" in output


def left(words: str) -> list[str]:
    """Give the statements that another role is asked to run."""
    return re.findall(r"^    (.*;)$", words, re.MULTILINE)


def test_init_without_rights(tmp_path: Path) -> None:
    """The command says what to run; where that is done, it succeeds."""
    with other_database(tmp_path, "postgres") as superset:
        done = superset.run("init-extension-storage", check=False)
        assert done.returncode == 1
        assert (
            "In database other, a superuser, or a role that owns the extension and each"
            " table that is attached, must run\n" in done.stderr
        )
        assert "Server:" not in done.stdout
        statements = left(done.stderr)
        assert len(statements) == 7
        assert statements[0] == "CREATE EXTENSION IF NOT EXISTS pgcrypto;"
        assert not any("CASCADE" in statement for statement in statements)
        # What is done is not asked for again
        for number, statement in enumerate(statements[:-1], 1):
            sql(statement, database="other")
            if number < 3:
                continue
            done = superset.run("init-extension-storage", check=False)
            # it owns its tables, but a trigger needs a right on the function, too
            if done.returncode == 0:
                break
            assert left(done.stderr) == statements[number:], statement
        else:
            sql(statements[-1], database="other")
        output = superset.run("init-extension-storage").stdout
        assert "already installed\nRights: role superset may use the store\n" in output
        assert output.count("their entries are already purged with them\n") == 3
        grant = next(line for line in statements if "ext_storage_grant" in line)
        for right in (
            "USAGE ON SCHEMA ext_storage",
            "UPDATE ON ext_storage.extension_storage",
            "INSERT ON ext_storage.ext_storage_secrets",
            "EXECUTE ON FUNCTION ext_storage.ext_storage_functions",
            "EXECUTE ON FUNCTION ext_storage.ext_storage_rename",
        ):
            sql(f"REVOKE {right} FROM superset", database="other")
            done = superset.run("init-extension-storage", check=False)
            assert done.returncode == 1, right
            assert f"must run\n    {grant}\n" in done.stderr
            sql(grant, database="other")
        superset.run("init-extension-storage")


def test_init_in_another_schema(tmp_path: Path) -> None:
    with other_database(
        tmp_path, "superset", "CREATE EXTENSION extension_storage CASCADE"
    ) as superset:
        done = superset.run("init-extension-storage", check=False)
        assert done.returncode == 1
        assert "EXTENSION_STORAGE_SCHEMA = 'public'" in done.stderr
        superset.config["EXTENSION_STORAGE_SCHEMA"] = "public"
        assert "already installed" in superset.run("init-extension-storage").stdout


def test_schema_of_any_name(tmp_path: Path) -> None:
    with other_database(
        tmp_path, "superset", "GRANT CREATE ON DATABASE other TO superset"
    ) as superset:
        superset.config["EXTENSION_STORAGE_SCHEMA"] = "All 100% of :my %(stores)s"
        output = superset.run("init-extension-storage").stdout
        assert sql(
            "SELECT extname, nspname FROM pg_extension e"
            " JOIN pg_namespace n ON n.oid = extnamespace"
            " WHERE extname IN ('pgcrypto', 'extension_storage') ORDER BY 1",
            database="other",
        ) == [
            ("extension_storage", superset.config["EXTENSION_STORAGE_SCHEMA"]),
            ("pgcrypto", "public"),
        ]
        assert ", now installed\nRights: role superset may use the store\n" in output
        output = superset.run("rotate-extension-storage-keys").stdout
        assert "\n0 scanned, 0 re-encrypted, 0 already current, 0 failed\n" in output


# Rotation


def test_rotation_in_three_steps(second: Superset) -> None:
    """As the README tells, with every statement logged, which shows no key."""
    secrets = SECRETS
    log = Path(os.environ["PG_DATA"]).with_name("log")
    logged = log.stat().st_size
    sql("ALTER DATABASE superset SET log_statement = 'all'")
    try:
        # Before: one entry under SECRET_KEY, one under the old key.
        plant(SECRET_KEY, 1)
        second.restart(EXTENSION_STORAGE_ENCRYPTION_KEYS=secrets[1:])
        client = second.client("admin")
        client.put("global/old", {"value": "value", "is_encrypted": True})

        def readable(*keys: str) -> None:
            for key in keys:
                assert client.get(f"global/{key}").text == "value"

        readable("a s0", "old")

        # 1. The new key first, and a restart.
        second.restart(EXTENSION_STORAGE_ENCRYPTION_KEYS=secrets)
        readable("a s0", "old")
        client.put("global/new", {"value": "value", "is_encrypted": True})
        readable("new")
        running = sql(
            "SELECT string_agg(query, ' ') FROM pg_stat_activity"
            " WHERE usename = 'superset'"
        )[0][0]
        assert running
        assert not any(secret in running for secret in [*secrets, SECRET_KEY])

        # 2. Re-encrypt.
        dry, real = re.findall(
            r"^superset (rotate.*)$", README.read_text(), re.MULTILINE
        )
        done = second.run(*dry.split())
        assert (
            "3 scanned, 2 to re-encrypt, 1 already current, 0 failed\n" in done.stdout
        )
        done = second.run(*real.split())
        assert "3 scanned, 2 re-encrypted, 1 already current, 0 failed\n" in done.stdout
        keys = re.findall(
            r"^Key (\d), fingerprint [0-9a-f]{8}, .*: (.*)$", done.stdout, re.MULTILINE
        )
        assert keys == [
            ("1", "encrypts, 3 entries; it is needed"),
            ("2", "decrypts, 0 entries; it may be removed"),
            ("3", "decrypts, 0 entries; no entry needs it, but Superset does"),
        ]
        readable("a s0", "old", "new")
        assert {fernet(secrets[0]).decrypt(token) for token in tokens()} == {b"value"}

        # 3. The old key goes, and a restart.
        second.restart(EXTENSION_STORAGE_ENCRYPTION_KEYS=secrets[:1])
        readable("a s0", "old", "new")
        with pytest.raises(InvalidToken):
            fernet(secrets[1]).decrypt(tokens()[0])
    finally:
        sql("ALTER DATABASE superset RESET log_statement")
    with log.open("rb") as file:
        file.seek(logged)
        text = file.read().decode(errors="replace")
    assert "ext_storage.ext_storage_set(" in text and "ext_storage_rotate_keys(" in text
    for source in (text, second.log.read_text()):
        assert not any(secret in source for secret in [*secrets, SECRET_KEY])


def rotate(app: Any, *arguments: str) -> Any:
    from superset_extension_storage.cli import rotate as command

    return app.test_cli_runner().invoke(command, arguments)


def test_rotate_dry_run_extension_and_batches(app: Any) -> None:
    plant("other", 7)
    plant("other", 2, "acme.second")
    before = tokens()
    done = rotate(app, "--dry-run")
    assert "9 scanned, 9 to re-encrypt, 0 already current, 0 failed\n" in done.stdout
    assert tokens() == before
    done = rotate(app, "--extension-id=acme.my-ext", "--batch-size=2")
    assert done.exit_code == 0
    assert "7 scanned, 7 re-encrypted, 0 already current, 0 failed\n" in done.stdout
    assert "\r" not in done.stdout and "%" not in done.stdout
    assert re.search(
        r"^Key 2, fingerprint \w{8}, .*: decrypts, 2 entries; it is needed$",
        done.stdout,
        re.MULTILINE,
    )
    assert sum(token not in before for token in tokens()) == 7
    committed = sql(
        f"SELECT count(DISTINCT xmin::text) FROM {TABLE}"
        " WHERE extension_id = 'acme.my-ext'"
    )
    assert committed == [(4,)]


def test_rotate_with_a_bad_row(app: Any) -> None:
    plant("other", 2)
    plant("lost", 1)
    done = rotate(app)
    assert done.exit_code == 4
    assert "3 scanned, 2 re-encrypted, 0 already current, 1 failed\n" in done.stdout
    assert "Entries that no key reads: 1." in done.stderr
    warning = re.search(r"^Warning: (.*)$", done.stderr, re.MULTILINE)[1]
    uuid = sql(f"SELECT uuid::text FROM {TABLE} WHERE key = 'los0'")[0][0]
    assert all(word in warning for word in ("los0", "acme.my-ext", uuid))


def test_rotate_leaves_rows(app: Any) -> None:
    """Rows that somebody has locked: what is left is said, also by the exit code."""
    plant("other", 2)
    with setting("extension_storage.rotation_lock_wait", "0"):
        other = psycopg2.connect(dbname="superset")
        try:
            with other.cursor() as cursor:
                cursor.execute(f"SELECT 1 FROM {TABLE} WHERE key = 'oth0' FOR UPDATE")
                done = rotate(app)
        finally:
            other.close()
        assert done.exit_code == 3
        assert "2 scanned, 1 re-encrypted, 0 already current, 0 failed\n" in done.stdout
        assert "Warning: 1 locked rows and 0 that cannot be written" in done.stderr
        assert "Rows were left. What was done stays; run the" in done.stderr
        assert rotate(app).exit_code == 0


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--batch-size=0", "'--batch-size': 0 is not"),
        ("--batch-size=3000000000", "'--batch-size': 3000000000 is not"),
        (
            "--extension-id=acme.my-exx",
            "'acme.my-exx'; extensions with entries: acme.a, acme.b",
        ),
        ("--extension-id=", "''; extensions with entries: acme.a, acme.b"),
        ("--extension-id=" + "x" * 300, "extensions with entries: acme.a, acme.b"),
    ],
)
def test_rotate_with_an_option_that_cannot_be(
    app: Any, argument: str, named: str
) -> None:
    plant("other", 1, "acme.a")
    plant("other", 1, "acme.b")
    before = tokens()
    done = rotate(app, argument)
    assert done.exit_code == 2
    assert named in done.stderr and "What was done" not in done.stderr
    assert tokens() == before


def test_dry_run_in_a_pipe(app: Any) -> None:
    """Progress, one summary, and no word of anything that was done."""
    plant("other", 3)
    done = rotate(app, "--dry-run", "--batch-size=2")
    lines = done.stdout.splitlines()
    assert sum(" scanned, " in line for line in lines) == 1
    assert "re-encrypted" not in done.stdout
    assert re.match("rotate_keys: 2 of 3 rows done, ", lines[0])


def test_server_stops_in_mid_rotation(app: Any, request: pytest.FixtureRequest) -> None:
    """What ended it is told in a line, not what came of it."""
    plant("other", 3)
    sql(
        "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
        " AS 'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END';"
        f" CREATE TRIGGER stop BEFORE UPDATE ON {TABLE}"
        " FOR EACH ROW EXECUTE FUNCTION stop()"
    )
    request.addfinalizer(lambda: sql("DROP FUNCTION IF EXISTS stop CASCADE"))
    done = rotate(app)
    assert done.exit_code == 3
    (line,) = done.stderr.splitlines()
    assert line == (
        "Error: terminating connection due to administrator command."
        " What was done stays; run the command again to go on."
    )
    sql("DROP FUNCTION stop CASCADE")
    done = rotate(app)
    assert done.exit_code == 0
    assert "3 scanned, 3 re-encrypted, 0 already current, 0 failed" in done.stdout


def test_rotate_with_ids_that_are_not_unique(
    app: Any, request: pytest.FixtureRequest
) -> None:
    """Running it again does not help: somebody must mend the table."""
    key = "extension_storage_pkey"
    plant("other", 2)

    def mend() -> None:
        sql(f"DELETE FROM {TABLE}")
        sql(f"ALTER TABLE {TABLE} ADD CONSTRAINT {key} PRIMARY KEY (id)")

    request.addfinalizer(mend)
    sql(f"ALTER TABLE {TABLE} DROP CONSTRAINT {key}")
    sql(f"UPDATE {TABLE} SET id = 1")
    done = rotate(app)
    assert done.exit_code == 1
    assert "has several rows with id 1. Give these rows new ids" in done.stderr
    assert "run the command again" not in done.stderr


def test_rotate_can_be_stopped_during_a_notice(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from superset_extension_storage import cli

    plant("other", 1000)
    append = cli.Progress.append

    def stop(self: Any, notice: str) -> None:
        signal.raise_signal(signal.SIGINT)
        append(self, notice)

    monkeypatch.setattr(cli.Progress, "append", stop)
    done = rotate(app, "--batch-size=1")
    assert done.exit_code == cli.INTERRUPTED, done.output
    assert "What was done stays; run the command again to go on." in done.output


def test_rotate_shows_a_bar_and_can_be_stopped(
    second: Superset, app: Any, request: pytest.FixtureRequest
) -> None:
    """On a narrow terminal; a second run goes on where Ctrl-C has stopped the first."""
    plant("other", 1)
    sql(
        f"INSERT INTO {TABLE} (extension_id, key, value, is_encrypted)"
        f" SELECT extension_id, key || n, value, true FROM {TABLE}"
        " CROSS JOIN generate_series(1, 1999) n"
    )
    sql(
        "CREATE FUNCTION stick() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN PERFORM pg_sleep(3600); RETURN NEW; END';"
        f" CREATE TRIGGER stick BEFORE UPDATE ON {TABLE}"
        " FOR EACH ROW WHEN (NEW.key = 'oth01000') EXECUTE FUNCTION stick()"
    )
    request.addfinalizer(lambda: sql("DROP FUNCTION IF EXISTS stick CASCADE"))
    second.config["EXTENSION_STORAGE_ENCRYPTION_KEYS"] = ["first", "other"]
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [
            Path(sys.executable).with_name("superset"),
            "rotate-extension-storage-keys",
            "--batch-size=20",
        ],
        cwd=second.folder,
        env={**second.environment(), "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(terminal)
    shown, stopped = "", False
    while True:
        try:
            shown += os.read(master, 4096).decode()
        except OSError:
            break
        if not stopped and re.search(r"#-+\] +\d+%", shown) is not None:
            process.send_signal(signal.SIGINT)
            stopped = True
    os.close(master)
    stderr = process.communicate(timeout=END)[1]
    assert process.returncode == 3
    assert "What was done stays; run the command again to go on." in stderr
    assert re.search(r"Re-encrypting  \[#+-+\] +\d+%", shown)
    drawn = [line for line in re.split("[\r\n]+", shown) if "Re-encrypting" in line]
    drawn = [re.sub(r"\x1b\[[?\w]*", "", line) for line in drawn]
    assert max(map(len, drawn)) <= COLUMNS
    assert "100%" not in shown and "rows done" not in shown

    sql("DROP FUNCTION stick CASCADE")
    done = rotate(app)
    scanned, rotated, current, failed = map(
        int, re.findall(r"\d+", SUMMARY.search(done.stdout)[0])
    )
    assert (scanned, failed) == (2000, 0)
    assert rotated > 0 and current > 0 and rotated + current == scanned


def start_for_ctrl_c(superset: Superset, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [Path(sys.executable).with_name("superset"), *command],
        cwd=superset.folder,
        env=superset.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize(
    "command",
    [
        ["init-extension-storage"],
        ["rotate-extension-storage-keys", "--extension-id=acme.my-ext"],
        ["extension-storage-status"],
        ["extension-storage-status", "--json"],
    ],
    ids=" ".join,
)
def test_ctrl_c(second: Superset, app: Any, command: list[str]) -> None:
    """It ends a command at once, while the server has not answered, without a word."""
    plant("other", 1)
    waits = "SELECT query FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with session() as other:
        other.execute(f"LOCK {TABLE} IN ACCESS EXCLUSIVE MODE")
        process = start_for_ctrl_c(second, *command)
        wait_until(lambda: sql(waits) != [], "it does not ask for the entries")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=END)
        wait_until(lambda: sql(waits) == [], "the server goes on")
    assert process.returncode == 130
    for text in ("Aborted", "Error", "Traceback", SECRET_KEY):
        assert text not in stdout + stderr
    assert "{" not in stdout


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and never answers, as a broken network has it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_connect_timeout(
    app: Any, silent: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts in commands, too, for each host."""
    port = silent.getsockname()[1]
    uri = (
        "postgresql+psycopg2://superset@/superset?connect_timeout=2"
        f"&host=127.0.0.1{{}}&port={port}{{}}"
    )
    monkeypatch.setitem(app.config, "EXTENSION_STORAGE_DIRECT_URI", uri.format("", ""))
    done = rotate(app)
    assert done.exit_code == 1
    assert "timeout expired" in done.stderr
    another = uri.format(f",{os.environ['PGHOST']}", ",5432")
    monkeypatch.setitem(app.config, "EXTENSION_STORAGE_DIRECT_URI", another)
    done = rotate(app)
    assert done.exit_code == 0, done.stderr


def test_ctrl_c_while_it_connects(
    second: Superset, app: Any, silent: socket.socket
) -> None:
    second.config["EXTENSION_STORAGE_DIRECT_URI"] = (
        f"postgresql+psycopg2://superset@127.0.0.1:{silent.getsockname()[1]}/superset"
    )
    process = start_for_ctrl_c(second, "rotate-extension-storage-keys")
    silent.settimeout(END)
    with silent.accept()[0]:
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=END)
    assert process.returncode == 130
    assert "Error" not in stderr and "Traceback" not in stderr


# Deletions


def test_deleted_user(running: Superset, admin: Client) -> None:
    """Superset's API deletes a user; what was private to it goes, no more."""
    roles = admin.get("/api/v1/security/roles/").json()
    gamma = next(r["id"] for r in roles["result"] if r["name"] == "Alpha")
    answer = admin.request(
        "POST",
        "/api/v1/security/users/",
        json={
            "username": "leaver",
            "first_name": "l",
            "last_name": "l",
            "email": "leaver@example.org",
            "active": True,
            "password": "correct horse",
            "roles": [gamma],
        },
    )
    assert answer.status_code == 201, answer.text
    user_id = answer.json()["id"]
    leaver = running.client("leaver")
    for scope in ("user", "global", "resources/thing/u"):
        assert leaver.put(f"{scope}/of-leaver", "x").ok
    admin.put("user/of-admin", "x")
    sql(
        f"INSERT INTO {TABLE} (extension_id, user_fk, resource_type, resource_uuid,"
        " key, value) VALUES ('acme.my-ext', %s, 'thing', 'u', 'private', '')",
        user_id,
    )
    answer = admin.delete(f"/api/v1/security/users/{user_id}")
    assert answer.status_code == 200, answer.text
    assert sql(f"SELECT key, user_fk, resource_type FROM {TABLE} ORDER BY 1, 3") == [
        (
            "of-admin",
            sql("SELECT id FROM ab_user WHERE username = 'admin'")[0][0],
            None,
        ),
        ("of-leaver", None, "thing"),
        ("of-leaver", None, None),
    ]


def test_deleted_dashboard(admin: Client) -> None:
    made = [
        admin.request("POST", "/api/v1/dashboard/", json={"dashboard_title": title})
        for title in ("goes", "stays")
    ]
    ids = [answer.json()["id"] for answer in made]
    uuids = [
        str(sql("SELECT uuid::text FROM dashboards WHERE id = %s", id)[0][0])
        for id in ids
    ]
    for uuid in uuids:
        assert admin.put(f"resources/dashboard/{uuid}/k", "x").ok
    assert admin.delete(f"/api/v1/dashboard/{ids[0]}").status_code == 200
    assert sql(f"SELECT resource_uuid FROM {TABLE}") == [(uuids[1],)]
    assert admin.get(f"resources/dashboard/{uuids[0]}/k").status_code == 404


# A store out of order


@pytest.mark.parametrize(
    ("broken", "mended", "logged"),
    [
        (
            "ALTER SCHEMA ext_storage RENAME TO gone",
            "ALTER SCHEMA gone RENAME TO ext_storage",
            "3F000",
        ),
        (
            "ALTER FUNCTION ext_storage.ext_storage_get_entry RENAME TO older",
            "ALTER FUNCTION ext_storage.older RENAME TO ext_storage_get_entry",
            "42883",
        ),
        (
            "REVOKE EXECUTE ON FUNCTION ext_storage.ext_storage_get_entry FROM superset",
            "GRANT EXECUTE ON FUNCTION ext_storage.ext_storage_get_entry TO superset"
            " WITH GRANT OPTION",
            "42501",
        ),
    ],
    ids=["no extension", "older extension", "no rights"],
)
def test_store_not_usable(
    running: Superset, admin: Client, broken: str, mended: str, logged: str
) -> None:
    begin = running.log.stat().st_size
    sql(broken)
    try:
        answer = admin.get("global/k")
        assert answer.status_code == 503
        assert answer.json() == {"message": "Extension storage is not available"}
        assert admin.get("/health").text == "OK"
        assert admin.get("/api/v1/dashboard/").status_code == 200
    finally:
        sql(mended)
    log = running.log.read_text()[begin:]
    assert f"SQLSTATE {logged}" in log and "superset init-extension-storage" in log
    assert admin.get("global/k").status_code == 404


def test_keys_of_the_server(second: Superset) -> None:
    """No key, then a key file, then one that is open to others."""
    data = Path(os.environ["PG_DATA"])
    conf, keys = data / "postgresql.conf", data.with_name("keys")
    before = conf.read_text()
    keys.write_text("secret of the file\n")
    keys.chmod(0o600)
    second.restart(EXTENSION_STORAGE_SEND_KEYS=False)  # "server" by its older name
    client = second.client("admin")
    secret = {"value": "value", "is_encrypted": True}
    try:
        assert client.put("global/k", secret).status_code == 503
        assert "SQLSTATE ES002" in second.log.read_text()
        assert client.put("global/plain", "x").status_code == 200
        assert client.get("global/k").status_code == 404
        done = second.run("init-extension-storage", check=False)
        assert done.returncode == 1
        assert "No encryption key is configured." in done.stderr

        conf.write_text(before + f"extension_storage.encryption_keys_file = '{keys}'\n")
        reload()
        assert client.put("global/k", secret).status_code == 200
        assert fernet("secret of the file").decrypt(tokens()[0]) == b"value"

        keys.chmod(0o644)
        reload()
        assert client.put("global/k", secret).status_code == 503
        assert "SQLSTATE F0000" in second.log.read_text()
        for break_file, sqlstate, words in (
            (lambda: keys.chmod(0), "42501", "or the file"),
            (keys.unlink, "58P01", "a key file is named by its configuration"),
            (keys.mkdir, "F0000", "not a regular file"),
        ):
            break_file()
            sql("SELECT pg_reload_conf()")
            sql("SELECT pg_sleep(0.5)")
            begin = second.log.stat().st_size
            assert client.put("global/k", secret).status_code == 503
            log = second.log.read_text()[begin:]
            assert f"SQLSTATE {sqlstate}" in log and words in log
            assert "superset init-extension-storage" not in log
        keys.rmdir()
        assert client.delete("global/k").status_code == 200
        assert client.get("/health").text == "OK"
    finally:
        conf.write_text(before)
        reload()


def test_readme_settings() -> None:
    """The settings are Python, and those of the tests above."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    code = re.compile("DAO|get_context")  # of extensions, which other tests run
    exec("\n".join(block for block in blocks if not code.search(block)), names)
    from superset_extension_storage import install

    assert names["FLASK_APP_MUTATOR"] is install
    assert names["EXTENSION_STORAGE_ENCRYPTION_KEYS"] == SECRETS


def test_warnings_in_another_language(capsys: pytest.CaptureFixture[str]) -> None:
    """The server translates the severity, and a name may have a line's end."""
    from superset_extension_storage.cli import Progress

    progress = Progress("Keys")
    progress.append("HINWEIS:  rotate_keys: 3 of 3 rows done, 9 rows/s, 0 s left\n")
    assert not progress.left
    progress.append(
        'WARNUNG:  key "\u2028\x1b[1m" cannot be decrypted\nDETAIL:  none\n'
    )
    progress.append(
        "WARNUNG:  rotate_keys: 3 locked rows and 0 that cannot be written were left\n"
    )
    progress.finish()
    assert progress.left
    said = capsys.readouterr().err
    assert "3 locked rows and 0 that cannot be written were left" in said
    assert "cannot be decrypted" in said and "\x1b" not in said


def test_secrets_are_not_shown_by_chance() -> None:
    from superset_extension_storage.keys import Secrets

    secrets = Secrets(("geheim",), "geheim", "geheim")
    assert "geheim" not in repr(secrets) + str(secrets)
