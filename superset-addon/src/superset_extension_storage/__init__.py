"""Persistent storage for Superset's extensions, kept by a PostgreSQL extension.

In superset_config.py:

    from superset_extension_storage import install as FLASK_APP_MUTATOR
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

__all__ = ["install"]


def install(app: Flask) -> None:
    """Add the REST API, ExtensionStorageDAO and the keys to a Superset application."""
    # superset_config.py imports this module before Superset can be imported.
    import superset_core.common.daos
    from superset.extensions import appbuilder, db

    from . import official
    from .api import ExtensionStorageRestApi
    from .cli import refuse_configuration
    from .dao import ExtensionStorageDAO
    from .keys import COPY, EXTENSION, Keys, KeysUnusable
    from .page import add_page

    app.config.setdefault("EXTENSION_STORAGE_SCHEMA", "ext_storage")
    app.config.setdefault("EXTENSION_STORAGE_ENCRYPTION_KEYS", [])
    app.config.setdefault("EXTENSION_STORAGE_KEYS_BY", COPY)
    app.config.setdefault("EXTENSION_STORAGE_SEND_KEYS", True)
    app.config.setdefault("EXTENSION_STORAGE_DIRECT_URI", None)
    app.config.setdefault("EXTENSION_STORAGE_ANY_NAME", False)

    try:
        keys = app.extensions[EXTENSION] = Keys(app.config)
    except KeysUnusable as error:
        refuse_configuration(error)
    keys.attach(db.engine)
    superset_core.common.daos.ExtensionStorageDAO = ExtensionStorageDAO
    official.install(app)

    # What Alpha may do and Gamma may not, when `superset init` makes the roles.
    security = appbuilder.sm
    security.ALPHA_ONLY_PMVS = security.ALPHA_ONLY_PMVS | {
        ("can_write_shared", ExtensionStorageRestApi.class_permission_name)
    }
    appbuilder.add_api(ExtensionStorageRestApi)
    add_page(appbuilder)
