"""Connections out, from the machine's own namespace: to our own resolution of a name, or to the address that was dialled, as the policy allows; never to the machine itself."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from corral.net.policy import Compiled
from corral.net.ranges import Protocol
from corral.net.upstream import UnresolvedError, Upstream

CONNECT = 10.0
"""Seconds for one address."""
ADDRESSES = 4
"""Of a name, tried one after the other."""


DIALLED = 0xC0
"""Mark of all packets of these connections: this machine's table keeps them away from the machine itself."""
_SO_MARK = 36


class RefusedError(Exception):
    """Where the name points to is not allowed. The text is the reason."""


class FailedError(Exception):
    """Allowed, but not reached. The text is the reason."""


def is_own(address: str) -> str | None:
    """A reason when an address is the machine's own (whatever is added to it later: one can only be bound to an address that is)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return None
    return f"{address} is an address of this machine or a reserved one"


async def to_name(name: str, port: int, compiled: Compiled, upstream: Upstream) -> socket.socket:
    """A connection to what we resolve the name to. Raises `RefusedError`, `FailedError`."""
    try:
        answer = await upstream.addresses(name)
    except UnresolvedError as error:
        raise FailedError(str(error)) from None
    if (denied := compiled.alias(answer.aliases)) is not None:
        raise RefusedError(denied.reason)
    if not answer.addresses:
        raise FailedError(f"the name {name} has no address")
    refused: str | None = None
    failed = ""
    for address in answer.addresses[:ADDRESSES]:
        if reason := compiled.reachable(int(ipaddress.IPv4Address(address)), Protocol.TCP, port):
            refused = refused or reason
            continue
        try:
            return await to_address(address, port)
        except FailedError as error:
            failed = str(error)
        except RefusedError as error:
            refused = refused or str(error)
    if failed:
        raise FailedError(failed)
    raise RefusedError(f"{name} points nowhere allowed: {refused}")


async def to_address(address: str, port: int) -> socket.socket:
    """A connection to an address that the policy allows. Raises `RefusedError` when it is the machine's own, `FailedError`."""
    if reason := is_own(address):
        raise RefusedError(reason)
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        connection.settimeout(0)
        connection.setsockopt(socket.SOL_SOCKET, _SO_MARK, DIALLED)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        async with asyncio.timeout(CONNECT):
            await asyncio.get_running_loop().sock_connect(connection, (address, port))
    except TimeoutError:
        connection.close()
        raise FailedError(f"{address}:{port} did not answer within {CONNECT:g} s") from None
    except OSError as error:
        connection.close()
        raise FailedError(f"{address}:{port}: {error.strerror or error}") from None
    except BaseException:
        connection.close()
        raise
    return connection
