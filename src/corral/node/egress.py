"""The egress process of an installation, as the node has it: started through the holder, so that it outlives the server; started again when it ends, and told everything anew.

While there is none, nothing passes that names have to do with: its sockets in the switch are closed, and the table leads to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterable, Sequence

import structlog

from corral.errors import CorralError, Unavailable
from corral.net import nfnetlink
from corral.net.egress_client import EgressClient, Sockets, Table
from corral.net.elements import DNS_PORT
from corral.node import nft
from corral.node.companion import LISTENER, Companion
from corral.node.holder_client import HolderClient
from corral.node.netns import Namespace
from corral.places import Places
from corral.schema.egress import Approval, Flow

PATIENCE = 20.0
"""Seconds a fresh process may take to greet; it takes half a one, more on a busy machine."""
RETRY = (0.1, 30.0)
"""Seconds before it is started again: the first time, and at most."""
BACKLOG = 1024

OnFlows = Callable[[list[Flow]], None]
OnApproval = Callable[[Approval], None]

log = structlog.get_logger(__name__)


class Egress:
    """The process and the connection to it. Lives on the event loop."""

    def __init__(self, places: Places, holder: HolderClient, *, resolvers: Sequence[str], on_flows: OnFlows, on_approval: OnApproval) -> None:
        """`resolvers`: DNS servers, `ADDRESS[:PORT]`; none: this machine's."""
        self._places = places
        self._holder = holder
        self._resolvers = resolvers
        self.client = EgressClient(on_flows=on_flows, on_approval=on_approval, on_lost=self._gone)
        self._process = Companion(places.egress_socket, places.egress_pid, places.logs / "egress.log")
        self._switch: Namespace | None = None
        self._task: asyncio.Task[None] | None = None
        self._usable = asyncio.Event()
        self._lost = asyncio.Event()

    def open(self, switch: Namespace, generations: Iterable[int]) -> None:
        """Take over the process of an earlier server, or start one, in the background. `generations`: those that go on from an earlier server."""
        self._switch = switch
        self._task = asyncio.create_task(self._keep(frozenset(generations)), name="egress process")

    async def usable(self) -> None:
        """Until it is there; raises `Unavailable` when that takes too long."""
        if self._usable.is_set():
            return
        try:
            async with asyncio.timeout(PATIENCE):
                await self._usable.wait()
        except TimeoutError:
            raise Unavailable("the egress process is not there, so that no names can be reached", hint=f"see {self._process.log}") from None

    async def close(self) -> None:
        """Leave it to the next server."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._usable.clear()
        self.client.close()

    async def shutdown(self) -> None:
        """End it."""
        await self.close()
        await self._process.remove(self._holder)

    def _gone(self) -> None:
        self._usable.clear()
        self._lost.set()

    async def _keep(self, generations: frozenset[int]) -> None:
        start = self._take_over
        delay = RETRY[0]
        while True:
            try:
                await start(generations)
            except (CorralError, OSError, TimeoutError) as error:
                log.error("the egress process could not be started", error=str(error) or type(error).__name__, retry_in=delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY[1])
            else:
                delay = RETRY[0]
                self._usable.set()
                await self._lost.wait()
                log.error("the egress process went away; starting another", pid=self.client.pid)
            self._lost.clear()
            start = self._start

    async def _take_over(self, generations: frozenset[int]) -> None:
        """The process of an earlier server, or another in its place."""
        if self._process.running():
            try:
                await self._connect()
                await self.client.retain(generations | self.client.generations)
            except (CorralError, OSError, TimeoutError) as error:
                log.warning("the egress process of an earlier server is of no use", error=str(error))
            else:
                return
        await self._start(generations)

    async def _start(self, _: frozenset[int]) -> None:
        await self._process.end(self._holder)
        self._places.keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._process.listener() as listener:
            argv = [sys.executable, "-I", "-m", "corral.net.edge", "--listener", str(LISTENER), str(self._process.at), str(self._places.keys)]
            argv += [part for resolver in self._resolvers for part in ("--resolver", resolver)]
            await self._process.start(self._holder, argv, listener, env=_environment())
        await self._connect()

    async def _connect(self) -> None:
        assert self._switch is not None
        switch = self._switch
        async with asyncio.timeout(PATIENCE):
            await self.client.connect(self._process.at, Table(self._places.tag, nft.LOG_GROUP), lambda: switch.run(_sockets))


def _environment() -> dict[str, str]:
    """Of ours it needs where programs are, and where the certificates are that others are verified with."""
    names = ("PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")
    return {"PATH": os.defpath, **{name: os.environ[name] for name in names if name in os.environ}}


def _sockets() -> Sockets:
    """What the process listens and speaks on, made inside the switch."""
    dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    dns.bind((nft.SERVICE, DNS_PORT))
    return Sockets(
        dns=dns,
        dns_stream=_listener(DNS_PORT),
        proxy=_listener(nft.PROXY_PORT),
        nft=nfnetlink.open_socket(),
        conntrack=nfnetlink.open_socket(groups=(nfnetlink.GROUP_DESTROYED,)),
        nflog=nfnetlink.open_socket(),
    )


def _listener(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((nft.SERVICE, port))
    listener.listen(BACKLOG)
    return listener
