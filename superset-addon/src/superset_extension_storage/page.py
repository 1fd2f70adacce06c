"""The administrator's page: what the store holds, and what its keys are for."""

from __future__ import annotations

import logging
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any

from flask import Blueprint, current_app, request, url_for
from flask_appbuilder.api import expose
from flask_appbuilder.security.decorators import has_access, permission_name
from flask_babel import lazy_gettext
from superset.superset_typing import FlaskResponse
from superset.views.base import BaseSupersetView, get_spa_template_context

from .cli import OF_THE_SERVER, is_of_the_server, key_source
from .errors import ExtensionStorageError, StorageUnavailable, printable
from .report import EXAMPLES, TakesTooLong, key_report, usage_report
from .status import shown_time

logger = logging.getLogger(__name__)

MENU_NAME = "Extension Storage"

# The page of a store of more extensions shows the largest.
MOST_EXTENSIONS = 1000

# What an administrator does about a store that cannot be used, where the page can
# say more than the error.
NO_KEY = (
    "Name a key in EXTENSION_STORAGE_ENCRYPTION_KEYS of superset_config.py, or in the"
    " key file of the database server. Until then no value can be encrypted."
)
REMEDIES = {
    "ES002": NO_KEY,
    "F0000": "Correct the key file of the database server; its log says what is wrong.",
}
OTHER_DATABASE = "Move Superset's metadata to PostgreSQL 15 or later: the store is an extension of it."


class ExtensionStorageView(BaseSupersetView):
    """What the store holds, for those who run it."""

    route_base = "/extension-storage"
    class_permission_name = "ExtensionStorageReport"
    default_view = "report"
    template_folder = str(Path(__file__).with_name("templates"))

    @expose("/")
    @has_access
    @permission_name("read")
    def report(self) -> FlaskResponse:
        # The answer must come before the web server gives up on the worker.
        seconds = max(current_app.config["SUPERSET_WEBSERVER_TIMEOUT"] - 10, 1)
        until = monotonic() + seconds
        usage = keys = usage_problem = keys_problem = None
        try:
            usage = usage_report(request.args.get("usage") == "exact", until)
        except (ExtensionStorageError, TakesTooLong) as error:
            usage_problem = _problem(error)
        if usage:
            counted = request.args.get("keys") == "all" or usage.has_few_tokens()
            try:
                keys = key_report(counted, until)
            except (ExtensionStorageError, TakesTooLong) as error:
                keys_problem = _problem(error)
        return self.render_template(
            "extension_storage/page.html",
            **get_spa_template_context("spa", title=MENU_NAME),
            usage=usage,
            keys=keys,
            usage_problem=usage_problem,
            keys_problem=keys_problem,
            no_key=NO_KEY,
            examples=EXAMPLES,
            most=MOST_EXTENSIONS,
            size=_size,
            count=_count,
            time=shown_time,
            percent=_percent,
            scope=_scope,
            printable=printable,
            static=_static,
            source=key_source,
            removable=_removable,
        )


def _static(name: str) -> str:
    """Return the URL of a file, which browsers keep for a year, with its digest."""
    content = Path(__file__).with_name("static").joinpath(name).read_bytes()
    return url_for(
        "extension_storage.static", filename=name, v=sha256(content).hexdigest()[:12]
    )


def add_page(appbuilder: Any) -> None:
    """Add the page to the menu Settings, for Admin alone."""
    security = appbuilder.sm
    security.ADMIN_ONLY_VIEW_MENUS = security.ADMIN_ONLY_VIEW_MENUS | {
        ExtensionStorageView.class_permission_name,
        MENU_NAME,
    }
    appbuilder.app.register_blueprint(
        Blueprint(
            "extension_storage",
            __name__,
            static_folder="static",
            static_url_path="/extension-storage/static",
        )
    )
    # Superset has these groups in this order, but makes them later.
    for group in ("Security", "Data", "Manage"):
        if not appbuilder.menu.find(group):
            appbuilder.menu.add_category(group, label=lazy_gettext(group))
    appbuilder.add_view(ExtensionStorageView, MENU_NAME, category="Manage")


def _problem(error: Exception) -> tuple[str, str]:
    """Return what is wrong, and what to do about it."""
    if isinstance(error, TakesTooLong):
        return (
            "Reading the whole store takes too long for a page.",
            "superset extension-storage-status has all the time it needs.",
        )
    said = " ".join(filter(None, (error.hint, error.action)))
    if isinstance(error, StorageUnavailable):
        return error.message, REMEDIES.get(error.sqlstate) or said or OTHER_DATABASE
    logger.error("Extension storage: %s (%s)", error.message, error.sqlstate)
    return error.message, said or "See Superset's log."


def _size(size: float) -> str:
    """Return bytes with a decimal unit."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 999.95 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:,.0f} bytes" if units[0] == "bytes" else f"{size:,.1f} {units[0]}"


def _count(number: float, margin: float = 0) -> str:
    """Return a number; of an estimate, only the digits that its margin leaves."""
    if not margin:
        return f"{number:,.0f}"
    digits = max(len(f"{margin:.0f}") - 1, 0)
    return f"{round(number, -digits):,.0f}"


def _percent(part: float, whole: float) -> str:
    """Return a share; never 0 % of something, nor 100 % of less than all."""
    if not whole:
        return "–"
    share = 100 * part / whole
    if 0 < share < 1:
        return "< 1 %"
    if 99 < share < 100:
        return "> 99 %"
    return f"{share:.0f} %"


def _removable(key: Any) -> str:
    """Say whether a key may go, and if not, why."""
    if key.role == "encrypts":
        return "No: it encrypts new values"
    if key.entries:
        return "No: superset rotate-extension-storage-keys frees it"
    if key.removable is None:
        return "Not known: other transactions may use it"
    if key_source(key.source) == "SECRET_KEY":
        return "No entry needs it, but Superset does"
    if is_of_the_server(key.source):
        return f"Yes, as far as {OF_THE_SERVER}"
    return "Yes"


def _scope(entry: Any) -> str:
    resource = entry.resource_type and f"{entry.resource_type} {entry.resource_uuid}"
    user = entry.user_fk is not None and f"user {entry.user_fk}"
    return ", ".join(filter(None, (resource, user))) or "global"
