"""Where a reader stands in a process' output, without I/O: what is new, what was seen before, what is missing."""

from __future__ import annotations

from base64 import b64decode
from collections import deque
from dataclasses import dataclass

from corral.schema.process import Output, Stream


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of one stream, new to the reader."""

    stream: Stream
    offset: int
    data: bytes


class Seen:
    """Offsets up to which each stream has been taken, and how many bytes below them never came."""

    def __init__(self, stdout: int = 0, stderr: int = 0) -> None:
        self.at = {Stream.STDOUT: stdout, Stream.STDERR: stderr}
        self.dropped = 0
        self.broken = False
        """Whether the connection broke on the way."""

    def query(self) -> dict[str, int]:
        return {"stdout": self.at[Stream.STDOUT], "stderr": self.at[Stream.STDERR]}

    def take(self, stream: Stream, offset: int, data: bytes) -> Chunk | None:
        """The part of `data` that was not seen before; a gap before it is counted as dropped."""
        at = self.at[stream]
        if offset + len(data) <= at:
            return None
        if offset < at:
            offset, data = at, data[at - offset :]
        self.dropped += offset - at
        self.at[stream] = offset + len(data)
        return Chunk(stream, offset, data)

    def take_output(self, output: Output) -> Chunk | None:
        return self.take(output.stream, output.offset, b64decode(output.data))


class Unread:
    """Bytes of a stream that have come and that nobody has taken yet; at most `LIMIT`."""

    LIMIT = 4 * 1024 * 1024

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._size = 0

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def put(self, piece: bytes) -> bool:
        """Whether there was room for it."""
        if self._pieces and self._size + len(piece) > self.LIMIT:
            return False
        self._pieces.append(piece)
        self._size += len(piece)
        return True

    def take(self) -> bytes:
        piece = self._pieces.popleft()
        self._size -= len(piece)
        return piece
