"""The images that a project has built or imported, and the results of steps that are kept for later builds.

An image is a snapshot of the sandbox in which its last step ran, or (`im-…` on the node) one that was imported. What is said of it beyond its files is its
configuration. Each carries the key of what it was made by; the newest row with a key is the result that a build takes.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import structlog

from corral.control.accounts import OWN
from corral.control.events import EventLog
from corral.control.ports import ImageRows, Node
from corral.control.record import Record, moment
from corral.control.roles import Actor
from corral.control.shelf import Shelf
from corral.errors import Conflict, ImageNotFound
from corral.ids import is_id
from corral.images.config import ImageConfig
from corral.schema.image import ImageInfo, Prune, Pruned, SetStart, Usage

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ImageRecord:
    """The row of the store. Times are seconds since 1970, `size` bytes. `node_image`: what the node knows its files by."""

    id: str
    project: str
    key: str
    node_image: str
    parent: str
    text: str
    config: str
    size: int
    kept: bool
    """Somebody asked for it; else it is the result of a step that a later build may use."""
    created_at: float
    created_by: str
    used_at: float

    @property
    def settings(self) -> ImageConfig:
        return ImageConfig.decode(self.config)


class Images:
    """All projects'. `living` gives the living sandboxes, `named` the templates (`name:tag`) that name an image."""

    def __init__(
        self,
        *,
        rows: ImageRows,
        shelf: Shelf,
        node: Node,
        events: EventLog,
        living: Callable[[], Iterable[Record]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rows = rows
        self._shelf = shelf
        self._node = node
        self._events = events
        self._living = living
        self._clock = clock
        self._records: dict[tuple[str, str], ImageRecord] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self.named: Callable[[str, str], list[str]] = lambda _project, _image: []
        self.on_gone: Callable[[str], Awaitable[None]] | None = None
        """Told that no project has an image any more, by what the node knows it by."""

    async def load(self) -> None:
        """What the rows say."""
        for record in await self._rows.all():
            self._put(record)

    async def open(self) -> None:
        """Bring rows and node together: results without files, and files without rows, go. Snapshots must be open."""
        for record in list(self._records.values()):
            if not self._is_there(record):
                log.warning("image_lost", image=record.id, project=record.project)
                await self._forget(record)
        used = {record.node_image for record in self._records.values()}
        for snapshot in self._shelf.all():
            if snapshot.layer and snapshot.id not in used:
                self._shelf.hide(snapshot, None)
        await self._shelf.collect()
        await self._sweep()

    def _is_there(self, record: ImageRecord) -> bool:
        if is_id(record.node_image, "sn"):
            return self._shelf.find(record.project, record.node_image) is not None
        try:
            self._node.image(record.node_image)
        except ImageNotFound:
            return False
        return True

    # Looking

    def find(self, project: str, ref: str) -> ImageRecord | None:
        record = self._records.get((project, ref))
        # The snapshot that an image was built on can be deleted with all that stands on it.
        return record if record is not None and self._is_there(record) else None

    def known(self, project: str, key: str) -> ImageRecord | None:
        """The result that is kept for a key."""
        return self.find(project, self._keys.get((project, key), ""))

    def get(self, project: str, ref: str) -> ImageRecord:
        """Raises `ImageNotFound`."""
        if (record := self.find(project, ref)) is None:
            raise ImageNotFound(f"there is no image {ref[:80]!r}", hint="`corral image ls` lists those there are", details={"image": ref[:80]})
        return record

    def of(self, project: str, *, kept: bool = True) -> list[ImageRecord]:
        """Newest first."""
        found = [record for record in self._records.values() if record.project == project and record.kept is kept]
        return sorted(found, key=lambda record: (record.created_at, record.id), reverse=True)

    def uses(self, node_image: str) -> bool:
        """Whether any project has it."""
        return any(record.node_image == node_image for record in self._records.values())

    def on(self, record: ImageRecord) -> list[str]:
        """Living sandboxes that stand on it, or on a memory that the server has kept of what it starts."""
        own = {record.node_image, *(kept.id for kept in self._shelf.on(record.node_image) if kept.project == OWN)}
        return [box.id for box in self._living() if box.image_id in own and box.project == record.project]

    def config(self, project: str, ref: str) -> ImageConfig:
        """Of an image of the project, or of one that ships with Corral or is a snapshot. Raises `ImageNotFound`."""
        if (record := self.find(project, ref)) is not None:
            return record.settings
        return ImageConfig.of(self._node.image(self._shelf.image(project, ref)))

    def show(self, record: ImageRecord) -> ImageInfo:
        config = record.settings
        return ImageInfo(
            id=record.id,
            created_at=moment(record.created_at),
            size=record.size,
            user=config.user,
            workdir=config.workdir,
            env=dict(config.env),
            command=None if config.command is None else list(config.command),
            entrypoint=None if config.entrypoint is None else list(config.entrypoint),
            labels=dict(config.labels),
            exposed=list(config.exposed),
            notes=dict(config.notes),
            start=None if config.start is None else SetStart.model_validate(config.start),
            built=True,
            parent=record.parent,
            used_at=moment(record.used_at),
            templates=self.named(record.project, record.id),
        )

    # Changing

    async def add(self, record: ImageRecord) -> ImageRecord:
        """A result; whatever had its id or key gives way."""
        old = self._records.get((record.project, record.id)) or self._records.get((record.project, self._keys.get((record.project, record.key), "")))
        if old is not None:
            record = replace(record, kept=record.kept or (old.kept and old.id == record.id))
            self._drop(old)
        self._put(record)
        await self._rows.put(record, replaces=None if old is None or old.id == record.id else old.id)
        if old is not None and old.node_image != record.node_image:
            await self._let_go(old)
        return record

    async def use(self, record: ImageRecord, *, kept: bool = False) -> ImageRecord:
        """A build took it."""
        record = replace(record, used_at=self._clock(), kept=record.kept or kept)
        self._put(record)
        self._rows.use(record)
        return record

    async def delete(self, actor: Actor, ref: str) -> ImageRecord:
        """Forget an image. Raises `Conflict` while a template names it or a living sandbox stands on it."""
        record = self.get(actor.project, ref)
        templates, sandboxes = self.named(record.project, record.id), self.on(record)
        if templates or sandboxes:
            what = [f"templates {', '.join(templates)}"] if templates else []
            what += [f"{len(sandboxes)} sandboxes"] if sandboxes else []
            raise Conflict(
                f"the image {record.id} is in use by {' and '.join(what)}",
                hint="delete those first",
                details={"templates": templates, "sandboxes": sandboxes},
            )
        await self._remove(record)
        self._events.note("image.deleted", record.project, actor=actor.key, data={"image": record.id})
        return record

    def usage(self, project: str, uploads: Sequence[int]) -> Usage:
        images, layers = self.of(project), self.of(project, kept=False)
        return Usage(
            images=len(images),
            images_size=sum(record.size for record in images),
            layers=len(layers),
            layers_size=sum(record.size for record in layers),
            uploads=len(uploads),
            uploads_size=sum(uploads),
        )

    async def prune(self, project: str, wanted: Prune) -> Pruned:
        """Forget results of steps, and if asked for images nobody uses: those unused for long, then the longest unused until the rest is small enough."""
        now = self._clock()
        doomed = self._prunable(project, images=wanted.images)
        old = [record for record in doomed if wanted.older_than is None or now - record.used_at >= wanted.older_than]
        if wanted.keep_size is not None:
            left = sum(record.size for record in doomed)
            chosen: list[ImageRecord] = []
            for record in old:
                if left <= wanted.keep_size:
                    break
                chosen.append(record)
                left -= record.size
            old = chosen
        for record in old:
            await self._remove(record)
        await self._sweep()
        return Pruned(
            layers=sum(not record.kept for record in old), images=sum(record.kept for record in old), uploads=0, size=sum(record.size for record in old)
        )

    async def project_removed(self, project: str) -> None:
        """Forget all of it, results of steps too."""
        for record in [record for record in self._records.values() if record.project == project]:
            await self._remove(record)

    def _prunable(self, project: str, *, images: bool) -> list[ImageRecord]:
        """The longest unused first."""
        found = self.of(project, kept=False)
        if images:
            found += [record for record in self.of(project) if not self.named(project, record.id) and not self.on(record)]
        return sorted(found, key=lambda record: record.used_at)

    async def _remove(self, record: ImageRecord) -> None:
        await self._forget(record)
        await self._let_go(record)

    async def _let_go(self, record: ImageRecord) -> None:
        """Its files go when nothing stands on them any more."""
        if self.uses(record.node_image):
            return
        if self.on_gone is not None:
            await self.on_gone(record.node_image)
        if (snapshot := self._shelf.find(record.project, record.node_image)) is not None:
            self._shelf.hide(snapshot, None)
            await self._shelf.collect()
        await self._sweep()

    async def _sweep(self) -> None:
        """Imported images that no project has any more, and shipped ones of earlier versions, go unless something stands on them: then it is seen the next time."""
        used = {*(record.node_image for record in self._records.values()), *(box.image_id for box in self._living())}
        for stored in self._node.images():
            id = stored.spec.id
            if id not in used and not self._shelf.on(id) and self._node.library.is_removable(id):
                await self._node.library.remove(id)

    async def _forget(self, record: ImageRecord) -> None:
        self._drop(record)
        await self._rows.remove(record.project, record.id)

    def _drop(self, record: ImageRecord) -> None:
        self._records.pop((record.project, record.id), None)
        if self._keys.get((record.project, record.key)) == record.id:
            del self._keys[record.project, record.key]

    def _put(self, record: ImageRecord) -> None:
        self._records[record.project, record.id] = record
        self._keys[record.project, record.key] = record.id
