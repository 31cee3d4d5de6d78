"""A client of one server, and the one that `Sandbox.create()` uses when it is given none."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Self, Unpack
from weakref import WeakKeyDictionary

from corral.errors import InvalidArgument
from corral.schema.account import Key, KeyCreate, Keys, NewKey, Project, ProjectCreate, Projects, Role
from corral.schema.image import ImageInfo, ImageInfos, Prune, Pruned, Template, Templates, TemplateSet, Usage
from corral.schema.observe import Event, Health
from corral.schema.sandbox import SandboxDelete, SandboxPage, State
from corral.sdk import faults
from corral.sdk._async import event
from corral.sdk._async.egress import ApprovalList
from corral.sdk._async.image import Image
from corral.sdk._async.sandbox import Sandbox
from corral.sdk._async.secret import SecretList
from corral.sdk._async.snapshot import Snapshot
from corral.sdk._async.transport import Transport
from corral.sdk._async.volume import Volume
from corral.sdk._async.webhook import WebhookList
from corral.sdk.connection import Connection, discover
from corral.sdk.flavor import ASYNC
from corral.sdk.options import CreateOptions

EXPORT_SECONDS = 3600.0
"""Until an archive begins to come: it is written to its end first."""


class Client:
    """A server and a key. What is not given comes from the environment, the configuration file, or the server's own machine."""

    def __init__(self, url: str | None = None, key: str | None = None, *, project: str | None = None) -> None:
        self.connection: Connection = discover(url, key, project)
        self.transport = Transport(self.connection)
        self.sandboxes = Sandboxes(self)
        self.snapshots = Snapshots(self)
        self.volumes = VolumeList(self)
        self.images = ImageList(self.transport)
        self.templates = TemplateList(self.transport)
        self.projects = ProjectList(self.transport)
        self.keys = KeyList(self.transport)
        self.secrets = SecretList(self.transport)
        self.approvals = ApprovalList(self.transport)
        self.webhooks = WebhookList(self.transport)
        self.closing: AsyncGenerator[None, None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Client of {self.connection.url}>"

    async def aclose(self) -> None:
        """Close its idle connections. Sandboxes live on."""
        await self.transport.aclose()

    def events(self, *, sandbox: str | None = None, kind: str | None = None, after: int = 0, follow: bool = False) -> AsyncIterator[Event]:
        """What happened, oldest first; with `follow` also what happens from now on, without end."""
        return event.events(self.transport, sandbox=sandbox, kind=kind, after=after, follow=follow)

    async def health(self) -> Health:
        """Whether the server is ready, and its version."""
        return faults.decode(Health, await self.transport.call("GET", "/readyz"))


class Sandboxes:
    """The sandboxes of the key's project."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def create(self, image: str | Snapshot | Image | None = None, **options: Unpack[CreateOptions]) -> Sandbox:
        """A running sandbox: see `Sandbox.create`."""
        return await Sandbox.create(image, client=self._client, **options)

    async def get(self, id_or_name: str) -> Sandbox:
        return await Sandbox.get(id_or_name, client=self._client)

    def list(self, *, tags: Mapping[str, str] | None = None, state: State | str | Sequence[State | str] | None = None) -> AsyncGenerator[Sandbox, None]:
        """See `Sandbox.list`."""
        return Sandbox.list(tags=tags, state=state, client=self._client)

    async def delete(self, ids_or_names: Sequence[str] = (), *, tags: Mapping[str, str] | None = None) -> list[str]:
        """End many at once: those named, or all that have these tags. Returns their ids."""
        if bool(ids_or_names) == bool(tags):
            raise InvalidArgument("give either sandboxes or tags")
        request = faults.build(SandboxDelete, **({"tags": dict(tags)} if tags else {"sandboxes": [*ids_or_names]}))
        body = await self._client.transport.call("POST", "/v1/sandboxes/delete", body=faults.encode(request), safe=True)
        return [info.id for info in faults.decode(SandboxPage, body).sandboxes]


class Snapshots:
    """The snapshots of the key's project."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def get(self, id_or_name: str) -> Snapshot:
        return await Snapshot.get(id_or_name, client=self._client)

    def list(self, *, sandbox: str | None = None, shared: bool = False) -> AsyncGenerator[Snapshot, None]:
        """See `Snapshot.list`."""
        return Snapshot.list(sandbox=sandbox, shared=shared, client=self._client)


class VolumeList:
    """The volumes of the key's project."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def create(self, name: str, *, size: int | None = None, source: str | Volume | None = None) -> Volume:
        """See `Volume.create`."""
        return await Volume.create(name, size=size, source=source, client=self._client)

    async def get(self, name_or_id: str) -> Volume:
        return await Volume.get(name_or_id, client=self._client)

    async def list(self) -> list[Volume]:
        return await Volume.list(client=self._client)


class ImageList:
    """The images of the key's project, and those that ship with Corral."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self) -> list[ImageInfo]:
        """Newest first."""
        return faults.decode(ImageInfos, await self._transport.call("GET", "/v1/images")).images

    async def get(self, ref: str) -> ImageInfo:
        """By its id, or a template's `name:tag`."""
        return faults.decode(ImageInfo, await self._transport.call("GET", "/v1/images/" + faults.segment(ref)))

    async def delete(self, id: str) -> None:
        """Raises `Conflict` while a template names it or a sandbox stands on it."""
        await self._transport.call("DELETE", "/v1/images/" + faults.segment(id))

    async def export(self, ref: str, path: str | os.PathLike[str]) -> None:
        """Write an image, snapshot or template's image to a file, as an OCI archive that `docker load`, skopeo, podman and `Image.from_archive` take."""
        target = Path(path)
        partial = target.with_name(target.name + ".part")
        answer = await self._transport.stream("GET", f"/v1/images/{faults.segment(ref)}/archive", seconds=EXPORT_SECONDS)
        try:
            with partial.open("wb") as file:
                async with aclosing(answer.pieces()) as pieces:
                    async for piece in pieces:
                        await asyncio.to_thread(file.write, piece)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    async def usage(self) -> Usage:
        """What images, results of steps and uploads take."""
        return faults.decode(Usage, await self._transport.call("GET", "/v1/images/usage"))

    async def prune(self, *, older_than: float | None = None, keep_size: int | None = None, images: bool = False) -> Pruned:
        """Forget what builds have not used for `older_than` seconds, and the longest unused until `keep_size` bytes are left; `images`: unused images too."""
        given = {"older_than": older_than, "keep_size": keep_size}
        request = faults.build(Prune, images=images, **{name: value for name, value in given.items() if value is not None})
        return faults.decode(Pruned, await self._transport.call("POST", "/v1/images/prune", body=faults.encode(request), safe=True))


class TemplateList:
    """Names for images."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self) -> list[Template]:
        """By name."""
        return faults.decode(Templates, await self._transport.call("GET", "/v1/templates")).templates

    async def get(self, name: str) -> Template:
        return faults.decode(Template, await self._transport.call("GET", "/v1/templates/" + faults.segment(name)))

    async def set(self, name: str, image: str | ImageInfo, *, tag: str = "latest") -> Template:
        """Let `name:tag` mean an image."""
        request = faults.build(TemplateSet, image=image if isinstance(image, str) else image.id, tag=tag)
        return faults.decode(Template, await self._transport.call("PUT", "/v1/templates/" + faults.segment(name), body=faults.encode(request), safe=True))

    async def delete(self, name: str, *, tag: str | None = None) -> None:
        """Forget it, or only one of its tags. Images and sandboxes stay."""
        await self._transport.call("DELETE", "/v1/templates/" + faults.segment(name), query={"tag": tag})


class ProjectList:
    """Projects: units of ownership and quota. Needs an admin's key."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def create(
        self, name: str, *, max_sandboxes: int | None = None, max_cpu: float | None = None, max_memory: int | None = None, max_disk: int | None = None
    ) -> Project:
        """A new project; None: no limit. `max_cpu` in cores, `max_memory` and `max_disk` in MiB."""
        request = faults.build(ProjectCreate, name=name, max_sandboxes=max_sandboxes, max_cpu=max_cpu, max_memory=max_memory, max_disk=max_disk)
        return faults.decode(Project, await self._transport.call("POST", "/v1/projects", body=faults.encode(request), key=faults.new_key()))

    async def list(self) -> list[Project]:
        return faults.decode(Projects, await self._transport.call("GET", "/v1/projects")).projects

    async def get(self, name: str) -> Project:
        return faults.decode(Project, await self._transport.call("GET", "/v1/projects/" + faults.segment(name)))

    async def delete(self, name: str) -> None:
        """Refused while it has living sandboxes."""
        await self._transport.call("DELETE", "/v1/projects/" + faults.segment(name))


class KeyList:
    """API keys. Needs an admin's key."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def create(self, name: str, *, project: str = "default", role: Role | str = Role.MEMBER, public_key: str | None = None) -> NewKey:
        """A new key; its `value` is shown this once. `public_key`: of SSH (the line in id_ed25519.pub); who has its private half logs in as this key."""
        request = faults.build(KeyCreate, name=name, project=project, role=role, public_key=public_key)
        return faults.decode(NewKey, await self._transport.call("POST", "/v1/keys", body=faults.encode(request), key=faults.new_key()))

    async def list(self) -> list[Key]:
        return faults.decode(Keys, await self._transport.call("GET", "/v1/keys")).keys

    async def delete(self, id: str) -> None:
        """Revoke it, at once."""
        await self._transport.call("DELETE", "/v1/keys/" + faults.segment(id))


_defaults: WeakKeyDictionary[object, dict[tuple[str | None, ...], Client]] = WeakKeyDictionary()


class _Process:
    """What the blocking default clients belong to; those with await belong to their event loop."""


_process = _Process()
_lock = threading.Lock()


async def default_client() -> Client:
    """The client for who gives none: one for each event loop (blocking: one for the program) and setting of the environment."""
    setting = tuple(os.environ.get(name) for name in ("CORRAL_URL", "CORRAL_API_KEY", "CORRAL_PROJECT", "CORRAL_HOME"))
    owner = asyncio.get_running_loop() if ASYNC else _process
    with _lock:
        clients = _defaults.setdefault(owner, {})
        client = clients.get(setting)
        if client is None:
            client = clients[setting] = Client()
            if ASYNC:
                client.closing = _close_with_loop(client)
                await anext(client.closing)
            else:
                atexit.register(client.aclose)
    return client


if ASYNC:

    async def _close_with_loop(client: Client) -> AsyncGenerator[None, None]:
        """An event loop that ends closes the generators that were started in it; this one takes the client's connections along."""
        try:
            yield
        finally:
            await client.aclose()
