# Generated from sdk/_async/client.py by scripts/async_to_sync.py: edit that, not this.
"""A client of one server, and the one that `Sandbox.create()` uses when it is given none."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Self, Unpack
from weakref import WeakKeyDictionary

from corral.errors import InvalidArgument
from corral.schema.account import Key, KeyCreate, Keys, NewKey, Project, ProjectCreate, Projects, Role
from corral.schema.image import ImageInfo, ImageInfos, Prune, Pruned, Template, Templates, TemplateSet, Usage
from corral.schema.observe import Event, Health
from corral.schema.sandbox import SandboxDelete, SandboxPage, State
from corral.sdk import faults
from corral.sdk._sync import event
from corral.sdk._sync.egress import ApprovalList
from corral.sdk._sync.image import Image
from corral.sdk._sync.sandbox import Sandbox
from corral.sdk._sync.secret import SecretList
from corral.sdk._sync.snapshot import Snapshot
from corral.sdk._sync.transport import Transport
from corral.sdk._sync.volume import Volume
from corral.sdk._sync.webhook import WebhookList
from corral.sdk.connection import Connection, discover
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
        self.closing: Generator[None, None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.connection.url}>"

    def close(self) -> None:
        """Close its idle connections. Sandboxes live on."""
        self.transport.close()

    def events(self, *, sandbox: str | None = None, kind: str | None = None, after: int = 0, follow: bool = False) -> Iterator[Event]:
        """What happened, oldest first; with `follow` also what happens from now on, without end."""
        return event.events(self.transport, sandbox=sandbox, kind=kind, after=after, follow=follow)

    def health(self) -> Health:
        """Whether the server is ready, and its version."""
        return faults.decode(Health, self.transport.call("GET", "/readyz"))


class Sandboxes:
    """The sandboxes of the key's project."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, image: str | Snapshot | Image | None = None, **options: Unpack[CreateOptions]) -> Sandbox:
        """A running sandbox: see `Sandbox.create`."""
        return Sandbox.create(image, client=self._client, **options)

    def get(self, id_or_name: str) -> Sandbox:
        return Sandbox.get(id_or_name, client=self._client)

    def list(self, *, tags: Mapping[str, str] | None = None, state: State | str | Sequence[State | str] | None = None) -> Generator[Sandbox, None]:
        """See `Sandbox.list`."""
        return Sandbox.list(tags=tags, state=state, client=self._client)

    def delete(self, ids_or_names: Sequence[str] = (), *, tags: Mapping[str, str] | None = None) -> list[str]:
        """End many at once: those named, or all that have these tags. Returns their ids."""
        if bool(ids_or_names) == bool(tags):
            raise InvalidArgument("give either sandboxes or tags")
        request = faults.build(SandboxDelete, **({"tags": dict(tags)} if tags else {"sandboxes": [*ids_or_names]}))
        body = self._client.transport.call("POST", "/v1/sandboxes/delete", body=faults.encode(request), safe=True)
        return [info.id for info in faults.decode(SandboxPage, body).sandboxes]


class Snapshots:
    """The snapshots of the key's project."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, id_or_name: str) -> Snapshot:
        return Snapshot.get(id_or_name, client=self._client)

    def list(self, *, sandbox: str | None = None, shared: bool = False) -> Generator[Snapshot, None]:
        """See `Snapshot.list`."""
        return Snapshot.list(sandbox=sandbox, shared=shared, client=self._client)


class VolumeList:
    """The volumes of the key's project."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, name: str, *, size: int | None = None, source: str | Volume | None = None) -> Volume:
        """See `Volume.create`."""
        return Volume.create(name, size=size, source=source, client=self._client)

    def get(self, name_or_id: str) -> Volume:
        return Volume.get(name_or_id, client=self._client)

    def list(self) -> list[Volume]:
        return Volume.list(client=self._client)


class ImageList:
    """The images of the key's project, and those that ship with Corral."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> list[ImageInfo]:
        """Newest first."""
        return faults.decode(ImageInfos, self._transport.call("GET", "/v1/images")).images

    def get(self, ref: str) -> ImageInfo:
        """By its id, or a template's `name:tag`."""
        return faults.decode(ImageInfo, self._transport.call("GET", "/v1/images/" + faults.segment(ref)))

    def delete(self, id: str) -> None:
        """Raises `Conflict` while a template names it or a sandbox stands on it."""
        self._transport.call("DELETE", "/v1/images/" + faults.segment(id))

    def export(self, ref: str, path: str | os.PathLike[str]) -> None:
        """Write an image, snapshot or template's image to a file, as an OCI archive that `docker load`, skopeo, podman and `Image.from_archive` take."""
        target = Path(path)
        partial = target.with_name(target.name + ".part")
        answer = self._transport.stream("GET", f"/v1/images/{faults.segment(ref)}/archive", seconds=EXPORT_SECONDS)
        try:
            with partial.open("wb") as file:
                with closing(answer.pieces()) as pieces:
                    for piece in pieces:
                        file.write(piece)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def usage(self) -> Usage:
        """What images, results of steps and uploads take."""
        return faults.decode(Usage, self._transport.call("GET", "/v1/images/usage"))

    def prune(self, *, older_than: float | None = None, keep_size: int | None = None, images: bool = False) -> Pruned:
        """Forget what builds have not used for `older_than` seconds, and the longest unused until `keep_size` bytes are left; `images`: unused images too."""
        given = {"older_than": older_than, "keep_size": keep_size}
        request = faults.build(Prune, images=images, **{name: value for name, value in given.items() if value is not None})
        return faults.decode(Pruned, self._transport.call("POST", "/v1/images/prune", body=faults.encode(request), safe=True))


class TemplateList:
    """Names for images."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> list[Template]:
        """By name."""
        return faults.decode(Templates, self._transport.call("GET", "/v1/templates")).templates

    def get(self, name: str) -> Template:
        return faults.decode(Template, self._transport.call("GET", "/v1/templates/" + faults.segment(name)))

    def set(self, name: str, image: str | ImageInfo, *, tag: str = "latest") -> Template:
        """Let `name:tag` mean an image."""
        request = faults.build(TemplateSet, image=image if isinstance(image, str) else image.id, tag=tag)
        return faults.decode(Template, self._transport.call("PUT", "/v1/templates/" + faults.segment(name), body=faults.encode(request), safe=True))

    def delete(self, name: str, *, tag: str | None = None) -> None:
        """Forget it, or only one of its tags. Images and sandboxes stay."""
        self._transport.call("DELETE", "/v1/templates/" + faults.segment(name), query={"tag": tag})


class ProjectList:
    """Projects: units of ownership and quota. Needs an admin's key."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self, name: str, *, max_sandboxes: int | None = None, max_cpu: float | None = None, max_memory: int | None = None, max_disk: int | None = None
    ) -> Project:
        """A new project; None: no limit. `max_cpu` in cores, `max_memory` and `max_disk` in MiB."""
        request = faults.build(ProjectCreate, name=name, max_sandboxes=max_sandboxes, max_cpu=max_cpu, max_memory=max_memory, max_disk=max_disk)
        return faults.decode(Project, self._transport.call("POST", "/v1/projects", body=faults.encode(request), key=faults.new_key()))

    def list(self) -> list[Project]:
        return faults.decode(Projects, self._transport.call("GET", "/v1/projects")).projects

    def get(self, name: str) -> Project:
        return faults.decode(Project, self._transport.call("GET", "/v1/projects/" + faults.segment(name)))

    def delete(self, name: str) -> None:
        """Refused while it has living sandboxes."""
        self._transport.call("DELETE", "/v1/projects/" + faults.segment(name))


class KeyList:
    """API keys. Needs an admin's key."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, name: str, *, project: str = "default", role: Role | str = Role.MEMBER, public_key: str | None = None) -> NewKey:
        """A new key; its `value` is shown this once. `public_key`: of SSH (the line in id_ed25519.pub); who has its private half logs in as this key."""
        request = faults.build(KeyCreate, name=name, project=project, role=role, public_key=public_key)
        return faults.decode(NewKey, self._transport.call("POST", "/v1/keys", body=faults.encode(request), key=faults.new_key()))

    def list(self) -> list[Key]:
        return faults.decode(Keys, self._transport.call("GET", "/v1/keys")).keys

    def delete(self, id: str) -> None:
        """Revoke it, at once."""
        self._transport.call("DELETE", "/v1/keys/" + faults.segment(id))


_defaults: WeakKeyDictionary[object, dict[tuple[str | None, ...], Client]] = WeakKeyDictionary()


class _Process:
    """What the blocking default clients belong to; those with await belong to their event loop."""


_process = _Process()
_lock = threading.Lock()


def default_client() -> Client:
    """The client for who gives none: one for each event loop (blocking: one for the program) and setting of the environment."""
    setting = tuple(os.environ.get(name) for name in ("CORRAL_URL", "CORRAL_API_KEY", "CORRAL_PROJECT", "CORRAL_HOME"))
    owner = _process
    with _lock:
        clients = _defaults.setdefault(owner, {})
        client = clients.get(setting)
        if client is None:
            client = clients[setting] = Client()
            atexit.register(client.close)
    return client
