"""A Superset to look at: `./dev superset` runs this and takes it away afterwards.

It becomes the web server, so that signals reach that and nothing is in between.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
from pathlib import Path

from conftest import README, Superset, sql
from sample import build_sample

USERS = {"admin": "Admin", "gamma": "Gamma"}

# What the web server runs: it tells where it is when it can answer.
GUNICORN = """
import os

bind = "127.0.0.1:0"
workers = 1
threads = 8
timeout = 0
graceful_timeout = 1
control_socket_disable = True
pidfile = "gunicorn.pid"
accesslog = None
errorlog = "gunicorn.log"


def post_worker_init(worker):
    host, port = worker.sockets[0].getsockname()
    print(f"Superset: http://{{host}}:{{port}}/")
    print(f"The store: http://{{host}}:{{port}}/extension-storage/")
    for line in {lines!r}:
        print(line)
    print("Ctrl-C ends and removes it.", flush=True)
"""

# Five extensions, one of them near its quota, and an entry whose key is lost.
ENTRIES = """
SELECT count(ext_storage.ext_storage_set('acme.' || name, 'entry-' || n,
    convert_to(repeat('x', size), 'UTF8'), is_encrypted => mod(n, every) = 0,
    user_fk => CASE WHEN mod(n, 3) = 0 THEN 1 END))
FROM (VALUES ('notes', 40, 2000, 3), ('snippets', 160, 5200, 2),
    ('themes', 12, 9000, 99), ('tokens', 25, 300, 1), ('pins', 90, 700, 99))
    AS extension (name, entries, size, every),
    generate_series(%s, entries, 2) AS n
"""
LOST = """
SELECT ext_storage.ext_storage_set('acme.tokens', 'lost', 'x', is_encrypted => true)
"""


def main() -> None:
    print("Setting up a Superset, which takes a minute ...", flush=True)
    sql("CREATE ROLE superset LOGIN", database="postgres")
    sql("CREATE DATABASE superset OWNER superset", database="postgres")
    sql("ALTER DATABASE superset SET extension_storage.quota_per_extension = 1000000")
    os.environ["EXTENSIONS_PATH"] = ""  # no other than the sample
    superset = Superset(Path(sys.argv[1]))
    secret_key = superset.config["SECRET_KEY"] = secrets.token_urlsafe(42)
    new, old, lost = (secrets.token_urlsafe(32) for _ in range(3))
    superset.config["EXTENSION_STORAGE_ENCRYPTION_KEYS"] = [new, old]
    superset.config["LOCAL_EXTENSIONS"] = [str(build_sample(superset.folder / "npm"))]
    for command in re.findall(r"^superset (.*)$", README.read_text(), re.MULTILINE)[:3]:
        superset.run(*command.split())
    write(LOST, [lost], secret_key)
    write(ENTRIES, [old], secret_key, 1)
    write(ENTRIES, [new, old], secret_key, 2)

    environment = {**superset.environment(), "PYTHONUNBUFFERED": "1"}
    lines = add_users(superset)
    (superset.folder / "gunicorn.conf.py").write_text(GUNICORN.format(lines=lines))
    os.chdir(superset.folder)
    os.execve(
        Path(sys.executable).with_name("gunicorn"),
        ["gunicorn", "superset.app:create_app()"],
        environment,
    )


def write(statement: str, keys: list[str], secret_key: str, *arguments: object) -> None:
    """Run a statement with these keys."""
    sql(
        "SET extension_storage.encryption_keys = %s;"
        f"SET extension_storage.secret_key = %s; {statement}",
        ", ".join(keys),
        secret_key,
        *arguments,
    )


def add_users(superset: Superset) -> list[str]:
    """Add the users; give the lines that tell their passwords."""
    os.environ["SUPERSET_CONFIG_PATH"] = str(superset.folder / "superset_config.py")
    logging.disable()
    from superset.app import create_app

    lines = []
    with create_app().app_context():
        from superset.extensions import db, security_manager

        for user, role in USERS.items():
            password = secrets.token_urlsafe(9)
            security_manager.add_user(
                user,
                role,
                "Example",
                f"{user}@example.org",
                security_manager.find_role(role),
                password,
            )
            lines.append(f"{role}: user {user}, password {password}")
        db.session.commit()
    return lines


if __name__ == "__main__":
    main()
