"""One server for each home: who holds the lock, and where others find it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from corral.errors import SetupError
from corral.places import Places


@dataclass(frozen=True)
class Occupant:
    """A server that runs."""

    pid: int
    url: str | None
    """None while it is not yet listening."""


def path(places: Places) -> Path:
    """The lock and the pid file in one: `{"pid", "url"}` of whoever has it locked."""
    return places.home / "server.pid"


def occupant(places: Places) -> Occupant | None:
    """The server of this home, if one runs."""
    try:
        with path(places).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read(file.read())
            return None
    except FileNotFoundError:
        return None


class Pidfile:
    """The file, locked. `announce` writes where the server listens."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def announce(self, url: str | None) -> None:
        text = json.dumps({"pid": os.getpid(), "url": url}).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text, 0)


@contextmanager
def occupy(places: Places) -> Generator[Pidfile, None, None]:
    """Hold the home. Raises `SetupError` when another server does. The lock goes with the process, however that ends."""
    places.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path(places), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = _read(os.pread(descriptor, 4096, 0))
            who = "another server" if other is None else f"the server with pid {other.pid}" + (f" at {other.url}" if other.url else "")
            raise SetupError(f"{who} runs in {places.home}", hint="use it, end it with `corral down`, or set another CORRAL_HOME") from None
        pidfile = Pidfile(descriptor)
        pidfile.announce(None)
        yield pidfile
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _read(text: bytes) -> Occupant | None:
    try:
        found = json.loads(text)
        return Occupant(int(found["pid"]), found["url"])
    except (ValueError, KeyError, TypeError):
        return None  # it is being written
