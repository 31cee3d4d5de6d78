"""The parts of a multipart/form-data body as they come, so that an upload needs no memory and no copy on the server's disk."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from python_multipart.multipart import MultipartParser, parse_options_header

from corral.facades.e2b.refusal import Refused

_LARGEST_HEADER = 16 << 10


@dataclass(frozen=True)
class Part:
    """What a part says of itself. Its bytes are read from `Parts.content` before the next part is asked for."""

    name: str
    filename: str | None


class Parts:
    """An iterator over parts. Raises `Refused` for a body that is not one."""

    def __init__(self, content_type: str, pieces: AsyncIterator[bytes]) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise Refused(400, "the body is not multipart/form-data with a boundary")
        self._pieces = pieces
        self._found: deque[Part | bytes | None] = deque()
        """A part begins, bytes of it, it ends."""
        self._field = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._ended = False
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": lambda: self._found.append(None),
                "on_end": self._end,
            },
        )

    def __aiter__(self) -> Parts:
        return self

    async def __anext__(self) -> Part:
        while True:
            match await self._next():
                case Part() as part:
                    return part
                case None if self._ended and not self._found:
                    raise StopAsyncIteration
                case _:
                    pass  # what nobody read of the part before

    async def content(self) -> AsyncIterator[bytes]:
        """The bytes of the part that was given last."""
        while isinstance(piece := await self._next(), bytes):
            yield piece

    async def _next(self) -> Part | bytes | None:
        while not self._found:
            if self._ended:
                return None
            piece = await anext(self._pieces, b"")
            if not piece:
                raise Refused(400, "the multipart body ends before its last boundary")
            try:
                self._parser.write(piece)
            except ValueError as error:
                raise Refused(400, f"the body is not multipart/form-data: {error}") from None
        return self._found.popleft()

    def _begin(self) -> None:
        self._headers = {}
        self._field = self._value = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]
        self._bound()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._bound()

    def _bound(self) -> None:
        if len(self._field) + len(self._value) > _LARGEST_HEADER:
            raise ValueError("a header of a part is too long")

    def _header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        filename = options.get(b"filename")
        name = options.get(b"name", b"").decode(errors="replace")
        self._found.append(Part(name, None if filename is None else filename.decode(errors="surrogateescape")))

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._found.append(data[start:end])

    def _end(self) -> None:
        self._ended = True
