"""Asks the machine's own resolvers: random ports and numbers, time-outs, TCP when an answer was cut, a cache, one question at a time for each name."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

from corral.net import dns
from corral.net.dns import Answer, Code, MalformedError, Type

RESOLV_CONF = Path("/etc/resolv.conf")
TRY = 2.0
"""Seconds for one try at one server."""
TRIES = 2
"""Rounds over all servers."""
SERVERS = 3
CACHED = 20_000
LEAST, MOST = 1, 300
"""Seconds that an answer is cached."""
FAILED = 5


class UnresolvedError(OSError):
    """No resolver of this machine answers."""


Server = tuple[str, int]


def servers_of_machine(path: Path = RESOLV_CONF) -> list[Server]:
    """Its `nameserver` lines, IPv4 only; 127.0.0.1 when there is none, as resolv.conf(5) says."""
    found: list[Server] = []
    try:
        text = path.read_text(errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append((str(ipaddress.IPv4Address(words[1])), 53))
            except ValueError:
                continue
    return found[:SERVERS] or [("127.0.0.1", 53)]


class Upstream:
    """`servers` is asked for each question that is not cached, so that a change of the machine's resolvers is followed."""

    def __init__(self, servers: Callable[[], list[Server]] = servers_of_machine) -> None:
        self._servers = servers
        self._cache: dict[str, tuple[float, Answer]] = {}
        self._asking: dict[str, asyncio.Task[Answer]] = {}

    def cached(self, name: str) -> Answer | None:
        """What is known of a name's addresses, with what is left of its life."""
        if (entry := self._cache.get(name)) is None:
            return None
        left = entry[0] - time.monotonic()
        if left <= 0:
            del self._cache[name]
            return None
        return Answer(entry[1].code, truncated=False, addresses=entry[1].addresses, aliases=entry[1].aliases, ttl=max(1, int(left)))

    async def addresses(self, name: str) -> Answer:
        """A records of a name. Raises `UnresolvedError`."""
        if (known := self.cached(name)) is not None:
            return known
        if (task := self._asking.get(name)) is None:
            task = self._asking[name] = asyncio.create_task(self._ask(name))
            task.add_done_callback(lambda done: (self._asking.pop(name, None), done.cancelled() or done.exception()))
        return await asyncio.shield(task)

    async def _ask(self, name: str) -> Answer:
        asked, reply = await self.exchange(name, Type.A)
        answer = dns.parse_answer(reply, asked)
        life = FAILED if answer.code not in (Code.NOERROR, Code.NXDOMAIN) else min(max(answer.ttl, LEAST), MOST)
        self._cache[name] = time.monotonic() + life, answer
        while len(self._cache) > CACHED:
            del self._cache[next(iter(self._cache))]
        return answer

    async def exchange(self, name: str, type: int) -> tuple[bytes, bytes]:
        """A question of ours and the answer to it, as they went over the wire. Raises `UnresolvedError`."""
        if not dns.is_name(name):
            raise UnresolvedError(f"{name[:100]!r} is no name")
        servers = self._servers()
        reason = "none is configured"
        for server in servers * TRIES:
            asked = dns.question(secrets.randbits(16), name, type)
            try:
                async with asyncio.timeout(TRY):
                    reply = await _datagram(server, asked)
                    if dns.parse_answer(reply, asked).truncated:
                        reply = await _stream(server, asked)
            except (OSError, TimeoutError, MalformedError) as error:
                reason = f"{server[0]}: {error or 'no answer'}"
                continue
            if reply[3] & 15 in (Code.SERVFAIL, Code.REFUSED) and len(servers) > 1 and server != servers[-1]:
                continue
            return asked, reply
        raise UnresolvedError(f"no resolver of this machine answers about {name} ({reason})")


async def _datagram(server: Server, asked: bytes) -> bytes:
    """The answer to this very question; forged or late ones are passed over."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(0)
        # The kernel's port for it is as random as the number; connected, so that only this server is heard.
        connection.connect(server)
        connection.send(asked)
        while True:
            reply = await loop.sock_recv(connection, 4096)
            try:
                dns.parse_answer(reply, asked)
            except MalformedError:
                continue
            return reply


async def _stream(server: Server, asked: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(len(asked).to_bytes(2) + asked)
        reply = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        dns.parse_answer(reply, asked)
        return reply
    except asyncio.IncompleteReadError as error:
        raise MalformedError("an answer cut short") from error
    finally:
        writer.close()
