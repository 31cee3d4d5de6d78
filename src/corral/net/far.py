"""The real server of HTTP requests: who is meant, and a connection to it for as long as requests go to the same."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import h11

from corral.net import dial, head, streams
from corral.net.dial import RefusedError
from corral.net.head import Scheme
from corral.net.policy import By, Compiled, Ruling
from corral.net.ranges import Protocol
from corral.net.visit import Visit

HANDSHAKE: Final = 10.0
"""Seconds for the handshake of TLS."""


@dataclass(frozen=True)
class Target:
    """Who is meant, in the end."""

    host: str | None
    """A name, or None: the address that the sandbox dialled."""
    port: int
    tls: bool
    chosen: bool = False
    """By the policy (a rule's `proxy`), not by the sandbox."""


@dataclass(frozen=True)
class Far:
    """A connection to a server."""

    target: Target
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    protocol: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT, head.SIZE))

    @property
    def usable(self) -> bool:
        """For another request."""
        return not self.reader.at_eof() and self.protocol.our_state is h11.IDLE and self.protocol.their_state is h11.IDLE


def target(visit: Visit, ruling: Ruling, scheme: Scheme) -> Target:
    """Who is meant by a request."""
    if ruling.rule is not None and ruling.rule.proxy is not None:
        parts = urlsplit(ruling.rule.proxy)
        tls = parts.scheme == "https"
        return Target(parts.hostname or "", parts.port or (443 if tls else 80), tls, chosen=True)
    return Target(visit.name if ruling.by is By.NAME else None, visit.port, scheme == "https")


def goes_on(visit: Visit, compiled: Compiled, ruling: Ruling, server: Far) -> bool:
    """Whether requests may go on to a server that was connected to under an earlier policy."""
    if server.target.chosen and visit.reached is not None:
        protocol = None if head.is_address(server.target.host or "") else Protocol.TCP
        return compiled.reachable(int(ipaddress.IPv4Address(visit.reached)), protocol, server.target.port) is None
    return visit.goes_on(compiled, ruling)


async def connect(visit: Visit, wanted: Target) -> Far:
    """Raises `RefusedError` when it must not be reached, `FailedError` or `OSError` when it can't."""
    compiled = visit.occupant.compiled
    if wanted.host is None:
        connection = await dial.to_address(visit.address, wanted.port)
    elif wanted.chosen and head.is_address(wanted.host):
        if reason := compiled.reachable(int(ipaddress.IPv4Address(wanted.host)), None):
            raise RefusedError(reason)
        connection = await dial.to_address(wanted.host, wanted.port)
    else:
        connection = await dial.to_name(wanted.host, wanted.port, compiled, visit.services.upstream)
    visit.reached = connection.getpeername()[0]
    try:
        # The real name is verified, whatever certificate was shown to the sandbox.
        name, context = wanted.host or visit.name or visit.address, visit.services.verifying if wanted.tls else None
        reader, writer = await streams.connected(connection, visit.occupant.room, context, name=name, handshake=HANDSHAKE)
    except BaseException:
        connection.close()
        raise
    return Far(wanted, reader, writer)
