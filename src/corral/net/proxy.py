"""The transparent proxy: takes the connections that the switch leads to it, tells where they want to go, and splices, serves, holds or refuses them."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections.abc import Callable
from typing import Literal

from corral.net import denial, dial
from corral.net.arrival import mark_of
from corral.net.clienthello import Hello
from corral.net.dial import FailedError, RefusedError
from corral.net.occupant import Held, Occupant
from corral.net.peek import Gone, Http, Http2, Other, Tls, peek
from corral.net.policy import Action, By, Compiled, Ruling
from corral.net.ranges import Protocol
from corral.net.splice import relay
from corral.net.visit import Services, Visit
from corral.net.web import Web
from corral.schema.egress import Verdict

BURST = 64
CUT = "cut: the egress policy has changed, or the sandbox ended"
SO_ORIGINAL_DST = 80
Kind = Literal["tcp", "tls", "http2"]
_NAMELESS: dict[Kind, str] = {
    "tcp": "this is neither HTTP nor TLS",
    "tls": "this TLS connection names no server (SNI)",
    "http2": "this is HTTP/2 without TLS, whose requests are not read (HTTP/1.1 is)",
}
KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 20), (socket.TCP_KEEPCNT, 6))


class Proxy:
    def __init__(self, services: Services, occupant_at: Callable[[str, int | None], Occupant | None]) -> None:
        self._services = services
        self._occupant_at = occupant_at
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, listener: socket.socket) -> None:
        listener.settimeout(0)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(BURST):
            try:
                connection, (source, _) = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue
            except OSError:
                # No descriptor is left. Those who wait are served when others have gone; a pause keeps the loop from spinning until then.
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                loop.call_later(0.1, loop.add_reader, listener, self._accept, listener)
                return
            self._greet(connection, source)

    def _greet(self, connection: socket.socket, source: str) -> None:
        occupant = self._occupant_at(source, mark_of(connection))
        try:
            address, port = _original(connection)
        except OSError:
            connection.close()
            return
        if occupant is None:
            denial.reset(connection)
            return
        visit = Visit(self._services, occupant, address, port)
        if occupant.full or occupant.spent:
            reason = "too many connections at once" if occupant.full else "the sandbox's budget of bytes is spent"
            visit.told("tcp", Verdict.DENIED, Ruling(Action.DENY, reason=reason))
            denial.reset(connection)
            return
        connection.settimeout(0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        task = asyncio.get_running_loop().create_task(self._serve(visit, connection))
        # Of a connection that has not told its name yet, whatever holds then is asked then.
        held = visit.held = Held(lambda compiled: not compiled.kernel.closed, lambda: _cut(task, connection))
        occupant.connections.add(held)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            occupant.connections.discard(held)
            connection.close()
            if not task.cancelled() and (error := task.exception()) is not None:
                asyncio.get_running_loop().call_exception_handler({"message": "a connection through the proxy failed", "exception": error})

        task.add_done_callback(ended)

    async def _serve(self, visit: Visit, connection: socket.socket) -> None:
        if not visit.occupant.compiled.reads(visit.port):
            await self._unread(visit, connection)
            return
        # A connection that ends without a word is a client's preparation, and no news.
        match await peek(connection):
            case Tls(hello):
                visit.name = hello.name
                await self._tls(visit, connection, hello)
            case Http():
                await Web(visit, scheme="http").serve(connection)
            case Http2():
                await self._unread(visit, connection, "http2", web=True)
            case Other():
                await self._unread(visit, connection, web=True)
            case Gone(any=True):
                visit.told("tcp", Verdict.FAILED, Ruling(Action.DENY), reason="the sandbox did not send a whole beginning in time")
            case Gone():
                pass

    async def _tls(self, visit: Visit, connection: socket.socket, hello: Hello) -> None:
        def judge(compiled: Compiled) -> Ruling:
            return compiled.connection(Protocol.TCP, visit.port, visit.number, visit.name)

        ruling = judge(visit.occupant.compiled)
        if ruling.content and hello.protocols and "http/1.1" not in hello.protocols:
            reason = f"this host's requests are read, which is possible with HTTP/1.1 only; the program insists on {', '.join(hello.protocols)}"
            visit.told("tls", Verdict.DENIED, Ruling(Action.DENY, ruling.rule, reason=reason))
            denial.alert(connection, denial.NO_APPLICATION_PROTOCOL)
            return
        if ruling.content:
            # What is asked for is told by the requests.
            await Web(visit, scheme="https").serve(connection)
            return
        if hello.name is None:
            await self._unread(visit, connection, "tls", web=True)
            return
        visit.stays(lambda compiled: not (now := judge(compiled)).content and visit.goes_on(compiled, now))
        ruling = await visit.settled(ruling)
        if ruling.action is Action.DENY:
            if visit.occupant.tenant.policy.inspects and visit.name is not None:
                await Web(visit, scheme="https", refused=ruling).serve(connection)
            else:
                visit.told("tls", Verdict.DENIED, ruling)
                denial.alert(connection)
            return
        await self._pass(visit, connection, ruling, "tls")

    async def _unread(self, visit: Visit, connection: socket.socket, kind: Kind = "tcp", *, web: bool = False) -> None:
        """A connection that tells no name: by its address, and the names under which the sandbox has found it. `web`: names are told on this port as a rule."""
        names = visit.occupant.names_of(visit.number)

        def judge(compiled: Compiled) -> tuple[Ruling, str | None]:
            rulings = [(compiled.connection(Protocol.TCP, visit.port, visit.number, name), name) for name in (*reversed(names), None)]
            denied = next((one for one in rulings if one[0].action is Action.DENY and one[0].rule is not None), None)
            ruling, name = denied or next((one for one in rulings if one[0].action is not Action.DENY), rulings[0])
            if ruling.content:
                reason = f"{_NAMELESS[kind]}, and what the egress policy says of its destination is about HTTP"
                return Ruling(Action.DENY, ruling.rule, reason=reason), name
            if web and ruling.action is not Action.DENY and ((ruling.rule is not None and ruling.by is By.NAME) or compiled.nameless(ruling.rule)):
                # Servers may read more into it than we do: an empty line and then a Host of theirs, a greeting longer than ours may be.
                if (opened := compiled.opened(visit.port, visit.number)) is not None:
                    return opened, name
                return Ruling(Action.DENY, reason=f"{_NAMELESS[kind]}, and names are told apart on this port"), name
            return ruling, name

        def refuse(reason: str | None) -> None:
            match kind:
                case "tls":
                    denial.alert(connection)
                case "http2":
                    denial.goaway(connection, reason or _NAMELESS[kind])
                case "tcp":
                    denial.reset(connection)

        told = "tls" if kind == "tls" else "tcp"
        visit.stays(lambda compiled: visit.goes_on(compiled, judge(compiled)[0]))
        ruling, visit.name = judge(visit.occupant.compiled)
        if visit.name is None and names:
            visit.name = names[-1]
        ruling = await visit.settled(ruling)
        if ruling.action is Action.DENY:
            visit.told(told, Verdict.DENIED, ruling)
            refuse(ruling.reason)
            return
        # The address is one that we have told for the name, or that a rule opens.
        reachable = visit.occupant.compiled.reachable(visit.number, Protocol.TCP, visit.port) if ruling.by is By.NAME else None
        if reachable:
            visit.told(told, Verdict.DENIED, Ruling(Action.DENY, ruling.rule, reason=reachable))
            refuse(reachable)
            return
        await self._pass(visit, connection, Ruling(Action.ALLOW, ruling.rule, By.ADDRESS), told)

    async def _pass(self, visit: Visit, connection: socket.socket, ruling: Ruling, kind: str) -> None:
        try:
            if ruling.by is By.NAME and visit.name is not None:
                far = await dial.to_name(visit.name, visit.port, visit.occupant.compiled, self._services.upstream)
            else:
                far = await dial.to_address(visit.address, visit.port)
        except RefusedError as error:
            visit.told(kind, Verdict.DENIED, ruling, reason=str(error))
            (denial.alert if kind == "tls" else denial.reset)(connection)
            return
        except FailedError as error:
            visit.told(kind, Verdict.FAILED, ruling, reason=str(error))
            denial.reset(connection)
            return
        reason: str | None = None
        try:
            visit.reached = far.getpeername()[0]
            if visit.cut_already:
                reason = CUT
                denial.reset(connection)
                return
            await relay(connection, far, up=visit.up, down=visit.down, purse=visit.occupant.purse)
            if visit.occupant.spent:
                reason = "cut: the sandbox's budget of bytes is spent"
        except asyncio.CancelledError:
            reason = CUT
            raise
        except OSError:
            # It ended between two steps.
            pass
        finally:
            far.close()
            visit.told(kind, Verdict.ALLOWED, ruling, reason=reason)


def _cut(task: asyncio.Task[None], connection: socket.socket) -> None:
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass
    task.cancel()


def _original(connection: socket.socket) -> tuple[str, int]:
    """What was dialled before the switch led it here; without such an entry, our own end."""
    try:
        entry = connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
    except FileNotFoundError:
        address, port = connection.getsockname()
        return str(address), int(port)
    return str(ipaddress.IPv4Address(entry[4:8])), int.from_bytes(entry[2:4])
