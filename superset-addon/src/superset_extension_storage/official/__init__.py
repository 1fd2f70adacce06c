"""Superset 7's storage API for extensions, on a Superset that has none.

What extensions import is put in place before the first of them is loaded:
`superset_core.extensions.context`, `superset_core.extensions.storage` and its
modules `persistent` and `secrets`. Their names, arguments and meanings are
Superset's; what differs is in the README of this package.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

from flask import Flask

from . import context, ephemeral, persistent, secrets, sessions
from .context import extension_context

__all__ = ["extension_context", "install"]

CONTEXT = "superset_core.extensions.context"
STORAGE = "superset_core.extensions.storage"


def install(app: Flask) -> None:
    """Put the modules in place, where Superset has none or a setting says so."""
    app.config.setdefault("EXTENSION_STORAGE_REPLACE_API", False)
    app.config.setdefault("EXTENSION_STORAGE_UNPICKLE", [])
    sessions.install(app)
    if sys.modules.get(CONTEXT) is context:
        return  # by another application of this process
    if not any(name in sys.modules or find_spec(name) for name in (CONTEXT, STORAGE)):
        _add_modules()
    elif app.config["EXTENSION_STORAGE_REPLACE_API"]:
        _replace_states()


def _add_modules() -> None:
    storage = ModuleType(STORAGE, "Storage for extensions.")
    storage.__path__ = []  # a package, of the modules that are added here
    added: dict[str, ModuleType] = {
        CONTEXT: context,
        STORAGE: storage,
        f"{STORAGE}.ephemeral": ephemeral,
        f"{STORAGE}.persistent": persistent,
        f"{STORAGE}.secrets": secrets,
    }
    sys.modules.update(added)
    for name, module in added.items():
        parent, _, child = name.rpartition(".")
        setattr(sys.modules[parent], child, module)


def _replace_states() -> None:
    """Put the states in the place of Superset's own, which keeps its contexts.

    Superset takes them from its own package, at start and at each access, and
    hands them on to superset_core.
    """
    import superset.extensions.storage.persistent as host_persistent
    import superset.extensions.storage.secrets as host_secrets
    import superset_core.extensions.storage.persistent as core_persistent
    import superset_core.extensions.storage.secrets as core_secrets

    for module in (host_persistent, core_persistent):
        module.PersistentState = persistent.PersistentState
    for module in (host_secrets, core_secrets):
        module.SecretsState = secrets.SecretsState
