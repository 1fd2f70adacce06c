"""Extensions of Superset for the tests.

`acme.my-ext` is made with Superset's own tool, `superset-extensions`.  Its front
end and back end are the examples of the README, as written; what the tests call
is around them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

README = Path(__file__).parents[1] / "README.md"

# A container of webpack's module federation, as Superset's loader wants it.
REMOTE_ENTRY = """
window.acme_myExt = {
  init: () => {},
  get: async () => () => {
    %s
  },
};
"""

ENTRYPOINT = """
from flask import Response
from flask_appbuilder.api import expose, protect
from superset.extensions import db
from superset_core.rest_api.api import RestApi
from superset_core.rest_api.decorators import api


@api(id="my_api", name="My API")
class MyApi(RestApi):
    @expose("/examples", methods=("GET",))
    @protect()
    def examples(self) -> Response:
        names = {}
        for example in EXAMPLES:
            exec(example, names)
        db.session.commit()
        return self.response(200, result=names["value"].decode())


EXAMPLES = %r
"""


def examples(language: str) -> list[str]:
    """Give the blocks of the README in a language."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def front_end() -> str:
    """Give the README's front end with its steps as functions."""
    (example,) = (block for block in examples("javascript") if "// Save" in block)
    base, save, listing, read, delete = re.split(
        r"(?=// (?:Save|List|Read|Delete)\n)", example
    )
    return f"""{base}
    window.acmeMyExt = {{
      save: async () => {{ {save} }},
      list: async () => {{ {listing} return result; }},
      read: async () => {{ {read} return data; }},
      delete: async () => {{ {delete} }},
    }};"""


def manifest(publisher: str, name: str) -> str:
    """Give the manifest of an extension without code."""
    described = {
        "id": f"{publisher}.{name}",
        "publisher": publisher,
        "name": name,
        "displayName": name,
        "version": "1.0.0",
        "permissions": [],
        "dependencies": [],
    }
    return json.dumps(described)


def make_bundle(folder: Path, publisher: str, name: str) -> None:
    """Put an extension without code where Superset looks for bundles."""
    # Superset must not find half a file.
    made = folder / f"{publisher}.{name}.made"
    with ZipFile(made, "w") as bundle:
        bundle.writestr("manifest.json", manifest(publisher, name))
    made.rename(made.with_suffix(".supx"))


def tool(*arguments: str, cwd: Path) -> None:
    """Run Superset's tool for authors in a folder."""
    programs = Path(sys.executable).parent
    done = subprocess.run(
        [programs / "superset-extensions", *arguments],
        cwd=cwd,
        env={
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": str(cwd),
            "LC_ALL": "C.UTF-8",
            "npm_config_offline": "true",
            "npm_config_audit": "false",
            "npm_config_update_notifier": "false",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def build_my_ext(folder: Path, work: Path) -> None:
    """Build acme.my-ext as its author would, in the folder `work`."""

    work.mkdir()
    tool(
        "init",
        *("--publisher", "acme", "--name", "my-ext", "--display-name", "My extension"),
        *("--version", "0.1.0", "--license", "Apache-2.0", "--frontend", "--backend"),
        cwd=work,
    )
    (project,) = (path.parent for path in work.rglob("extension.json"))
    entrypoint = project / "backend/src/acme/my_ext/entrypoint.py"
    assert entrypoint.exists()
    python = [block for block in examples("python") if "DAO" in block]
    entrypoint.write_text(ENTRYPOINT % python)
    # webpack, which would come from the network, is not what is tested.
    frontend = project / "frontend"
    (frontend / "src" / "index.tsx").write_text(front_end())
    (frontend / "remoteEntry.js").write_text(REMOTE_ENTRY % front_end())
    package = json.loads((frontend / "package.json").read_text())
    for dependencies in ("dependencies", "devDependencies", "peerDependencies"):
        package.pop(dependencies, None)
    package["scripts"] = {
        "build": "mkdir -p dist && cp remoteEntry.js dist/remoteEntry.0.js"
    }
    (frontend / "package.json").write_text(json.dumps(package))
    tool("bundle", "--output", str(folder / "my-ext.supx"), cwd=project)
