"""Says whether the version in the control file stands wherever else one does."""

import json
import re
import sys
from pathlib import Path

import tomllib


def first(pattern, path):
    match = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    return match[1] if match else None


version = first(r"^default_version = '(.*)'", "extension_storage.control")
meta = json.loads(Path("META.json").read_text())
found = {
    "META.json": meta["version"],
    "META.json, provides": meta["provides"]["extension_storage"]["version"],
    "README.md": first(r"^Version (\S+)", "README.md"),
    "README.md, image": first(r"reference: .*:\d+-([\d.]+)-", "README.md"),
    "CHANGELOG.md": first(r"^## (\S+)", "CHANGELOG.md"),
    "debian/changelog": first(r"\((.*)-\d+\)", "debian/changelog"),
    "superset-addon/pyproject.toml": tomllib.loads(
        Path("superset-addon/pyproject.toml").read_text()
    )["project"]["version"],
}
for package in Path("superset-addon/js").glob("package*.json"):
    found[str(package)] = json.loads(package.read_text())["version"]

wrong = {
    place: text
    for place, text in found.items()
    if text not in (version, f"{version}.0")
}
for place, text in wrong.items():
    print(f"{place}: version {text}, but the control file has {version}")
if not Path(meta["provides"]["extension_storage"]["file"]).exists():
    wrong["file"] = True
    print("META.json: the file in provides does not exist")
sys.exit(bool(wrong))
