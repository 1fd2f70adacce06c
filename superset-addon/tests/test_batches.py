"""Lists with values and by time, and several operations in one request."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from conftest import README, Client, fill_times, session, setting, sql, wait_for_a_lock

TABLE = "ext_storage.extension_storage"
SCOPES = ("global", "user", "resources/thing/a-1")


def do(
    client: Client, *operations: Any, scope: str = "user", **options: Any
) -> requests.Response:
    """Send operations: (op, key), with more fields where there are some."""
    parts = [
        {"op": one[0], "key": one[1], **(one[2] if len(one) > 2 else {})}
        if isinstance(one, tuple)
        else one
        for one in operations
    ]
    return client.request("POST", f"{scope}/", json={"operations": parts}, **options)


def keys(answer: requests.Response) -> str:
    assert answer.status_code == 200, answer.text
    return "".join(entry["key"] for entry in answer.json()["result"])


def fill(client: Client, names: str, scope: str = "user") -> None:
    operations = [("set", name, {"value": name}) for name in names]
    assert do(client, *operations, scope=scope).status_code == 200


# Lists


@pytest.mark.parametrize("scope", SCOPES)
def test_prefix_and_after(admin: Client, scope: str) -> None:
    for key in ("a", "b1", "b2", "b%25", "c"):
        assert admin.put(f"{scope}/{key}", "x").ok
    found = admin.get(f"{scope}/?key_prefix=b").json()
    assert found["count"] == 3
    assert [e["key"] for e in found["result"]] == ["b%", "b1", "b2"]
    assert admin.get(f"{scope}/?key_prefix=b%25").json()["count"] == 1
    assert keys(admin.get(f"{scope}/?after_key=b1")) == "b2c"
    assert keys(admin.get(f"{scope}/?after_key=bzz")) == "c"
    assert keys(admin.get(f"{scope}/?after_key=a&key_prefix=b&page_size=2")) == "b%b1"
    assert admin.get(f"{scope}/?key_prefix=").json()["count"] == 5


@pytest.mark.parametrize("query", ["", "order=newest", "include=value"])
def test_next(admin: Client, query: str) -> None:
    """Every entry comes once, an entry of the cursor may go, and there is an end."""
    fill(admin, "abcdefg")
    sql(f"UPDATE {TABLE} SET changed_on = '2026-01-01'")
    seen, after, pages = "", "", 0
    while True:
        answer = admin.get(f"user/?{query}&page_size=3{after}")
        page = keys(answer)
        seen += page
        pages += 1
        if "next" not in answer.json():
            break
        assert admin.delete(f"user/{page[-1]}").ok
        after = f"&after={answer.json()['next']}"
    assert sorted(seen) == list("abcdefg") and pages == 3
    assert (seen == "gfedcba") is (query == "order=newest")
    assert "next" not in admin.get(f"user/?{query}&page_size=5").json()
    assert "next" in admin.get(f"user/?{query}&page_size=2&page=1").json()
    assert "next" not in admin.get(f"user/?{query}&page_size=2&page=2").json()
    assert "next" not in admin.get("global/").json()


@pytest.mark.parametrize("query", ["", "order=newest", "order=newest&include=value"])
def test_times_that_no_datetime_holds(admin: Client, query: str) -> None:
    """One takes away neither a value nor a list, which goes on behind it."""
    ((user_fk,),) = sql("SELECT id FROM ab_user WHERE username = 'admin'")
    names = fill_times("acme.my-ext", user_fk)
    names = names if query else sorted(names)
    seen, after = [], ""
    while True:
        answer = admin.get(f"user/?{query}&page_size=1{after}")
        assert answer.status_code == 200, answer.text
        seen += [entry["key"] for entry in answer.json()["result"]]
        if "next" not in answer.json():
            break
        after = f"&after={answer.json()['next']}"
    assert seen == names
    answer = do(admin, *(("get", name) for name in names))
    assert [e["status"] for e in answer.json()["result"]] == [200] * len(names)
    for name in names:
        assert admin.get(f"user/{name}").text == "x"
        assert admin.put(f"user/{name}", "y").status_code == 200
    answer = do(admin, *(("set", name, {"value": "z"}) for name in names))
    assert answer.status_code == 200
    assert admin.delete(f"user/{names[0]}", headers={"If-Match": "*"}).ok


def test_newest_first(admin: Client) -> None:
    fill(admin, "cab")
    admin.put("user/a", {"value": "again", "category": "x"})
    assert keys(admin.get("user/?order=newest"))[0] == "a"
    assert keys(admin.get("user/?order=key")) == "abc"
    sql(f"UPDATE {TABLE} SET changed_on = NULL WHERE key = 'b'")
    assert keys(admin.get("user/?order=newest")) == "acb"
    assert keys(admin.get("user/?order=newest&page=1&page_size=1")) == "c"
    assert keys(admin.get("user/?order=newest&category=x")) == "a"
    assert keys(admin.get("user/?order=newest&key_prefix=c")) == "c"


@pytest.mark.parametrize("scope", SCOPES)
def test_values(admin: Client, scope: str) -> None:
    """UTF-8 text or base64, told apart; in the form that PUT takes."""
    values = {"a": "hé\0".encode(), "b": b"\xff\0", "c": b"", "d": b"secret"}
    for key, value in values.items():
        body = {
            "value": base64.b64encode(value).decode(),
            "value_encoding": "base64",
            "is_encrypted": key == "d",
        }
        assert admin.put(f"{scope}/{key}", body).ok
    answer = admin.get(f"{scope}/?include=value")
    assert (
        answer.headers["Cache-Control"] == "no-store" and "ETag" not in answer.headers
    )
    for entry in answer.json()["result"]:
        got = admin.get(f"{scope}/{entry['key']}")
        assert f'"{entry["version"]}"' == got.headers["Entry-Version"]
        assert entry["problem"] is None
        assert entry["value_encoding"] == ("base64" if entry["key"] == "b" else None)
        body = {name: entry[name] for name in ("value", "value_encoding")}
        assert admin.put(f"{scope}/{entry['key']}", body).ok
        assert admin.get(f"{scope}/{entry['key']}").content == values[entry["key"]]


def test_values_that_cannot_be_read(admin: Client) -> None:
    for key in "abc":
        admin.put(f"user/{key}", {"value": key, "is_encrypted": True})
    sql(f"UPDATE {TABLE} SET value = 'gAAAAAbroken' WHERE key = 'b'")
    a, b, c = admin.get("user/?include=value").json()["result"]
    assert (a["value"], b["value"], c["value"]) == ("a", None, "c")
    assert b["problem"] and b["value_encoding"] is None
    a, b, c = do(admin, ("get", "c"), ("get", "b"), ("get", "a")).json()["result"]
    assert [(e["status"], e["value"]) for e in (a, b, c)] == [
        (200, "c"),
        (500, None),
        (200, "a"),
    ]
    assert b["problem"]


def test_values_are_bounded_by_bytes(admin: Client) -> None:
    for key in "abcde":
        admin.put(f"user/{key}", key * 1_000_000)

    def page(max_bytes: str) -> str:
        return keys(admin.get(f"user/?include=value&max_bytes={max_bytes}"))

    assert page("") == page("x") == page("0") == page("-1") == page("1999999") == "a"
    assert page("2000000") == "ab"
    assert page("1073741824") == page("4194304") == "abcd"
    answer = admin.get("user/?include=value&max_bytes=3000000").json()
    assert answer["count"] == 5
    rest = admin.get(f"user/?include=value&max_bytes=3000000&after={answer['next']}")
    assert keys(rest) == "de" and "next" not in rest.json()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("order=", "order must be key or newest"),
        ("order=oldest", "order must be key or newest"),
        ("include=values", "include must be value"),
        ("after=a&after_key=b", "exclude each other"),
        ("order=newest&after_key=b", "after_key is for lists by key"),
        ("after=", "after must be the next"),
        ("after=%C3%A9", "after must be the next"),
        ("after=eA==", "after must be the next"),
        *(
            (
                "after=" + base64.urlsafe_b64encode(text).decode(),
                "after must be the next",
            )
            for text in (b"null", b"[]", b"[1]", b'["a", 1]', b"\xff", b"[" * 2500)
        ),
        *(
            (
                "order=newest&after=" + base64.urlsafe_b64encode(text).decode(),
                "after must be the next",
            )
            for text in (
                *(b'["a"]', b'["a", 1]', b'["a", "x"]', b'["a", null, null]'),
                *(b'["a", "now"]', b'["a", ""]', b'["a", "Infinity"]'),
                *(b'["a", "44-03-15T00:00:00 BC"]', b'["a", "infinity "]'),
            )
        ),
        *(
            ("order=newest&after=" + base64.urlsafe_b64encode(text).decode(), message)
            for text, message in (
                (b'["a", "99999-99-99T99:99:99"]', "out of range"),
                (b'["a", "294277-01-01T00:00:00"]', "out of range"),
                (b'["a", "0001-01-01T00:00:00+14:00"]', "in UTC"),
            )
        ),
        ("after=" + base64.urlsafe_b64encode(b'["a\\u0000"]').decode(), "after_key"),
        ("after=" + base64.urlsafe_b64encode(b'["\\ud800"]').decode(), "after_key"),
        ("after_key=" + "k" * 256, "after_key is too long"),
        ("after_key=%00", "after_key"),
        ("key_prefix=" + "k" * 256, "key_prefix is too long"),
        ("key_prefix=%00", "key_prefix"),
        ("key_prefix=%FF", "query is not UTF-8"),
    ],
)
def test_bad_arguments_of_a_list(admin: Client, query: str, message: str) -> None:
    answer = admin.get(f"user/?{query}")
    assert answer.status_code == 400 and message in answer.json()["message"]


NO_NUMBERS = (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000, b"1.5", b"1")


@pytest.mark.parametrize("number", NO_NUMBERS, ids=lambda number: number[:9].decode())
def test_numbers_in_a_body(admin: Client, number: bytes) -> None:
    """No field is one: each is refused by its name, and nothing is written."""
    fields = b"op key if_match if_none_match value value_encoding value_type".split()
    others = {b"op": b'"set"', b"key": b'"k"', b"value": b'"x"'}

    def spelled(parts: dict[bytes, bytes]) -> bytes:
        return b", ".join(b'"%s": %s' % part for part in parts.items())

    for field in (*fields, b"category", b"description", b"is_encrypted"):
        body = b'{"operations": [{%s}]}' % spelled({**others, field: number})
        answer = admin.request("POST", "user/", data=body)
        assert answer.status_code == 400, (field, number[:9])
        named = (field if number[-1:].isdigit() else b"body is not JSON").decode()
        assert answer.json()["message"].startswith(named)
    for body in (b'{"operations": %s}', b'{"operations": [%s]}', b"%s", b'{"x": %s}'):
        answer = admin.request("POST", "user/", data=body % number)
        assert answer.status_code == 400 and answer.json()["message"]
    for cursor in (b'["a", %s]', b"[%s, null]", b"%s", b'{"a": %s}'):
        after = base64.urlsafe_b64encode(cursor % number[:999]).decode()
        answer = admin.get(f"user/?order=newest&after={after}")
        assert answer.status_code == 400 and "after" in answer.json()["message"]
    assert admin.get("user/").json()["count"] == 0


# Deletion by prefix


@pytest.mark.parametrize("scope", SCOPES)
def test_delete_prefix(admin: Client, scope: str) -> None:
    for other in SCOPES:
        for key in ("a1", "a_2", "a%253", "b"):
            assert admin.put(f"{other}/{key}", "x").ok
    for query in ("", "?key_prefix=", "?key_prefix=" + "k" * 256, "?prefix=a"):
        answer = admin.delete(f"{scope}/{query}")
        assert answer.status_code == 400 and "key_prefix" in answer.json()["message"]
    answer = admin.delete(f"{scope}/?key_prefix=a_")
    assert (answer.status_code, answer.json()["count"]) == (200, 1)
    assert admin.delete(f"{scope}/?key_prefix=a").json()["count"] == 2
    assert admin.delete(f"{scope}/?key_prefix=a").json()["count"] == 0
    assert {o: admin.get(f"{o}/").json()["count"] for o in SCOPES} == {
        o: 1 if o == scope else 4 for o in SCOPES
    }


# Several operations


def test_readme_example(admin: Client) -> None:
    """The body of a POST in the README, as written."""
    (body,) = re.findall(r"```json\n(.*?)```", README.read_text(), re.DOTALL)
    fill(admin, "d")
    answer = admin.request("POST", "user/", json=json.loads(body))
    assert [e["status"] for e in answer.json()["result"]] == [404, 200, 200, 404]
    again = admin.request("POST", "user/", json=json.loads(body))
    assert (again.status_code, again.json()["operation"]) == (412, 2)
    assert admin.delete("user/?key_prefix=snippet:").json()["count"] == 2


@pytest.mark.parametrize("scope", SCOPES)
def test_several(admin: Client, scope: str) -> None:
    """The answers are in the order of the operations."""
    answer = do(
        admin,
        ("set", "a", {"value": "1", "category": "c", "is_encrypted": True}),
        ("get", "none"),
        (
            "set",
            "b",
            {"value": "/w==", "value_encoding": "base64", "value_type": "a/b"},
        ),
        ("delete", "gone"),
        scope=scope,
    )
    assert answer.status_code == 200
    a, none, b, gone = answer.json()["result"]
    assert none == {"status": 404, "key": "none", "message": "Not found"}
    assert gone == {"status": 404, "key": "gone", "message": "Not found"}
    for result in (a, b):
        got = admin.get(f"{scope}/{result['key']}")
        assert got.headers["Entry-Version"] == f'"{result["version"]}"'
        assert result["status"] == 200
    assert (a["category"], a["is_encrypted"], b["value_type"]) == ("c", True, "a/b")
    assert admin.get(f"{scope}/b").content == b"\xff"
    answer = do(
        admin,
        ("delete", "b"),
        ("get", "a", {"if_none_match": "other"}),
        ("set", "c", {"value": "3"}),
        scope=scope,
    )
    b, a, c = answer.json()["result"]
    assert b == {"status": 200, "key": "b", "message": "Deleted"}
    assert (a["value"], a["value_encoding"], a["problem"]) == ("1", None, None)
    assert keys(admin.get(f"{scope}/")) == "ac"
    (a,) = do(admin, ("get", "a", {"if_none_match": a["version"]}), scope=scope).json()[
        "result"
    ]
    assert (a["status"], "value" in a) == (304, False)


def test_conditions(admin: Client) -> None:
    """As the headers of a single call; one refusal takes all back."""
    fill(admin, "abc")
    entries = admin.get("user/?include=value").json()["result"]
    version = {entry["key"]: entry["version"] for entry in entries}
    old = version["a"]
    answer = do(
        admin,
        ("set", "a", {"value": "2", "if_match": old}),
        ("set", "b", {"value": "2", "if_match": f'"x", W/"{version["b"]}-gzip"'}),
        ("set", "n", {"value": "2", "if_none_match": "*"}),
        ("delete", "c", {"if_match": f'"{version["c"]}"'}),
    )
    assert [e["status"] for e in answer.json()["result"]] == [200] * 4
    uuid_of_b = version["b"].rpartition("-")[0]
    for kind, key, condition in (
        ("set", "a", {"if_match": old}),
        ("set", "a", {"if_match": ""}),
        ("set", "a", {"if_match": f"{uuid_of_b}-2"}),
        ("set", "a", {"if_none_match": "*"}),
        ("set", "z", {"if_match": "*"}),
        ("delete", "a", {"if_match": old}),
        ("delete", "a", {"if_match": f"{uuid_of_b}-2"}),
        ("delete", "a", {"if_none_match": "*"}),
        ("delete", "z", {"if_match": "*"}),
    ):
        before = sql(f"SELECT to_jsonb(s) FROM {TABLE} s ORDER BY id")
        answer = do(
            admin,
            ("get", "q"),
            ("set", "first", {"value": "x"}),
            ("delete", "n"),
            (kind, key, condition),
            ("set", "last", {"value": "x"}),
            ("delete", "b"),
        )
        assert (answer.status_code, answer.json()["operation"]) == (412, 3), condition
        assert answer.json()["message"]
        single = admin.request(
            "PUT" if kind == "set" else "DELETE",
            f"user/{key}",
            json={"value": "x"},
            headers={name.replace("_", "-"): text for name, text in condition.items()},
        )
        assert single.status_code == 412
        assert single.json()["message"] == answer.json()["message"]
        assert sql(f"SELECT to_jsonb(s) FROM {TABLE} s ORDER BY id") == before


GOOD = {"op": "set", "key": "good", "value": "x"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "operation must be a JSON object"),
        ([], "operation must be a JSON object"),
        ({}, "op must be"),
        ({"op": "move", "key": "k"}, "op must be"),
        ({"op": ["get"], "key": "k"}, "op must be"),
        ({"op": "get"}, "key must be a string"),
        ({"op": "get", "key": None}, "key must be a string"),
        ({"op": "set", "key": 1}, "key must be a string"),
        ({"op": "get", "key": ""}, "key must have 1 to 255"),
        ({"op": "delete", "key": "k" * 256}, "key must have 1 to 255"),
        ({"op": "set", "key": "a/b"}, "key must have 1 to 255"),
        ({"op": "set", "key": ".."}, "key must not be"),
        ({"op": "set", "key": "a\0b"}, "key must not be"),
        ({"op": "get", "key": "good"}, "an operation before this one has the same key"),
        ({"op": "set", "key": "good"}, "an operation before this one has the same key"),
        ({"op": "get", "key": "k", "value": "x"}, "unknown field 'value'"),
        ({"op": "delete", "key": "k", "surprise": 1}, "unknown field 'surprise'"),
        ({"op": "get", "key": "k", "if_match": "*"}, "if_match"),
        ({"op": "set", "key": "k", "if_match": 1}, "if_match must be a string"),
        ({"op": "set", "key": "k", "if_match": '"a", *'}, "if_match must be * or"),
        ({"op": "get", "key": "k", "if_none_match": "*,a"}, "if_none_match must be * or"),
        ({"op": "set", "key": "k", "if_none_match": None}, "if_none_match must be"),
        ({"op": "set", "key": "k", "surprise": 1}, "unknown field 'surprise'"),
        ({"op": "set", "key": "k", "value": None}, "value must be a string"),
        ({"op": "set", "key": "k", "value": "*", "value_encoding": "base64"}, "base64"),
        ({"op": "set", "key": "k", "is_encrypted": "false"}, "is_encrypted must be"),
        ({"op": "set", "key": "k", "value_type": "html"}, "MIME type"),
        ({"op": "set", "key": "k", "category": "c" * 65}, "category is too long"),
        ({"op": "set", "key": "k", "category": "a\0"}, "category"),
        ({"op": "set", "key": "k", "description": "d" * 65536}, "description is too long"),
    ],
)  # fmt: skip
def test_bad_operation(admin: Client, bad: Any, message: str) -> None:
    answer = do(admin, GOOD, bad, {"op": "delete", "key": "other"})
    assert answer.status_code == 400
    assert answer.json()["operation"] == 1 and message in answer.json()["message"]
    assert admin.get("user/").json()["count"] == 0


HALF, PAIR = b"\\ud83d", b"\\ud83d\\ude00"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        *(
            (
                b'{"op": "set", "key": "k", "%s": "a %s"}' % (field, half),
                f"{field.decode()} contains half a surrogate pair",
            )
            for field in (
                *(b"op", b"key", b"value", b"value_type", b"value_encoding"),
                *(b"category", b"description", b"if_match", b"if_none_match", b"x"),
            )
            for half in (HALF, b"\\ude00", HALF + b"\\\\ude00", b"\\\\" + HALF, PAIR + HALF)
        ),
        (b'{"op": "get", "key": ["a", {"b": "%s"}]}' % HALF, "b contains half"),
        (b'{"op": "get", "%s": "k"}' % HALF, "op contains half"),
        (b'"%s"' % HALF, "contains half"),
        (b'{"op": "set", "key": "\xff"}', "key is not UTF-8"),
        (b'{"op": "set", "key": "\xed\xa0\x80"}', "key is not UTF-8"),
        (b'{"op": "set", "key": "k", "if_match": "\xff"}', "if_match is not UTF-8"),
        *(
            (
                b'{"op": "set", "key": "k", "%s": "\xff"}' % field.encode(),
                f"{field} is not UTF-8",
            )
            for field in ("value", "value_type", "category", "description")
        ),
        (b'{"op": "set", "\xff": "k"}', "operation must be a JSON object"),
        (b'{"op": "set", "key": 1e999}', "key is not JSON"),
        *(
            (
                b'{"op": "set", "key": "k", "%s": "a\\u0000"}' % field.encode(),
                f"{field} contains a NUL character",
            )
            for field in ("value_type", "category", "description")
        ),
        (b'{"op": "set", "key": "k", "value_encoding": "\\u0000"}', "value_encoding must"),
        (b'{"op": "s\\u0000", "key": "k"}', "op must be"),
        (b'{"op": "set", "key": "k", "value_type": "a/%s"}' % (b"b" * 254), "value_type is too long"),
    ],
)  # fmt: skip
def test_bad_text_in_an_operation(admin: Client, bad: bytes, message: str) -> None:
    """The answer says which operation it is, whatever the others have."""
    good = rb'{"op": "set", "key": "\\ud83d", "value": "%s \"x\": \\"}' % PAIR
    answer = admin.request(
        "POST",
        "user/",
        data=b'{"operations": [%s, %s, %s]}' % (good, bad, bad.replace(b'"k"', b'"l"')),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 400
    found = answer.json()
    assert message in found["message"] and found["operation"] == 1, found
    assert admin.get("user/").json()["count"] == 0


@pytest.mark.parametrize(
    "body",
    [
        b'{"operations": "%s"}' % HALF,
        b'{"operations": [{"op": "get", "key": "%s"}' % HALF,
    ],
)
def test_half_a_pair_in_no_operation(admin: Client, body: bytes) -> None:
    answer = admin.request(
        "POST", "user/", data=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400 and "half a surr" in answer.json()["message"]
    assert "operation" not in answer.json()
    body = b'{"operations": [{"op": "get", "key": "%s"}]}' % HALF
    answer = admin.put("user/k", data=body)
    assert answer.status_code == 400 and "operation" not in answer.json()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body"),
        (b"[]", "body must be a JSON object"),
        (b"{}", "operations must be a list"),
        (b'{"operations": null}', "operations must be a list"),
        (b'{"operations": {}}', "operations must be a list"),
        (b'{"operations": []}', "operations must be 1 to 100"),
        (b'{"operations": [], "x": 1}', "unknown field 'x'"),
        (b'{"operations": ' + b"[" * 50_000, "body"),
        (
            json.dumps(
                {"operations": [{"op": "get", "key": f"k{n}"} for n in range(101)]}
            ).encode(),
            "operations must be 1 to 100",
        ),
        (b'{"operations": [{"op": "set", "key": "\\ud800"}]}', "surrogate pair"),
        (b'{"operations": [{"op": "set", "key": "\xff"}]}', ""),
    ],
)
def test_bad_body(admin: Client, body: bytes, message: str) -> None:
    answer = admin.request(
        "POST", "user/", data=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400 and message in answer.json()["message"]


@pytest.mark.parametrize("op", ["get", "set", "delete"])
@pytest.mark.parametrize("resource", [f"{'t' * 65}/x", f"type/{'u' * 37}"])
def test_resource_with_a_long_name(admin: Client, op: str, resource: str) -> None:
    """What a single call would be told, for the first operation."""
    scope = f"resources/{resource}"
    fields = {"value": "x"} if op == "set" else {}
    answer = do(admin, (op, "k", fields), (op, "l", fields), scope=scope)
    assert (answer.status_code, answer.json()["operation"]) == (400, 0)
    assert answer.json()["message"] == admin.get(f"{scope}/k").json()["message"]
    assert "is too long" in answer.json()["message"]


@pytest.mark.parametrize("op", ["get", "set", "delete"])
@pytest.mark.parametrize("resource", ["a%0Ab/x", "type/%1B[31m", "type/%C2%85"])
def test_resource_with_control_characters(
    admin: Client, op: str, resource: str
) -> None:
    """They would make lines of a log, or colours of a terminal."""
    scope = f"resources/{resource}"
    for answer in (
        do(admin, (op, "k"), scope=scope),
        admin.put(f"{scope}/k", "x"),
        admin.get(f"{scope}/"),
        admin.request("DELETE", f"{scope}/k"),
    ):
        assert answer.status_code == 400
        assert (
            "resource must not contain control characters" in answer.json()["message"]
        )


def test_hundred_operations(admin: Client) -> None:
    names = [f"k{number:03}" for number in range(100)]
    answer = do(admin, *(("set", name, {"value": name}) for name in reversed(names)))
    assert [e["key"] for e in answer.json()["result"]] == names[::-1]
    answer = do(admin, *(("get", name) for name in names))
    assert [e["value"] for e in answer.json()["result"]] == names


def test_rights(clients: dict[str | None, Client]) -> None:
    """Each operation needs what it needs alone."""
    gamma, reader = clients["gamma"], clients["reader"]
    assert clients["admin"].put("global/k", "x").ok
    read, write = ("get", "k"), ("set", "w", {"value": "x"})
    for client, scope, operations, status in (
        (gamma, "user", [read, write], 200),
        (gamma, "global", [read], 200),
        (gamma, "global", [write], 403),
        (gamma, "global", [read, write], 403),
        (gamma, "global", [read, ("delete", "w")], 403),
        (gamma, "resources/thing/1", [read], 200),
        (gamma, "resources/thing/1", [write], 403),
        (reader, "user", [read], 200),
        (reader, "user", [write], 403),
        (reader, "user", [read, write], 403),
        (clients["nobody"], "user", [read], 403),
        (clients["nobody"], "user", [write], 403),
        (clients[None], "user", [read], 401),
        (clients["admin"], "global", [read, write], 200),
    ):
        answer = do(client, *operations, scope=scope)
        if client is clients[None]:
            assert answer.status_code in (302, 400, 401)  # CSRF comes first
        else:
            assert answer.status_code == status, (scope, operations)
    for client in (gamma, reader):
        assert client.delete("global/?key_prefix=k").status_code == 403
    assert reader.delete("user/?key_prefix=k").status_code == 403
    assert keys(clients["admin"].get("global/")) == "kw"


def test_rights_of_who_may_write_alone(
    app: Any, clients: dict[str | None, Client]
) -> None:
    def grant(name: str) -> None:
        with app.app_context():
            from superset.extensions import db, security_manager

            find = security_manager.find_permission_view_menu
            security_manager.find_role("Reader").permissions = [
                find("can_read", "SecurityRestApi"),
                find(name, "ExtensionStorage"),
            ]
            db.session.commit()

    writer = clients["reader"]
    write, other = ("set", "a", {"value": "x"}), ("delete", "b")
    grant("can_write")
    try:
        assert do(writer, write, other).status_code == 200
        assert do(writer, ("get", "a")).status_code == 403
        assert do(writer, write, ("get", "b")).status_code == 403
        assert do(writer, write, scope="global").status_code == 403
        assert writer.delete("user/?key_prefix=a").json()["count"] == 1
    finally:
        grant("can_read")


def test_csrf_token_missing(gamma: Client) -> None:
    gamma.put("user/k", "x")
    without = {"X-CSRFToken": None}
    assert do(gamma, ("delete", "k"), headers=without).status_code == 400
    assert gamma.delete("user/?key_prefix=k", headers=without).status_code == 302
    assert gamma.get("user/k").text == "x"


@pytest.mark.parametrize("scope", SCOPES)
def test_extension_must_be_installed(admin: Client, scope: str) -> None:
    for extension, status in (("acme/unheard-of", 404), ("a.b/c", 400)):
        for answer in (
            do(admin, GOOD, scope=scope, extension=extension),
            do(admin, ("get", "k"), scope=scope, extension=extension),
            admin.delete(f"{scope}/?key_prefix=k", extension=extension),
            admin.get(f"{scope}/?include=value&order=newest", extension=extension),
        ):
            assert answer.status_code == status


def test_quota_and_size(admin: Client) -> None:
    fill(admin, "a")
    with setting("extension_storage.quota_per_extension", "10"):
        answer = do(
            admin, *(("set", key, {"value": "1234"}) for key in "bcd"), ("delete", "a")
        )
        assert (answer.status_code, answer.json()["operation"]) == (507, 2)
        assert "quota" in answer.json()["message"]
        assert keys(admin.get("user/")) == "a"
        # what is deleted makes room
        answer = do(admin, ("set", "b", {"value": "1234567890"}), ("delete", "a"))
        assert answer.status_code == 200
        answer = do(admin, ("set", "a", {"value": "1234567890"}), ("delete", "b"))
        assert answer.status_code == 200
        answer = do(admin, ("set", "b", {"value": "1234567890"}), ("delete", "a"))
        assert answer.status_code == 200
    with setting("extension_storage.max_value_size", "10"):
        answer = do(admin, GOOD, ("set", "k", {"value": "12345678901"}))
        assert (answer.status_code, answer.json()["operation"]) == (413, 1)
    half = "x" * 12_000_000
    answer = do(admin, *(("set", key, {"value": half}) for key in "cd"))
    assert answer.status_code == 413
    assert keys(admin.get("user/")) == "b"
    for key in "cd":
        assert admin.put(f"user/{key}", half).ok
    answer = do(admin, ("get", "b"), ("get", "c"), ("get", "d"))
    assert (answer.status_code, answer.json()["operation"]) == (413, 2)


def test_writers_in_opposite_order(admin: Client) -> None:
    """All are done, each of them whole."""
    names = [f"k{number:02}" for number in range(20)]

    def write(number: int) -> int:
        order = names if number % 2 else names[::-1]
        operations = [("set", name, {"value": str(number)}) for name in order]
        return do(admin, *operations).status_code

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(write, range(16))) == {200}
    found = sql(f"SELECT DISTINCT version, convert_from(value, 'UTF8') FROM {TABLE}")
    assert len(found) == 1 and found[0][0] == 16


def test_writers_that_delete_and_set(admin: Client) -> None:
    """None is in the way of another: entries are locked in the order of their keys."""
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = 'superset'"
    before = sql(deadlocks)

    def write(number: int) -> int:
        gone, new = ("b", "a") if number % 2 else ("a", "b")
        many = [(f"{new}{n}", f"{gone}{n}") for n in range(20)]
        operations = [("set", one, {"value": "x"}) for one, _ in many]
        operations += [("delete", other) for _, other in many]
        return do(admin, *operations).status_code

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(write, range(40))) == {200}
    sql("SELECT pg_stat_clear_snapshot()")
    assert sql(deadlocks) == before


@pytest.mark.parametrize("several", [False, True])
def test_delete_of_an_entry_that_was_made_anew(admin: Client, several: bool) -> None:
    """It is another entry by the time of the deletion, though of the same version."""
    version = admin.put("user/k", "old").headers["Entry-Version"]
    with ThreadPoolExecutor(1) as pool, session() as other:
        other.execute(f"DELETE FROM {TABLE} RETURNING user_fk")
        other.execute(
            f"INSERT INTO {TABLE} (extension_id, key, user_fk, value)"
            " VALUES ('acme.my-ext', 'k', %s, 'new')",
            other.fetchone(),
        )
        if several:
            answer = pool.submit(
                do, admin, ("delete", "k", {"if_match": version}), GOOD
            )
        else:
            answer = pool.submit(
                admin.request, "DELETE", "user/k", headers={"If-Match": version}
            )
        wait_for_a_lock(answer)
    assert answer.result().status_code == 412
    assert admin.get("user/k").text == "new" and keys(admin.get("user/")) == "k"


def test_operation_that_fails(admin: Client) -> None:
    """Which one it was is said of what is no refusal too."""
    sql(f"ALTER TABLE {TABLE} ADD CONSTRAINT no_x CHECK (key <> 'x')")
    try:
        answer = do(admin, GOOD, ("set", "y", {"value": "1"}), ("set", "x", {}))
    finally:
        sql(f"ALTER TABLE {TABLE} DROP CONSTRAINT no_x")
    assert (answer.status_code, answer.json()["operation"]) == (503, 2)
    assert keys(admin.get("user/")) == ""


def test_answer_is_not_kept(admin: Client) -> None:
    assert do(admin, GOOD).headers["Cache-Control"] == "no-store"


def test_values_that_are_not_sent_count_for_nothing(admin: Client) -> None:
    versions = {}
    for key in "ab":
        answer = admin.put(f"user/{key}", "x" * 9_000_000)
        versions[key] = answer.headers["ETag"]
    answer = do(
        admin, *(("get", key, {"if_none_match": versions[key]}) for key in "ab")
    )
    assert [part["status"] for part in answer.json()["result"]] == [304, 304]
    assert do(admin, ("get", "a"), ("get", "b")).status_code == 413


def test_visitor_reads_several(visitor: Callable[..., Client], admin: Client) -> None:
    """Who has no session, and may read, does; and writes nothing."""
    assert admin.put("global/k", "x").ok
    nobody = visitor("can_read", "can_write", "can_write_shared")
    answer = do(nobody, ("get", "k"), scope="global")
    assert answer.json()["result"][0]["value"] == "x"
    for operation, scope in (
        (("set", "k", {"value": "y"}), "global"),
        (("delete", "k"), "global"),
        (("get", "k"), "user"),
        (("set", "k", {"value": "y"}), "resources/thing/1"),
    ):
        assert do(nobody, operation, scope=scope).status_code == 401
    assert nobody.delete("global/?key_prefix=k").status_code == 401
    assert admin.get("global/k").text == "x"


def test_dashboard_of_others(clients: dict[str | None, Client]) -> None:
    """Superset decides on its resources, as for single calls."""
    alpha, gamma = clients["alpha"], clients["gamma"]
    made = alpha.request("POST", "/api/v1/dashboard/", json={"dashboard_title": "d"})
    ((uuid,),) = sql("SELECT uuid FROM dashboards WHERE id = %s", made.json()["id"])
    scope = f"resources/dashboard/{uuid}"
    write = ("set", "a", {"value": "x"})
    assert do(alpha, write, ("get", "b"), scope=scope).status_code == 200
    for operations in ([write], [("delete", "a")], [write, ("get", "b")]):
        assert do(gamma, *operations, scope=scope).status_code == 403
    for operation in (write, ("get", "a"), ("delete", "a")):
        assert do(alpha, operation, scope=scope[:-1]).status_code == 404
    assert gamma.delete(f"{scope}/?key_prefix=a").status_code == 403
    assert alpha.delete(f"{scope}/?key_prefix=a").json()["count"] == 1


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
@pytest.mark.parametrize("scope", SCOPES)
def test_header_for_several_entries(
    clients: dict[str | None, Client], header: str, scope: str
) -> None:
    """It would be of no entry: refused, and nothing is done."""
    admin = clients["admin"]
    fill(admin, "k", scope)
    for text in ("*", '"x"', ""):
        for answer in (
            do(admin, ("set", "l", {}), scope=scope, headers={header: text}),
            do(admin, ("get", "k"), scope=scope, headers={header: text}),
            admin.delete(f"{scope}/?key_prefix=k", headers={header: text}),
        ):
            assert answer.status_code == 400
            assert f"{header} is for a single entry" in answer.json()["message"]
    assert keys(admin.get(f"{scope}/")) == "k"
    nobody = clients["nobody"].delete(f"{scope}/?key_prefix=k", headers={header: "*"})
    assert nobody.status_code == 403


FORMS = {
    "application/x-www-form-urlencoded": b"operations=x&csrf_token=y",
    "multipart/form-data; boundary=b": b"--b\r\nContent-Disposition: form-data;"
    b' name="operations"\r\n\r\nx\r\n--b--\r\n',
}


@pytest.mark.parametrize("content_type", FORMS)
def test_form_of_a_visitor(
    visitor: Callable[..., Client], admin: Client, content_type: str
) -> None:
    """It is read as JSON, whatever it calls itself, by who may read."""
    admin.put("global/k", "x")
    headers = {"Content-Type": content_type}
    body = json.dumps({"operations": [{"op": "get", "key": "k"}]}).encode()

    def post(client: Client, data: bytes) -> requests.Response:
        return client.request("POST", "global/", data=data, headers=headers)

    for data in (FORMS[content_type], body):
        assert post(visitor(), data).status_code == 401
    nobody = visitor("can_read")
    for client in (nobody, admin):
        answer = post(client, FORMS[content_type])
        assert answer.status_code == 400
        assert "body is not JSON: JSON is malformed" in answer.json()["message"]
        answer = post(client, body)
        assert (answer.status_code, answer.json()["result"][0]["value"]) == (200, "x")


def test_body_as_it_is_sent(gamma: Client) -> None:
    """A form, chunks, and compression are as for PUT."""
    body = json.dumps({"operations": [GOOD]}).encode()
    for options in (
        {
            "data": body,
            "headers": {"Content-Type": "application/x-www-form-urlencoded"},
        },
        {"data": iter([body[:9], body[9:]])},
    ):
        assert gamma.request("POST", "user/", **options).status_code == 200
    answer = gamma.request(
        "POST", "user/", data=body, headers={"Content-Encoding": "gzip"}
    )
    assert answer.status_code == 415
