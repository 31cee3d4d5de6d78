"""The server's end of the edge process (docs/egress-process.md): tells it who is where under which policy, hears of flows and approvals."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from corral.errors import SetupError, Unavailable
from corral.net.edge_link import Link
from corral.net.tenant import Tenant
from corral.schema.egress import Approval, Decision, Flow

VERSION = 1
ANSWER = 10.0
"""Seconds an answer may take."""


@dataclass(frozen=True, slots=True)
class Sockets:
    """Made inside the switch; the edge process takes them over for good."""

    dns: socket.socket
    """UDP, bound."""
    dns_stream: socket.socket
    """TCP, listening."""
    proxy: socket.socket
    """TCP, listening, where the table leads what it has caught."""
    nft: socket.socket
    """Netlink, for pins."""
    conntrack: socket.socket | None = None
    """Netlink, of the groups that tell of new and ended connections."""
    nflog: socket.socket | None = None
    """Netlink; the edge process binds it to its group."""


@dataclass(frozen=True, slots=True)
class Table:
    """Where pins go, and how denials are told."""

    name: str
    log_group: int = 1


class EgressClient:
    """One connection to the edge process at a time. Lives on the event loop; its callbacks must not block.

    `on_flows` gets batches in order, those that came about while no server listened first; a batch is told again only when the server was killed while it took it.
    `on_approval` is told of each that begins to wait, and again once it is decided. `on_lost`: the process, or the connection to it, is gone.
    """

    def __init__(self, *, on_flows: Callable[[list[Flow]], None], on_approval: Callable[[Approval], None], on_lost: Callable[[], None]) -> None:
        self._on_flows = on_flows
        self._on_approval = on_approval
        self._on_lost = on_lost
        self._link: Link | None = None
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._greeting: asyncio.Future[dict[str, Any]] | None = None
        self._tenants: dict[int, Tenant] = {}
        self.pid = 0

    @property
    def connected(self) -> bool:
        return self._link is not None and self._link.open

    @property
    def generations(self) -> frozenset[int]:
        """Those that it was told of and not told to drop."""
        return frozenset(self._tenants)

    async def connect(self, path: Path, table: Table, sockets: Callable[[], Sockets]) -> frozenset[int]:
        """Connect, and tell everything anew that this client knows. `sockets` is called when the process has none yet.

        Returns the generations that the process knew: those of a server before this one, which go on until they are set again, or dropped (`retain`).
        Raises `ConnectionError` when nobody listens, `SetupError` when the process speaks another version.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(0)
        loop = asyncio.get_running_loop()
        self._greeting = loop.create_future()
        try:
            await loop.sock_connect(connection, str(path))
        except BaseException:
            connection.close()
            raise
        self._link = Link(connection, self._take_in, self._lost)
        async with asyncio.timeout(ANSWER):
            greeting = await self._greeting
        if greeting["edge"] != VERSION:
            self.close()
            raise SetupError(
                f"the running edge process ({greeting['pid']}) speaks version {greeting['edge']}, this server {VERSION}", hint="end it; it is started again"
            )
        self.pid = int(greeting["pid"])
        if not greeting["sockets"]:
            self._hand_over(self._link, table, sockets())
        for tenant in self._tenants.values():
            self._link.send({"op": "set", **tenant.message()})
        await self._link.drained()
        return frozenset(map(int, greeting["generations"]))

    async def set(self, tenant: Tenant) -> None:
        """Let a policy hold for a slot. When it returns, whatever comes from the slot is judged by it: the process takes in all it was sent before it judges.

        A new generation of the same sandbox: open connections that are no longer allowed are cut (`settled` waits for it). Without a connection it is told at the next one.
        """
        for generation, other in list(self._tenants.items()):
            if other.sandbox == tenant.sandbox:
                tenant = replace(tenant, decided=tuple(dict.fromkeys((*other.decided, *tenant.decided))))
            if other.address == tenant.address:
                del self._tenants[generation]
        self._tenants[tenant.generation] = tenant
        if self._link is not None and self._link.open:
            self._link.send({"op": "set", **tenant.message()})
            await self._link.drained()

    async def drop(self, generation: int) -> None:
        """Forget a generation: its connections are cut, its slot is nobody's. Of one that was followed by another, nothing is left to forget."""
        self._tenants.pop(generation, None)
        if self._link is not None and self._link.open:
            self._link.send({"op": "drop", "generation": generation})
            await self._link.drained()

    async def retain(self, generations: Iterable[int]) -> None:
        """Drop all others."""
        kept = set(generations)
        self._tenants = {generation: tenant for generation, tenant in self._tenants.items() if generation in kept}
        await self._call({"op": "retain", "generations": sorted(kept)})

    async def settled(self) -> None:
        """Until everything told so far has been done, and the flows of all that is over have been told."""
        await self._call({"op": "settled"})

    async def decide(self, id: str, decision: Decision) -> bool:
        """Decide an approval; False when it no longer waits."""
        answer = await self._call({"op": "decide", "id": id, "decision": decision.decision, "scope": decision.scope})
        if answer["found"] is None:
            return False
        if decision.scope != "once":
            # For the process that may have to be started in place of this one.
            sandbox, to, port = answer["found"]
            for generation, tenant in self._tenants.items():
                if tenant.sandbox == sandbox:
                    self._tenants[generation] = replace(tenant, decided=(*tenant.decided, (to, port, decision.decision == "allow")))
        return True

    async def approvals(self) -> list[Approval]:
        """Those that wait."""
        answer = await self._call({"op": "approvals"})
        return [Approval.model_validate(approval) for approval in answer["approvals"]]

    async def totals(self, sandbox: str) -> tuple[int, int]:
        """Bytes from and to a sandbox that have gone through the proxy (what the kernel passed itself is in its own counters)."""
        answer = await self._call({"op": "totals", "sandbox": sandbox})
        return int(answer["sent"]), int(answer["received"])

    async def stop(self) -> None:
        """Have the process end, connections and all."""
        await self._call({"op": "stop"})
        self.close()

    def close(self) -> None:
        """Leave the process to the next server."""
        if self._link is not None:
            self._link.close()
        self._gone()

    def _hand_over(self, link: Link, table: Table, sockets: Sockets) -> None:
        given = {name: getattr(sockets, name) for name in Sockets.__slots__ if getattr(sockets, name) is not None}
        link.send({"op": "sockets", "names": list(given), "table": table.name, "log_group": table.log_group}, [each.fileno() for each in given.values()])
        for each in given.values():
            each.close()

    async def _call(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._link is None or not self._link.open:
            raise Unavailable("the edge process is not there", hint="it is being started again: try once more")
        number = next(self._numbers)
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            self._link.send({"n": number, **message})
            async with asyncio.timeout(ANSWER):
                return await future
        except (ConnectionError, TimeoutError) as error:
            raise Unavailable(f"the edge process did not answer: {error or 'it takes too long'}", hint="try once more") from None
        finally:
            self._answers.pop(number, None)

    def _take_in(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        assert not fds
        if "edge" in message:
            if self._greeting is not None and not self._greeting.done():
                self._greeting.set_result(message)
        elif "flows" in message:
            self._on_flows([Flow.model_validate(flow) for flow in message["flows"]])
            if self._link is not None and self._link.open:
                self._link.send({"op": "seen", "batch": message["batch"]})
        elif "approval" in message:
            self._on_approval(Approval.model_validate(message["approval"]))
        elif (future := self._answers.get(int(message["n"]))) and not future.done():
            future.set_result(message)

    def _gone(self) -> None:
        self._link = None
        lost = ConnectionResetError("the connection to it is lost")
        for future in self._answers.values():
            if not future.done():
                future.set_exception(lost)
        if self._greeting is not None and not self._greeting.done():
            self._greeting.set_exception(lost)

    def _lost(self) -> None:
        self._gone()
        self._on_lost()
