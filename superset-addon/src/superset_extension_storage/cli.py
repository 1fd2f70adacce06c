"""The commands of operators: setting the store up and rotating its keys."""

from __future__ import annotations

import re
import sys
from typing import Any

import click
from flask.cli import with_appcontext
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

# Whose deletion is watched, in which table, and the call that sees to it.
ATTACHED = (
    ("users", "ab_user", "ext_storage_attach_users('ab_user')"),
    (
        "dashboards",
        "dashboards",
        "ext_storage_attach_resource('dashboard', 'dashboards')",
    ),
    ("charts", "slices", "ext_storage_attach_resource('chart', 'slices')"),
)


@click.command("init-extension-storage")
@with_appcontext
def init() -> None:
    """Set up the store of extensions in the metadata database, or check it."""
    from superset.utils.decorators import transaction

    from .errors import ExtensionStorageError

    try:
        for line in transaction(on_error=None)(_set_up)():
            click.echo(line)
        _report_keys()
    except ExtensionStorageError as error:
        hint = f"\n{error.hint}" if error.hint else ""
        raise click.ClickException(f"{error.message}{hint}") from None


def _set_up() -> list[str]:
    """Do what is missing, as a whole or not at all; tell what there is now."""
    from flask import current_app
    from superset.extensions import db

    from .errors import from_database

    schema = current_app.config["EXTENSION_STORAGE_SCHEMA"]
    report = [_check_server()]
    installed = _check_schema(schema)
    role = _query("SELECT current_user")
    attach = {
        what: f"SELECT {_quoted(schema)}.{call}"
        for what, table, call in ATTACHED
        if not _is_attached(table)
    }
    install = [
        f"CREATE SCHEMA IF NOT EXISTS {_quoted(schema)}",
        f"CREATE EXTENSION extension_storage SCHEMA {_quoted(schema)} CASCADE",
    ]
    administrator = "".join(
        f"    {statement};\n"
        for statement in [
            *([] if installed else install),
            f"SELECT {_quoted(schema)}.ext_storage_grant({_literal(_quoted(role))}, 'admin')",
            *attach.values(),
        ]
    )
    refusal = click.ClickException(
        "The role of Superset may not do this. The owner or an administrator of"
        f" database {db.session.get_bind().url.database} must run\n{administrator}"
        "Then run this command again."
    )
    try:
        if not installed:
            for statement in install:
                _execute(statement)
        report.append(_update(installed))
        if not _may_use():
            raise refusal
        report.append(f"Rights: role {role} may use the store")
        for statement in attach.values():
            _execute(statement)
    except DBAPIError as error:
        translated = from_database(error)
        raise (refusal if translated.sqlstate == "42501" else translated) from None
    return report + [
        f"Deleted {what}: their entries are {'now' if what in attach else 'already'}"
        " purged with them"
        for what, _, _ in ATTACHED
    ]


def _check_server() -> str:
    from superset.extensions import db

    dialect = db.session.get_bind().dialect.name
    if dialect != "postgresql":
        raise click.ClickException(
            f"The metadata database is {dialect}: the store needs PostgreSQL."
        )
    number, version = _query("SHOW server_version_num"), _query("SHOW server_version")
    if int(number) < 150000:
        raise click.ClickException(
            f"The server is PostgreSQL {version}: the store needs 15 or later."
        )
    return f"Server: PostgreSQL {version}"


def _check_schema(schema: str) -> str | None:
    """Give the installed version; refuse one in another schema."""
    found = _row(
        "SELECT extversion, nspname FROM pg_extension"
        " JOIN pg_namespace n ON n.oid = extnamespace"
        " WHERE extname = 'extension_storage'"
    )
    if found is None:
        return None
    version, place = found
    if place != schema:
        raise click.ClickException(
            f"The extension is in schema {place}, not {schema}: set"
            f" EXTENSION_STORAGE_SCHEMA = {place!r} in superset_config.py."
        )
    return version


def _update(before: str | None) -> str:
    """Update the extension where it is the role's own; refuse one that is too old."""
    version, own = _row(
        "SELECT extversion, pg_has_role(extowner, 'USAGE') FROM pg_extension"
        " WHERE extname = 'extension_storage'"
    )
    if own:
        _execute("ALTER EXTENSION extension_storage UPDATE")
        version = _query(
            "SELECT extversion FROM pg_extension WHERE extname = 'extension_storage'"
        )
    if version == "1.0":
        raise click.ClickException(
            "The extension is version 1.0, the add-on needs 1.1: the server's"
            " administrator updates its package, and the extension's owner runs"
            " ALTER EXTENSION extension_storage UPDATE."
        )
    if before is None:
        return f"Extension: {version}, now installed"
    if version == before:
        return f"Extension: {version}, already installed"
    return f"Extension: {version}, updated from {before}"


def _may_use() -> bool:
    """May the role execute what the add-on calls?"""
    return _query(
        "SELECT has_schema_privilege(extnamespace, 'USAGE') AND NOT EXISTS ("
        " SELECT FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid"
        " WHERE d.refobjid = e.oid AND d.deptype = 'e'"
        "  AND d.refclassid = 'pg_extension'::regclass"
        "  AND d.classid = 'pg_proc'::regclass"
        "  AND proname IN ('ext_storage_get', 'ext_storage_get_entry',"
        "   'ext_storage_set', 'ext_storage_delete', 'ext_storage_list',"
        "   'ext_storage_count', 'ext_storage_rotate_keys', 'ext_storage_key_status')"
        "  AND NOT has_function_privilege(p.oid, 'EXECUTE'))"
        " FROM pg_extension e WHERE extname = 'extension_storage'"
    )


def _is_attached(table: str) -> bool:
    """Is the table's deletion watched by a trigger of the extension?"""
    return _query(
        "SELECT EXISTS (SELECT FROM pg_trigger t"
        " JOIN pg_depend d ON d.objid = t.tgfoid AND d.deptype = 'e'"
        "  AND d.classid = 'pg_proc'::regclass"
        "  AND d.refclassid = 'pg_extension'::regclass"
        " JOIN pg_extension e ON e.oid = d.refobjid"
        f" WHERE extname = 'extension_storage' AND tgrelid = to_regclass('{table}'))"
    )


def _execute(statement: str) -> Any:
    """Run a statement as it is: no colon or percent sign in it means anything."""
    from superset.extensions import db

    return db.session.connection().exec_driver_sql(
        statement, execution_options={"no_parameters": True}
    )


def _row(statement: str) -> Any:
    return _execute(statement).one_or_none()


def _query(statement: str) -> Any:
    row = _row(statement)
    return None if row is None else row[0]


def _quoted(name: str) -> str:
    # with the driver's dialect it would be for a statement with parameters
    return postgresql.dialect(paramstyle="named").identifier_preparer.quote(name)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _report_keys() -> None:
    """Print what each key is still needed for; fail where none encrypts."""
    from .dao import call

    encrypts = False
    for key in call("ext_storage_key_status"):
        if key.role == "unknown":
            if key.entries:
                click.echo(f"No key reads {key.entries} entries")
            continue
        encrypts = encrypts or key.role == "encrypts"
        verdict = "it may be removed" if key.removable else "it is needed"
        click.echo(
            f"Key {key.ordinal}, fingerprint {key.fingerprint}: {key.role},"
            f" {key.entries} entries; {verdict}"
        )
    if not encrypts:
        raise click.ClickException("No encryption key is configured.")


@click.command("rotate-extension-storage-keys")
@click.option("--extension-id", help="Only the entries of this extension.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="Rows in a transaction.",
)
@click.option("--dry-run", is_flag=True, help="Write nothing.")
@with_appcontext
def rotate(extension_id: str | None, batch_size: int, dry_run: bool) -> None:
    """Re-encrypt the entries of extensions with the first key.

    Can be stopped and run again. Exits with 1 where an entry is read by no key.
    """
    from .errors import ExtensionStorageError, from_database

    progress = Progress()
    try:
        result = _call_rotation(extension_id, batch_size, dry_run, progress)
    except DBAPIError as error:
        message = from_database(error).message
        raise click.ClickException(
            f"{message}. What was done stays; run the command again to go on."
        ) from None
    finally:
        progress.finish()
    click.echo(
        f"{result.scanned} scanned, {result.rotated}"
        f" {'to re-encrypt' if dry_run else 're-encrypted'},"
        f" {result.current} already current, {result.failed} failed"
    )
    try:
        _report_keys()
    except ExtensionStorageError as error:
        raise click.ClickException(error.message) from None
    if result.failed:
        raise click.exceptions.Exit(1)


def _call_rotation(
    extension_id: str | None, batch_size: int, dry_run: bool, progress: Progress
) -> Any:
    """Call the procedure outside of a transaction, so that it commits batches."""
    from psycopg2.extensions import set_wait_callback
    from psycopg2.extras import wait_select
    from superset.extensions import db

    from .dao import qualified

    statement = (
        f"CALL {qualified('ext_storage_rotate_keys')}("
        "extension_id => CAST(%(extension_id)s AS text),"
        " batch_size => CAST(%(batch_size)s AS integer),"
        " dry_run => CAST(%(dry_run)s AS boolean))"
    )
    with db.engine.connect().execution_options(
        isolation_level="AUTOCOMMIT"
    ) as connection:
        # psycopg2 gives notices as they come only where it waits in Python.
        connection.connection.dbapi_connection.notices = progress
        set_wait_callback(wait_select)
        try:
            return connection.exec_driver_sql(
                statement,
                {
                    "extension_id": extension_id,
                    "batch_size": batch_size,
                    "dry_run": dry_run,
                },
            ).one()
        finally:
            set_wait_callback(None)
            connection.connection.dbapi_connection.notices = []


class Progress:
    """Shows the server's notices: a bar on a terminal, lines elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._bar: Any = None
        self._warnings: list[str] = []

    def append(self, notice: str) -> None:
        """Take a notice from psycopg2, which sees a list in this object."""
        message = notice.partition(":  ")[2].splitlines()[0]
        if not message.startswith("rotate_keys: "):
            self._warnings.append(message)
            if not self._terminal:
                self.finish()
        elif not self._terminal:
            click.echo(message)
        elif done := re.match(r"rotate_keys: (\d+) of (\d+) rows done", message):
            self._show(int(done[1]), int(done[2]))

    def _show(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = click.progressbar(length=total, label="Re-encrypting")
        self._bar.length = total
        self._bar.update(done - self._bar.pos)

    def finish(self) -> None:
        """End the bar and print the warnings that it held back."""
        if self._bar is not None:
            self._bar.render_finish()
            self._bar = None
        for warning in self._warnings:
            click.echo(f"Warning: {warning}", err=True)
        self._warnings.clear()
