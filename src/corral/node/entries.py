"""Paths and entries between the public types and the wire: names of Linux are bytes, JSON is text."""

from __future__ import annotations

import base64
import math
import posixpath
from datetime import UTC, datetime

from corral.errors import InvalidArgument
from corral.node.start import encoded
from corral.schema.file import At, Entry, Kind, WatchEvent
from corral.wire import messages

PATH_MAX = 4095
_FIRST = datetime(1, 1, 1, tzinfo=UTC)
_LAST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def place(path: At | str | bytes, workdir: str | None) -> bytes:
    """The absolute path that is meant. Raises `InvalidArgument` when none can be."""
    if isinstance(path, At):
        path = _chosen(path)
    raw = encoded(path) if isinstance(path, str) else path
    if not raw:
        raise InvalidArgument("the path is empty", hint="name a file or directory")
    if b"\0" in raw:
        raise InvalidArgument("a path can't hold a NUL byte", hint="no file system allows it in names")
    if len(raw) > PATH_MAX:
        raise InvalidArgument(
            f"the path has {len(raw)} bytes, more than the {PATH_MAX} that Linux takes", hint="make it relative to the workdir, or use shorter names"
        )
    return posixpath.join(encoded(workdir or "/"), raw)


def _chosen(at: At) -> str | bytes:
    match at.path, at.path_b64:
        case str() as path, None:
            return path
        case None, str() as path:
            try:
                return base64.b64decode(path, validate=True)
            except ValueError as error:
                raise InvalidArgument(f"path_b64 is not base64: {error}") from None
        case _:
            raise InvalidArgument("give either path or path_b64")


def text(raw: bytes) -> str:
    """For people and JSON: bytes that are not UTF-8 become U+FFFD."""
    return raw.decode(errors="replace")


def entry(found: messages.Entry) -> Entry:
    """The public form of what the guest says of a file."""
    path = text(found.path)
    return Entry(
        name=text(found.name),
        path=path,
        path_b64=None if path.encode() == found.path else base64.b64encode(found.path).decode(),
        type=Kind(found.type),
        size=found.size,
        mode=found.mode,
        uid=found.uid,
        gid=found.gid,
        user=found.user,
        group=found.group,
        modified_at=moment(found.mtime),
        target=None if found.target is None else text(found.target),
    )


def moment(seconds: float) -> datetime:
    """A file's time, which the guest sets as it likes: beyond the calendar it is the calendar's end."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return _LAST if math.copysign(1, seconds) > 0 else _FIRST


def change(record: messages.Record) -> WatchEvent:
    return WatchEvent(type=record.type, path=text(record.path), to=None if record.to is None else text(record.to), directory=record.dir)
