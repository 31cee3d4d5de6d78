"""What the kernel let through or refused by itself, told as flows: connections when they have ended (conntrack), denials as they happen (nflog)."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime

from corral.net import conntrack, nflog
from corral.net.conntrack import Ended
from corral.net.flow_log import FlowLog
from corral.net.netlink import RECEIVE, Netlink
from corral.net.nflog import Logged
from corral.net.nfnetlink import Tables
from corral.net.occupant import Occupant
from corral.net.policy import Action
from corral.net.ranges import Protocol
from corral.schema.egress import Verdict

QUIET = 5.0
"""Seconds in which the same denial is told once."""
REMEMBERED = 10_000
SELDOM = 20.0
"""Seconds after which the kernel is asked for connections that are over, when nobody wants to know of them."""
OFTEN = 0.1
"""Seconds in which it is asked once, however many want to know."""
_PROTOCOLS = frozenset(Protocol)


class KernelEvents:
    """Reads two sockets of the switch on the event loop. `occupant_at` tells who is at an address, and under which mark."""

    def __init__(self, occupant_at: Callable[[str, int | None], Occupant | None], log: FlowLog) -> None:
        self._occupant_at = occupant_at
        self._log = log
        self._told: dict[tuple[str, int, str, int], float] = {}
        self._endings: socket.socket | None = None
        self._tables: Tables
        self._asked = -OFTEN
        self._timer: asyncio.TimerHandle | None = None

    def listen(self, endings: socket.socket, denials: socket.socket, group: int, tables: Tables) -> None:
        Netlink(denials).request(nflog.subscribe(group))
        loop = asyncio.get_running_loop()
        for connection, take in ((endings, self.take_endings), (denials, lambda: self._take_denials(denials))):
            connection.setsockopt(_SOL_NETLINK, _NO_ENOBUFS, 1)
            connection.settimeout(0)
            loop.add_reader(connection, take)
        self._endings, self._tables = endings, tables

    def watch(self, *, anybody: bool) -> None:
        """Look after connections from time to time, as long as there is `anybody` who might have some."""
        if not anybody and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif anybody and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SELDOM, self._seldom)

    def _seldom(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(SELDOM, self._seldom)
        self.gather()

    def gather(self) -> None:
        """Tell of every connection that is over by now."""
        now = time.monotonic()
        if self._endings is None or now - self._asked < OFTEN:
            return
        self._asked = now
        self._tables.take_out_ended()
        self.take_endings()

    def take_endings(self) -> None:
        """What has ended until now; also called before a sandbox is forgotten, whose last connections end with it."""
        while self._endings is not None and (data := _read(self._endings)):
            for ended in conntrack.decode(data):
                self._ended(ended)

    def _take_denials(self, connection: socket.socket) -> None:
        while data := _read(connection):
            for logged in nflog.decode(data):
                self._denied(logged)

    def _ended(self, ended: Ended) -> None:
        if ended.diverted or not ended.mark or ended.protocol not in _PROTOCOLS:
            # Of what was led to resolver and proxy these tell by themselves; what was denied was told.
            return
        occupant = self._occupant_at(ended.source, ended.mark)
        if occupant is None:
            return
        protocol, number = Protocol(ended.protocol), int(ipaddress.IPv4Address(ended.destination))
        occupant.sent += ended.sent
        occupant.received += ended.received
        self._log.add(
            at=None if ended.began is None else datetime.fromtimestamp(ended.began, UTC).isoformat(),
            sandbox=occupant.sandbox,
            kind=protocol.name.lower(),
            name=next(reversed(occupant.names_of(number)), None),
            address=ended.destination,
            port=ended.port or None,
            verdict=Verdict.ALLOWED if ended.answered else Verdict.FAILED,
            reason=None if ended.answered else "there was no answer",
            rule=occupant.compiled.connection(protocol, ended.port, number, None).title,
            sent=ended.sent,
            received=ended.received,
            duration=None if ended.began is None or ended.ended is None else round(ended.ended - ended.began, 3),
        )

    def _denied(self, logged: Logged) -> None:
        occupant = self._occupant_at(logged.source, logged.mark or None)
        if occupant is None or logged.protocol not in _PROTOCOLS:
            return
        now = time.monotonic()
        key = (occupant.sandbox, logged.protocol, logged.destination, logged.port)
        if now - self._told.get(key, -QUIET) < QUIET:
            return
        if len(self._told) > REMEMBERED:
            self._told = {key: at for key, at in self._told.items() if now - at < QUIET}
        self._told[key] = now
        protocol, number = Protocol(logged.protocol), int(ipaddress.IPv4Address(logged.destination))
        ruling = occupant.compiled.connection(protocol, logged.port, number, None)
        self._log.add(
            sandbox=occupant.sandbox,
            kind=protocol.name.lower(),
            name=next(reversed(occupant.names_of(number)), None),
            address=logged.destination,
            port=logged.port or None,
            verdict=Verdict.DENIED,
            rule=ruling.title if ruling.action is Action.DENY else None,
            reason=ruling.reason or _why(occupant, protocol, logged.port),
        )


def _why(occupant: Occupant, protocol: Protocol, port: int) -> str:
    """Of a denial that the policy's rules do not explain."""
    limit = occupant.tenant.policy.budget.bytes
    if limit is not None and occupant.spent:
        return f"the budget of {limit} bytes is spent"
    if protocol is Protocol.UDP and port == 443 and not occupant.tenant.policy.quic:
        return "QUIC is not let through, since the names in it are not checked"
    return "it is an address of the node, or there are too many connections"


def _read(connection: socket.socket) -> bytes:
    try:
        return connection.recv(RECEIVE)
    except OSError:
        # Nothing is there (any more), or so much that some was lost: what comes next is read next time.
        return b""


_SOL_NETLINK, _NO_ENOBUFS = 270, 5
