"""How the keys of superset_config.py get to the database server.

They must stand in no log that is on by default, pass a connection pooler or
fail with a word that helps, never be lost without an error, and cost less than
a round trip for each call.  What was tried:

The startup packet (`options=-c ...`) costs nothing and is logged nowhere by
PostgreSQL, but a pooler that shares connections refuses it.  PgBouncer then
writes the parameter, secrets included, to its log, and Superset has no
connection at all; told to ignore the parameter, it drops the keys and says
nothing.  10,000 bytes are all that fits.

A bound parameter, `set_config(..., $1, true)`, passes a pooler, but psycopg2
binds nothing: it writes values into the statement.  libpq's PQexecParams can be
called through ctypes with psycopg2's own connection; the parameter is then
logged by log_statement and log_min_duration_statement, and what psycopg2 may
change in a release would be a crash.

COPY into a view whose trigger puts the keys in force passes a pooler, as it is
for the running transaction.  What is copied is no statement: it is in no
log, whatever is logged, and in no pg_stat_activity.  The format is binary, of
which an error's context quotes nothing.  It takes two round trips, so it is done
only for calls that need a key, and not for each: a connection that is the
server's own, which is seen by the process id of the server, keeps the keys
from its first transaction on.  Behind a pooler each transaction hands them over.

Measured on PostgreSQL 15 and PgBouncer 1.18, a transaction that has asked for
something and then reads an encrypted value, in milliseconds, and with 1 ms
added to each round trip:

    startup packet, or COPY once for the session    0.22     5.2    4 round trips
    COPY in each transaction                        0.38     7.7    6
    PQexecParams in each transaction                0.36     6.4    5
    PgBouncer, COPY in each transaction             0.53     8.1    6
    PgBouncer, PQexecParams in each transaction     0.47     6.7    5

A file on the server costs nothing and passes everything, but somebody must put
it there.

So COPY is the default, and the others are there by EXTENSION_STORAGE_KEYS_BY.
Whichever it is, the fingerprints of the keys that the server has are compared
with those that are configured, once for each connection.
"""

from __future__ import annotations

import hmac
import os
import re
import struct
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from typing import TYPE_CHECKING, Any

from sqlalchemy.dialects import postgresql

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

COPY, STARTUP, SERVER = WAYS = ("copy", "startup", "server")

READ_ONLY = "25006"  # the SQLSTATE of a write in a read-only transaction

EXTENSION = "extension_storage"  # the name in app.extensions

# What the server takes: is_blank() of keylist.c, KEYLIST_MAX_* of keylist.h,
# and MAX_STARTUP_PACKET_LENGTH of its pqcomm.h with room for other parameters.
BLANKS = " \t\n\r"
MAX_SECRETS = 100
MAX_BYTES = 65536
MAX_STARTUP_BYTES = 8000

# The functions that neither encrypt nor decrypt.
KEYLESS = frozenset(
    f"ext_storage_{name}"
    for name in (
        "delete",
        "delete_many",
        "delete_prefix",
        "rename",
        "list",
        "list_newest",
        "count",
        "usage",
        "purge_extension",
        "purge_user",
        "purge_resource",
    )
)


def quoted(name: str) -> str:
    """Quote an identifier for a statement without parameters."""
    # with the driver's dialect it would be for one that has some
    return postgresql.dialect(paramstyle="named").identifier_preparer.quote(name)


def fingerprint(secret: str) -> str:
    """Return the name by which the server knows the key of a secret."""
    key = sha256(secret.encode()).digest()
    label = b"extension_storage key fingerprint"
    return hmac.new(key, label, sha256).hexdigest()[:8]


class KeysUnusable(ValueError):
    """A setting of superset_config.py cannot be used; the message names it."""


@dataclass(frozen=True)
class Secrets:
    """The secrets of superset_config.py."""

    encryption_keys: tuple[str, ...] = field(default=(), repr=False)
    secret_key: str | None = field(default=None, repr=False)
    previous_secret_key: str | None = field(default=None, repr=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], of_superset: bool) -> Secrets:
        """Read and check them, with or without Superset's own."""
        name = "EXTENSION_STORAGE_ENCRYPTION_KEYS"
        listed = config.get(name) or ()
        if not isinstance(listed, (list, tuple)):
            raise KeysUnusable(f"{name} must be a list of strings")
        if len(listed) > MAX_SECRETS:
            raise KeysUnusable(
                f"{name} has {len(listed)} items, {MAX_SECRETS} are allowed"
            )
        secrets = cls(
            tuple(
                _checked(f"{name}, item {number},", secret)
                for number, secret in enumerate(listed, 1)
            ),
            *(
                _checked(own, config[own], blanks=True)
                if of_superset and config.get(own)
                else None
                for own in ("SECRET_KEY", "PREVIOUS_SECRET_KEY")
            ),
        )
        size = len(secrets.key_list().encode())
        if size > MAX_BYTES:
            raise KeysUnusable(
                f"{name} has {size} bytes in all, {MAX_BYTES} are allowed"
            )
        return secrets

    def key_list(self) -> str:
        """Return the list as the server's setting takes it."""
        return ",".join(
            '"' + secret.replace('"', '""') + '"' for secret in self.encryption_keys
        )

    def settings(self) -> dict[str, str | None]:
        """Return the server's settings, without their prefix."""
        return {
            "encryption_keys": self.key_list() or None,
            "secret_key": self.secret_key,
            "previous_secret_key": self.previous_secret_key,
        }


def _checked(name: str, secret: object, blanks: bool = False) -> str:
    """Return a secret as text; SECRET_KEY may have blanks, as it does for Superset."""
    if isinstance(secret, bytes):
        try:
            secret = secret.decode()
        except UnicodeDecodeError:
            raise KeysUnusable(
                f"{name} is not UTF-8: use a secret that is, or"
                f" EXTENSION_STORAGE_KEYS_BY = {SERVER!r}"
            ) from None
    if not isinstance(secret, str):
        raise KeysUnusable(f"{name} must be a string")
    if not secret or "\0" in secret:
        raise KeysUnusable(f"{name} must not be empty or contain a NUL character")
    if not blanks and secret != secret.strip(BLANKS):
        raise KeysUnusable(f"{name} must not begin or end with blanks or line ends")
    try:
        size = len(secret.encode())
    except UnicodeEncodeError:
        raise KeysUnusable(f"{name} contains half a surrogate pair") from None
    if size > MAX_BYTES:
        raise KeysUnusable(f"{name} has {size} bytes, {MAX_BYTES} are allowed")
    return secret


@dataclass
class _Held:
    """What is known of the keys on a connection of the driver."""

    own: bool  # no pooler shares the server's connection
    checked: bool = False
    kept: bool = False  # handed over for good
    transaction: weakref.ref[Any] | None = None  # in which they were handed over
    savepoint: weakref.ref[Any] | None = None

    def in_transaction(self, connection: Connection) -> bool:
        """Were they handed over in the running transaction, and not rolled back?"""
        if self.transaction_ended(connection):
            return False
        if self.savepoint is None:
            return True
        savepoint = self.savepoint()
        return savepoint is not None and savepoint.is_active

    def transaction_ended(self, connection: Connection) -> bool:
        """Has the transaction ended in which they were handed over?"""
        running = connection.get_transaction()
        return (
            self.transaction is None
            or running is None
            or self.transaction() is not running
        )

    def note(self, connection: Connection) -> None:
        running = connection.get_transaction()
        savepoint = connection.get_nested_transaction()
        self.transaction = weakref.ref(running) if running is not None else None
        self.savepoint = weakref.ref(savepoint) if savepoint is not None else None


def is_psycopg2(dialect: Any) -> bool:
    """Is the driver psycopg2, or one with its interface, as psycopg2cffi?"""
    from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

    return isinstance(dialect, PGDialect_psycopg2)


@contextmanager
def handed_over(
    connection: Connection, function: str, arguments: Any
) -> Iterator[None]:
    """Have the server use the keys in a call that needs one."""
    from flask import current_app
    from sqlalchemy.exc import DBAPIError

    keys = current_app.extensions[EXTENSION]
    unencrypted = arguments.get("is_encrypted") is False
    if function not in KEYLESS and not unencrypted:
        keys.hand_over(connection)
    try:
        yield
    except DBAPIError as error:
        if error.orig.pgcode in ("ES001", "ES002"):  # not that key, or none
            keys.forget(connection)
        raise


class Keys:
    """Hands the keys over, in the way that is configured."""

    _INFO = "extension_storage_keys"

    def __init__(self, config: Mapping[str, Any]) -> None:
        way = config["EXTENSION_STORAGE_KEYS_BY"]
        if way not in WAYS:
            raise KeysUnusable(
                f"EXTENSION_STORAGE_KEYS_BY must be one of {', '.join(map(repr, WAYS))}"
            )
        if not config["EXTENSION_STORAGE_SEND_KEYS"]:
            way = SERVER
        self.way = way
        self._schema = quoted(config["EXTENSION_STORAGE_SCHEMA"])
        self.secrets = Secrets.from_config(config, of_superset=way != SERVER)
        # of the engines that new connections were tried of, by their dialect
        self._startup_problems: weakref.WeakKeyDictionary[Any, str | None] = (
            weakref.WeakKeyDictionary()
        )
        if way == STARTUP:
            size = len(self._startup_options().encode())
            if size > MAX_STARTUP_BYTES:
                raise KeysUnusable(
                    "EXTENSION_STORAGE_ENCRYPTION_KEYS, SECRET_KEY and"
                    f" PREVIOUS_SECRET_KEY have {size} bytes in all,"
                    f" {MAX_STARTUP_BYTES} are allowed with"
                    f" EXTENSION_STORAGE_KEYS_BY = {STARTUP!r}"
                )

    def attach(self, engine: Engine) -> None:
        """See to it that new connections bring the keys, where that is the way."""
        from sqlalchemy import event

        dialect = engine.dialect
        if (
            self.way != STARTUP
            or dialect.name != "postgresql"
            or not is_psycopg2(dialect)
        ):
            return
        options = self._startup_options()

        @event.listens_for(engine, "do_connect")
        def add_options(
            dialect: Any, record: Any, arguments: list[Any], parameters: dict[str, Any]
        ) -> None:
            if dialect not in self._startup_problems:
                problem = _probe(dialect, arguments, parameters)
                self._startup_problems[dialect] = problem
            if self._startup_problems[dialect] is None:
                parameters["options"] = _joined(parameters, options)

        engine.dispose()  # start-up has made connections without the keys

    def _startup_options(self) -> str:
        # The server splits at spaces and takes what follows a backslash as it is.
        return " ".join(
            f"-c extension_storage.{name}=" + re.sub(r"([\s\\])", r"\\\1", value)
            for name, value in self.secrets.settings().items()
            if value is not None
        )

    def hand_over(self, connection: Connection) -> None:
        """Have the server use the keys in the running transaction.

        Raises StorageUnavailable where it then has other keys than those that
        are configured.
        """
        held = connection.info.get(self._INFO)
        if held is None:
            own = self.way == COPY and _is_the_servers_own(connection)
            held = connection.info[self._INFO] = _Held(own)
        if held.kept or held.in_transaction(connection):
            return
        if self.way != COPY:
            self._check(connection)
            held.kept = True
            return
        if held.own and held.checked:
            # The transaction or savepoint in which they were handed over has
            # ended; how?  Only a commit of the transaction makes them stay.
            if self._difference(connection) is None:
                held.kept = held.transaction_ended(connection)
                held.note(connection)
                return
            held.checked = False
        self._copy(connection, for_session=held.own)
        held.note(connection)
        if not held.checked:
            self._check(connection)
            held.checked = True

    def forget(self, connection: Connection) -> None:
        """Hand them over anew at the next call: they are no longer there.

        Something has reset the session's settings, as DISCARD ALL does.
        """
        connection.info.pop(self._INFO, None)

    def hand_over_for_session(self, connection: Connection) -> None:
        """Have the server use the keys until the connection ends."""
        from .errors import StorageUnavailable

        if self.way == COPY:
            if not _is_the_servers_own(connection):
                raise StorageUnavailable(
                    "a connection pooler is between this command and the database"
                    " server, which must have the keys for more than a transaction",
                    hint="Set EXTENSION_STORAGE_DIRECT_URI to a URI of the server itself.",
                )
            self._copy(connection, for_session=True)
        self._check(connection)

    def _copy(self, connection: Connection, for_session: bool) -> None:
        from sqlalchemy.exc import DBAPIError

        from .errors import StorageUnavailable

        settings = self.secrets.settings()
        columns = ", ".join([*settings, "for_session"])
        statement = (
            f"COPY {self._schema}.ext_storage_secrets ({columns})"
            " FROM STDIN (FORMAT binary)"
        )
        row = [value and value.encode() for value in settings.values()]
        try:
            copy(connection, statement, _binary_copy([*row, bytes([for_session])]))
        except DBAPIError as error:
            sqlstate = error.orig.pgcode
            if sqlstate is not None and sqlstate.startswith("22"):
                raise StorageUnavailable(
                    "the database server cannot take the keys of superset_config.py:"
                    f" {error.orig.diag.message_primary}",
                    sqlstate,
                    hint="Use secrets that the encoding of the database can hold, or"
                    f" EXTENSION_STORAGE_KEYS_BY = {SERVER!r}.",
                ) from None
            if sqlstate != READ_ONLY:
                raise
            raise StorageUnavailable(
                "the keys cannot be handed over in a read-only transaction",
                sqlstate,
                hint=_READ_ONLY_HINT,
            ) from None

    def _check(self, connection: Connection) -> None:
        from .errors import StorageUnavailable

        difference = self._difference(connection)
        if difference is not None:
            raise StorageUnavailable(
                "the database server has other encryption keys than superset_config.py:"
                f" {difference}",
                hint=self._startup_problems.get(connection.dialect) or _HINTS[self.way],
            )

    def _difference(self, connection: Connection) -> str | None:
        """Say what the server lacks of the configured keys."""
        if self.secrets == Secrets():
            return None
        rows = connection.exec_driver_sql(
            "SELECT fingerprint, role"
            f" FROM {self._schema}.ext_storage_configured_keys() ORDER BY ordinal",
            execution_options={"no_parameters": True},
        ).all()
        found = [row.fingerprint for row in rows]
        listed = self.secrets.encryption_keys
        for number, secret in enumerate(listed, 1):
            if fingerprint(secret) not in found:
                return f"item {number} of EXTENSION_STORAGE_ENCRYPTION_KEYS is missing"
        if listed and found[0] != fingerprint(listed[0]):
            return "item 1 of EXTENSION_STORAGE_ENCRYPTION_KEYS does not encrypt"
        for name, secret in (
            ("SECRET_KEY", self.secrets.secret_key),
            ("PREVIOUS_SECRET_KEY", self.secrets.previous_secret_key),
        ):
            if secret is not None and fingerprint(secret) not in found:
                return f"{name} is missing"
        return None


_OTHER_WAYS = (
    f"Set EXTENSION_STORAGE_KEYS_BY = {COPY!r}, or {SERVER!r} with a key file on the"
    " server."
)

_HINTS = {
    COPY: "Something on the way to the server, or in the server, changed them.",
    STARTUP: (
        "The startup packet does not bring them: SQLALCHEMY_ENGINE_OPTIONS or a"
        f" listener makes the connections, or a pooler drops them. {_OTHER_WAYS}"
    ),
    SERVER: (
        "EXTENSION_STORAGE_KEYS_BY leaves the keys to the server's"
        " extension_storage.encryption_keys_file: correct the file, or remove"
        " EXTENSION_STORAGE_ENCRYPTION_KEYS."
    ),
}

_READ_ONLY_HINT = (
    "The server is a standby, or default_transaction_read_only is set. Writes need the"
    " primary server; encrypted values can be read here with"
    f" EXTENSION_STORAGE_KEYS_BY = {STARTUP!r} or {SERVER!r}."
)


def _is_the_servers_own(connection: Connection) -> bool:
    """Is the connection one to the server, not to a pooler that shares them?

    A pooler cannot tell its client the process id of a server that changes.
    """
    told = connection.connection.dbapi_connection.get_backend_pid()
    return (
        connection.exec_driver_sql("SELECT pg_catalog.pg_backend_pid()").scalar()
        == told
    )


def _binary_copy(row: list[bytes | None]) -> bytes:
    """Return a row in COPY's binary format."""
    fields = (
        struct.pack("!i", -1)
        if field is None
        else struct.pack("!i", len(field)) + field
        for field in row
    )
    header = b"PGCOPY\n\xff\r\n\0" + struct.pack("!iih", 0, 0, len(row))
    return header + b"".join(fields) + struct.pack("!h", -1)


@contextmanager
def waiting_by(wait: Callable[[Any], None] | None) -> Iterator[None]:
    """Have psycopg2 wait for servers in a function, None for its own way, in C."""
    from psycopg2.extensions import get_wait_callback, set_wait_callback

    before = get_wait_callback()
    set_wait_callback(wait)
    try:
        yield
    finally:
        set_wait_callback(before)


def copy(connection: Connection, statement: str, data: bytes) -> None:
    """Run COPY ... FROM STDIN; errors are those of SQLAlchemy."""
    from sqlalchemy.exc import DBAPIError

    dialect = connection.dialect
    driver = connection.connection.dbapi_connection
    try:
        # psycopg2 cannot wait in Python while it copies, so it waits in C: for a
        # moment, as the data is small.
        with waiting_by(None), driver.cursor() as cursor:
            cursor.copy_expert(statement, BytesIO(data))
    except dialect.dbapi.Error as error:
        lost = dialect.is_disconnect(error, driver, None)
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            statement,
            None,
            error,
            dialect.dbapi.Error,
            connection_invalidated=lost,
            dialect=dialect,
        ) from None


def _joined(parameters: Mapping[str, Any], options: str) -> str:
    """Put our options behind those that the connection would have had."""
    theirs = parameters.get("options") or os.environ.get("PGOPTIONS")
    return f"{theirs} {options}" if theirs else options


def _probe(
    dialect: Any, arguments: list[Any], parameters: dict[str, Any]
) -> str | None:
    """Try, with a setting that is no secret, whether a startup packet arrives.

    Gives what an operator should know if it does not.
    """
    options = _joined(parameters, "-c extension_storage_probe.arrives=yes")
    for again in (True, False):
        try:
            probe = dialect.connect(*arguments, **{**parameters, "options": options})
            break
        except dialect.dbapi.Error as error:
            # Each pooler has words of its own, and libpq gives no SQLSTATE: what
            # counts is that there is a connection without it, which raises if not.
            dialect.connect(*arguments, **parameters).close()
            if not again:  # nor was the server just busy
                reason = " ".join(str(error).split())
                return (
                    "A pooler refuses the startup packet that would bring them"
                    f" ({reason}). {_OTHER_WAYS}"
                )
    try:
        with probe.cursor() as cursor:
            cursor.execute(
                "SELECT pg_catalog.current_setting('extension_storage_probe.arrives', true)"
            )
            arrived = cursor.fetchone()[0] == "yes"
    finally:
        probe.close()
    if arrived:
        return None
    return f"A pooler drops the startup packet that would bring them. {_OTHER_WAYS}"
