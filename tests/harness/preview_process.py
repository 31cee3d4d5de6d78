"""The preview process in the loop of a test, which plays all others: the server it asks, the agents in sandboxes, and clients."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from corral.net.edge_link import Link
from corral.node.notice import Notice
from corral.preview.doors import DOORS, as_message
from corral.preview.process import Process
from harness.peer import HELLO, Peer

TOKEN = "pt_first"
SETTINGS: dict[str, Any] = {"token": TOKEN, "public": [], "every": False, "only": None, "forbids": False, "hosts": {}}
PATIENCE = 10.0
"""Seconds in which whatever a test waits for comes."""


class Agent(Peer):
    """The agent of a sandbox, with the end of its relay link that the server lends."""

    def __init__(self) -> None:
        self.lent, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(far)

    async def greet(self, *held: dict[str, Any]) -> dict[str, Any]:
        """Answer a greeting, with these channels; returns it."""
        number, hello = await self.request("hello")
        await self.answer(number, {**HELLO, "channels": held})
        return hello

    async def connect(self) -> int:
        """Let a connection be made; returns its channel."""
        number, request = await self.request("dial")
        await self.answer(number, {"ok": True})
        return request["channel"]

    async def received(self, channel: int, size: int) -> bytes:
        """So much of what comes on a channel."""
        text = b""
        while len(text) < size:
            got = await self.frame()
            if got.type is got.type.DATA and got.channel == channel:
                text += got.payload
        return text

    def die(self) -> None:
        self.socket.close()
        self.lent.close()


class Client:
    """Of the edge."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def say(self, data: bytes) -> None:
        self._writer.write(data)

    def ask(self, target: str = "/", *fields: str, token: str | None = TOKEN) -> None:
        given = [] if token is None else [f"Corral-Token: {token}"]
        lines = [f"GET {target} HTTP/1.1", "Host: 80-sb-a.corral.localhost", *given, *fields]
        self.say("\r\n".join([*lines, "", ""]).encode())

    async def status(self) -> int:
        """Of the next answer, whose head is all that is read."""
        async with asyncio.timeout(PATIENCE):
            return int((await self._reader.readuntil(b"\r\n\r\n")).split(b" ")[1])

    async def some(self, size: int) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self._reader.readexactly(size)

    async def ended(self) -> bool:
        """Whether the connection ends, and nothing came before."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self._reader.read(1) == b""
            except ConnectionResetError:
                return True

    def leave(self) -> None:
        """By a reset: nothing can be answered."""
        if not self._writer.transport.is_closing():
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


class Played:
    """The process and the server's end of its socket."""

    def __init__(self, directory: Path) -> None:
        self.process = Process()
        self._path = directory / "socket"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._said: list[dict[str, Any]] = []
        self._changed = Notice()
        self._edge = socket.create_server(("127.0.0.1", 0))
        self._port = int(self._edge.getsockname()[1])
        self._clients: list[Client] = []
        self._agents: list[Agent] = []
        self.attach()

    def attach(self) -> None:
        """Another server comes."""
        near = socket.socket(socket.AF_UNIX)
        near.connect(str(self._path))
        self.process.accept(self._listener)
        self.link = Link(near, self._message, lambda: None)

    def configure(self) -> None:
        message = {"op": "config", "domains": ["corral.localhost"], "doors": as_message(DOORS), "door": ["127.0.0.1", 1], "chain": None, "front": False}
        self.tell({**message, "fresh": [False]}, self._edge)

    def _message(self, message: dict[str, Any], fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        self._said.append(message)
        self._changed.set()

    def tell(self, message: dict[str, Any], lent: socket.socket | None = None) -> None:
        self.link.send(message, [] if lent is None else [lent.fileno()])

    async def hear(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE):
            while True:
                for message in self._said:
                    if wanted(message):
                        self._said.remove(message)
                        return message
                await self._changed.wait()

    async def asked(self, what: str = "box", **fields: Any) -> dict[str, Any]:
        """The next question of this kind."""
        return await self.hear(lambda message: message.get("ask") == what and all(message[name] == value for name, value in fields.items()))

    @property
    def asks(self) -> bool:
        """Whether there are questions that were not heard yet."""
        return any("q" in message for message in self._said)

    def agent(self) -> Agent:
        agent = Agent()
        self._agents.append(agent)
        return agent

    def found(self, question: dict[str, Any], agent: Agent | None, **settings: Any) -> None:
        """Answer that it runs, with this agent, or that it is paused."""
        message = {"a": question["q"], "project": "p", "paused": agent is None, **SETTINGS, **settings}
        self.tell(message, None if agent is None else agent.lent)

    async def opened(self) -> Agent:
        """Answer the next question, and the greeting."""
        agent = self.agent()
        self.found(await self.asked(), agent)
        await agent.greet()
        return agent

    def rotate(self) -> None:
        """Another token, which `found` is to say from now on."""
        self.tell({"op": "settings", "sandbox": "sb-a", **SETTINGS, "token": "pt_second"})

    async def hush(self, agent: Agent) -> None:
        """Have nothing sent to the sandbox, whose agent has read all."""
        self.tell({"op": "hush", "sandbox": "sb-a"})
        number, _ = await agent.request("ping")
        await agent.answer(number, {"ok": True})
        await self.hear(lambda message: "hushed" in message)

    def speak(self) -> None:
        self.tell({"op": "speak", "sandbox": "sb-a"})

    async def client(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self._port))
        self._clients.append(client)
        return client

    async def websocket(self) -> tuple[Client, Agent, int]:
        """A client, connected by a channel of a sandbox with a server that has changed the protocol."""
        client = await self.client()
        client.ask("/", "Connection: Upgrade", "Upgrade: websocket")
        agent = await self.opened()
        channel = await agent.connect()
        await agent.received(channel, 1)
        answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        await agent.data(channel, 1, 0, answer)
        assert await client.status() == 101
        return client, agent, channel

    def close(self) -> None:
        for client in self._clients:
            client.leave()
        for id in self.process._boxes.ids():
            self.process._boxes.drop(id)
        for server in self.process._servers.values():
            server.close()
        self.link.close()
        self._listener.close()
        self._edge.close()
        for agent in self._agents:
            agent.die()


@asynccontextmanager
async def played(directory: Path) -> AsyncIterator[Played]:
    process = Played(directory)
    try:
        await process.hear(lambda message: "preview" in message)
        process.configure()
        yield process
    finally:
        process.close()
        await settled()


async def settled() -> None:
    """What was said has been taken in by everything in this loop. No event tells of it: each step takes a few turns."""
    for _ in range(50):
        await asyncio.sleep(0)
