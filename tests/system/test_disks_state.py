"""Snapshots and volumes on a pool that is full, or that is dropped with writes in flight, as by a power cut."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.errors import Unavailable
from corral.ids import new_id
from corral.node import loop, mounts, rootfs, syscalls
from corral.node.disks import PoolDisks
from corral.node.interface import ImageSpec, VolumeUse
from corral.node.memory import Memories
from corral.node.snapshots import Snapshots
from corral.node.volumes import Volumes
from corral.places import Places
from harness import homes

pytestmark = pytest.mark.no_engine

MIB = 1 << 20
IMAGE = ImageSpec("im-aaaaaaaaaaaaaaaa", None, ())


@pytest.fixture
def places() -> Iterator[Places]:
    with homes.without_engine("disks") as places:
        yield places


def new_disks(places: Places, **how: float) -> PoolDisks:
    return PoolDisks(places, default_mib=256, stock=0, pool_bytes=1 << 30, **how)  # pyright: ignore[reportArgumentType]


async def make(snapshots: Snapshots, box: str) -> str:
    return (await snapshots.make(new_id("sn"), box, IMAGE, disk=256, user=None, workdir=None)).spec.id


def synced(path: Path, content: bytes) -> None:
    """Write a file so that it must survive."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def drop(directory: Path) -> None:
    """End the file system as a power cut does: what is not on the medium, its log included, is gone."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    syscalls.shut_down_ext4(descriptor)  # XFS has the same call
    os.close(descriptor)


async def test_a_full_pool_refuses_snapshots_and_harms_nobody(places: Places) -> None:
    disks, box = new_disks(places, high_water=0.9), new_id("sb")
    await disks.open()
    snapshots = Snapshots(places, disks, Memories(places))
    await snapshots.open()
    upper = await disks.attach(box, 256) / "u"
    synced(upper / "file", b"kept")
    filler = places.pool / "filler"
    with filler.open("wb") as file:
        free = os.statvfs(places.pool)
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - 60 * MIB)
    with pytest.raises(Unavailable):
        await make(snapshots, box)
    assert [path.name for path in places.snapshots.iterdir()] == []
    synced(upper / "file", b"goes on")
    # XFS gives the blocks of a deleted file back some time later, those of one that was cut at once.
    os.truncate(filler, 0)
    filler.unlink()
    snapshot = await make(snapshots, box)
    assert snapshots.get(snapshot).size > 0
    await snapshots.remove(snapshot)
    await disks.remove(box)
    await disks.shutdown()


async def test_what_was_promised_survives_a_pool_dropped_with_writes_in_flight(places: Places) -> None:
    disks, box, volume = new_disks(places), new_id("sb"), new_id("vo")
    await disks.open()
    snapshots, volumes = Snapshots(places, disks, Memories(places)), Volumes(places, disks.pool)
    await snapshots.open()
    await volumes.open()
    await volumes.create(volume, 128)
    place = places.home / "vol"
    place.mkdir()
    (name,) = await volumes.attach(box, [VolumeUse(volume, "/data")], place)
    upper, data = await disks.attach(box, 256) / "u", place / name
    kept: dict[str, str] = {}
    ending = threading.Event()

    def write() -> None:
        with contextlib.suppress(OSError), (upper / "noise").open("wb") as one, (data / "noise").open("wb") as two:
            while not ending.is_set():
                for file in (one, two):
                    file.write(os.urandom(4096))
                    if file.tell() > 50 * MIB:
                        file.seek(0)

    writing = threading.Thread(target=write)
    writing.start()
    for number in range(10):
        (upper / "file").write_text(f"not synced {number}")
        kept[await make(snapshots, box)] = f"not synced {number}"
        synced(data / f"file-{number}", f"synced {number}".encode())
    drop(places.pool)
    ending.set()
    writing.join()
    await disks.close()
    for directory in (places.run, places.home):
        mounts.sweep(directory)
    while loop.behind_device(places.pool_image):
        os.sched_yield()

    disks = new_disks(places)
    await disks.open()
    snapshots, volumes = Snapshots(places, disks, Memories(places)), Volumes(places, disks.pool)
    await snapshots.open()
    await volumes.open()
    assert {stored.spec.id for stored in snapshots.list()} == set(kept)
    for snapshot, text in kept.items():
        rootfs.mount_layers(snapshots.get(snapshot).spec.layers)
        assert (places.snapshots / ".mounted" / f"{snapshot}.img" / "u" / "file").read_text() == text
    again = places.home / "again"
    again.mkdir()
    (name,) = await volumes.attach(box, [VolumeUse(volume, "/data")], again)
    for number in range(10):
        assert (again / name / f"file-{number}").read_text() == f"synced {number}"
    mounts.sweep(again)
    await volumes.shutdown()
    rootfs.unmount_layers(places)
    await disks.shutdown()
