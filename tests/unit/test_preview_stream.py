"""A connection to a port over one link after the other."""

from __future__ import annotations

import socket

from corral.errors import SandboxEnded
from corral.node.link import Link
from corral.preview.stream import WINDOW, Stream
from corral.wire import messages
from corral.wire.frame import Type
from harness.peer import Peer
from harness.preview_process import settled

PIECE = 64 << 10


def ends() -> tuple[Link, Peer, socket.socket]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Link(near), Peer(far), near


async def acked(peer: Peer) -> int:
    while (got := await peer.frame()).type is not Type.ACK:
        pass
    return got.offset


async def send_window(peer: Peer) -> None:
    for offset in range(0, WINDOW, PIECE):
        await peer.data(1, 1, offset, bytes(PIECE))


async def woken() -> None:
    raise AssertionError("nobody has said anything")


async def test_what_was_read_while_the_sandbox_was_paused_is_acknowledged_until_its_agent_hears_of_it() -> None:
    link, peer, near = ends()
    stream = Stream(link, 1)
    stream.wait_with(woken, lambda: None)
    await send_window(peer)
    await settled()
    peer.socket.close()
    link.leave(SandboxEnded("paused"))
    near.close()
    read = 0
    while read < WINDOW:
        read += len(await stream.read())
    offset = stream.have().received["1"]
    link, peer, near = ends()
    stream.go_on(link, messages.Held(channel=1, kind="dial", received={"0": 0}, ended=None))
    assert await acked(peer) == WINDOW
    # An agent takes no acknowledgement of what it has yet to send again: it may have none of it when it comes.
    while offset < WINDOW:
        await peer.data(1, 1, offset, bytes(PIECE))
        offset += PIECE
    assert await acked(peer) == WINDOW
    await peer.data(1, 1, WINDOW, b"more")
    assert await stream.read() == b"more"
    link.close()
    near.close()
    peer.socket.close()
