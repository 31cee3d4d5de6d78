"""What a context says, line by line. It comes out of a sandbox: every field has a type and a bound, what fits none is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from corral.errors import InvalidState

LINE = 12 << 20
"""Bytes of the longest line; the driver stays well below."""

Id = Annotated[str, Meta(max_length=64)]
Text = Annotated[str, Meta(max_length=1 << 20)]
Size = Annotated[int, Meta(ge=0, le=1 << 53)]
Nanoseconds = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]
Kind = Annotated[str, Meta(min_length=1, max_length=256)]
Code = Annotated[int, Meta(ge=-256, le=1024)]
Status = Literal["ok", "error", "timeout", "interrupted", "restarted", "died", "refused"]


class Ready(msgspec.Struct, frozen=True, tag_field="t", tag="ready"):
    """The kernel answers."""


class Unable(msgspec.Struct, frozen=True, tag_field="t", tag="unable"):
    """There can be no kernel."""

    reason: Annotated[str, Meta(max_length=8192)]


class Died(msgspec.Struct, frozen=True, tag_field="t", tag="died"):
    """The kernel ended by itself; another one is being started."""


class Restarted(msgspec.Struct, frozen=True, tag_field="t", tag="restarted"):
    id: Id


class Begin(msgspec.Struct, frozen=True, tag_field="t", tag="begin"):
    id: Id


class Stdout(msgspec.Struct, frozen=True, tag_field="t", tag="stdout"):
    id: Id
    text: Text
    at: Nanoseconds


class Stderr(msgspec.Struct, frozen=True, tag_field="t", tag="stderr"):
    id: Id
    text: Text
    at: Nanoseconds


class Result(msgspec.Struct, frozen=True, tag_field="t", tag="result"):
    """Values are kept as the JSON they came as, which is known to be valid."""

    id: Id
    main: bool
    data: Annotated[dict[Kind, msgspec.Raw], Meta(max_length=64)]
    omitted: Annotated[dict[Kind, Size], Meta(max_length=64)]


class Error(msgspec.Struct, frozen=True, tag_field="t", tag="error"):
    id: Id
    name: Annotated[str, Meta(max_length=1024)]
    value: Text
    traceback: Annotated[list[Text], Meta(max_length=256)]


class Count(msgspec.Struct, frozen=True, tag_field="t", tag="count"):
    id: Id
    count: Size


class End(msgspec.Struct, frozen=True, tag_field="t", tag="end"):
    id: Id
    status: Status
    seconds: Seconds
    code: Code | None = None
    count: Size | None = None


Line = Ready | Unable | Died | Restarted | Begin | Stdout | Stderr | Result | Error | Count | End
_decoder = msgspec.json.Decoder(Line)


class Nonsense(InvalidState):
    """A line that no driver of ours writes: something inside has tampered with it."""


def decode(line: bytes) -> Line:
    """Raises `Nonsense`."""
    try:
        if b"\r" in line:
            # Kept raw in a result it would be the end of a line where events are read.
            raise ValueError("a bare carriage return")
        line.decode()  # raw values are not looked at by the decoder
        return _decoder.decode(line)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise Nonsense(f"the code context says what makes no sense: {str(error)[:200]}", hint="restart the context, or use another sandbox") from None


def value(raw: msgspec.Raw) -> Any:
    """The value of a part of a result."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Nonsense(f"a result makes no sense: {str(error)[:200]}") from None


class Splitter:
    """Lines out of pieces of bytes, with the offset behind each. It may begin in the middle of one, and go on after a gap."""

    def __init__(self, offset: int) -> None:
        self._offset = offset
        """Of the first byte of the rest."""
        self._rest = bytearray()
        self._searched = 0
        self._skipping = False

    def gap(self, missing: int) -> None:
        """Bytes are missing here: what is left of a line is not one, nor what comes up to its end."""
        self._offset += len(self._rest) + missing
        self._rest.clear()
        self._searched = 0
        self._skipping = True

    def feed(self, piece: bytes) -> list[tuple[int, bytes]]:
        """The lines that are complete. Raises `Nonsense` for one that is too long."""
        self._rest += piece
        found: list[tuple[int, bytes]] = []
        begin = 0
        while (end := self._rest.find(b"\n", max(begin, self._searched))) >= 0:
            if not self._skipping:
                found.append((self._offset + end + 1, bytes(self._rest[begin:end])))
            self._skipping = False
            begin = end + 1
        if self._skipping:
            begin = len(self._rest)
        del self._rest[:begin]
        self._offset += begin
        self._searched = len(self._rest)
        if self._searched > LINE:
            raise Nonsense("the code context says a line that does not end", hint="restart the context, or use another sandbox")
        return found
