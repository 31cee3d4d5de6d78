"""What follows after a server has switched to a websocket: bytes both ways, those to the sandbox without secrets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from corral.net.redact import Redactor
from corral.net.streams import MOST

LINGER = 2.0
"""Seconds for the server's last words once one side has ended."""

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def relay(
    near: Ends, far: Ends, *, early: tuple[bytes, bytes], redactor: Redactor | None, up: Callable[[int], bool], down: Callable[[int], bool]
) -> None:
    """Until one side ends. `early`: what has been read already, from the sandbox and from the server. `up` and `down` are told of bytes; False ends it."""

    def masked(data: bytes) -> bytes:
        return data if redactor is None else redactor.feed(data)

    async def one_way(
        data: bytes, source: asyncio.StreamReader, sink: asyncio.StreamWriter, count: Callable[[int], bool], change: Callable[[bytes], bytes]
    ) -> None:
        while True:
            sink.write(change(data))
            await sink.drain()
            if not (data := await source.read(MOST)) or not count(len(data)):
                return

    async def to_sandbox() -> None:
        await one_way(early[1], far[0], near[1], down, masked)
        near[1].write(redactor.end() if redactor else b"")

    def as_it_is(data: bytes) -> bytes:
        return data

    ways: list[Awaitable[None]] = [to_sandbox(), one_way(early[0], near[0], far[1], up, as_it_is)]
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(tasks[:1], timeout=LINGER)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
