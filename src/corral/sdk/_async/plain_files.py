"""What the files of a sandbox and of a volume have in common: reading, listing, removing. And their bytes on the way, piece by piece."""

from __future__ import annotations

import asyncio
import io
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing
from typing import IO, Any, TypeVar, cast

from pydantic import BaseModel

from corral.errors import InvalidArgument
from corral.schema import file as schema
from corral.schema.file import Entry
from corral.sdk import faults
from corral.sdk._async.transport import Answer, Headers, Transport
from corral.sdk.flavor import ASYNC
from corral.sdk.place import Path, at
from corral.sdk.tree import PIECE

M = TypeVar("M", bound=BaseModel)
Progress = Callable[[int], object]
Content = str | bytes | IO[bytes] | IO[str] | Iterable[bytes] | AsyncIterable[bytes]


class PlainFiles:
    """Of what is at `place`, a path of the server's."""

    def __init__(self, transport: Transport, place: str) -> None:
        self._transport = transport
        self._path = place + "/files"

    async def read(self, path: Path, *, offset: int = 0, length: int | None = None) -> bytes:
        """A file's bytes, or `length` of them from `offset`."""
        return b"" if length == 0 else await (await self._open(path, offset, length)).read()

    async def read_text(self, path: Path, *, encoding: str = "utf-8", errors: str = "strict") -> str:
        """A file as text."""
        return (await self.read(path)).decode(encoding, errors)

    async def pieces(self, path: Path, *, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """A file's bytes piece by piece, for what does not fit in memory."""
        answer = await self._open(path, offset, length)
        async with aclosing(answer.pieces()) as pieces:
            async for piece in pieces:
                yield piece

    async def list(self, path: Path = ".", *, depth: int = 1) -> list[Entry]:
        """The entries of a directory, sorted by name; with `depth` those of directories below it too."""
        entries: list[Entry] = []
        cursor: dict[str, str] = {}
        while True:
            page = await self._ask("list", schema.ListFiles, schema.Entries, **at(path), depth=depth, **cursor)
            entries += page.entries
            if not page.more or not page.entries:
                return entries
            cursor = page.cursor

    async def stat(self, path: Path) -> Entry:
        """What is there; of a symbolic link the link itself."""
        return await self._ask("stat", schema.At, Entry, **at(path))

    async def exists(self, path: Path) -> bool:
        return (await self._ask("exists", schema.At, schema.Exists, **at(path))).exists

    async def remove(self, path: Path, *, recursive: bool = False, missing_ok: bool = False) -> None:
        """Remove a file, an empty directory, or with `recursive` a whole one."""
        await self._do("remove", faults.build(schema.Remove, **at(path), recursive=recursive, missing_ok=missing_ok), safe=missing_ok)

    async def _write(self, query: dict[str, Any], data: Content, *, safe: bool) -> Entry:
        if isinstance(data, str):
            data = data.encode()
        if isinstance(data, (bytes, bytearray, memoryview)):
            body = await self._transport.call("PUT", self._path, query=query, body=bytes(data), content_type="application/octet-stream", safe=safe)
        else:
            length = length_of(data)
            answer = await self._transport.stream("PUT", self._path, query=query, body=pieces_of(data, length), length=length)
            body = await answer.read()
        return faults.decode(Entry, body)

    async def _open(self, path: Path, offset: int, length: int | None) -> Answer:
        if offset < 0 or (length is not None and length < 0):
            raise InvalidArgument("offset and length can't be negative")
        headers: Headers = []
        if offset or length is not None:
            last = "" if length is None else str(offset + length - 1)
            headers = [(b"range", f"bytes={offset}-{last}".encode())]
        return await self._transport.stream("GET", self._path, query=at(path), headers=headers)

    async def _ask(self, word: str, request: type[BaseModel], answer: type[M], **fields: Any) -> M:
        body = faults.encode(faults.build(request, **{name: value for name, value in fields.items() if value is not None}))
        return faults.decode(answer, await self._transport.call("POST", f"{self._path}/{word}", body=body, safe=True))

    async def _do(self, word: str, request: BaseModel, *, safe: bool = False) -> None:
        await self._transport.call("POST", f"{self._path}/{word}", body=faults.encode(request), safe=safe)


async def counted(pieces: AsyncGenerator[bytes, None], on_bytes: Progress | None) -> AsyncGenerator[bytes, None]:
    async with aclosing(pieces):
        async for piece in pieces:
            if on_bytes is not None:
                on_bytes(len(piece))
            yield piece


def length_of(data: object) -> int | None:
    """Bytes left in a regular file; None when only reading tells."""
    if not isinstance(data, (io.FileIO, io.BufferedReader, io.BufferedRandom)):
        return None
    status = os.fstat(data.fileno())
    return max(0, status.st_size - data.tell()) if stat.S_ISREG(status.st_mode) else None


async def pieces_of(data: IO[bytes] | IO[str] | Iterable[bytes] | AsyncIterable[bytes], length: int | None = None) -> AsyncGenerator[bytes, None]:
    """`length` bounds a file that grows while it is read."""
    read: Callable[[int], str | bytes] | None = getattr(data, "read", None)
    if read is not None:
        while piece := await asyncio.to_thread(read, PIECE if length is None else min(PIECE, length)):
            raw = piece.encode() if isinstance(piece, str) else piece
            if length is not None:
                length -= len(raw)
            yield raw
        return
    if ASYNC and isinstance(data, AsyncIterable):
        async for piece in data:
            yield piece
        return
    for piece in cast("Iterable[bytes]", data):
        yield piece
