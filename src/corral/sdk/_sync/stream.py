# Generated from sdk/_async/stream.py by scripts/async_to_sync.py: edit that, not this.
"""Streams that survive their connection: server-sent events, taken up again at the last offset, without loss or duplicates."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

from corral.errors import BY_CODE
from corral.schema.error import ErrorBody
from corral.schema.process import Output, Process
from corral.sdk import faults
from corral.sdk._sync.transport import Answer, Headers, Query, Transport
from corral.sdk.output import Chunk, Seen
from corral.sdk.retry import Lost, delays
from corral.sdk.sse import MEDIA_TYPE, Event, Parser

ACCEPT: Headers = [(b"accept", MEDIA_TYPE.encode())]


def events(answer: Answer) -> Generator[Event, None]:
    """The events of one connection, to its end. Only the reader knows whether that was the stream's."""
    parser = Parser()
    with closing(answer.pieces()) as pieces:
        for piece in pieces:
            for event in parser.feed(piece):
                if event.name == "error":
                    raise faults.from_answer(_status(event.data), event.data)
                yield event


def follow(transport: Transport, path: str, query: Query, *, last_id: str = "") -> Generator[Event, None]:
    """The events of an endless stream; resumes after the last event's id."""
    waits = delays()
    while True:
        try:
            headers = [*ACCEPT, (b"last-event-id", last_id.encode())] if last_id else ACCEPT
            answer = transport.stream("GET", path, query=query, headers=headers)
            with closing(events(answer)) as parts:
                for event in parts:
                    last_id, waits = event.id, delays()
                    yield event
            raise _early()
        except Lost as error:
            transport.pause(waits, error, again=True)


def output(transport: Transport, path: str, seen: Seen, first: Generator[Event, None] | None = None, *, hold: bool = False) -> Generator[Chunk | Process, None]:
    """A process' output beyond `seen`, then the ended process. `path` is the process'; `first` a stream that is open already; `hold` ends the process with us."""
    waits = delays()
    ended: Process | None = None
    while ended is None:
        try:
            if first is None:
                first = events(
                    transport.stream("GET", path + "/output", query={**seen.query(), "follow": True, "kill_on_disconnect": hold or None}, headers=ACCEPT)
                )
            with closing(first) as parts:
                for event in parts:
                    match event.name:
                        case "output":
                            if chunk := seen.take_output(faults.decode(Output, event.data)):
                                waits = delays()
                                yield chunk
                        case "exit":  # the last one; reading on to the answer's end leaves the connection for the next request
                            ended = faults.decode(Process, event.data)
                        case _:  # a kind of event that this client does not know
                            pass
            if ended is None:
                raise _early()
        except Lost as error:
            if ended is None:
                seen.broken = True
                transport.pause(waits, error, again=True)
        first = None
    yield ended


def _early() -> Lost:
    return Lost("the server ended a stream early", hint="is it being restarted?")


def _status(body: bytes) -> int:
    """The HTTP status an error would have had, had the stream not begun."""
    try:
        return BY_CODE[faults.decode(ErrorBody, body).error.code].status
    except KeyError:
        return 500
