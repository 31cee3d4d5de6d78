"""Templates: names for images, by tags. `name` alone means the tag `latest`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from corral.control.events import EventLog
from corral.control.images import ImageRecord, Images
from corral.control.ports import Node, TemplateRows
from corral.control.record import Record, moment
from corral.control.roles import Actor
from corral.control.shelf import Shelf
from corral.errors import Conflict, ImageNotFound, NotFound
from corral.ids import is_id
from corral.images.builtin import BENEATH as ON_FIRST_USE
from corral.images.config import ImageConfig
from corral.images.keys import base_key, image_id
from corral.schema.image import SetStart, Template

LATEST = "latest"
SHIPPED: dict[str, dict[str, str]] = {
    "base": {LATEST: "base"},
    "code-interpreter": {LATEST: "code-interpreter"},
    "node": {LATEST: "node"},
    "python": {LATEST: "python", "science": "python-science"},
    "tiny": {LATEST: "tiny"},
}
"""What ships with Corral: by name and tag the image that it is on the node."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class TemplateRecord:
    """A tag of a template: the row of the store. `created_at` in seconds since 1970."""

    project: str
    name: str
    tag: str
    image: str
    created_at: float
    created_by: str


class Templates:
    """All projects'."""

    def __init__(self, *, rows: TemplateRows, images: Images, shelf: Shelf, node: Node, events: EventLog, clock: Callable[[], float] = time.time) -> None:
        self._rows = rows
        self._images = images
        self._shelf = shelf
        self._node = node
        self._events = events
        self._clock = clock
        self._records: dict[tuple[str, str], dict[str, TemplateRecord]] = {}
        images.named = self._naming
        shelf.also = self.resolve

    async def load(self) -> None:
        for record in await self._rows.all():
            self._records.setdefault((record.project, record.name), {})[record.tag] = record

    # Looking

    def resolve(self, project: str, ref: str) -> str | None:
        """What the node knows an image or a template of the project by; None: it is neither."""
        if (record := self._images.find(project, ref)) is not None:
            return record.node_image
        if (found := self._tagged(project, ref)) is not None:
            return self._images.get(project, found.image).node_image
        name, _, tag = ref.partition(":")
        if (shipped := SHIPPED.get(name, {}).get(tag or LATEST)) is not None:
            return shipped
        if self._node.library.is_imported(ref):
            raise ImageNotFound(f"there is no image {ref}", hint="`corral image ls` lists those there are", details={"image": ref})
        return None

    def image(self, project: str, ref: str) -> ImageRecord | None:
        """The image of the project that an id or `name[:tag]` means."""
        found = self._tagged(project, ref)
        return self._images.find(project, ref if found is None else found.image)

    def config_of(self, box: Record) -> ImageConfig | None:
        """Of the image of the project that a sandbox was asked for by an id or name."""
        record = self.image(box.project, box.image)
        return None if record is None else record.settings

    def _tagged(self, project: str, ref: str) -> TemplateRecord | None:
        name, _, tag = ref.partition(":")
        return self._records.get((project, name), {}).get(tag or LATEST)

    def get(self, project: str, name: str) -> Template:
        """Raises `NotFound`."""
        if tags := self._records.get((project, name)):
            return self._show(project, name, tags)
        if name in SHIPPED:
            return self._shipped(name)
        raise NotFound(f"there is no template {name[:80]!r}", hint="`corral template ls` lists those there are")

    def of(self, project: str) -> list[Template]:
        """By name, the shipped ones too."""
        mine = {name: tags for (whose, name), tags in self._records.items() if whose == project and tags}
        found = [self._show(project, name, tags) for name, tags in mine.items()]
        found += [self._shipped(name) for name in SHIPPED if name not in mine]
        return sorted(found, key=lambda template: template.name)

    def _show(self, project: str, name: str, tags: dict[str, TemplateRecord]) -> Template:
        newest = tags.get(LATEST) or max(tags.values(), key=lambda record: record.created_at)
        images = [record for tag in tags.values() if (record := self._images.find(project, tag.image)) is not None]
        start = next((image.settings.start for image in images if image.id == newest.image), None)
        return Template(
            name=name,
            project=project,
            tags={tag: record.image for tag, record in sorted(tags.items())},
            start=None if start is None else SetStart.model_validate(start),
            sandboxes=sorted({box for image in images for box in self._images.on(image)}),
            created_at=moment(newest.created_at),
        )

    def _shipped(self, name: str) -> Template:
        """Without the tags whose images have not been made yet."""
        there = {image.spec.name: image.spec.id for image in self._node.images()}
        return Template(name=name, project=None, tags={tag: there[image] for tag, image in SHIPPED[name].items() if image in there})

    def _naming(self, project: str, image: str) -> list[str]:
        return sorted(
            f"{name}:{tag}" for (whose, name), tags in self._records.items() for tag, record in tags.items() if whose == project and record.image == image
        )

    # Changing

    async def make(self, project: str, ref: str, say: Callable[[str], None] | None = None) -> bool:
        """Make the image that a name means, if it ships with Corral and is made when it is first asked for; False: it is none of those, or it is there.

        Seconds to minutes, once; goes on when who asked has left. Raises `SetupError`.
        """
        image = self.resolve(project, ref) or ref
        if image not in ON_FIRST_USE or any(stored.spec.name == image for stored in self._node.images()):
            return False
        await self._node.library.ensure(image, say or (lambda line: log.info("image_made_on_first_use", line=line)))
        return True

    async def set(self, actor: Actor, name: str, tag: str, ref: str) -> Template:
        """Let `name:tag` mean an image. Raises `ImageNotFound`, `Conflict` when the name is a snapshot's."""
        if self._shelf.find(actor.project, name) is not None:
            raise Conflict(f"the name {name!r} is a snapshot's", hint="choose another name")
        image = self.image(actor.project, ref) or await self.adopt(actor, ref)
        await self._images.use(image, kept=True)
        record = TemplateRecord(actor.project, name, tag, image.id, self._clock(), actor.key)
        self._records.setdefault((actor.project, name), {})[tag] = record
        await self._rows.put(record)
        self._events.note("template.set", actor.project, actor=actor.key, data={"template": name, "tag": tag, "image": image.id})
        return self.get(actor.project, name)

    async def adopt(self, actor: Actor, ref: str) -> ImageRecord:
        """An image of the project for what is none yet: one that ships with Corral. Raises `ImageNotFound`; `Conflict` for a snapshot, which can be deleted."""
        await self.make(actor.project, ref)
        node_image = self._shelf.image(actor.project, ref)
        if is_id(node_image, "sn"):
            raise Conflict(f"{ref[:80]!r} is a snapshot, which may be deleted", hint="build an image of it: Image.from_snapshot(…).build()")
        spec = self._node.image(node_image)
        key = base_key("image", spec.id)
        if (known := self._images.known(actor.project, key)) is not None:
            return known
        now = self._clock()
        return await self._images.add(
            ImageRecord(
                id=image_id(actor.project, key),
                project=actor.project,
                key=key,
                node_image=spec.id,
                parent=spec.id,
                text=f"image {ref}",
                config=ImageConfig.of(spec).encode(),
                size=0,
                kept=True,
                created_at=now,
                created_by=actor.key,
                used_at=now,
            )
        )

    async def delete(self, actor: Actor, name: str, tag: str | None = None) -> None:
        """Forget a template or one of its tags; images and sandboxes stay. Raises `NotFound`."""
        tags = self._records.get((actor.project, name))
        if not tags or (tag is not None and tag not in tags):
            raise NotFound(f"there is no template {name[:80]!r}" + (f" with the tag {tag!r}" if tag else ""), hint="`corral template ls` lists those there are")
        if tag is None:
            del self._records[actor.project, name]
        else:
            del tags[tag]
        await self._rows.remove(actor.project, name, tag)
        self._events.note("template.deleted", actor.project, actor=actor.key, data={"template": name, "tag": tag})

    async def project_removed(self, project: str) -> None:
        """A later project of its name begins without them."""
        for whose, name in [key for key in self._records if key[0] == project]:
            del self._records[whose, name]
            await self._rows.remove(project, name, None)
