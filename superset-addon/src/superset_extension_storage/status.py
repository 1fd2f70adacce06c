"""The command that tells operators and their monitoring how the store is."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import click
from flask.cli import with_appcontext
from sqlalchemy.exc import SQLAlchemyError

from .cli import (
    COULD_NOT_RUN,
    NOT_INSTALLED,
    STATUS,
    ended_by_ctrl_c,
    fail,
    in_a_line,
    is_of_the_server,
    key_source,
)
from .errors import ExtensionStorageError, from_database, printable
from .keys import EXTENSION

# What needs an operator, as bits of the exit code; 1 and 2 are click's own.
UNREADABLE, QUOTA, OLD_KEY = 4, 8, 16
ALMOST_FULL = 0.9
PROBLEMS = {
    UNREADABLE: "Entries are unreadable: their key is not configured, or they are damaged.",
    QUOTA: "An extension uses more than 90 % of its quota.",
    OLD_KEY: "An old key is still needed: `superset rotate-extension-storage-keys`.",
}

KEY_COLUMNS = ("source", "fingerprint", "role", "entries", "oldest", "newest")
EXTENSION_COLUMNS = (
    "extension_id",
    "entries",
    "encrypted_entries",
    "value_bytes",
    "quota_bytes",
)
UNREADABLE_COLUMNS = (
    "extension_id",
    "user_fk",
    "resource_type",
    "resource_uuid",
    "key",
    "uuid",
    "problem",
)


@click.command(STATUS)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on the last line.")
@with_appcontext
@ended_by_ctrl_c()
def status(as_json: bool) -> None:
    """Show what extensions store, and what each key is needed for.

    The exit code is the sum of 4 where entries are unreadable, 8 where an
    extension uses more than 90 % of its quota and 16 where an old key is still
    needed; 1 where the store cannot be asked.
    """
    try:
        report = _report()
    except (click.ClickException, ExtensionStorageError, SQLAlchemyError) as error:
        message = _in_words(error)
        if as_json:
            click.echo(json.dumps({"error": message, "exit_code": COULD_NOT_RUN}))
        fail(message)
    if as_json:
        click.echo(json.dumps(report, default=_plain))
    else:
        _print(report)
    raise click.exceptions.Exit(report["exit_code"])


def _in_words(error: Exception) -> str:
    """Say what is wrong, and what to do about it."""
    if isinstance(error, click.ClickException):
        return error.message
    if isinstance(error, SQLAlchemyError):
        error = from_database(error)
    return " ".join(filter(None, (in_a_line(error), error.action)))


def _report() -> dict[str, Any]:
    from flask import current_app
    from superset.extensions import db

    if EXTENSION not in current_app.extensions:
        fail(NOT_INSTALLED)
    if db.session.get_bind().dialect.name != "postgresql":
        fail("The metadata database is not PostgreSQL, which the store needs.")

    from .dao import call, key_status
    from .report import check_version

    check_version()
    extensions = [_columns(row, EXTENSION_COLUMNS) for row in call("ext_storage_usage")]
    for extension in extensions:
        quota = extension["quota_bytes"]
        extension["share"] = extension["value_bytes"] / quota if quota else None
    rows = key_status()
    keys = [_key(row) for row in rows if row.role != "unknown"]
    # Names are looked for where there is something to find: that reads all again.
    lost = any(row.role == "unknown" and row.entries for row in rows)
    unreadable = [
        _columns(row, UNREADABLE_COLUMNS)
        for row in (call("ext_storage_verify") if lost else [])
    ]
    exit_code = (
        (UNREADABLE if lost else 0)
        | (QUOTA if any((e["share"] or 0) > ALMOST_FULL for e in extensions) else 0)
        | (
            OLD_KEY
            if any(k["role"] == "decrypts" and k["entries"] for k in keys)
            else 0
        )
    )
    return {
        "extensions": extensions,
        "keys": keys,
        "unreadable": unreadable,
        "exit_code": exit_code,
    }


def _key(row: Any) -> dict[str, Any]:
    """Tell of a key whether it may be removed, and of what that is not known."""
    removable, remark = row.removable, None
    if removable and key_source(row.source) == "SECRET_KEY":
        removable, remark = False, "Superset itself needs it"
    elif removable and is_of_the_server(row.source):
        remark = "other databases of the server may need it"
    told = {"source": key_source(row.source), "removable": removable, "remark": remark}
    return {**_columns(row, KEY_COLUMNS), **told}


def _columns(row: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def _print(report: dict[str, Any]) -> None:
    _print_table(
        ("extension", "entries", "encrypted", "bytes", "quota", "used"),
        [
            (
                e["extension_id"],
                e["entries"],
                e["encrypted_entries"],
                e["value_bytes"],
                e["quota_bytes"] or "none",
                "" if e["share"] is None else f"{e['share']:.0%}",
            )
            for e in report["extensions"]
        ],
        "No extension stores anything.",
    )
    _print_table(
        (*KEY_COLUMNS[:-2], "oldest (UTC)", "newest (UTC)", "removable"),
        [
            (
                *(_short(key[column]) for column in KEY_COLUMNS),
                ": ".join(
                    filter(
                        None,
                        (
                            "unknown"
                            if key["removable"] is None
                            else _short(key["removable"]),
                            key["remark"],
                        ),
                    )
                ),
            )
            for key in report["keys"]
        ],
        "No encryption key is configured.",
    )
    if report["unreadable"]:
        _print_table(
            ("unreadable entry of", "scope", "key", "problem"),
            [
                (e["extension_id"], _scope(e), e["key"], e["problem"])
                for e in report["unreadable"]
            ],
        )
    for bit, problem in PROBLEMS.items():
        if report["exit_code"] & bit:
            click.echo(problem)


def _print_table(
    heads: tuple[str, ...], rows: list[tuple[Any, ...]], instead: str = ""
) -> None:
    if not rows:
        click.echo(f"{instead}\n")
        return
    table = [heads, *(tuple(map(printable, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row, kinds in zip(table, [rows[0], *rows], strict=True):
        cells = (
            cell.rjust(width) if isinstance(kind, int) else cell.ljust(width)
            for cell, width, kind in zip(row, widths, kinds, strict=True)
        )
        click.echo("  ".join(cells).rstrip())
    click.echo()


def _short(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return shown_time(value) if isinstance(value, datetime) else value


def shown_time(time: datetime | str | None) -> str:
    if isinstance(time, str):
        return time
    return f"{time:%Y-%m-%d %H:%M}" if time else "–"


def _scope(entry: dict[str, Any]) -> str:
    user = [] if entry["user_fk"] is None else [f"user {entry['user_fk']}"]
    resource = filter(None, (entry["resource_type"], entry["resource_uuid"]))
    return " ".join([*user, *resource]) or "global"


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
