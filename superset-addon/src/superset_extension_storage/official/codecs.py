"""Python values as bytes with a MIME type, and back."""

from __future__ import annotations

import hashlib
import json as standard_json
import pickle
from collections.abc import Mapping, Sequence, Sized
from decimal import Decimal
from itertools import zip_longest
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd
from flask import current_app
from itsdangerous import BadSignature, Signer
from superset.utils import json

from ..dao import PICKLED, Entry
from ..errors import ExtensionStorageError, InvalidArgument

JSON, BINARY, PICKLE = "json", "binary", "pickle"
MIME_TYPES = {
    JSON: "application/json",
    BINARY: "application/octet-stream",
    PICKLE: PICKLED,
}


class ValueUndecodable(ExtensionStorageError, ValueError):
    """The stored bytes are not what their type says, or must not be unpickled."""


def codec_of(entry: Entry) -> str:
    """Tell the codec by the type; what has a type of its own is binary."""
    if entry.value_type.partition(";")[0].strip().lower() == MIME_TYPES[JSON]:
        return JSON
    return PICKLE if entry.value_type == MIME_TYPES[PICKLE] else BINARY


def encode(codec: str, value: Any, address: Mapping[str, Any]) -> bytes:
    """Return the bytes of a value, which are never in the message of an error."""
    if not isinstance(codec, str) or codec not in MIME_TYPES:
        raise InvalidArgument(
            f"codec must be one of {', '.join(MIME_TYPES)}, not {ascii(codec)}", "22023"
        )
    if codec == BINARY:
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise InvalidArgument("value must be bytes for the codec binary", "22023")
        return bytes(value)
    try:
        if codec == JSON:
            _check_json(value)
            return json.dumps(value, default=_json_of).encode()
        pickled = pickle.dumps(value)
    except _Inexact as error:
        raise InvalidArgument(
            f"value has {error}, which JSON cannot represent", "22023"
        ) from None
    except Exception:
        raise InvalidArgument(
            f"value of type {type(value).__name__} cannot be encoded as {codec}",
            "22023",
        ) from None
    return _signer(address).sign(pickled)


def decode(entry: Entry, address: Mapping[str, Any], unpickle: bool) -> Any:
    """Return the value of an entry."""
    codec = codec_of(entry)
    name = f'value of key "{entry.key}" of extension "{address["extension_id"]}"'
    if codec == BINARY:
        return entry.value
    if codec == JSON:
        try:
            return json.loads(entry.value)
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise ValueUndecodable(f"{name} is not JSON") from None
        except RecursionError:
            raise ValueUndecodable(
                f"{name} is nested too deep for Python to read"
            ) from None
        except ValueError:  # of int()
            raise ValueUndecodable(
                f"{name} has a number with more digits than Python reads"
            ) from None
    if not unpickle:
        raise ValueUndecodable(
            f"{name} is pickled",
            hint="Ask for it with pickle=True, or name the extension in"
            " EXTENSION_STORAGE_UNPICKLE.",
        )
    try:
        pickled = _signer(address).unsign(entry.value)
    except BadSignature:
        raise ValueUndecodable(
            f"{name} was not pickled by this Superset for this entry"
        ) from None
    try:
        return pickle.loads(pickled)
    except Exception as error:
        raise ValueUndecodable(f"{name} cannot be unpickled") from error


class _Inexact(Exception):
    """What would come back from JSON as something else; says what it is."""


def _check_json(value: Any) -> None:
    """Refuse what the encoder would turn into something else without a word.

    Not what has one form in JSON: a tuple, a date, a key that is a number.
    """
    left, seen = [value], {}  # of what is seen, so that no id is used again
    while left:
        part = left.pop()
        if isinstance(part, float) and not isfinite(part):
            raise _Inexact("a number that is not finite")
        if isinstance(part, (set, frozenset)):
            raise _Inexact("a set")
        if isinstance(part, Decimal):
            raise _Inexact("a Decimal")
        if callable(getattr(part, "_asdict", None)) and not isinstance(part, type):
            columns = part._asdict()  # as the encoder does with a namedtuple or a row
            if isinstance(part, Sized) and len(part) != len(columns):
                raise _Inexact("two keys with the same text")
            part = columns
        if not isinstance(part, (dict, list, tuple)) or id(part) in seen:
            continue
        seen[id(part)] = part
        if isinstance(part, dict):
            left += (key for key in part if isinstance(key, (float, Decimal)))
            held, shown = list(dict.values(part)), list(part.values())
            if any(a is not b for a, b in zip_longest(held, shown)):
                raise _Inexact("a dict that holds more than its values() show")
            if len(set(map(_key_of, part))) < len(part):
                raise _Inexact("two keys with the same text")
        left += part.values() if isinstance(part, dict) else part


def _key_of(key: Any) -> Any:
    """Return the text that the encoder makes of a key, or what it refuses as it is."""
    if isinstance(key, bytes):
        return key.decode()
    if key is None or isinstance(key, (bool, int, float)):
        return standard_json.dumps(key)
    return key


def _json_of(value: Any) -> Any:
    """Convert as Superset does, which puts "[bytes]" for what is no text."""
    if isinstance(value, (bytes, memoryview)):
        raise TypeError
    if value is pd.NaT:
        raise _Inexact("a time that is NaT")
    if isinstance(value, np.ma.MaskedArray):
        raise _Inexact("an array with masked elements")
    if isinstance(value, np.ndarray) and value.dtype.kind in "mM":
        raise _Inexact("an array of times")
    converted = json.json_iso_dttm_ser(value)
    _check_json(converted)
    return converted


def signed_anew(signed: bytes, address: Mapping[str, Any]) -> bytes | None:
    """Sign with SECRET_KEY what PREVIOUS_SECRET_KEY has signed; None where it has not."""
    try:
        pickled = _signer(address, [current_app.config["PREVIOUS_SECRET_KEY"]]).unsign(
            signed
        )
    except BadSignature:
        return None
    return _signer(address).sign(pickled)


def _signer(address: Mapping[str, Any], keys: Sequence[Any] = ()) -> Signer:
    """Sign pickles for their address: who unpickles runs what they say.

    So no bytes that were written by another way, over HTTP or in SQL, and none
    of another entry are unpickled.
    """
    keys = keys or [
        current_app.config.get("PREVIOUS_SECRET_KEY"),
        current_app.secret_key,
    ]
    parts = sorted(part for part in address.items() if part[1] is not None)
    return Signer(
        [key for key in keys if key],
        salt=standard_json.dumps(["extension_storage", parts], default=str),
        key_derivation="hmac",
        digest_method=hashlib.sha256,
    )
