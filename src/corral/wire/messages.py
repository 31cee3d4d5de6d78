"""What the guest agent answers and reports. The agent is hostile: every field has a type and a bound, and unknown fields are skipped unread.

Decoding raises `ProtocolError`. The depth of what is kept is that of the types here; what is skipped may be no deeper than the decoder allows.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec
from msgspec import Meta

from corral.wire.frame import MAX_CHANNEL, MAX_OFFSET, ProtocolError

Offset = Annotated[int, Meta(ge=0, le=MAX_OFFSET)]
Channel = Annotated[int, Meta(ge=1, le=MAX_CHANNEL)]
Pid = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Uid = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]
Word = Annotated[str, Meta(max_length=256)]
Path = Annotated[bytes, Meta(max_length=4096)]

ENTRIES = 10_000
"""Most entries in one answer to `list`."""
PATHS = 100_000


class Problem(msgspec.Struct, frozen=True):
    """Why a request failed: an errno's name, `EPROTO` or `ENOUSER`."""

    code: Annotated[str, Meta(pattern="^[A-Z0-9]{1,32}$")]
    message: Annotated[str, Meta(max_length=65_536)] = ""
    path: Annotated[bytes, Meta(max_length=65_536)] | None = None


class _Verdict(msgspec.Struct, frozen=True):
    ok: bool
    error: Problem | None = None


class Done(msgspec.Struct, frozen=True):
    """An answer without content."""


class Listening(msgspec.Struct, frozen=True):
    """Where inside."""

    address: Annotated[str, Meta(max_length=64)]


class Started(msgspec.Struct, frozen=True):
    pid: Pid


class Entry(msgspec.Struct, frozen=True):
    """One file, as the guest shows it. `size` in bytes, `mtime` in seconds since 1970."""

    name: Annotated[bytes, Meta(max_length=1024)]
    path: Path
    type: Literal["file", "directory", "symlink", "fifo", "socket", "device"]
    size: Offset
    mode: Annotated[int, Meta(ge=0, le=0o7777)]
    uid: Uid
    gid: Uid
    user: Word | None
    group: Word | None
    mtime: float
    target: Path | None = None


class HasEntry(msgspec.Struct, frozen=True):
    entry: Entry


class Readable(msgspec.Struct, frozen=True):
    """What is to be read: on the channel, or by the host itself at `path` when there is one."""

    entry: Entry
    path: Path | None = None


class Place(msgspec.Struct, frozen=True):
    """Where the host finds a file below the sandbox's root, as the guest says."""

    path: Path


class Listing(msgspec.Struct, frozen=True):
    entries: Annotated[list[Entry], Meta(max_length=ENTRIES)]
    more: bool


class Matches(msgspec.Struct, frozen=True):
    paths: Annotated[list[Path], Meta(max_length=PATHS)]
    more: bool


class Hooks(msgspec.Struct, frozen=True):
    """What those hooks say that failed."""

    failed: Annotated[list[Annotated[str, Meta(max_length=4096)]], Meta(max_length=64)] = []


class Obstacle(msgspec.Struct, frozen=True):
    """Something that can't be saved: a connection to elsewhere, or a file that is open and deleted; and whose it is."""

    kind: Literal["connection", "deleted_file"]
    pid: Pid
    process: Word
    what: Annotated[bytes, Meta(max_length=4096)]


class Obstacles(msgspec.Struct, frozen=True):
    obstacles: Annotated[list[Obstacle], Meta(max_length=64)] = []


class Exit(msgspec.Struct, frozen=True, tag_field="event", tag="exit"):
    """A process ended: either `code` or `signal` is set. `stdout` and `stderr` are the offsets where its own output ends."""

    code: Annotated[int, Meta(ge=0, le=255)] | None
    signal: Annotated[int, Meta(ge=1, le=64)] | None
    stdout: Offset
    stderr: Offset
    seconds: Seconds
    core: bool = False
    cpu: Seconds = 0.0


class Closed(msgspec.Struct, frozen=True, tag_field="event", tag="closed"):
    """A channel that is no process came to its end."""

    error: Problem | None = None
    entry: Entry | None = None
    files: Offset = 0
    bytes: Offset = 0


class Port(msgspec.Struct, frozen=True, tag_field="event", tag="port"):
    port: Annotated[int, Meta(ge=1, le=65_535)]
    open: bool
    process: Word | None = None


class Activity(msgspec.Struct, frozen=True, tag_field="event", tag="activity"):
    processes: Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Incoming(msgspec.Struct, frozen=True, tag_field="event", tag="incoming"):
    """A connection to a name and port that are served outside waits to be accepted."""

    connection: Annotated[int, Meta(ge=1, le=2**32 - 1)]


Event = Exit | Closed | Port | Activity | Incoming


class Held(msgspec.Struct, frozen=True):
    """A channel the agent has, in its answer to `hello`."""

    channel: Channel
    kind: Annotated[str, Meta(max_length=32)]
    received: Annotated[dict[Literal["0", "1", "2"], Offset], Meta(max_length=3)] = {}
    taken: Offset = 0
    """Of stream 0: what it has taken from an earlier node, handed on or not. 0: it does not say (an earlier agent)."""
    id: Annotated[str, Meta(max_length=64)] | None = None
    pid: Pid | None = None
    ended: Exit | Closed | None = None


class Greeting(msgspec.Struct, frozen=True):
    """The answer to `hello`."""

    version: int
    agent: Word
    claimed: bool
    channels: Annotated[list[Held], Meta(max_length=8192)]


class Record(msgspec.Struct, frozen=True):
    """One change that a watch saw."""

    type: Literal["create", "write", "remove", "rename", "chmod", "overflow"]
    path: Path = b""
    to: Path | None = None
    dir: bool = False


class ListeningPort(msgspec.Struct, frozen=True):
    port: Annotated[int, Meta(ge=1, le=65_535)]
    address: Word
    pid: Pid | None = None
    process: Word | None = None


class ListeningPorts(msgspec.Struct, frozen=True):
    ports: Annotated[list[ListeningPort], Meta(max_length=65_536)]


class GuestProcess(msgspec.Struct, frozen=True):
    """One process as the guest shows it. `cpu` in seconds, `rss` in bytes."""

    pid: Pid
    ppid: Pid
    uid: Uid
    command: Annotated[bytes, Meta(max_length=131_072)]
    state: Word
    cpu: Seconds
    rss: Offset
    id: Annotated[str, Meta(max_length=64)] | None = None


class GuestProcesses(msgspec.Struct, frozen=True):
    processes: Annotated[list[GuestProcess], Meta(max_length=65_536)]


class DiskUsage(msgspec.Struct, frozen=True):
    """Of the root file system: bytes and files."""

    total: Offset
    used: Offset
    files: Offset
    files_used: Offset


class UsageNow(msgspec.Struct, frozen=True):
    processes: Offset
    threads: Offset
    memory: Offset
    disk: DiskUsage


T = TypeVar("T")

_decoders: dict[object, msgspec.json.Decoder[Any]] = {}


def _decode(payload: bytes | memoryview, kind: type[T]) -> T:
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"malformed message: {error}") from None


def verdict(payload: bytes | memoryview) -> Problem | None:
    """Whether a response says that the request failed, and why."""
    said = _decode(payload, _Verdict)
    if said.ok:
        return None
    if said.error is None:
        raise ProtocolError("a failed response without an error")
    return said.error


def answer(payload: bytes | memoryview, kind: type[T]) -> T:
    """The content of a response that did not fail."""
    return _decode(payload, kind)


def event(payload: bytes | memoryview) -> Event:
    """An event."""
    return cast("Event", _decode(payload, cast("type[Any]", Event)))


def record(line: bytes | memoryview) -> Record:
    """One line of a watch."""
    return _decode(line, Record)
