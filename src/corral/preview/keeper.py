"""The preview process of an installation, as the server has it: started through the holder, so that it outlives the server; started again when it ends; asked questions by it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from corral.errors import CorralError, SetupError, Unavailable
from corral.net.edge_link import Link
from corral.node.companion import LISTENER, Companion
from corral.node.holder_client import HolderClient
from corral.places import Places
from corral.preview.access import Settings
from corral.preview.doors import Door, as_message
from corral.preview.process import VERSION

PATIENCE = 20.0
"""Seconds a fresh process may take to greet; it takes half a one, more on a busy machine."""
HUSH_PATIENCE = 12.0
"""Seconds it may take to be silent towards a sandbox: a little more than it gives a slow guest."""
RETRY = (0.1, 30.0)
"""Seconds before it is started again: the first time, and at most."""
KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 20), (socket.TCP_KEEPCNT, 6))
"""When the kernel asks a silent client whether it is there: websockets may be silent for days, and whoever has closed a laptop says nothing."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Found:
    """A sandbox, and the number of its relay link (still its owner's); None when it would have to be woken. `paused`: then what is connected goes on."""

    project: str
    settings: Settings
    relay: int | None
    paused: bool = False


@dataclass(frozen=True)
class Refused:
    """Why there is none, as the client is told."""

    status: int
    code: str
    message: str
    hint: str | None = None
    title: str | None = None
    retry: int | None = None
    body: dict[str, Any] | None = None
    """What programs are told in place of Corral's own words, where clients of a facade expect others."""


class Knowledge(Protocol):
    """What the server knows, and the process does not."""

    async def find(self, sandbox: str, *, people: bool, wake: bool) -> Found | Refused:
        """`people`: they see a page that asks again, so they are answered soon; programs wait. `wake`: the request may see it, so it is woken."""
        ...

    async def serve(self, sandbox: str, port: int, *, people: bool) -> bool | Refused:
        """Nothing listens on a port that was asked for: whether a service was started that does now."""
        ...

    def opens(self, key: str, project: str) -> bool:
        """Whether this API key may use the project's sandboxes."""
        ...

    def keep_awake(self, sandbox: str, *, on: bool) -> None: ...

    def exposed(self, sandbox: str, at: str, *, on: bool) -> None:
        """NAME:PORT inside is served from outside from now on, or no more."""
        ...


@dataclass(frozen=True)
class Edge:
    """What the edge is. `fixed`: the port was chosen, and no other will do. `server`: where the API answers."""

    host: str
    port: int
    fixed: bool
    chain: Path | None
    """The certificate and its key, where TLS is spoken as well; on `tls_port`."""
    tls_port: int
    tls_fixed: bool
    domains: tuple[str, ...]
    doors: Sequence[Door]
    server: tuple[str, int]
    front: bool = False
    """Whether a proxy of this machine stands before it, with a public name."""


class Keeper:
    """The process and the connection to it. Lives on the event loop."""

    def __init__(self, places: Places, knowledge: Knowledge) -> None:
        self._process = Companion(places.preview_socket, places.preview_pid, places.logs / "preview.log")
        self._knowledge = knowledge
        self._holder: HolderClient | None = None
        self._edge: Edge | None = None
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._greeting: asyncio.Future[dict[str, Any]] | None = None
        self._lost = asyncio.Event()
        self._awake: set[str] = set()
        self._known: set[str] = set()
        self._hushing: dict[str, asyncio.Future[None]] = {}
        """Sandboxes that nothing is to be sent to now; done when the process has said that it sends nothing."""
        self.pid = 0
        self.port = 0
        """Where the edge listens …"""
        self.tls_port = 0
        """… and with TLS; 0: not."""

    async def open(self, holder: HolderClient, edge: Edge) -> None:
        """Take over the process of an earlier server, or start one. Raises `SetupError` when its port is taken, `Unavailable` when it does not come."""
        self._holder, self._edge = holder, edge
        try:
            if not (self._process.running() and await self._taken_over()):
                await self._start()
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"the preview process could not be started: {error or 'it takes too long'}", hint=f"see {self._process.log}") from None
        self._task = asyncio.create_task(self._keep(), name="preview process")

    async def close(self) -> None:
        """Leave it to the next server; connections go on."""
        for task in (*self._answering, *([self._task] if self._task else [])):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._task = None
        self._disconnect()

    async def shutdown(self, holder: HolderClient) -> None:
        """End it, also one of an earlier server that was not taken over."""
        await self.close()
        await self._process.remove(holder)

    # What it is told

    def changed(self, sandbox: str, settings: Settings) -> None:
        if sandbox in self._known:
            self._send({"op": "settings", "sandbox": sandbox, **_settings(settings)})

    def back(self, sandbox: str) -> None:
        """It runs again: what was connected before it was paused goes on."""
        if sandbox in self._known:
            self._send({"op": "back", "sandbox": sandbox})

    def gone(self, sandbox: str) -> None:
        """Its connections end."""
        if sandbox in self._known:
            self._known.discard(sandbox)
            self._send({"op": "drop", "sandbox": sandbox})

    @asynccontextmanager
    async def quiet(self, sandbox: str) -> AsyncGenerator[None]:
        """While this lasts, nothing is sent to a sandbox' ports: what comes for them waits."""
        hushed = self._hushing[sandbox] = asyncio.get_running_loop().create_future()
        try:
            # Also when it does not know the sandbox: it may be about to.
            if self._link is not None and self._link.open:
                self._send({"op": "hush", "sandbox": sandbox})
                await asyncio.wait([hushed], timeout=HUSH_PATIENCE)
                if not hushed.done():
                    log.warning("the preview process does not say that it is silent", sandbox=sandbox)
            yield
        finally:
            del self._hushing[sandbox]
            hushed.cancel()
            self._send({"op": "speak", "sandbox": sandbox})

    def revoked(self) -> None:
        """A key that may have been believed is no longer one."""
        self._send({"op": "keys"})

    def _send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        if self._link is not None and self._link.open:
            with contextlib.suppress(ConnectionResetError):
                self._link.send(message, fds)

    # What it says

    def _message(self, message: dict[str, Any], fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        if "preview" in message:
            if self._greeting is not None and not self._greeting.done():
                self._greeting.set_result(message)
        elif "q" in message:
            task = asyncio.get_running_loop().create_task(self._answer(message))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        elif "awake" in message:
            self._keep_awake(str(message["awake"]), on=bool(message["on"]))
        elif "hushed" in message:
            if (hushed := self._hushing.get(str(message["hushed"]))) is not None and not hushed.done():
                hushed.set_result(None)
        elif "exposed" in message:
            self._knowledge.exposed(str(message["sandbox"]), str(message["exposed"]), on=bool(message["on"]))

    def _keep_awake(self, sandbox: str, *, on: bool) -> None:
        (self._awake.add if on else self._awake.discard)(sandbox)
        self._knowledge.keep_awake(sandbox, on=on)

    async def _answer(self, question: dict[str, Any]) -> None:
        number = question["q"]
        if question["ask"] == "key":
            self._send({"a": number, "opens": self._knowledge.opens(question["key"], question["project"])})
            return
        sandbox = str(question["sandbox"])
        if question["ask"] == "serve":
            served = await self._knowledge.serve(sandbox, int(question["port"]), people=bool(question["people"]))
            self._send({"a": number, "refuse": vars(served)} if isinstance(served, Refused) else {"a": number, "served": served})
            return
        match await self._knowledge.find(sandbox, people=bool(question["people"]), wake=bool(question["wake"])):
            case Found() as found:
                self._known.add(sandbox)
                answer = {"a": number, "project": found.project, "paused": found.paused, **_settings(found.settings)}
                self._send(answer, [] if found.relay is None else [found.relay])
            case Refused() as refused:
                self._send({"a": number, "refuse": vars(refused)})

    # The process

    async def _keep(self) -> None:
        delay = RETRY[0]
        while True:
            await self._lost.wait()
            log.error("the preview process went away; starting another", pid=self.pid)
            try:
                await self._start()
                delay = RETRY[0]
            except (CorralError, OSError, TimeoutError) as error:
                log.error("the preview process could not be started", error=str(error) or type(error).__name__, retry_in=delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY[1])

    async def _taken_over(self) -> bool:
        try:
            await self._connect()
        except SetupError:
            raise
        except (CorralError, OSError, TimeoutError) as error:
            log.warning("the preview process of an earlier server is of no use", error=str(error))
            return False
        return True

    async def _start(self) -> None:
        assert self._holder is not None
        self._disconnect()
        await self._process.end(self._holder)
        with self._process.listener() as listener:
            argv = [sys.executable, "-I", "-m", "corral.preview.process", "--listener", str(LISTENER), str(self._process.at)]
            await self._process.start(self._holder, argv, listener, env={"PATH": os.environ.get("PATH", os.defpath)})
        await self._connect()

    async def _connect(self) -> None:
        assert self._edge is not None
        self._lost.clear()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(0)
        loop = asyncio.get_running_loop()
        self._greeting = loop.create_future()
        try:
            await loop.sock_connect(connection, str(self._process.at))
        except BaseException:
            connection.close()
            raise
        self._link = Link(connection, self._message, self._gone)
        async with asyncio.timeout(PATIENCE):
            greeting = await self._greeting
        if greeting["preview"] != VERSION:
            raise Unavailable(f"the running preview process speaks version {greeting['preview']}, this server {VERSION}", hint="it is started again")
        self.pid, self._known = int(greeting["pid"]), set(greeting["boxes"])
        for sandbox in self._hushing:
            self._send({"op": "hush", "sandbox": sandbox})  # before it is lent a link
        self._configure(self._edge, greeting["listens"])

    def _configure(self, edge: Edge, listens: list[list[Any]]) -> None:
        listening = {bool(secure): (host, int(port)) for secure, host, port in listens}
        fresh: dict[bool, socket.socket] = {}
        try:
            for secure, wanted in ((False, self.port or edge.port), *(((True, self.tls_port or edge.tls_port),) if edge.chain else ())):
                host, port = listening.get(secure, ("", 0))
                fixed = edge.tls_fixed if secure else edge.fixed
                # A port that nobody chose is kept, since links with it are out already.
                if host != edge.host or (wanted not in (0, port) and (fixed or not port)):
                    fresh[secure] = _listen(edge, wanted, fixed=fixed)
                    port = int(fresh[secure].getsockname()[1])
                if secure:
                    self.tls_port = port
                else:
                    self.port = port
            chain = None if edge.chain is None else str(edge.chain)
            message = {"op": "config", "domains": edge.domains, "doors": as_message(edge.doors), "door": edge.server, "chain": chain, "front": edge.front}
            self._send({**message, "fresh": list(fresh)}, [listener.fileno() for listener in fresh.values()])
        finally:
            for listener in fresh.values():
                listener.close()

    def _disconnect(self) -> None:
        for sandbox in list(self._awake):
            self._keep_awake(sandbox, on=False)
        self._known.clear()
        if self._link is not None:
            self._link.close()
            self._link = None

    def _gone(self) -> None:
        if self._greeting is not None and not self._greeting.done():
            self._greeting.set_exception(ConnectionResetError("the preview process hung up"))
        for hushed in self._hushing.values():
            hushed.cancel()
        self._lost.set()


def _settings(settings: Settings) -> dict[str, Any]:
    return {
        "token": settings.token,
        "public": sorted(settings.public),
        "every": settings.every,
        "only": None if settings.only is None else sorted(settings.only),
        "forbids": settings.forbids,
        "hosts": {str(port): host for port, host in settings.hosts.items()},
    }


def _listen(edge: Edge, port: int, *, fixed: bool) -> socket.socket:
    try:
        return _bound(edge.host, port)
    except OSError as error:
        if fixed:
            hint = "choose another one with --edge-port or --tls-port"
            raise SetupError(f"can't listen on {edge.host}:{port} for previews: {error.strerror}", hint=hint) from None
        listener = _bound(edge.host, 0)
        log.warning("the usual port of previews is taken", port=port, instead=listener.getsockname()[1])
        return listener


def _bound(host: str, port: int) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # What is accepted has it from the listener.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener
