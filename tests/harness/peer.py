"""A guest agent's end of a link, played by a test."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

from corral.wire import frame
from corral.wire.frame import Type

HELLO: dict[str, Any] = {"ok": True, "version": 1, "agent": "0.1.0", "claimed": True, "channels": []}


class Peer:
    """It reads requests and sends whatever it is told."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.acks: dict[tuple[int, int], int] = {}

    async def frame(self) -> frame.Frame:
        packet = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.socket, frame.MAX_FRAME), 10)
        assert packet, "the node closed the link"
        return frame.decode(memoryview(packet))

    async def request(self, op: str | None = None) -> tuple[int, dict[str, Any]]:
        while True:
            got = await self.frame()
            if got.type is Type.ACK:
                self.acks[got.channel, got.stream] = got.offset
            if got.type is Type.REQUEST:
                request = json.loads(bytes(got.payload))
                if op in (None, request["op"]):
                    return got.channel, request

    async def send(self, packet: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, packet)

    async def answer(self, number: int, body: object) -> None:
        await self.send(frame.message(Type.RESPONSE, number, json.dumps(body).encode()))

    async def event(self, channel: int, body: object) -> None:
        await self.send(frame.message(Type.EVENT, channel, json.dumps(body).encode()))

    async def data(self, channel: int, stream: int, offset: int, payload: bytes, *, fin: bool = False) -> None:
        await self.send(frame.data_header(channel, stream, offset, fin=fin) + payload)
