"""What the API answers, and what the operator reads, when the database fails."""

from __future__ import annotations

import os
import random
import re
import string
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from psycopg2 import errorcodes

from conftest import (
    END,
    PASSWORD,
    STORAGE,
    Client,
    Superset,
    session,
    setting,
    sql,
    wait_for_a_lock,
)

SOURCES = Path(__file__).parents[2]
URL = STORAGE.format("acme/my-ext")

BUSY = (503, {"message": "Extension storage is busy"}, True)
UNAVAILABLE = (503, {"message": "Extension storage is not available"}, False)


def summary(answer: requests.Response) -> tuple[int, Any, bool]:
    """Give status, JSON, and whether trying again is said to help."""
    return answer.status_code, answer.json(), "Retry-After" in answer.headers


@contextmanager
def logged(superset: Superset, *words: str) -> Iterator[list[str]]:
    """Check that Superset logs one line, with these words, meanwhile.

    Gives a list that has the line at the end.
    """
    start = superset.log.stat().st_size
    lines: list[str] = []
    yield lines
    with superset.log.open() as log:
        log.seek(start)
        lines += [line for line in log if "Extension storage: " in line]
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]


# Real ones


def test_no_connection(running: Superset, admin: Client) -> None:
    """Superset pings before it uses one, so what has gone is not noticed."""
    assert admin.put("user/k", "x").ok
    html = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    end = (
        f"SELECT pg_terminate_backend(pid, {END * 1000}) FROM pg_stat_activity"
        " WHERE usename = 'superset'"
    )
    sql(end)
    assert admin.get("user/k", headers=html).text == "x"
    sql("ALTER ROLE superset NOLOGIN")
    try:
        sql(end)
        for method in ("GET", "PUT", "DELETE"):
            with logged(
                running, "not permitted", "whether the database server is running"
            ):
                answer = admin.request(method, "user/k", json={}, headers=html)
                assert summary(answer) == BUSY
    finally:
        sql("ALTER ROLE superset LOGIN")
    assert admin.get("user/k").text == "x"


def test_connection_goes_in_the_middle(running: Superset, admin: Client) -> None:
    assert admin.put("user/k", "x").ok
    with (
        ThreadPoolExecutor(1) as pool,
        logged(running, "whether the database server is running"),
        session() as other,
    ):
        other.execute("SELECT 1 FROM ext_storage.extension_storage FOR UPDATE")
        put = pool.submit(admin.put, "user/k", "y")
        wait_for_a_lock(put)
        sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE usename = 'superset' AND wait_event_type = 'Lock'"
        )
        assert summary(put.result()) == BUSY
    assert admin.put("user/k", "z").ok
    assert admin.get("user/k").text == "z"


@pytest.mark.parametrize(
    ("name", "sqlstate"),
    [("lock_timeout", "55P03"), ("statement_timeout", "57014")],
)
def test_time_out(running: Superset, admin: Client, name: str, sqlstate: str) -> None:
    admin.put("user/k", "x")
    with setting(name, "2s"):
        with logged(running, sqlstate, name), session() as other:
            other.execute("SELECT 1 FROM ext_storage.extension_storage FOR UPDATE")
            assert summary(admin.put("user/k", "y")) == BUSY
        assert admin.get("user/k").text == "x"
        assert admin.put("user/k", "y").ok


def test_read_only(running: Superset, admin: Client) -> None:
    """As on a standby that Superset has been sent to."""
    admin.put("user/k", "x")
    with setting("default_transaction_read_only", "on"):
        for call in (
            lambda: admin.put("user/k", "y"),
            lambda: admin.delete("user/k"),
            lambda: admin.get("user/k"),  # for which the keys cannot be handed over
        ):
            with logged(running, "25006", "primary server"):
                assert summary(call()) == UNAVAILABLE
        assert admin.get("user/").json()["count"] == 1
    assert admin.get("user/k").text == "x"


def test_ids_are_used_up(running: Superset, admin: Client) -> None:
    sequence = "ext_storage.extension_storage_id_seq"
    ((last,),) = sql(f"SELECT last_value FROM {sequence}")
    sql(f"SELECT setval('{sequence}', 2147483647)")
    try:
        with logged(running, "2200H", "widen"):
            assert summary(admin.put("user/k", "x")) == UNAVAILABLE
    finally:
        sql(f"SELECT setval('{sequence}', %s)", last)
    assert admin.put("user/k", "x").ok


def test_role_lacks_a_right(running: Superset, admin: Client) -> None:
    admin.put("user/k", "x")
    sql("REVOKE UPDATE ON ext_storage.extension_storage FROM superset")
    try:
        with logged(running, "42501", "superset init-extension-storage"):
            assert summary(admin.put("user/k", "y")) == UNAVAILABLE
    finally:
        sql("GRANT UPDATE ON ext_storage.extension_storage TO superset")


def test_ids_are_behind(running: Superset, admin: Client) -> None:
    """As after a restore that has left the sequence out."""
    assert admin.put("user/k", "x").ok
    sequence = "ext_storage.extension_storage_id_seq"
    ((last,),) = sql(f"SELECT last_value FROM {sequence}")
    sql(f"SELECT setval('{sequence}', %s, false)", last)
    with logged(running, "23505", "extension_storage_pkey", "setval"):
        assert summary(admin.put("user/other", "x")) == UNAVAILABLE


@pytest.mark.parametrize(
    ("broken", "mended", "words"),
    [
        (
            "ALTER TABLE {0} ADD CONSTRAINT added CHECK (category IS NOT NULL)",
            "ALTER TABLE {0} DROP CONSTRAINT added",
            ("23514", "was added to the store's table"),
        ),
        (
            "CREATE POLICY read ON {0} USING (true) WITH CHECK (false);"
            " ALTER TABLE {0} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
            "ALTER TABLE {0} DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;"
            " DROP POLICY read ON {0}",
            ("42501", "a row-level security policy"),
        ),
        (
            "ALTER TABLE {0} RENAME description TO gone",
            "ALTER TABLE {0} RENAME gone TO description",
            ("42804", "must be as it made them"),
        ),
        (
            "ALTER TABLE {0} ALTER version TYPE numeric",
            "ALTER TABLE {0} ALTER version TYPE bigint",
            ("42804", "must be as it made them"),
        ),
        (
            "ALTER TABLE {0} DROP CONSTRAINT uq_extension_storage_scoped_key",
            "ALTER TABLE {0} ADD CONSTRAINT uq_extension_storage_scoped_key"
            " UNIQUE NULLS NOT DISTINCT"
            " (extension_id, user_fk, resource_type, resource_uuid, key)",
            ("42P10", "undo what was changed"),
        ),
        (
            "ALTER TABLE {0} ADD CONSTRAINT added CHECK (1 / (value_size - 1) < 2)",
            "ALTER TABLE {0} DROP CONSTRAINT added",
            ("22012", "was added to the store's table"),
        ),
    ],
    ids=[
        "constraint",
        "policy",
        "no column",
        "type",
        "no unique constraint",
        "division",
    ],
)
def test_table_was_changed(
    running: Superset, admin: Client, broken: str, mended: str, words: tuple[str, ...]
) -> None:
    """The log names what is wrong, and no command where that finds nothing."""
    table = "ext_storage.extension_storage"
    sql(broken.format(table))
    try:
        with logged(running, *words) as lines:
            assert summary(admin.put("user/k", "x")) == UNAVAILABLE
        told_to_run = "init-extension-storage" in lines[0]
        assert told_to_run is (words[0] == "42501")
    finally:
        sql(mended.format(table))
    assert admin.put("user/k", "x").ok


def test_index_refuses_an_entry(running: Superset, admin: Client) -> None:
    """A limit of PostgreSQL's own, which says nothing of the value's size."""
    description = "".join(random.Random(1).choices(string.ascii_letters, k=6000))
    sql("CREATE INDEX added ON ext_storage.extension_storage (description)")
    try:
        with logged(running, "54000", "added", "cannot be indexed"):
            entry = {"value": "x", "description": description}
            assert summary(admin.put("user/k", entry)) == UNAVAILABLE
    finally:
        sql("DROP INDEX ext_storage.added")
    assert admin.put("user/k", entry).ok


def test_trigger_keeps_a_row(running: Superset, admin: Client) -> None:
    """The log names what the server names, and no command that would not help."""
    admin.put("user/k", "x")
    sql(
        "CREATE FUNCTION public.keep() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN RETURN NULL; END'"
    )
    sql(
        "CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON ext_storage.extension_storage"
        " FOR EACH ROW EXECUTE FUNCTION public.keep()"
    )
    try:
        for write in (
            lambda: admin.put("user/k", "y"),
            lambda: admin.delete("user/k"),
        ):
            with logged(
                running, "55000", "A trigger or a row-level security policy"
            ) as lines:
                assert summary(write()) == UNAVAILABLE
            assert "init-extension-storage" not in lines[0]
    finally:
        sql("DROP FUNCTION public.keep CASCADE")
    assert admin.get("user/k").text == "x"


# Of two transactions one must begin again, which the API does itself.


def test_serialization_failure(running: Superset, admin: Client) -> None:
    admin.put("user/k", "x")
    with (
        setting("default_transaction_isolation", "repeatable read"),
        ThreadPoolExecutor(1) as pool,
    ):
        with session() as other:
            other.execute("UPDATE ext_storage.extension_storage SET value = 'other'")
            put = pool.submit(admin.put, "user/k", "y")
            wait_for_a_lock(put)
        answer = put.result()
        assert answer.status_code == 200
        assert admin.get("user/k").text == "y"
        # Only once, so that it ends
        sql(
            "CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN RAISE EXCEPTION USING ERRCODE = ''40001''; END'"
        )
        sql(
            "CREATE TRIGGER fail BEFORE UPDATE ON ext_storage.extension_storage"
            " FOR EACH ROW EXECUTE FUNCTION public.fail()"
        )
        try:
            with logged(running, "40001", "default_transaction_isolation"):
                assert summary(admin.put("user/k", "z")) == BUSY
        finally:
            sql("DROP FUNCTION public.fail CASCADE")
        assert admin.get("user/k").text == "y"


def test_deadlock(running: Superset, admin: Client) -> None:
    """Superset has the row and waits for a lock of who waits for the row.

    The second attempt waits for nothing, or it could come to the row before who
    waits for it.  So that Superset finds the deadlock, it waits for another lock
    until the other one waits, too.
    """
    admin.put("user/k", "x")
    log = Path(os.environ["PG_DATA"]).with_name("log")
    start = log.stat().st_size
    sql(
        "CREATE SEQUENCE public.attempts;"
        "CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql"
        " SECURITY DEFINER AS"
        " 'BEGIN IF nextval(''public.attempts'') = 1 THEN"
        " PERFORM pg_advisory_xact_lock(78); PERFORM pg_advisory_xact_lock(77);"
        " END IF; RETURN NULL; END'"
    )
    sql(
        "CREATE TRIGGER wait AFTER UPDATE ON ext_storage.extension_storage"
        " FOR EACH ROW WHEN (NEW.changed_by_fk IS NOT NULL)"
        " EXECUTE FUNCTION public.wait()"
    )
    try:
        with ThreadPoolExecutor(2) as pool:
            with session() as first, session() as other:
                first.execute("SELECT pg_advisory_xact_lock(78)")
                other.execute("SET deadlock_timeout = '1h'")
                other.execute("SELECT pg_advisory_xact_lock(77)")
                put = pool.submit(admin.put, "user/k", {"value": "beyond sight"})
                wait_for_a_lock(put)
                ((waiting,),) = sql(
                    "SELECT query FROM pg_stat_activity"
                    " WHERE usename = 'superset' AND wait_event_type = 'Lock'"
                )
                lock = pool.submit(
                    other.execute,
                    "SELECT 1 FROM ext_storage.extension_storage FOR UPDATE",
                )
                wait_for_a_lock(lock, f"pid = {other.connection.info.backend_pid}")
                first.connection.rollback()
                lock.result()
            assert put.result().status_code == 200
    finally:
        sql("DROP FUNCTION public.wait CASCADE; DROP SEQUENCE public.attempts")
    assert admin.get("user/k").text == "beyond sight"
    # What the server shows of the statement ends before the value.
    told = log.read_bytes()[start:].decode()
    assert "deadlock detected" in told
    assert "ext_storage_set(" in waiting and "user_fk => " in waiting
    for shown in (waiting, told):
        assert "beyond sight" not in shown
        assert b"beyond sight".hex() not in shown


def test_failure_at_commit(running: Superset, admin: Client) -> None:
    """A deferred trigger fails when the answer has been made already."""
    sql("CREATE SEQUENCE public.tries")
    sql("GRANT USAGE ON SEQUENCE public.tries TO superset")
    sql(
        "CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN IF nextval(''public.tries'') = 1 THEN"
        " RAISE EXCEPTION USING ERRCODE = ''40001''; END IF; RETURN NULL; END'"
    )
    sql(
        "CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON ext_storage.extension_storage"
        " DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION public.fail()"
    )
    try:
        assert admin.put("user/k", "x").status_code == 200
        assert sql("SELECT last_value FROM public.tries") == [(2,)]
        assert admin.get("user/k").text == "x"
    finally:
        sql("DROP FUNCTION public.fail CASCADE")
        sql("DROP SEQUENCE public.tries")


# Every other one, raised by functions in the place of the real ones


# Names of the server's that psycopg2 has under another one
ALIASES = {
    "DATETIME_VALUE_OUT_OF_RANGE": "DATETIME_FIELD_OVERFLOW",
    "E_R_I_E_TRIGGER_PROTOCOL_VIOLATED": "TRIGGER_PROTOCOL_VIOLATED",
    "T_R_SERIALIZATION_FAILURE": "SERIALIZATION_FAILURE",
}


def own_sqlstates() -> set[str]:
    """Give the SQLSTATEs that the library and its scripts raise by themselves."""
    found = set()
    for source in SOURCES.glob("src/*.[ch]"):
        text = source.read_text()
        found |= {
            "".join(re.findall("'(.)'", custom))
            for custom in re.findall(r"MAKE_SQLSTATE\((.*?)\)", text)
        }
        for name in re.findall(r"errcode\(ERRCODE_(\w+)\)", text):
            if not name.startswith("ES_"):
                name = ALIASES.get(name, name)
                found.add(getattr(errorcodes, name))
    for script in SOURCES.glob("extension_storage--*.sql"):
        for name in re.findall(r"ERRCODE = '(\w+)'", script.read_text()):
            found.add(
                name
                if re.fullmatch("[A-Z0-9]{5}", name)
                else getattr(errorcodes, name.upper())
            )
    assert {"ES001", "ES002", "ES003", "ES004", "22001", "XX000"} <= found
    return found


OF_THE_SERVER = {
    *("08000", "08003", "08006", "0A000", "21000", "22000", "22003", "22021", "22P02"),
    *("22P05", "23502", "23505", "23514", "25006", "25P02", "25P03", "26000", "28000"),
    *("2200H", "3D000", "3F000", "40000", "40001", "40P01", "42501", "42703", "42804"),
    *("42883", "42P01", "44000", "53000", "53100", "53200", "53300", "53400", "54000"),
    *("54001", "55000", "55006", "55P03", "57000", "57014", "57P01", "57P02", "57P03"),
    *("57P04", "57P05", "58000", "58030", "58P01", "72000", "F0000", "P0001", "XX000"),
    *("XX001", "XX002"),
    *(
        "08P01",
        "22012",
        "22P03",
        "25001",
        "25P04",
        "2BP01",
        "2D000",
        "38000",
        "39P01",
        "40002",
    ),
    *("40003", "42703", "42809", "42846", "42P10", "42P17", "54011", "54023", "55P02"),
    *("09000", "20000", "2F000", "2F002", "38002"),
    *("55P04", "58P02", "F0001", "HV000", "P0002", "P0004"),
}

# A part of the advice in the log for a class, or for one SQLSTATE of it.
LOG = "See the log of the database server."
ADVICE = {
    **dict.fromkeys(("ES001", "ES002", "F0"), "says where keys are configured."),
    **dict.fromkeys(("08", "57"), "what is between Superset and the server."),
    **dict.fromkeys(("0A", "25", "2B", "2D", "53", "54", "55", "58", "XX"), LOG),
    **dict.fromkeys(("21", "26", "72", "HV"), LOG),
    **dict.fromkeys(
        ("09", "20", "22", "23", "27", "2F", "38", "39", "44", "P0", "42P17"),
        "refuses the entry.",
    ),
    **dict.fromkeys(("42703", "42804", "42809", "42P10"), "undo what was changed."),
    **dict.fromkeys(("42", "3F"), "Run superset init-extension-storage: "),
    "42501": "a row-level security policy",
    "2200H": "widen",
    "22P05": "remove client_encoding",
    "23505": "setval()",
    "25006": "connect Superset to the primary server",
    "25P03": "The setting idle_in_transaction_session_timeout ended the session",
    "25P04": "The setting transaction_timeout ended the session",
    "28": "does not let Superset's role in",
    "3D": "SQLALCHEMY_DATABASE_URI",
    "40": "pg_locks",
    "40001": "default_transaction_isolation",
    "53100": "more room",
    "53300": "max_connections",
    "55P03": "lock_timeout",
    "57014": "statement_timeout",
    "57P04": "The database was dropped.",
    "57P05": "The setting idle_session_timeout ended the session",
    "58P01": "lacks the file",
    "XX001": "make a backup",
    "XX002": "REINDEX",
}

STATUS = {
    "ES001": (500, {"message": "Value cannot be decrypted"}, False),
    "ES003": (507, {"message": "raised"}, False),
    "ES004": (412, {"message": "raised"}, False),
    **dict.fromkeys(("57P04", "53100", "53400"), UNAVAILABLE),
    **dict.fromkeys(("40", "57", "08", "53", "55P03", "25P03", "25P04"), BUSY),
    **dict.fromkeys(
        (
            "22001",
            "22003",
            "22004",
            "22007",
            "22008",
            "22021",
            "22023",
            "22P02",
            "22P03",
        ),
        (400, {"message": "raised"}, False),
    ),
    # Faults of the caller's transaction, which the API never makes, or unknown ones
    **dict.fromkeys(
        (
            "21000",
            "25001",
            "25P02",
            "26000",
            "2BP01",
            "2D000",
            "72000",
            "HV000",
        ),
        (500, {"message": "Extension storage failed"}, False),
    ),
}


@pytest.fixture(scope="module")
def raising(installed: Superset) -> Iterator[None]:
    """A schema whose functions raise what stands in its table."""
    sql("CREATE SCHEMA raising")
    sql("CREATE TABLE raising.raised (sqlstate text)")
    sql("GRANT USAGE ON SCHEMA raising TO superset")
    sql("GRANT SELECT ON raising.raised TO superset")
    sql(
        "CREATE TABLE raising.entry AS"
        " SELECT * FROM ext_storage.ext_storage_get_many('none', '{none}')"
    )
    sql(
        "DO $do$ DECLARE f regprocedure; BEGIN"
        " FOR f IN SELECT oid FROM pg_proc"
        "   WHERE pronamespace = 'ext_storage'::regnamespace AND prokind = 'f'"
        "   AND proretset AND proname <> 'ext_storage_functions'"
        "   OR proname IN ('ext_storage_set', 'ext_storage_delete',"
        "     'ext_storage_delete_prefix', 'ext_storage_count')"
        " LOOP EXECUTE format('CREATE FUNCTION raising.%s(%s) RETURNS %s"
        "   LANGUAGE plpgsql AS %L',"
        "   (SELECT proname FROM pg_proc WHERE oid = f),"
        "   pg_get_function_arguments(f),"
        "   regexp_replace(pg_get_function_result(f), '^TABLE.*', 'SETOF raising.entry'),"
        "   'BEGIN RAISE EXCEPTION ''raised'' USING ERRCODE ="
        "     (SELECT sqlstate FROM raising.raised); END');"
        " END LOOP; END $do$"
    )
    yield
    sql("DROP SCHEMA raising CASCADE")


@pytest.fixture(scope="module")
def inside(app: Any, raising: None) -> Iterator[Any]:
    """A client in this process, of an application that calls what raises."""
    app.config["WTF_CSRF_ENABLED"] = False
    client = app.test_client()
    client.post("/login/", data={"username": "admin", "password": PASSWORD})
    schema = app.config["EXTENSION_STORAGE_SCHEMA"]
    app.config["EXTENSION_STORAGE_SCHEMA"] = "raising"
    yield client
    app.config["EXTENSION_STORAGE_SCHEMA"] = schema
    app.config["WTF_CSRF_ENABLED"] = True


@pytest.mark.parametrize("sqlstate", sorted(own_sqlstates() | OF_THE_SERVER))
def test_every_sqlstate(
    inside: Any, caplog: pytest.LogCaptureFixture, sqlstate: str
) -> None:
    caplog.set_level("INFO")
    expected = STATUS.get(sqlstate) or STATUS.get(sqlstate[:2], UNAVAILABLE)
    sql("DELETE FROM raising.raised")
    sql("INSERT INTO raising.raised VALUES (%s)", sqlstate)
    html = {"Accept": "text/html"}
    lists = ("", "?order=newest", "?include=value", "?order=newest&include=value")
    for answer in (
        inside.get(f"{URL}/user/k", headers=html),
        *(inside.get(f"{URL}/user/{query}", headers=html) for query in lists),
        inside.delete(f"{URL}/user/?key_prefix=k", headers=html),
        inside.put(f"{URL}/user/k", json={"value": "v"}, headers=html),
        inside.delete(f"{URL}/user/k", headers=html),
        inside.delete(f"{URL}/user/k", headers={**html, "If-Match": "*"}),
    ):
        found = answer.status_code, answer.json, "Retry-After" in answer.headers
        assert found == expected, answer.request.url
    status, body, again = expected
    for operation in (
        {"op": "get", "key": "k"},
        {"op": "set", "key": "k", "value": "v"},
        {"op": "delete", "key": "k"},
    ):
        answer = inside.post(
            f"{URL}/user/", json={"operations": [operation]}, headers=html
        )
        assert answer.status_code == status
        assert answer.json["message"] == body["message"]
        assert ("Retry-After" in answer.headers) == again
    lines = [r.getMessage() for r in caplog.records if r.name.endswith("storage.api")]
    if expected[0] in (500, 503):
        assert len(lines) == 12
        # What happened, and a sentence on what to do about it
        assert re.fullmatch(
            rf"Extension storage: raised \(SQLSTATE {sqlstate}\)\. [A-Z].+\.", lines[0]
        )
        assert (ADVICE.get(sqlstate) or ADVICE[sqlstate[:2]]) in lines[0]
    else:
        assert lines == [f"Extension storage: raised (SQLSTATE {sqlstate})"] * 12


def test_what_psycopg2_refuses(app: Any) -> None:
    """It says nothing of the connection, and trying again does not help."""
    from sqlalchemy.exc import DBAPIError
    from superset.extensions import db

    from superset_extension_storage import errors

    with app.app_context(), pytest.raises(DBAPIError) as caught:
        db.session.connection().exec_driver_sql("SELECT %(x)s", {"x": object()})
    error = errors.from_database(caught.value)
    assert type(error) is errors.ExtensionStorageError
    assert "psycopg2" in error.action and "can't adapt" in error.message


def test_pool_is_used_up(inside: Any, app: Any) -> None:
    """More requests than connections."""
    from superset.extensions import db

    with app.app_context():
        pool = db.engine.pool
        taken = [pool.connect() for _ in range(pool.size() + pool._max_overflow)]
        before, pool._timeout = pool._timeout, 0
        try:
            answer = inside.get(f"{URL}/user/k")
        finally:
            pool._timeout = before
            for connection in taken:
                connection.close()
    assert (answer.status_code, answer.json) == BUSY[:2]
    assert "Retry-After" in answer.headers
