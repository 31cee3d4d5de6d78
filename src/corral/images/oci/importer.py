"""All of one image: its layers as directories that overlayfs takes as they are, each named by the chain of digests that leads to it.

<layers>/oci-<chain>         a layer over those before it; there whole and checked, since it appears by rename, or not at all
<layers>/oci-<chain>-flat    all layers up to there in one, at the bottom of an image with many
<layers>/<aside>/            where one is being made

The kernel itself says what a layer holds: each is unpacked on a mount of those below it, so that links, whiteouts and directories mean what they will mean later.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from corral.errors import InvalidArgument, TooLarge, Unsupported
from corral.images.oci.documents import Found, Layer, chain
from corral.images.oci.layer import Readable, opened
from corral.images.oci.tally import Limits, Tally
from corral.images.oci.unpack import Unpacker
from corral.node import rootfs, syscalls

DEEPEST = 12
"""Layers of an imported image on the disk; those at the bottom of one with more become one. Builds and snapshots add theirs above."""
PREFIX = "oci-"

Note = Callable[[str], None]


class Source(Protocol):
    """Where an image is to be had."""

    def find(self) -> Found: ...
    def layer(self, layer: Layer) -> AbstractContextManager[Readable]: ...
    def check(self, layer: Layer) -> None: ...
    def another(self) -> bool:
        """Whether what it gave, which was wrong, may be right when it is asked for again."""
        ...


@dataclass(frozen=True)
class Imported:
    """`layers`: names of directories, from the lowest up. `digest`: what the image is known by elsewhere. `config`: how processes start, in OCI's words."""

    layers: tuple[str, ...]
    digest: str
    config: dict[str, Any]


class Importer:
    """Into the directory `layers`, with `aside` as the name of the workplace in it.

    `own`: layers there that whoever imports has had before. What else is there belongs to others, who may keep it secret, and digests are no secret: it
    is only given to who has its content. `had` is told of each layer that they have now.
    """

    def __init__(
        self, layers: Path, aside: str, limits: Limits, note: Note, *, own: Collection[str] = (), had: Callable[[str], None] = lambda _name: None
    ) -> None:
        self._layers = layers
        self._aside = layers / aside
        self._tally = Tally(limits, note)
        self._note = note
        self._own = own
        self._had = had

    def image(self, source: Source) -> Imported:
        """All layers that are not there already. Raises as `source` and `Unpacker` do; what was whole by then is kept."""
        found = source.find()
        self._aside.mkdir(mode=0o700)
        try:
            names: list[str] = []
            for upto, group in _groups(found.layers, deepest=DEEPEST if self._can_stack() else 1):
                flat = "-flat" if len(group) > 1 else ""
                name = f"{PREFIX}{chain([layer.diff_id for layer in found.layers[:upto]]).removeprefix('sha256:')[:40]}{flat}"
                what = f"layer {upto} of {len(found.layers)}"
                if not (self._layers / name).exists():
                    self._make(name, [self._layers / below for below in names], source, group, what)
                elif name in self._own:
                    for layer in group:
                        source.check(layer)
                    self._note(f"{what}: known")
                else:
                    while not self._proven(source, group):
                        pass
                    self._note(f"{what}: known, and read to see that it is the same")
                names.append(name)
                self._had(name)
            if not names:
                names.append(self._nothing())
            self._tally.end()
        finally:
            shutil.rmtree(self._aside)
        return Imported(tuple(names), found.digest, found.config.config or {})

    def rootfs(self, blob: Readable) -> Imported:
        """A bare root file system, plain or compressed. Its digest is that of the tar file."""
        self._aside.mkdir(mode=0o700)
        try:
            room = self._aside / "fs"
            room.mkdir(mode=0o755)
            with self._unpacker(room) as unpacker, opened(blob) as tar:
                unpacker.layer(tar)
                digest = tar.finish(diff_id=None, digest=None, size=None)
            name = f"{PREFIX}{digest.removeprefix('sha256:')[:40]}"
            self._keep(room, name)
            self._tally.end()
        finally:
            shutil.rmtree(self._aside)
        return Imported((name,), digest, {})

    def _proven(self, source: Source, group: Sequence[Layer]) -> bool:
        """See that the source has the content of layers that are there already; False: it is to be asked again."""
        try:
            for layer in group:
                with source.layer(layer) as blob, opened(blob) as tar:
                    tar.finish(diff_id=layer.diff_id, digest=layer.digest, size=layer.size)
        except InvalidArgument:
            if not source.another():
                raise
            return False
        return True

    def _make(self, name: str, below: Sequence[Path], source: Source, group: Sequence[Layer], what: str) -> None:
        before = self._tally.size, self._tally.entries
        while True:
            try:
                self._make_once(name, below, source, group, what)
            except (InvalidArgument, Unsupported, TooLarge):
                if not source.another():
                    raise
                shutil.rmtree(self._aside / "fs")
                self._tally.back(before)
            else:
                return

    def _make_once(self, name: str, below: Sequence[Path], source: Source, group: Sequence[Layer], what: str) -> None:
        size, entries = self._tally.size, self._tally.entries
        room, target = self._aside / "fs", self._aside / "fs"
        room.mkdir(mode=0o755)
        room.chmod(0o755)
        if below:
            target = self._aside / "view"
            for directory in (target, self._aside / "work"):
                directory.mkdir(exist_ok=True)
            rootfs.mount_stack(target, below, room, self._aside / "work")
        try:
            with self._unpacker(target) as unpacker:
                for layer in group:
                    with source.layer(layer) as blob, opened(blob) as tar:
                        unpacker.layer(tar)
                        tar.finish(diff_id=layer.diff_id, digest=layer.digest, size=layer.size)
                self._note(f"{what}: {self._tally.entries - entries:,} files, {(self._tally.size - size) / 1e6:.1f} MB")
        finally:
            if below:
                syscalls.umount(target)
                shutil.rmtree(self._aside / "work")
        self._keep(room, name)

    def _unpacker(self, target: Path) -> _Opened:
        return _Opened(target, self._tally)

    def _keep(self, room: Path, name: str) -> None:
        """Only what is safe on the disk gets its name."""
        descriptor = os.open(room, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(descriptor)
        finally:
            os.close(descriptor)
        try:
            room.rename(self._layers / name)
        except OSError:
            # Another import of the same has been faster.
            if not (self._layers / name).exists():
                raise
            shutil.rmtree(room)

    def _nothing(self) -> str:
        """The layer of an image without any."""
        name = f"{PREFIX}empty"
        if not (self._layers / name).exists():
            (self._aside / "fs").mkdir(mode=0o755)
            self._keep(self._aside / "fs", name)
        return name

    def _can_stack(self) -> bool:
        """Whether the disk can hold layers as overlayfs writes them: not where it is an overlay itself."""
        places = [self._aside / f"try-{name}" for name in ("below", "upper", "work", "view")]
        for place in places:
            place.mkdir()
        below, upper, work, view = places
        (below / "gone").touch()
        try:
            rootfs.mount_stack(view, [below], upper, work)
        except OSError:
            return False
        try:
            (view / "gone").unlink()
        except OSError:
            return False
        finally:
            syscalls.umount(view)
        return True


class _Opened:
    """An unpacker, for as long as the directory is open."""

    def __init__(self, target: Path, tally: Tally) -> None:
        self._target, self._tally = target, tally

    def __enter__(self) -> Unpacker:
        self._descriptor = os.open(self._target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return Unpacker(self._descriptor, self._tally)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _groups(layers: Sequence[Layer], *, deepest: int) -> list[tuple[int, Sequence[Layer]]]:
    """Which layers become one directory, with the number of the last: each its own, but the lowest of many together."""
    first = max(1, len(layers) - deepest + 1)
    found: list[tuple[int, Sequence[Layer]]] = [(first, layers[:first])] if layers else []
    return found + [(number + 1, layers[number : number + 1]) for number in range(first, len(layers))]
