"""A gate before the server that cuts connections: after so many bytes, at a word, or when told."""

from __future__ import annotations

import asyncio
from typing import Self


class Cutter:
    """Passes TCP connections on to `port` of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.every: int | None = None
        """Bytes, both ways together, after which a connection is cut; new ones have to live as long as that again."""
        self.swallow: bytes | None = None
        """The next answer with this in it is swallowed, and its connection cut; once."""
        self.cuts = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Cut all that is open, as a network that goes away: what was under way is lost. From any thread."""
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        self.cuts += bool(self._open)
        for writer in tuple(self._open):
            writer.transport.abort()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        pair, passed = (writer, far_writer), [0]
        self._open.update(pair)
        for source, target, answers in ((reader, far_writer, False), (far_reader, writer, True)):
            task = asyncio.create_task(self._pass_on(source, target, pair, passed, answers=answers))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, pair: tuple[asyncio.StreamWriter, ...], passed: list[int], *, answers: bool
    ) -> None:
        try:
            while data := await source.read(16_384):
                if answers and self.swallow is not None and self.swallow in data:
                    self.swallow = None
                    self.cuts += 1
                    return
                passed[0] += len(data)
                if self.every is not None and passed[0] > self.every:
                    self.cuts += 1
                    return
                target.write(data)
                await target.drain()
        except OSError:
            pass  # the other direction, or a test, has cut it
        finally:
            for writer in pair:
                self._open.discard(writer)
                writer.transport.abort()
