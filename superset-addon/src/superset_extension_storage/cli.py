"""The commands of operators: setting the store up and rotating its keys."""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import wraps
from threading import Thread
from typing import Any, NoReturn

import click
from flask.cli import with_appcontext
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from .errors import (
    SET_UP,
    ExtensionStorageError,
    ValueUndecryptable,
    VersionMismatch,
    from_database,
    printable,
)
from .keys import EXTENSION, SERVER, KeysUnusable, is_psycopg2, quoted, waiting_by

NEEDED_VERSION = "1.2"

STATUS = "extension-storage-status"  # the name of that command

# Exit codes; 2 is Click's, for options that cannot be used.
COULD_NOT_RUN = 1
INTERRUPTED = 3
UNREADABLE = 4
CTRL_C = 130  # as a shell has it of a program that SIGINT has ended

# How SQLSTATEs begin of what passes: connection, conflict, resources, locks, and
# the end of the server or the statement by a person.
PASSING = ("08", "40", "53", "55006", "55P03", "57")

# Whose deletion is watched, in which table, the call that sees to it, and the
# arguments of the triggers that it makes.
ATTACHED = (
    ("users", "ab_user", "ext_storage_attach_users('ab_user')", "id"),
    (
        "dashboards",
        "dashboards",
        "ext_storage_attach_resource('dashboard', 'dashboards')",
        "dashboard\\000uuid",
    ),
    (
        "charts",
        "slices",
        "ext_storage_attach_resource('chart', 'slices')",
        "chart\\000uuid",
    ),
)


def fail(message: str, code: int = COULD_NOT_RUN) -> NoReturn:
    failure = click.ClickException(message)
    failure.exit_code = code
    raise failure


NOT_INSTALLED = (
    "superset_config.py lacks the line: from superset_extension_storage import install"
    " as FLASK_APP_MUTATOR"
)


class ConfigurationUnusable(click.ClickException):
    """What keeps Superset from starting, said in a line and, if asked for, in JSON."""

    as_json = False

    def show(self, file: Any = None) -> None:
        if self.as_json:
            click.echo(json.dumps({"error": self.message, "exit_code": COULD_NOT_RUN}))
        super().show(file)


def refuse_configuration(error: KeysUnusable) -> NoReturn:
    """Refuse keys: a command, whichever it is, without a traceback."""
    context = click.get_current_context(silent=True)
    if context is None:
        raise error
    # Superset logs a traceback of each error before the command ends.
    logging.getLogger("superset.app").addFilter(
        lambda record: (
            not record.exc_info
            or not isinstance(record.exc_info[1], ConfigurationUnusable)
        )
    )
    failure = ConfigurationUnusable(f"superset_config.py cannot be used: {error}")
    failure.as_json = context.invoked_subcommand == STATUS and "--json" in sys.argv
    raise failure from None


def in_a_line(error: ExtensionStorageError) -> str:
    """Return the server's words of an error."""
    # Where the connection is gone, all that the server said may be in one text.
    message = re.split(r"\s(?:DETAIL|HINT|CONTEXT):\s", error.message)[0]
    said = [message.removeprefix("FATAL:"), error.detail, error.hint]
    return " ".join(
        printable(" ".join(sentence.split())).rstrip(".") + "."
        for sentence in said
        if sentence
    )


def _wait(driver: Any) -> None:
    """Wait for the server in Python, which Ctrl-C ends at once.

    psycopg2's own way is in C; its wait_select makes an error of the server's of it.
    """
    from select import select

    from psycopg2 import Error
    from psycopg2.extensions import POLL_OK, POLL_READ

    try:
        while (state := driver.poll()) != POLL_OK:
            reading = [driver] if state == POLL_READ else []
            select(reading, [] if reading else [driver], [])
    except KeyboardInterrupt:
        with suppress(Error):  # the connection may be gone
            driver.cancel()
        raise


def _connect_in_a_thread(
    dialect: Any, record: Any, arguments: list[Any], parameters: dict[str, Any]
) -> Any:
    """Connect, as SQLAlchemy's do_connect, while Python waits: Ctrl-C ends it at once.

    connect_timeout counts only where psycopg2 waits in C, for each host in turn.
    """
    if not is_psycopg2(dialect):
        return None
    connection: Future[Any] = Future()

    def run() -> None:
        try:
            connection.set_result(dialect.connect(*arguments, **parameters))
        except BaseException as error:
            connection.set_exception(error)

    with waiting_by(None):
        Thread(target=run, daemon=True).start()
        return connection.result()


@contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Have Ctrl-C end what is in it without a word, and with a code that says so."""
    from superset.extensions import db

    connects = (db.engine, "do_connect", _connect_in_a_thread)
    event.listen(*connects)
    try:
        with waiting_by(_wait):
            yield
    except KeyboardInterrupt:
        raise click.exceptions.Exit(CTRL_C) from None
    finally:
        event.remove(*connects)


def of_an_operator(command: Callable[..., None]) -> Callable[..., None]:
    """Have a command say in a line why it cannot run."""

    @with_appcontext
    @ended_by_ctrl_c()
    @wraps(command)
    def run(**options: Any) -> None:
        from flask import current_app

        try:
            if EXTENSION not in current_app.extensions:
                fail(NOT_INSTALLED)
            _check_server()
            command(**options)
        except (ExtensionStorageError, DBAPIError) as error:
            if isinstance(error, DBAPIError):
                error = from_database(error)
            # nobody is sent from the command to the command
            advice = None if SET_UP in (error.action or "") else error.action
            fail(" ".join(filter(None, (in_a_line(error), advice))))

    return run


@click.command("init-extension-storage")
@of_an_operator
def init() -> None:
    """Set up the store of extensions in the metadata database, or check it.

    Exits with 1 if it could not, 4 if there is an entry that no key can read.
    """
    from superset.utils.decorators import transaction

    for line in transaction(on_error=None)(_set_up)():
        click.echo(line)
    _report_keys()


def _set_up() -> list[str]:
    """Do what is missing, as a whole or not at all; tell what there is now."""
    from flask import current_app

    schema = current_app.config["EXTENSION_STORAGE_SCHEMA"]
    report = [_check_server()]
    installed = _check_schema(schema)
    role = _query("SELECT current_user")
    attach = {
        what: f"SELECT {quoted(schema)}.{call}"
        for what, table, call, arguments in ATTACHED
        if not _is_attached(table, arguments)
    }
    # Not by CASCADE, which would put pgcrypto into the same schema.
    install = [
        "CREATE EXTENSION IF NOT EXISTS pgcrypto",
        f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}",
        f"CREATE EXTENSION extension_storage SCHEMA {quoted(schema)}",
    ]
    grant = (
        f"SELECT {quoted(schema)}.ext_storage_grant({_literal(quoted(role))}, 'admin')"
    )
    # What is still to be done by another role, if this one may not.
    left = [*([] if installed else install), grant, *attach.values()]
    may_use = False
    try:
        if not installed:
            for statement in install:
                _execute(statement)
        report.append(_update(installed))
        may_use = _may_use(schema)
        if not may_use:
            raise _refusal(left)
        report.append(f"Rights: role {role} may use the store")
        for statement in attach.values():
            _execute(statement)
    except DBAPIError as error:
        if from_database(error).sqlstate == "42501":
            if may_use and installed:
                left.remove(grant)
            raise _refusal(left) from None
        raise
    return report + [
        f"Deleted {what}: their entries are {'now' if what in attach else 'already'}"
        " purged with them"
        for what, *_ in ATTACHED
    ]


def _refusal(statements: list[str]) -> click.ClickException:
    from superset.extensions import db

    listed = "".join(f"    {statement};\n" for statement in statements)
    return click.ClickException(
        "Superset's role may not do this. In database"
        f" {db.session.get_bind().url.database}, a superuser, or a role that owns the"
        " extension and each table that is attached, must run\n"
        f"{listed}Then run this command again."
    )


def _check_server() -> str:
    from superset.extensions import db

    from .dao import check_dialect

    dialect = db.session.get_bind().dialect.name
    if dialect != "postgresql":
        fail(f"The metadata database is {dialect}: the store needs PostgreSQL.")
    check_dialect()
    number, version = _query("SHOW server_version_num"), _query("SHOW server_version")
    if int(number) < 150000:
        fail(f"The server is PostgreSQL {version}: the store needs 15 or later.")
    return f"Server: PostgreSQL {version}"


def _check_schema(schema: str) -> str | None:
    """Return the installed version; refuse one in another schema."""
    found = _row(
        "SELECT extversion, nspname FROM pg_extension"
        " JOIN pg_namespace n ON n.oid = extnamespace"
        " WHERE extname = 'extension_storage'"
    )
    if found is None:
        return None
    version, place = found
    if place != schema:
        fail(
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
    _check_version(version)
    if before is None:
        return f"Extension: {version}, now installed"
    if version == before:
        return f"Extension: {version}, already installed"
    return f"Extension: {version}, updated from {before}"


def is_older(version: str) -> bool:
    """Is a version of the extension older than the add-on needs?"""

    def numbers(version: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", version)]

    return numbers(version) < numbers(NEEDED_VERSION)


def _check_version(version: str) -> None:
    if is_older(version):
        fail(
            f"The extension is version {version}, the add-on needs {NEEDED_VERSION}:"
            " the administrator of the server updates its package, and the"
            " extension's owner runs ALTER EXTENSION extension_storage UPDATE."
        )


def _may_use(schema: str) -> bool:
    """May the role do what `ext_storage_grant` gives with level admin?

    Raises 42501 where it may not even ask.
    """
    home = quoted(schema)
    table = _literal(f"{home}.extension_storage")
    return _query(
        f"SELECT has_table_privilege({table}, 'SELECT')"
        f" AND has_table_privilege({table}, 'INSERT')"
        f" AND has_table_privilege({table}, 'UPDATE')"
        f" AND has_table_privilege({table}, 'DELETE')"
        f" AND has_table_privilege({_literal(f'{home}.ext_storage_secrets')}, 'INSERT')"
        " AND bool_and(has_function_privilege(function, 'EXECUTE'))"
        f" FROM {home}.ext_storage_functions()"
        " WHERE level IN ('read', 'write', 'admin')"
    )


def _is_attached(table: str, arguments: str) -> bool:
    """Do triggers of the extension watch the table's DELETE and TRUNCATE?

    A restore may leave them disabled; the call that makes them enables them.
    """
    return _query(
        "SELECT count(DISTINCT tgtype & 40) = 2 FROM pg_trigger t"  # 8, 32: pg_trigger.h
        " JOIN pg_depend d ON d.objid = t.tgfoid AND d.deptype = 'e'"
        "  AND d.classid = 'pg_proc'::regclass"
        "  AND d.refclassid = 'pg_extension'::regclass"
        " JOIN pg_extension e ON e.oid = d.refobjid"
        " WHERE extname = 'extension_storage' AND tgenabled IN ('O', 'A')"
        f"  AND tgrelid = to_regclass('{table}') AND tgargs = '{arguments}\\000'"
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


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _report_keys() -> None:
    """Print what each key is still needed for.

    Fails where none encrypts, and where entries are left that none reads.
    """
    from .dao import key_status

    encrypts = False
    unreadable = 0
    for key in key_status():
        if key.role == "unknown":
            unreadable = key.entries
            continue
        encrypts = encrypts or key.role == "encrypts"
        source = key_source(key.source)
        if key.removable is None:
            verdict = (
                "it is not known whether it is needed: other transactions may use it"
            )
        elif not key.removable:
            verdict = "it is needed"
        elif source == "SECRET_KEY":
            verdict = "no entry needs it, but Superset does"
        elif is_of_the_server(key.source):
            verdict = f"it may be removed as far as {OF_THE_SERVER}"
        else:
            verdict = "it may be removed"
        click.echo(
            f"Key {key.ordinal}, fingerprint {key.fingerprint}, {source}:"
            f" {key.role}, {key.entries} entries; {verdict}"
        )
    if unreadable:
        fail(f"Entries that no key reads: {unreadable}.", UNREADABLE)
    if not encrypts:
        fail("No encryption key is configured.")


# What a key is still needed for is known of the entries of one database.
OF_THE_SERVER = (
    "this database goes: the file serves all databases of the server, so ask in each"
)


def is_of_the_server(source: str) -> bool:
    """Does a key come from the file that serves all databases of the server?"""
    return source.startswith("extension_storage.encryption_keys_file,")


def key_source(source: str) -> str:
    """Say where a key comes from in the words of who configures Superset."""
    from flask import current_app

    if line := re.fullmatch(r"extension_storage\.encryption_keys_file, (.*)", source):
        return f"{line[1]} of the server's key file"
    if current_app.extensions[EXTENSION].way == SERVER:
        return source
    if item := re.fullmatch(r"extension_storage\.encryption_keys, (.*)", source):
        return f"{item[1]} of EXTENSION_STORAGE_ENCRYPTION_KEYS"
    return source.removeprefix("extension_storage.").upper()


@click.command("rotate-extension-storage-keys")
@click.option("--extension-id", help="Only the entries of this extension.")
@click.option(
    "--batch-size",
    type=click.IntRange(1, 2**31 - 1),
    default=500,
    show_default=True,
    help="Rows in a transaction.",
)
@click.option("--dry-run", is_flag=True, help="Write nothing.")
@of_an_operator
def rotate(extension_id: str | None, batch_size: int, dry_run: bool) -> None:
    """Re-encrypt the entries of extensions with the first key.

    Can be stopped and run again. Exits with 1 if it could not run, 3 if it was
    interrupted or rows were left, 4 if there is an entry that no key can read.
    """
    from flask import current_app

    version = _check_schema(current_app.config["EXTENSION_STORAGE_SCHEMA"])
    if version is None:
        fail("The extension is not installed: run superset init-extension-storage.")
    _check_version(version)
    if extension_id is not None:
        _check_extension(extension_id)
    _check_keys()
    progress = Progress("Checking" if dry_run else "Re-encrypting")
    try:
        with _connection() as connection:
            result = _call_rotation(
                connection, extension_id, batch_size, dry_run, progress
            )
    finally:
        progress.finish()
    click.echo(
        f"{result.scanned} scanned, {result.rotated}"
        f" {'to re-encrypt' if dry_run else 're-encrypted'},"
        f" {result.current} already current, {result.failed} failed"
    )
    if current_app.config.get("PREVIOUS_SECRET_KEY"):
        signed = _sign_anew(extension_id, dry_run)
        click.echo(f"{signed} pickled values {'to sign' if dry_run else 'signed'} anew")
    _report_keys()
    if result.failed:
        raise click.exceptions.Exit(UNREADABLE)
    if progress.left:
        _interrupted("Rows were left.")


def _sign_anew(extension_id: str | None, dry_run: bool) -> int:
    """Sign pickled values with SECRET_KEY that PREVIOUS_SECRET_KEY has signed.

    Commits each. Gives their number; one that somebody changes meanwhile is
    signed anew by that.
    """
    from superset.extensions import db

    from .dao import PICKLED, ExtensionStorageDAO, qualified
    from .official.codecs import signed_anew

    signed = 0
    table = qualified("extension_storage")
    with _interruptible():
        found = db.session.connection().exec_driver_sql(
            "SELECT extension_id, user_fk, resource_type, resource_uuid, key,"
            f" changed_by_fk FROM {table} WHERE value_type = %(type)s"
            " AND (extension_id = %(extension_id)s OR %(extension_id)s IS NULL)"
            " ORDER BY id",
            {"type": PICKLED, "extension_id": extension_id},
        )
        for row in found.mappings().all():
            address = dict(row)
            actor_fk = address.pop("changed_by_fk")
            try:
                entry = ExtensionStorageDAO.get(**address)
                value = entry and signed_anew(entry.value, address)
                if value and not dry_run:
                    ExtensionStorageDAO.set(
                        **address,
                        value=value,
                        value_type=PICKLED,
                        category=entry.category,
                        description=entry.description,
                        actor_fk=actor_fk,
                        if_version=entry.version,
                    )
                signed += bool(value)
                db.session.commit()
            except (ValueUndecryptable, VersionMismatch):
                db.session.rollback()
    return signed


def _check_extension(extension_id: str) -> None:
    """Refuse an extension without entries: its name may be misspelt."""
    from .dao import call

    known = [row.extension_id for row in call("ext_storage_usage")]
    if extension_id not in known:
        raise click.BadParameter(
            f"no entries of {extension_id!r}; extensions with entries:"
            f" {', '.join(known) or 'none'}",
            param_hint="'--extension-id'",
        )


def _check_keys() -> None:
    """Refuse keys that Superset's own connections do not bring.

    Ends the transaction, which nobody needs while the rotation runs.
    """
    from flask import current_app
    from superset.extensions import db

    current_app.extensions[EXTENSION].hand_over(db.session.connection())
    db.session.rollback()


@contextmanager
def _connection() -> Iterator[Any]:
    """Return a connection to the server itself, with the keys for all that follows."""
    from flask import current_app
    from sqlalchemy import create_engine
    from sqlalchemy.exc import ArgumentError
    from sqlalchemy.pool import NullPool
    from superset.extensions import db

    keys = current_app.extensions[EXTENSION]
    uri = current_app.config["EXTENSION_STORAGE_DIRECT_URI"]
    engine = db.engine
    if uri is not None:
        try:
            engine = create_engine(uri, poolclass=NullPool)
        except (ArgumentError, ImportError, ValueError):  # which may show a password
            fail("EXTENSION_STORAGE_DIRECT_URI is not a URI that SQLAlchemy can use.")
        keys.attach(engine)
        # The last of its listeners: one of the operator's may connect otherwise.
        event.listen(engine, "do_connect", _connect_in_a_thread)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        keys.hand_over_for_session(connection)
        yield connection


def _call_rotation(
    connection: Any,
    extension_id: str | None,
    batch_size: int,
    dry_run: bool,
    progress: Progress,
) -> Any:
    """Call the procedure outside of a transaction, so that it commits batches."""
    from psycopg2.extras import wait_select

    from .dao import qualified

    statement = (
        f"CALL {qualified('ext_storage_rotate_keys')}("
        "extension_id => CAST(%(extension_id)s AS text),"
        " batch_size => CAST(%(batch_size)s AS integer),"
        " dry_run => CAST(%(dry_run)s AS boolean))"
    )
    driver = connection.connection.dbapi_connection
    is_sent = False

    def wait(sent: Any) -> None:
        nonlocal is_sent
        is_sent = True
        wait_select(sent)

    # psycopg2 drops an exception that comes while it hands over a notice.
    def stop(*_: Any) -> None:
        if not is_sent:
            raise KeyboardInterrupt
        driver.cancel()

    # psycopg2 gives notices as they come only where it waits in Python.
    driver.notices = progress
    handler = signal.signal(signal.SIGINT, stop)
    try:
        with _interruptible(), waiting_by(wait):
            return connection.exec_driver_sql(
                statement,
                {
                    "extension_id": extension_id,
                    "batch_size": batch_size,
                    "dry_run": dry_run,
                },
            ).one()
    finally:
        signal.signal(signal.SIGINT, handler)
        driver.notices = []


@contextmanager
def _interruptible() -> Iterator[None]:
    """Say that what was done stays, where a person or something passing ends the block."""
    try:
        yield
    except KeyboardInterrupt:
        _interrupted("Interrupted.")
    except (ExtensionStorageError, DBAPIError) as error:
        told = from_database(error) if isinstance(error, DBAPIError) else error
        if told.sqlstate is None or told.sqlstate.startswith(PASSING):
            _interrupted(in_a_line(told))
        raise


def _interrupted(why: str) -> NoReturn:
    fail(f"{why} What was done stays; run the command again to go on.", INTERRUPTED)


class Progress:
    """Shows the server's notices: a bar on a terminal, lines elsewhere."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._terminal = sys.stdout.isatty()
        self._bar: Any = None
        self._warnings: list[str] = []
        self.left = False  # rows that others have locked, or that cannot be written

    def append(self, notice: str) -> None:
        """Take a notice from psycopg2, which sees a list in this object."""
        # the server translates the severity before it
        message = printable(notice.partition(":  ")[2].split("\n")[0])
        if message.startswith("rotate_keys: ") and message.endswith(" were left"):
            self.left = True
            self._warnings.append(message.removeprefix("rotate_keys: "))
        elif not message.startswith("rotate_keys: "):
            self._warnings.append(message)
            if not self._terminal:
                self.finish()
        elif done := re.match(r"rotate_keys: (\d+) of (\d+) rows done", message):
            if self._terminal:
                self._show(int(done[1]), int(done[2]))
            else:
                click.echo(message)

    def _show(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = click.progressbar(length=total, label=self._label, width=0)
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
