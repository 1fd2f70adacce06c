"""The format and the usual faults of the package's Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("command", [("check",), ("format", "--check")])
def test_style(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ruff"),
            *command,
            "--no-cache",
            Path(__file__).parents[1],
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
