"""What a node must know of a sandbox's processes after it was killed: one JSON line for each fact, appended, never changed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog

log = structlog.get_logger(__name__)


class Opened(msgspec.Struct, frozen=True, tag_field="fact", tag="opened"):
    """A node took the link. `epoch` grows; channels below `channels` may have been used."""

    epoch: int
    channels: int


class Asked(msgspec.Struct, frozen=True, tag_field="fact", tag="asked"):
    """A process is about to be started. `at` in seconds since 1970, `timeout` in seconds."""

    id: str
    channel: int
    argv: list[bytes]
    cwd: bytes | None
    user: str | None
    tag: str | None
    pty: bool
    stdin: bool
    at: float
    timeout: float | None


class TimedOut(msgspec.Struct, frozen=True, tag_field="fact", tag="timed_out"):
    """A process is about to be killed because its time is over."""

    id: str


class StdinEnded(msgspec.Struct, frozen=True, tag_field="fact", tag="stdin_ended"):
    """Standard input is about to be ended after `offset` bytes."""

    id: str
    offset: int


class Slept(msgspec.Struct, frozen=True, tag_field="fact", tag="slept"):
    """The sandbox was paused for so long while a process ran: its time stood still."""

    id: str
    seconds: float


class Exited(msgspec.Struct, frozen=True, tag_field="fact", tag="exited"):
    """A process ended. With `lost` the sandbox ended under it and there is no status."""

    id: str
    pid: int | None
    at: float
    code: int | None
    signal: int | None
    stdout: int
    stderr: int
    seconds: float | None
    stdin: int
    timed_out: bool
    lost: bool
    closed: bool
    """The agent has nothing more of it."""


class Closed(msgspec.Struct, frozen=True, tag_field="fact", tag="closed"):
    """What an ended process had started has let go of its output: the agent has nothing more of it."""

    id: str


class Forgotten(msgspec.Struct, frozen=True, tag_field="fact", tag="forgotten"):
    id: str


Fact = Opened | Asked | TimedOut | StdinEnded | Slept | Exited | Closed | Forgotten

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Fact] = msgspec.json.Decoder(Fact)


class Journal:
    """The file. It is opened for writing by the first fact and then kept open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self.size = 0
        """Bytes written so far."""

    def read(self) -> list[Fact]:
        """All facts, oldest first. A last line that was cut off is removed; a line that makes no sense is reported and skipped."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            log.warning("journal_cut_off", path=str(self._path), bytes=len(data) - whole)
            os.truncate(self._path, whole)
        self.size = whole
        facts: list[Fact] = []
        for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
            try:
                facts.append(_decoder.decode(line))
            except msgspec.DecodeError as error:
                log.error("journal_line_unreadable", path=str(self._path), line=number, error=str(error))
        return facts

    def append(self, fact: Fact) -> None:
        """Write one fact: it survives the death of this process from here on."""
        if self._fd is None:
            self._fd = _open(self._path)
        self._write(self._fd, _encoder.encode(fact) + b"\n")

    def _write(self, fd: int, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(fd, view) :]
        except OSError:
            os.ftruncate(fd, self.size)  # half a line would spoil the next one
            raise
        self.size += len(data)

    def start(self, facts: Iterable[Fact]) -> None:
        """Begin one with these facts, where there is none."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.rewrite(facts)

    def rewrite(self, facts: Iterable[Fact]) -> None:
        """Replace everything by these facts, in one step."""
        data = b"".join(_encoder.encode(fact) + b"\n" for fact in facts)
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(data)
        fresh.rename(self._path)
        self.close()
        self.size = len(data)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, flags, 0o600)
