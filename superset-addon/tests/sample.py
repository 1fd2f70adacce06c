"""The extension acme.sample: its front end uses the package in ../js."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def build_sample(work: Path) -> Path:
    """Build the extension in a folder, as its author would; give the extension's."""
    package, extension = work / "js", work / "sample"
    work.mkdir(exist_ok=True)
    for source, folder in ((HERE.parent / "js", package), (HERE / "sample", extension)):
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("node_modules"))
    frontend = extension / "frontend"
    run(package, "npm", "ci")
    run(package, "npm", "pack")
    (tarball,) = package.glob("*.tgz")
    run(frontend, "npm", "ci")
    run(frontend, "npm", "install", "--no-save", str(tarball))
    run(extension, "superset-extensions", "build")
    return extension


def run(folder: Path, *command: str) -> str:
    """Run a program of the virtual environment, where Node.js is, too."""
    programs = Path(sys.executable).parent
    done = subprocess.run(
        [programs / command[0], *command[1:]],
        cwd=folder,
        env={
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": os.environ["HOME"],
            "LC_ALL": "C.UTF-8",
            # the authorities that the machine trusts, not Node.js's own list
            "npm_config_cafile": "/etc/ssl/certs/ca-certificates.crt",
            "npm_config_audit": "false",
            "npm_config_fund": "false",
            "npm_config_update_notifier": "false",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
