"""The images of one node as builds use them: made, imported, measured, removed. What blocks runs in threads."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

from corral.errors import ImageNotFound
from corral.images import base, builtin
from corral.images.catalog import Catalog
from corral.images.release import host_release
from corral.images.uploads import Uploads
from corral.places import Places

Say = Callable[[str], None]
IMPORTED = "oci:"
"""What the recipe of an image begins with that was imported; the digest of its configuration follows. It is found only by those who imported it."""


class Library:
    """One installation's, on its catalogue."""

    def __init__(self, places: Places, catalog: Catalog) -> None:
        self._places = places
        self._catalog = catalog
        self.uploads = Uploads(places)
        self._building = asyncio.Lock()

    def open(self) -> None:
        """Clear away what an earlier server left half done."""
        shutil.rmtree(self.room, ignore_errors=True)
        self.uploads.sweep()

    @property
    def room(self) -> Path:
        """Where files are put together; emptied at every start."""
        return self._places.home / "builds"

    async def ensure(self, name: str, say: Say) -> str:
        """The id of an image that ships with Corral, or of a distribution; made if it is not there. Raises `SetupError`."""
        loop = asyncio.get_running_loop()

        def later(line: str) -> None:
            loop.call_soon_threadsafe(say, line)

        def make() -> str:
            return builtin.ensure(self._places, [name], on_line=later, host_mirrors=self._has_mirrors())[0].spec.id

        async with self._building:
            return await asyncio.to_thread(make)

    def is_imported(self, ref: str) -> bool:
        """Whether it is the id of an image that was imported."""
        try:
            found = self._catalog.find(ref)
        except ImageNotFound:
            return False
        return found.spec.id == ref and (found.recipe or "").startswith(IMPORTED)

    def size(self, id: str) -> int:
        """Bytes of all its layers."""
        return self._catalog.find(id).size

    async def remove(self, id: str) -> None:
        """Delete an imported image on which nothing stands."""
        if self.is_imported(id):
            await asyncio.to_thread(self._catalog.remove, id)

    def _has_mirrors(self) -> bool:
        """Whether images here are told of the host's mirrors: as `base` was. Blocks, for a second where they may be: apt is asked for its sources."""
        host_release()
        recipes = {image.recipe for image in self._catalog.list() if image.spec.name == "base"}
        return base.key(host_mirrors=False) not in recipes and base.key(host_mirrors=True) in recipes
