"""Where the body of a message ends, found while its bytes pass. No I/O, nothing is kept."""

from __future__ import annotations

import re
from typing import Protocol

from corral.preview.head import BadHead, Request, Response

CHUNK_LINE = 1024
"""Bytes of the line before a chunk at most."""
TRAILERS = 16 << 10
"""Bytes of trailers at most."""
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\x20\x09\x21-\x7e\x80-\xff]*)?\Z")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\x20\x09\x21-\x7e\x80-\xff]*\Z")


class Framing(Protocol):
    """`take` tells how many of these bytes belong to the body; `done` is set when it has ended. Raises `BadHead` for what is malformed."""

    done: bool
    until_close: bool

    def take(self, data: bytes) -> int: ...


class Sized:
    """So many bytes."""

    until_close = False

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def take(self, data: bytes) -> int:
        taken = min(self._left, len(data))
        self._left -= taken
        self.done = self._left == 0
        return taken


class UntilClose:
    """Everything that comes until the connection ends."""

    until_close = True
    done = False

    def take(self, data: bytes) -> int:
        return len(data)


class Chunked:
    """Chunks with their sizes, then trailers (RFC 9112, 7.1)."""

    until_close = False

    def __init__(self) -> None:
        self.done = False
        self._line = bytearray()
        self._left = 0
        """Bytes of the present chunk and the CR LF behind it that are to come."""
        self._trailers: int | None = None
        """Bytes of trailers so far, once the last chunk was seen."""

    def take(self, data: bytes) -> int:
        at = 0
        while at < len(data) and not self.done:
            at = self._data(data, at) if self._left else self._control(data, at)
        return at

    def _data(self, data: bytes, at: int) -> int:
        if self._left > 2:
            step = min(self._left - 2, len(data) - at)
            self._left -= step
            return at + step
        if data[at] != (13, 10)[2 - self._left]:
            raise BadHead(400, "a chunk is longer than it says")
        self._left -= 1
        return at + 1

    def _control(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at)
        stop = len(data) if end < 0 else end + 1
        self._line += data[at:stop]
        if len(self._line) > (CHUNK_LINE if self._trailers is None else TRAILERS):
            raise BadHead(400, "the line before a chunk is too long")
        if end >= 0:
            self._take_line(bytes(self._line))
            self._line.clear()
        return stop

    def _take_line(self, line: bytes) -> None:
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise BadHead(400, "the line before a chunk does not end with CR LF")
        line = line[:-2]
        if self._trailers is not None:
            self._trailers += len(line) + 2
            if self._trailers > TRAILERS:
                raise BadHead(400, f"more than {TRAILERS >> 10} KiB of trailers")
            if line and _TRAILER.match(line) is None:
                raise BadHead(400, "a trailer is malformed")
            self.done = not line
            return
        found = _SIZE.match(line)
        if found is None:
            raise BadHead(400, "the size of a chunk is malformed")
        if size := int(found[1], 16):
            self._left = size + 2
        else:
            self._trailers = 0


def of_request(head: Request) -> Framing:
    return Chunked() if head.chunked else Sized(head.length or 0)


def of_response(head: Response, method: bytes) -> Framing:
    if head.bare(method):
        return Sized(0)
    if head.chunked:
        return Chunked()
    return UntilClose() if head.length is None else Sized(head.length)
