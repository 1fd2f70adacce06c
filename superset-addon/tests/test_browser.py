"""The README's front-end example in headless Chromium, logged in by the form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from browser import log_in, start_browser
from conftest import README, Superset, sql

# What Superset's front end gives to extensions.
AUTHENTICATION = """
const authentication = {
  getCSRFToken: () => fetch('/api/v1/security/csrf_token/')
    .then(r => r.json()).then(r => r.result),
};
"""


@pytest.fixture(scope="module")
def browser(
    running: Superset, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Chrome]:
    """A browser that is logged in as admin."""
    driver = start_browser(tmp_path_factory.mktemp("chromium"))
    try:
        log_in(driver, running.url, "admin")
        yield driver
    finally:
        driver.quit()


def test_front_end_example(browser: Chrome, results: Path) -> None:
    """Save, list, read and delete, each step looked at in the database."""
    (example,) = re.findall(r"```typescript\n(.*?)```", README.read_text(), re.DOTALL)
    base, save, listing, read, delete = re.split(
        r"(?=// (?:Save|List|Read|Delete)\n)", example
    )

    def run(code: str, result: str) -> object:
        return browser.execute_async_script(
            f"const done = arguments[0]; (async () => {{ {AUTHENTICATION} {base} {code}"
            f"; return {result}; }})().then(done, e => done('failed: ' + e));"
        )

    def stored() -> list[tuple[object, ...]]:
        return sql(
            "SELECT key, convert_from(value, 'UTF8'), category, description"
            " FROM ext_storage.extension_storage"
        )

    assert run(save, "true") is True
    assert stored() == [("my-key", '{"foo":"bar"}', "preferences", "My display name")]
    (entry,) = run(listing, "result")
    assert (entry["key"], entry["description"]) == ("my-key", "My display name")
    assert run(read, "data") == {"foo": "bar"}
    assert run(delete, "true") is True
    assert stored() == []

    # The whole example at once, and a page that shows what it came to.
    shown = run(
        save + listing + read + delete,
        "{saved: data, listed: result, afterDelete:"
        " await fetch(`${BASE}/my-key`).then(async r => [r.status, await r.json()])}",
    )
    assert shown["saved"] == {"foo": "bar"}
    assert shown["afterDelete"] == [404, {"message": "Not found"}]
    browser.execute_script(
        "document.body.innerHTML = '<pre style=\"font-size: 20px; padding: 2em\"></pre>';"
        "document.querySelector('pre').textContent ="
        " location.href + '\\n\\n' + JSON.stringify(arguments[0], null, 2);",
        shown,
    )
    assert browser.save_screenshot(str(results / "browser-last-step.png"))


def test_stored_html_runs_no_script(browser: Chrome, running: Superset) -> None:
    """A value that is opened as a page is alone in a sandbox."""
    page = "<title>before</title><script>document.title = 'ran'</script>"
    sql(
        "INSERT INTO ext_storage.extension_storage (extension_id, key, value, value_type)"
        " VALUES ('acme.my-ext', 'page', %s, 'text/html')",
        page.encode(),
    )
    browser.get(
        f"{running.url}/api/v1/extensions/acme/my-ext/storage/persistent/global/page"
    )
    assert browser.title == "before"


def test_swagger_page(browser: Chrome, running: Superset, results: Path) -> None:
    browser.get(f"{running.url}/swagger/v1")
    tag = WebDriverWait(browser, 90).until(
        lambda d: (
            d.find_element(By.ID, "operations-tag-Extension_storage")
            if d.find_elements(By.ID, "operations-tag-Extension_storage")
            else None
        )
    )
    section = tag.find_element(By.XPATH, "./..")
    operations = section.find_elements(By.CSS_SELECTOR, ".opblock")
    assert len(operations) == 12
    browser.execute_script("arguments[0].scrollIntoView()", tag)
    assert browser.save_screenshot(str(results / "swagger.png"))
