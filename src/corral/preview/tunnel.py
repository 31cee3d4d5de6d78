"""Tunnels: any TCP connection to a port inside, over a websocket. Binary messages are its bytes; an empty one ends that direction, so that each half is closed for itself.
The other way round: a websocket offers a name inside, and is told, in JSON, of each connection to it, which then is a tunnel of its own."""

from __future__ import annotations

import asyncio

from websockets.exceptions import ProtocolError
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.utils import accept_key

from corral.preview import head
from corral.preview.answers import Refusal
from corral.preview.boxes import Box
from corral.preview.doors import Target
from corral.preview.duplex import Broken
from corral.preview.exchange import STALL_SECONDS, Side
from corral.preview.guest import Listener, Stream
from corral.preview.head import Request

PROTOCOL = b"corral-tcp"
MESSAGE = 1 << 20
"""Bytes of a frame of the client at most."""
PING_SECONDS = 30.0
"""So often the client is asked whether it is there; middlemen see that the connection is used."""


def check(asked: Request) -> bytes:
    """The answer's accept key. Raises `Refusal` for what is no opening handshake (RFC 6455, 4.2.1)."""
    key = asked.one(b"sec-websocket-key")
    if asked.method != b"GET" or asked.upgrade != b"websocket" or key is None or asked.one(b"sec-websocket-version") != b"13":
        raise Refusal(
            426, "upgrade_required", "a tunnel is opened by a websocket", "use `corral port-forward`, or sb.tunnel(port)", headers=((b"Upgrade", b"websocket"),)
        )
    return accept_key(key.decode("latin-1")).encode()


async def serve(asked: Request, near: Side, box: Box, target: Target) -> None:
    """Until both directions have ended, or one side is gone. Raises `Refusal` before it has begun."""
    accept = check(asked)
    stream = await _far(box, target)
    try:
        fields = [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"), (b"Sec-WebSocket-Accept", accept)]
        if PROTOCOL in asked.tokens(b"sec-websocket-protocol"):
            fields.append((b"Sec-WebSocket-Protocol", PROTOCOL))
        await near.write(head.encode(b"HTTP/1.1 101 Switching Protocols", fields))
        if await _Tunnel(near, Side.of(stream), box).run() and isinstance(stream, Stream):
            # Its last bytes may still be on their way inside.
            async with asyncio.timeout(STALL_SECONDS):
                await stream.settled()
    except TimeoutError:
        pass  # nobody inside takes them
    finally:
        stream.close()
        if isinstance(stream, Listener):
            box.unlisten(stream)
        box.hung_up()


async def _far(box: Box, target: Target) -> Stream | Listener:
    """What is at the other end: a port inside; a name inside of whose connections is told, or one of these."""
    if target.name is None:
        return await box.dial(target.port)
    if target.connection is None:
        return await box.listen(target.name, target.port)
    return await box.accept(f"{target.name}:{target.port}", target.connection)


class _Tunnel:
    def __init__(self, near: Side, far: Side, box: Box) -> None:
        self._near, self._far, self._box = near, far, box
        self._protocol = ServerProtocol(state=State.OPEN, max_size=MESSAGE)
        self._writing = asyncio.Lock()
        self._ended = False
        """Whether nothing more comes from the sandbox."""

    async def run(self) -> bool:
        """Whether both directions have come to their ends."""
        ways = [asyncio.create_task(self._up()), asyncio.create_task(self._down())]
        pinging = asyncio.create_task(self._ping())
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
            return all(way.done() and way.exception() is None for way in ways)
        finally:
            for task in (*ways, pinging):
                task.cancel()
            await asyncio.gather(*ways, pinging, return_exceptions=True)

    async def _up(self) -> None:
        ended = False
        while data := await self._near.inlet.read():
            self._protocol.receive_data(data)
            for event in self._protocol.events_received():
                if not isinstance(event, Frame) or event.opcode not in (Opcode.BINARY, Opcode.CONT):
                    continue
                self._box.used()
                if event.data and not ended:
                    await self._far.duplex.write(bytes(event.data))
                elif event.fin and event.opcode is Opcode.BINARY and not ended:
                    ended = True
                    self._far.duplex.finish()
            await self._flush()
            if self._protocol.state is not State.OPEN:
                break
        if not (ended and self._ended):
            raise Broken("the client hung up")

    async def _down(self) -> None:
        while data := await self._far.inlet.read():
            self._box.used()
            await self._send(data)
        self._ended = True
        await self._send(b"")

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            self._protocol.send_ping(b"")
            await self._flush()

    async def _send(self, data: bytes) -> None:
        try:
            self._protocol.send_binary(data)
        except ProtocolError as error:
            raise Broken("the tunnel was closed") from error
        await self._flush()

    async def _flush(self) -> None:
        async with self._writing:
            if out := b"".join(self._protocol.data_to_send()):
                await self._near.duplex.write(out)
