"""Memory of sandboxes in files.

    <home>/memory/<id>/state, pages_meta, pages   as the sentry wrote them
    <home>/memory/<id>/processes/…                of a snapshot: the records of the processes in it, and what they had written
    <home>/memory/<id>/memory.json                what it is of and what it needs. Written last, so that a directory without it is half made, and removed first

`<id>` is a paused sandbox's, or a snapshot's that has memory. It belongs to a disk as it was at the same moment, and to no other.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from corral.errors import SetupError
from corral.ids import is_id, new_id
from corral.node import syscalls
from corral.node.place import OnDisk, Place
from corral.node.urpc import Sentry
from corral.places import Places

VERSION = 1
"""Of the documents. A greater one is refused: it is a later Corral's."""
_DOCUMENT = "memory.json"
_NEW = ".new-"

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Needs:
    """What a memory can be brought back with, and nothing else: this runsc, this guest agent (its SHA-256), a processor with these features."""

    runsc: str
    agent: str
    cpu: tuple[str, ...]


@dataclass(frozen=True)
class Saved:
    """A memory. `at`: seconds since 1970. `size`: bytes. `volumes`: how many were mounted in it, of which it may have files open."""

    id: str
    needs: Needs
    at: float
    size: int
    volumes: int = 0


@dataclass(frozen=True)
class Returning:
    """A memory to be restored. `mount_volumes` is told the directory that the guest has as /vol, and mounts there what was mounted when it was saved."""

    place: Place
    needs: Needs
    mount_volumes: Callable[[Path], Awaitable[object]]


def records(place: OnDisk) -> Path:
    """Where, beside a snapshot's memory, the records of its processes are."""
    return place.directory / "processes"


class Still:
    """A guest that stands still."""

    def __init__(self, calls: Sentry) -> None:
        self._calls = calls

    async def save(self, place: Place) -> None:
        """Write its memory. Raises `UrpcError` when something in it can't be saved."""
        with place.write() as files:
            await self._calls.save(files)


class Memories:
    """All blocking but cheap, except `write_out`, `settle`, `put_aside` and `drop`, which are for threads."""

    def __init__(self, places: Places) -> None:
        self._directory = places.memory
        self._known: dict[str, Saved] = {}

    def open(self, known: Collection[str] | None) -> None:
        """Find what there is; remove what is half made and what is of no sandbox or snapshot in `known` (None: of any). Raises `SetupError` for a later version's."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for place in sorted(self._directory.iterdir()):
            id = place.name
            if not (id.startswith(_NEW) or is_id(id, "sb") or is_id(id, "sn")):
                continue
            saved = None if id.startswith(_NEW) else _read(place)
            if saved is None or (known is not None and id not in known):
                log.info("removing a memory that is half made or nobody's", memory=id)
                shutil.rmtree(place)
            else:
                self._known[id] = saved

    def __contains__(self, id: str) -> bool:
        return id in self._known

    def of_sandboxes(self) -> list[str]:
        """Whose memory it is: those that are paused."""
        return [id for id in self._known if is_id(id, "sb")]

    def get(self, id: str) -> Saved | None:
        return self._known.get(id)

    def place(self, id: str) -> OnDisk:
        """Where it is."""
        return OnDisk(self._directory / id)

    def begin(self, id: str) -> OnDisk:
        """An empty place for a memory that is about to be written."""
        place = self._directory / f"{_NEW}{id}"
        if place.exists():
            shutil.rmtree(place)
        place.mkdir(mode=0o700)
        return OnDisk(place)

    def write_out(self, saved: Saved) -> None:
        """What was written at its new place is whole and safe on the disk when this returns, but nobody's yet."""
        place = self._directory / f"{_NEW}{saved.id}"
        document = place / _DOCUMENT
        document.write_text(json.dumps({"version": VERSION, **asdict(saved)}, indent=2))
        for path in place.rglob("*"):
            syscalls.sync(path)
        syscalls.sync(place)

    def settle(self, saved: Saved) -> None:
        """Take what `write_out` made safe as what it is. By then the disk that belongs to it is safe as well, since a power cut may leave what is on either side of this."""
        (self._directory / f"{_NEW}{saved.id}").rename(self._directory / saved.id)
        syscalls.sync(self._directory)
        self._known[saved.id] = saved

    def give_up(self, id: str) -> None:
        """Remove what was begun."""
        shutil.rmtree(self._directory / f"{_NEW}{id}", ignore_errors=True)

    def forget(self, id: str) -> None:
        """It is no more; `put_aside` or `drop` see to the rest of it."""
        self._known.pop(id, None)
        (self._directory / id / _DOCUMENT).unlink(missing_ok=True)

    def put_aside(self, id: str) -> Path | None:
        """It is no more. What it takes on the disk is where nobody looks for it, for the caller to remove, which takes a second for each gigabyte; None: there was none."""
        self.forget(id)
        aside = self._directory / f"{_NEW}{new_id('vo')}"
        try:
            (self._directory / id).rename(aside)
        except FileNotFoundError:
            return None
        return aside

    def drop(self, id: str) -> None:
        """Remove it. Nothing happens if there is none."""
        if (aside := self.put_aside(id)) is not None:
            shutil.rmtree(aside)


def cpu_features() -> tuple[str, ...]:
    """What this machine's processors can do, as the kernel calls it: a guest has looked at it, and a memory goes on believing it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return tuple(sorted(set(words.split())))
    return ()


def _read(place: Path) -> Saved | None:
    try:
        document: dict[str, Any] = json.loads((place / _DOCUMENT).read_bytes())
    except FileNotFoundError:
        return None
    if (version := document.pop("version", None)) != VERSION:
        raise SetupError(f"the memory {place} is of format {version}, this server knows {VERSION}", hint="start the version of Corral that wrote it")
    needs = document.pop("needs")
    return Saved(**document, needs=Needs(needs["runsc"], needs["agent"], tuple(needs["cpu"])))
