"""Hands the encryption keys to the server in each connection's startup packet.

There they stand in no statement, so neither in pg_stat_activity nor in the
server's log.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine


def startup_options(encryption_keys: Sequence[str], secret_key: str) -> str:
    """Give the libpq parameter `options` that sets the keys of a session."""
    if isinstance(encryption_keys, (str, bytes)):
        raise TypeError("EXTENSION_STORAGE_ENCRYPTION_KEYS must be a list of strings")
    for number, secret in enumerate(encryption_keys, 1):
        _check(f"EXTENSION_STORAGE_ENCRYPTION_KEYS, item {number},", secret)
    _check("SECRET_KEY", secret_key)

    settings = {"extension_storage.secret_key": secret_key}
    if encryption_keys:
        settings["extension_storage.encryption_keys"] = ",".join(
            '"' + secret.replace('"', '""') + '"' for secret in encryption_keys
        )
    # The server splits at spaces and takes what follows a backslash as it is.
    return " ".join(
        f"-c {name}=" + re.sub(r"([\s\\])", r"\\\1", value)
        for name, value in settings.items()
    )


def _check(name: str, secret: object) -> None:
    if not isinstance(secret, str):
        raise TypeError(f"{name} must be a string")
    if not secret or "\0" in secret:
        raise ValueError(f"{name} must not be empty or contain a NUL character")


def hand_over_keys(
    engine: Engine, encryption_keys: Sequence[str], secret_key: str
) -> None:
    """Set the keys on every connection that the engine makes from now on."""
    from sqlalchemy import event

    if engine.dialect.name != "postgresql":
        return  # the DAO says on use that it needs PostgreSQL
    ours = startup_options(encryption_keys, secret_key)

    @event.listens_for(engine, "do_connect")
    def add_options(
        dialect: Any, record: Any, arguments: list[Any], parameters: dict[str, Any]
    ) -> None:
        theirs = parameters.get("options")
        parameters["options"] = f"{theirs} {ours}" if theirs else ours

    engine.dispose()  # start-up has made connections without the keys
