"""How keys get to the server, what of them is where, and SECRET_KEY's rotation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from cryptography.fernet import Fernet
from sqlalchemy.exc import DBAPIError

from conftest import END, README, SECRET_KEY, Superset, reload, sql
from services import Nginx, PgBouncer, RoundTrips
from superset_extension_storage.errors import StorageUnavailable
from superset_extension_storage.keys import Keys, KeysUnusable, copy, fingerprint

TABLE = "ext_storage.extension_storage"
SECRET = {"value": "value", "is_encrypted": True}
DEFAULTS = {
    "SECRET_KEY": SECRET_KEY,
    "EXTENSION_STORAGE_SCHEMA": "ext_storage",
    "EXTENSION_STORAGE_ENCRYPTION_KEYS": [],
    "EXTENSION_STORAGE_KEYS_BY": "copy",
    "EXTENSION_STORAGE_SEND_KEYS": True,
}


def fernet(secret: str | bytes) -> Fernet:
    bytes_ = secret if isinstance(secret, bytes) else secret.encode()
    return Fernet(urlsafe_b64encode(sha256(bytes_).digest()))


def token() -> bytes:
    ((value,),) = sql(f"SELECT value FROM {TABLE}")
    return bytes(value)


# Configuration


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"EXTENSION_STORAGE_ENCRYPTION_KEYS": "a,b"},
            "EXTENSION_STORAGE_ENCRYPTION_KEYS must be a list of strings",
        ),
        (
            {"EXTENSION_STORAGE_ENCRYPTION_KEYS": {"a": "b"}},
            "EXTENSION_STORAGE_ENCRYPTION_KEYS must be a list of strings",
        ),
        (
            {"EXTENSION_STORAGE_ENCRYPTION_KEYS": ["a", 1]},
            "EXTENSION_STORAGE_ENCRYPTION_KEYS, item 2, must be a string",
        ),
        (
            {"EXTENSION_STORAGE_ENCRYPTION_KEYS": ["a", ""]},
            "EXTENSION_STORAGE_ENCRYPTION_KEYS, item 2, must not be empty or contain a"
            " NUL character",
        ),
        (
            {"EXTENSION_STORAGE_ENCRYPTION_KEYS": ["a\0"]},
            "EXTENSION_STORAGE_ENCRYPTION_KEYS, item 1, must not be empty or contain a"
            " NUL character",
        ),
        (
            {"EXTENSION_STORAGE_ENCRYPTION_KEYS": ["new", " old\n"]},
            "EXTENSION_STORAGE_ENCRYPTION_KEYS, item 2, must not begin or end with"
            " blanks or line ends",
        ),
        (
            {"EXTENSION_STORAGE_ENCRYPTION_KEYS": ["\ud800"]},
            "EXTENSION_STORAGE_ENCRYPTION_KEYS, item 1, contains half a surrogate pair",
        ),
        (
            {"EXTENSION_STORAGE_ENCRYPTION_KEYS": [f"s{n}" for n in range(101)]},
            "EXTENSION_STORAGE_ENCRYPTION_KEYS has 101 items, 100 are allowed",
        ),
        (
            {"EXTENSION_STORAGE_ENCRYPTION_KEYS": [f"{n:01000}" for n in range(66)]},
            "EXTENSION_STORAGE_ENCRYPTION_KEYS has 66197 bytes in all, 65536 are allowed",
        ),
        (
            {"SECRET_KEY": b"caf\xe9"},
            "SECRET_KEY is not UTF-8: use a secret that is, or"
            " EXTENSION_STORAGE_KEYS_BY = 'server'",
        ),
        (
            {"PREVIOUS_SECRET_KEY": "x" * 65537},
            "PREVIOUS_SECRET_KEY has 65537 bytes, 65536 are allowed",
        ),
        (
            {"EXTENSION_STORAGE_KEYS_BY": "mail"},
            "EXTENSION_STORAGE_KEYS_BY must be one of 'copy', 'startup', 'server'",
        ),
        (
            {
                "EXTENSION_STORAGE_KEYS_BY": "startup",
                "EXTENSION_STORAGE_ENCRYPTION_KEYS": ["x" * 200] * 60,
            },
            "EXTENSION_STORAGE_ENCRYPTION_KEYS, SECRET_KEY and PREVIOUS_SECRET_KEY have"
            " 12303 bytes in all, 8000 are allowed with EXTENSION_STORAGE_KEYS_BY ="
            " 'startup'",
        ),
    ],
)
def test_what_cannot_be_used_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(KeysUnusable) as error:
        Keys({**DEFAULTS, **config})
    assert str(error.value) == message


def test_the_server_takes_what_the_add_on_takes() -> None:
    """At the limits, and with every character that means something on the way."""
    for way in ("copy", "startup"):
        secrets = [
            'quote " comma , backslash \\ dash -c x=y percent %s colon :a',
            "ß 日本 😀\u3000",
            "tab\tand\nnewline",
            "'single' ${HOME} %(x)s",
            "\\",
            '"',
            *([f"{n:0650}" for n in range(94)] if way == "copy" else []),
        ]
        with (
            own_engine(
                EXTENSION_STORAGE_ENCRYPTION_KEYS=secrets,
                EXTENSION_STORAGE_KEYS_BY=way,
                SECRET_KEY=" blanks at the ends ",
                PREVIOUS_SECRET_KEY='"quoted"',
            ) as (engine, keys),
            engine.begin() as connection,
        ):
            keys.hand_over(connection)
            assert fingerprints(connection) == [
                *map(fingerprint, secrets),
                fingerprint(" blanks at the ends "),
                fingerprint('"quoted"'),
            ]


def test_secret_key_of_bytes(second: Superset) -> None:
    secret = "a secret key of the tests, as bytes: é".encode()
    second.restart(SECRET_KEY=secret)
    client = second.client("admin")
    assert client.put("global/k", SECRET).status_code == 200
    assert client.get("global/k").text == "value"
    assert fernet(secret).decrypt(token()) == b"value"
    assert ", SECRET_KEY: encrypts, 1 entries" in (
        second.run("init-extension-storage").stdout
    )


# Handing over


@contextmanager
def own_engine(folder: str | Path | None = None, **config: Any) -> Iterator[Any]:
    """An engine as Superset has one, and the keys of a configuration."""
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg2://superset@/superset?host="
        + str(folder or os.environ["PGHOST"]),
        pool_size=1,
    )
    keys = Keys({**DEFAULTS, **config})
    keys.attach(engine)
    yield engine, keys
    engine.dispose()


def fingerprints(connection: Any) -> list[str]:
    return [
        row.fingerprint
        for row in connection.exec_driver_sql(
            "SELECT fingerprint FROM ext_storage.ext_storage_configured_keys()"
            " ORDER BY ordinal"
        )
    ]


OWN = [fingerprint(SECRET_KEY)]


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        # process id, COPY (two), comparison; comparison, as the first may be undone
        ("copy", [4, 1, 0, 0, 0]),
        ("startup", [1, 0, 0, 0, 0]),
        ("server", [0, 0, 0, 0, 0]),
    ],
)
def test_a_connection_keeps_the_keys(
    installed: Superset, tmp_path: Path, way: str, expected: list[int]
) -> None:
    """They cost round trips in its first transactions, then none."""
    relay = RoundTrips(tmp_path, f"{os.environ['PGHOST']}/.s.PGSQL.5432")
    costs = []
    with own_engine(tmp_path, EXTENSION_STORAGE_KEYS_BY=way) as (engine, keys):
        for _ in expected:
            with engine.begin() as connection:
                connection.exec_driver_sql("SELECT 1")
                before = relay.count
                keys.hand_over(connection)
                keys.hand_over(connection)
                costs.append(relay.count - before)
                assert fingerprints(connection) == ([] if way == "server" else OWN)
    relay.close()
    assert costs == expected


def test_database_that_takes_no_writes(installed: Superset) -> None:
    for way in ("copy", "startup"):
        with (
            own_engine(EXTENSION_STORAGE_KEYS_BY=way) as (engine, keys),
            engine.begin() as connection,
        ):
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            if way == "copy":
                with pytest.raises(StorageUnavailable) as error:
                    keys.hand_over(connection)
                assert error.value.sqlstate == "25006"
                assert "EXTENSION_STORAGE_KEYS_BY = 'startup'" in error.value.hint
            else:
                keys.hand_over(connection)
                assert fingerprints(connection) == OWN


def test_rollback_takes_the_keys_back(installed: Superset) -> None:
    """They are there again whenever a call needs them."""
    with own_engine() as (engine, keys), engine.connect() as connection:
        for _ in range(2):
            with connection.begin() as transaction:
                keys.hand_over(connection)
                assert fingerprints(connection) == OWN
                transaction.rollback()
        with connection.begin():
            assert fingerprints(connection) == []
            for end in ("rollback", "commit"):
                savepoint = connection.begin_nested()
                keys.hand_over(connection)
                assert fingerprints(connection) == OWN
                getattr(savepoint, end)()
                keys.hand_over(connection)
                assert fingerprints(connection) == OWN
            with connection.begin_nested():
                keys.hand_over(connection)
                assert fingerprints(connection) == OWN
        # an end that SQLAlchemy does not see
        with connection.begin():
            keys.hand_over(connection)
        connection.connection.dbapi_connection.rollback()
        with connection.begin():
            keys.hand_over(connection)
            assert fingerprints(connection) == OWN


def test_keys_under_a_driver_that_waits_in_python(installed: Superset) -> None:
    """As gevent and psycogreen have it."""
    from psycopg2.extensions import get_wait_callback
    from psycopg2.extras import wait_select

    from superset_extension_storage.keys import waiting_by

    with (
        waiting_by(wait_select),
        own_engine() as (engine, keys),
        engine.begin() as connection,
    ):
        keys.hand_over(connection)
        assert fingerprints(connection) == OWN
        with pytest.raises(DBAPIError):
            copy(connection, "COPY nothing FROM STDIN", b"")
        assert get_wait_callback() is wait_select
    assert get_wait_callback() is None


def test_connection_lost_while_keys_are_handed_over(installed: Superset) -> None:
    """The pool hears of it, and the next connection gets the keys."""
    with own_engine() as (engine, keys):
        with engine.connect() as connection:
            pid = connection.connection.dbapi_connection.info.backend_pid
            keys.hand_over(connection)
            sql("SELECT pg_terminate_backend(%s, %s)", pid, END * 1000)
            with pytest.raises(DBAPIError) as error, connection.begin():
                keys._copy(connection, for_session=False)
            assert error.value.connection_invalidated
        with engine.begin() as connection:
            keys.hand_over(connection)
            assert fingerprints(connection) == OWN


def test_other_keys_than_configured(installed: Superset) -> None:
    """Whichever way: an error that names the key, and what to do."""
    with own_engine(
        EXTENSION_STORAGE_KEYS_BY="server",
        EXTENSION_STORAGE_ENCRYPTION_KEYS=["of the file"],
    ) as (engine, keys):
        with engine.begin() as connection, pytest.raises(StorageUnavailable) as error:
            keys.hand_over(connection)
        assert "item 1 of EXTENSION_STORAGE_ENCRYPTION_KEYS is missing" in str(
            error.value
        )
        assert "extension_storage.encryption_keys_file" in error.value.hint

    engine = sqlalchemy.create_engine(
        "postgresql+psycopg2://",
        creator=lambda: __import__("psycopg2").connect(
            dbname="superset", user="superset"
        ),
    )
    keys = Keys({**DEFAULTS, "EXTENSION_STORAGE_KEYS_BY": "startup"})
    keys.attach(engine)
    with engine.begin() as connection, pytest.raises(StorageUnavailable) as error:
        keys.hand_over(connection)
    assert "SECRET_KEY is missing" in str(error.value)
    assert "EXTENSION_STORAGE_KEYS_BY = 'copy'" in error.value.hint
    engine.dispose()


def test_one_key_of_several_is_another(installed: Superset, key_file: Path) -> None:
    """The error says which, and what may have changed it."""

    def refusal(engine: Any, keys: Keys) -> StorageUnavailable:
        with engine.begin() as connection, pytest.raises(StorageUnavailable) as error:
            keys.hand_over(connection)
        return error.value

    with own_engine(
        EXTENSION_STORAGE_KEYS_BY="server",
        EXTENSION_STORAGE_ENCRYPTION_KEYS=["old secret of the file"],
    ) as way:
        assert "item 1 of EXTENSION_STORAGE_ENCRYPTION_KEYS does not encrypt" in str(
            refusal(*way)
        )
    sql(
        "CREATE FUNCTION public.change() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN PERFORM set_config('extension_storage.previous_secret_key', 'x',"
        " false); RETURN NEW; END$$"
    )
    sql(
        "CREATE TRIGGER zz INSTEAD OF INSERT ON ext_storage.ext_storage_secrets"
        " FOR EACH ROW EXECUTE FUNCTION public.change()"
    )
    try:
        with own_engine(PREVIOUS_SECRET_KEY="previous") as way:
            for _ in range(2):
                error = refusal(*way)
                assert "PREVIOUS_SECRET_KEY is missing" in str(error)
                assert error.hint.startswith("Something on the way")
    finally:
        sql("DROP FUNCTION public.change CASCADE")


@pytest.mark.parametrize("reset", ["RESET ALL", "DISCARD ALL"])
def test_keys_that_were_reset(app: Any, reset: str) -> None:
    """The call that misses them fails, and the next one has them again."""
    with app.app_context():
        from superset.extensions import db
        from superset_core.common.daos import ExtensionStorageDAO as DAO

        def driver() -> Any:
            return db.session.connection().connection.dbapi_connection

        db.engine.dispose()  # so that there is one connection
        DAO.set("acme.my-ext", "k", b"value", is_encrypted=True)
        db.session.commit()
        for _ in range(2):  # from the second on, the connection is known to keep them
            assert DAO.get_value("acme.my-ext", "k") == b"value"
            db.session.commit()
        used = driver()
        db.session.commit()
        used.autocommit = True
        with used.cursor() as cursor:
            cursor.execute(reset)
        used.autocommit = False
        assert driver() is used
        with pytest.raises(StorageUnavailable) as error:
            DAO.get_value("acme.my-ext", "k")
        assert error.value.sqlstate == "ES002"
        db.session.rollback()
        assert driver() is used
        assert DAO.get_value("acme.my-ext", "k") == b"value"
        db.session.rollback()


@pytest.mark.parametrize("way", ["creator", "listener"])
def test_connections_that_superset_makes_itself(second: Superset, way: str) -> None:
    second.lines = [
        "import psycopg2, sqlalchemy",
        "def connect(*ignored):",
        f"    return psycopg2.connect(dbname='superset', user='superset',"
        f" host={os.environ['PGHOST']!r})",
        "SQLALCHEMY_ENGINE_OPTIONS = {'creator': connect}"
        if way == "creator"
        else "sqlalchemy.event.listen(sqlalchemy.engine.Engine, 'do_connect', connect)",
    ]
    second.restart()
    client = second.client("admin")
    assert client.put("global/k", SECRET).status_code == 200
    assert client.get("global/k").text == "value"
    assert fernet(SECRET_KEY).decrypt(token()) == b"value"

    second.restart(EXTENSION_STORAGE_KEYS_BY="startup")
    client = second.client("admin")
    assert client.get("/api/v1/dashboard/").status_code == 200
    assert client.get("global/k").status_code == 503
    assert (
        "Set EXTENSION_STORAGE_KEYS_BY = 'copy', or 'server'" in second.log.read_text()
    )


# Where keys come from


@pytest.fixture
def key_file() -> Iterator[Path]:
    """A key file that the server has."""
    data = Path(os.environ["PG_DATA"])
    conf, keys = data / "postgresql.conf", data.with_name("keys")
    before = conf.read_text()
    keys.write_text("secret of the file\nold secret of the file\n")
    keys.chmod(0o600)
    conf.write_text(before + f"extension_storage.encryption_keys_file = '{keys}'\n")
    reload()
    yield keys
    conf.write_text(before)
    reload()


def test_key_file_and_configuration(second: Superset, key_file: Path) -> None:
    """The file's keys decrypt whatever is configured; each key has its place."""

    def report() -> list[str]:
        output = second.run("init-extension-storage").stdout
        return [
            re.sub("fingerprint [0-9a-f]{8}", "F", line)
            for line in output.splitlines()
            if line.startswith("Key ")
        ]

    sql(
        f"INSERT INTO {TABLE} (extension_id, key, value, is_encrypted)"
        " VALUES ('acme.my-ext', 'secret-key', %s, true)",
        fernet(SECRET_KEY).encrypt(b"value"),
    )
    second.restart()
    client = second.client("admin")
    assert client.put("global/file", SECRET).status_code == 200
    assert client.get("global/secret-key").text == "value"
    assert report() == [
        "Key 1, F, line 1 of the server's key file: encrypts, 1 entries; it is needed",
        "Key 2, F, line 2 of the server's key file: decrypts, 0 entries; it may be"
        " removed as far as this database goes: the file serves all databases of the"
        " server, so ask in each",
        "Key 3, F, SECRET_KEY: decrypts, 1 entries; it is needed",
    ]

    second.restart(EXTENSION_STORAGE_ENCRYPTION_KEYS=["listed"])
    client = second.client("admin")
    assert client.put("global/listed", SECRET).status_code == 200
    for key in ("file", "secret-key", "listed"):
        assert client.get(f"global/{key}").text == "value"
    assert [line.partition(":")[0] for line in report()] == [
        "Key 1, F, item 1 of EXTENSION_STORAGE_ENCRYPTION_KEYS",
        "Key 2, F, line 1 of the server's key file",
        "Key 3, F, line 2 of the server's key file",
        "Key 4, F, SECRET_KEY",
    ]


# SECRET_KEY


def in_shell(superset: Superset, *lines: str) -> subprocess.CompletedProcess[str]:
    """Run lines as an extension, for a user."""
    return superset.run(
        "shell",
        input="from superset_core.extensions.storage.persistent import PersistentSetOptions\n"
        "from superset_extension_storage.official import extension_context\n"
        "with extension_context('acme.my-ext', user_id=1) as context:\n"
        "    state = context.storage.persistent\n"
        + "".join(f"    {line}\n" for line in lines)
        + "\n",
    )


def test_rotation_of_secret_key(second: Superset) -> None:
    """As Superset's documentation has it; every value is read at each step."""
    old, new = "the old SECRET_KEY, long enough", "the new SECRET_KEY, long enough"
    second.restart(SECRET_KEY=old)
    client = second.client("admin")
    assert client.put("global/old", SECRET).status_code == 200
    options = 'PersistentSetOptions(codec="pickle", encrypt=True)'
    done = in_shell(
        second,
        f"state.set('p', (1, 2), {options})",
        f"state.shared.set('p', 3, {options})",
    )
    assert done.returncode == 0, done.stderr
    ((version,),) = sql(
        "SELECT DISTINCT version FROM ext_storage.extension_storage WHERE key = 'p'"
    )

    def unpickled() -> list[str]:
        reads = ("state.get('p', pickle=True)", "state.shared.get('p', pickle=True)")
        done = in_shell(second, *(f"print('read', {read})" for read in reads))
        return re.findall(r"read (.*)", done.stdout)

    def readable(*keys: str) -> None:
        client = second.client("admin")
        for key in keys:
            assert client.get(f"global/{key}").text == "value"

    # the new key, and the old one as the previous one
    second.restart(SECRET_KEY=new, PREVIOUS_SECRET_KEY=old)
    readable("old")
    client = second.client("admin")
    assert client.put("global/new", SECRET).status_code == 200
    readable("old", "new")
    second.run("re-encrypt-secrets")
    readable("old", "new")
    done = second.run("init-extension-storage")
    assert ", PREVIOUS_SECRET_KEY: decrypts, 3 entries; it is needed\n" in done.stdout

    # without the rotation that the README tells of, init says so
    del second.config["PREVIOUS_SECRET_KEY"]
    done = second.run("init-extension-storage", check=False)
    assert done.returncode == 4
    assert "Error: Entries that no key reads: 3." in done.stderr

    second.config["PREVIOUS_SECRET_KEY"] = old
    assert unpickled() == ["(1, 2)", "3"]
    done = second.run("rotate-extension-storage-keys", "--dry-run")
    assert "2 pickled values to sign anew\n" in done.stdout
    done = second.run("rotate-extension-storage-keys", "--extension-id", "acme.my-ext")
    assert "4 scanned, 3 re-encrypted, 1 already current, 0 failed\n" in done.stdout
    assert "2 pickled values signed anew\n" in done.stdout
    done = second.run("rotate-extension-storage-keys")
    assert "0 pickled values signed anew\n" in done.stdout
    assert sql(
        "SELECT count(*), min(version), max(version), bool_and(is_encrypted)"
        " FROM ext_storage.extension_storage WHERE key = 'p'"
    ) == [(2, version + 1, version + 1, True)]
    assert ", PREVIOUS_SECRET_KEY: decrypts, 0 entries; it may be removed\n" in (
        done.stdout
    )
    readable("old", "new")

    del second.config["PREVIOUS_SECRET_KEY"]
    second.restart()
    readable("old", "new")
    assert unpickled() == ["(1, 2)", "3"]
    second.run("init-extension-storage")


# What is where


def test_secrets_are_nowhere(second: Superset, tmp_path: Path, key_file: Path) -> None:
    """No file, log, catalog or output has a secret or a value that is encrypted.

    PostgreSQL, PgBouncer, gunicorn and nginx log what they log by default, and
    errors are among that.
    """
    markers = {
        "EXTENSION_STORAGE_ENCRYPTION_KEYS": "marker-of-the-list",
        "SECRET_KEY": "marker-of-the-secret-key-0123456789",
        "PREVIOUS_SECRET_KEY": "marker-of-the-previous-secret-key",
        "value": "marker-of-the-value",
        "key file": "secret of the file",
    }
    bouncer = PgBouncer(tmp_path / "pgbouncer")
    second.config["EXTENSION_STORAGE_DIRECT_URI"] = (
        f"postgresql+psycopg2://superset@/superset?host={os.environ['PGHOST']}"
    )
    try:
        for uri in (None, bouncer.uri()):
            for way in ("server", "startup", "copy"):
                if uri is not None:
                    second.config["SQLALCHEMY_DATABASE_URI"] = uri
                second.restart(
                    EXTENSION_STORAGE_ENCRYPTION_KEYS=[]
                    if way == "server"
                    else [markers["EXTENSION_STORAGE_ENCRYPTION_KEYS"]],
                    SECRET_KEY=markers["SECRET_KEY"],
                    PREVIOUS_SECRET_KEY=markers["PREVIOUS_SECRET_KEY"],
                    EXTENSION_STORAGE_KEYS_BY=way,
                )
                nginx = Nginx(tmp_path / f"nginx-{way}-{uri is None}", second.url)
                refused = uri is not None and way == "startup"
                try:
                    second.url, server = f"http://127.0.0.1:{nginx.port}", second.url
                    _use(second, markers["value"], refused)
                    second.url = server
                finally:
                    nginx.stop()
                running = sql(
                    "SELECT a::text FROM pg_stat_activity a"
                    " UNION ALL SELECT s::text FROM pg_settings s"
                    " UNION ALL SELECT s::text FROM pg_db_role_setting s"
                )
                assert not found_in(str(running).encode(), markers)
                if not refused:
                    _rotate(second, markers)
    finally:
        bouncer.stop()
    # bytes: each database is in its own encoding
    dump = subprocess.run(
        ["pg_dumpall", "-U", "postgres"], check=True, stdout=subprocess.PIPE
    ).stdout
    assert b"acme.my-ext" in dump and not found_in(dump, markers)
    sql("CHECKPOINT")

    configured = second.folder / "superset_config.py"
    data = Path(os.environ["PG_DATA"])
    folders = [data, data.with_name("log"), tmp_path]
    files = [
        path
        for folder in folders
        for path in ([folder] if folder.is_file() else folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path != configured
    ]
    for name in ("log", "pgbouncer.log", "access.log", "error.log", "server.log"):
        assert any(path.name == name for path in files)
    assert any("pg_wal" in path.parts for path in files)
    for path in files:
        assert not found_in(path.read_bytes(), markers), path
    # what is looked for is found where it is
    assert found_in(configured.read_bytes() + key_file.read_bytes(), markers) == [
        name for name in markers if name != "value"
    ]
    for shift in range(3):
        encoded = b64encode(bytes(shift) + markers["value"].encode() + b"more")
        assert found_in(encoded, markers) == ["value"]


def found_in(text: bytes, markers: dict[str, str]) -> list[str]:
    """Give the names of those that are in a text, as they are, in hex or base64."""
    return [
        name
        for name, marker in markers.items()
        if any(
            spelt in text
            for spelt in (
                marker.encode(),
                marker.encode().hex().encode(),
                # behind 0, 1 or 2 bytes, without the digits that have bits of others
                *(
                    b64encode(bytes(shift) + marker.encode()).rstrip(b"=")[first:-1]
                    for shift, first in ((0, 0), (1, 2), (2, 3))
                ),
            )
        )
    ]


def _rotate(superset: Superset, markers: dict[str, str]) -> None:
    """The commands of an operator, with an entry that an old key has encrypted."""
    sql(
        f"UPDATE {TABLE} SET value = %s WHERE key = 'k'",
        fernet(
            markers["PREVIOUS_SECRET_KEY"]
            if superset.config["EXTENSION_STORAGE_KEYS_BY"] != "server"
            else "old secret of the file"
        ).encrypt(markers["value"].encode()),
    )
    said = ""
    for command in (
        "extension-storage-status",
        "rotate-extension-storage-keys",
        "init-extension-storage",
    ):
        done = superset.run(command, check=False)
        # the status says that an old key is needed
        assert done.returncode == (16 if command.endswith("status") else 0), done.stderr
        said += done.stdout + done.stderr
    assert "1 scanned, 1 re-encrypted, 0 already current, 0 failed\n" in said
    assert not found_in(said.encode(), markers)


def _use(superset: Superset, value: str, refused: bool) -> None:
    """Requests that encrypt and decrypt, and such as end in an error of the server."""
    client = superset.client("admin")
    assert client.get("/api/v1/dashboard/").status_code == 200
    written = client.put("global/k", {"value": value, "is_encrypted": True})
    assert written.status_code == (503 if refused else 200)
    if refused:
        return
    assert client.get("global/k").text == value
    assert client.put("global/k", {"value": value}).status_code == 200
    other = {"If-Match": '"00000000-0000-0000-0000-000000000000-1"'}
    assert client.put("global/k", {"value": value}, headers=other).status_code == 412
    long = {"value": value, "category": "c" * 65, "is_encrypted": True}
    assert client.put("global/k", long).status_code == 400


def test_first_value_of_the_readme(second: Superset) -> None:
    (typed,) = re.findall(
        r"^superset shell <<'END'\n(.*?)^END$",
        README.read_text(),
        re.MULTILINE | re.DOTALL,
    )
    done = subprocess.run(
        [Path(sys.executable).with_name("superset"), "shell"],
        cwd=second.folder,
        env=second.environment(),
        input=typed,
        text=True,
        stdout=subprocess.PIPE,
        check=True,
        timeout=END,
    )
    assert repr(b'"hello"') in done.stdout
    assert fernet(SECRET_KEY).decrypt(token()) == b'"hello"'
