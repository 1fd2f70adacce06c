"""Fernet tokens between this extension and Python's cryptography.

    interop.py make FILE     write messages and tokens for the server
    interop.py check FILE    read those that the server has written

The lines of a file are what COPY reads and writes: the name of the entry,
the message as bytea, the token, and the secret that made it or, for the
server's own, that must be enough to read it.
"""

import base64
import hashlib
import random
import sys

from cryptography.fernet import Fernet, MultiFernet

LENGTHS = [*range(101), 1000, 100_000, 16_777_215]


def fernet(secret):
    """The Fernet of a secret, as Superset derives it."""
    digest = hashlib.sha256(secret.encode()).digest()
    return Fernet(base64.urlsafe_b64encode(digest))


def make(path):
    """Tokens of a first key, of a second one, and rotated to the first."""
    multi = MultiFernet([fernet("new"), fernet("öld")])
    source = random.Random(1)
    with open(path, "w", encoding="utf-8") as out:
        for length in LENGTHS:
            message = source.randbytes(length)
            old = fernet("öld").encrypt(message)
            tokens = {"öld": old}
            if length != max(LENGTHS):
                tokens["new"] = multi.encrypt(message)
                tokens["rotated"] = multi.rotate(old)
            for kind, token in tokens.items():
                secret = "new" if kind == "rotated" else kind
                print(
                    f"{kind} {length}",
                    "\\\\x" + message.hex(),
                    token.decode(),
                    secret,
                    sep="\t",
                    file=out,
                )


def check(path):
    """Read each token with the one key, and with all."""
    multi = MultiFernet([fernet("other"), fernet("new"), fernet("öld")])
    count = 0
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            name, message, token, secret = line.rstrip("\n").split("\t")
            message = bytes.fromhex(message.removeprefix("\\\\x"))
            one = fernet(secret)
            for reader in (one, multi):
                if reader.decrypt(token) != message:
                    sys.exit(f"{name}: another message")
            if one.extract_timestamp(token) < 1_700_000_000:
                sys.exit(f"{name}: wrong time")
            count += 1
    print(count)


{"make": make, "check": check}[sys.argv[1]](sys.argv[2])
