"""A real Superset on a private PostgreSQL, and clients that talk to it.

`./dev test superset` starts the server and sets PGHOST, PGUSER, PG_DATA and
ADDON_RESULTS, the folder for screenshots.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import requests

from bundles import build_my_ext, make_bundle
from superset_extension_storage import openapi

SECRET_KEY = "a secret key of the tests that is long enough"
PASSWORD = "correct horse"
USERS = {
    "admin": "Admin",
    "alpha": "Alpha",
    "gamma": "Gamma",
    "reader": "Reader",
    "nobody": "Nobody",
}
README = Path(__file__).parents[1] / "README.md"
STORAGE = "/api/v1/extensions/{}/storage/persistent"

# Seconds.  Nothing takes that long; only where something never comes, a test must end.
END = 900


def sql(statement: str, *arguments: Any, database: str = "superset") -> list[Any]:
    """Run a statement as the server's superuser."""
    connection = psycopg2.connect(dbname=database)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, arguments or None)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


@contextmanager
def session() -> Iterator[Any]:
    """Give a cursor of a transaction, which ends with the block."""
    connection = psycopg2.connect(dbname="superset")
    try:
        with connection, connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def wait_for_a_lock(future: Future[Any], who: str = "usename = 'superset'") -> None:
    """Wait until Superset, or another session, waits for a lock."""
    while not sql(
        f"SELECT 1 FROM pg_stat_activity WHERE {who} AND wait_event_type = 'Lock'"
    ):
        assert not future.done(), getattr(future.result(), "text", None)
        time.sleep(0.01)


def reload() -> None:
    """Have the database server read its configuration files."""
    loaded = sql("SELECT pg_conf_load_time()")
    sql("SELECT pg_reload_conf()")
    while sql("SELECT pg_conf_load_time()") == loaded:
        time.sleep(0.05)


@contextmanager
def setting(name: str, value: str) -> Iterator[None]:
    """Run with a setting of the database server for new sessions of Superset."""

    def alter(change: str, *arguments: str) -> None:
        sql(f"ALTER ROLE superset {change}", *arguments)
        sql(
            f"SELECT pg_terminate_backend(pid, {END * 1000}) FROM pg_stat_activity"
            " WHERE usename = 'superset'"
        )

    alter(f"SET {name} = %s", value)
    try:
        yield
    finally:
        alter(f"RESET {name}")


# Times that a column may hold, the newest first, each with how JSON spells it where
# no datetime can hold it.
TIMES = {
    "infinity": "infinity",
    "20000-01-01 00:00:00.5": "20000-01-01T00:00:00.5",
    "9999-12-31 23:59:59.999999": None,
    "2026-01-02 03:04:05.06": None,
    "0001-01-01": None,
    "0044-03-15 12:00 BC": "0044-03-15T12:00:00 BC",
    "-infinity": "-infinity",
}


def fill_times(extension_id: str, user_fk: int | None = None) -> list[str]:
    """Write two entries of each time, and two without; give the keys, newest first."""
    keys = []
    for number, at in enumerate([*TIMES, None]):
        for key in (f"{number}b", f"{number}a"):
            sql(
                "INSERT INTO ext_storage.extension_storage"
                " (extension_id, user_fk, key, value, created_on, changed_on)"
                " VALUES (%s, %s, %s, 'x', %s, %s)",
                *(extension_id, user_fk, key, at, at),
            )
            keys.append(key)
    # in that order an entry without a time is as one of the oldest
    return keys[:-4] + sorted(keys[-4:], reverse=True)


class Superset:
    """An installation of Superset: a configuration, its commands, its server."""

    def __init__(self, folder: Path, database: str = "superset") -> None:
        self.folder = folder
        self.database = database
        self.log = folder / "server.log"
        self.config: dict[str, Any] = {
            "FEATURE_FLAGS": {"ENABLE_EXTENSIONS": True},
            "EXTENSIONS_PATH": os.environ["EXTENSIONS_PATH"],
            "SUPERSET_WEBSERVER_TIMEOUT": END,
        }
        self.lines: list[str] = []  # of superset_config.py, at its end
        self.variables: dict[str, str] = {}  # of the environment
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)

    def configure(self) -> None:
        """Write superset_config.py."""
        lines = [
            "from superset_extension_storage import install as FLASK_APP_MUTATOR",
            f"SECRET_KEY = {SECRET_KEY!r}",
            "SQLALCHEMY_DATABASE_URI = 'postgresql+psycopg2://superset@/"
            f"{self.database}?host={os.environ['PGHOST']}'",
            *(f"{name} = {value!r}" for name, value in self.config.items()),
            *self.lines,
        ]
        (self.folder / "superset_config.py").write_text("\n".join(lines) + "\n")

    def environment(self) -> dict[str, str]:
        self.configure()
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LC_ALL")}
        return {**kept, "PYTHONPATH": str(self.folder), **self.variables}

    def run(
        self, *arguments: str, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of Superset's command line."""
        if "input" not in options:
            options["stdin"] = subprocess.DEVNULL
        done = subprocess.run(
            [Path(sys.executable).with_name("superset"), *arguments],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=END,
            **options,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        root = self.variables.get("SUPERSET_APP_ROOT", "")
        self.url = f"http://127.0.0.1:{port}{root}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    Path(sys.executable).with_name("gunicorn"),
                    "--workers=1",
                    "--threads=8",
                    "--timeout=0",
                    "--graceful-timeout=1",
                    "--no-control-socket",
                    f"--bind=127.0.0.1:{port}",
                    "superset.app:create_app()",
                ],
                cwd=self.folder,
                env=self.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + END
        while True:
            try:
                if requests.get(f"{self.url}/health", timeout=END).text == "OK":
                    return
            except requests.ConnectionError:
                pass
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, "Superset does not start"
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop the server, and its worker with it."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(END)
            self.process = None

    def restart(self, **config: Any) -> None:
        """Start again with a changed configuration."""
        self.stop()
        self.config.update(config)
        self.start()

    def client(self, user: str | None) -> Client:
        """Give a client that is logged in like a browser, or one that is not."""
        return Client(self, user)


def documented_statuses(method: str, path: str) -> set[int]:
    """Give the statuses that OpenAPI has for an operation, none where it is none."""
    found = re.fullmatch(
        STORAGE.format("[^/]+/[^/]+") + r"/(global|user|resources/[^/]+/[^/]+)/([^/]*)",
        path.partition("?")[0],
    )
    try:
        described = openapi.operation(method, "{key}" if found[2] else "/", "", "")
    except (KeyError, TypeError):  # of the method, or of the path
        return set()
    return set(map(int, described["responses"]))


class Client:
    """Requests with the cookies and the CSRF token of a browser's session."""

    def __init__(self, superset: Superset, user: str | None) -> None:
        self.superset = superset
        self.session = requests.Session()
        # Over TLS Superset refuses writes without it.
        self.session.headers["Referer"] = superset.url
        if user is None:
            return
        token = self.token_of_login()
        answer = self.session.post(
            f"{superset.url}/login/",
            data={"username": user, "password": PASSWORD, "csrf_token": token},
            allow_redirects=False,
        )
        assert answer.status_code == 302 and "session" in self.session.cookies
        token = self.request("GET", "/api/v1/security/csrf_token/").json()["result"]
        self.session.headers["X-CSRFToken"] = token

    def token_of_login(self) -> str:
        page = self.session.get(f"{self.superset.url}/login/").text
        return re.search(r'id="csrf_token"[^>]*value="([^"]+)"', page)[1]

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request; path is below the server, or of an extension's storage."""
        if not path.startswith("/"):
            extension = options.pop("extension", "acme/my-ext")
            path = f"{STORAGE.format(extension)}/{path}"
        answer = self.session.request(
            method, self.superset.url + path, allow_redirects=False, **options
        )
        documented = documented_statuses(method, path)
        assert not documented or answer.status_code in documented, answer.text
        return answer

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.request("GET", path, **options)

    def put(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        """PUT a body, a value as a JSON body's field where it is a string."""
        if "data" not in options:
            options["json"] = {"value": body} if isinstance(body, str) else body
        return self.request("PUT", path, **options)

    def delete(self, path: str, **options: Any) -> requests.Response:
        return self.request("DELETE", path, **options)


@pytest.fixture
def visitor(app: Any, running: Superset) -> Iterator[Callable[..., Client]]:
    """Somebody who has not signed in: gives permissions of the role Public, and takes
    them back.
    """

    def grant(*names: str) -> Client:
        with app.app_context():
            from superset.extensions import db, security_manager

            security_manager.find_role("Public").permissions = [
                security_manager.find_permission_view_menu(name, "ExtensionStorage")
                for name in names
            ]
            db.session.commit()
        client = running.client(None)
        client.session.headers["X-CSRFToken"] = client.token_of_login()
        return client

    yield grant
    grant()


@pytest.fixture(scope="session")
def extensions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the extensions of every Superset of the tests."""
    folder = tmp_path_factory.mktemp("extensions")
    build_my_ext(folder, tmp_path_factory.mktemp("author") / "my-ext")
    make_bundle(folder, "acme", "other")
    os.environ["EXTENSIONS_PATH"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def installed(extensions: Path, tmp_path_factory: pytest.TempPathFactory) -> Superset:
    """A Superset that is set up as the README tells, but does not run."""
    sql("CREATE ROLE superset LOGIN", database="postgres")
    sql("CREATE DATABASE superset OWNER superset", database="postgres")
    superset = Superset(tmp_path_factory.mktemp("superset") / "main")
    for command in re.findall(r"^superset (.*)$", README.read_text(), re.MULTILINE)[:3]:
        superset.run(*command.split())
    return superset


@pytest.fixture(scope="session")
def app(installed: Superset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The application in this process, with keys of its own, and the users."""
    here = Superset(tmp_path_factory.mktemp("superset") / "app")
    here.config["EXTENSION_STORAGE_ENCRYPTION_KEYS"] = ["first", "other"]
    here.configure()
    os.environ["SUPERSET_CONFIG_PATH"] = str(here.folder / "superset_config.py")
    from superset.app import create_app

    made = create_app()
    with made.app_context():
        from superset.extensions import db, security_manager

        def permission(name: str, view: str) -> Any:
            return security_manager.find_permission_view_menu(name, view)

        csrf = permission("can_read", "SecurityRestApi")
        security_manager.add_role("Nobody").permissions = [csrf]
        security_manager.add_role("Reader").permissions = [
            csrf,
            permission("can_read", "ExtensionStorage"),
        ]
        for user, role in USERS.items():
            security_manager.add_user(
                user,
                user,
                "Test",
                f"{user}@example.org",
                security_manager.find_role(role),
                PASSWORD,
            )
        db.session.commit()
    return made


@pytest.fixture(scope="session")
def running(installed: Superset, app: Any) -> Iterator[Superset]:
    installed.start()
    yield installed
    installed.stop()


@pytest.fixture
def second(app: Any, tmp_path: Path) -> Iterator[Superset]:
    """Another Superset on the same database."""
    superset = Superset(tmp_path / "second")
    yield superset
    superset.stop()


@pytest.fixture(scope="session")
def clients(running: Superset) -> dict[str | None, Client]:
    """A logged-in client for each user."""
    return {user: running.client(user) for user in (*USERS, None)}


@pytest.fixture
def admin(clients: dict[str | None, Client]) -> Client:
    return clients["admin"]


@pytest.fixture
def gamma(clients: dict[str | None, Client]) -> Client:
    return clients["gamma"]


@pytest.fixture(autouse=True)
def empty_store(installed: Superset) -> None:
    """Begin each test with no entry."""
    sql("DELETE FROM ext_storage.extension_storage")


@pytest.fixture(scope="session")
def results() -> Path:
    """The folder for what people should look at."""
    return Path(os.environ["ADDON_RESULTS"])
