"""The images of one installation: a JSON document for each, an immutable directory for each layer.

    <home>/images/im-….json      {"id", "name", "layers", "env", "user", "workdir", "command", "created", "size", "recipe", "config"}
    <home>/layers/<layer>/       an unpacked root; root-owned, never written again

A layer in a document is a name under `<home>/layers`, or an absolute path. At most one image carries a name; one that loses its name to a newer build
stays, since sandboxes may still stand on it. Documents appear, change and go by rename, so a reader never sees half of one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from corral.errors import ImageNotFound, InternalError
from corral.ids import is_id
from corral.node import trees
from corral.node.interface import ImageSpec
from corral.places import Places

IMPORTED = "oci:"
"""What the recipe of an image begins with that was imported; its digest follows. It is found only by those who imported it."""


@dataclass(frozen=True)
class StoredImage:
    """An image and what is known of it. `size` is in bytes; `recipe` names what it was built from, so that a changed recipe is noticed.

    `config`: all that an imported one says of itself, as `ImageConfig.encode` has it.
    """

    spec: ImageSpec
    created: datetime
    size: int
    recipe: str | None = None
    config: str | None = None


class Catalog:
    """Finds, lists, adds and removes images. Safe to use from several threads, and while another process adds images."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._known: tuple[int, tuple[StoredImage, ...]] | None = None

    def list(self) -> tuple[StoredImage, ...]:
        """All images, the newest first."""
        try:
            changed = self._places.images.stat().st_mtime_ns
        except FileNotFoundError:
            return ()
        known = self._known
        if known is not None and known[0] == changed:
            return known[1]
        found = [self._read(path) for path in self._places.images.glob("im-*.json")]
        images = tuple(sorted((image for image in found if image), key=lambda image: image.created, reverse=True))
        # Two changes within one tick of the kernel's clock carry one time stamp: remember only what can't change unseen.
        self._known = (changed, images) if time.time_ns() - changed > 1_000_000_000 else None
        return images

    def find(self, name_or_id: str) -> StoredImage:
        """The image with that name or id. Raises `ImageNotFound`, whose hint lists the names there are."""
        for image in self.list():
            if name_or_id in (image.spec.name, image.spec.id):
                return image
        names = sorted(image.spec.name for image in self.list() if image.spec.name)
        hint = f"images here: {', '.join(names)}" if names else "no image has been built yet: run `corral setup`"
        raise ImageNotFound(f"there is no image {name_or_id!r}", hint=hint, details={"image": name_or_id, "images": names})

    def spec(self, name_or_id: str) -> ImageSpec:
        return self.find(name_or_id).spec

    def add(self, image: StoredImage) -> None:
        """Write the image's document. Whichever image had its name until now loses it."""
        self._places.images.mkdir(parents=True, exist_ok=True)
        # The new one first: `find` takes the newest of two, so the name is never missing.
        self._write(image)
        for other in self.list():
            if image.spec.name and other.spec.name == image.spec.name and other.spec.id != image.spec.id:
                self._write(replace(other, spec=replace(other.spec, name=None)))

    def changed(self, image: StoredImage) -> float:
        """When its document was last written, in seconds since 1970: of one without a name, when it lost that."""
        return self._path(image.spec.id).stat().st_mtime

    def remove(self, name_or_id: str) -> None:
        """Forget an image and delete those of its layers that no other image has. The caller knows that no sandbox stands on it."""
        image = self.find(name_or_id)
        self._path(image.spec.id).unlink(missing_ok=True)
        self._known = None
        kept = {layer for other in self.list() for layer in other.spec.layers}
        for layer in image.spec.layers:
            if layer not in kept and layer.parent == self._places.layers:
                _delete(layer)

    def _path(self, id: str) -> Path:
        return self._places.images / f"{id}.json"

    def _read(self, path: Path) -> StoredImage | None:
        try:
            return self._decode(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise InternalError(f"the image document {path} can't be read: {error}", hint="remove the file and run `corral setup`") from error

    def _decode(self, document: Mapping[str, Any]) -> StoredImage:
        if not is_id(document["id"], "im"):
            raise ValueError(f"{document['id']!r} is not an image's id")
        command: Sequence[str] | None = document["command"]
        spec = ImageSpec(
            id=document["id"],
            name=document["name"],
            layers=tuple(self._places.layers / layer for layer in document["layers"]),
            env=dict(document["env"]),
            user=document["user"],
            workdir=document["workdir"],
            command=tuple(command) if command is not None else None,
        )
        return StoredImage(spec, datetime.fromisoformat(document["created"]), int(document["size"]), document.get("recipe"), document.get("config"))

    def _write(self, image: StoredImage) -> None:
        spec, layers = image.spec, self._places.layers
        document = {
            "id": spec.id,
            "name": spec.name,
            "layers": [layer.name if layer.parent == layers else str(layer) for layer in spec.layers],
            "env": dict(spec.env),
            "user": spec.user,
            "workdir": spec.workdir,
            "command": spec.command,
            "created": image.created.isoformat(),
            "size": image.size,
            "recipe": image.recipe,
            "config": image.config,
        }
        path = self._path(spec.id)
        aside = path.with_suffix(f".{os.getpid()}.new")
        aside.write_text(json.dumps(document, indent=2) + "\n")
        aside.rename(path)
        self._known = None


def share(places: Places, source: Places, names: Sequence[str]) -> None:
    """Make images of another installation usable in this one. Their layers stay where they are, and must stay."""
    theirs, ours = Catalog(source), Catalog(places)
    for name in names:
        ours.add(theirs.find(name))


def _delete(layer: Path) -> None:
    """Delete a layer as one step for everybody else: it is renamed away before its files go."""
    doomed = layer.with_name(f".removed-{layer.name}-{os.getpid()}")
    try:
        layer.rename(doomed)
    except FileNotFoundError:
        return
    trees.remove(doomed)
