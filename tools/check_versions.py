"""Says whether the version in the control file stands wherever else one does, and
whether the add-on's README names the Pythons that pip takes it for.
"""

import json
import re
import sys
from pathlib import Path

import tomllib


def first(pattern, path):
    match = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    return match[1] if match else None


version = first(r"^default_version = '(.*)'", "extension_storage.control")
addon = tomllib.loads(Path("superset-addon/pyproject.toml").read_text())["project"]
meta = json.loads(Path("META.json").read_text())
found = {
    "META.json": meta["version"],
    "META.json, provides": meta["provides"]["extension_storage"]["version"],
    "README.md": first(r"^Version (\S+)", "README.md"),
    "README.md, image": first(r"reference: .*:\d+-([\d.]+)-", "README.md"),
    "CHANGELOG.md": first(r"^## (\S+)", "CHANGELOG.md"),
    "superset-addon, version of the extension that it needs": first(
        r'^NEEDED_VERSION = "(.*)"',
        "superset-addon/src/superset_extension_storage/cli.py",
    ),
    "superset-addon/js/README.md": first(
        r"superset-extension-storage-([\d.]+)\.tgz", "superset-addon/js/README.md"
    ),
    "debian/changelog": first(r"\((.*)-\d+\)", "debian/changelog"),
    "superset-addon/pyproject.toml": addon["version"],
}
for package in Path("superset-addon/js").glob("package*.json"):
    content = json.loads(package.read_text())
    found[str(package)] = content["version"]
    if "packages" in content:
        found[f"{package}, packages"] = content["packages"][""]["version"]

# PGXN and npm want three parts.
wrong = {
    place: text
    for place, text in found.items()
    if text != f"{version}.0" and (text != version or ".json" in place)
}
for place, text in wrong.items():
    print(f"{place}: version {text}, but the control file has {version}")
script = Path(meta["provides"]["extension_storage"]["file"])
if not script.exists() or not script.stem.endswith(f"--{version}"):
    wrong["file"] = True
    print(f"META.json: the file in provides is not the script of {version}")
pythons = r"Python 3\.(\d+) to 3\.(\d+)"
lowest, highest = re.search(
    pythons, Path("superset-addon/README.md").read_text()
).groups()
if addon["requires-python"] != f">=3.{lowest},<3.{int(highest) + 1}":
    wrong["python"] = True
    print(f"superset-addon/README.md: Pythons that are not {addon['requires-python']}")
sys.exit(bool(wrong))
