"""Tests `./dev superset`: it starts, lets two users in, and leaves nothing."""

from __future__ import annotations

import glob
import http.cookiejar
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

# The command, the folder of its servers, the Debian in which it runs, if that is
# another one, and what removes the servers of those that were killed
DEV, STATE, ROOT, *PSQL = sys.argv[1:]
# Nothing takes that long; only where something never comes, a test must end.
SECONDS = 3600


def wait_for(what: str, condition: Callable[[], Any]) -> Any:
    """Wait until a condition holds; give what it gives."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.5)
    raise AssertionError(f"waited in vain: {what}")


class Show:
    """A `./dev superset` in a terminal of its own."""

    def __init__(self) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execv(DEV, [DEV, "superset"])
        os.set_blocking(self.terminal, False)
        self.said = ""
        wait_for("what it says at last", self._says_all)
        self.url = re.search(r"Superset: (http://127\.0\.0\.1:\d+)/", self.said)[1]

    def _says_all(self) -> bool:
        try:
            self.said += os.read(self.terminal, 65536).decode()
        except BlockingIOError:
            pass
        except OSError:
            raise AssertionError(self.said) from None
        return "Ctrl-C ends and removes it." in self.said

    def log_in(self, user: str) -> urllib.request.OpenerDirector:
        password = re.search(rf"user {user}, password (\S+)", self.said)[1]
        browser = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        )
        page = browser.open(f"{self.url}/login/").read().decode()
        token = re.search(r'id="csrf_token"[^>]*value="([^"]+)"', page, re.DOTALL)[1]
        form = {"username": user, "password": password, "csrf_token": token}
        answer = browser.open(
            f"{self.url}/login/", urllib.parse.urlencode(form).encode()
        )
        assert "/login" not in answer.url, f"{user} is not let in"
        return browser

    def is_up(self) -> bool:
        port = int(self.url.rpartition(":")[2])
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0


def runs() -> set[str]:
    return set(glob.glob(f"{STATE}/run.*"))


def processes(folder: str) -> str:
    """List the processes that work in a folder or name it."""
    name = folder.removeprefix(ROOT)
    found = ""
    for process in glob.glob("/proc/[0-9]*"):
        try:
            with open(f"{process}/cmdline") as file:
                command = file.read().replace("\0", " ")
            if name in command or os.readlink(f"{process}/cwd").startswith(folder):
                found += f"{process} {command}\n"
        except OSError:
            continue  # it has ended, or is not ours
    return found


def test_ctrl_c() -> None:
    before = runs()
    show = Show()
    (run,) = runs() - before
    place = ROOT + os.readlink(f"{run}/socket")

    admin, gamma = show.log_in("admin"), show.log_in("gamma")
    page = admin.open(f"{show.url}/extension-storage/").read().decode()
    for text in ("acme.snippets", "above 80 %", "No configured key reads 1"):
        assert text in page, f"the page does not say {text}"
    denied = gamma.open(f"{show.url}/extension-storage/").read().decode()
    assert "acme.snippets" not in denied
    listed = admin.open(f"{show.url}/api/v1/extensions/").read().decode()
    assert "acme.sample" in listed, listed

    os.write(show.terminal, b"\x03")
    os.waitpid(show.pid, 0)
    assert not show.is_up()
    assert runs() == before and not os.path.exists(place)
    assert not processes(run), processes(run)


def test_killed() -> None:
    before = runs()
    show = Show()
    (run,) = runs() - before
    os.kill(show.pid, signal.SIGKILL)
    os.waitpid(show.pid, 0)
    wait_for("the web server's end", lambda: not show.is_up())
    subprocess.run([*PSQL, "-Xqtc", "SELECT 1"], check=True, stdout=subprocess.DEVNULL)
    assert runs() == before
    assert not processes(run), processes(run)


passed = failed = 0
for test in (test_ctrl_c, test_killed):
    try:
        test()
        passed += 1
    except Exception as error:
        print(f"{test.__name__}: {type(error).__name__}: {error}")
        failed += 1
print(f"{passed} passed, {failed} failed")
sys.exit(failed > 0)
