# Generated from sdk/_async/reader.py by scripts/async_to_sync.py: edit that, not this.
"""A process' output as its reader sees it: lines to iterate over, or pieces as they come. And its standard input to write to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar, cast

from corral.schema.process import Stream
from corral.sdk._sync.channel import Channel
from corral.sdk.text import complete

Data = TypeVar("Data", str, bytes)


class Reader(Generic[Data]):
    """One output stream: text (UTF-8, with U+FFFD for what is not), or bytes when the process was started with `text=False`."""

    def __init__(self, channel: Channel, stream: Stream, kind: type[Data]) -> None:
        self._channel = channel
        self._stream = stream
        self._kind = kind
        self._buffer = bytearray()
        self._ended = False

    def __iter__(self) -> Iterator[Data]:
        return self

    def __next__(self) -> Data:
        if line := self.readline():
            return line
        raise StopIteration

    def readline(self) -> Data:
        """The next line with its end; the last one may have none; empty at the end of the stream."""
        start = 0
        while (end := self._buffer.find(b"\n", start)) < 0:
            start = len(self._buffer)
            if not self._fill():
                return self._given(len(self._buffer))
        return self._given(end + 1)

    def read1(self) -> Data:
        """What has come since the last call, or else the next that comes; empty at the end. The one for prompts and terminals."""
        while not (ready := self._ready()):
            if not self._fill():
                return self._given(len(self._buffer))
        return self._given(ready)

    def read(self) -> Data:
        """Everything up to the end."""
        while self._fill():
            pass
        return self._given(len(self._buffer))

    def readlines(self) -> list[Data]:
        """All lines up to the end."""
        return [line for line in self]

    def _fill(self) -> bool:
        if not self._ended:
            piece = self._channel.take(self._stream)
            self._buffer += piece
            self._ended = not piece
        return not self._ended

    def _ready(self) -> int:
        return len(self._buffer) if self._kind is bytes else complete(self._buffer)

    def _given(self, length: int) -> Data:
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        return cast("Data", data if self._kind is bytes else data.decode(errors="replace"))


class Writer:
    """A process' standard input."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def write(self, data: str | bytes) -> int:
        """Send; returns without waiting for the process to read, unless 1 MiB is under way. Raises `InvalidState` when it has ended."""
        raw = data.encode() if isinstance(data, str) else bytes(data)
        self._channel.write(raw)
        return len(raw)

    def flush(self) -> None:
        """Wait until the server has all that was written."""
        self._channel.flush()

    def close(self) -> None:
        """The end of input, once all of it is with the server."""
        self._channel.close_stdin()
