"""The front end of an extension in headless Chromium, logged in by the form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from browser import load_extension, log_in, start_browser, wait
from conftest import Superset, sql


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


def test_nothing_overtakes_the_login(browser: Chrome, running: Superset) -> None:
    """See start_browser."""
    browser.get(f"{running.url}/login/")
    outcome = browser.execute_async_script(
        "const done = arguments[0];"
        "fetch('/superset/log/?explode=events', {method: 'POST'})"
        ".then(() => done('answered'), () => done('not sent'));"
    )
    assert outcome == "not sent"


def test_front_end_example(browser: Chrome, running: Superset, results: Path) -> None:
    """The front end of acme.my-ext, which Superset has loaded, step by step."""
    browser.get(f"{running.url}/superset/welcome/")
    found = run_example(browser)
    browser.execute_script(
        "document.body.innerHTML = '<pre style=\"font-size: 20px; padding: 2em\"></pre>';"
        "document.querySelector('pre').textContent ="
        " location.href + '\\n\\n' + JSON.stringify(arguments[0], null, 2);",
        found,
    )
    assert browser.save_screenshot(str(results / "browser-last-step.png"))


def test_front_end_example_behind_a_path(
    installed: Superset, app: Any, tmp_path: Path
) -> None:
    root = "/team/superset"
    superset = Superset(tmp_path / "superset")
    superset.variables["SUPERSET_APP_ROOT"] = root
    superset.start()
    driver = start_browser(tmp_path / "chromium")
    try:
        log_in(driver, superset.url, "admin")
        driver.get(f"{superset.url}/dashboard/list/")
        load_extension(driver, root, "acme.my-ext")
        run_example(driver)
    finally:
        driver.quit()
        superset.stop()


def run_example(driver: Chrome) -> dict[str, object]:
    """Run the README's front end step by step; give what it read and listed."""
    wait(driver, lambda d: d.execute_script("return 'acmeMyExt' in window"))

    def run(step: str) -> object:
        return driver.execute_async_script(
            "const done = arguments[1];"
            "acmeMyExt[arguments[0]]().then(done, e => done('failed: ' + e));",
            step,
        )

    def stored() -> list[tuple[object, ...]]:
        return sql(
            "SELECT extension_id, key, convert_from(value, 'UTF8'), category,"
            " description FROM ext_storage.extension_storage"
        )

    assert run("save") is None
    assert stored() == [
        ("acme.my-ext", "my-key", '{"foo":"bar"}', "preferences", "My display name")
    ]
    (entry,) = listed = run("list")
    assert (entry["key"], entry["description"]) == ("my-key", "My display name")
    saved = run("read")
    assert saved == {"foo": "bar"}
    assert run("delete") is None
    assert stored() == []
    return {"saved": saved, "listed": listed}


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
    (tag,) = wait(
        browser,
        lambda d: d.find_elements(By.ID, "operations-tag-Extension_storage"),
    )
    section = tag.find_element(By.XPATH, "./..")
    operations = section.find_elements(By.CSS_SELECTOR, ".opblock")
    assert len(operations) == 18
    browser.execute_script("arguments[0].scrollIntoView()", tag)
    assert browser.save_screenshot(str(results / "swagger.png"))
