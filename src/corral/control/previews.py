"""What sandboxes show to whom, and what the preview process is told when it asks."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Protocol

from corral.control import lifecycle
from corral.control.accounts import Accounts
from corral.control.ports import Node, SandboxRows
from corral.control.record import Exposure, Record, moment
from corral.control.registry import Living
from corral.control.roles import Actor, Permission, acting_in
from corral.control.sandboxes import Sandboxes
from corral.errors import CorralError, InvalidArgument
from corral.preview import access
from corral.preview.access import Settings
from corral.preview.keeper import Found, Refused
from corral.schema.preview import Held, Link, LinkCreate, Preview, PreviewChange
from corral.schema.sandbox import State
from corral.schema.service import Service, ServiceState

PROGRAMS_WAIT = 30.0
"""Seconds that programs wait for a sandbox that is being made or woken …"""
PEOPLE_WAIT = 3.0
"""… and people, before they see a page that asks again by itself."""
HOSTS = 64
"""Ports of a sandbox with a Host of their own, at most."""


class Process(Protocol):
    """The preview process, as far as it must be told."""

    @property
    def port(self) -> int: ...
    def changed(self, sandbox: str, settings: Settings) -> None: ...
    def back(self, sandbox: str) -> None: ...
    def gone(self, sandbox: str) -> None: ...


class Guise(Protocol):
    """What clients of a facade expect of the ports of sandboxes that they made."""

    def wakes(self, record: Record) -> bool:
        """Whether a request resumes one that is paused."""
        ...

    async def wake(self, living: Living) -> None: ...
    def gone(self, record: Record) -> Refused: ...
    def closed(self, record: Record, port: int) -> Refused: ...


@dataclass(frozen=True)
class Address:
    """How the edge is reached from outside: `{scheme}://{name}.{authority}`."""

    scheme: str
    authority: str

    def of(self, sandbox: str, port: int) -> str:
        return f"{self.scheme}://{port}-{sandbox}.{self.authority}"

    def by_path(self, sandbox: str, port: int) -> str:
        return f"{self.scheme}://{self.authority}/v1/sandboxes/{sandbox}/ports/{port}"

    def tunnel(self, sandbox: str, port: int) -> str:
        return f"{'wss' if self.scheme == 'https' else 'ws'}://{self.authority}/v1/sandboxes/{sandbox}/tunnels/{port}"


class Previews:
    """Implements `preview.keeper.Knowledge` as well. `secret` is what the tokens of all sandboxes are derived from, so that none is kept."""

    def __init__(self, *, sandboxes: Sandboxes, accounts: Accounts, node: Node, rows: SandboxRows, clock: Callable[[], float] = time.time) -> None:
        self._sandboxes = sandboxes
        self._accounts = accounts
        self._node = node
        self._rows = rows
        self._clock = clock
        self._secret = b""
        self._process: Process | None = None
        self._address = self._tunnels = Address("http", "")
        self.on_closed: Callable[[Record, int], Awaitable[Service | None]] = _nobody
        """Asked when a request has come for a port on which nothing listens; whether a service is to serve it."""
        self.guise: Guise | None = None
        """Of sandboxes that clients of a facade made."""

    def open(self, secret: bytes, process: Process, address: Address, tunnels: Address) -> None:
        """`tunnels`: how Corral's own programs reach the edge."""
        self._secret, self._process, self._address, self._tunnels = secret, process, address, tunnels

    # What becomes of sandboxes

    def runs(self, record: Record) -> None:
        """A sandbox runs from now on."""
        if self._process is not None:
            self._process.back(record.id)

    def left(self, sandbox: str) -> None:
        """It does not run any more. The connections of one that is paused wait."""
        living = self._sandboxes.ledger.registry.get(sandbox)
        if self._process is not None and (living is None or living.record.state is not State.PAUSED):
            self._process.gone(sandbox)

    # What can be asked

    @property
    def authority(self) -> str:
        """The name and port below which each port of a sandbox has a name."""
        return self._address.authority

    @property
    def secure_authority(self) -> str | None:
        """The same, where TLS is spoken."""
        return self._address.authority if self._address.scheme == "https" else None

    async def get(self, project: str, sandbox: str, port: int) -> Preview:
        record = (await self._sandboxes.ledger.use(project, sandbox)).record
        _shown(record.previews, port)
        return self._show(record, port)

    async def change(self, actor: Actor, sandbox: str, port: int, wanted: PreviewChange) -> Preview:
        """Make a port public or private, or say what its server is told as Host."""
        living = await self._sandboxes.ledger.use(actor.project, sandbox)
        exposure = living.record.previews
        _shown(exposure, port)
        if wanted.public is not None:
            if exposure.every and not wanted.public:
                raise InvalidArgument(
                    "all ports of this sandbox are public", hint="create it with the list of those that shall be", details={"field": "public"}
                )
            ports = {*exposure.public, port} if wanted.public else set(exposure.public) - {port}
            exposure = replace(exposure, public=tuple(sorted(ports)))
        if wanted.host is not None:
            hosts = {**exposure.hosts, port: wanted.host} if wanted.host else {at: host for at, host in exposure.hosts.items() if at != port}
            if len(hosts) > HOSTS:
                raise InvalidArgument(f"host: only {HOSTS} ports can have one of their own", hint="take one away first", details={"field": "host"})
            exposure = replace(exposure, hosts=hosts)
        return self._show(await self._write(living, actor, exposure, "preview.changed", port=port), port)

    async def mask(self, actor: Actor, sandbox: str, host: str) -> None:
        """Say what the servers at all ports are told as Host; `${PORT}` in it is the port."""
        living = await self._sandboxes.ledger.use(actor.project, sandbox)
        exposure = living.record.previews
        await self._write(living, actor, replace(exposure, hosts={**exposure.hosts, access.EVERY: host}), "preview.changed")

    async def link(self, actor: Actor, sandbox: str, port: int, wanted: LinkCreate) -> Link:
        """A URL that opens a port, or a path of it, without a key for some time."""
        record = (await self._sandboxes.ledger.use(actor.project, sandbox)).record
        _shown(record.previews, port)
        expires = int(self._clock() + wanted.expires) + 1
        path, _, query = wanted.path.partition("?")
        if access.beneath(path.encode(), path.encode()) is False:
            hint = "without `..`, `//` and escaped slashes, which servers read differently"
            raise InvalidArgument(f"path: {path[:80]} is not clear", hint=hint, details={"field": "path"})
        signed = access.link_query(self._token(record), record.id, port, path, expires)
        return Link(url=f"{self._address.of(record.id, port)}{path}?{query + '&' if query else ''}{signed}", expires_at=moment(expires))

    async def token(self, project: str, sandbox: str) -> str:
        return self._token((await self._sandboxes.ledger.use(project, sandbox)).record)

    async def rotate(self, actor: Actor, sandbox: str) -> str:
        """Another token: the old one, and every link and cookie made with it, open nothing any more."""
        living = await self._sandboxes.ledger.use(actor.project, sandbox)
        exposure = replace(living.record.previews, generation=living.record.previews.generation + 1)
        return self._token(await self._write(living, actor, exposure, "preview.token_rotated"))

    async def hold(self, actor: Actor, sandbox: str, seconds: float, reason: str) -> Held:
        """Keep it awake, as if it were used, for so long from now; also over the end of this server, and where it is paused or stopped and runs again meanwhile."""
        record = await self._sandboxes.use(actor.project, sandbox)
        self._node.hold(record.id, seconds)
        living = await self._sandboxes.ledger.use(actor.project, record.id)
        exposure = replace(living.record.previews, held_until=self._clock() + seconds if seconds else None)
        told = {"seconds": seconds, "reason": reason}
        await self._sandboxes.ledger.decree(living, actor=actor.key, kind="sandbox.held", data=told, previews=exposure)
        return Held(until=None if exposure.held_until is None else moment(exposure.held_until))

    async def _write(self, living: Living, actor: Actor, exposure: Exposure, kind: str, **data: object) -> Record:
        if exposure == living.record.previews:
            return living.record
        record = await self._sandboxes.ledger.decree(living, actor=actor.key, kind=kind, data=data, previews=exposure)
        if self._process is not None:
            self._process.changed(record.id, self._settings(record))
        return record

    def _show(self, record: Record, port: int) -> Preview:
        exposure = record.previews
        return Preview(
            sandbox=record.id,
            port=port,
            url=self._address.of(record.id, port),
            path_url=self._address.by_path(record.id, port),
            tunnel_url=self._tunnels.tunnel(record.id, port),
            public=exposure.every or port in exposure.public,
            host=access.host_of(exposure.hosts, port),
        )

    def _token(self, record: Record) -> str:
        about = f"preview token\n{record.id}\n{record.previews.generation}".encode()
        return access.START + hmac.digest(self._secret, about, hashlib.sha256).hex()[:40]

    def _settings(self, record: Record) -> Settings:
        exposure = record.previews
        only = None if exposure.only is None else frozenset(exposure.only)
        return Settings(self._token(record), frozenset(exposure.public), exposure.hosts, every=exposure.every, only=only, forbids=bool(record.facade))

    # What the process asks

    def opens(self, key: str, project: str) -> bool:
        try:
            acting_in(self._accounts.authenticate(key), project).require(Permission.USE)
        except CorralError:
            return False
        return True

    def keep_awake(self, sandbox: str, *, on: bool) -> None:
        self._node.keep_awake(sandbox, on=on)

    def exposed(self, sandbox: str, at: str, *, on: bool) -> None:
        if (living := self._sandboxes.ledger.registry.get(sandbox)) is not None:
            kind = "sandbox.exposed" if on else "sandbox.unexposed"
            self._sandboxes.ledger.log.note(kind, living.record.project, sandbox=sandbox, data={"as": at})

    async def find(self, sandbox: str, *, people: bool, wake: bool) -> Found | Refused:
        living = self._sandboxes.ledger.registry.get(sandbox)
        if living is None or living.reserved:
            return await self._past(sandbox)
        seconds = PEOPLE_WAIT if people else PROGRAMS_WAIT
        if living.record.state is State.CREATING:
            await _turn(living, seconds)
        guise = self._guise(living.record)
        if (living.pausing or living.record.state is State.PAUSED) and (guise is None or guise.wakes(living.record)):
            if not wake:
                return Found(living.record.project, self._settings(living.record), None, paused=True)
            waking = self._sandboxes.pauses.wake(living) if guise is None else guise.wake(living)
            if (refused := await self._wake(living, waking, seconds, "resumed")) is not None:
                return refused
        if living.record.state is State.STOPPED and living.record.previews.starts:
            if not wake:
                return Found(living.record.project, self._settings(living.record), None)
            if (refused := await self._wake(living, self._sandboxes.begin(living, None), seconds, "started")) is not None:
                return refused
        return self._present(living.record)

    async def serve(self, sandbox: str, port: int, *, people: bool) -> bool | Refused:
        living = self._sandboxes.ledger.registry.get(sandbox)
        if living is None or living.record.state is not State.RUNNING:
            return False
        asking = asyncio.ensure_future(self.on_closed(living.record, port))
        self._sandboxes.later(asyncio.wait([asking]))
        done, _ = await asyncio.wait([asking], timeout=PEOPLE_WAIT if people else PROGRAMS_WAIT)
        if not done:
            return Refused(503, "starting", f"the service at port {port} of the sandbox {sandbox} is being started", "try again", title="Starting …", retry=1)
        if isinstance(error := asking.exception(), CorralError):
            return Refused(error.status, error.code, f"the service at port {port} can't be started: {error.message}", error.hint)
        service = asking.result()
        if service is None:
            guise = self._guise(living.record)
            return False if guise is None else guise.closed(living.record, port)
        if service.state is ServiceState.READY:
            return True
        why = service.detail or (f"it ended with {service.exit_code}" if service.exit_code is not None else f"it is {service.state}")
        hint = f"`corral service logs {sandbox} {service.name}` shows what it said"
        return Refused(
            502, "port_closed", f"the service {service.name} of the sandbox {sandbox} does not serve port {port}: {why}", hint, title="It did not start"
        )

    async def _wake(self, living: Living, doing: Coroutine[object, object, object], seconds: float, done_to_it: str) -> Refused | None:
        """Resume or start it; that goes on when it takes longer."""
        waking = asyncio.ensure_future(doing)
        self._sandboxes.later(asyncio.wait([waking]))
        done, _ = await asyncio.wait([waking], timeout=seconds)
        id = living.record.id
        if not done:
            return Refused(503, "starting", f"the sandbox {id} is being {done_to_it}", "try again in a moment", title="Waking …", retry=1)
        match waking.exception():
            case None:
                return None
            case CorralError() as error:
                return Refused(error.status, error.code, f"the sandbox {id} can't be {done_to_it}: {error.message}", error.hint, title="It can't be woken")
            case BaseException() as error:
                raise error

    def _present(self, record: Record) -> Found | Refused:
        match record.state:
            case State.RUNNING | State.FROZEN:
                relay = self._node.relay(record.id)
                if relay is None:
                    return Refused(503, "unavailable", f"the sandbox {record.id} has just ended", "look at its state", title="Just ended", retry=2)
                return Found(record.project, self._settings(record), relay)
            case State.CREATING:
                return Refused(503, "starting", f"the sandbox {record.id} is still being created", "try again in a moment", title="Starting …", retry=1)
            case State.PAUSED | State.STOPPED if (guise := self._guise(record)) is not None:
                return guise.gone(record)
            case State.PAUSED:
                # Somebody has paused it again just now.
                return Refused(503, "paused", f"the sandbox {record.id} is paused", "try again", title="This sandbox is paused", retry=1)
            case State.STOPPED:
                why = f" ({record.reason})" if record.reason else ""
                return Refused(409, "stopped", f"the sandbox {record.id} is stopped{why}", "start it first", title="This sandbox is stopped")
            case State.TERMINATED | State.FAILED:
                return self._ended(record)

    async def _past(self, sandbox: str) -> Refused:
        record = await self._rows.find(sandbox)
        if record is None or record.state not in lifecycle.ENDED:
            return Refused(404, "not_found", f"there is no sandbox {sandbox[:63]}", "is the address complete?", title="There is no such sandbox")
        return self._ended(record)

    def _ended(self, record: Record) -> Refused:
        if (guise := self._guise(record)) is not None:
            return guise.gone(record)
        why = f"{record.reason or record.state}" + (f": {record.detail}" if record.detail else "")
        return Refused(410, "sandbox_ended", f"the sandbox {record.id} has ended ({why})", "create another one", title="This sandbox has ended")

    def _guise(self, record: Record) -> Guise | None:
        return self.guise if record.facade else None


def _shown(exposure: Exposure, port: int) -> None:
    if exposure.only is not None and port not in exposure.only:
        shown = ", ".join(map(str, exposure.only)) or "none"
        raise InvalidArgument(f"port: this sandbox was created to show other ports than {port}", hint=f"its ports: {shown}", details={"field": "port"})


async def _nobody(_record: Record, _port: int) -> Service | None:
    return None


async def _turn(living: Living, seconds: float) -> None:
    """Until whoever changes it now is done, at most so long."""
    try:
        async with asyncio.timeout(seconds):
            async with living.changing:
                pass
    except TimeoutError:
        pass
