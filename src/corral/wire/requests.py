"""What the node asks of the guest agent: one type for each `op` of docs/wire.md. `bytes` fields travel as base64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

VERSION = 1


class Request(msgspec.Struct, frozen=True, kw_only=True, tag_field="op"):
    """The parent of every request; the tag is its `op`."""


class Have(msgspec.Struct, frozen=True):
    """What the node has of one channel: stream number → offset."""

    channel: int
    received: dict[str, int]


class Hello(Request, frozen=True, kw_only=True, tag="hello"):
    epoch: int
    channels: Sequence[Have]
    version: int = VERSION


class Ping(Request, frozen=True, kw_only=True, tag="ping"):
    pass


class GuestFile(msgspec.Struct, frozen=True):
    """A file the agent writes when it is claimed."""

    path: bytes
    content: bytes
    mode: int


class Volume(msgspec.Struct, frozen=True):
    name: str
    target: bytes


class MountVolume(Request, frozen=True, kw_only=True, tag="volume"):
    """Have a volume that the host shows appear at `target`, or no longer."""

    name: str
    target: bytes
    attach: bool


class Claim(Request, frozen=True, kw_only=True, tag="claim"):
    hostname: str
    memory: int
    cpus: int
    pids: int
    tmp: int
    files: Sequence[GuestFile]
    volumes: Sequence[Volume]
    sudo: bool
    env: Sequence[bytes]


class Size(msgspec.Struct, frozen=True):
    rows: int
    cols: int


class Start(Request, frozen=True, kw_only=True, tag="start"):
    channel: int
    id: str
    argv: Sequence[bytes]
    env: Sequence[bytes]
    cwd: bytes | None
    user: str | None
    pty: Size | None
    stdin: bool


class Signal(Request, frozen=True, kw_only=True, tag="signal"):
    channel: int
    signal: int
    to: Literal["process", "group", "tree"]


class Resize(Request, frozen=True, kw_only=True, tag="resize"):
    channel: int
    rows: int
    cols: int


class Close(Request, frozen=True, kw_only=True, tag="close"):
    channel: int


class Stat(Request, frozen=True, kw_only=True, tag="stat"):
    path: bytes
    follow: bool


class List(Request, frozen=True, kw_only=True, tag="list"):
    path: bytes
    depth: int
    limit: int
    after: bytes | None


class Mkdir(Request, frozen=True, kw_only=True, tag="mkdir"):
    path: bytes
    mode: int
    parents: bool
    user: str | None


class Remove(Request, frozen=True, kw_only=True, tag="remove"):
    path: bytes
    recursive: bool
    missing_ok: bool


class Move(Request, frozen=True, kw_only=True, tag="move"):
    source: bytes = msgspec.field(name="from")
    target: bytes = msgspec.field(name="to")
    overwrite: bool


class Copy(Request, frozen=True, kw_only=True, tag="copy"):
    source: bytes = msgspec.field(name="from")
    target: bytes = msgspec.field(name="to")
    recursive: bool
    overwrite: bool


class Chmod(Request, frozen=True, kw_only=True, tag="chmod"):
    path: bytes
    mode: int
    recursive: bool


class Chown(Request, frozen=True, kw_only=True, tag="chown"):
    path: bytes
    user: str
    recursive: bool


class Symlink(Request, frozen=True, kw_only=True, tag="symlink"):
    target: bytes
    path: bytes


class Glob(Request, frozen=True, kw_only=True, tag="glob"):
    pattern: bytes
    limit: int
    after: bytes | None


class Read(Request, frozen=True, kw_only=True, tag="read", omit_defaults=True):
    channel: int
    path: bytes
    offset: int
    length: int | None
    window: int
    direct: int | None = None


class Write(Request, frozen=True, kw_only=True, tag="write", omit_defaults=True):
    # Omitted: an agent of an older Corral that still runs refuses words it does not know.
    channel: int
    path: bytes
    mode: int | None
    user: str | None
    parents: bool
    append: bool
    exclusive: bool
    in_place: bool = False
    window: int


class Direct(Request, frozen=True, kw_only=True, tag="direct"):
    """From `offset` on, the file of an upload is written by the host."""

    channel: int
    offset: int


class Landed(Request, frozen=True, kw_only=True, tag="landed"):
    channel: int
    size: int


class TarOut(Request, frozen=True, kw_only=True, tag="tar_out"):
    channel: int
    path: bytes
    window: int


class TarIn(Request, frozen=True, kw_only=True, tag="tar_in"):
    channel: int
    path: bytes
    user: str | None
    parents: bool
    window: int


class Watch(Request, frozen=True, kw_only=True, tag="watch"):
    channel: int
    path: bytes
    recursive: bool
    window: int


class Dial(Request, frozen=True, kw_only=True, tag="dial"):
    channel: int
    host: str
    port: int
    window: int


class Listen(Request, frozen=True, kw_only=True, tag="listen"):
    channel: int
    name: str
    port: int


class Accept(Request, frozen=True, kw_only=True, tag="accept"):
    channel: int
    listener: int
    connection: int
    window: int


class Ports(Request, frozen=True, kw_only=True, tag="ports"):
    pass


class Processes(Request, frozen=True, kw_only=True, tag="processes"):
    pass


class Usage(Request, frozen=True, kw_only=True, tag="usage"):
    pass


class Quiesce(Request, frozen=True, kw_only=True, tag="quiesce"):
    on: bool


class Restored(Request, frozen=True, kw_only=True, tag="restored"):
    hostname: str
    files: Sequence[GuestFile]
    env: Sequence[bytes] | None
    fork: bool


class Obstacles(Request, frozen=True, kw_only=True, tag="obstacles"):
    files: bool


_encoder = msgspec.json.Encoder()


def encode(request: Request) -> bytes:
    """The JSON of a request."""
    return _encoder.encode(request)
