"""The images of one node as builds use them: made, imported, exported, measured, removed. What blocks runs in threads, and strangers' files are read by other processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from corral.errors import ImageNotFound, Unavailable
from corral.ids import new_id
from corral.images import builtin
from corral.images.catalog import IMPORTED, Catalog, StoredImage
from corral.images.config import ImageConfig
from corral.images.host_mirrors import MARK
from corral.images.oci import job
from corral.images.oci.documents import Platform
from corral.images.oci.importer import PREFIX, Imported
from corral.images.oci.reference import Reference
from corral.images.pulled import Pulled
from corral.images.uploads import Uploads
from corral.node import rootfs, trees
from corral.node.interface import ImageSpec
from corral.node.turns import Turns
from corral.places import Places
from corral.schema.image import FromArchive, FromRegistry

log = structlog.get_logger(__name__)

Say = Callable[[str], None]
_Work = Callable[[str, list[str]], job.Pull | job.Unpack | job.UnpackRootfs]
"""Gives the job, by the name of its workplace and the layers that the project has had."""
_AT_ONCE, _AT_ONCE_OF_ALL = 4, 16
"""Imports of a project, and exports, that run at the same time; and those of all. Others wait. An export runs until its file is gone."""
_LONGEST = 4 * 3600.0
"""Seconds that one may take."""
_ASIDE = ".import-"


@dataclass(frozen=True)
class Found:
    """An image that was imported, now or before."""

    image: str
    config: ImageConfig
    digest: str


class Library:
    """One installation's, on its catalogue. `mirrors`: addresses by registry."""

    def __init__(self, places: Places, catalog: Catalog, *, mirrors: Mapping[str, Sequence[str]] | None = None) -> None:
        self._places = places
        self._catalog = catalog
        self._mirrors = {registry: list(addresses) for registry, addresses in (mirrors or {}).items()}
        self.uploads = Uploads(places)
        self._pulled = Pulled(places)
        self._building = asyncio.Lock()
        self._room = asyncio.Semaphore(_AT_ONCE_OF_ALL)
        self._rooms: dict[tuple[str, str], asyncio.Semaphore] = {}
        self._turns = Turns()
        self._using = 0
        self._removing = asyncio.Lock()
        self._doomed: set[str] = set()
        self._had: dict[str, set[str]] = {}

    def open(self) -> None:
        """Clear away what an earlier server left half done, and say which images an earlier version of Corral has made."""
        for name in builtin.outdated(self._catalog):
            log.warning("this image would be made otherwise today; `corral setup` makes it anew, with the options it had", image=name)
        for left in self.room.glob("*"):
            # Not the directory itself, which may be an encrypted one.
            _clear(left)
        self.uploads.sweep()
        self._pulled.sweep()
        kept = {layer for image in self._catalog.list() for layer in image.spec.layers}
        for left in (*self._places.layers.glob(f"{_ASIDE}*"), *self._places.layers.glob(f"{PREFIX}*")):
            if left not in kept:
                _clear(left)

    @property
    def room(self) -> Path:
        """Where files are put together; emptied at every start."""
        return self._places.builds

    async def ensure(self, name: str, say: Say) -> str:
        """The id of an image that ships with Corral, or of a distribution; made if it is not there. Raises `SetupError`."""
        loop = asyncio.get_running_loop()

        def later(line: str) -> None:
            loop.call_soon_threadsafe(say, line)

        def make() -> str:
            return builtin.ensure(self._places, [name], on_line=later, host_mirrors=self._has_mirrors())[0].spec.id

        async with self._building:
            return await asyncio.to_thread(make)

    # Strangers' images

    @asynccontextmanager
    async def pull(self, project: str, source: FromRegistry, password: str | None, say: Say, *, anew: bool = False) -> AsyncGenerator[Found]:
        """An image of a registry, unless the project has pulled it; `anew`: the registry is asked what the name means now.

        It stays when the block ends well: by then whoever uses it must be known to who calls `remove`. Raises what `oci.registry` raises.
        """
        reference, platform = Reference.parse(source.ref), Platform.parse(source.platform)
        place = f"{reference} for {platform}"

        def work(aside: str, own: list[str]) -> job.Pull:
            return job.Pull(str(self._places.layers), aside, reference, platform, self._mirrors, source.username, password, own)

        async with self._once(project, place, work, say, anew=anew) as found:
            yield found

    @asynccontextmanager
    async def unpack(self, project: str, source: FromArchive, say: Say) -> AsyncGenerator[Found]:
        """The image in an uploaded archive, as `pull`. Raises what `oci.archive` raises."""
        path = self.uploads.path(project, source.upload)
        place = f"{'root file system' if source.rootfs else 'archive'} {source.upload}"

        def work(aside: str, own: list[str]) -> job.Unpack | job.UnpackRootfs:
            if source.rootfs:
                return job.UnpackRootfs(str(self._places.layers), aside, str(path))
            return job.Unpack(str(self._places.layers), aside, str(path), Platform.parse(None), own)

        async with self._once(project, place, work, say, anew=False) as found:
            yield found

    @asynccontextmanager
    async def _once(self, project: str, place: str, work: _Work, say: Say, *, anew: bool) -> AsyncGenerator[Found]:
        async with self._turns.alone(f"{project}:{place}"), self._used():
            found = None if anew else self._known(project, place)
            if found is None:
                found = await self._import(project, place, work, say)
            yield found
            # Who deleted it meanwhile could not know of this use.
            self._doomed.discard(found.image)

    async def _import(self, project: str, place: str, work: _Work, say: Say) -> Found:
        async with self._room_of(project, "import"), self._room:
            self._places.layers.mkdir(mode=0o700, parents=True, exist_ok=True)
            aside = f"{_ASIDE}{new_id('im')}"
            say(f"importing {place}")
            try:
                async with asyncio.timeout(_LONGEST):
                    answer = await job.run(work(aside, sorted(self._own(project))), say, self._had.setdefault(project, set()).add)
            except TimeoutError:
                raise Unavailable(f"{place} did not come within {_LONGEST / 3600:g} hours", hint="try again later: layers that came whole are kept") from None
            finally:
                # What a killed one left: its mounts went with it.
                await asyncio.shield(asyncio.to_thread(_clear, self._places.layers / aside))
            imported = Imported(tuple(answer["layers"]), answer["digest"], answer["config"])
            return await asyncio.to_thread(self._add, project, place, imported)

    def _room_of(self, project: str, what: str) -> asyncio.Semaphore:
        """One project's, so that registries or readers that take their time keep nobody else waiting."""
        return self._rooms.setdefault((project, what), asyncio.Semaphore(_AT_ONCE))

    def _own(self, project: str) -> set[str]:
        """Layers of what a project has imported, and of imports of its that came so far since the server started."""
        images = self._pulled.images(project)
        known = {layer.name for image in self._catalog.list() if image.spec.id in images for layer in image.spec.layers}
        return known | self._had.get(project, set())

    def _known(self, project: str, place: str) -> Found | None:
        id = self._pulled.find(project, place)
        if id is None or id in self._doomed or not self.is_imported(id):
            return None
        stored = self._catalog.find(id)
        return Found(id, _config(stored), (stored.recipe or "").removeprefix(IMPORTED))

    def _add(self, project: str, place: str, imported: Imported) -> Found:
        recipe = f"{IMPORTED}{imported.digest}"
        layers = tuple(self._places.layers / name for name in imported.layers)
        stored = next((image for image in self._catalog.list() if image.recipe == recipe and image.spec.layers == layers), None)
        if stored is None:
            config = ImageConfig.from_oci(imported.config)
            spec = config.spec(ImageSpec(new_id("im"), None, layers, env={}, user=None, workdir=None, command=None))
            stored = StoredImage(spec, datetime.now(UTC), sum(builtin.tree_size(layer) for layer in layers), recipe, config=config.encode())
            self._catalog.add(stored)
        self._pulled.put(project, place, stored.spec.id)
        return Found(stored.spec.id, _config(stored), imported.digest)

    @asynccontextmanager
    async def archive(self, project: str, spec: ImageSpec, config: ImageConfig, *, name: str | None) -> AsyncGenerator[Path]:
        """An image as an OCI archive, a file that is gone when the block ends. Its snapshots must not be deleted meanwhile. Raises `DiskFull`."""
        self.room.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.room / f"{new_id('im')}.tar"
        async with self._room_of(project, "export"):
            try:
                async with self._used(), self._room:
                    layers = await asyncio.to_thread(rootfs.directories, (*spec.layers, *(() if spec.seed is None else (spec.seed,))))
                    created = datetime.now(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")
                    await job.run(job.Export([str(layer) for layer in layers], str(path), config.to_oci(), name, created), lambda _text: None)
                yield path
            finally:
                path.unlink(missing_ok=True)

    @asynccontextmanager
    async def _used(self) -> AsyncGenerator[None]:
        """Layers are not deleted meanwhile: what is removed then goes afterwards."""
        async with self._removing:
            self._using += 1
        try:
            yield
        finally:
            self._using -= 1
            if not self._using:
                doomed, self._doomed = self._doomed, set()
                for id in doomed:
                    await self.remove(id)

    # All images

    def is_imported(self, ref: str) -> bool:
        """Whether it is the id of an image that was imported."""
        try:
            found = self._catalog.find(ref)
        except ImageNotFound:
            return False
        return found.spec.id == ref and (found.recipe or "").startswith(IMPORTED)

    def is_removable(self, id: str) -> bool:
        """Whether it goes when nothing stands on it any more: it was imported, or has lost its name to a newer one."""
        return any(image.spec.id == id and ((image.recipe or "").startswith(IMPORTED) or builtin.is_left(image)) for image in self._catalog.list())

    def size(self, id: str) -> int:
        """Bytes of all its layers."""
        return self._catalog.find(id).size

    async def remove(self, id: str) -> None:
        """Delete an image on which nothing stands, if it `is_removable`."""
        if not self.is_removable(id):
            return
        async with self._removing:
            if self._using:
                self._doomed.add(id)
                return
            await asyncio.to_thread(self._pulled.forget, id)
            await asyncio.to_thread(self._catalog.remove, id)

    def _has_mirrors(self) -> bool:
        """Whether images here are told of the host's mirrors: as `base` was."""
        return any(MARK in (image.recipe or "") for image in self._catalog.list() if image.spec.name == "base")


def _clear(left: Path) -> None:
    """What stays of it costs room on the disk, and keeps nothing from going on."""
    try:
        trees.remove(left)
    except OSError as error:
        log.warning("what an import left can't be removed", path=str(left), error=str(error))


def _config(stored: StoredImage) -> ImageConfig:
    return ImageConfig.of(stored.spec) if stored.config is None else ImageConfig.decode(stored.config)
