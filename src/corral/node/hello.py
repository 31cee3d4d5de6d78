"""The first word to a new agent: proof that it runs and answers, before its sentry is put to sleep in the pool.

Its epoch is 0, the smallest, so that whoever claims the member says `hello` again with its own. See docs/wire.md.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

from corral.errors import PlatformError
from corral.wire import frame
from corral.wire.frame import Type

NUMBER = 1
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
BUFFER = 4 << 20
"""Bytes a link's socket may hold. A packet is charged more than its size, so a full frame needs well over 256 KiB."""


class AgentSilent(PlatformError):
    """A new agent did not answer as it should."""

    code = "agent_silent"


def link() -> tuple[socket.socket, socket.socket]:
    """A pair of sockets for one of the agent's descriptors: ours, non-blocking, and the agent's. Both hold whole frames."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0)
    for end in (ours, theirs):
        for option, forced in ((socket.SO_SNDBUF, _SO_SNDBUFFORCE), (socket.SO_RCVBUF, _SO_RCVBUFFORCE)):
            try:
                end.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
            except PermissionError:
                end.setsockopt(socket.SOL_SOCKET, option, BUFFER)
    return ours, theirs


async def greet(control: socket.socket, *, timeout: float) -> None:
    """Say hello and take the answer. Raises `AgentSilent`."""
    await _ask(control, {"op": "hello", "version": 1, "epoch": 0, "channels": []}, timeout)


async def warm(control: socket.socket, *, timeout: float) -> None:
    """Have the agent start and end two processes, so that the sandbox's first command finds the way warm. Raises `AgentSilent`."""
    await _ask(control, {"op": "warm"}, timeout)


async def _ask(control: socket.socket, question: dict[str, Any], timeout: float) -> None:
    loop = asyncio.get_running_loop()
    request = json.dumps(question).encode()
    try:
        async with asyncio.timeout(timeout):
            await loop.sock_sendall(control, frame.message(Type.REQUEST, NUMBER, request))
            while (good := _verdict(await loop.sock_recv(control, frame.MAX_FRAME))) is None:
                pass
    except TimeoutError:
        raise AgentSilent(f"the agent did not answer `{question['op']}` within {timeout:g} s") from None
    except OSError as error:
        raise AgentSilent(f"the agent's socket broke: {error}") from error
    if not good:
        raise AgentSilent(f"the agent refused `{question['op']}`")


def _verdict(packet: bytes) -> bool | None:
    """Whether the agent agreed; None: the packet is about something else."""
    if not packet:
        raise AgentSilent("the agent ended before it answered")
    try:
        answer = frame.decode(memoryview(packet))
        match answer.type:
            case Type.EVENT:
                return None
            case Type.RESPONSE | Type.REQUEST:
                return json.loads(bytes(answer.payload)).get("ok") is True
            case _:
                return False
    except (frame.ProtocolError, ValueError, AttributeError) as error:
        raise AgentSilent(f"the agent answered with garbage: {error}") from error
