"""The control plane on a real store, above a node that a test steers and that runs nothing."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from corral.control.accounts import Accounts
from corral.control.admission import Capacity, Gate
from corral.control.events import EventLog
from corral.control.roles import Actor
from corral.control.sandboxes import Sandboxes
from corral.control.secrets import Secrets
from corral.control.shelf import Shelf
from corral.control.snapshots import Snapshots
from corral.control.volumes import Volumes
from corral.errors import ImageNotFound
from corral.node.interface import Child, ImageSpec, Timing
from corral.schema.account import Role
from corral.store import Store
from corral.store.keyring import FileKeyRing
from corral.store.snapshots import SnapshotRows
from corral.store.volumes import VolumeRows
from harness.records import record

ME = Actor("ke-aaaaaaaaaaaaaaaa", "default", Role.ADMIN)
IMAGE = ImageSpec("im-aaaaaaaaaaaaaaaa", "tiny", ())


@dataclass
class Kept:
    """What the node has of volumes or snapshots, by id. `making`: nothing is made before it is set."""

    there: set[str] = field(default_factory=set[str])
    making: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.making.set()

    async def create(self, id: str, *_: object) -> None:
        self.begun.set()
        await self.making.wait()
        self.there.add(id)

    async def remove(self, id: str) -> None:
        self.there.discard(id)


class KeptVolumes(Kept):
    """The node's volumes."""

    copy = Kept.create

    def list(self) -> Sequence[str]:
        return sorted(self.there)


@dataclass(frozen=True)
class Stored:
    """A snapshot on the node."""

    spec: ImageSpec
    parent: str = IMAGE.id
    disk: int = 64
    size: int = 4096
    stopped: float | None = None


class KeptSnapshots(Kept):
    """The node's snapshots."""

    def list(self) -> Sequence[Stored]:
        return [Stored(ImageSpec(id, None, ())) for id in sorted(self.there)]

    async def make(self, id: str, *_: object, **__: object) -> Stored:
        await self.create(id)
        return Stored(ImageSpec(id, None, ()))

    def estimate(self, _: str) -> int:
        return 4096


class NoNode:
    """As much of `control.ports.Node` as these tests have it asked for."""

    def __init__(self) -> None:
        self.volumes = KeptVolumes()
        self.snapshots = KeptSnapshots()
        self.boxes: set[str] = set()
        self.forked = asyncio.Event()

    def image(self, name_or_id: str) -> ImageSpec:
        if name_or_id not in (IMAGE.id, IMAGE.name):
            raise ImageNotFound(f"there is no image {name_or_id}")
        return IMAGE

    async def fork(self, _: str, children: Sequence[Child]) -> Sequence[Timing]:
        self.boxes |= {child.spec.id for child in children}
        self.forked.set()
        return [{"total": 0.01} for _ in children]

    async def remove(self, id: str) -> None:
        self.boxes.discard(id)

    def last_activity(self, _: str) -> float:
        return time.time()


@dataclass(frozen=True)
class Control:
    """What one server has, without the server."""

    store: Store
    node: NoNode
    events: EventLog
    accounts: Accounts
    shelf: Shelf
    volumes: Volumes
    sandboxes: Sandboxes
    snapshots: Snapshots

    def running(self, **fields: object) -> str:
        """A sandbox that runs; its id."""
        return self.sandboxes.ledger.registry.add(record(**fields)).record.id  # pyright: ignore[reportArgumentType]

    @asynccontextmanager
    async def slow_store(self) -> AsyncGenerator[None]:
        """Nothing is written meanwhile."""
        go_on = threading.Event()
        self.store.database.write(lambda _: go_on.wait())
        try:
            yield
        finally:
            go_on.set()
            await self.store.database.flush()


class BadDisk(NamedTuple):
    """Rows that can be written, but not be made safe from a power cut."""

    snapshots: SnapshotRows
    volumes: VolumeRows

    @classmethod
    def of(cls, store: Store) -> BadDisk:
        return cls(_UnsafeSnapshots(store.database), _UnsafeVolumes(store.database))


class _UnsafeSnapshots(SnapshotRows):
    async def settle(self) -> None:
        raise OSError(errno.EIO, "Input/output error")


class _UnsafeVolumes(VolumeRows):
    async def settle(self) -> None:
        raise OSError(errno.EIO, "Input/output error")


async def control(store: Store, home: Path, *, rows: BadDisk | None = None) -> Control:
    """`rows`: in place of the store's."""
    events = EventLog(store.events, time.time)
    await events.open()
    accounts = Accounts(store.accounts, time.time)
    await accounts.open()
    secrets = Secrets(store.secrets, FileKeyRing(home / "secrets.key"), events, time.time)
    node = NoNode()
    some = cast("Any", node)
    boxes: list[Sandboxes] = []
    shelf = Shelf(store.snapshots, some.snapshots, lambda: [living.record.image_id for living in boxes[0].ledger.registry])
    volumes = Volumes(rows=(rows or store).volumes, node=some.volumes, events=events, sandboxes=lambda: [living.record for living in boxes[0].ledger.registry])
    roomy = Capacity(memory=1 << 20, memory_free=1 << 20, disk=1 << 20, disk_free=1 << 20, cores=64)
    sandboxes = Sandboxes(
        store=store, node=some, events=events, accounts=accounts, gate=Gate(lambda: roomy, places=8), secrets=secrets, shelf=shelf, volumes=volumes
    )
    boxes.append(sandboxes)
    snapshots = Snapshots(rows=(rows or store).snapshots, shelf=shelf, sandboxes=sandboxes, node=some, events=events)
    return Control(store, node, events, accounts, shelf, volumes, sandboxes, snapshots)
