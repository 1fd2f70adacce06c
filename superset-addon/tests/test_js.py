"""The TypeScript package in the browser, inside of an extension."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome

from browser import block, load_extension, log_in, start_browser, wait
from conftest import Superset, sql
from sample import build_sample
from sample import run as run_program

TABLE = "ext_storage.extension_storage"

# The calls of the package, and whether a request is its own: Superset's page makes
# some at any time.
PRELUDE = r"""
const isOwn = url => /\/(storage|csrf_token)\//.test(url);
const { persistent, StorageError, decodeBase64, getContext } = window.acmeSample;
const failure = promise => promise.then(
  value => ['no failure', value],
  e => [e instanceof StorageError ? e.status : e.name, e.message]);
"""

TYPES = """
import { NewEntry, SetOptions, getContext } from 'superset-extension-storage';

const { persistent } = getContext('acme.sample').storage;

export async function calls(): Promise<void> {
  const entry = await persistent.getEntry('k');
  const condition = entry ? { ifMatch: entry.etag } : { ifAbsent: true };
  const options: SetOptions = { ...condition, encrypt: true, category: 'c' };
  await persistent.set('k', 1, options);
  await persistent.set('k', 1, { ifMatch: '"etag"', isBinary: false });
  await persistent.set('k', 1, { description: 'd' });
  await persistent.setMany([{ key: 'k', value: 1, ...condition }, { key: 'l', value: 2 }]);
  await persistent.remove('k', condition);
  await persistent.set('k', 1, condition);
  await persistent.set('k', 1, entry ? { ifMatch: entry.etag } : { ifAbsent: true });
  const entries: NewEntry[] = [{ key: 'k', value: { a: [1] } }];
  await persistent.setMany(entries);
  await persistent.setMany([
    { key: 'k', value: new Uint8Array([1]), isBinary: true },
    { key: 'l', value: { a: [1] }, ifAbsent: true },
    { key: 'm', value: [], ifMatch: '"etag"', encrypt: true },
  ]);

  // @ts-expect-error
  await persistent.set('k', 1, { ifMatch: entry?.etag });
  // @ts-expect-error
  await persistent.set('k', 1, { encrypt: true, ifMatch: undefined });
  // @ts-expect-error
  await persistent.set('k', 1, { ifAbsent: false, ifMatch: undefined });
  // @ts-expect-error
  await persistent.setMany([{ key: 'k', value: 1, ifMatch: entry?.etag }]);
  // @ts-expect-error
  await persistent.remove('k', { ifMatch: entry?.etag });
  // @ts-expect-error
  await persistent.set('k', 1, { category: 'c', encrypted: true });
  // @ts-expect-error
  await persistent.setMany([{ key: 'k', value: 1, encrypted: true }]);
  // @ts-expect-error
  await persistent.remove('k', { ifMatch: '"etag"', encrypt: true });
}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("npm")


@pytest.fixture(scope="module")
def sample(work: Path) -> Path:
    return build_sample(work)


@pytest.fixture(scope="module", params=["", "/team/superset"], ids=["root", "path"])
def superset(
    request: pytest.FixtureRequest,
    installed: Superset,
    app: Any,
    sample: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Superset]:
    """A Superset with the extension, also behind a path."""
    superset = Superset(tmp_path_factory.mktemp("js") / "superset")
    superset.config["LOCAL_EXTENSIONS"] = [str(sample)]
    if request.param:
        superset.variables["SUPERSET_APP_ROOT"] = request.param
    superset.start()
    yield superset
    superset.stop()


def open_sample(driver: Chrome, superset: Superset, user: str) -> None:
    """Log in and wait until the extension has run."""
    # Or the page after the login would run the extension, too, which may write when
    # it is left.
    block(driver, "*/api/v1/extensions/*")
    log_in(driver, superset.url, user)
    driver.get("about:blank")
    block(driver)
    driver.get(f"{superset.url}/dashboard/list/")
    if root := superset.variables.get("SUPERSET_APP_ROOT"):
        load_extension(driver, root, "acme.sample")
    wait(driver, lambda d: d.execute_script("return Boolean(window.acmeSample)"))
    # the visit that it counts
    wait(driver, lambda d: sql(f"SELECT key FROM {TABLE} WHERE key = 'visits'"))
    sql(f"DELETE FROM {TABLE}")


@pytest.fixture(scope="module")
def drivers(
    superset: Superset, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Chrome]]:
    drivers: dict[str, Chrome] = {}
    try:
        for user in ("gamma", "admin"):
            drivers[user] = start_browser(tmp_path_factory.mktemp("chromium"))
            open_sample(drivers[user], superset, user)
        yield drivers
    finally:
        for driver in drivers.values():
            driver.quit()


def run(driver: Chrome, code: str) -> Any:
    """Run the body of an async function; give what it returns."""
    return driver.execute_async_script(
        f"const done = arguments[0]; (async () => {{ {PRELUDE} {code} }})()"
        ".then(done, e => done('failed: ' + e.stack));"
    )


def stored(columns: str) -> list[Any]:
    return sql(f"SELECT {columns} FROM {TABLE} ORDER BY key")


def test_package(work: Path, sample: Path) -> None:
    """What npm packs: code, types, and no dependency."""
    (tarball,) = (work / "js").glob("*.tgz")
    with tarfile.open(fileobj=BytesIO(tarball.read_bytes())) as files:
        assert sorted(files.getnames()) == [
            "package/LICENSE",
            "package/README.md",
            "package/dist/index.d.ts",
            "package/dist/index.js",
            "package/package.json",
        ]
        manifest = json.load(files.extractfile("package/package.json"))
        code = files.extractfile("package/dist/index.js").read().decode()
        license_text = files.extractfile("package/LICENSE").read()
    assert license_text == (Path(__file__).parents[2] / "LICENSE").read_bytes()
    assert not {"dependencies", "peerDependencies"} & set(manifest)
    assert list(manifest["devDependencies"]) == ["typescript"]
    assert "import " not in code.replace("important ", "") and "require(" not in code


def test_readme(superset: Superset, drivers: dict[str, Chrome], sample: Path) -> None:
    """Its example compiles, and does what it says."""
    readme = Path(__file__).parents[1] / "js" / "README.md"
    (example,) = re.findall(r"```typescript\n(.*?)```", readme.read_text(), re.DOTALL)
    frontend = sample / "frontend"
    (frontend / "src" / "readme.ts").write_text(example)
    run_program(frontend, "npx", "tsc", "--noEmit", "-p", ".")
    answer = superset.client("admin").request(
        "POST", "/api/v1/dashboard/", json={"dashboard_title": "of the README"}
    )
    path = f"/api/v1/dashboard/{answer.json()['id']}"
    uuid = superset.client("admin").get(path).json()["result"]["uuid"]
    example, replaced = re.subn(
        r"const uuid = '.*?'", f"const uuid = '{uuid}'", example
    )
    assert replaced == 1
    code = example.split("\n", 1)[1].replace("const { persistent }", "const context")
    found = run(
        drivers["admin"],
        f"{code.replace('persistent', 'context.persistent')}"
        "return [snippet, entries.length, count, entry.value];",
    )
    assert found == [{"sql": "SELECT 1"}, 1, 1, {"sql": "SELECT 1"}]
    assert stored("key, is_encrypted, value_type, resource_uuid") == [
        ("config", False, "application/json", None),
        ("layout", False, "application/json", uuid),
        ("logo", False, "application/octet-stream", None),
        ("token", True, "application/json", None),
    ]


def test_readme_makes_the_package(work: Path) -> None:
    """What it says in the folder that it names, from a clone."""
    root = Path(__file__).parents[1]
    readme = (root / "js" / "README.md").read_text()
    assert "in the folder `superset-addon/js`" in readme
    (commands,) = re.findall(r"^    (npm .*pack)$", readme, re.MULTILINE)
    clone = work / "clone"
    built = ("node_modules", "dist", "*.tgz")
    shutil.copytree(root / "js", clone, ignore=shutil.ignore_patterns(*built))
    for command in commands.split(" && "):
        run_program(clone, *command.split())
    (tarball,) = clone.glob("*.tgz")
    assert f"/js/{tarball.name}\n" in readme


@pytest.mark.parametrize("exact", ["false", "true"])
def test_types(exact: str, sample: Path) -> None:
    """A condition that may be undefined, which would be none, does not compile."""
    frontend = sample / "frontend"
    (frontend / "src" / "types.ts").write_text(TYPES)
    command = ("npx", "tsc", "--noEmit", "-p", ".")
    run_program(frontend, *command, "--exactOptionalPropertyTypes", exact)


def test_json(drivers: dict[str, Chrome]) -> None:
    assert run(
        drivers["gamma"],
        """
        const out = [await persistent.get('missing')];
        for (const value of [{a: [1, 'ü€😀', null]}, 'text', 0, false, null, []]) {
          await persistent.set('k', value);
          out.push(await persistent.get('k'));
        }
        return out;
        """,
    ) == [None, {"a": [1, "ü€😀", None]}, "text", 0, False, None, []]
    (row,) = stored("extension_id, user_fk, value_type, version")
    gamma = sql("SELECT id FROM ab_user WHERE username = 'gamma'")[0][0]
    assert row == ("acme.sample", gamma, "application/json", 6)


def test_what_json_lacks(drivers: dict[str, Chrome]) -> None:
    """Nothing becomes null, or goes, without a word."""
    refused, kept = run(
        drivers["gamma"],
        """
        const wrong = [NaN, Infinity, [1, -Infinity], {a: NaN}, undefined, [undefined],
          () => 1, [() => 1], {a: () => 1}, Symbol('s'), {a: [Symbol('s')]}, 1n,
          new Map([[1, 2]]), {a: new Set([1])}, /r/, new ArrayBuffer(2), [new Blob(['b'])],
          Promise.resolve(1), {d: new Date(NaN)}];
        class Point { constructor() { this.x = 1; } }
        await persistent.set('k', {a: undefined, b: 1e308, n: null, p: new Point(),
          d: new Date(0)});
        const failures = [];
        for (const value of wrong) {
          failures.push((await failure(persistent.set('k', value)))[0]);
          failures.push((await failure(persistent.setMany([{key: 'k', value}])))[0]);
        }
        return [failures, await persistent.get('k')];
        """,
    )
    assert refused == ["TypeError"] * 38
    assert kept == {
        "b": 1e308,
        "n": None,
        "p": {"x": 1},
        "d": "1970-01-01T00:00:00.000Z",
    }


def test_json_that_is_none(drivers: dict[str, Chrome]) -> None:
    """However it is read, a value is not mended on the way."""
    gamma = sql("SELECT id FROM ab_user WHERE username = 'gamma'")[0][0]
    for key, value in (("a", b'"a\xffb"'), ("b", b'\xef\xbb\xbf"b"'), ("c", b"{")):
        sql(
            f"INSERT INTO {TABLE} (extension_id, user_fk, key, value, value_type)"
            " VALUES ('acme.sample', %s, %s, %s, 'application/json')",
            gamma,
            key,
            value,
        )
    found = run(
        drivers["gamma"],
        """
        const found = [];
        const many = await persistent.getMany(['a', 'b', 'c']);
        const {entries} = await persistent.list({page: 0, pageSize: 10});
        for (const [at, key] of ['a', 'b', 'c'].entries()) {
          found.push((await failure(persistent.get(key)))[1]);
          found.push((await failure(persistent.getEntry(key)))[1]);
          found.push(many.get(key).error.message, entries[at].error.message);
        }
        const bytes = await persistent.getBytes('a');
        return [found, [...bytes]];
        """,
    )
    assert found == [
        [
            f"the value of {k} is not the JSON that it says it is"
            for k in "aaaabbbbcccc"
        ],
        list(b'"a\xffb"'),
    ]


def test_binary(drivers: dict[str, Chrome]) -> None:
    assert run(
        drivers["gamma"],
        """
        const bytes = Uint8Array.from({length: 100000}, (_, i) => i % 256);
        await persistent.set('b', bytes, {isBinary: true});
        const text = await persistent.get('b');
        const same = other => other.length === bytes.length
          && other.every((byte, i) => byte === bytes[i]);
        const {isBinary, codec} = await persistent.getEntry('b');
        return [same(decodeBase64(text)), same(await persistent.getBytes('b')),
          isBinary, codec,
          await failure(persistent.set('b', bytes)),
          await failure(persistent.set('b', 'text', {isBinary: true})),
        ].map(String);
        """,
    ) == [
        *("true", "true", "true", "binary"),
        *["TypeError,a value is a Uint8Array if, and only if, isBinary is true"] * 2,
    ]
    value = bytes(i % 256 for i in range(100_000))
    assert bytes(stored("value")[0][0]) == value


def test_encrypted_stays_encrypted(drivers: dict[str, Chrome]) -> None:
    assert (
        run(
            drivers["gamma"],
            """
            await persistent.set('s', 'secret', {encrypt: true});
            await persistent.set('s', 'other');
            return persistent.get('s');
            """,
        )
        == "other"
    )
    assert stored("is_encrypted, left(convert_from(value, 'UTF8'), 5)") == [
        (True, "gAAAA")
    ]


def test_list(drivers: dict[str, Chrome]) -> None:
    first, second, filtered = run(
        drivers["gamma"],
        """
        for (const n of [1, 2, 3]) await persistent.set(`k${n}`, {n});
        await persistent.set('x', new Uint8Array([1, 2]),
          {isBinary: true, category: 'images', description: 'two bytes'});
        await persistent.shared.get('k1');
        return [await persistent.list({page: 0, pageSize: 3}),
          await persistent.list({page: 1, pageSize: 3}),
          await persistent.list({page: 0, pageSize: 3, category: 'images'})];
        """,
    )
    assert first == {
        "count": 4,
        "entries": [
            {"key": f"k{n}", "value": {"n": n}, "codec": "json", "isBinary": False}
            for n in (1, 2, 3)
        ],
    }
    image = {"key": "x", "value": "AQI=", "codec": "binary", "isBinary": True}
    assert second == {"count": 4, "entries": [image]}
    assert filtered == {"count": 1, "entries": [image]}
    assert stored("category, description")[3] == ("images", "two bytes")


def test_pages_that_there_are_not(drivers: dict[str, Chrome]) -> None:
    """The server would take the nearest one, and entries would be left out."""
    failures = run(
        drivers["gamma"],
        """
        const failures = [];
        for (const [page, pageSize] of [[0, 101], [0, 0], [-1, 5], [0.5, 5], [1e21, 5], [0, NaN]]) {
          failures.push(await failure(persistent.list({page, pageSize})));
        }
        await persistent.list({page: 0, pageSize: 100});
        return failures;
        """,
    )
    assert failures == [[400, "page must be from 0, pageSize from 1 to 100"]] * 6


def test_unreadable_entry_in_a_list(drivers: dict[str, Chrome]) -> None:
    gamma = sql("SELECT id FROM ab_user WHERE username = 'gamma'")[0][0]
    sql(
        f"INSERT INTO {TABLE} (extension_id, user_fk, key, value, is_encrypted)"
        " VALUES ('acme.sample', %s, 'bad', 'no token', true)",
        gamma,
    )
    listed, alone = run(
        drivers["gamma"],
        """
        await persistent.set('good', 1);
        const {entries} = await persistent.list({page: 0, pageSize: 10});
        return [entries.map(e => [e.key, e.value, e.error?.status, e.error?.message]),
          await failure(persistent.get('bad'))];
        """,
    )
    message = "Value cannot be decrypted"
    assert listed == [["bad", None, 500, message], ["good", 1, None, None]]
    assert alone == [500, message]


def test_remove(drivers: dict[str, Chrome]) -> None:
    assert run(
        drivers["gamma"],
        """
        await persistent.set('k', 1);
        await persistent.remove('k');
        await persistent.remove('k');
        return [await persistent.get('k')];
        """,
    ) == [None]
    assert stored("key") == []


def test_many(drivers: dict[str, Chrome]) -> None:
    """Several entries in one request, all or none."""
    found, none, etags, refused, after = run(
        drivers["gamma"],
        """
        const etags = await persistent.setMany([
          {key: 'a', value: {n: 1}, encrypt: true},
          {key: 'b', value: new Uint8Array([255]), isBinary: true, category: 'c'},
          {key: 't', value: new Uint8Array([65]), isBinary: true},
        ]);
        const found = await persistent.getMany(['t', 'missing', 'b', 'a']);
        const same = [];
        for (const key of ['a', 'b', 't']) {
          same.push((await persistent.getEntry(key)).etag);
        }
        const index = await persistent.setMany([
          {key: 'new', value: 1},
          {key: 'b', value: 2, ifMatch: etags[0]},
        ]).catch(error => [error.status, error.index]);
        const absent = await persistent.setMany([{key: 'a', value: 1, ifAbsent: true}])
          .catch(error => [error.status, error.index]);
        const [etag] = await persistent.setMany([{key: 'a', value: 2, ifMatch: etags[0]}]);
        await persistent.removeMany(['b', 'missing', 't']);
        return [[...found.values()], (await persistent.getMany([])).size,
          [etags, same, found.get('a').etag],
          [index, absent, await failure(persistent.getMany(['']))],
          [etag !== etags[0], (await persistent.list({page: 0, pageSize: 9})).entries]];
        """,
    )
    assert [(e["key"], e["value"], e["codec"], e["isBinary"]) for e in found] == [
        ("t", "QQ==", "binary", True),
        ("b", "/w==", "binary", True),
        ("a", {"n": 1}, "json", False),
    ]
    assert none == 0
    assert etags[0] == etags[1] and etags[2] == etags[0][0]
    assert refused[0] == [412, 1] and refused[1] == [412, 0] and refused[2][0] == 400
    a = {"key": "a", "value": 2, "codec": "json", "isBinary": False}
    assert after == [True, [a]]
    assert stored("key, is_encrypted") == [("a", True)]


def test_unreadable_entries_of_many(drivers: dict[str, Chrome]) -> None:
    """They are told apart, and the others come."""
    run(
        drivers["gamma"],
        "await persistent.setMany(['good', 'lost', 'text', 'bytes']"
        ".map(key => ({key, value: key})));",
    )
    sql(
        f"UPDATE {TABLE} SET value = 'no token', is_encrypted = true WHERE key = 'lost'"
    )
    sql(f"UPDATE {TABLE} SET value = 'x' WHERE key = 'text'")
    sql(f"UPDATE {TABLE} SET value = '\\xff' WHERE key = 'bytes'")
    found = run(
        drivers["gamma"],
        """
        const found = await persistent.getMany(['good', 'lost', 'text', 'bytes']);
        return [...found.values()].map(e => [e.key, e.value, e.error?.status]);
        """,
    )
    assert found == [
        ["good", "good", None],
        ["lost", None, 500],
        ["text", None, 200],
        ["bytes", None, 200],
    ]


@pytest.mark.parametrize("encrypt", ["false", "true"])
def test_conditions(encrypt: str, drivers: dict[str, Chrome]) -> None:
    first, second, absent, stale, unmade, value = run(
        drivers["gamma"],
        """
        const first = await persistent.set('k', 1, {ifAbsent: true, encrypt: ENCRYPT});
        const second = await persistent.set('k', 2, {ifMatch: first});
        return [first, second,
          await failure(persistent.set('k', 3, {ifAbsent: true})),
          await failure(persistent.set('k', 3, {ifMatch: first})),
          await failure(persistent.remove('k', {ifMatch: first})),
          (await persistent.getEntry('k')).etag];
        """.replace("ENCRYPT", encrypt),
    )
    assert first != second == value
    assert [answer[0] for answer in (absent, stale, unmade)] == [412] * 3
    assert stored("is_encrypted, version") == [(encrypt == "true", 2)]


def test_condition_that_is_none(drivers: dict[str, Chrome]) -> None:
    """ifMatch without an ETag is refused before anything is written."""
    answers = run(
        drivers["gamma"],
        """
        await persistent.set('k', 1);
        const entry = await persistent.getEntry('missing');
        const out = [];
        for (const ifMatch of [entry?.etag, null, 7]) {
          out.push(
            await failure(persistent.set('missing', 1, {ifMatch})),
            await failure(persistent.set('k', 2, {ifMatch, ifAbsent: true})),
            await failure(persistent.remove('k', {ifMatch})),
            await failure(persistent.setMany([{key: 'k', value: 2, ifMatch}])));
        }
        return out;
        """,
    )
    message = "ifMatch must be an ETag; ifAbsent is for a new entry"
    assert answers == [["TypeError", message]] * 12
    assert stored("key, version") == [("k", 1)]


def test_what_is_missing(superset: Superset, drivers: dict[str, Chrome]) -> None:
    """Only a missing entry is none; what it would be in is an error if it is missing."""
    answer = superset.client("admin").request(
        "POST", "/api/v1/dashboard/", json={"dashboard_title": "without entries"}
    )
    uuid = str(
        sql("SELECT uuid FROM dashboards WHERE id = %s", answer.json()["id"])[0][0]
    )
    none, missing = run(
        drivers["admin"],
        f"""
        const all = async storage => [
          await failure(storage.get('k')), await failure(storage.getEntry('k')),
          await failure(storage.getBytes('k')), await failure(storage.remove('k'))];
        const storage = (id, options) => getContext(id, options).storage.persistent;
        const none = [];
        for (const there of [persistent, persistent.shared,
            persistent.resource('dashboard', '{uuid}'),
            persistent.resource('thing', 'none')]) {{
          none.push(await all(there));
        }}
        const missing = [];
        for (const other of [storage('acme.sampel'), storage('acme.sampel').shared,
            storage('acme.sampel').resource('thing', 'none'),
            persistent.resource('dashboard', '00000000-0000-0000-0000-000000000001'),
            persistent.resource('dashboard', 'no-uuid'),
            persistent.resource('chart', '00000000-0000-0000-0000-000000000001')]) {{
          missing.push(await all(other));
        }}
        const real = window.fetch;
        // the token comes from its place, and what else is asked for goes astray
        const root = '{superset.variables.get("SUPERSET_APP_ROOT", "")}';
        window.fetch = (url, init) => real(
          url.endsWith('csrf_token/') ? url : url.replace(root, root + '/astray'), init);
        try {{
          missing.push(await all(storage('acme.sample', {{applicationRoot: root}})));
        }} finally {{
          window.fetch = real;
        }}
        return [none, missing];
        """,
    )
    for found in none:
        assert found == [["no failure", None]] * 4
    for answers in missing:
        assert [status for status, _ in answers] == [404] * 4, answers


FOREIGN = [
    # status, type, body
    (200, "text/html", "<html>log in</html>"),
    (200, "application/json", "oops"),
    (200, "application/json", ""),
    (200, "application/json", "{}"),
    (200, "application/json", "null"),
    (200, "application/json", "[]"),
    (200, "application/json", '{"result": [{}], "count": 1}'),
    (200, "application/json", '{"result": {"key": "other"}, "message": "OK"}'),
    (201, "application/json", '{"result": []}'),
    (202, "text/plain", "later"),
    (204, "text/html", None),
    (302, "text/html", None),
    (404, "text/html", "<html>nginx</html>"),
    (404, "application/json", '{"errors": [{"message": "Not found"}]}'),
    (404, "application/json", "null"),
    (404, "text/plain", '{"message": "Not found"}'),
    (429, "text/plain", "slow"),
    (500, "application/json", "null"),
    (502, "text/html", "<html>bad gateway</html>"),
]


@pytest.mark.parametrize(("status", "kind", "body"), FOREIGN)
def test_foreign_answer(
    status: int, kind: str, body: str | None, drivers: dict[str, Chrome]
) -> None:
    """What comes from a login page or a proxy is never an answer of the store."""
    answers = run(
        drivers["gamma"],
        f"""
        const real = window.fetch;
        const foreign = () => new Response({json.dumps(body)}, {{
          status: {status}, headers: {{'Content-Type': {json.dumps(kind)}}} }});
        const storage = () => getContext('acme.sample').storage.persistent;
        const calls = [
          s => s.get('k'), s => s.getEntry('k'), s => s.getBytes('k'),
          s => s.set('k', 1), s => s.remove('k'), s => s.list({{page: 0, pageSize: 1}}),
          s => s.getMany(['k']), s => s.setMany([{{key: 'k', value: 1}}]),
          s => s.removeMany(['k'])];
        const writes = [s => s.set('k', 1), s => s.getMany(['k'])];
        window.fetch = async (url, init) =>
          url.endsWith('/csrf_token/') ? real(url, init) : foreign();
        try {{
          const out = [];
          for (const call of calls) out.push(await failure(call(storage())));
          window.fetch = async (url, init) =>
            url.endsWith('/csrf_token/') ? foreign() : real(url, init);
          for (const call of writes) out.push(await failure(call(storage())));
          return out;
        }} finally {{
          window.fetch = real;
        }}
        """,
    )
    assert [answer[0] for answer in answers] == [status] * 11, answers
    if 200 <= status < 300:
        words = f"HTTP status {status} ({kind})"
        assert all(message.startswith(words) for _, message in answers), answers
    assert stored("key") == []


def test_redirected_answer(drivers: dict[str, Chrome]) -> None:
    """Where a redirect has led is no answer, even if it looks like one."""
    answers = run(
        drivers["gamma"],
        """
        await persistent.set('k', 1);
        const real = window.fetch;
        window.fetch = async (url, init) => Object.defineProperty(
          await real(url, init), 'redirected', {value: true});
        const storage = () => getContext('acme.sample').storage.persistent;
        try {
          const out = [];
          for (const call of [s => s.get('k'), s => s.get('none'), s => s.set('k', 1),
              s => s.remove('k'), s => s.list({page: 0, pageSize: 1}),
              s => s.getMany(['k'])]) {
            out.push(await failure(call(storage())));
          }
          return out;
        } finally {
          window.fetch = real;
        }
        """,
    )
    assert [answer[0] for answer in answers] == [200, 404, 200, 200, 200, 200]


def test_shared_and_resources(drivers: dict[str, Chrome]) -> None:
    run(
        drivers["admin"],
        """
        await persistent.shared.set('config', {v: 2});
        await persistent.resource('thing', 'u 1').set('layout', [1]);
        """,
    )
    code = """
        return [await persistent.get('config'), await persistent.shared.get('config'),
          await persistent.resource('thing', 'u 1').get('layout'),
          await failure(persistent.shared.set('config', 3)),
          await failure(persistent.shared.remove('config'))];
    """
    refused = [403, "Forbidden"]
    assert run(drivers["gamma"], code) == [None, {"v": 2}, [1], refused, refused]
    assert stored("key, user_fk, resource_type, resource_uuid") == [
        ("config", None, None, None),
        ("layout", None, "thing", "u 1"),
    ]


def test_names(drivers: dict[str, Chrome]) -> None:
    """Any key is itself; what would be another path is refused without a request."""
    keys = ["a b", "ü", "%2e%2e", "?x=1", "#", "a.b", "&+;", "\\"]
    assert (
        run(
            drivers["gamma"],
            f"""
            const keys = {json.dumps(keys)};
            for (const key of keys) await persistent.set(key, key);
            return Promise.all(keys.map(key => persistent.get(key)));
            """,
        )
        == keys
    )
    assert sorted(key for (key,) in stored("key")) == sorted(keys)
    assert (
        run(
            drivers["gamma"],
            """
        const real = window.fetch;
        window.fetch = () => { throw new Error('a request'); };
        try {
          return [
            ...await Promise.all(['', '.', '..', 'a/b', '\\ud800', 'a\\udc00'].flatMap(
              key => [failure(persistent.get(key)), failure(persistent.remove(key)),
                      failure(persistent.set(key, 1))])),
            await failure(persistent.list({page: 0, pageSize: 1, category: '\\ud800'})),
            ...await Promise.all(['acme', 'a.b.c', '../x.y', 'a.b/c', ''].map(
              id => failure((async () => getContext(id))()))),
          ].map(([kind]) => kind);
        } finally {
          window.fetch = real;
        }
        """,
        )
        == [400] * 19 + ["TypeError"] * 5
    )
    assert len(stored("key")) == len(keys)


def test_requests(drivers: dict[str, Chrome]) -> None:
    """Nothing is cached; a token that has gone stale is fetched anew, once."""
    caches, tokens, stored_value, failed = run(
        drivers["gamma"],
        """
        const real = window.fetch;
        const calls = [];
        let spoil = 1;
        window.fetch = (url, init = {}) => {
          if (!isOwn(url)) return real(url, init);
          calls.push([url, init.cache]);
          if (init.method && spoil-- > 0) {
            init = {...init, headers: {...init.headers, 'X-CSRFToken': 'stale'}};
          }
          return real(url, init);
        };
        try {
          const {persistent} = getContext('acme.sample').storage;
          await persistent.set('k', 1);
          await persistent.list({page: 0, pageSize: 5});
          spoil = 1;
          await persistent.remove('other');
          const tokens = calls.filter(([url]) => url.endsWith('/csrf_token/')).length;
          spoil = 99;
          return [[...new Set(calls.map(([, cache]) => cache))], tokens,
            await persistent.get('k'), await failure(persistent.remove('k'))];
        } finally {
          window.fetch = real;
        }
        """,
    )
    assert caches == ["no-store"]
    assert tokens == 3
    assert stored_value == 1
    assert failed[0] in (400, 401)
    assert stored("key") == [("k",)]


def test_not_logged_in(drivers: dict[str, Chrome]) -> None:
    """A session that ended is an error, not the login page's success."""
    answers = run(
        drivers["admin"],
        """
        // Superset's page keeps the session; without it, it would open the login page.
        const real = window.fetch;
        window.fetch = (url, init) =>
          real(url, isOwn(url) ? {...init, credentials: 'omit'} : init);
        try {
          return await Promise.all([persistent.get('k'), persistent.set('k', 1),
            persistent.remove('k'), persistent.list({page: 0, pageSize: 1})]
            .map(failure));
        } finally {
          window.fetch = real;
        }
        """,
    )
    assert [status for status, _ in answers] == [401] * 4
    assert stored("key") == []


def test_page_behind_the_path(superset: Superset) -> None:
    """The administrator's page finds its own files there, too."""
    admin = superset.client("admin")
    html = admin.get("/extension-storage/").text
    root = superset.variables.get("SUPERSET_APP_ROOT", "")
    for name in ("page.css", "page.js"):
        path = f"{root}/extension-storage/static/{name}"
        assert f'"{path}?v=' in html
        assert admin.get(path.removeprefix(root)).status_code == 200
