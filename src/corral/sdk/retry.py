"""When to try again, and how long to wait before it."""

from __future__ import annotations

import random
from collections.abc import Iterator

from corral.errors import Unavailable


class Unreached(Unavailable):
    """Nobody answered the connection, so nothing was sent."""


class Lost(Unavailable):
    """The connection broke after something may have been sent."""


def delays() -> Iterator[float]:
    """Seconds to wait between tries: about 15 in all, the time a server needs to be started again; spread, so that many clients don't come at once."""
    for seconds in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.2, 1.6, 2.0, 2.0, 2.0, 2.0, 2.0):
        yield seconds * random.uniform(0.75, 1.25)  # noqa: S311 - nothing secret
