"""The way from the clients to the server, on which connections are cut."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any, Self


class Gate:
    """Passes TCP connections on to `port` of this machine; cuts them as a network that goes away does: what is under way is lost."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.every: int | None = None
        """Bytes from the server after which a connection is cut, in the middle of what it was saying; None: never."""
        self.cuts = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for pair in tuple(self._open.items()):
            self._cut(*pair)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self, rng: Random, share: float) -> int:
        """Cut this share of what is open; returns how many that were."""
        pairs = [pair for pair in self._open.items() if rng.random() < share]
        for pair in pairs:
            self._cut(*pair)
        self.cuts += len(pairs)
        return len(pairs)

    def _cut(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self._open.pop(near, None)
        near.transport.abort()
        far.transport.abort()

    async def _accepted(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        try:
            far_reader, far = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            near.transport.abort()
            return
        self._open[near] = far
        for coroutine in (self._upward(reader, far), self._downward(far_reader, near)):
            task = asyncio.create_task(self._until_broken(coroutine, near, far))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _until_broken(self, passing: Coroutine[Any, Any, None], near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        try:
            await passing
        except OSError:
            pass  # the other direction, a cut, or a server that was killed
        finally:
            self._cut(near, far)

    async def _upward(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()

    async def _downward(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        passed = 0
        while data := await source.read(65_536):
            if self.every is not None and passed + len(data) > self.every:
                target.write(data[: max(0, self.every - passed)])
                await target.drain()
                self.cuts += 1
                return
            passed += len(data)
            target.write(data)
            await target.drain()
