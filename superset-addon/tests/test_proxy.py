"""Superset below a path, behind Debian's nginx and Apache, which compress."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Client, Superset
from services import Apache, Nginx

ROOT = "/analytics"


class Proxied:
    """What a client needs to know of a Superset."""

    def __init__(self, url: str) -> None:
        self.url = url


@pytest.fixture(scope="module")
def below_a_path(
    app: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Superset]:
    superset = Superset(tmp_path_factory.mktemp("path") / "superset")
    superset.variables["SUPERSET_APP_ROOT"] = ROOT
    superset.start()
    yield superset
    superset.stop()


PROXIES = {"nginx": Nginx, "apache": Apache}

# Superset compresses what has 500 bytes or more, the proxy what is shorter.
VALUES = {
    length: json.dumps({"text": "compressible " * times})
    for length, times in (("short", 20), ("long", 200))
}


@pytest.fixture(scope="module", params=PROXIES)
def client(
    request: pytest.FixtureRequest,
    below_a_path: Superset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Client]:
    proxy = PROXIES[request.param](
        tmp_path_factory.mktemp("proxy") / "proxy", below_a_path.url.removesuffix(ROOT)
    )
    client = Client(Proxied(f"http://127.0.0.1:{proxy.port}{ROOT}"), "admin")
    client.session.headers["Accept-Encoding"] = "gzip"
    yield client
    proxy.stop()


@pytest.fixture(params=VALUES)
def value(request: pytest.FixtureRequest) -> str:
    return VALUES[request.param]


def test_requests_of_the_readme(client: Client, value: str) -> None:
    """Save, list, read and delete, with the cookies of a login below the path."""
    assert all(c.path == ROOT or c.path == "/" for c in client.session.cookies)
    assert client.put("user/my-key", value).status_code == 200
    assert client.get("user/").json()["count"] == 1
    answer = client.get("user/my-key")
    assert answer.text == value
    assert answer.headers["Content-Encoding"] == "gzip"
    assert client.delete("user/my-key").status_code == 200
    outside = Client(Proxied(client.superset.url.removesuffix(ROOT)), None)
    assert outside.get("user/my-key").status_code == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_conditional_writes(client: Client, value: str, method: str) -> None:
    """With the ETag as the client sees it, once and not twice."""
    assert client.put("user/k", value).status_code == 200
    answer = client.get("user/k")
    assert answer.headers["Content-Encoding"] == "gzip"
    etag = answer.headers["ETag"]
    unchanged = client.get("user/k", headers={"If-None-Match": etag})
    assert unchanged.status_code == 304
    assert client.put("user/k", value).status_code == 200
    stale = client.request(
        method, "user/k", headers={"If-Match": etag}, json={"value": "x"}
    )
    assert stale.status_code == 412, etag
    etag = client.get("user/k").headers["ETag"]
    written = client.request(
        method, "user/k", headers={"If-Match": etag}, json={"value": "x"}
    )
    assert written.status_code == 200, etag


def test_over_tls(
    second: Superset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With cookies that no other connection carries."""
    certificate = tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -noenc -subj /CN=localhost -addext"
    subprocess.run(
        [*command.split(), "subjectAltName=IP:127.0.0.1", "-out", "-", "-keyout", "-"],
        stdout=certificate.open("wb"),
        stderr=subprocess.DEVNULL,
        check=True,
    )
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    second.restart(ENABLE_PROXY_FIX=True, SESSION_COOKIE_SECURE=True)
    headers = "proxy_set_header X-Forwarded-Proto https;"
    proxy = Nginx(tmp_path / "proxy", second.url, headers, certificate=certificate)
    try:
        client = Client(Proxied(f"https://127.0.0.1:{proxy.port}"), "admin")
        assert [(c.name, c.secure) for c in client.session.cookies] == [
            ("session", True)
        ]
        etag = client.put("user/k", "1").headers["ETag"]
        known = client.get("user/k", headers={"If-None-Match": etag})
        assert (known.status_code, known.content) == (304, b"")
        assert known.headers["Cache-Control"] == "no-store"
        for status in (200, 412):
            answer = client.put("user/k", "2", headers={"If-Match": etag})
            assert answer.status_code == status
        elsewhere = client.put(
            "user/k", "3", headers={"Referer": "https://else.where/"}
        )
        assert elsewhere.status_code == 400
        assert client.get("user/k").text == "2"
        # the same client past the proxy, without TLS: nobody
        client.superset = second
        assert client.get("user/k").status_code == 401
    finally:
        proxy.stop()
