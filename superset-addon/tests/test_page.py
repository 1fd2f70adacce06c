"""The administrator's page: who sees it, what it says, how it looks."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psycopg2
import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from browser import log_in, start_browser, wait
from conftest import PASSWORD, SECRET_KEY, Client, Superset, reload, sql
from test_operation import fernet, uncommitted_entry

PAGE = "/extension-storage/"
TABLE = "ext_storage.extension_storage"
MEGABYTE = 1_000_000


def write(
    extension: str, entries: int, size: int, secret: str | None = None, key: str = "k"
) -> None:
    """Write entries of zeros, encrypted with a secret where one is given."""
    sql(
        f"INSERT INTO {TABLE}"
        " (extension_id, key, value, value_size, is_encrypted, changed_on)"
        " SELECT %s, %s || n, CASE WHEN %s THEN v ELSE convert_to(ext_storage."
        "  fernet_encrypt(v, ext_storage.fernet_derive_key(%s)), 'UTF8') END,"
        "  %s, NOT %s, '2026-01-02 03:04:05'"
        " FROM decode(repeat('00', %s), 'hex') v, generate_series(1, %s) n",
        extension,
        key,
        secret is None,
        secret,
        size,
        secret is None,
        size,
        entries,
    )


@pytest.fixture
def quota(request: pytest.FixtureRequest) -> Iterator[int | str]:
    """A quota, also for connections that a page is using; of a megabyte unless named."""
    limit = getattr(request, "param", MEGABYTE)
    conf = Path(os.environ["PG_DATA"]) / "postgresql.conf"
    before = conf.read_text()
    conf.write_text(f"{before}extension_storage.quota_per_extension = '{limit}'\n")
    reload()
    yield limit
    conf.write_text(before)
    reload()


def set_up(superset: Superset) -> None:
    """Make a database of its own ready for a Superset, with an administrator."""
    superset.run("db", "upgrade")
    superset.run(
        *("fab", "create-admin", "--username", "admin", "--password", PASSWORD),
        *("--firstname", "a", "--lastname", "b", "--email", "admin@example.org"),
    )
    superset.run("init")


def main_of(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.search(r"<main.*?</main>", html, re.DOTALL)[0])


def text_of(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def tables_of(main: ElementTree.Element) -> dict[str, list[list[str]]]:
    """Give the rows of each section's table."""
    return {
        section.get("aria-labelledby"): [
            [text_of(cell) for cell in row] for row in section.iterfind(".//tbody/tr")
        ]
        for section in main.iterfind("section")
    }


def page(client: Client, query: str = "") -> ElementTree.Element:
    answer = client.get(PAGE + query)
    assert answer.status_code == 200
    return main_of(answer.text)


# Who sees it


@pytest.mark.parametrize("user", ["alpha", "gamma", "reader", "nobody", None])
def test_others_are_refused(
    clients: dict[str | None, Client], user: str | None
) -> None:
    """As on Superset's own pages for administrators."""
    client = clients[user]
    for query in ("", "?usage=exact&keys=all"):
        answer, own = client.get(PAGE + query), client.get("/extensions/list/")
        assert (answer.status_code, own.status_code) == (302, 302)
        assert "/login/" in answer.headers["Location"]
        assert (
            own.headers["Location"].split("?")[0]
            == (answer.headers["Location"].split("?")[0])
        )
        assert "es-page" not in answer.text


def test_admin_alone_has_the_permissions(running: Superset) -> None:
    granted = sql(
        "SELECT v.name, array_agg(r.name) FROM ab_permission_view_role g"
        " JOIN ab_permission_view p ON p.id = g.permission_view_id"
        " JOIN ab_view_menu v ON v.id = p.view_menu_id"
        " JOIN ab_role r ON r.id = g.role_id"
        " WHERE v.name IN ('ExtensionStorageReport', 'Extension Storage')"
        " GROUP BY v.name ORDER BY v.name"
    )
    assert granted == [
        ("Extension Storage", ["Admin"]),
        ("ExtensionStorageReport", ["Admin"]),
    ]


def test_menu(clients: dict[str | None, Client]) -> None:
    def groups(user: str) -> dict[str, list[str]]:
        menu = clients[user].get("/api/v1/menu/").json()["result"]
        return {
            item["name"]: [
                child["name"] for child in item.get("childs", []) if child != "-"
            ]
            for item in menu
        }

    admin, gamma = groups("admin"), groups("gamma")
    assert "Extension Storage" in admin["Manage"]
    assert not any("Extension Storage" in names for names in gamma.values())
    settings = [name for name in admin if name in ("Data", "Security", "Manage")]
    assert settings == ["Security", "Data", "Manage"]


# What it says


def test_figures(admin: Client, quota: int) -> None:
    write("acme.large", 4, 205_000)
    write("acme.large", 2, 45_000, "lost", "secret")
    write("acme.half", 3, 100_000, SECRET_KEY)
    write("acme.half", 1, 200_000, key="plain")
    write("acme.small", 1, 7)
    main = page(admin)
    assert (
        "3 extensions, 11 entries, 1.4 MB, 45 % of the entries encrypted."
        " Quota of each extension: 1.0 MB."
    ) in text_of(main)
    assert tables_of(main)["es-usage"] == [
        ["acme.large", "6", "33 %", "910.0 kB", "91 % – nearly used up"]
        + ["2026-01-02 03:04"],
        ["acme.half", "4", "75 %", "500.0 kB", "50 %", "2026-01-02 03:04"],
        ["acme.small", "1", "0 %", "7 bytes", "< 1 %", "2026-01-02 03:04"],
    ]
    bars = [rect.get("width") for rect in main.iter("rect")][1::2]
    assert bars == ["91.00", "50.00", "0.00"]


def test_near_the_quota(admin: Client, quota: int) -> None:
    for name, size in (("a", 899_999), ("b", 800_000), ("c", 799_999)):
        write(f"acme.{name}", 1, size)
    shares = [row[4] for row in tables_of(page(admin))["es-usage"]]
    assert shares == ["90 % – above 80 %", "80 % – above 80 %", "80 %"]


@pytest.mark.parametrize("quota", ["1MB", "1e6"], indirect=True)
def test_quota_with_a_unit(second: Superset, quota: str) -> None:
    """Also where the page is the first that the connection is used for."""
    second.start()
    admin = second.client("admin")
    write("acme.a", 1, 1_048_000 if quota == "1MB" else 999_000)
    for _ in range(2):
        main = page(admin)
        assert "Quota of each extension: 1.0 MB." in text_of(main)
        assert tables_of(main)["es-usage"][0][4] == "> 99 % – nearly used up"


def test_bytes_are_those_of_the_quota(
    app: Any, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Descriptions count, and value_size only where it is the token's."""
    from superset_extension_storage import report

    write("acme.described", 3, 100)
    sql(f"UPDATE {TABLE} SET description = repeat('ä', 20000)")
    for number, size in enumerate((0, 15, 16, 1000, 2_000_000)):
        write(f"acme.token-{number}", 2, size, SECRET_KEY)
    write("acme.lying", 7, 100, key="plain")
    write("acme.lying", 7, 100, SECRET_KEY)
    for number, size in enumerate((2**31 - 1, 0, None, 99)):
        sql(
            f"UPDATE {TABLE} SET value_size = %s WHERE extension_id = 'acme.lying'"
            " AND key IN ('plain' || %s, 'k' || %s)",
            size,
            number + 1,
            number + 1,
        )
    counted = sql(
        "SELECT extension_id, entries, encrypted_entries, value_bytes"
        " FROM ext_storage.ext_storage_usage()"
    )
    assert {row[0]: row[3] for row in counted}["acme.described"] == 120_300

    def reported() -> list[tuple[Any, ...]]:
        with app.app_context():
            usage = report.usage_report(False, None)
        return sorted(
            (u.extension_id, u.entries, u.encrypted, u.size) for u in usage.extensions
        )

    assert reported() == counted
    # the whole table as a sample
    ((pages,),) = sql(f"SELECT pg_relation_size('{TABLE}') / 8192")
    for name, value in (("EXACT_PAGES", 0), ("SAMPLE_PAGES", pages), ("FEW_ROWS", 0)):
        monkeypatch.setattr(report, name, value)
    assert reported() == counted
    assert tables_of(page(admin))["es-usage"][0][3] == "4.0 MB"
    # wider columns, and extensions that are counted apart from the sample
    sql(f"ALTER TABLE {TABLE} ALTER value_size TYPE bigint")
    try:
        monkeypatch.setattr(report, "FEW_ROWS", 7)
        assert reported() == counted
        with app.app_context():
            total = report.usage_report(False, None).total("size")
    finally:
        sql(f"ALTER TABLE {TABLE} ALTER value_size TYPE integer")
    assert total == sum(row[3] for row in counted)


def test_a_policy_that_hides_rows(admin: Client) -> None:
    """The page does not show the rest as if it were all."""
    write("acme.a", 1, 1)
    sql(
        f"ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
        f" CREATE POLICY own ON {TABLE} USING (extension_id = 'acme.b')"
    )
    try:
        main = page(admin)
    finally:
        sql(
            f"DROP POLICY own ON {TABLE}; ALTER TABLE {TABLE}"
            " NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY"
        )
    assert "would be affected by row-level security" in text_of(main)
    assert tables_of(main) == {"es-usage": []}


def test_functions_of_others_are_not_called(second: Superset) -> None:
    """What stands in the way of PostgreSQL's own names, in a schema that is searched."""
    write("acme.a", 1, 1)
    sql(
        "CREATE FUNCTION public.octet_length(bytea) RETURNS integer LANGUAGE plpgsql"
        " AS $$BEGIN RAISE EXCEPTION 'called'; END$$;"
        " ALTER ROLE superset SET search_path = public, pg_catalog"
    )
    try:
        second.start()
        rows = tables_of(page(second.client("admin")))["es-usage"]
    finally:
        sql(
            "ALTER ROLE superset RESET search_path;"
            " DROP FUNCTION public.octet_length(bytea)"
        )
    assert [row[:2] for row in rows] == [["acme.a", "1"]]


def test_without_a_quota(admin: Client) -> None:
    write("acme.a", 1, 850)
    write("acme.b", 1, 150)
    main = page(admin)
    assert "No quota is set: a bar shows an extension's share of all bytes." in (
        text_of(main)
    )
    assert [row[4] for row in tables_of(main)["es-usage"]] == ["85 %", "15 %"]
    # no warning without a limit
    assert {rect.get("class") for rect in main.iter("rect")} == {"es-track", None}


def test_keys(second: Superset) -> None:
    second.restart(EXTENSION_STORAGE_ENCRYPTION_KEYS=["new", "old", "older"])
    admin = second.client("admin")
    write("acme.a", 3, 10, "new")
    write("acme.b", 2, 10, "old")
    keys = tables_of(page(admin))["es-keys"]
    assert [row[0] for row in keys] == ["1", "2", "3", "4"]
    assert len({row[1] for row in keys}) == 4
    assert [row[3] for row in keys] == ["3", "2", "0", "0"]
    assert [
        bool(re.fullmatch(r"2\d{3}-\d\d-\d\d \d\d:\d\d", row[4])) for row in keys
    ] == ([True, True, False, False])
    assert [row[6] for row in keys] == [
        "No: it encrypts new values",
        "No: superset rotate-extension-storage-keys frees it",
        "Yes",
        "No entry needs it, but Superset does",
    ]
    listed = "EXTENSION_STORAGE_ENCRYPTION_KEYS"
    assert [row[2] for row in keys] == [
        *(f"item {number} of {listed}" for number in (1, 2, 3)),
        "SECRET_KEY",
    ]
    with uncommitted_entry():
        keys = tables_of(page(admin))["es-keys"]
    assert [row[6] for row in keys] == [
        "No: it encrypts new values",
        "No: superset rotate-extension-storage-keys frees it",
        "Not known: other transactions may use it",
        "Not known: other transactions may use it",
    ]


def test_times_are_utc(second: Superset) -> None:
    sql(
        f"INSERT INTO {TABLE} (extension_id, key, value, is_encrypted)"
        " VALUES ('acme.a', 'token', %s, true)",
        fernet(SECRET_KEY).encrypt_at_time(b"value", 1_767_319_445),
    )
    sql("ALTER ROLE superset SET timezone = 'Asia/Kolkata'")
    try:
        second.start()
        keys = tables_of(page(second.client("admin")))["es-keys"]
        told = second.run("extension-storage-status").stdout
    finally:
        sql("ALTER ROLE superset RESET timezone")
    assert keys[0][4:6] == ["2026-01-02 02:04"] * 2
    assert "oldest (UTC)" in told and told.count("2026-01-02 02:04") == 2


def test_times_that_no_datetime_holds(admin: Client) -> None:
    times = {
        "acme.a": ("infinity", "infinity"),
        "acme.b": ("20000-01-01", "20000-01-01T00:00:00"),
        "acme.c": ("0044-03-15 BC", "0044-03-15T00:00:00 BC"),
        "acme.d": ("-infinity", "-infinity"),
    }
    for name, (time, _) in times.items():
        write(name, 1, 10)
        sql(f"UPDATE {TABLE} SET changed_on = %s WHERE extension_id = %s", time, name)
    sql(
        f"INSERT INTO {TABLE} (extension_id, key, value, is_encrypted)"
        " VALUES ('acme.a', 'token', %s, true)",
        fernet(SECRET_KEY).encrypt_at_time(b"value", 1_000_000_000_000),
    )
    tables = tables_of(page(admin))
    found = {row[0]: row[5] for row in tables["es-usage"]}
    assert found == {name: shown for name, (_, shown) in times.items()}
    assert tables["es-keys"][0][5].startswith("33658-09-27T")


def test_unreadable_entries(admin: Client) -> None:
    write("acme.a", 1, 10, "lost", "gone")
    sql(
        f"INSERT INTO {TABLE} (extension_id, user_fk, resource_type, resource_uuid,"
        " key, value, is_encrypted) VALUES"
        " ('acme.a', 7, 'thing', 'u', '<b>mine</b>', 'no token', true)"
    )
    main = page(admin)
    assert "No configured key reads 2 entries." in text_of(main)
    rows = sorted(tables_of(main)["es-unreadable"])
    assert [row[:3] + row[4:] for row in rows] == [
        ["acme.a", "global", "gone1", "damaged, or its key is not configured"],
        ["acme.a", "thing u, user 7", "<b>mine</b>", "not a Fernet token"],
    ]
    uuids = sql(f"SELECT uuid::text FROM {TABLE}")
    assert {(row[3],) for row in rows} == set(uuids)


def test_more_unreadable_entries_than_are_shown(admin: Client) -> None:
    write("acme.a", 101, 1, "lost")
    main = page(admin)
    assert "No configured key reads 101 entries." in text_of(main)
    assert "the first 100" in text_of(main)
    assert len(tables_of(main)["es-unreadable"]) == 100


def test_no_secret_and_no_value(second: Superset) -> None:
    secrets = ["a secret of the page's test", "an older one of it"]
    second.restart(EXTENSION_STORAGE_ENCRYPTION_KEYS=secrets)
    admin = second.client("admin")
    for value in ("plain as day", "hidden as night"):
        body = {"value": value, "is_encrypted": value.startswith("hidden")}
        assert admin.put(f"global/{len(value)}", body).ok
    html = admin.get(PAGE).text
    assert "acme.my-ext" in html
    for text in (*secrets, SECRET_KEY, "as day", "as night", "gAAAA"):
        assert text not in html


def test_markup_in_names(admin: Client) -> None:
    name = "<script>alert('x')</script>&quot;"
    write(name, 1, 1)
    assert tables_of(page(admin))["es-usage"][0][0] == name


def test_invisible_characters_in_names(admin: Client) -> None:
    """They could have a name read as another one."""
    write("acme.\u202egnp", 1, 1)
    write("acme.z", 1, 1, "a lost secret", key="k\u2066\x1b")
    tables = tables_of(page(admin))
    assert "'acme.\\u202egnp'" in [row[0] for row in tables["es-usage"]]
    assert tables["es-unreadable"][0][2] == "'k\\u2066\\x1b1'"


def test_files_are_not_those_of_an_older_version(admin: Client) -> None:
    """Browsers keep them for a year: what has changed has another URL."""
    html = admin.get(PAGE).text
    for name in ("page.css", "page.js"):
        (url,) = re.findall(rf'"([^"]*{re.escape(name)}[^"]*)"', html)
        content = admin.get(url)
        assert content.status_code == 200
        digest = hashlib.sha256(content.content).hexdigest()
        assert re.fullmatch(r".*\?v=([0-9a-f]{12})", url)[1] == digest[:12]


def test_empty(admin: Client) -> None:
    main = page(admin)
    assert "Nothing is stored yet. The store is ready." in text_of(main)
    assert not list(main.iter("rect"))
    assert [row[3] for row in tables_of(main)["es-keys"]] == ["0"]
    assert "None: the keys read every encrypted value." in text_of(main)


# A large store


@pytest.fixture
def large(running: Superset) -> None:
    """More pages than are read at once, and no bytes that are counted as they come."""
    write("acme.many", 170_000, 700)
    write("acme.few", 30_000, 700)
    write("acme.tokens", 60_000, 10, SECRET_KEY)
    for number in range(3):
        write(f"acme.tiny-{number}", number + 1, 10)
    sql(
        f"UPDATE {TABLE} SET changed_on = 'infinity'"
        " WHERE extension_id = 'acme.tiny-2' OR extension_id = 'acme.few'"
    )
    sql(
        f"ALTER TABLE {TABLE} DISABLE TRIGGER extension_storage_count,"
        f" DISABLE TRIGGER extension_storage_count_rows; ANALYZE {TABLE}"
    )
    ((pages,),) = sql(f"SELECT pg_relation_size('{TABLE}') / 8192")
    from superset_extension_storage import report

    assert pages > report.EXACT_PAGES


@pytest.fixture(autouse=True)
def small_again(running: Superset) -> Iterator[None]:
    """End each test with a table of no page."""
    yield
    sql(f"TRUNCATE {TABLE}")


def test_estimates(admin: Client, large: None) -> None:
    main = page(admin)
    text = text_of(main)
    assert "Figures with “about” are estimates from" in text
    assert re.search(r"6 extensions, about [\d,]+ entries, about [\d.]+ MB,", text)
    rows = {row[0]: row for row in tables_of(main)["es-usage"]}
    for name, entries in (("many", 170_000), ("few", 30_000), ("tokens", 60_000)):
        about, margin = re.fullmatch(
            r"about ([\d,]+) ± ([\d,]+)", rows[f"acme.{name}"][1]
        ).groups()
        about, margin = (int(figure.replace(",", "")) for figure in (about, margin))
        # twice what is said: the sample is the same at each run
        assert 0 < margin < entries / 5
        assert abs(about - entries) <= 2 * margin
    assert [rows[f"acme.tiny-{number}"][1] for number in range(3)] == ["1", "2", "3"]
    assert rows["acme.few"][5] == rows["acme.tiny-2"][5] == "infinity"
    assert rows["acme.many"][5] == "2026-01-02 03:04"
    ((ordinal, fingerprint, source),) = tables_of(main)["es-keys"]
    assert (ordinal, len(fingerprint), source) == ("1", 8, "SECRET_KEY")
    links = [link.get("href") for link in main.iter("a")]
    assert links == ["?usage=exact", "?keys=all#es-keys"]

    # What the links give, in either order
    main = page(admin, links[0])
    rows = {row[0]: row for row in tables_of(main)["es-usage"]}
    assert rows["acme.many"][1:4] == ["170,000", "0 %", "119.0 MB"]
    assert "about" not in text_of(main.find("section"))
    (link,) = main.iter("a")
    both = page(admin, link.get("href"))
    main = page(admin, links[1])
    assert [row[3] for row in tables_of(main)["es-keys"]] == ["60,000"]
    assert "Figures with “about” are estimates from" in text_of(main)
    (link,) = main.iter("a")
    assert text_of(both) == text_of(page(admin, link.get("href")))
    assert [row[3] for row in tables_of(both)["es-keys"]] == ["60,000"]
    assert tables_of(both)["es-usage"] == list(rows.values())
    assert not list(both.iter("a"))


def test_small_extensions_beside_large_ones(
    app: Any, running: Superset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No statement but the sample's reads the table from its beginning."""
    from superset_extension_storage import report

    for number in range(5):
        write(f"acme.big-{number}", 8_000, 300)
    for number in range(20):
        write(f"acme.one-{number}", 1, 1)
    sql(f"ANALYZE {TABLE}")
    ((kinds,),) = sql(
        "SELECT n_distinct FROM pg_stats"
        " WHERE tablename = 'extension_storage' AND attname = 'extension_id'"
    )
    assert 0 < kinds < 26
    run, plans = report._run, {}

    def explained(statement: str, **arguments: Any) -> list[Any]:
        plans[statement] = "\n".join(
            line for (line,) in run(f"EXPLAIN {statement}", **arguments)
        )
        return run(statement, **arguments)

    monkeypatch.setattr(report, "_run", explained)
    monkeypatch.setattr(report, "EXACT_PAGES", 1)
    monkeypatch.setattr(report, "SAMPLE_PAGES", 100)
    with app.app_context():
        found = {u.extension_id: u for u in report.usage_report(False, None).extensions}
    assert "Sample Scan on extension_storage" in plans.pop(report._SAMPLE)
    for statement in (report._NAMES, report._COUNTED_APART):
        assert "on extension_storage" in plans[statement]
    for plan in plans.values():
        assert not re.search("(Seq|Bitmap Heap) Scan on extension_storage ", plan), plan
        assert "JIT" not in plan
    assert len(found) == 25
    for number in range(20):
        assert found[f"acme.one-{number}"].entries == 1


def test_distributed(
    app: Any, running: Superset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Citus, which has this catalog, plans no sample and no recursion over servers."""
    from superset_extension_storage import report

    write("acme.a", 300, 300)
    run, statements = report._run, []

    def noted(statement: str, **arguments: Any) -> list[Any]:
        statements.append(statement)
        return run(statement, **arguments)

    def sampled() -> bool:
        with app.app_context():
            return report.usage_report(False, None).sampled is not None

    monkeypatch.setattr(report, "_run", noted)
    monkeypatch.setattr(report, "EXACT_PAGES", 1)
    monkeypatch.setattr(report, "SAMPLE_PAGES", 2)
    sql(
        "CREATE TABLE pg_dist_partition (logicalrelid regclass, partkey text,"
        '  partmethod "char");'
        " GRANT SELECT ON pg_dist_partition TO public;"
        " ALTER TABLE pg_dist_partition SET SCHEMA pg_catalog"
    )
    try:
        assert sampled()
        sql(f"INSERT INTO pg_dist_partition VALUES ('{TABLE}', 'extension_id', 'h')")
        statements.clear()
        assert not sampled()
    finally:
        sql("SET allow_system_table_mods = on; DROP TABLE pg_catalog.pg_dist_partition")
    assert not re.search("TABLESAMPLE|RECURSIVE", "".join(statements))


def row_of_many(admin: Client) -> list[str]:
    rows = {row[0]: row for row in tables_of(page(admin))["es-usage"]}
    return rows["acme.many"]


def test_kept_bytes_are_exact(admin: Client, large: None, quota: int) -> None:
    """Where there is a quota, the store counts bytes, and the page reads them."""
    sql("SET ROLE superset; SELECT ext_storage.ext_storage_set('acme.a', 'k', 'x')")
    row = row_of_many(admin)
    assert row[3] == "119.0 MB"
    assert row[1].startswith("about ")


@pytest.mark.parametrize("trigger", ["count", "count_rows"])
def test_bytes_that_are_no_longer_kept(
    admin: Client, large: None, quota: int, trigger: str
) -> None:
    """Where a trigger is not as the store made it, they are estimates again."""
    for state in ("DISABLE", "ENABLE", "ENABLE REPLICA"):
        sql("SET ROLE superset; SELECT ext_storage.ext_storage_set('acme.a', 'k', 'x')")
        assert "about" not in row_of_many(admin)[3]
        sql(f"ALTER TABLE {TABLE} {state} TRIGGER extension_storage_{trigger}")
        assert row_of_many(admin)[3].startswith("about ")


@pytest.mark.parametrize("kept", [False, True])
def test_extensions_that_the_sample_has_not_met(
    second: Superset, request: pytest.FixtureRequest, kept: bool
) -> None:
    second.lines = [
        "def FLASK_APP_MUTATOR(app):",
        "    from superset_extension_storage import install, page, report",
        "    install(app)",
        "    page.MOST_EXTENSIONS = 30",
        "    report.EXACT_PAGES, report.SAMPLE_PAGES = 1, 20",
        "    report.COUNTED_APART, report.MOST_APART = 2, 50",
    ]
    write("acme.big", 8_000, 300)
    for number in range(30):
        write(f"acme.n-{number:02}", 60 + number, 10)
    if kept:
        request.getfixturevalue("quota")
        sql("SET ROLE superset; SELECT ext_storage.ext_storage_set('acme.a', 'k', 'x')")
        sql(f"DELETE FROM {TABLE} WHERE extension_id = 'acme.a'")
    ((pages,),) = sql(f"SELECT pg_relation_size('{TABLE}') / 8192")
    met = {
        name
        for (name,) in sql(
            f"SELECT DISTINCT extension_id FROM {TABLE}"
            " TABLESAMPLE SYSTEM (100 * %s) REPEATABLE (1)",
            20 / pages,
        )
    }
    unmet = sorted({f"acme.n-{number:02}" for number in range(30)} - met)
    assert "acme.big" in met and len(unmet) > 10
    second.start()
    main = page(second.client("admin"))
    text = text_of(main)
    rows = {row[0]: row for row in tables_of(main)["es-usage"]}
    # 31 extensions, and those without bytes come last, by name
    assert len(rows) == 30 and "; of 31 the first 30: superset ext" in text
    assert f"It has no entry of {len(unmet)} extensions:" in text
    assert re.search(r"31 extensions, about [\d,]+ entries, ", text)
    about, margin = (
        int(figure.replace(",", ""))
        for figure in re.fullmatch(
            r"about ([\d,]+) ± ([\d,]+)", rows["acme.big"][1]
        ).groups()
    )
    assert abs(about - 8_000) <= 2 * margin
    for number, name in enumerate(unmet):
        if name not in rows:
            continue
        entries = "50 or more" if number < 2 else "none in that part"
        assert rows[name][1:3] == [entries, "–"] and rows[name][5] == "–"
        size = (60 + int(name[-2:])) * 10
        assert rows[name][3:5] == ([f"{size} bytes", "< 1 %"] if kept else ["–", "–"])
    assert ("about 2.4 MB" in text) == (not kept)
    if kept:
        assert "entries, 2.4 MB," in text


def test_takes_too_long(second: Superset) -> None:
    """A statement that does not end gives up its page's place in time."""
    second.restart(SUPERSET_WEBSERVER_TIMEOUT=11)
    admin = second.client("admin")
    connection = psycopg2.connect(dbname="superset")
    try:
        connection.cursor().execute(f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE")
        text = text_of(page(admin))
    finally:
        connection.close()
    assert "Reading the whole store takes too long for a page." in text


def test_time_is_that_of_all_statements(
    app: Any, running: Superset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each statement has what the ones before it have left."""
    from superset_extension_storage import report

    write("acme.a", 1000, 300)
    now, limits, run = [0.0], [], report._run

    def slow(statement: str, **arguments: Any) -> list[Any]:
        if "limit" in arguments:
            limits.append(arguments["limit"])
        else:
            now[0] += 7
        return run(statement, **arguments)

    monkeypatch.setattr(report, "_run", slow)
    monkeypatch.setattr(report, "monotonic", lambda: now[0])
    monkeypatch.setattr(report, "EXACT_PAGES", 1)
    monkeypatch.setattr(report, "SAMPLE_PAGES", 10)
    with app.app_context():
        report.usage_report(False, 70)
    assert len(limits) > 6
    assert limits == [f"{63_001 - 7_000 * n}ms" for n in range(len(limits))]


def test_text_of_another_encoding(second: Superset) -> None:
    """In a database that has none, as other programs wrote it."""
    database = "ascii"
    sql(
        "CREATE DATABASE ascii OWNER superset ENCODING 'SQL_ASCII' LOCALE 'C'"
        " TEMPLATE template0",
        database="postgres",
    )
    second.database = database
    set_up(second)
    second.run("init-extension-storage")
    second.start()
    try:
        admin = second.client("admin")
        assert "Nothing is stored yet." in text_of(page(admin))
        sql(
            f"INSERT INTO {TABLE} (extension_id, key, value)"
            " VALUES ('acme.' || chr(233), 'k', 'x')",
            database=database,
        )
        text = text_of(page(admin))
    finally:
        second.stop()
        sql("DROP DATABASE ascii WITH (FORCE)", database="postgres")
    assert "text that is not in the encoding of the connection" in text
    assert "another program has stored that text: correct it" in text


# A store out of order


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        (
            "ALTER SCHEMA ext_storage RENAME TO gone",
            "ALTER SCHEMA gone RENAME TO ext_storage",
        ),
        (
            "REVOKE USAGE ON SCHEMA ext_storage FROM superset",
            "GRANT USAGE ON SCHEMA ext_storage TO superset",
        ),
        (
            f"ALTER TABLE {TABLE} RENAME changed_on TO gone",
            f"ALTER TABLE {TABLE} RENAME gone TO changed_on",
        ),
    ],
    ids=["no extension", "no rights", "no column"],
)
def test_store_not_usable(admin: Client, broken: str, mended: str) -> None:
    sql(broken)
    try:
        main = page(admin)
    finally:
        sql(mended)
    remedy = "undo what was changed" if TABLE in broken else "Run superset init-ext"
    assert remedy in text_of(main)
    assert len(main.findall("section")) == 1


def test_keys_cannot_be_told(admin: Client) -> None:
    """What is stored is shown all the same."""
    write("acme.a", 1, 1)
    name = "ext_storage.ext_storage_key_status"
    sql(f"REVOKE EXECUTE ON FUNCTION {name} FROM superset")
    try:
        main = page(admin)
    finally:
        sql(f"GRANT EXECUTE ON FUNCTION {name} TO superset WITH GRANT OPTION")
    assert tables_of(main)["es-usage"][0][:2] == ["acme.a", "1"]
    assert "permission denied" in text_of(main)
    assert "Run superset init-extension-storage" in text_of(main)


def test_no_key(second: Superset) -> None:
    second.restart(EXTENSION_STORAGE_SEND_KEYS=False)
    text = text_of(page(second.client("admin")))
    assert "No encryption key is configured." in text
    assert "Name a key in EXTENSION_STORAGE_ENCRYPTION_KEYS" in text


def test_schema_of_any_name(second: Superset) -> None:
    name = "All 100% of 'my' %(stores)s {x}"
    sql(f'ALTER SCHEMA ext_storage RENAME TO "{name}"')
    try:
        second.restart(EXTENSION_STORAGE_SCHEMA=name)
        text = text_of(page(second.client("admin")))
        assert "Nothing is stored yet." in text
    finally:
        sql(f'ALTER SCHEMA "{name}" RENAME TO ext_storage')


def test_sqlite(tmp_path: Path) -> None:
    superset = Superset(tmp_path / "sqlite")
    superset.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/superset.db"
    set_up(superset)
    superset.start()
    try:
        text = text_of(page(superset.client("admin")))
    finally:
        superset.stop()
    assert "the metadata database is not PostgreSQL" in text
    assert "Move Superset's metadata to PostgreSQL 15 or later" in text


# How it looks


@pytest.fixture(scope="module")
def shown(
    installed: Superset, app: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Superset]:
    """A Superset between the steps of a rotation."""
    superset = Superset(tmp_path_factory.mktemp("shown") / "superset")
    superset.config["EXTENSION_STORAGE_ENCRYPTION_KEYS"] = ["new", "old"]
    superset.start()
    yield superset
    superset.stop()


@pytest.fixture(scope="module")
def browser(
    shown: Superset, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Chrome]:
    driver = start_browser(tmp_path_factory.mktemp("chromium"))
    try:
        log_in(driver, shown.url, "admin")
        yield driver
    finally:
        driver.quit()


def show(browser: Chrome, superset: Superset) -> None:
    """Open the page and wait for Superset's menu."""
    browser.get(superset.url + PAGE)
    wait(browser, lambda d: d.find_elements(By.CSS_SELECTOR, "#app .ant-menu"))


@pytest.fixture
def five_extensions(quota: int) -> None:
    for name, entries, size in (
        ("snippets", 160, 5200),
        ("themes", 12, 9000),
        ("notes", 40, 2000),
        ("pins", 90, 700),
        ("tokens", 25, 300),
    ):
        write(f"acme.{name}", entries // 2, size, key="plain")
        write(f"acme.{name}", entries // 3, size, "new", "new")
        write(f"acme.{name}", entries - entries // 2 - entries // 3, size, "old", "old")
    write("acme.tokens", 1, 300, "lost", "lost")


def contrast(one: list[float], other: list[float]) -> float:
    def luminance(colour: list[float]) -> float:
        parts = [
            c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
            for c in (part / 255 for part in colour)
        ]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["default", "dark"])
def test_looks(
    browser: Chrome,
    shown: Superset,
    results: Path,
    five_extensions: None,
    theme: str,
) -> None:
    browser.execute_script(
        "localStorage.setItem('superset-theme-mode', arguments[0])", theme
    )
    show(browser, shown)
    text, ground = (
        [float(part) for part in re.findall(r"[\d.]+", colour)]
        for colour in browser.execute_script(
            "const {color, backgroundColor} = getComputedStyle(document.body);"
            "return [color, backgroundColor]"
        )
    )
    # what is seen of a translucent text on its ground
    seen = [t * text[3] + g * (1 - text[3]) for t, g in zip(text, ground, strict=False)]
    assert contrast(seen, ground[:3]) > 7
    assert (sum(ground[:3]) < 3 * 128) == (theme == "dark")
    menu, main = (
        browser.find_element(By.CSS_SELECTOR, selector).rect
        for selector in ("#app .ant-menu", "main.es-page")
    )
    assert main["y"] < 100 and menu["y"] + menu["height"] <= main["y"] + 10
    assert browser.execute_script(
        "return document.documentElement.scrollWidth <= window.innerWidth"
    )
    assert browser.save_screenshot(str(results / f"page-{theme}.png"))
    browser.execute_script("localStorage.removeItem('superset-theme-mode')")


def test_looks_empty(browser: Chrome, shown: Superset, results: Path) -> None:
    show(browser, shown)
    assert browser.save_screenshot(str(results / "page-empty.png"))


def test_nothing_from_elsewhere_and_no_complaint(
    browser: Chrome, shown: Superset, five_extensions: None
) -> None:
    browser.get_log("browser")
    show(browser, shown)
    ours = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
        ".filter(name => name.includes('extension-storage'))"
    )
    assert sorted(name.removeprefix(shown.url).split("?")[0] for name in ours) == [
        f"{PAGE}static/{name}" for name in ("page.css", "page.js")
    ]
    # Superset's own counting pixel is not found without a network.
    complaints = [
        entry["message"]
        for entry in browser.get_log("browser")
        if entry["level"] == "SEVERE" and "scarf.sh" not in entry["message"]
    ]
    assert complaints == []
    html = browser.find_element(By.CSS_SELECTOR, "main.es-page").get_attribute(
        "outerHTML"
    )
    assert "<script" not in html and "style=" not in html


def test_by_keyboard_and_menu(
    browser: Chrome, shown: Superset, results: Path, large: None
) -> None:
    """Tab goes through the links; the menu leaves the page whole."""
    show(browser, shown)
    assert browser.save_screenshot(str(results / "page-estimates.png"))
    links = [e.text for e in browser.find_elements(By.CSS_SELECTOR, ".es-page a")]
    assert links == ["Count exactly", "Check all values"]
    reached = []
    for _ in range(60):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(browser.switch_to.active_element.text)
        if reached[-1] == links[-1]:
            break
    assert [text for text in reached if text in links] == links
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    wait(browser, lambda d: "keys=all" in d.current_url)
    rows = "[aria-labelledby=es-keys] tbody tr"
    wait(browser, lambda d: d.find_elements(By.CSS_SELECTOR, rows))

    show(browser, shown)
    browser.find_element(By.LINK_TEXT, "Dashboards").send_keys(Keys.ENTER)
    wait(browser, lambda d: "/dashboard/list" in d.current_url)
    wait(browser, lambda d: not d.find_elements(By.CSS_SELECTOR, "main.es-page"))


def test_reached_from_the_menu(browser: Chrome, shown: Superset, results: Path) -> None:
    browser.get(f"{shown.url}/dashboard/list/")

    def items(driver: Chrome) -> list[WebElement]:
        """Give what the menu shows; it is drawn several times, and opens anew."""
        for settings in driver.find_elements(By.XPATH, "//*[text()='Settings']"):
            ActionChains(driver).move_to_element(settings).perform()
        found = driver.find_elements(By.LINK_TEXT, "Extension Storage")
        return [item for item in found if item.is_displayed()]

    item = wait(browser, items)[0]
    assert browser.save_screenshot(str(results / "page-menu.png"))
    item.send_keys(Keys.ENTER)
    wait(browser, lambda d: d.find_elements(By.CSS_SELECTOR, "main.es-page"))
