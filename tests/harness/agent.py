"""A real guest agent without a sandbox, for tests of what the node does over its link. It is never claimed: it would mount over this machine's root."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from corral.agent_binary import agent_binary
from corral.node.guest import Guest
from corral.node.link import Link

_SO_SNDBUFFORCE = 32


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a link, with buffers as the engine makes them."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 4 << 20)
    return ends


class Agent:
    """A running agent and the node's end of its link. CORRAL_TEST_AGENT names another program than the installed one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.spool = directory / "sb-test"
        self.log = directory / "agent.log"
        self.socket, theirs = pair()
        self._relay, relay = pair()
        program = os.environ.get("CORRAL_TEST_AGENT") or agent_binary()
        with theirs, relay, self.log.open("wb") as log:
            self.process = subprocess.Popen([program], stdin=theirs, stdout=relay, stderr=log, start_new_session=True)

    @asynccontextmanager
    async def guest(self, **options: Any) -> AsyncIterator[Guest]:
        """A server's hold on it. When the server leaves, everything goes on running."""
        guest = Guest(Link(self.socket), self.spool, "sb-test", **options)
        try:
            await guest.hello()
            yield guest
        finally:
            guest.close()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.socket.close()
        self._relay.close()
