"""What a preview process is told that comes when something is under way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from corral.places import Places
from corral.preview.access import Settings
from corral.preview.doors import DOORS
from corral.preview.keeper import Edge, Found, Keeper, Refused
from corral.preview.process import Process
from harness.preview_process import TOKEN, Agent, Client, settled


class Here(Places):
    """Without sockets in /run."""

    @property
    def run(self) -> Path:
        return self.home


class Knowing:
    """A server that has one sandbox."""

    def __init__(self) -> None:
        self.agent = Agent()

    async def find(self, sandbox: str, *, people: bool, wake: bool) -> Found | Refused:
        return Found("p", Settings(TOKEN), self.agent.lent.fileno())

    async def serve(self, sandbox: str, port: int, *, people: bool) -> bool | Refused:
        return False

    def opens(self, key: str, project: str) -> bool:
        return False

    def keep_awake(self, sandbox: str, *, on: bool) -> None: ...
    def exposed(self, sandbox: str, at: str, *, on: bool) -> None: ...


@pytest.fixture
async def knowing() -> AsyncIterator[Knowing]:
    knowing = Knowing()
    yield knowing
    knowing.agent.die()


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    """One that runs, in this loop."""
    at = Here(tmp_path).preview_socket
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(at))
        listener.listen()
        listener.settimeout(0)
        process = Process()
        asyncio.get_running_loop().add_reader(listener, process.accept, listener)
        yield process
        asyncio.get_running_loop().remove_reader(listener)
    for server in process._servers.values():
        server.close()
    for id in process._boxes.ids():
        process._boxes.drop(id)
    await settled()


async def test_one_that_comes_while_a_sandbox_is_saved_sends_it_nothing(tmp_path: Path, process: Process, knowing: Knowing) -> None:
    keeper = Keeper(Here(tmp_path), knowing)
    keeper._edge = Edge("127.0.0.1", 0, False, None, 0, False, ("corral.localhost",), DOORS, ("127.0.0.1", 1))
    async with keeper.quiet("sb-a"):
        await keeper._connect()
        await settled()
        client = Client(*await asyncio.open_connection("127.0.0.1", keeper.port))
        client.ask()
        await settled()
        with pytest.raises(BlockingIOError):
            knowing.agent.socket.recv(1)
    await knowing.agent.greet()
    channel = await knowing.agent.connect()
    await knowing.agent.received(channel, 1)
    await knowing.agent.data(channel, 1, 0, b"HTTP/1.1 204 No\r\n\r\n")
    assert await client.status() == 204
    client.leave()
    await keeper.close()
