"""Answers the DNS queries of sandboxes, by their policies: pins before it answers, and tells its answers to nobody but who asked."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable

from corral.net import dns
from corral.net.arrival import mark_datagrams, mark_of, receive
from corral.net.dial import is_own
from corral.net.dns import Code, Ede, MalformedError, Query, Type
from corral.net.flow_log import FlowLog
from corral.net.occupant import KEPT, Occupant
from corral.net.policy import PUBLIC, Action, Nat, Ruling
from corral.net.ranges import Protocol, within
from corral.net.upstream import UnresolvedError, Upstream
from corral.schema.egress import Verdict

SINKHOLE = "192.0.0.1"
"""What denied names are told to be: the gateway. Web connections to it reach the proxy like any other, and are told why; all else is refused at once."""
SINKHOLE_TTL = 1
NAME = 160
"""Characters of a name: longer ones carry data, as a rule (the longest of the large clouds' have 110)."""
LOOKUPS = 64
"""Queries of one sandbox under way."""
ADDRESSES = 64
"""Of one name that a sandbox is told and may reach."""
LONGEST = 3600
"""Seconds for which an answer holds, whatever its server says."""
LIFE = 60.0
"""Seconds that a pin holds at least, besides `KEPT`."""
LOG_AGAIN = 60.0
STREAM_IDLE = 10.0
BURST = 64
RELAYED = frozenset({Type.NS, Type.CNAME, Type.SOA, Type.PTR, Type.MX, Type.TXT, Type.SRV, Type.CAA})
"""Types whose answers are passed on as they are, for names that may be resolved. All others but A are told to be empty: so no IPv6, no HTTP/3 hints, no ECH keys."""

Pin = Callable[[int, tuple[tuple[Protocol, int, int], ...], tuple[str, ...], float], None]


class Resolver:
    def __init__(self, *, occupant_at: Callable[[str, int | None], Occupant | None], upstream: Upstream, pin: Pin, log: FlowLog) -> None:
        self._occupant_at = occupant_at
        self._upstream = upstream
        self._pin = pin
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: dict[str, int] = {}

    # Sockets

    def listen(self, datagrams: socket.socket, streams: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for each in (datagrams, streams):
            each.settimeout(0)
        mark_datagrams(datagrams)
        loop.add_reader(datagrams, self._datagrams, datagrams)
        loop.add_reader(streams, self._accept, streams)

    def _datagrams(self, connection: socket.socket) -> None:
        for _ in range(BURST):
            try:
                data, mark, (address, port) = receive(connection, 4096)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # An earlier answer could not be delivered.
                continue

            def send(reply: bytes, to: tuple[str, int] = (address, port)) -> None:
                try:
                    connection.sendto(reply, to)
                except OSError:
                    # As any datagram, it may be lost.
                    pass

            self._query(data, address, mark, send)

    def _query(self, data: bytes, address: str, mark: int | None, send: Callable[[bytes], None]) -> None:
        """At once when nobody has to be asked."""
        reply = self.judge(data, address, mark, udp=True)
        if isinstance(reply, bytes):
            send(reply)
        elif reply is not None:
            self._start(self._later(reply, send))

    @staticmethod
    async def _later(reply: Awaitable[bytes | None], send: Callable[[bytes], None]) -> None:
        if (answer := await reply) is not None:
            send(answer)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(BURST):
            try:
                connection, (address, _) = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                continue
            if self._streams.get(address, 0) >= LOOKUPS:
                connection.close()
                continue
            self._streams[address] = self._streams.get(address, 0) + 1
            self._start(self._stream(connection, address))

    async def _stream(self, connection: socket.socket, address: str) -> None:
        writer: asyncio.StreamWriter | None = None
        mark = mark_of(connection)
        try:
            reader, writer = await asyncio.open_connection(sock=connection, limit=4096)
            while True:
                async with asyncio.timeout(STREAM_IDLE):
                    data = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                reply = self.judge(data, address, mark, udp=False)
                answer = reply if reply is None or isinstance(reply, bytes) else await reply
                if answer is None:
                    return
                writer.write(len(answer).to_bytes(2) + answer)
                async with asyncio.timeout(STREAM_IDLE):
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return
        finally:
            self._streams[address] -= 1
            if not self._streams[address]:
                del self._streams[address]
            if writer is not None:
                writer.close()
            else:
                connection.close()

    # Answers

    def judge(self, data: bytes, address: str, mark: int | None, *, udp: bool) -> bytes | Awaitable[bytes | None] | None:
        """The answer, or what it will be, or None: there is none, as for a sandbox that has gone meanwhile, whose address may be another's by now."""
        occupant = self._occupant_at(address, mark)
        if occupant is None:
            return None
        try:
            query = dns.parse_query(data)
        except MalformedError:
            return dns.refusal(data, Code.FORMERR)
        if occupant.compiled.kernel.nat is Nat.NONE:
            reason = "the egress policy of this sandbox is none"
            self._told(occupant, query, Ruling(Action.DENY, reason=reason))
            return dns.reply(query, Code.REFUSED, why=(Ede.BLOCKED, reason), udp=udp)
        if not occupant.queries.take(time.monotonic()) or occupant.lookups >= LOOKUPS:
            return dns.reply(query, Code.REFUSED, why=(Ede.PROHIBITED, "too many queries"), udp=udp)
        ruling = occupant.compiled.name(query.name)
        if len(query.name) > NAME:
            ruling = Ruling(Action.DENY, ruling.rule, reason=f"names of more than {NAME} characters are not resolved: they can carry data out")
        elif occupant.spent:
            ruling = Ruling(Action.DENY, reason="the sandbox's budget of bytes is spent")
        if ruling.action is Action.DENY:
            return self._denied(occupant, query, ruling, udp=udp)
        if query.type == Type.A:
            known = self._upstream.cached(query.name)
            return self._addresses(occupant, query, ruling, known, udp=udp) if known is not None else self._ask(occupant, query, ruling, udp=udp)
        if query.type not in RELAYED or (query.type == Type.PTR and not _public(query.name)):
            return dns.reply(query, udp=udp)
        return self._relay(occupant, query, ruling, udp=udp)

    async def _ask(self, occupant: Occupant, query: Query, ruling: Ruling, *, udp: bool) -> bytes | None:
        occupant.lookups += 1
        try:
            answer = await self._upstream.addresses(query.name)
        except UnresolvedError as error:
            if occupant.left:
                return None
            self._told(occupant, query, ruling, failed=str(error))
            return dns.reply(query, Code.SERVFAIL, why=(Ede.NO_REACHABLE_AUTHORITY, str(error)), udp=udp)
        finally:
            occupant.lookups -= 1
        if occupant.left:
            return None
        # The policy may have changed while we waited.
        ruling = occupant.compiled.name(query.name)
        if ruling.action is Action.DENY:
            return self._denied(occupant, query, ruling, udp=udp)
        return self._addresses(occupant, query, ruling, answer, udp=udp)

    def _addresses(self, occupant: Occupant, query: Query, ruling: Ruling, answer: dns.Answer, *, udp: bool) -> bytes:
        if (denied := occupant.compiled.alias(answer.aliases)) is not None:
            return self._denied(occupant, query, denied, udp=udp)
        if not answer.addresses:
            self._told(occupant, query, ruling)
            return dns.reply(query, Code(answer.code) if answer.code in (Code.NXDOMAIN, Code.SERVFAIL, Code.REFUSED) else Code.NOERROR, udp=udp)
        refused = {a: reason for a in answer.addresses if (reason := occupant.compiled.reachable(int(ipaddress.IPv4Address(a))) or is_own(a))}
        good = tuple(a for a in answer.addresses if a not in refused)
        if not good:
            return self._denied(
                occupant, query, Ruling(Action.DENY, ruling.rule, reason=f"{query.name} points nowhere allowed: {next(iter(refused.values()))}"), udp=udp
            )
        good, ttl = good[:ADDRESSES], min(answer.ttl, LONGEST)
        occupant.resolved(query.name, good, ttl)
        if ports := occupant.compiled.pins(query.name):
            self._pin(occupant.tenant.generation, ports, good, max(ttl, LIFE) + KEPT)
        self._told(occupant, query, ruling)
        return dns.reply(query, addresses=good, ttl=ttl, udp=udp)

    async def _relay(self, occupant: Occupant, query: Query, ruling: Ruling, *, udp: bool) -> bytes | None:
        occupant.lookups += 1
        try:
            asked, reply = await self._upstream.exchange(query.name, query.type)
        except UnresolvedError as error:
            return None if occupant.left else dns.reply(query, Code.SERVFAIL, why=(Ede.NO_REACHABLE_AUTHORITY, str(error)), udp=udp)
        finally:
            occupant.lookups -= 1
        if occupant.left:
            return None
        self._told(occupant, query, ruling)
        end = len(asked) - 11
        if udp and len(reply) > query.payload:
            return query.id.to_bytes(2) + (0x8380).to_bytes(2) + b"\0\1\0\0\0\0\0\0" + query.question
        return query.id.to_bytes(2) + reply[2 : dns.HEADER] + query.question + reply[end:]

    def _denied(self, occupant: Occupant, query: Query, ruling: Ruling, *, udp: bool) -> bytes:
        self._told(occupant, query, ruling)
        why = (Ede.BLOCKED, ruling.reason or "denied by the egress policy")
        if not occupant.compiled.sinkhole:
            return dns.reply(query, Code.REFUSED, why=why, udp=udp)
        if query.type == Type.A:
            return dns.reply(query, addresses=(SINKHOLE,), ttl=SINKHOLE_TTL, why=why, udp=udp)
        return dns.reply(query, why=why, udp=udp)

    def _told(self, occupant: Occupant, query: Query, ruling: Ruling, *, failed: str | None = None) -> None:
        """Into the flow log, the same question once a minute."""
        verdict = Verdict.FAILED if failed else Verdict.DENIED if ruling.action is Action.DENY else Verdict.ALLOWED
        now = time.monotonic()
        key = (query.name, query.type, verdict)
        if now - occupant.logged.get(key, -LOG_AGAIN) < LOG_AGAIN:
            return
        if len(occupant.logged) > 4096:
            occupant.logged.clear()
        occupant.logged[key] = now
        self._log.add(sandbox=occupant.sandbox, kind="dns", name=query.name, port=53, verdict=verdict, rule=ruling.title, reason=failed or ruling.reason)


def _public(name: str) -> bool:
    """Whether a name for reverse look-ups is one of a public address: those of private ones tell of the machine's neighbours."""
    labels = name.removesuffix(".in-addr.arpa").split(".")
    try:
        return name.endswith(".in-addr.arpa") and within(int(ipaddress.IPv4Address(".".join(reversed(labels)))), PUBLIC)
    except ValueError:
        return False
