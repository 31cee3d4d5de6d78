"""hostile: how soon the server answers while sandboxes do their worst."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

from corral import Client, CorralError
from corral.bench.figure import Figure, Floor, timed

_WORST = {
    "fork bomb": "b() { b | b & }; b",
    "allocation without end": "tail /dev/zero",
    "printer without end": "yes",
}
_PAUSE = 0.02
"""Seconds between two questions, so that they meet different moments."""


def hostile(client: Client, n: int, image: str) -> Figure:
    """GET /healthz while three sandboxes bomb, allocate and print; the floor is the same before. `sibling_p50`: `run` of /bin/true in a fourth."""
    floor = Floor("the same, idle", list(_answers(client, n)))
    with ExitStack() as stack:
        sibling = stack.enter_context(client.sandboxes.create(image))
        for command in _WORST.values():
            stack.enter_context(client.sandboxes.create(image, memory=256, pids=256)).exec("sh", "-c", command)
        samples = list(_answers(client, n))
        beside: list[float] = []
        failures = 0
        for _ in range(10):
            try:
                beside.append(timed(lambda: sibling.run(["/bin/true"]).check()))
            except CorralError:
                failures += 1
    return Figure("hostile", "ms", samples, failures, floor, {"image": image, "sibling_p50": sorted(beside)[len(beside) // 2] if beside else None})


def _answers(client: Client, n: int) -> Iterator[float]:
    """Milliseconds of each answer, on one connection."""
    where = urlsplit(client.connection.url)
    with closing(http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)) as line:

        def ask() -> None:
            line.request("GET", "/healthz")
            line.getresponse().read()

        ask()
        for _ in range(n):
            yield timed(ask)
            time.sleep(_PAUSE)
