"""The real edge process between a client's namespace and a small internet, with a switch's real table: sandbox ends of cables without sandboxes.

client (198.18.1.N) ── sbN │ switch │ up ── outside (where the process dials from) ── internet
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from corral.net import elements, nfnetlink, policy
from corral.net.authority import Authority
from corral.net.egress_client import EgressClient, Sockets, Table
from corral.net.elements import Switchboard
from corral.net.nfnetlink import Tables
from corral.net.tenant import Tenant
from corral.node import netns, nft
from corral.schema.egress import Approval, EgressPolicy, Flow
from harness.internet import DNS, Internet
from harness.namespace import Namespace, join

T = TypeVar("T")
TABLE = Table("corral-test")
_numbers = itertools.count(1)


class Guest:
    """A client in a slot."""

    def __init__(self, index: int, namespace: Namespace) -> None:
        self.index, self.namespace = index, namespace
        self.address = f"198.18.1.{index}"
        self.interface = f"sb{index}"
        self.sandbox = f"sb-test{index}"

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Blocking code, in the client's namespace."""
        return await asyncio.to_thread(self.namespace.run, functools.partial(work, *arguments))


class Bench:
    """Everything around one edge process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tag = f"ct{os.getpid()}x{next(_numbers)}"
        self.internet = Internet(f"{self.tag}w", directory)
        self.outside = Namespace(f"{self.tag}o")
        self.switch = Namespace(f"{self.tag}s")
        self.guests: list[Guest] = []
        self.flows: list[Flow] = []
        self.approvals: list[Approval] = []
        self.news = asyncio.Event()
        self.lost = asyncio.Event()
        self.process: subprocess.Popen[bytes] | None = None
        self.tables: Tables | None = None
        self.client = self.new_client()
        self.authority = Authority(directory / "keys")
        self._generations = itertools.count(100)
        self._opened: dict[str, list[nfnetlink.Change]] = {}

    def new_client(self) -> EgressClient:
        return EgressClient(on_flows=self._on_flows, on_approval=self._on_approval, on_lost=self.lost.set)

    def _on_flows(self, flows: list[Flow]) -> None:
        self.flows += flows
        self.news.set()

    def _on_approval(self, approval: Approval) -> None:
        self.approvals.append(approval)
        self.news.set()

    async def open(self, guests: int = 2) -> None:
        self.internet.open(self.outside, f"{self.tag}c")
        join(self.outside, f"{self.tag}u", self.switch, "up")
        self.outside.ip("addr", "add", "198.19.0.1/30", "dev", f"{self.tag}u")
        self.switch.ip("addr", "add", "198.19.0.2/30", "dev", "up")
        self.switch.ip("route", "add", "default", "via", "198.19.0.1")
        for namespace in (self.outside, self.switch):
            namespace.sysctl("net/ipv4/ip_forward", "1")
        self.switch.sysctl("net/ipv4/icmp_ratelimit", "0")
        self.switch.sysctl("net/ipv4/tcp_fwmark_accept", "1")
        for address in (nft.GATEWAY, nft.SERVICE):
            self.switch.ip("addr", "add", f"{address}/32", "dev", "lo")
        self.tables = Tables(self.switch.run(nfnetlink.open_socket), TABLE.name)
        nft.ready(netns.Namespace(self.switch.fd), self.tables)
        self.board = Switchboard.of(self._table)
        for index in range(1, guests + 1):
            guest = Guest(index, Namespace(f"{self.tag}g{index}"))
            self.guests.append(guest)
            join(self.switch, guest.interface, guest.namespace, "eth0")
            self.switch.ip("route", "add", f"{guest.address}/32", "dev", guest.interface, "src", nft.GATEWAY)
            guest.namespace.ip("addr", "add", f"{guest.address}/32", "dev", "eth0")
            guest.namespace.ip("route", "add", nft.GATEWAY, "dev", "eth0")
            guest.namespace.ip("route", "add", "default", "via", nft.GATEWAY)
            self._table.apply([*elements.birth(guest.interface, guest.address), *elements.meters(guest.interface)])
        await self.start()
        await self.client.connect(self.socket, TABLE, self.sockets)

    @property
    def socket(self) -> Path:
        return self.directory / "egress.sock"

    async def start(self) -> None:
        """The process, and wait until it listens."""
        argv = ["ip", "netns", "exec", self.outside.name, sys.executable, "-I", "-m", "corral.net.edge", str(self.socket), str(self.directory / "keys")]
        environment = {**os.environ, "SSL_CERT_FILE": str(self.internet.authority.file)}
        with (self.directory / "edge.log").open("ab") as log:
            self.process = subprocess.Popen([*argv, "--resolver", f"{DNS}:53"], env=environment, stderr=log, cwd="/")
        while not self.socket.exists():
            assert self.process.poll() is None, "the edge process has ended"
            await asyncio.sleep(0.02)

    def sockets(self) -> Sockets:
        def made() -> Sockets:
            dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            dns.bind((nft.SERVICE, 53))
            stream = socket.create_server((nft.SERVICE, 53), backlog=128)
            proxy = socket.create_server((nft.SERVICE, nft.PROXY_PORT), backlog=4096)
            return Sockets(dns, stream, proxy, nfnetlink.open_socket())

        return self.switch.run(made)

    async def admit(
        self, guest: Guest, wanted: EgressPolicy | Mapping[str, Any] | str, secrets: Mapping[str, str] | None = None, *, sandbox: str | None = None
    ) -> Tenant:
        """Let a policy hold for a client, as the node does: the process is told, then the kernel. `sandbox`: another one than the client's usual is in the slot from now on."""
        given = wanted if isinstance(wanted, EgressPolicy) else EgressPolicy.model_validate({"default": wanted} if isinstance(wanted, str) else wanted)
        tenant = Tenant(sandbox or guest.sandbox, guest.address, guest.interface, next(self._generations), given, secrets or {})
        await self.client.set(tenant)
        changes = self.board.policy(guest.interface, tenant.generation, policy.compile(given).kernel)
        before = self._opened.pop(guest.interface, [])
        self._table.apply([*elements.undo(before), *changes])
        self._opened[guest.interface] = changes
        return tenant

    def pinned(self) -> set[tuple[str, bytes]]:
        """What is open because a name points there: sets and keys."""
        return {(name, element.key) for name in (elements.PIN, elements.PIN_ANY, elements.PIN_RANGE) for element, _ in self._table.elements(name)}

    async def reset(self) -> None:
        """As if nobody had ever been in the slots."""
        for changes in self._opened.values():
            self._table.apply(elements.undo(changes))
        self._opened.clear()
        await self.client.retain([])
        await self.client.settled()
        os.truncate(self.directory / "edge.log", 0)
        self.flows.clear()
        self.approvals.clear()
        self.internet.zone.__init__()
        self.internet.seen.__init__()

    @property
    def _table(self) -> Tables:
        assert self.tables is not None
        return self.tables

    async def until(self, found: Callable[[], T | None]) -> T:
        """The first value that is neither None nor false, asked again with each piece of news."""
        async with asyncio.timeout(20):
            while not (value := found()):
                self.news.clear()
                await self.news.wait()
        return value

    async def flow(self, **wanted: Any) -> Flow:
        """The first flow with these fields."""
        return await self.until(lambda: next((f for f in self.flows if all(getattr(f, name) == value for name, value in wanted.items())), None))

    async def close(self) -> None:
        self.client.close()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)
        if self.tables is not None:
            self.tables.close()
        for namespace in [*(guest.namespace for guest in self.guests), self.switch]:
            namespace.remove()
        self.internet.close()
        self.outside.remove()

    def errors(self) -> str:
        return (self.directory / "edge.log").read_text()
