"""The HTTP contract, row by row, over the wire."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import jwt
import pytest
import requests

from bundles import make_bundle, manifest
from conftest import PASSWORD, README, STORAGE, Client, Superset, setting, sql

E = {"category", "description", "is_encrypted", "key", "uuid", "value_type"}
SCOPES = ("global", "user", "resources/thing/a-1")


def stored(key: str) -> dict[str, object]:
    """Give what the table has of the one entry with this key."""
    ((row,),) = sql(
        "SELECT to_jsonb(s) FROM ext_storage.extension_storage s WHERE key = %s", key
    )
    return row


def fill(admin: Client, count: int, scope: str = "global") -> None:
    for number in range(count):
        category = "odd" if number % 2 else "even"
        assert admin.put(
            f"{scope}/k{number:03}", {"value": "v", "category": category}
        ).ok


IN_TRANSACTION = (
    "SELECT query FROM pg_stat_activity"
    " WHERE usename = 'superset' AND state LIKE 'idle in transaction%%'"
)


def wire(client: Client, key: str, headers: str, method: str = "PUT") -> socket.socket:
    """Send the head of a request as it is, and give the connection."""
    server = urlsplit(client.superset.url)
    cookie = "; ".join(f"{c.name}={c.value}" for c in client.session.cookies)
    connection = socket.create_connection((server.hostname, server.port), 90)
    connection.sendall(
        f"{method} {STORAGE.format('acme/my-ext')}/{key} HTTP/1.1\r\n"
        f"Host: {server.netloc}\r\nCookie: {cookie}\r\nConnection: close\r\n"
        f"X-CSRFToken: {client.session.headers['X-CSRFToken']}\r\n"
        f"Content-Type: application/json\r\n{headers}\r\n".encode("latin-1")
    )
    return connection


def answer_on(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Give status and JSON of the answer on a connection, and close it."""
    with connection, connection.makefile("rb") as answer:
        status = int(answer.readline().split()[1])
        return status, json.loads(answer.read().partition(b"\r\n\r\n")[2])


@pytest.fixture(scope="module")
def free(
    running: Superset, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Superset]:
    """A Superset with other settings: any name, dashboards by role, embedded ones."""
    superset = Superset(tmp_path_factory.mktemp("free") / "superset")
    superset.config |= {
        "FEATURE_FLAGS": {"DASHBOARD_RBAC": True, "EMBEDDED_SUPERSET": True},
        "EXTENSION_STORAGE_ANY_NAME": True,
        "GUEST_ROLE_NAME": "Gamma",
        "GUEST_TOKEN_JWT_SECRET": "secret of the guests, which is long enough",
        "GUEST_TOKEN_JWT_AUDIENCE": "superset",
    }
    superset.start()
    yield superset
    superset.stop()


# Section 1: what a browser or program sees


@pytest.mark.parametrize("scope", SCOPES)
def test_list(admin: Client, scope: str) -> None:
    assert admin.get(f"{scope}/").json() == {"count": 0, "result": []}
    for key in ("b", "a", "c"):
        assert admin.put(f"{scope}/{key}", "x").ok
    answer = admin.get(f"{scope}/?page_size=2")
    assert answer.status_code == 200
    assert answer.json()["count"] == 3
    assert [entry["key"] for entry in answer.json()["result"]] == ["a", "b"]
    assert all(set(entry) == E for entry in answer.json()["result"])


@pytest.mark.parametrize("scope", SCOPES)
def test_list_without_slash_redirects(admin: Client, scope: str) -> None:
    answer = admin.get(scope)
    assert answer.status_code == 308
    assert urlsplit(answer.headers["Location"]).path.endswith(f"/{scope}/")


def test_list_page(admin: Client) -> None:
    fill(admin, 3)

    def keys(page: str) -> list[str]:
        answer = admin.get(f"global/?page_size=2&page={page}").json()
        assert answer["count"] == 3
        return [entry["key"] for entry in answer["result"]]

    assert keys("0") == keys("-1") == keys("x") == keys("") == ["k000", "k001"]
    assert keys("1") == ["k002"]
    assert keys("2") == keys("99999999999999999999") == []


def test_list_page_size(admin: Client) -> None:
    fill(admin, 102)

    def size(query: str) -> int:
        answer = admin.get(f"global/{query}").json()
        assert answer["count"] == 102
        return len(answer["result"])

    assert size("") == size("?page_size=x") == 25
    assert size("?page_size=100") == size("?page_size=101") == 100
    assert size("?page_size=1") == size("?page_size=0") == size("?page_size=-5") == 1


def test_list_category(admin: Client) -> None:
    fill(admin, 5)
    answer = admin.get("global/?category=odd").json()
    assert answer["count"] == 2
    assert [entry["key"] for entry in answer["result"]] == ["k001", "k003"]
    assert admin.get("global/?category=od").json() == {"count": 0, "result": []}


@pytest.mark.parametrize("scope", SCOPES)
def test_get(admin: Client, scope: str) -> None:
    missing = admin.get(f"{scope}/k")
    assert (missing.status_code, missing.json()) == (404, {"message": "Not found"})
    admin.put(f"{scope}/k", {"value": "hé\0", "value_type": "text/csv; header=present"})
    answer = admin.get(f"{scope}/k")
    assert (answer.status_code, answer.content) == (200, "hé\0".encode())
    assert answer.headers["Content-Type"] == "text/csv; header=present"


@pytest.mark.parametrize("scope", SCOPES)
def test_put(admin: Client, scope: str) -> None:
    first = admin.put(f"{scope}/k", {"value": "1", "category": "c", "description": "d"})
    assert first.status_code == 200
    entry = first.json()["result"]
    assert entry == {
        "key": "k",
        "uuid": entry["uuid"],
        "value_type": "application/json",
        "category": "c",
        "description": "d",
        "is_encrypted": False,
    }
    second = admin.put(f"{scope}/k", "2")
    assert second.status_code == 200
    assert second.json()["result"] == {**entry, "category": None, "description": None}
    assert admin.get(f"{scope}/k").text == "2"


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/octet-stream"],
)
def test_put_with_another_content_type(admin: Client, content_type: str) -> None:
    answer = admin.put(
        "user/k", data=b'{"value": "a&b=c"}', headers={"Content-Type": content_type}
    )
    assert answer.status_code == 200
    assert admin.get("user/k").text == "a&b=c"


def test_put_body_defaults(admin: Client) -> None:
    assert admin.put("user/k", {}).ok
    answer = admin.get("user/k")
    assert (answer.content, answer.headers["Content-Type"]) == (b"", "application/json")


@pytest.mark.parametrize("scope", SCOPES)
def test_delete(admin: Client, scope: str) -> None:
    admin.put(f"{scope}/k", "x")
    answer = admin.delete(f"{scope}/k")
    assert (answer.status_code, answer.json()) == (200, {"message": "Deleted"})
    again = admin.delete(f"{scope}/k")
    assert (again.status_code, again.json()) == (404, {"message": "Not found"})


def test_scopes_are_apart(admin: Client, gamma: Client) -> None:
    for scope in SCOPES:
        admin.put(f"{scope}/k", scope)
    gamma.put("user/k", "gamma")
    for scope in SCOPES:
        assert admin.get(f"{scope}/k").text == scope
        assert admin.get(f"{scope}/").json()["count"] == 1
    assert gamma.get("user/k").text == "gamma"
    assert gamma.get("user/k", extension="acme/other").status_code == 404


def test_no_credentials(clients: dict[str | None, Client]) -> None:
    for scope in SCOPES:
        for path in (f"{scope}/", f"{scope}/k"):
            answer = clients[None].get(path)
            assert answer.status_code == 401 and set(answer.json()) == {"msg"}


def test_bad_token(clients: dict[str | None, Client]) -> None:
    answer = clients[None].get("user/", headers={"Authorization": "Bearer x.y.z"})
    assert answer.status_code == 422 and set(answer.json()) == {"msg"}


def test_no_permission(clients: dict[str | None, Client]) -> None:
    for answer in (
        clients["nobody"].get("user/"),
        clients["reader"].put("user/k", "x"),
        clients["reader"].delete("user/k"),
        clients["gamma"].put("global/k", "x"),
    ):
        assert (answer.status_code, answer.json()) == (403, {"message": "Forbidden"})


def test_user_scope_without_a_user(visitor: Callable[..., Client]) -> None:
    """The role Public may read and write, but is nobody."""
    nobody = visitor("can_read", "can_write", "can_write_shared")
    assert nobody.get("global/").status_code == 200
    for answer in (
        nobody.get("user/"),
        nobody.get("user/k"),
        nobody.put("user/k", "x"),
        nobody.put("global/k", "x"),
        nobody.delete("global/k"),
        nobody.put("resources/t/u/k", "x"),
    ):
        assert answer.status_code == 401
        assert answer.json() == {"message": "Authentication required"}


def test_csrf_token_missing(gamma: Client) -> None:
    without = {"X-CSRFToken": None}
    answer = gamma.put("user/k", "x", headers=without)
    assert answer.status_code == 400 and set(answer.json()) == {"errors"}
    answer = gamma.delete("user/k", headers=without)
    assert answer.status_code == 302
    assert urlsplit(answer.headers["Location"]).path == "/login/"
    assert gamma.get("user/k").status_code == 404


def test_bearer_needs_cookie_and_csrf_token(running: Superset) -> None:
    client = running.client(None)
    login = {"username": "gamma", "password": PASSWORD, "provider": "db"}
    token = client.session.post(
        f"{running.url}/api/v1/security/login", json=login
    ).json()["access_token"]
    bearer = {"Authorization": f"Bearer {token}"}
    assert client.get("user/", headers=bearer).json() == {"count": 0, "result": []}
    assert client.put("user/k", "x", headers=bearer).status_code == 400
    csrf = client.get("/api/v1/security/csrf_token/", headers=bearer).json()["result"]
    both = {**bearer, "X-CSRFToken": csrf}
    assert client.put("user/k", "x", headers=both).status_code == 200
    assert client.get("user/k", headers=bearer).text == "x"
    client.session.cookies.clear()
    assert client.put("user/k", "y", headers=both).status_code == 400


def test_wrong_method_and_key_with_slash(admin: Client) -> None:
    """Superset shows its page "not found" to who accepts HTML."""
    accept = {"Accept": "application/json"}
    for answer, status in (
        (admin.request("POST", "user/k"), 405),
        (admin.request("PATCH", "user/k"), 405),
        (admin.put("user/", "x"), 405),
        (admin.get("user/a/b", headers=accept), 404),
        (admin.get("user/a%2Fb", headers=accept), 404),
    ):
        assert answer.status_code == status and set(answer.json()) == {"errors"}


# Section 2: where the first implementation was wrong


def test_base64(admin: Client) -> None:
    value = bytes(range(256))
    body = {
        "value": base64.b64encode(value).decode(),
        "value_encoding": "base64",
        "value_type": "application/octet-stream",
    }
    assert admin.put("user/k", body).ok
    assert admin.get("user/k").content == value
    assert admin.put("user/k", {"value": "QUJD"}).ok
    assert admin.get("user/k").text == "QUJD"
    for bad in ("QUJ", "Q*JD", "é"):
        answer = admin.put("user/k", {"value": bad, "value_encoding": "base64"})
        assert answer.status_code == 400 and "base64" in answer.json()["message"]
    assert admin.put("user/k", {"value_encoding": "hex"}).status_code == 400
    assert admin.get("user/k").text == "QUJD"


@pytest.mark.parametrize(
    ("field", "bad"),
    [("value", bad) for bad in (None, 1, 1.5, True, {}, [])]
    + [(field, bad) for field in ("category", "description") for bad in (1, {}, [])]
    + [("value_type", bad) for bad in (None, 1, {})]
    + [("surprise", 1)],
)
def test_field_of_wrong_type(admin: Client, field: str, bad: object) -> None:
    answer = admin.put("user/k", {field: bad})
    assert answer.status_code == 400 and field in answer.json()["message"]
    assert admin.get("user/k").status_code == 404


@pytest.mark.parametrize(
    "body", [b"[]", b'"x"', b"1", b"null", b"", b"{", b"\xff", b"[" * 100_000]
)
def test_body_is_no_object(admin: Client, body: bytes) -> None:
    answer = admin.put(
        "user/k", data=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400 and "body" in answer.json()["message"]


@pytest.mark.parametrize("bad", ["false", "true", 0, 1, None, []])
def test_is_encrypted_is_a_boolean(admin: Client, bad: object) -> None:
    answer = admin.put("user/k", {"value": "x", "is_encrypted": bad})
    assert answer.status_code == 400 and "is_encrypted" in answer.json()["message"]


def test_is_encrypted_absent_keeps(admin: Client) -> None:
    admin.put("user/k", {"value": "one", "is_encrypted": True})
    assert admin.put("user/k", "two").json()["result"]["is_encrypted"] is True
    assert bytes.fromhex(stored("k")["value"][2:]).startswith(b"gAAAA")
    assert admin.get("user/k").text == "two"
    answer = admin.put("user/k", {"value": "three", "is_encrypted": False})
    assert answer.json()["result"]["is_encrypted"] is False


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("category", "c" * 65),
        ("value_type", "text/" + "x" * 251),
        ("category", "a\0b"),
        ("description", "a\0b"),
        ("value_type", "text/\0"),
    ],
)
def test_too_long_and_nul(admin: Client, field: str, bad: str) -> None:
    answer = admin.put("user/k", {"value": "x", field: bad})
    assert answer.status_code == 400 and field in answer.json()["message"]
    assert admin.get("user/k").status_code == 404


@pytest.mark.parametrize("field", ["value", "category", "description", "value_type"])
def test_half_a_surrogate_pair(admin: Client, field: str) -> None:
    """As JavaScript sends a string that was cut within an emoji."""
    for bad in ("\ud800", "text/\udfff", "\ud800\ud800"):
        answer = admin.put("user/k", {field: bad, "is_encrypted": False})
        assert answer.status_code == 400
        assert answer.json()["message"] == f"{field} contains half a surrogate pair"
    for raw in (b'"\xed\xa0\x80"', b'"\xff"', b'"caf\xe9"'):
        body = b'{"' + field.encode() + b'": ' + raw + b"}"
        answer = admin.put("user/k", data=body)
        assert answer.status_code == 400 and field in answer.json()["message"]
    assert admin.get("user/k").status_code == 404


def test_too_long_in_the_path(admin: Client) -> None:
    assert admin.put(f"user/{'k' * 255}", "x").ok
    assert admin.put(f"user/{'k' * 256}", "x").status_code == 400
    assert admin.put(f"resources/{'t' * 65}/u/k", "x").status_code == 400
    assert admin.put(f"resources/t/{'u' * 37}/k", "x").status_code == 400


def test_value_too_large(admin: Client) -> None:
    largest = "x" * 16777215
    assert admin.put("user/k", largest).ok
    answer = admin.put("user/k", largest + "x")
    assert answer.status_code == 413 and "16777215" in str(answer.json())
    plain = {"Accept-Encoding": "identity"}
    assert admin.get("user/k", headers=plain).text == largest


def test_body_too_large(gamma: Client) -> None:
    """A body that no value can need is refused before it is read."""
    connection = wire(gamma, "user/k", "Content-Length: 200000000\r\n")
    assert answer_on(connection)[0] == 413


def test_chunked_body(gamma: Client) -> None:
    """Without Content-Length, as programs send what they do not have whole."""
    body = [b'{"value": "a', b"b" * 100_000, b'c"}']
    answer = gamma.put("user/k", data=iter(body))
    assert answer.status_code == 200
    assert gamma.get("user/k").text == "a" + "b" * 100_000 + "c"
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    assert gamma.put("user/k", data=iter([b'{"value":"form"}']), headers=form).ok
    assert gamma.get("user/k").text == "form"
    assert gamma.put("user/k", data=iter([b""])).status_code == 400


def test_chunked_body_too_large(gamma: Client) -> None:
    """A chunk of 4 MB again and again, until the server has had enough."""
    connection = wire(gamma, "user/k", "Transfer-Encoding: chunked\r\n")
    chunk = b"400000\r\n" + b" " * 0x400000 + b"\r\n"
    sent = 0
    try:
        while sent < 200_000_000:
            connection.sendall(chunk)
            sent += 0x400000
    except OSError:  # the server has answered and closed
        pass
    assert sent < 200_000_000
    connection.close()
    assert gamma.get("user/k").status_code == 404


def test_malformed_chunks(gamma: Client) -> None:
    connection = wire(gamma, "user/k", "Transfer-Encoding: chunked\r\n")
    connection.sendall(b"5\r\n{}   \r\nxyz\r\n")
    status, answer = answer_on(connection)
    assert status == 400 and "body" in answer["message"]


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "GZIP, identity"])
def test_compressed_body(gamma: Client, coding: str) -> None:
    headers = {"Content-Encoding": coding}
    answer = gamma.put("user/k", data=b"\x1f\x8b", headers=headers)
    assert answer.status_code == 415
    assert "compressed" in answer.json()["message"]
    assert answer.headers["Accept-Encoding"] == "identity"
    assert gamma.put("user/k", {}, headers={"Content-Encoding": "identity"}).ok


def test_slow_upload_holds_no_transaction(gamma: Client) -> None:
    """More than the network holds has been read, and no session is in a transaction."""
    connection = wire(gamma, "user/k", "Content-Length: 16000012\r\n")
    connection.sendall(b'{"value":"' + b"x" * 15_999_999)
    held = sql(IN_TRANSACTION)
    connection.sendall(b'x"}')
    assert answer_on(connection)[0] == 200
    assert held == []


def test_slow_upload_of_a_visitor(
    admin: Client, visitor: Callable[..., Client]
) -> None:
    """Whose body is read when it is known that the role Public may read."""
    admin.put("global/k", "x")
    start = b'{"operations": [{"op": "get", "key": "k"}]'
    spaces = 15_000_000
    length = len(start) + spaces + 1
    connection = wire(
        visitor("can_read"), "global/", f"Content-Length: {length}\r\n", "POST"
    )
    # More than the network holds: most of it has been read.
    connection.sendall(start + b" " * spaces)
    held = sql(IN_TRANSACTION)
    connection.sendall(b"}")
    status, answer = answer_on(connection)
    assert (status, answer["result"][0]["value"]) == (200, "x")
    assert held == []


def test_without_the_add_on(second: Superset) -> None:
    """As it is once its line is taken out of the configuration."""
    second.lines = ["FLASK_APP_MUTATOR = None"]
    second.start()
    assert second.client("admin").get("global/").status_code == 404


def test_body_without_an_end(second: Superset) -> None:
    """Behind a server that does not end a body whose length is not told."""
    second.lines = [
        "def unended(application):",
        "    def call(environment, start):",
        "        environment.pop('wsgi.input_terminated', None)",
        "        return application(environment, start)",
        "    return call",
        "ADDITIONAL_MIDDLEWARE = [unended]",
    ]
    second.start()
    admin = second.client("admin")
    for method, key in (("PUT", "global/k"), ("POST", "global/")):
        connection = wire(admin, key, "Transfer-Encoding: chunked\r\n", method)
        connection.sendall(b'd\r\n{"value":"x"}\r\n0\r\n\r\n')
        status, answer = answer_on(connection)
        assert (status, answer["message"]) == (411, "Content-Length is missing")
    assert admin.put("global/k", "x").status_code == 200


@pytest.mark.parametrize(
    "bad",
    ["text/html\r\nX-Evil: 1", "html", "text/", "text/html\n", "", "té/xt"]
    + [f'a/b; q="{char}"' for char in ("日", "é", "\u2028", "😀", "\x7f", "\x85")],
)
def test_bad_mime_type(admin: Client, bad: str) -> None:
    answer = admin.put("user/k", {"value": "x", "value_type": bad})
    assert answer.status_code == 400
    assert admin.get("user/k").status_code == 404


def test_type_that_no_header_can_say(admin: Client) -> None:
    """Other programs, and older releases, may have stored one: it can be read."""
    admin.put("user/k", "x")
    for stored_type in ('a/b; q="日"', 'a/b; q="é"', "a/b\nX-Evil: 1", "\u2028", ""):
        sql(
            "UPDATE ext_storage.extension_storage SET value_type = %s, version = 1",
            stored_type,
        )
        answer = admin.get("user/k")
        assert (answer.status_code, answer.text) == (200, "x"), stored_type
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert "X-Evil" not in answer.headers
        assert admin.get("user/").json()["result"][0]["value_type"] == stored_type


def test_long_description(admin: Client) -> None:
    assert admin.put("user/k", {"description": "é" * 65535}).status_code == 200
    answer = admin.put("user/k", {"description": "d" * 65536})
    assert answer.status_code == 400 and "description" in answer.json()["message"]


def test_stored_html_is_harmless(admin: Client) -> None:
    admin.put(
        "user/k", {"value": "<script>alert(1)</script>", "value_type": "text/html"}
    )
    headers = admin.get("user/k").headers
    assert headers["Content-Type"] == "text/html"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert headers["Cache-Control"] == "no-store"


def test_concurrent_puts_make_one_row(admin: Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: admin.put("user/k", str(n)), range(24)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["result"]["uuid"] for answer in answers}) == 1
    assert stored("k")["version"] == 24


def test_publisher_and_name(admin: Client) -> None:
    for bad in ("a.b/c", "a/b.c", "a%20b/c", "ä/c", "a/%0Ac", "a/c%0A"):
        for answer in (
            admin.get("user/", extension=bad),
            admin.get("user/k", extension=bad),
            admin.put("user/k", "x", extension=bad),
            admin.delete("user/k", extension=bad),
        ):
            assert answer.status_code == 400 and set(answer.json()) == {"message"}


def test_extension_must_be_installed(admin: Client, extensions: Path) -> None:
    """A bundle that comes or goes while Superset runs is seen as Superset sees it."""

    def statuses() -> set[int]:
        return {
            answer.status_code
            for scope in SCOPES
            for answer in (
                admin.put(f"{scope}/k", "x", extension="acme/new-ext"),
                admin.get(f"{scope}/k", extension="acme/new-ext"),
                admin.get(f"{scope}/", extension="acme/new-ext"),
                admin.delete(f"{scope}/k", extension="acme/new-ext"),
            )
        }

    assert statuses() == {404}
    answer = admin.put("user/k", "x", extension="acme/new-ext")
    assert answer.json() == {"message": "Extension acme.new-ext is not installed"}
    assert sql("SELECT count(*) FROM ext_storage.extension_storage") == [(0,)]
    make_bundle(extensions, "acme", "new-ext")
    assert statuses() == {200}
    # one that nobody can read, Superset neither
    (extensions / "loop.supx").symlink_to("loop.supx")
    assert statuses() == {200}
    (extensions / "loop.supx").unlink()
    (extensions / "acme.new-ext.supx").unlink()
    assert statuses() == {404}


def test_local_extensions(
    app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is read again when a file in it has changed, and only then."""
    from superset_extension_storage import bundles

    reads = []
    read = bundles.get_extensions
    monkeypatch.setattr(bundles, "get_extensions", lambda: reads.append(1) or read())
    monkeypatch.setattr(bundles, "_known", None)
    monkeypatch.setitem(app.config, "LOCAL_EXTENSIONS", [str(tmp_path)])
    dist = tmp_path / "dist"
    with app.app_context():
        assert not bundles.is_known("acme.local")
        dist.mkdir()
        (dist / "manifest.json").write_text(manifest("acme", "local"))
        for _ in range(9):
            assert bundles.is_known("acme.local") and bundles.is_known("acme.my-ext")
        assert len(reads) == 2
        (dist / "surprise").write_text("Superset loads no bundle with such a file")
        assert not bundles.is_known("acme.local")
        (dist / "surprise").unlink()
        assert bundles.is_known("acme.local")


def test_any_name(free: Superset) -> None:
    """With EXTENSION_STORAGE_ANY_NAME; without, and without extensions, none is."""
    admin = free.client("admin")
    assert admin.put("user/k", "x", extension="Acme_1/my-ext").ok
    long = f"{'p' * 127}/{'n' * 128}"
    assert admin.put("user/k", "x", extension=long).status_code == 400
    free.restart(EXTENSION_STORAGE_ANY_NAME=False)
    try:
        assert admin.get("user/").status_code == 404
    finally:
        free.restart(EXTENSION_STORAGE_ANY_NAME=True)


@pytest.mark.parametrize("key", ["%2E", "%2E%2E", "a%0Ab", "%00", "%7F", "%C2%85"])
def test_bad_keys(running: Superset, admin: Client, key: str) -> None:
    """Sent as they are: clients resolve dots in a path."""
    for method in ("GET", "PUT", "DELETE"):
        request = requests.Request(
            method, f"{running.url}{STORAGE.format('acme/my-ext')}/user/", json={}
        )
        prepared = admin.session.prepare_request(request)
        prepared.url += key
        answer = admin.session.send(prepared, allow_redirects=False)
        assert answer.status_code == 400 and "key" in answer.json()["message"]


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("user/caf%E9", "key"),
        ("user/%EF%BF%BD%E9", "key"),
        ("global/caf%C3", "key"),
        ("resources/thing/caf%E8/k", "resource_uuid"),
        ("resources/%FF/a-1/k", "resource_type"),
        ("resources/%EF%BF%BD/a-1/%FF", "key"),
        ("user/?category=caf%E9", "query"),
    ],
)
def test_url_is_utf8(admin: Client, path: str, part: str) -> None:
    methods = ("GET",) if "?" in path else ("GET", "PUT", "DELETE")
    for method in methods:
        answer = admin.request(method, path, json={})
        assert answer.status_code == 400
        assert answer.json() == {"message": f"{part} is not UTF-8"}
    assert admin.put("user/%EF%BF%BD", "replacement character").ok


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("user/", "category=caf\xe9", 400),
        ("user/", "caf\xe9", 400),
        ("user/k", "\xff", 400),
        ("user/k", "a=%E9\xc3\xa9", 400),
        ("user/", "category=\xc3\xa9", 200),
        ("user/caf\xe9", "", 400),
    ],
)
def test_bytes_of_a_url_as_they_are(
    app: Any, monkeypatch: pytest.MonkeyPatch, path: str, query: str, status: int
) -> None:
    """Not escaped, as no browser sends them, and not every server refuses them."""
    monkeypatch.setitem(app.config, "WTF_CSRF_ENABLED", False)
    client = app.test_client()
    client.post("/login/", data={"username": "admin", "password": PASSWORD})
    whole = f"{STORAGE.format('acme/my-ext')}/{path}"
    answer = client.get(
        "/", environ_overrides={"PATH_INFO": whole, "QUERY_STRING": query}
    )
    assert answer.status_code == status
    if status == 400:
        assert answer.json == {"message": f"{'query' if query else 'key'} is not UTF-8"}


def test_numbers_that_are_none(admin: Client) -> None:
    """In a query they are as no number; in JSON they are none."""
    fill(admin, 2)
    for number in ("1e999", "NaN", "Infinity", "-inf", "9" * 3000, "%F0%9F%98%80"):
        for name in ("page", "page_size", "max_bytes"):
            answer = admin.get(f"global/?include=value&{name}={number}")
            assert answer.status_code == 200, (name, number)
    for number in ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000):
        for field in ("value", "category", "is_encrypted"):
            answer = admin.put("user/k", data=f'{{"{field}": {number}}}')
            assert answer.status_code == 400, (field, number)
            assert answer.json()["message"]
    assert admin.get("user/k").status_code == 404


@pytest.mark.parametrize(
    "name",
    [
        *("If-Match", "If-None-Match", "Content-Type", "Content-Encoding", "Accept"),
        *("Authorization", "X-GuestToken", "Accept-Language", "Referer", "Origin"),
    ],
)
def test_bytes_of_a_header(admin: Client, name: str) -> None:
    """No byte in a header that others set is a fault of the server's."""
    for text in ("\xff", "Bearer \xff.\xff.\xff", '"\xe9", "\x80'):
        for method, path in (("PUT", "user/k"), ("GET", "user/"), ("DELETE", "user/k")):
            headers = f"{name}: {text}\r\nContent-Length: 2\r\n"
            connection = wire(admin, path, headers, method)
            connection.sendall(b"{}")
            with connection, connection.makefile("rb") as answer:
                assert int(answer.readline().split()[1]) < 500, (text, method)


def test_undecryptable_value(running: Superset, admin: Client) -> None:
    admin.put("user/k", {"value": "x", "is_encrypted": True})
    sql("UPDATE ext_storage.extension_storage SET value = 'gAAAAAbroken'")
    answer = admin.get("user/k")
    assert answer.status_code == 500
    assert answer.json() == {"message": "Value cannot be decrypted"}
    assert admin.get("user/").json()["count"] == 1
    assert admin.put("user/k", "y").json()["result"]["is_encrypted"] is True
    assert admin.get("user/k").text == "y"
    sql("UPDATE ext_storage.extension_storage SET value = 'gAAAAAbroken'")
    assert admin.delete("user/k").status_code == 200


def test_list_reads_no_value(admin: Client) -> None:
    """A list does not fail at a value that nobody can read."""
    fill(admin, 3)
    sql(
        "UPDATE ext_storage.extension_storage"
        " SET is_encrypted = true, value = 'gAAAAAbroken'"
    )
    assert admin.get("global/").json()["count"] == 3


def test_shared_writes_need_write_shared(clients: dict[str | None, Client]) -> None:
    for scope in ("global", "resources/thing/a-1"):
        assert clients["alpha"].put(f"{scope}/k", "x").status_code == 200
        assert clients["gamma"].get(f"{scope}/k").text == "x"
        assert clients["gamma"].put(f"{scope}/k", "y").status_code == 403
        assert clients["gamma"].delete(f"{scope}/k").status_code == 403
        assert clients["alpha"].delete(f"{scope}/k").status_code == 200
    assert clients["gamma"].put("user/k", "y").status_code == 200
    assert clients["gamma"].delete("user/k").status_code == 200


def test_permissions_are_on_one_view() -> None:
    granted = sql(
        "SELECT r.name, p.name FROM ab_permission_view_role l"
        " JOIN ab_role r ON r.id = l.role_id"
        " JOIN ab_permission_view v ON v.id = l.permission_view_id"
        " JOIN ab_permission p ON p.id = v.permission_id"
        " JOIN ab_view_menu m ON m.id = v.view_menu_id"
        " WHERE m.name = 'ExtensionStorage' AND r.name IN ('Admin', 'Alpha', 'Gamma')"
    )
    both, shared = {"can_read", "can_write"}, {"can_write_shared"}
    assert set(granted) == {
        (role, permission)
        for role, permissions in (
            ("Admin", both | shared),
            ("Alpha", both | shared),
            ("Gamma", both),
        )
        for permission in permissions
    }


@pytest.fixture(scope="module")
def resources(app: Any) -> dict[str, str]:
    """A dashboard and a chart of the user alpha on data that gamma may not see."""
    with app.app_context():
        from superset.connectors.sqla.models import SqlaTable
        from superset.extensions import db, security_manager
        from superset.models.core import Database
        from superset.models.dashboard import Dashboard
        from superset.models.slice import Slice

        owners = [security_manager.find_user("alpha")]
        database = Database(database_name="data", sqlalchemy_uri="sqlite://")
        table = SqlaTable(table_name="secret", database=database)
        db.session.add_all([database, table])
        db.session.flush()
        chart = Slice(
            slice_name="c",
            uuid=uuid4(),
            viz_type="table",
            datasource_id=table.id,
            datasource_type="table",
            owners=owners,
        )
        dashboard = Dashboard(
            dashboard_title="d",
            uuid=uuid4(),
            slices=[chart],
            owners=owners,
            published=True,
        )
        db.session.add_all([chart, dashboard])
        db.session.commit()
        return {"dashboard": str(dashboard.uuid), "chart": str(chart.uuid)}


@pytest.mark.parametrize("kind", ["dashboard", "chart"])
def test_access_to_dashboards_and_charts(
    resources: dict[str, str], clients: dict[str | None, Client], kind: str
) -> None:
    path = f"resources/{kind}/{resources[kind]}"
    owner = clients["alpha"]
    assert owner.put(f"{path}/k", "x").status_code == 200
    for user in ("alpha", "admin"):
        assert clients[user].get(f"{path}/k").text == "x"
        assert clients[user].get(f"{path}/").json()["count"] == 1
    for user in ("gamma", "reader"):
        several = {"operations": [{"op": "get", "key": "k"}]}
        for answer in (
            clients[user].get(f"{path}/k"),
            clients[user].get(f"{path}/"),
            clients[user].get(f"{path}/?include=value"),
            clients[user].request("POST", f"{path}/", json=several),
        ):
            assert answer.status_code == 403
            assert answer.json() == {"message": "Forbidden"}
    for answer in (
        owner.put(f"resources/{kind}/{uuid4()}/k", "x"),
        owner.get(f"resources/{kind}/{uuid4()}/k"),
        owner.get(f"resources/{kind}/1/"),
    ):
        assert (answer.status_code, answer.json()) == (404, {"message": "Not found"})
    assert owner.delete(f"{path}/k").status_code == 200


@pytest.mark.parametrize("kind", ["dashboard", "chart"])
def test_writing_needs_ownership(
    resources: dict[str, str],
    clients: dict[str | None, Client],
    kind: str,
) -> None:
    """Alpha sees all data, but edits only what it owns."""
    path = f"resources/{kind}/{resources[kind]}/k"
    table = {"dashboard": "dashboard_user", "chart": "slice_user"}[kind]
    owners = sql(f"DELETE FROM {table} RETURNING id, user_id, {table[:-5]}_id")
    try:
        alpha = clients["alpha"]
        assert alpha.put(path, "x").status_code == 403
        assert clients["admin"].put(path, "x").status_code == 200
        assert alpha.get(path).text == "x"
        assert alpha.delete(path).status_code == 403
    finally:
        for owner in owners:
            sql(
                f"INSERT INTO {table} (id, user_id, {table[:-5]}_id)"
                " VALUES (%s, %s, %s)",
                *owner,
            )


@pytest.fixture
def by_role(resources: dict[str, str]) -> Iterator[None]:
    """The dashboard may be seen by the role Gamma."""
    sql(
        "INSERT INTO dashboard_roles (dashboard_id, role_id)"
        " SELECT d.id, r.id FROM dashboards d, ab_role r"
        " WHERE d.uuid = %s AND r.name = 'Gamma'",
        resources["dashboard"],
    )
    yield
    sql("DELETE FROM dashboard_roles")


def test_chart_in_a_dashboard_seen_by_role(
    resources: dict[str, str],
    by_role: None,
    free: Superset,
    clients: dict[str | None, Client],
) -> None:
    """The chart's entries are as readable as its data there."""
    chart = f"resources/chart/{resources['chart']}"
    assert clients["alpha"].put(f"{chart}/k", "x").ok
    gamma = free.client("gamma")
    for path in (chart, f"resources/dashboard/{resources['dashboard']}"):
        assert gamma.get(f"{path}/").status_code == 200
        assert gamma.put(f"{path}/k", "y").status_code == 403
        assert clients["gamma"].get(f"{path}/").status_code == 403
        assert free.client("reader").get(f"{path}/").status_code == 403
    assert gamma.get(f"{chart}/k").text == "x"
    links = sql("DELETE FROM dashboard_slices RETURNING id, dashboard_id, slice_id")
    try:
        assert gamma.get(f"{chart}/k").status_code == 403
    finally:
        for link in links:
            sql("INSERT INTO dashboard_slices VALUES (%s, %s, %s)", *link)


def test_guest_of_an_embedded_dashboard(
    resources: dict[str, str], free: Superset, clients: dict[str | None, Client]
) -> None:
    """A guest reads what belongs to the dashboard of the token, under both uuids."""
    embedded = str(uuid4())
    sql(
        "INSERT INTO embedded_dashboards (uuid, dashboard_id)"
        " SELECT %s, id FROM dashboards WHERE uuid = %s",
        embedded,
        resources["dashboard"],
    )
    claims = {
        "user": {"username": "guest"},
        "resources": [{"type": "dashboard", "id": embedded}],
        "rls_rules": [],
        "iat": time.time(),
        "exp": time.time() + 3600,
        "aud": "superset",
        "type": "guest",
    }
    token = jwt.encode(claims, free.config["GUEST_TOKEN_JWT_SECRET"], "HS256")
    guest = free.client(None)
    guest.session.headers["X-GuestToken"] = token
    try:
        dashboard = f"resources/dashboard/{resources['dashboard']}"
        chart = f"resources/chart/{resources['chart']}"
        for path in (dashboard, chart):
            assert clients["alpha"].put(f"{path}/k", "x").ok
            assert guest.get(f"{path}/k").text == "x"
        assert guest.get(f"resources/dashboard/{embedded}/k").text == "x"
        assert guest.get("user/").status_code == 401
        # A slow upload of a guest's holds no transaction either.
        token = guest.session.get(f"{free.url}/api/v1/security/csrf_token/").json()
        guest.session.headers["X-CSRFToken"] = token["result"]
        header = f"X-GuestToken: {guest.session.headers['X-GuestToken']}\r\n"
        body = b'{"operations": [{"op": "get", "key": "k"}]' + b" " * 15_000_000 + b"}"
        connection = wire(
            guest, f"{chart}/", f"{header}Content-Length: {len(body)}\r\n", "POST"
        )
        connection.sendall(body[:-1])
        held = sql(IN_TRANSACTION)
        connection.sendall(body[-1:])
        status, answer = answer_on(connection)
        assert (status, held) == (200, []), answer
        assert answer["result"][0]["value"] == "x"
        assert guest.get(f"resources/dashboard/{uuid4()}/k").status_code == 404
        # Without the feature the uuid is no dashboard's.
        path = f"resources/dashboard/{embedded}/k"
        assert clients["alpha"].get(path).status_code == 404
    finally:
        sql("DELETE FROM embedded_dashboards")
    for path in (dashboard, chart):
        assert guest.get(f"{path}/k").status_code == 403


@pytest.mark.parametrize("kind", ["dashboard", "chart", "thing"])
def test_uuid_in_any_spelling(
    resources: dict[str, str], admin: Client, kind: str
) -> None:
    uuid = resources.get(kind, str(uuid4()))
    assert admin.put(f"resources/{kind}/{uuid.upper()}/k", "x").ok
    assert admin.get(f"resources/{kind}/{uuid}/k").text == "x"
    assert admin.get(f"resources/{kind}/{uuid.replace('-', '')}/").json()["count"] == 1
    assert stored("k")["resource_uuid"] == uuid


def test_etag(admin: Client) -> None:
    first = admin.put("user/k", "x")
    etag = admin.get("user/k").headers["ETag"]
    assert etag == first.headers["ETag"] == f'"{first.json()["result"]["uuid"]}-1"'
    assert admin.put("user/k", "x").headers["ETag"] != etag


def test_if_none_match_on_get(admin: Client) -> None:
    etag = admin.put("user/k", "x").headers["ETag"]
    for header in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = admin.get("user/k", headers={"If-None-Match": header})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["ETag"] == etag
    assert admin.get("user/k", headers={"If-None-Match": '"other"'}).text == "x"
    assert admin.get("user/none", headers={"If-None-Match": "*"}).status_code == 404


def test_etag_of_a_compressed_answer(admin: Client) -> None:
    """Superset compresses, and marks the ETag then."""
    admin.put("user/k", "x" * 5000)
    answer = admin.get("user/k", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    etag = answer.headers["ETag"]
    assert admin.get("user/k", headers={"If-None-Match": etag}).status_code == 304
    assert admin.put("user/k", "y", headers={"If-Match": etag}).status_code == 200
    assert admin.put("user/k", "z", headers={"If-Match": etag}).status_code == 412


CODINGS = ("-gzip", "--gzip", ":gzip", ";br", "-br", "+deflate", ":zstd", "/x-gzip")


@pytest.mark.parametrize("coding", ("",) + CODINGS)
@pytest.mark.parametrize("weak", ["", "W/"])
def test_etag_that_a_proxy_has_changed(admin: Client, coding: str, weak: str) -> None:
    """As they come back when something between has compressed the answer."""

    def tag(answer: requests.Response) -> str:
        return f'{weak}"{answer.headers["ETag"].strip(chr(34))}{coding}"'

    old = tag(admin.put("user/k", "1"))
    new = tag(admin.put("user/k", "2", headers={"If-Match": old}))
    assert admin.get("user/k", headers={"If-None-Match": new}).status_code == 304
    assert admin.get("user/k", headers={"If-None-Match": old}).text == "2"
    for stale in (old, f'"x", {old}'):
        assert admin.put("user/k", "3", headers={"If-Match": stale}).status_code == 412
        assert admin.delete("user/k", headers={"If-Match": stale}).status_code == 412
    assert admin.put("user/k", "3", headers={"If-None-Match": new}).status_code == 412
    assert admin.get("user/k").text == "2"
    assert admin.delete("user/k", headers={"If-Match": new}).status_code == 200


def test_secrets_have_no_etag(admin: Client) -> None:
    """SupersetClient would keep them in the browser; Entry-Version is no ETag."""
    put = admin.put("user/k", {"value": "1", "is_encrypted": True})
    got = admin.get("user/k")
    head = admin.request("HEAD", "user/k")
    version = got.headers["Entry-Version"]
    assert version == put.headers["Entry-Version"] == head.headers["Entry-Version"]
    known = admin.get("user/k", headers={"If-None-Match": version})
    assert (known.status_code, known.headers["Entry-Version"]) == (304, version)
    for answer in (put, got, head, known):
        assert "ETag" not in answer.headers
    assert admin.put("user/k", "2", headers={"If-Match": version}).status_code == 200
    assert admin.put("user/k", "3", headers={"If-Match": version}).status_code == 412
    assert admin.get("user/k").text == "2"
    plain = admin.put("user/k", {"value": "3", "is_encrypted": False})
    assert plain.headers["Entry-Version"] == plain.headers["ETag"]


def test_if_match_on_put(admin: Client) -> None:
    etag = admin.put("user/k", "1").headers["ETag"]
    for header in (etag, f'"other", {etag}', "*"):
        answer = admin.put("user/k", "2", headers={"If-Match": header})
        assert answer.status_code == 200
        sql("UPDATE ext_storage.extension_storage SET version = 1")
    other = etag[:-1]
    for header in (
        *('"other"', other[:-1] + '2"', '"other", "else"', ""),
        *(
            f'{other}0"',
            f'{other}-1"',
            f'{other}-"',
            f'{other}---gzip"',
            f'{other}gzip"',
        ),
    ):
        answer = admin.put("user/k", "3", headers={"If-Match": header})
        assert answer.status_code == 412, header
        assert set(answer.json()) == {"message"}
    assert admin.get("user/k").text == "2"
    for header in (etag, "*"):
        answer = admin.put("user/none", "x", headers={"If-Match": header})
        assert answer.status_code == 412
    assert admin.get("user/none").status_code == 404


def test_if_match_on_get(admin: Client) -> None:
    """It is as binding as on a write, and comes before If-None-Match."""
    old = admin.put("user/k", "1").headers["ETag"]
    new = admin.put("user/k", "2").headers["ETag"]
    for header in (new, f'"other", W/{new}', "*"):
        answer = admin.get("user/k", headers={"If-Match": header})
        assert (answer.status_code, answer.text) == (200, "2")
        both = {"If-Match": header, "If-None-Match": new}
        assert admin.get("user/k", headers=both).status_code == 304
    for header in (old, '"other"', ""):
        for headers in ({}, {"If-None-Match": new}):
            for method in ("GET", "HEAD"):
                answer = admin.request(
                    method, "user/k", headers={"If-Match": header, **headers}
                )
                assert answer.status_code == 412, header
                assert "ETag" not in answer.headers
    for header in (new, "*"):
        answer = admin.get("user/none", headers={"If-Match": header})
        assert answer.status_code == 404


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
@pytest.mark.parametrize("text", ['"a", *', '*, "a"', "*, *", "*,", "W/*"])
def test_star_in_a_list(admin: Client, header: str, text: str) -> None:
    """`*` is valid alone: nothing is read or written where it is not."""
    admin.put("user/k", "1")
    for method in ("PUT", "DELETE", "GET"):
        for key in ("k", "none"):
            answer = admin.request(
                method, f"user/{key}", json={"value": "2"}, headers={header: text}
            )
            assert answer.status_code == 400 and header in answer.json()["message"]
    assert admin.get("user/k").text == "1"
    assert admin.get("user/").json()["count"] == 1
    answer = admin.put("user/k", "2", headers={header: '"*"'})
    assert answer.status_code == (412 if header == "If-Match" else 200)


def test_if_match_after_delete_and_create(admin: Client) -> None:
    """The new entry has the old version, but another uuid."""
    etag = admin.put("user/k", "1").headers["ETag"]
    admin.delete("user/k")
    admin.put("user/k", "2")
    assert admin.put("user/k", "3", headers={"If-Match": etag}).status_code == 412
    assert admin.delete("user/k", headers={"If-Match": etag}).status_code == 412
    assert admin.get("user/k").text == "2"


def test_if_none_match_on_put(admin: Client) -> None:
    only_new = {"If-None-Match": "*"}
    etag = admin.put("user/k", "1", headers=only_new).headers["ETag"]
    assert admin.put("user/k", "2", headers=only_new).status_code == 412
    answer = admin.put("user/k", "2", headers={"If-None-Match": etag})
    assert answer.status_code == 412
    assert admin.get("user/k").text == "1"


def test_conditional_delete(admin: Client) -> None:
    etag = admin.put("user/k", "1").headers["ETag"]
    admin.put("user/k2", "1")
    for headers in ({"If-Match": '"other"'}, {"If-None-Match": "*"}):
        assert admin.delete("user/k", headers=headers).status_code == 412
    assert admin.delete("user/none", headers={"If-Match": "*"}).status_code == 412
    assert admin.delete("user/none", headers={"If-None-Match": "*"}).status_code == 404
    for headers in ({}, {"If-Match": "*"}, {"If-None-Match": "*"}):
        answer = admin.delete("user/" + "k" * 256, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["message"].startswith("key is too long: ")
    assert admin.delete("user/k", headers={"If-Match": etag}).status_code == 200
    assert admin.get("user/").json()["count"] == 1


# What stands in neither section


def test_quota(admin: Client) -> None:
    with setting("extension_storage.quota_per_extension", "10"):
        assert admin.put("user/a", "12345678").status_code == 200
        answer = admin.put("user/b", "12345678")
        assert answer.status_code == 507 and "quota" in answer.json()["message"]
        assert admin.put("user/b", "x", extension="acme/other").status_code == 200


def test_audit_columns(admin: Client, gamma: Client) -> None:
    users = dict(sql("SELECT username, id FROM ab_user"))
    admin.put("global/k", "x")
    assert (
        stored("k")["created_by_fk"] == stored("k")["changed_by_fk"] == users["admin"]
    )
    gamma.put("user/mine", "x")
    assert stored("mine")["user_fk"] == users["gamma"]


def test_head(admin: Client) -> None:
    admin.put("user/k", "xyz")
    answer = admin.request("HEAD", "user/k")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Length"] == "3"


@pytest.fixture(scope="module")
def document(clients: dict[str | None, Client]) -> dict[str, Any]:
    return clients["admin"].get("/api/v1/_openapi").json()


ROOT = STORAGE.format("{publisher}/{name}")
OF_ALL = {400, 401, 403, 404, 422, 500, 503}
OF_A_BODY = {411, 412, 413, 415, 507}

# What each operation has, of a scope and of an entry: arguments that are not of
# the path, the schema of the body, and statuses.
OPERATIONS = {
    ("{scope}/", "get"): (
        {
            "page": {"type": "integer", "minimum": 0, "default": 0},
            "page_size": {
                "type": "integer",
                "minimum": 1,
                "maximum": 100,
                "default": 25,
            },
            "category": {"type": "string", "maxLength": 64},
            "key_prefix": {"type": "string", "maxLength": 255},
            "after_key": {"type": "string", "maxLength": 255},
            "after": {"type": "string"},
            "order": {"type": "string", "enum": ["key", "newest"], "default": "key"},
            "include": {"type": "string", "enum": ["value"]},
            "max_bytes": {
                "type": "integer",
                "minimum": 0,
                "maximum": 4194304,
                "default": 1048576,
            },
        },
        None,
        {200},
    ),
    ("{scope}/", "post"): ({}, "ExtensionStorageOperations", {200, 302} | OF_A_BODY),
    ("{scope}/", "delete"): (
        {"key_prefix": {"type": "string", "minLength": 1, "maxLength": 255}},
        None,
        {200, 302},
    ),
    ("{scope}/{key}", "get"): (
        {"If-Match": {"type": "string"}, "If-None-Match": {"type": "string"}},
        None,
        {200, 304, 412},
    ),
    ("{scope}/{key}", "put"): (
        {"If-Match": {"type": "string"}, "If-None-Match": {"type": "string"}},
        "ExtensionStorageBody",
        {200, 302} | OF_A_BODY,
    ),
    ("{scope}/{key}", "delete"): (
        {"If-Match": {"type": "string"}, "If-None-Match": {"type": "string"}},
        None,
        {200, 302, 412},
    ),
}

NAME = {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"}
OF_THE_PATH = {
    "publisher": NAME,
    "name": NAME,
    "resource_type": {"type": "string", "maxLength": 64},
    "resource_uuid": {"type": "string", "maxLength": 36},
    "key": {"type": "string", "minLength": 1, "maxLength": 255},
}


@pytest.mark.parametrize(
    "scope", ["global", "user", "resources/{resource_type}/{resource_uuid}"]
)
def test_openapi_document(document: dict[str, Any], scope: str) -> None:
    described = {
        (path, method): operation
        for path in ("{scope}/", "{scope}/{key}")
        for method, operation in document["paths"][
            f"{ROOT}/{path.replace('{scope}', scope)}"
        ].items()
    }
    assert set(described) == set(OPERATIONS)
    for name, (arguments, body, statuses) in OPERATIONS.items():
        operation = described[name]
        assert operation["tags"] == ["Extension storage"] and operation["summary"]
        names = re.findall(r"{(\w+)}", f"{ROOT}/{scope}/{name[0]}")
        of_the_path = {n: OF_THE_PATH[n] for n in names if n in OF_THE_PATH}
        found = {p["name"]: p["schema"] for p in operation["parameters"]}
        assert found == {**of_the_path, **arguments}, name
        required = {p["name"] for p in operation["parameters"] if p["required"]}
        by_prefix = {"key_prefix"} & set(arguments) if name[1] == "delete" else set()
        assert required == set(of_the_path) | by_prefix, name
        found = operation.get("requestBody")
        if body is None:
            assert found is None
        else:
            reference = {"$ref": f"#/components/schemas/{body}"}
            assert found["required"] is True
            assert found["content"] == {"application/json": {"schema": reference}}
        assert set(map(int, operation["responses"])) == OF_ALL | statuses, name


def test_openapi_bodies(document: dict[str, Any]) -> None:
    """The fields are those that are taken, none is more."""
    from superset_extension_storage import api

    schemas = document["components"]["schemas"]
    operations = schemas["ExtensionStorageOperations"]["properties"]["operations"]
    for schema, fields in (
        (schemas["ExtensionStorageBody"], api.EntryFields),
        (operations["items"], api.OperationFields),
    ):
        assert set(schema["properties"]) == set(fields.__struct_fields__)
        assert schema["additionalProperties"] is False
    assert operations["maxItems"] == api.MAX_OPERATIONS


def test_openapi_limits(admin: Client, document: dict[str, Any]) -> None:
    """What is as long as the document says is taken, what is longer is not."""
    paths, schemas = document["paths"], document["components"]["schemas"]
    checked = set()

    def check(name: str, length: int, send: Callable[[str], requests.Response]) -> None:
        checked.add(name)
        start = "a/" if name == "value_type" else ""
        for over in (0, 1):
            answer = send(start + "x" * (length + over - len(start)))
            assert (answer.status_code == 400) is bool(over), (name, answer.text)

    resource = f"{ROOT}/resources/{{resource_type}}/{{resource_uuid}}"
    for parameter in paths[f"{resource}/{{key}}"]["get"]["parameters"]:
        if "maxLength" in parameter["schema"]:
            parts = {"resource_type": "t", "resource_uuid": "u", "key": "k"}
            check(
                parameter["name"],
                parameter["schema"]["maxLength"],
                lambda text, parts=parts, name=parameter["name"]: admin.get(
                    "resources/{resource_type}/{resource_uuid}/{key}".format(
                        **{**parts, name: text}
                    )
                ),
            )
    for parameter in paths[f"{ROOT}/user/"]["get"]["parameters"]:
        if "maxLength" in parameter["schema"]:
            check(
                parameter["name"],
                parameter["schema"]["maxLength"],
                lambda text, name=parameter["name"]: admin.get(f"user/?{name}={text}"),
            )
    for name, schema in schemas["ExtensionStorageBody"]["properties"].items():
        if "maxLength" in schema:
            check(
                name,
                schema["maxLength"],
                lambda text, name=name: admin.put("user/k", {name: text}),
            )
    assert checked == {
        *("resource_type", "resource_uuid", "key"),
        *("category", "key_prefix", "after_key", "value_type", "description"),
    }


def test_statuses_are_documented() -> None:
    """In OpenAPI and in the README: each that a source names, and that a test has met,
    as the clients of the tests look at each answer.
    """
    documented = {s for *_, statuses in OPERATIONS.values() for s in OF_ALL | statuses}
    answers = README.read_text().partition("| status | |\n")[2].partition("\n\n")[0]
    listed = {
        int(s)
        for row in re.findall(r"^\| ([\d, ]+) \|", answers, re.M)
        for s in row.split(", ")
    }
    assert listed == documented - {200}
    source = (README.parent / "src/superset_extension_storage/api.py").read_text()
    named = re.findall(
        r"(?:Refused|response)\(\s*(\d{3})|status(?:, message)? ?= ?(\d{3})"
        r"|errors\.\w+: (\d{3})",
        source,
    )
    found = {int(status) for match in named for status in match if status}
    assert {200, 304, 411, 503, 507} < found <= documented


@contextmanager
def encoded(encoding: str, folder: Path) -> Iterator[Superset]:
    """A Superset whose database is a copy of the others' in another encoding."""
    name = encoding.lower()
    sql(
        f"CREATE DATABASE {name} OWNER superset TEMPLATE template0"
        f" ENCODING {encoding} LOCALE 'C'",
        database="postgres",
    )
    dump = subprocess.run(["pg_dump", "superset"], capture_output=True, check=True)
    subprocess.run(
        ["psql", "-qX", name], input=dump.stdout, capture_output=True, check=True
    )
    superset = Superset(folder / "superset", name)
    superset.start()
    try:
        yield superset
    finally:
        superset.stop()


def test_database_without_encoding(running: Superset, tmp_path: Path) -> None:
    """Where another program has stored what is no text for Superset."""
    with encoded("SQL_ASCII", tmp_path) as superset:
        admin = superset.client("admin")
        assert admin.put("user/a", {"value": "x", "category": "c"}).ok
        assert admin.get("user/").json()["count"] == 1
        sql(
            "UPDATE ext_storage.extension_storage SET category = E'\\xe9'",
            database=superset.database,
        )
        html = {"Accept": "text/html"}
        for answer in (
            admin.get("user/a", headers=html),
            admin.get("user/", headers=html),
            admin.get("user/?include=value", headers=html),
        ):
            assert answer.status_code == 503
            assert answer.json()["message"] == "Extension storage is not available"
        assert "another program has stored that text" in superset.log.read_text()
        assert admin.put("user/a", "y").ok and admin.get("user/a").text == "y"


def test_latin1_database(running: Superset, tmp_path: Path) -> None:
    """A metadata database that is not UTF-8 cannot hold every character."""

    def several(op: str, key: str, **fields: str) -> requests.Response:
        parts = [{"op": op, "key": "good"}, {"op": op, "key": key, **fields}]
        return admin.request("POST", "user/", json={"operations": parts})

    with encoded("LATIN1", tmp_path) as superset:
        admin = superset.client("admin")
        assert admin.put("user/caf%C3%A9", {"value": "😀", "category": "é"}).ok
        assert admin.get("user/caf%C3%A9").text == "😀"
        for answer, field in (
            (admin.put("user/😀", "x"), "key"),
            (admin.get("user/😀"), "key"),
            (admin.delete("user/😀"), "key"),
            (admin.get("resources/thing/😀/"), "resource_uuid"),
            (admin.get("resources/😀/1/"), "resource_type"),
            (admin.get("user/?category=😀"), "category"),
            (admin.put("user/k", {"category": "😀"}), "category"),
            (admin.put("user/k", {"description": "😀"}), "description"),
            *(
                (several(op, key), "key")
                for op in ("get", "set", "delete")
                for key in ("😀", "é😀")
            ),
            (several("set", "k", category="😀"), "category"),
        ):
            assert answer.status_code == 400
            message = answer.json()["message"]
            assert message.startswith(f"{field} ") and "LATIN1" in message
            assert answer.json().get("operation") in (None, 1)
        superset.restart(EXTENSION_STORAGE_ENCRYPTION_KEYS=["😀"])
        admin = superset.client("admin")
        assert admin.put("user/k", "x").status_code == 503
        log = superset.log.read_text()
        assert "Use secrets that the encoding of the database can hold" in log
        assert "client_encoding" not in log


def test_back_end_example(admin: Client) -> None:
    """The back end of acme.my-ext, by the API that it has of its own."""
    answer = admin.get("/extensions/acme/my-ext/examples")
    assert (answer.status_code, answer.json()) == (200, {"result": '{"lang":"fr"}'})
    found = sql(
        "SELECT extension_id, key, user_fk IS NULL, resource_type"
        " FROM ext_storage.extension_storage ORDER BY key"
    )
    assert found == [
        ("acme.my-ext", "config", True, None),
        ("acme.my-ext", "prefs", False, None),
        ("acme.my-ext", "state", True, "dashboard"),
    ]
