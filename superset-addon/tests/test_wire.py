"""One request with many sets against a request each.

`./dev bench` sets WIRE_RESULTS, the file for the times.  Without it there is one
short round, which says nothing of speed.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path

from conftest import Client

SETS = 25
LENGTH = 256  # of a value
ROUNDS, REPEATS = 11, 20


def put_each(client: Client, values: list[str]) -> None:
    for number, value in enumerate(values):
        assert client.put(f"user/key-{number}", value).ok


def post_all(client: Client, values: list[str]) -> None:
    operations = [
        {"op": "set", "key": f"key-{number}", "value": value}
        for number, value in enumerate(values)
    ]
    assert client.request("POST", "user/", json={"operations": operations}).ok


def test_post_against_puts(admin: Client) -> None:
    output = os.environ.get("WIRE_RESULTS")
    rounds, repeats = (ROUNDS, REPEATS) if output else (1, 1)
    times: dict[str, list[float]] = {"ours": [], "puts": []}
    put_each(admin, [""] * SETS)
    for _ in range(rounds):
        for side, send in (("ours", post_all), ("puts", put_each)):
            drawn = [
                [secrets.token_hex(LENGTH // 2) for _ in range(SETS)]
                for _ in range(repeats)
            ]
            started = time.perf_counter()
            for values in drawn:
                send(admin, values)
            times[side].append(1000 * (time.perf_counter() - started) / repeats)
            assert admin.get(f"user/key-{SETS - 1}").text == drawn[-1][-1]
    if output:
        Path(output).write_text(json.dumps(times))
