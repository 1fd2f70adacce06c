"""Which extensions Superset has.

Superset reads all its bundles whenever it is asked for its extensions.  Here
that is done again only when a file of a bundle has changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from flask import current_app
from superset import is_feature_enabled
from superset.extensions.utils import get_extensions

# The stamps of the bundles' files when they were read, and what they held
_known: tuple[list[tuple[str, int, int]], frozenset[str]] | None = None


def is_known(extension_id: str) -> bool:
    """May an extension of this name, `publisher.name`, have entries?"""
    global _known
    if current_app.config["EXTENSION_STORAGE_ANY_NAME"]:
        return True
    if not is_feature_enabled("ENABLE_EXTENSIONS"):
        return False
    stamp = sorted(_stamps())
    known = _known
    if known is None or known[0] != stamp:
        known = _known = stamp, frozenset(get_extensions())
    return extension_id in known[1]


def _stamps() -> Iterator[tuple[str, int, int]]:
    """Return path, time of change and size of the files that are read for extensions."""
    for folder in current_app.config["LOCAL_EXTENSIONS"]:
        for place, folders, files in os.walk(os.path.join(folder, "dist")):
            for file in (*folders, *files):
                yield from _stamp(os.path.join(place, file))
    if folder := current_app.config["EXTENSIONS_PATH"]:
        with suppress(OSError), os.scandir(folder) as files:
            for file in files:
                if file.name.endswith(".supx"):
                    yield from _stamp(file.path)


def _stamp(path: str) -> Iterator[tuple[str, int, int]]:
    with suppress(OSError):  # gone meanwhile, or not for Superset either
        status = os.stat(path)
        yield path, status.st_ctime_ns, status.st_size
