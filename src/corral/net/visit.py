"""One connection from a sandbox to the proxy, and what every way of serving it needs."""

from __future__ import annotations

import ipaddress
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from corral.net.asking import Asking
from corral.net.authority import Authority
from corral.net.flow_log import FlowLog
from corral.net.occupant import Held, Occupant
from corral.net.policy import Action, By, Compiled, Ruling
from corral.net.ranges import Protocol
from corral.net.upstream import Upstream
from corral.schema.egress import Verdict


@dataclass(frozen=True)
class Services:
    """What the process has once."""

    upstream: Upstream
    authority: Authority
    asking: Asking
    log: FlowLog

    @cached_property
    def verifying(self) -> ssl.SSLContext:
        """For TLS to the real servers: the machine's roots, HTTP/1.1 only."""
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        return context


@dataclass(slots=True, eq=False)
class Visit:
    """Who, where to, and what has passed. `address` and `port` are what the sandbox dialled."""

    services: Services
    occupant: Occupant
    address: str
    port: int
    name: str | None = None
    sent: int = 0
    received: int = 0
    reached: str | None = None
    """What the proxy has connected to."""
    approved: bool = False
    """Whether somebody has allowed it, or the request under way."""
    held: Held | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def number(self) -> int:
        return int(ipaddress.IPv4Address(self.address))

    def stays(self, allowed: Callable[[Compiled], bool]) -> None:
        """From now on the connection lives as long as policies say so."""
        if self.held is not None:
            self.held.allowed = allowed

    @property
    def cut_already(self) -> bool:
        """Whether the policy has changed while the connection was being made, so that it must not go on."""
        return self.held is not None and not self.held.allowed(self.occupant.compiled)

    def goes_on(self, compiled: Compiled, ruling: Ruling) -> bool:
        """Whether what has been let through would be under another policy, by its ruling and by where it has led to."""
        if ruling.action is Action.DENY:
            return False
        if self.reached is None:
            return True
        if ruling.action is Action.ASK and not self.approved:
            return False
        number = int(ipaddress.IPv4Address(self.reached))
        if ruling.by is By.NAME:
            return compiled.reachable(number, Protocol.TCP, self.port) is None
        return self.reached == self.address or compiled.connection(Protocol.TCP, self.port, number, None).action is not Action.DENY

    def up(self, count: int) -> bool:
        """So many bytes went out; False: the budget is spent."""
        self.sent += count
        self.occupant.sent += count
        return not self.occupant.spent

    def down(self, count: int) -> bool:
        self.received += count
        self.occupant.received += count
        return not self.occupant.spent

    def told(self, kind: str, verdict: Verdict, ruling: Ruling, *, reason: str | None = None, name: str | None = None) -> None:
        """Into the flow log."""
        self.services.log.add(
            sandbox=self.occupant.sandbox,
            kind=kind,
            name=name or self.name,
            address=self.reached or self.address,
            port=self.port,
            verdict=verdict,
            rule=ruling.title,
            reason=reason or ruling.reason,
            sent=self.sent,
            received=self.received,
            duration=round(time.monotonic() - self.began, 6),
        )

    async def settled(self, ruling: Ruling, *, method: str | None = None, path: str | None = None) -> Ruling:
        """The ruling, once nobody has to be asked any more."""
        self.approved = False
        if ruling.action is not Action.ASK:
            return ruling
        # What a rule about addresses asks is about the address: the name is only what the program says.
        name = self.name if ruling.by is By.NAME else None
        approved = await self.services.asking.ask(self.occupant, name=name, address=self.address, port=self.port, rule=ruling.title, method=method, path=path)
        self.approved = approved
        if approved:
            return Ruling(Action.ALLOW, ruling.rule, ruling.by, content=ruling.content)
        return Ruling(Action.DENY, ruling.rule, reason=f"asked about {name or self.address}:{self.port}: it was not approved")
