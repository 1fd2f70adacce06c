"""PgBouncer, Debian's, in transaction mode: each way that the README gives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import sqlalchemy
from cryptography.fernet import InvalidToken

from conftest import SECRET_KEY, Superset, sql
from services import PgBouncer, RefusingOptions, RoundTrips
from superset_extension_storage.errors import StorageUnavailable
from superset_extension_storage.keys import Keys
from test_keys import (
    DEFAULTS,
    OWN,
    SECRET,
    TABLE,
    fernet,
    fingerprints,
    key_file,
    token,
)

__all__ = ["key_file"]

LISTED = ["new-strong-secret", "old-secret"]


@pytest.fixture
def bouncer(app: Any, tmp_path: Path) -> Iterator[PgBouncer]:
    bouncer = PgBouncer(tmp_path / "pgbouncer")
    yield bouncer
    bouncer.stop()


@pytest.fixture
def behind(second: Superset, bouncer: PgBouncer) -> Superset:
    """A Superset that reaches its database through PgBouncer."""
    second.config["SQLALCHEMY_DATABASE_URI"] = bouncer.uri()
    second.config["EXTENSION_STORAGE_ENCRYPTION_KEYS"] = LISTED
    return second


def has_no_secret(*logs: Path) -> bool:
    return not any(
        secret in log.read_text() for secret in [*LISTED, SECRET_KEY] for log in logs
    )


def pages_work(client: Any) -> bool:
    return all(
        client.get(page).status_code == 200
        for page in ("/superset/welcome/", "/api/v1/dashboard/")
    )


def test_copy(behind: Superset, bouncer: PgBouncer) -> None:
    """The default: keys pass, and what others do on the connection has none."""
    behind.restart()
    client = behind.client("admin")
    assert pages_work(client)
    assert client.put("global/k", SECRET).status_code == 200
    assert client.get("global/k").text == "value"
    assert fernet(LISTED[0]).decrypt(token()) == b"value"
    assert "item 1 of EXTENSION_STORAGE_ENCRYPTION_KEYS: encrypts, 1 entries" in (
        behind.run("init-extension-storage").stdout
    )
    engine = sqlalchemy.create_engine(bouncer.uri())
    with engine.begin() as connection:
        assert fingerprints(connection) == []
    engine.dispose()
    assert has_no_secret(bouncer.log, behind.log)


def test_copy_costs_two_round_trips_a_transaction(
    bouncer: PgBouncer, tmp_path: Path
) -> None:
    """However many calls it has, and two more for the first one."""
    folder = tmp_path / "way"
    folder.mkdir()
    way = RoundTrips(folder, ("127.0.0.1", bouncer.port))
    engine = sqlalchemy.create_engine(
        f"postgresql+psycopg2://superset@/superset?host={folder}", pool_size=1
    )
    keys = Keys(DEFAULTS)
    costs = []
    for _ in range(4):
        with engine.begin() as connection:
            connection.exec_driver_sql("SELECT 1")
            before = way.count
            for _ in range(3):
                keys.hand_over(connection)
            costs.append(way.count - before)
            assert fingerprints(connection) == OWN
    engine.dispose()
    way.close()
    assert costs == [4, 2, 2, 2]


def test_startup_packet(behind: Superset, bouncer: PgBouncer) -> None:
    """Refused by PgBouncer: Superset works, the store says what to set."""
    behind.restart(EXTENSION_STORAGE_KEYS_BY="startup")
    client = behind.client("admin")
    assert pages_work(client)
    assert client.put("global/k", SECRET).status_code == 503
    assert client.put("global/plain", {"value": "x", "is_encrypted": False}).ok
    assert client.delete("global/plain").status_code == 200
    log = behind.log.read_text()
    assert "A pooler refuses the startup packet" in log
    assert "Set EXTENSION_STORAGE_KEYS_BY = 'copy', or 'server' with a key file" in log
    assert has_no_secret(bouncer.log, behind.log)


@pytest.mark.parametrize("refusals", [0, 1, 99])
def test_startup_packet_that_is_refused_in_other_words(
    installed: Superset, tmp_path: Path, refusals: int
) -> None:
    """What counts is that there are connections without it, not just a moment later."""
    engine = sqlalchemy.create_engine(
        f"postgresql+psycopg2://superset@/superset?host={tmp_path}"
    )
    keys = Keys({**DEFAULTS, "EXTENSION_STORAGE_KEYS_BY": "startup"})
    keys.attach(engine)
    with pytest.raises(sqlalchemy.exc.OperationalError):
        engine.connect()
    server = f"{os.environ['PGHOST']}/.s.PGSQL.5432"
    way = RefusingOptions(tmp_path, server, refusals)
    with engine.connect() as connection:
        if refusals < 2:
            keys.hand_over(connection)
            assert fingerprints(connection) == OWN
        else:
            with pytest.raises(StorageUnavailable) as refused:
                keys.hand_over(connection)
            assert way.WORDS in refused.value.hint
            assert "= 'copy', or 'server' with a key file" in refused.value.hint
            assert fingerprints(connection) == []
    engine.dispose()
    way.close()


def test_startup_packet_of_two_engines(installed: Superset, tmp_path: Path) -> None:
    """That another engine's way is free says nothing of a pooler that refuses."""
    server = f"{os.environ['PGHOST']}/.s.PGSQL.5432"
    way = RefusingOptions(tmp_path, server, refusals=99)
    refused, direct = (
        sqlalchemy.create_engine(
            f"postgresql+psycopg2://superset@/superset?host={folder}",
            poolclass=sqlalchemy.pool.NullPool,
        )
        for folder in (tmp_path, os.environ["PGHOST"])
    )
    keys = Keys({**DEFAULTS, "EXTENSION_STORAGE_KEYS_BY": "startup"})
    keys.attach(refused)
    keys.attach(direct)
    for _ in range(2):
        with (
            refused.connect() as connection,
            pytest.raises(StorageUnavailable) as error,
        ):
            keys.hand_over(connection)
        assert way.WORDS in error.value.hint
        with direct.connect() as connection:
            keys.hand_over(connection)
            assert fingerprints(connection) == OWN
    assert way.refusals == 97  # those of the one probe
    way.close()


def test_startup_packet_that_is_dropped(
    second: Superset, key_file: Path, tmp_path: Path
) -> None:
    """Never another key: the server has one, but not the configured ones."""
    bouncer = PgBouncer(tmp_path / "drops", "ignore_startup_parameters = options")
    try:
        second.config["SQLALCHEMY_DATABASE_URI"] = bouncer.uri()
        second.restart(EXTENSION_STORAGE_KEYS_BY="startup")
        client = second.client("admin")
        assert pages_work(client)
        assert client.put("global/k", SECRET).status_code == 503
        assert sql(f"SELECT count(*) FROM {TABLE}") == [(0,)]
        assert "A pooler drops the startup packet" in second.log.read_text()
        assert has_no_secret(bouncer.log, second.log)

        second.restart(EXTENSION_STORAGE_KEYS_BY="copy")
        client = second.client("admin")
        assert client.put("global/k", SECRET).status_code == 200
        assert client.get("global/k").text == "value"
    finally:
        bouncer.stop()


def test_key_file(behind: Superset, bouncer: PgBouncer, key_file: Path) -> None:
    """Nothing is handed over, and rotation works through the pooler."""
    behind.config["EXTENSION_STORAGE_ENCRYPTION_KEYS"] = []
    behind.restart(EXTENSION_STORAGE_KEYS_BY="server")
    client = behind.client("admin")
    assert client.put("global/k", SECRET).status_code == 200
    assert client.get("global/k").text == "value"
    assert fernet("secret of the file").decrypt(token()) == b"value"
    sql(
        f"UPDATE {TABLE} SET value = %s",
        fernet("old secret of the file").encrypt(b"value"),
    )
    done = behind.run("rotate-extension-storage-keys")
    assert "1 scanned, 1 re-encrypted, 0 already current, 0 failed\n" in done.stdout
    assert fernet("secret of the file").decrypt(token()) == b"value"


@pytest.mark.parametrize("local", [True, False])
def test_keys_of_statements(installed: Superset, tmp_path: Path, local: bool) -> None:
    """Those of set_config(…, true) are the transaction's; those of SET the next one's."""
    bouncer = PgBouncer(tmp_path / "pgbouncer", "default_pool_size = 1")
    one, other = (
        psycopg2.connect(
            host="127.0.0.1", port=bouncer.port, user="superset", dbname="superset"
        )
        for _ in range(2)
    )
    try:
        with one, one.cursor() as cursor:
            cursor.execute(
                "SELECT set_config('extension_storage.secret_key', 'a secret', %s)",
                [local],
            )
            cursor.execute(
                "SELECT ext_storage.ext_storage_set('acme.my-ext', 'k', 'value',"
                " is_encrypted => true)"
            )
        with other, other.cursor() as cursor:
            read = "SELECT ext_storage.ext_storage_get('acme.my-ext', 'k')"
            if local:
                with pytest.raises(psycopg2.Error) as refused:
                    cursor.execute(read)
                assert refused.value.pgcode == "ES002"
            else:
                cursor.execute(read)
                assert bytes(cursor.fetchone()[0]) == b"value"
    finally:
        one.close()
        other.close()
        bouncer.stop()


def test_rotation(behind: Superset, bouncer: PgBouncer) -> None:
    """The keys must last longer than a transaction: not through the pooler."""
    sql(
        f"INSERT INTO {TABLE} (extension_id, key, value, is_encrypted)"
        " VALUES ('acme.my-ext', 'k', %s, true)",
        fernet(LISTED[1]).encrypt(b"value"),
    )
    before = token()
    done = behind.run("rotate-extension-storage-keys", check=False)
    assert done.returncode == 1
    assert "a connection pooler is between this command" in done.stderr
    assert "Set EXTENSION_STORAGE_DIRECT_URI to a URI of the server itself." in (
        done.stderr
    )
    assert token() == before
    for uri in (
        "geheim@db",
        "postgresql://u:geheim@h:port/d",
        "nothing://u:geheim@h/d",
    ):
        behind.config["EXTENSION_STORAGE_DIRECT_URI"] = uri
        done = behind.run("rotate-extension-storage-keys", check=False)
        assert done.returncode == 1
        assert "EXTENSION_STORAGE_DIRECT_URI is not a URI" in done.stderr
        assert "geheim" not in done.stdout + done.stderr

    behind.config["EXTENSION_STORAGE_DIRECT_URI"] = (
        f"postgresql+psycopg2://superset@/superset?host={os.environ['PGHOST']}"
    )
    # Superset itself could not read what that wrote.
    behind.config["EXTENSION_STORAGE_KEYS_BY"] = "startup"
    done = behind.run("rotate-extension-storage-keys", check=False)
    assert done.returncode == 1
    assert "A pooler refuses the startup packet" in done.stderr
    assert token() == before
    behind.config["EXTENSION_STORAGE_KEYS_BY"] = "copy"
    done = behind.run("rotate-extension-storage-keys")
    assert "1 scanned, 1 re-encrypted, 0 already current, 0 failed\n" in done.stdout
    assert fernet(LISTED[0]).decrypt(token()) == b"value"
    with pytest.raises(InvalidToken):
        fernet(LISTED[1]).decrypt(token())
    assert has_no_secret(bouncer.log)
