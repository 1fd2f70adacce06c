"""How much memory the Superset process takes for values of more than 1 MB."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg2
import pytest
import requests

from conftest import END, Client, Superset, sql

MB = 1 << 20
IDENTITY = {"Accept-Encoding": "identity"}


@pytest.fixture
def worker(running: Superset) -> psutil.Process:
    """The process that answers requests."""
    (child,) = psutil.Process(running.process.pid).children()
    return child


def peak(worker: psutil.Process) -> int:
    """Give the largest resident size since the last reset."""
    for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def reset_peak(worker: psutil.Process) -> int:
    Path(f"/proc/{worker.pid}/clear_refs").write_text("5")
    return worker.memory_info().rss


def test_memory(worker: psutil.Process, admin: Client, results: Path) -> None:
    sql(
        "INSERT INTO ext_storage.extension_storage"
        " (extension_id, key, value, value_size)"
        " SELECT 'acme.my-ext', 'k' || n, decode(repeat('ab', 2 * 1048576), 'hex'), 2097152"
        " FROM generate_series(1, 100) n"
    )
    largest = b"x" * 16777215
    sql(
        "SELECT ext_storage.ext_storage_set('acme.my-ext', 'z',"
        " convert_to(repeat('x', 16777215), 'UTF8'), 'text/plain')"
    )
    url = "global/?page_size=100"
    admin.get(url)  # what the first request loads is not counted

    before = reset_peak(worker)
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: admin.get(url), range(50)))
    listing = peak(worker) - before
    assert {answer.status_code for answer in answers} == {200}
    assert {len(answer.json()["result"]) for answer in answers} == {100}
    assert {answer.json()["count"] for answer in answers} == {101}

    before_read = reset_peak(worker)
    assert admin.get("global/z", headers=IDENTITY).content == largest
    reading = peak(worker) - before_read

    text = (
        f"{before / MB:.0f} MB at rest; 50 clients list 101 entries of 2 to 16 MB:"
        f" +{listing / MB:.1f} MB; one reads 16 MB: +{reading / MB:.1f} MB\n"
    )
    (results / "memory.txt").write_text(text)
    assert listing < 32 * MB, text
    assert reading < 128 * MB, text


def test_memory_of_several_values(
    worker: psutil.Process, admin: Client, results: Path
) -> None:
    """They are refused, or not sent, before all are there."""
    sql(
        "INSERT INTO ext_storage.extension_storage"
        " (extension_id, key, value, value_size)"
        " SELECT 'acme.my-ext', 'k' || n, convert_to(repeat('x', 16777215), 'UTF8'),"
        " 16777215 FROM generate_series(1, 8) n"
    )
    sql(
        "INSERT INTO ext_storage.extension_storage (extension_id, key, value)"
        " SELECT 'acme.my-ext', 'l' || n, 'small' FROM generate_series(1, 8) n"
    )
    known = {
        key: f"{uuid}-{version}"
        for key, uuid, version in sql(
            "SELECT key, uuid, version FROM ext_storage.extension_storage"
        )
    }

    def get(*operations: dict[str, str]) -> tuple[requests.Response, int]:
        before = reset_peak(worker)
        body = {"operations": [{"op": "get", **one} for one in operations]}
        answer = admin.request("POST", "global/", json=body)
        return answer, peak(worker) - before

    get({"key": "l1"})  # what the first request loads is not counted
    answer, refused = get(*({"key": f"k{n}"} for n in range(1, 9)))
    assert (answer.status_code, answer.json()["operation"]) == (413, 1)
    answer, unsent = get(
        *(
            part
            for n in range(1, 9)
            for part in (
                {"key": f"k{n}", "if_none_match": known[f"k{n}"]},
                {"key": f"l{n}"},
            )
        )
    )
    statuses = [(one["status"], one.get("value")) for one in answer.json()["result"]]
    assert statuses == [(304, None), (200, "small")] * 8
    text = (
        f"one request for 8 values of 16 MB is refused: +{refused / MB:.1f} MB;"
        f" or has them already: +{unsent / MB:.1f} MB\n"
    )
    with (results / "memory.txt").open("a") as file:
        file.write(text)
    assert refused < 192 * MB, text
    assert unsent < 128 * MB, text


def test_memory_of_refused_values(
    worker: psutil.Process, admin: Client, results: Path
) -> None:
    """What is too large is refused before a statement, and held once."""
    url = "global/k"
    admin.put(url, "x")
    with psycopg2.connect(dbname="superset") as connection:
        # Nobody can even be logged in now.
        connection.cursor().execute(
            "LOCK ab_user, ext_storage.extension_storage IN ACCESS EXCLUSIVE MODE"
        )
        body = b'{"value": "' + b"x" * 99_000_000 + b'"}'
        before = reset_peak(worker)
        answer = admin.put(url, data=body, timeout=END)
        refused = peak(worker) - before
        assert answer.status_code == 413 and "16777215" in answer.json()["message"]
        longer = b'{"value": "' + b"x" * (16777215 + 1) + b'"}'
        assert admin.put(url, data=longer, timeout=END).status_code == 413
    connection.close()

    # The largest body that can be right: each byte is spelt with six
    body = b'{"value": "' + b"\\u0001" * 16777215 + b'"}'
    before = reset_peak(worker)
    assert admin.put(url, data=body).status_code == 200
    escaped = peak(worker) - before
    text = (
        f"a body of 99 MB is refused: +{refused / MB:.1f} MB;"
        f" one of {len(body) / MB:.0f} MB for a value of 16 MB: +{escaped / MB:.1f} MB\n"
    )
    with (results / "memory.txt").open("a") as file:
        file.write(text)
    assert refused < 2 * 99_000_000, text
    assert escaped < 2 * len(body), text


@pytest.mark.parametrize(
    "body",
    [
        b'{"operations": [' + b"0," * 5_000_000 + b"0]}",
        b"{" + b",".join(b'"%07d": 0' % n for n in range(1_000_000)) + b"}",
    ],
    ids=["operations", "fields"],
)
def test_memory_of_a_body_of_many_parts(
    worker: psutil.Process, admin: Client, body: bytes
) -> None:
    """It is not decoded beyond what there may be."""
    for method, url in (("POST", "user/"), ("PUT", "user/k")):
        before = reset_peak(worker)
        answer = admin.request(method, url, data=body)
        assert answer.status_code == 400
        assert peak(worker) - before < 4 * len(body) + 16 * MB, answer.text


@pytest.mark.parametrize("binary", [False, True], ids=["descriptions", "binary value"])
def test_memory_of_an_answer_in_json(
    worker: psutil.Process, admin: Client, results: Path, binary: bool
) -> None:
    """It is written once, in UTF-8, and bytes straight into it."""
    if binary:
        sql(
            "INSERT INTO ext_storage.extension_storage"
            " (extension_id, key, value, value_size)"
            " SELECT 'acme.my-ext', 'k', decode(repeat('ab', 16777215), 'hex'), 16777215"
        )
    else:
        sql(
            "INSERT INTO ext_storage.extension_storage"
            " (extension_id, key, value, description)"
            " SELECT 'acme.my-ext', 'k' || n, '', repeat(U&'\\+01F600', 65535)"
            " FROM generate_series(1, 100) n"
        )
    admin.get("global/?page_size=1")  # what the first request loads is not counted
    before = reset_peak(worker)
    if binary:
        body = {"operations": [{"op": "get", "key": "k"}]}
        answer = admin.request("POST", "global/", json=body, headers=IDENTITY)
    else:
        answer = admin.get("global/?page_size=100", headers=IDENTITY)
    taken = peak(worker) - before
    assert answer.status_code == 200
    if binary:
        (entry,) = answer.json()["result"]
        assert entry["value_encoding"] == "base64"
        assert base64.b64decode(entry["value"]) == b"\xab" * 16777215
    else:
        entries = answer.json()["result"]
        assert [e["description"] for e in entries] == ["\U0001f600" * 65535] * 100
    text = (
        f"an answer of {len(answer.content) / MB:.0f} MB in JSON"
        f" ({'a binary value' if binary else 'descriptions'}): +{taken / MB:.1f} MB\n"
    )
    with (results / "memory.txt").open("a") as file:
        file.write(text)
    assert len(answer.content) < 32 * MB, text
    assert taken < 100 * MB, text
