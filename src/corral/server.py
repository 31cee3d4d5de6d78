"""The server of one machine: puts store, control, API and node together, and says in which order they open and close.

open     lock → disk key → store → keys → listen → node (adopts what lives) → preview process → ready
close    no new requests → streams end → requests end → watch ends → preview process → node → store → disk key, if nothing lives on → lock

It is long since all parts are put together here, and nothing else is done.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import structlog
import uvicorn
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from corral import logs, pidfile
from corral.api import app, errors
from corral.api.abandoned import Abandoned
from corral.api.auth import OPEN
from corral.api.lifelines import LifeLines
from corral.api.meter import Meter
from corral.api.services import Services
from corral.api.stream import Streams
from corral.capacity import Machine, booted_at
from corral.code.contexts import Contexts
from corral.code.ready import ReadyCode
from corral.control.accounts import Accounts
from corral.control.admission import Gate
from corral.control.attachments import Attachments
from corral.control.builder import Builder
from corral.control.builds import Builds
from corral.control.event_webhooks import EventWebhooks
from corral.control.events import EventLog
from corral.control.exports import Exports
from corral.control.history import History
from corral.control.housekeeping import Housekeeper
from corral.control.idempotency import Replays
from corral.control.images import Images
from corral.control.logins import Logins
from corral.control.ports import KeyRing, Node
from corral.control.previews import Address, Previews
from corral.control.record import Record
from corral.control.roles import Actor
from corral.control.sandboxes import Sandboxes
from corral.control.secrets import Secrets
from corral.control.shelf import Shelf
from corral.control.snapshots import Snapshots
from corral.control.starts import Starts
from corral.control.supervisor import Supervisor
from corral.control.templates import Templates
from corral.control.volumes import Volumes
from corral.control.warm_starts import WarmStarts
from corral.control.webhooks import Webhooks
from corral.control.workbench import Workbench
from corral.errors import CorralError, SetupError, Unavailable
from corral.facades.e2b.front import DOOR, E2B
from corral.facades.e2b.tokens import Tokens
from corral.net.callout import Callout
from corral.node.at_rest import AtRest
from corral.places import Places
from corral.preview import certificate, secret
from corral.preview.doors import DOORS
from corral.preview.doors import Door as PreviewDoor
from corral.preview.keeper import Edge, Keeper
from corral.schema.image import BuildCreate
from corral.schema.sandbox import State
from corral.settings import Settings
from corral.ssh.keeper import Door
from corral.ssh.keeper import Keeper as SshKeeper
from corral.store import Store
from corral.store.disk_key import SealedDiskKey
from corral.store.keyring import DISK, FileKeyRing, ProgramKeyRing

__all__ = ["Application", "Settings", "Started", "build_app", "run", "serve"]

KEEP_ALIVE = 75
"""Seconds an idle connection is kept."""
GRACE = 15
"""Seconds that requests have to end when the server leaves."""
OPENING = 60.0
"""Seconds that requests wait for a server that is being started."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Started:
    """A server that takes requests. `admin_key` is the operator's key, as kept in the home."""

    url: str
    admin_key: str | None
    first: bool
    """Whether the key was made just now."""
    domain: str | None = None
    """The name and port below which ports of sandboxes have names with TLS; None: they have none."""


class Application:
    """The ASGI application with everything behind it. `open` before use, `close` after."""

    def __init__(self, settings: Settings, node: Node) -> None:
        self._settings = settings
        places = settings.places
        places.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._machine = Machine(places.pool if places.pool.is_dir() else places.home)
        self._store = Store(settings.database_url)
        self._node = node
        self._at_rest = AtRest(places, SealedDiskKey(places.sealed_disk_key, _disk_ring(settings)), wanted=settings.encrypt)
        accounts = Accounts(self._store.accounts, time.time)
        events = EventLog(self._store.events, time.time)
        keys = FileKeyRing(places.keys / "secrets.key")
        secrets = Secrets(self._store.secrets, keys, events, time.time)
        shelf = Shelf(self._store.snapshots, node.snapshots, self._standing)
        volumes = Volumes(rows=self._store.volumes, node=node.volumes, events=events, sandboxes=self._living)
        self._sandboxes = Sandboxes(
            store=self._store,
            node=node,
            events=events,
            accounts=accounts,
            gate=Gate(self._machine, places=settings.starts),
            secrets=secrets,
            shelf=shelf,
            volumes=volumes,
            booted_at=booted_at(),
        )
        resolvers = tuple(settings.resolvers.split(",")) if settings.resolvers else ()
        deliver = Callout(resolvers).post
        webhooks = Webhooks(self._store.webhooks, keys, deliver, events, time.time)
        event_webhooks = EventWebhooks(self._store.event_webhooks, keys, deliver, events, time.time, self._known)
        self._sandboxes.on_approval = webhooks.approval
        previews = Previews(sandboxes=self._sandboxes, accounts=accounts, node=node, rows=self._store.sandboxes)
        self._keeper = Keeper(places, previews)
        node.silence_ports_with(self._keeper.quiet)
        logins = Logins(sandboxes=self._sandboxes, accounts=accounts)
        self._ssh = SshKeeper(places, logins)
        accounts.on_revoked = self._keeper.revoked
        snapshots = Snapshots(rows=self._store.snapshots, shelf=shelf, sandboxes=self._sandboxes, node=node, events=events)
        self._images = Images(rows=self._store.images, shelf=shelf, node=node, events=events, living=self._living)
        self._templates = Templates(rows=self._store.templates, images=self._images, shelf=shelf, node=node, events=events)
        self._sandboxes.make_image = self._templates.make

        def bench(actor: Actor, wanted: BuildCreate, build: str, image: str) -> Workbench:
            return Workbench(
                actor, wanted, build, image, sandboxes=self._sandboxes, snapshots=snapshots, volumes=volumes, secrets=secrets, node=node, room=node.library.room
            )

        starts = Starts(node=node, events=events, config=self._templates.config_of)
        self._sandboxes.on_created = starts.after
        self._supervisor = Supervisor(node=node, events=events, starts=starts, config=self._templates.config_of)
        previews.on_closed = self._supervisor.serve

        def runs(record: Record) -> None:
            self._supervisor.runs(record)
            previews.runs(record)

        def gone(sandbox: str) -> None:
            self._supervisor.gone(sandbox)
            previews.left(sandbox)

        self._sandboxes.on_running, self._sandboxes.on_gone = runs, gone
        builder = Builder(images=self._images, templates=self._templates, shelf=shelf, node=node, uploads=node.library.uploads, secrets=secrets, bench=bench)
        self._builds = Builds(builder, templates=self._templates, sandboxes=self._sandboxes, events=events)
        contexts = Contexts(node.processes)
        self._ready_code = ReadyCode(sandboxes=self._sandboxes, snapshots=snapshots, contexts=contexts, node=node, most=settings.code_templates)
        self._warm_starts = WarmStarts(
            sandboxes=self._sandboxes,
            snapshots=snapshots,
            images=self._images,
            templates=self._templates,
            starts=starts,
            node=node,
            most=settings.warm_templates,
        )
        self._sandboxes.ready += [self._ready_code.instead, self._warm_starts.instead]
        streams = Streams()
        self.services = Services(
            sandboxes=self._sandboxes,
            policies=self._sandboxes.policies,
            secrets=secrets,
            volumes=volumes,
            webhooks=webhooks,
            event_webhooks=event_webhooks,
            previews=previews,
            logins=logins,
            supervisor=self._supervisor,
            attachments=Attachments(sandboxes=self._sandboxes, volumes=volumes, node=node),
            code=contexts,
            images=self._images,
            templates=self._templates,
            builds=self._builds,
            exports=Exports(images=self._images, templates=self._templates, shelf=shelf, node=node),
            snapshots=snapshots,
            accounts=accounts,
            events=events,
            replays=Replays(time.time),
            store=self._store,
            node=node,
            meter=Meter(self._sandboxes.in_state, lambda: self._at_rest.on),
            history=History(node, self._sandboxes.running),
            streams=streams,
            abandoned=Abandoned(self._sandboxes, streams),
            lifelines=LifeLines(),
            readiness=self._readiness,
        )
        self._housekeeper = Housekeeper(self._store, time.time)
        self.doors: dict[str, ASGIApp] = {}
        """What answers at the doors of `preview.doors` by these names; at others, the API does."""
        self._app = E2B(app.build(self.services), self.services, Tokens(settings.places.keys / "sandboxes.key"))
        self._ready = asyncio.Event()
        self._opened = False
        """Whether the node is open."""
        self._problem: CorralError | None = None
        self.admin_key: str | None = None
        self.first = False

    async def open_store(self) -> None:
        """Have the disks readable, bring the database up to date and load what is kept in memory; at the very first start make the admin key."""
        await self._at_rest.open()
        if not self._at_rest.on and (named := self._settings.disk_key_option):
            raise SetupError(f"{named} is given, and {self._settings.home} is not encrypted", hint="leave it out, or say --encrypt where the home is new")
        self._store.open()
        made = await self.services.accounts.open(secret.kept(self._settings.places.keys / "lent.key"))
        self.first = made is not None
        self.admin_key = _keep_key(self._settings.places, made)
        await self.services.events.open()
        for kept in await self._store.replays.all():
            self.services.replays.load(kept)

    async def open_node(self) -> None:
        """Open the node and find again what lives."""
        await self.services.volumes.load()
        await self.services.webhooks.open()
        await self.services.event_webhooks.open()
        await self._images.load()
        await self._templates.load()
        await self._sandboxes.open()
        for record in self._sandboxes.records():
            if record.state in (State.RUNNING, State.FROZEN):
                self._supervisor.runs(record)
        await self.services.volumes.open()
        await self.services.snapshots.open()
        await self._ready_code.open()
        await self._images.open()
        await self._warm_starts.open()
        await self._builds.open()
        self._housekeeper.start()
        self.services.history.start()
        self._opened = True

    async def open_edge(self, server: tuple[str, int], doors: Sequence[PreviewDoor] = (*DOORS, DOOR)) -> None:
        """Serve previews; from then on requests are answered. `server`: where this application listens. Raises `SetupError` when the chosen port is taken."""
        settings = self._settings
        scheme, _, authority = (settings.edge_url or "").partition("://")
        domains = dict.fromkeys([authority.rpartition(":")[0] or authority, settings.domain] if authority else [settings.domain])
        port, fixed = _edge_port(settings, "edge_port")
        tls_port, tls_fixed = _edge_port(settings, "tls_port")
        keys = settings.places.keys
        chain = certificate.ensure(keys, settings.domain) if settings.tls else None
        edge = Edge(settings.host, port, fixed, chain, tls_port, tls_fixed, tuple(domains), doors, server, front=bool(authority))
        key = secret.kept(keys / "previews.key")
        await self._keeper.open(self._node.holder, edge)
        plain = Address("http", f"{settings.domain}:{self._keeper.port}")
        secure = Address("https", f"{settings.domain}:{self._keeper.tls_port}")
        address = Address(scheme, authority) if authority else secure if settings.tls else plain
        # Our own programs need no TLS on this machine, and do not know its authority.
        self.services.previews.open(key, self._keeper, address, address if authority else plain)
        await self._open_ssh(server, domains)
        self._ready.set()

    async def _open_ssh(self, server: tuple[str, int], domains: Iterable[str]) -> None:
        """Let SSH in, where that is wanted and can be."""
        settings = self._settings
        if not settings.ssh:
            self.services.logins.closed("it was turned off (--no-ssh)")
            return
        if find_spec("asyncssh") is None:
            if any(settings.origin[name] != "default" for name in ("ssh", "ssh_port")):
                raise SetupError("SSH was asked for, and its package is missing", hint="pip install 'corral[ssh]'")
            self.services.logins.closed("its package is missing (pip install 'corral[ssh]')")
            return
        port, fixed = _edge_port(settings, "ssh_port")
        await self._ssh.open(self._node.holder, Door(settings.host, port, fixed, _http(*server)))
        host = next(iter(domains)) if settings.edge_url else _reachable_host(settings.host)
        self.services.logins.open(self._ssh, host)

    async def open(self) -> None:
        """Everything in order, but the edge."""
        await self.open_store()
        await self.open_node()
        self._ready.set()

    def leave(self) -> None:
        """End what would go on for long: streams, and waiting for room or for the end of a process."""
        self.services.streams.end()
        self._sandboxes.leave()

    async def close(self, *, terminate: bool = False) -> None:
        """Leave. Sandboxes go on living, or with `terminate` are stopped; their disks are kept."""
        self.leave()
        self._housekeeper.stop()
        self._app.close()
        self.services.history.stop()
        self.services.webhooks.close()
        self.services.event_webhooks.close()
        self._supervisor.close()
        await self._builds.close()
        await self._ready_code.close()
        await self._warm_starts.close()
        if terminate:
            await self._sandboxes.stop_all()
        await self._sandboxes.close()
        for keeper in (self._keeper, self._ssh):
            await (keeper.shutdown(self._node.holder) if terminate and self._opened else keeper.close())
        if self._opened:
            await (self._node.shutdown() if terminate else self._node.close())
        await self._store.close()
        if not self._opened:
            await self._at_rest.give_up()
        elif terminate:
            await self._at_rest.close()
        self._machine.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._ready.is_set() and scope["type"] in ("http", "websocket") and scope["path"] not in OPEN:
            try:
                async with asyncio.timeout(OPENING):
                    await self._ready.wait()
            except TimeoutError:
                error = Unavailable("the server is still starting", hint="try again in a moment; /readyz tells when it is done")
                await errors.answer(error)(scope, receive, send)
                return
        try:
            await self._door(scope)(scope, receive, send)
        except Exception:
            # What no endpoint has made an answer of: the client is told no more than that it failed.
            log.exception("request_failed", path=scope.get("path"))
            raise

    def _door(self, scope: Scope) -> ASGIApp:
        """Who answers it: a facade when it came in by its door."""
        if self.doors and scope["type"] in ("http", "websocket"):
            for name, value in scope["headers"]:
                if name == b"corral-door":
                    return self.doors.get(value.decode("latin-1"), self._app)
        return self._app

    def _living(self) -> list[Record]:
        return self._sandboxes.records()

    async def _known(self, project: str, sandbox: str) -> Record | None:
        """A sandbox, also one that ended a while ago."""
        living = self._sandboxes.ledger.find(project, sandbox)
        return await self._store.sandboxes.get(project, sandbox) if living is None else living.record

    def _standing(self) -> list[str]:
        return [record.image_id for record in self._sandboxes.records()]

    def _readiness(self) -> dict[str, str]:
        failure = self._store.database.failure
        return {"node": "ok" if self._ready.is_set() else "opening", "store": "ok" if failure is None else f"the last write failed: {failure}"}


def build_app(settings: Settings, node: Node | None = None) -> Application:
    """The application of a server, with the real node unless another is given."""
    if node is None:
        from corral.node.node import Node as RealNode
        from corral.node.node import NodeSettings

        resolvers = tuple(settings.resolvers.split(",")) if settings.resolvers else ()
        node = RealNode(
            settings.places,
            settings=NodeSettings(
                runsc=settings.runsc, pool=settings.pool, platform=settings.platform, freeze=settings.freeze, resolvers=resolvers, mirrors=settings.mirrors
            ),
        )
    return Application(settings, node)


def _disk_ring(settings: Settings) -> KeyRing:
    if settings.disk_key_command is not None:
        return ProgramKeyRing(settings.disk_key_command, DISK)
    return FileKeyRing(settings.disk_key_file or settings.places.disk_key, DISK)


class _Uvicorn(uvicorn.Server):
    """Leaves the signals to `serve`."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(settings: Settings, *, on_ready: Callable[[Started], None] | None = None) -> None:
    """Run the server until SIGTERM or SIGINT (sandboxes go on living, unless the settings say `terminate`) or SIGQUIT (all sandboxes are stopped).

    Raises `SetupError` when it can't be started: another server in this home, a port in use, something missing for the node.
    """
    with pidfile.occupy(settings.places) as lock:
        application = build_app(settings)
        listener = _listen(settings)
        url = _url(listener)
        await application.open_store()
        config = uvicorn.Config(
            application,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            ws_per_message_deflate=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=GRACE,
        )
        server = _Uvicorn(config)
        terminate = settings.terminate

        def leave(*, all_of_it: bool) -> None:
            nonlocal terminate
            terminate = terminate or all_of_it
            application.leave()
            server.should_exit = True

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, lambda: leave(all_of_it=False))
        loop.add_signal_handler(signal.SIGINT, lambda: leave(all_of_it=False))
        loop.add_signal_handler(signal.SIGQUIT, lambda: leave(all_of_it=True))
        serving = loop.create_task(server.serve([listener]))
        try:
            await application.open_node()
            await application.open_edge(_reachable(listener))
            lock.announce(url)
            log.info("server_ready", url=url, home=str(settings.home))
            if on_ready is not None:
                on_ready(Started(url, application.admin_key, application.first, application.services.previews.secure_authority))
            await serving
        finally:
            server.should_exit = True
            application.leave()
            await asyncio.gather(serving, return_exceptions=True)
            await application.close(terminate=terminate)
            log.info("server_left", terminated=terminate)


def run(settings: Settings, *, on_ready: Callable[[Started], None] | None = None) -> None:
    """`serve` on an event loop of its own, with the log configured."""
    logs.configure(settings.log_level, settings.log_format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, on_ready=on_ready))


def _listen(settings: Settings) -> socket.socket:
    try:
        address, *_ = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listener = socket.socket(address[0], address[1])
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address[4])
        listener.listen(2048)
    except OSError as error:
        raise SetupError(f"can't listen on {settings.host}:{settings.port}: {error.strerror}", hint="choose another one with --port") from None
    return listener


def _url(listener: socket.socket) -> str:
    return _http(*listener.getsockname()[:2])


def _http(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _edge_port(settings: Settings, name: Literal["edge_port", "tls_port", "ssh_port"]) -> tuple[int, bool]:
    """The port, and whether it was chosen. Where the API takes any free port it is one server of several, and so does the edge."""
    chosen = settings.origin[name] != "default"
    port: int = getattr(settings, name)
    return (port if chosen or settings.port else 0), chosen and port != 0


def _reachable(listener: socket.socket) -> tuple[str, int]:
    """Where processes of this machine reach it."""
    name: tuple[str, int] = listener.getsockname()[:2]
    host, port = name
    return _reachable_host(host), port


def _reachable_host(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _keep_key(places: Places, made: str | None) -> str | None:
    """Write a key that was just made where the operator's programs find it, else read it from there."""
    path = places.keys / "admin"
    if made is not None:
        places.keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(made + "\n")
        return made
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return None
