"""Which extensions Superset has.

Superset reads all its bundles whenever it is asked for its extensions.  Here
that is done again only when a file of a bundle has changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flask import current_app
from superset import is_feature_enabled
from superset.extensions.utils import get_extensions

Stamp = tuple[tuple[str, int, int], ...]

_known: tuple[Stamp, frozenset[str]] | None = None


def is_known(extension_id: str) -> bool:
    """May an extension of this name, `publisher.name`, have entries?"""
    global _known
    if current_app.config["EXTENSION_STORAGE_ANY_NAME"]:
        return True
    if not is_feature_enabled("ENABLE_EXTENSIONS"):
        return False
    stamp = tuple(
        (str(file), status.st_mtime_ns, status.st_size)
        for file in _files()
        if (status := file.stat())
    )
    known = _known
    if known is None or known[0] != stamp:
        known = _known = stamp, frozenset(get_extensions())
    return extension_id in known[1]


def _files() -> Iterator[Path]:
    """Give the files that Superset reads for its extensions."""
    for folder in current_app.config["LOCAL_EXTENSIONS"]:
        yield from sorted(
            file for file in Path(folder, "dist").rglob("*") if file.is_file()
        )
    if folder := current_app.config["EXTENSIONS_PATH"]:
        yield from sorted(Path(folder).glob("*.supx"))
