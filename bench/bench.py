#!/usr/bin/python3
"""Compares extension_storage with what one would use instead of it.

All peers run on one server and the same data, in interleaved rounds.  Run it
through ./dev bench, which starts the server.  The peers:

raw    the same rows by plain prepared SQL
orm    Superset's first way, bench/orm.py
pgp    pgp_sym_encrypt_bytea and pgp_sym_decrypt_bytea
limit  AES-128-CBC and HMAC-SHA-256 by openssl speed
"""

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import psycopg2
import sqlalchemy as sa
from sqlalchemy.orm import Session

import chart
import orm

VALUE_LEN = 256
BATCH_SIZE = 500  # of a rotation and of the UPDATE that it is compared with
SECRETS = ("first secret of the benchmark", "second secret of the benchmark")
PASSPHRASE = "passphrase of the benchmark"

SETTINGS = [
    "server_version",
    "shared_buffers",
    "work_mem",
    "max_wal_size",
    "checkpoint_timeout",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "autovacuum",
    "jit",
    "default_toast_compression",
    "wal_init_zero",
]


@dataclass
class Sizes:
    """How much is measured."""

    rounds: int = 7
    pgbench: tuple = ("-T", "3")  # how long one run of it takes
    pgbench_rounds: int = 11  # one-second rounds spread by a quarter on two cores
    entries: int = 10_000
    values: int = 10_000  # encrypted in one statement
    calls: int = 300  # through SQLAlchemy
    scope: int = 3_000  # entries in the list
    rotated: int = 100_000
    tail: tuple = ("-T", "2")
    large: int = 16 * 1024 * 1024 - 1
    gets: int = 1_000
    growth: tuple = (1_000, 10_000, 100_000, 1_000_000)
    growth_run: tuple = ("-T", "1")
    batch: int = 100  # keys in a call
    batches: int = 20  # calls in a round


QUICK = Sizes(
    rounds=2,
    pgbench=("-t", "50"),
    pgbench_rounds=2,
    entries=200,
    values=20,
    calls=10,
    scope=100,
    rotated=300,
    tail=("-t", "300"),
    large=1024 * 1024,
    gets=100,
    growth=(100, 1_000),
    growth_run=("-t", "50"),
    batches=2,
)


# What each row is to reach: a ratio of speeds at least or, of times and sizes
# (those in LOWER), at most.
GOALS = {
    ("1", "1 client"): 0.95,
    ("1", "4 clients"): 0.92,
    ("2", "existing keys"): 1.0,
    ("2", "new keys"): 0.92,
    ("3", "1 client"): 0.82,
    ("3", "4 clients"): 0.82,
    ("4", "existing keys"): 0.88,
    ("4", "new keys"): 0.88,
    ("5", "encrypt"): 35,
    ("5", "decrypt"): 60,
    ("5b", None): 2,
    ("6", "get"): 2,
    ("6", "set"): 2.5,
    ("6b", None): 3,
    ("7", None): 90,
    ("8", None): 1.3,
    ("9", None): 15,
    ("10", None): 0.55,
    ("11", None): 1.1,
    ("12", "encrypt"): 0.75,
    ("12", "decrypt"): 0.58,
    ("13", None): 3,
    ("14", None): 10,
    ("15", "gets"): 15,
    ("15", "plain"): 0.6,
    ("15", "encrypted"): 0.4,
    ("16", None): 0.6,
    ("17", None): 4,
    ("18", None): 1.3,
    ("19", None): 8,
}
LOWER = {"8", "11", "13", "18"}


@dataclass
class Row:
    """One line of the result: ratios, and what they are made of.

    The ratio is one of speeds, at least as high as the goal, or, where lower
    is true, one of times or sizes, at most as high.
    """

    number: str
    name: str
    against: str
    case: str | None  # which goal of the number
    unit: str
    ours: list
    peer: list
    goal: float = 0
    lower: bool = False
    ratios: list = field(default_factory=list)

    def __post_init__(self):
        self.goal = GOALS[self.number, self.case]
        self.lower = self.number in LOWER
        inverse = not self.lower and self.unit in ("ms", "s")
        for ours, peer in zip(self.ours, self.peer, strict=True):
            self.ratios.append(peer / ours if inverse else ours / peer)

    def median(self):
        return statistics.median(self.ratios)

    def reached(self):
        """Is the goal met, by the digits that are shown?"""
        shown = float(chart.number_text(self.median()).replace(",", ""))
        return shown <= self.goal if self.lower else shown >= self.goal


class Bench:
    def __init__(self, sizes, folder):
        self.sizes = sizes
        self.folder = folder
        self.rows = []
        self.growth = {}

    # -- the server ---------------------------------------------------------

    def connect(self, secrets=SECRETS, database=None):
        """A connection that commits each statement."""
        conn = psycopg2.connect(
            dbname=database or os.environ["PGDATABASE"], options=key_option(secrets)
        )
        conn.autocommit = True
        return conn

    def session(self):
        """An SQLAlchemy session over psycopg2."""
        engine = sa.create_engine(
            "postgresql+psycopg2://", creator=self._plain_connection
        )
        return Session(engine)

    def _plain_connection(self):
        conn = self.connect()
        conn.autocommit = False
        return conn

    def sql(self, statement, parameters=None, **options):
        """Runs one statement on a connection of its own."""
        conn = self.connect(**options)
        with conn.cursor() as cursor:
            cursor.execute(statement, parameters)
            rows = cursor.fetchall() if cursor.description else None
        conn.close()
        return rows

    def fill(self, extension_id, entries, is_encrypted, **options):
        """Makes entries with the keys 1, 2, ... and random values."""
        self.sql(
            f"""
            SET synchronous_commit = off;
            INSERT INTO extension_storage
                (extension_id, key, value, is_encrypted, value_size)
            SELECT %(extension)s, i::text,
                CASE WHEN %(encrypted)s
                THEN convert_to(fernet_encrypt(v, fernet_derive_key(%(secret)s)), 'UTF8')
                ELSE v END, %(encrypted)s, {VALUE_LEN}
            FROM (SELECT i, gen_random_bytes({VALUE_LEN}) AS v
                FROM generate_series(1, %(entries)s) i) AS made
            """,
            {
                "extension": extension_id,
                "encrypted": is_encrypted,
                "secret": SECRETS[0],
                "entries": entries,
            },
            **options,
        )
        self.sql("VACUUM ANALYZE extension_storage", **options)

    def clear(self):
        """Empties the table."""
        self.sql("TRUNCATE extension_storage")

    def pgbench(self, script, clients=1, length=None, database=None, log=None):
        """Runs a script and returns transactions a second."""
        path = self.folder / "script.sql"
        path.write_text(script)
        environment = dict(
            os.environ,
            PGOPTIONS=key_option(SECRETS),
        )
        command = ["pgbench", "-n", "-M", "prepared", "-f", str(path)]
        command += ["-c", str(clients), "-j", str(min(clients, 2))]
        command += length or self.sizes.pgbench
        if log:
            command += ["-l", f"--log-prefix={log}"]
        if database:
            command.append(database)
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        found = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
        if done.returncode != 0 or not found:
            raise RuntimeError(f"pgbench: {done.stdout}{done.stderr}")
        return float(found[1])

    # -- measuring ----------------------------------------------------------

    def interleave(self, sides, rounds=None, warm_up=True):
        """Calls each side once a round, each second round in reverse.

        Returns what the calls returned, one list per side.
        """
        samples = {name: [] for name in sides}
        for number in range(-1 if warm_up else 0, rounds or self.sizes.rounds):
            order = list(sides)
            if number % 2:
                order.reverse()
            for name in order:
                result = sides[name]()
                if number >= 0:
                    samples[name].append(result)
        return samples

    def add(self, *args, **options):
        """Adds a row of the result and prints it."""
        row = Row(*args, **options)
        self.rows.append(row)
        print(row_text(row, self.sizes is not QUICK), flush=True)

    def timed(self, cursor, statement, parameters=None):
        """Runs a statement and returns its seconds."""
        started = time.perf_counter()
        cursor.execute(statement, parameters)
        return time.perf_counter() - started


def key_option(secrets):
    """The option of a connection that gives it its keys."""
    keys = ",".join(secrets).replace(" ", "\\ ")
    return f"-c extension_storage.encryption_keys={keys}"


def row_text(row, judge):
    unit = row.unit if row.unit.startswith("/") else " " + row.unit
    spread = (
        f"({chart.number_text(min(row.ratios))} - {chart.number_text(max(row.ratios))})"
    )
    return (
        f"{row.number:>3}  {row.name:<46} {row.against:<12}"
        f" {'<=' if row.lower else '>='} {row.goal:<4g}"
        f" {chart.number_text(row.median()):>6} {spread:<15}"
        f" {'MISSED' if judge and not row.reached() else '':<6}"
        f" {statistics.median(row.ours):>10,.4g}{unit}"
        f" against {statistics.median(row.peer):,.4g}{unit}"
    )


# -- the measures: what ./dev bench NAME names ------------------------------

RAW_GET = """\\set k random(1, {entries})
SELECT value FROM extension_storage WHERE extension_id = '{extension}'
AND user_fk IS NULL AND resource_type IS NULL AND resource_uuid IS NULL
AND key = :k;
"""
OUR_GET = """\\set k random(1, {entries})
SELECT ext_storage_get('{extension}', :k);
"""
PGP_GET = f"""\\set k random(1, {{entries}})
SELECT pgp_sym_decrypt_bytea(value, '{PASSPHRASE}') FROM extension_storage
WHERE extension_id = '{{extension}}'
AND user_fk IS NULL AND resource_type IS NULL AND resource_uuid IS NULL
AND key = :k;
"""
RAW_SET = """\\set k random(1, {entries})
\\set r random(1000000000000000, 9999999999999999)
INSERT INTO extension_storage AS e (extension_id, key, value, value_type,
is_encrypted, value_size) VALUES ('{extension}', :k, {value},
'application/json', false, {length})
ON CONFLICT (extension_id, user_fk, resource_type, resource_uuid, key)
DO UPDATE SET value = excluded.value, value_type = excluded.value_type,
category = excluded.category, description = excluded.description,
is_encrypted = excluded.is_encrypted, changed_on = excluded.changed_on,
changed_by_fk = excluded.changed_by_fk, value_size = excluded.value_size,
version = e.version + 1 RETURNING version;
"""
OUR_SET = """\\set k random(1, {entries})
\\set r random(1000000000000000, 9999999999999999)
SELECT (ext_storage_set('{extension}', :k, {value},
is_encrypted => {encrypted})).version;
"""
NEW_KEYS = 10**15  # random keys of that many are new


# Each write has another value, as is usual: WAL is shorter for what is the same.
NEW_VALUE = f"repeat(:r, {VALUE_LEN // 16})::bytea"


def measure_get(bench):
    """get through pgbench (rows 1, 3, 5b)"""
    bench.clear()
    entries = bench.sizes.entries
    for extension, encrypted in (("b.plain", False), ("b.secret", True)):
        bench.fill(extension, entries, encrypted)
    bench.sql(
        "INSERT INTO extension_storage (extension_id, key, value)"
        " SELECT 'b.pgp', key, pgp_sym_encrypt_bytea(value, %s)"
        " FROM extension_storage WHERE extension_id = 'b.plain'",
        (PASSPHRASE,),
    )
    bench.sql("VACUUM ANALYZE extension_storage")

    def side(script, extension, clients):
        text = script.format(entries=entries, extension=extension)
        return lambda: bench.pgbench(text, clients)

    for clients in (1, 4):
        sides = {
            "raw": side(RAW_GET, "b.plain", clients),
            "plain": side(OUR_GET, "b.plain", clients),
            "secret": side(OUR_GET, "b.secret", clients),
            "pgp": side(PGP_GET, "b.pgp", clients),
        }
        done = bench.interleave(sides, bench.sizes.pgbench_rounds)
        suffix = f"{clients} client" + ("s" if clients > 1 else "")
        for number, name, ours, peer, case in (
            ("1", "get, plain", "plain", "raw", suffix),
            ("3", "get, encrypted", "secret", "raw", suffix),
            ("5b", "get, encrypted", "secret", "pgp", None),
        ):
            bench.add(
                number, f"{name}, {suffix}", peer, case, "/s", done[ours], done[peer]
            )


def measure_set(bench):
    """set through pgbench (rows 2, 4, 5b)"""

    def side(script, extension, entries, **texts):
        text = script.format(
            entries=entries,
            extension=extension,
            **{"value": NEW_VALUE, "length": VALUE_LEN, **texts},
        )

        def run():
            tps = bench.pgbench(text)
            if entries == NEW_KEYS:
                bench.sql(
                    "DELETE FROM extension_storage WHERE extension_id = %s",
                    (extension,),
                )
            bench.sql("VACUUM extension_storage")
            return tps

        return run

    pgp_value = f"pgp_sym_encrypt_bytea({NEW_VALUE}, '{PASSPHRASE}')"
    for kind, entries in (("existing", bench.sizes.entries), ("new", NEW_KEYS)):
        bench.clear()
        for extension, encrypted in (
            ("b.raw", False),
            ("b.plain", False),
            ("b.secret", True),
            ("b.pgp", False),
        ):
            bench.fill(extension, bench.sizes.entries, encrypted)
        if kind == "new":
            for name in ("raw", "plain", "secret", "pgp"):
                # the same table size, and nothing that is in the way
                bench.sql(
                    "UPDATE extension_storage SET extension_id = 'b.other.' || %s"
                    " WHERE extension_id = 'b.' || %s",
                    (name, name),
                )
            bench.sql("VACUUM ANALYZE extension_storage")
        sides = {
            "raw": side(RAW_SET, "b.raw", entries),
            "plain": side(OUR_SET, "b.plain", entries, encrypted="false"),
            "secret": side(OUR_SET, "b.secret", entries, encrypted="true"),
            "pgp": side(RAW_SET, "b.pgp", entries, value=pgp_value),
        }
        done = bench.interleave(sides, bench.sizes.pgbench_rounds)
        for number, name, ours, peer, case in (
            ("2", "set, plain", "plain", "raw", f"{kind} keys"),
            ("4", "set, encrypted", "secret", "raw", f"{kind} keys"),
            ("5b", "set, encrypted", "secret", "pgp", None),
        ):
            bench.add(
                number,
                f"{name}, {kind} keys",
                peer,
                case,
                "/s",
                done[ours],
                done[peer],
            )


def measure_values(bench):
    """many values encrypted and decrypted by one statement (row 5)"""
    conn = bench.connect()
    cursor = conn.cursor()
    cursor.execute(
        f"CREATE TEMP TABLE plain AS SELECT gen_random_bytes({VALUE_LEN}) AS v"
        " FROM generate_series(1, %s)",
        (bench.sizes.values,),
    )
    key = bench.sql("SELECT fernet_derive_key(%s)", (SECRETS[0],))[0][0]
    cursor.execute(
        "CREATE TEMP TABLE sealed AS SELECT fernet_encrypt(v, %s) AS token,"
        " pgp_sym_encrypt_bytea(v, %s) AS message FROM plain",
        (key, PASSPHRASE),
    )

    def side(call, secret):
        return lambda: 1000 * bench.timed(cursor, f"SELECT count({call})", (secret,))

    for name, ours, peer in (
        (
            "encrypt",
            "fernet_encrypt(v, %s)) FROM (TABLE plain) AS t(v",
            "pgp_sym_encrypt_bytea(v, %s)) FROM (TABLE plain) AS t(v",
        ),
        (
            "decrypt",
            "fernet_decrypt(token, %s)) FROM (TABLE sealed) AS t(token, message",
            "pgp_sym_decrypt_bytea(message, %s)) FROM (TABLE sealed) AS t(token, message",
        ),
    ):
        done = bench.interleave(
            {"ours": side(ours, key), "pgp": side(peer, PASSPHRASE)}
        )
        bench.add(
            "5",
            f"{name} {bench.sizes.values:,} values",
            "pgp",
            name,
            "ms",
            done["ours"],
            done["pgp"],
        )
    conn.close()


def measure_orm(bench):
    """get and set in an SQLAlchemy session (rows 6, 6b)"""
    bench.clear()
    entries = 1000
    for encrypted in (False, True):
        for peer in ("ours", "orm"):
            bench.fill(f"{peer}.{encrypted}", entries, encrypted)
    session = bench.session()
    store = orm.Store(session, SECRETS)

    def call(statement, *arguments):
        return session.connection().exec_driver_sql(statement, arguments).scalar()

    calls = {
        ("get", "ours"): lambda key, encrypted: bytes(
            call("SELECT ext_storage_get(%s, %s)", f"ours.{encrypted}", key)
        ),
        ("get", "orm"): lambda key, encrypted: store.get(f"orm.{encrypted}", key),
        ("set", "ours"): lambda key, encrypted: call(
            "SELECT (ext_storage_set(%s, %s, %s, is_encrypted => %s)).version",
            f"ours.{encrypted}",
            key,
            random.randbytes(VALUE_LEN),
            encrypted,
        ),
        ("set", "orm"): lambda key, encrypted: store.set(
            f"orm.{encrypted}", key, random.randbytes(VALUE_LEN), encrypted
        ),
    }

    def side(call, encrypted, commit_each):
        def run():
            keys = [str(random.randint(1, entries)) for _ in range(bench.sizes.calls)]
            started = time.perf_counter()
            for key in keys:
                call(key, encrypted)
                if commit_each:
                    session.commit()
            session.commit()
            return bench.sizes.calls / (time.perf_counter() - started)

        return run

    for commit_each in (True, False):
        for what in ("get", "set"):
            for encrypted in (False, True):
                done = bench.interleave(
                    {
                        peer: side(calls[what, peer], encrypted, commit_each)
                        for peer in ("ours", "orm")
                    }
                )
                kind = "encrypted" if encrypted else "plain"
                bench.add(
                    "6" if commit_each else "6b",
                    f"{what}, {kind}, "
                    + ("a commit each" if commit_each else "one transaction"),
                    "orm",
                    what if commit_each else None,
                    "/s",
                    done["ours"],
                    done["orm"],
                )
        bench.sql("VACUUM extension_storage")
    session.close()


def measure_list(bench):
    """the first page of a list (row 7)"""
    bench.clear()
    bench.fill("b.list", bench.sizes.scope, False)
    session = bench.session()
    store = orm.Store(session, SECRETS)
    page = "SELECT * FROM ext_storage_list(%s)"

    def ours():
        return session.connection().exec_driver_sql(page, ("b.list",)).all()

    def side(call, times):
        def run():
            started = time.perf_counter()
            for _ in range(times):
                if len(call()) != 25:
                    raise RuntimeError("the list has not 25 entries")
                session.commit()
            return 1000 * (time.perf_counter() - started) / times

        return run

    done = bench.interleave(
        {
            "ours": side(ours, 50),
            "orm": side(lambda: store.list("b.list"), 2),
        }
    )
    bench.add(
        "7",
        f"list, 25 of {bench.sizes.scope:,} entries",
        "orm",
        None,
        "ms",
        done["ours"],
        done["orm"],
    )
    session.close()


BATCHED_UPDATE = f"""
DO $$
DECLARE
    at bigint := (SELECT min(id) - 1 FROM extension_storage);
    last bigint := (SELECT max(id) FROM extension_storage);
BEGIN
    WHILE at < last LOOP
        UPDATE extension_storage SET value = value || ''
        WHERE id > at AND id <= at + {BATCH_SIZE} AND is_encrypted;
        COMMIT;
        at := at + {BATCH_SIZE};
    END LOOP;
END
$$
"""


class Rotations:
    """Rotates the table's rows, each time to the key that they do not have."""

    def __init__(self, bench, **options):
        self.bench = bench
        self.options = options
        self.secrets = SECRETS

    def turn(self):
        """Swaps the keys."""
        self.secrets = self.secrets[::-1]

    def rotate(self):
        """Returns rows a second."""
        self.turn()
        conn = self.bench.connect(self.secrets, **self.options)
        with conn.cursor() as cursor:
            started = time.perf_counter()
            cursor.execute(
                "CALL ext_storage_rotate_keys(batch_size => %s)", (BATCH_SIZE,)
            )
            seconds = time.perf_counter() - started
            _, rotated, current, failed = cursor.fetchone()
            if current or failed:
                raise RuntimeError(f"rotation: {current} current, {failed} failed")
            cursor.execute("VACUUM extension_storage")
        conn.close()
        return rotated / seconds


def measure_rotation(bench):
    """rotation (rows 9, 10)"""
    bench.clear()
    rows = bench.sizes.rotated
    bench.fill("b.secret", rows, True)
    rotations = Rotations(bench)

    def rotate_by_orm():
        rotations.turn()
        session = bench.session()
        store = orm.Store(session, rotations.secrets)
        started = time.perf_counter()
        if store.rotate("b.secret") != rows:
            raise RuntimeError("the ORM did not rotate all rows")
        seconds = time.perf_counter() - started
        session.close()
        bench.sql("VACUUM extension_storage")
        return rows / seconds

    def update():
        conn = bench.connect()
        seconds = bench.timed(conn.cursor(), BATCHED_UPDATE)
        conn.close()
        bench.sql("VACUUM extension_storage")
        return rows / seconds

    done = bench.interleave(
        {"ours": rotations.rotate, "update": update, "orm": rotate_by_orm},
        rounds=min(bench.sizes.rounds, 5),
        warm_up=False,
    )
    for number, peer in (("9", "orm"), ("10", "update")):
        bench.add(
            number,
            f"rotation of {rows:,} rows",
            peer,
            None,
            "/s",
            done["ours"],
            done[peer],
        )


def measure_tail(bench):
    """the slowest calls on other rows during a rotation (row 11)"""
    bench.clear()
    bench.fill("b.secret", bench.sizes.rotated, True)
    bench.fill("b.plain", bench.sizes.entries, False)
    rotations = Rotations(bench)

    def update():
        conn = bench.connect()
        conn.cursor().execute(BATCHED_UPDATE)
        conn.cursor().execute("VACUUM extension_storage")
        conn.close()

    def side(script, background):
        text = script.format(
            entries=bench.sizes.entries,
            extension="b.plain",
            value=NEW_VALUE,
            encrypted="false",
        )

        def run():
            stop = threading.Event()
            failures = []

            def work():
                try:
                    while not stop.is_set():
                        background()
                except Exception as error:  # shown by the caller
                    failures.append(error)

            for old in bench.folder.glob("tail.*"):
                old.unlink()
            thread = threading.Thread(target=work)
            thread.start()
            try:
                bench.pgbench(text, length=bench.sizes.tail, log=bench.folder / "tail")
            finally:
                stop.set()
                thread.join()
            if failures:
                raise failures[0]
            times = [
                int(line.split()[2])
                for log in bench.folder.glob("tail.*")
                for line in log.read_text().splitlines()
            ]
            return statistics.quantiles(times, n=100)[98] / 1000

        return run

    for what, script in (("get", OUR_GET), ("set", OUR_SET)):
        done = bench.interleave(
            {
                "ours": side(script, rotations.rotate),
                "update": side(script, update),
            },
            rounds=min(bench.sizes.rounds, 5),
            warm_up=False,
        )
        bench.add(
            "11",
            f"p99 of {what} during a rotation",
            "update",
            None,
            "ms",
            done["ours"],
            done["update"],
        )


def openssl_rate(*arguments):
    """Bytes a second, by openssl speed."""
    done = subprocess.run(
        ["openssl", "speed", "-mr", "-seconds", "1", "-bytes", "16384", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(re.search(r"^\+F.*:([0-9.]+)$", done.stdout, re.MULTILINE)[1])


LARGE_VALUE = """
SELECT substr(string_agg(gen_random_bytes(1024), ''), 1, %(len)s) AS v
FROM generate_series(0, %(len)s / 1024)
"""

# Times calls alone: the value is in a variable, the result is dropped.
TIME_LARGE = """
DO $$
DECLARE
    key text := fernet_generate_key();
    message bytea := (SELECT v FROM large) || '';
    token text := fernet_encrypt(message, key);
    began timestamptz;
    encrypting interval;
BEGIN
    IF fernet_decrypt(token, key) <> message THEN
        RAISE 'the token gives another message';
    END IF;
    began := clock_timestamp();
    IF fernet_encrypt(message, key) IS NULL THEN RAISE 'no token'; END IF;
    encrypting := clock_timestamp() - began;
    began := clock_timestamp();
    IF fernet_decrypt(token, key) IS NULL THEN RAISE 'no message'; END IF;
    PERFORM set_config('bench.times',
        format('{%s,%s}', extract(epoch FROM encrypting),
            extract(epoch FROM clock_timestamp() - began)), false);
END
$$
"""


def measure_large(bench):
    """one value of 16 MB (row 12)"""
    conn = bench.connect()
    cursor = conn.cursor()
    cursor.execute(
        "CREATE TEMP TABLE large AS" + LARGE_VALUE, {"len": bench.sizes.large}
    )

    def ours():
        cursor.execute(TIME_LARGE)
        cursor.execute("SELECT current_setting('bench.times')::float8[]")
        return [1000 * seconds for seconds in cursor.fetchone()[0]]

    def limit():
        mac = bench.sizes.large / openssl_rate("-hmac", "sha256")
        return [
            1000 * (mac + bench.sizes.large / openssl_rate(*direction))
            for direction in (
                ("-evp", "aes-128-cbc"),
                ("-decrypt", "-evp", "aes-128-cbc"),
            )
        ]

    done = bench.interleave({"ours": ours, "limit": limit})
    for name, pick in (
        ("encrypt", {p: [pair[0] for pair in done[p]] for p in done}),
        ("decrypt", {p: [pair[1] for pair in done[p]] for p in done}),
    ):
        bench.add(
            "12",
            f"{name} {bench.sizes.large >> 10:,} kB",
            "limit",
            name,
            "ms",
            pick["ours"],
            pick["limit"],
        )
    conn.close()


def memory_of(pid):
    """The lines of /proc/PID/status that are sizes, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return {
        name: 1024 * int(size)
        for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", status, re.MULTILINE)
    }


def measure_memory(bench):
    """memory for one value of 16 MB (row 13)"""
    bench.clear()
    bench.sql("DROP TABLE IF EXISTS large")
    bench.sql("CREATE TABLE large AS" + LARGE_VALUE, {"len": bench.sizes.large})
    key = bench.sql("SELECT fernet_generate_key()")[0][0]

    def side(statement, parameters):
        """Peak of a new backend's own memory, less what it had before.

        Shared memory and files that are mapped count for nobody.  They only
        grow while a statement runs, and these statements hold the most when
        they end or have read all.
        """

        def run():
            conn = bench.connect()
            cursor = conn.cursor()
            cursor.execute(
                "SELECT ext_storage_set('b.large', 'warm', 'x', is_encrypted => true),"
                " ext_storage_get('b.large', 'warm'), fernet_encrypt('x', %s)",
                (key,),
            )
            pid = conn.info.backend_pid
            before = memory_of(pid)
            cursor.execute(statement, parameters)
            after = memory_of(pid)
            conn.close()
            return (
                after["VmHWM"]
                - after["RssShmem"]
                - after["RssFile"]
                - before["RssAnon"]
            )

        return run

    sides = {
        "fernet_encrypt": side(
            "SELECT length(fernet_encrypt(v, %s)) FROM large", (key,)
        ),
        "fernet_encrypt and fernet_decrypt": side(
            "SELECT length(fernet_decrypt(fernet_encrypt(v, %s), %s)) FROM large",
            (key, key),
        ),
        "encrypted set": side(
            "SELECT ext_storage_set('b.large', 'k', v, is_encrypted => true) FROM large",
            (),
        ),
        "encrypted get": side("SELECT length(ext_storage_get('b.large', 'k'))", ()),
    }
    done = bench.interleave(sides, warm_up=True)
    for name, sizes in done.items():
        megabytes = [size / 2**20 for size in sizes]
        bench.add(
            "13",
            f"memory, {name}",
            "value size",
            None,
            "MB",
            megabytes,
            [bench.sizes.large / 2**20] * len(megabytes),
        )
    bench.sql("DROP TABLE large")


def measure_many(bench):
    """many gets by one statement (row 14)"""
    bench.clear()
    bench.fill("b.plain", bench.sizes.entries, False)
    conn = bench.connect()
    cursor = conn.cursor()

    def keys():
        return [
            str(random.randint(1, bench.sizes.entries)) for _ in range(bench.sizes.gets)
        ]

    def one():
        seconds = bench.timed(
            cursor,
            "SELECT ext_storage_get('b.plain', k) FROM unnest(%s) AS k",
            (keys(),),
        )
        return 1000 * seconds

    def each():
        wanted = keys()
        started = time.perf_counter()
        for key in wanted:
            cursor.execute("SELECT ext_storage_get('b.plain', %s)", (key,))
        return 1000 * (time.perf_counter() - started)

    done = bench.interleave({"one": one, "each": each})
    bench.add(
        "14",
        f"{bench.sizes.gets:,} gets by one statement",
        "statements",
        None,
        "ms",
        done["one"],
        done["each"],
    )
    conn.close()


def measure_batches(bench):
    """several keys in a call, lists with values (rows 15 to 17)"""
    bench.clear()
    bench.fill("b.plain", bench.sizes.entries, False)
    bench.fill("b.secret", bench.sizes.entries, True)
    bench.sql(
        "INSERT INTO extension_storage (extension_id, key, value, value_size)"
        " SELECT 'b.list', 'k' || i, gen_random_bytes(1000), 1000"
        " FROM generate_series(1, 3000) i"
    )
    bench.sql("VACUUM ANALYZE extension_storage")
    conn = bench.connect()
    conn.autocommit = False
    cursor = conn.cursor()
    size = bench.sizes.batch
    columns = "key, uuid, value_type, category, description, is_encrypted, user_fk,"
    columns += " value_size, version, created_on, changed_on, value"

    def timed_calls(call, draw=tuple):
        """A side: so many calls, each in a transaction; milliseconds per call.

        What they are given is drawn before the clock starts.
        """

        def run():
            drawn = [draw() for _ in range(bench.sizes.batches)]
            started = time.perf_counter()
            for arguments in drawn:
                call(*arguments)
                conn.commit()
            return 1000 * (time.perf_counter() - started) / bench.sizes.batches

        return run

    def draw_keys():
        numbers = random.sample(range(1, bench.sizes.entries + 1), size)
        return ([str(number) for number in numbers],)

    def draw_entries():
        values = [psycopg2.Binary(random.randbytes(VALUE_LEN)) for _ in range(size)]
        return *draw_keys(), values

    def get_many(extension, keys):
        cursor.execute(
            "SELECT key, value FROM ext_storage_get_many(%s, %s)", (extension, keys)
        )
        assert len(cursor.fetchall()) == size

    def get_each(keys):
        for key in keys:
            cursor.execute("SELECT ext_storage_get('b.plain', %s)", (key,))
            cursor.fetchall()

    def raw_many(extension, keys):
        cursor.execute(
            "SELECT key, value FROM extension_storage WHERE extension_id = %s"
            " AND user_fk IS NULL AND resource_type IS NULL"
            " AND resource_uuid IS NULL AND key = ANY (%s)",
            (extension, keys),
        )
        assert len(cursor.fetchall()) == size

    for name, ours, peers in (
        (
            "plain",
            partial(get_many, "b.plain"),
            {"gets": get_each, "raw": partial(raw_many, "b.plain")},
        ),
        (
            "encrypted",
            partial(get_many, "b.secret"),
            {"raw": partial(raw_many, "b.secret")},
        ),
    ):
        done = bench.interleave(
            {
                peer: timed_calls(call, draw_keys)
                for peer, call in {"ours": ours, **peers}.items()
            }
        )
        for peer in peers:
            bench.add(
                "15",
                f"get_many of {size}, {name}",
                peer,
                "gets" if peer == "gets" else name,
                "ms",
                done["ours"],
                done[peer],
            )

    def list_values():
        cursor.execute("SELECT * FROM ext_storage_list_values('b.list')")
        assert len(cursor.fetchall()) == 25

    def raw_list():
        cursor.execute(
            f"SELECT {columns} FROM extension_storage WHERE extension_id = 'b.list'"
            " AND user_fk IS NULL AND resource_type IS NULL"
            " AND resource_uuid IS NULL ORDER BY extension_id, user_fk,"
            " resource_type, resource_uuid, key LIMIT 25"
        )
        assert len(cursor.fetchall()) == 25

    done = bench.interleave(
        {"ours": timed_calls(list_values), "raw": timed_calls(raw_list)}
    )
    bench.add(
        "16",
        "list_values, 25 of 3,000 with 1 kB",
        "raw",
        None,
        "ms",
        done["ours"],
        done["raw"],
    )

    def set_many(keys, values):
        cursor.execute(
            "SELECT * FROM ext_storage_set_many('b.plain', %s, %s)", (keys, values)
        )
        cursor.fetchall()

    def set_each(keys, values):
        for key, value in zip(keys, values, strict=True):
            cursor.execute("SELECT ext_storage_set('b.plain', %s, %s)", (key, value))
            cursor.fetchall()

    done = bench.interleave(
        {
            "ours": timed_calls(set_many, draw_entries),
            "sets": timed_calls(set_each, draw_entries),
        }
    )
    bench.add(
        "17",
        f"set_many of {size}",
        "sets",
        None,
        "ms",
        done["ours"],
        done["sets"],
    )
    conn.close()


def measure_wire(bench):
    """many sets in one request to Superset (row 19)"""
    done = json.loads(bench.wire.read_text())
    bench.add(
        "19",
        "POST of 25 sets",
        "25 PUTs",
        None,
        "ms",
        done["ours"],
        done["puts"],
    )


OUR_NEWEST = "SELECT * FROM ext_storage_list_newest('b.secret');\n"
OUR_LIST = "SELECT * FROM ext_storage_list('b.secret');\n"
OUR_LIST_AFTER = """\\set k random(1, {entries})
SELECT * FROM ext_storage_list('b.secret', after_key => :k);
"""


def measure_growth(bench):
    """cost at growing numbers of entries (rows 8, 18)"""
    done = {}
    for entries in bench.sizes.growth:
        database = f"bench_{entries}"
        bench.sql(f"DROP DATABASE IF EXISTS {database}")
        bench.sql(f"CREATE DATABASE {database}")
        bench.sql("CREATE EXTENSION extension_storage CASCADE", database=database)
        bench.fill("b.secret", entries, True, database=database)
    operations = {
        "get": OUR_GET,
        "set": OUR_SET,
        "list, page 0": OUR_LIST,
        "list, after_key": OUR_LIST_AFTER,
        "list, newest": OUR_NEWEST,
    }

    def side(script, entries):
        text = script.format(
            entries=entries,
            extension="b.secret",
            value=NEW_VALUE,
            encrypted="true",
        )
        return lambda: (
            1000
            / bench.pgbench(
                text, length=bench.sizes.growth_run, database=f"bench_{entries}"
            )
        )

    for name, script in operations.items():
        done[name] = bench.interleave(
            {entries: side(script, entries) for entries in bench.sizes.growth},
            rounds=min(bench.sizes.rounds, 5),
        )
    small, large = bench.sizes.growth[0], bench.sizes.growth[-1]
    for number, name in (
        ("8", "list, page 0"),
        ("8", "list, after_key"),
        ("18", "list, newest"),
    ):
        bench.add(
            number,
            f"{name}, {large:,} entries",
            f"{small:,}",
            None,
            "ms",
            done[name][large],
            done[name][small],
        )
    done["rotation, per row"] = {}
    for entries in bench.sizes.growth:
        rotate = Rotations(bench, database=f"bench_{entries}").rotate
        done["rotation, per row"][entries] = [
            1000 / rotate() for _ in range(3 if entries < 1_000_000 else 1)
        ]
    for name, samples in done.items():
        bench.growth[name] = samples
        texts = [
            f"{statistics.median(times) * 1000:,.4g} µs at {entries:,}"
            for entries, times in samples.items()
        ]
        print(f"     {name:<18} {', '.join(texts)}", flush=True)
    for entries in bench.sizes.growth:
        bench.sql(f"DROP DATABASE bench_{entries}")


MEASURES = {
    "get": measure_get,
    "set": measure_set,
    "values": measure_values,
    "orm": measure_orm,
    "list": measure_list,
    "rotation": measure_rotation,
    "tail": measure_tail,
    "large": measure_large,
    "memory": measure_memory,
    "many": measure_many,
    "batches": measure_batches,
    "growth": measure_growth,
    "wire": measure_wire,
}


def describe_machine(bench):
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    settings = bench.sql(
        "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY (%s)"
        " ORDER BY name",
        (SETTINGS,),
    )
    return {
        "processor": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "sqlalchemy": sa.__version__,
        "settings": dict(settings),
    }


def main():
    parser = argparse.ArgumentParser(
        description="measures: "
        + "; ".join(f"{name}: {m.__doc__}" for name, m in MEASURES.items()),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="measures to run")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--output", type=Path, help="folder for JSON and chart")
    parser.add_argument("--wire", type=Path, help="times of the measure wire")
    options = parser.parse_args()
    unknown = set(options.names) - set(MEASURES)
    if unknown:
        parser.error(f"no measure {', '.join(sorted(unknown))}")

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(QUICK if options.quick else Sizes(), Path(folder))
        bench.wire = options.wire
        machine = describe_machine(bench)
        print(f"{machine['processor']}, {machine['cores']} cores")
        print(", ".join(f"{n} = {v}" for n, v in machine["settings"].items()))
        print(
            f"\n{'row':>3}  {'measure':<46} {'against':<12} {'goal':<7}"
            f" {'ratio':>6} (least - most)"
        )
        # the quick run has no Superset; its tests have the same requests
        names = [n for n in MEASURES if n != "wire" or not options.quick]
        for name in options.names or names:
            MEASURES[name](bench)

    if options.quick:
        print("\nSo small a run tells nothing of speed.")
    else:
        reached = sum(row.reached() for row in bench.rows)
        print(f"\n{reached} of {len(bench.rows)} goals reached")
    if options.output:
        result = {
            "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "machine": machine,
            "sizes": asdict(bench.sizes),
            "rows": [{**asdict(row), "median": row.median()} for row in bench.rows],
            "growth": bench.growth,
        }
        text = json.dumps(result, indent=1, ensure_ascii=False)
        result = json.loads(text)
        (options.output / "results.json").write_text(text + "\n")
        (options.output / "results.svg").write_text(chart.draw(result))
        if not options.names:
            overview = chart.draw_overview(result)
            (options.output / "overview.svg").write_text(overview)


if __name__ == "__main__":
    sys.exit(main())
