"""The commands of operators: setting the store up and rotating its keys."""

from __future__ import annotations

import re
from typing import Any

import click
from flask.cli import with_appcontext
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

USERS = "ab_user"
RESOURCES = {"dashboard": "dashboards", "chart": "slices"}


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

    schema = current_app.config["EXTENSION_STORAGE_SCHEMA"]
    return [
        _check_server(),
        _install(schema),
        _check_rights(schema),
        _attach("users", USERS, "ext_storage_attach_users", f"'{USERS}'"),
        *(
            _attach(
                f"{resource_type}s",
                table,
                "ext_storage_attach_resource",
                f"'{resource_type}', '{table}'",
            )
            for resource_type, table in RESOURCES.items()
        ),
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


def _install(schema: str) -> str:
    """Install the extension or update it, unless that is done."""
    quoted = _quoted(schema)
    version = (
        "SELECT extversion FROM pg_extension WHERE extname = 'extension_storage'"
    )
    before = _query(version)
    if before is None:
        _as_owner(
            f"CREATE SCHEMA IF NOT EXISTS {quoted}",
            f"CREATE EXTENSION extension_storage SCHEMA {quoted} CASCADE",
        )
        return f"Extension: {_query(version)}, installed in schema {schema}"
    place, may_update = _row(
        "SELECT nspname, pg_has_role(extowner, 'USAGE') FROM pg_extension"
        " JOIN pg_namespace n ON n.oid = extnamespace"
        " WHERE extname = 'extension_storage'"
    )
    if place != schema:
        raise click.ClickException(
            f"The extension is in schema {place}, not {schema}: set"
            f" EXTENSION_STORAGE_SCHEMA = {place!r} in superset_config.py."
        )
    if may_update:
        _as_owner("ALTER EXTENSION extension_storage UPDATE")
    after = _query(version)
    if after == "1.0":
        raise click.ClickException(
            "The server has version 1.0 of the extension, the add-on needs 1.1:"
            " its administrator updates the package there, and the extension's"
            " owner runs ALTER EXTENSION extension_storage UPDATE."
        )
    if after == before:
        return f"Extension: {before}, already in schema {schema}"
    return f"Extension: updated from {before} to {after}"


def _check_rights(schema: str) -> str:
    """Check that the role may execute what the add-on calls."""
    role = _query("SELECT current_user")
    if not _query(
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
    ):
        _ask_administrator(
            f"SELECT {_quoted(schema)}.ext_storage_grant('{_quoted(role)}', 'admin')"
        )
    return f"Rights: role {role} may use the store"


def _attach(what: str, table: str, function: str, arguments: str) -> str:
    """Have the entries of deleted rows purged, unless that is done."""
    from .dao import qualified

    attached = _query(
        "SELECT EXISTS (SELECT FROM pg_trigger t"
        " JOIN pg_depend d ON d.objid = t.tgfoid AND d.deptype = 'e'"
        "  AND d.classid = 'pg_proc'::regclass"
        "  AND d.refclassid = 'pg_extension'::regclass"
        " JOIN pg_extension e ON e.oid = d.refobjid"
        f" WHERE extname = 'extension_storage' AND tgrelid = '{table}'::regclass)"
    )
    if attached:
        return f"Deleted {what}: their entries are already purged with them"
    _as_owner(f"SELECT {qualified(function)}({arguments})")
    return f"Deleted {what}: their entries are now purged with them"


def _row(statement: str) -> Any:
    from superset.extensions import db

    return db.session.execute(text(statement)).one_or_none()


def _query(statement: str) -> Any:
    row = _row(statement)
    return None if row is None else row[0]


def _quoted(name: str) -> str:
    from superset.extensions import db

    return db.session.get_bind().dialect.identifier_preparer.quote(name)


def _as_owner(*statements: str) -> None:
    """Run what needs rights; where the role has none, say who must run it."""
    from superset.extensions import db

    from .errors import StorageUnavailable, from_database

    try:
        for statement in statements:
            db.session.execute(text(statement))
    except DBAPIError as error:
        translated = from_database(error)
        if isinstance(translated, StorageUnavailable) and translated.sqlstate == "42501":
            _ask_administrator(*statements)
        raise translated from None


def _ask_administrator(*statements: str) -> None:
    from superset.extensions import db

    lines = "\n".join(f"    {statement};" for statement in statements)
    raise click.ClickException(
        "The role of Superset may not do this. The owner or an administrator of"
        f" database {db.session.get_bind().url.database} must run\n{lines}\n"
        "Then run this command again."
    )


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

    statement = text(
        f"CALL {qualified('ext_storage_rotate_keys')}("
        "extension_id => CAST(:extension_id AS text),"
        " batch_size => CAST(:batch_size AS integer),"
        " dry_run => CAST(:dry_run AS boolean))"
    )
    with db.engine.connect().execution_options(
        isolation_level="AUTOCOMMIT"
    ) as connection:
        # psycopg2 gives notices as they come only where it waits in Python.
        connection.connection.dbapi_connection.notices = progress
        set_wait_callback(wait_select)
        try:
            return connection.execute(
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
        self._terminal = click.get_text_stream("stdout").isatty()
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
