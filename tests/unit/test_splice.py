"""Bytes that wait between two sockets, because whoever they are for does not read."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator

import pytest

from corral.net.splice import HELD, LEAST, SIZE, Purse, relay

pytestmark = pytest.mark.anyio


@contextlib.contextmanager
def pair() -> Generator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        for each in (one, other):
            each.settimeout(0)
        yield one, other


async def test_what_waits_is_bounded_for_a_sandbox_and_whole_in_the_end() -> None:
    purse, many, offered = Purse(), 48, 2 << 20
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        lines = [(stack.enter_context(pair()), stack.enter_context(pair())) for _ in range(many)]
        relays = [asyncio.create_task(relay(near, far, up=lambda _: True, down=lambda _: True, purse=purse)) for (_, near), (far, _) in lines]
        writers = [asyncio.create_task(loop.sock_sendall(client, bytes(offered))) for (client, _), _ in lines]
        # Until every one of them can take no more: the kernel's buffers are full, and what is between them stands still.
        before = -1
        while purse.held != before:
            before = purse.held
            await asyncio.sleep(0.2)
        assert 0 < purse.held <= HELD + SIZE + many * LEAST
        got = 0
        for (client, _), (_, server) in lines:
            left = offered
            while left:
                left -= len(await loop.sock_recv(server, min(left, 1 << 20)))
            got += offered
            client.shutdown(socket.SHUT_WR)
            assert await loop.sock_recv(server, 1) == b""
            server.shutdown(socket.SHUT_WR)
        await asyncio.gather(*writers, *relays)
        assert got == many * offered
        assert purse.held == 0
