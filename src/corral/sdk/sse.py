"""Server-sent events, without I/O: bytes in, events out. https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from corral.errors import Unavailable

MEDIA_TYPE = "text/event-stream"
GREATEST = 16 * 1024 * 1024
"""Bytes of one event that are waited for before the stream is taken for garbage."""


@dataclass(frozen=True, slots=True)
class Event:
    name: str
    data: bytes
    id: str


class Parser:
    """Feed it pieces of a stream, cut anywhere; it gives the events that are complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = "message"
        self._data: list[bytes] = []
        self._id = ""

    def feed(self, piece: bytes) -> Iterator[Event]:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > GREATEST:
            raise Unavailable("the server sent an event that does not end")
        for line in lines:
            if event := self._line(line.removesuffix(b"\r")):
                yield event

    def _line(self, line: bytes) -> Event | None:
        if not line:
            name, data = self._name, self._data
            self._name, self._data = "message", []
            return Event(name, b"\n".join(data), self._id) if data else None
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match field:
            case b"data":
                self._data.append(value)
            case b"event":
                self._name = value.decode(errors="replace")
            case b"id":
                self._id = value.decode(errors="replace")
            case _:  # a comment (empty field), or a field this client does not know
                pass
        return None
