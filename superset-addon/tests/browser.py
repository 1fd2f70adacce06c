"""Headless Chromium, which reaches this machine alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from conftest import END, PASSWORD


def wait(driver: Chrome, condition: Callable[[Chrome], Any]) -> Any:
    """Wait for what a page comes to, however slow the machine is.

    A page may draw anew what the condition has just found: then look again.
    """
    redrawn = [StaleElementReferenceException]
    return WebDriverWait(driver, END, ignored_exceptions=redrawn).until(condition)


def start_browser(profile: Path) -> Chrome:
    """Start a browser with a profile of its own; the caller quits it."""
    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "disable-dev-shm-usage",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "no-first-run",
        "host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        "window-size=1280,1600",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{flag}")
    driver = Chrome(options=options, service=ChromeService("/usr/bin/chromedriver"))
    # Superset's pages send what a visitor does, a second later.  Where nobody is
    # logged in, the answer sets the cookie of a session without a user; if it
    # comes after the answer to the login, the login is lost.
    driver.execute_cdp_cmd("Network.enable", {})
    block(driver)
    driver.set_page_load_timeout(END)
    driver.set_script_timeout(END)
    return driver


def block(driver: Chrome, *urls: str) -> None:
    """Send no request to these URLs, nor to the one of every browser of ours."""
    blocked = {"urls": ["*/superset/log/*", *urls]}
    driver.execute_cdp_cmd("Network.setBlockedURLs", blocked)


def log_in(driver: Chrome, url: str, user: str) -> None:
    """Log in by the form of the Superset at a URL."""
    driver.get(f"{url}/login/")
    wait(driver, lambda d: d.find_elements(By.ID, "username"))
    driver.find_element(By.ID, "username").send_keys(user)
    driver.find_element(By.ID, "password").send_keys(PASSWORD, Keys.ENTER)
    wait(driver, lambda d: "/login" not in d.current_url)


def load_extension(driver: Chrome, root: str, extension_id: str) -> None:
    """Load an extension's code behind a path, outside of which Superset 6.1.0 looks."""
    problem = driver.execute_async_script(
        """
        const [root, extension, done] = arguments;
        (async () => {
          const answer = await fetch(`${root}/api/v1/extensions/`);
          const [{remoteEntry, moduleFederationName}] =
            (await answer.json()).result.filter(({id}) => id === extension);
          await new Promise((loaded, failed) => {
            const script = document.createElement('script');
            Object.assign(script, {
              src: root + remoteEntry, onload: loaded, onerror: failed });
            document.head.append(script);
          });
          const container = window[moduleFederationName];
          await container.init({});
          (await container.get('./index'))();
        })().then(done, error => done(error.stack ?? 'it does not load'));
        """,
        root,
        extension_id,
    )
    assert problem is None, problem
