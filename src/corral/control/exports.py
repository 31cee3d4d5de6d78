"""Images and snapshots on their way out, as archives that other programs take."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from corral.control.images import Images
from corral.control.ports import Node
from corral.control.shelf import Shelf
from corral.control.templates import Templates
from corral.ids import is_id


class Exports:
    """All projects'."""

    def __init__(self, *, images: Images, templates: Templates, shelf: Shelf, node: Node) -> None:
        self._images = images
        self._templates = templates
        self._shelf = shelf
        self._node = node

    @asynccontextmanager
    async def archive(self, project: str, ref: str) -> AsyncGenerator[Path]:
        """An OCI archive of an image, a snapshot or a template's image, for as long as the block lasts. Raises `ImageNotFound`, `DiskFull`."""
        record = self._templates.image(project, ref)
        spec = self._node.image(self._shelf.image(project, ref) if record is None else record.node_image)
        config = self._images.config(project, spec.id) if record is None else record.settings
        async with self._shelf.kept(spec.id), self._node.library.archive(project, spec, config, name=_name(ref)) as path:
            yield path


def _name(ref: str) -> str | None:
    """What `docker load` calls it: an id is no name."""
    if is_id(ref):
        return None
    return ref if ":" in ref else f"{ref}:latest"
