"""Stands where Superset 7 has its cache for extensions, to say that it is not here."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # pickle asks every module for the names that it meets
    if not name.startswith("Ephemeral"):
        raise AttributeError(name)
    raise ImportError(
        f"{name}: ephemeral storage is a cache of Superset 7, which this Superset"
        " does not have"
    )
