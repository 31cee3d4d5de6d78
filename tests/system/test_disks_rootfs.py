"""Roots put together by the host's overlayfs from real layers and real disks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from corral.errors import PlatformError, Unsupported
from corral.ids import new_id
from corral.node import mounts, rootfs
from corral.node.disks import PoolDisks
from corral.places import Places
from harness import homes

pytestmark = pytest.mark.no_engine


@pytest.fixture
def places() -> Iterator[Places]:
    # A comma, a colon, a backslash and a space: what mount options would take for something else.
    with homes.without_engine("rootfs", below="odd, ho:me\\x") as places:
        places.layers.mkdir(parents=True)
        yield places


@pytest.fixture
async def disks(places: Places) -> AsyncIterator[PoolDisks]:
    disks = PoolDisks(places, default_mib=64, stock=1, pool_bytes=2 << 30)
    await disks.open(known=set())
    yield disks
    rootfs.unmount_layers(places)
    await disks.shutdown()
    assert [mount for mount in mounts.table() if mount.target.is_relative_to(places.home)] == []


@pytest.fixture
def member(places: Places) -> Path:
    """The root directory of a pool member, as the engine makes it."""
    root = places.members / "m-1" / "root"
    (root / "rootfs").mkdir(parents=True)
    return root


def layer(places: Places, name: str, files: dict[str, str]) -> Path:
    root = places.layers / name
    for file, content in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(content)
    return root


async def test_upper_layers_win_and_writes_go_to_the_disk(places: Places, disks: PoolDisks, member: Path) -> None:
    low, high = layer(places, "low", {"a": "low", "b": "low", "etc/x": "low"}), layer(places, "high", {"b": "high", "etc/y": "high"})
    disk = await disks.attach(new_id("sb"), 64)
    rootfs.mount_root(member, [low, high], disk)
    root = member / "rootfs"
    assert [(root / name).read_text() for name in ("a", "b", "etc/x", "etc/y")] == ["low", "high", "low", "high"]
    (root / "a").write_text("changed")
    (root / "b").unlink()
    assert ((low / "a").read_text(), (high / "b").read_text()) == ("low", "high")
    assert (disk / "u" / "a").read_text() == "changed"
    rootfs.unmount_root(member)
    assert list(root.iterdir()) == []
    rootfs.mount_root(member, [low, high], disk)
    assert (root / "a").read_text() == "changed"
    assert not (root / "b").exists()
    rootfs.unmount_root(member)
    rootfs.unmount_root(member)


async def test_the_root_directory_has_the_images_owner_and_mode_until_the_sandbox_changes_it(places: Places, disks: PoolDisks, member: Path) -> None:
    image = layer(places, "image", {"file": ""})
    image.chmod(0o1711)
    os.chown(image, 12, 34)
    disk = await disks.attach(new_id("sb"), 64)
    rootfs.mount_root(member, [image], disk)
    status = (member / "rootfs").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o1711, 12, 34)
    (member / "rootfs").chmod(0o700)
    rootfs.unmount_root(member)
    rootfs.mount_root(member, [image], disk)
    assert stat.S_IMODE((member / "rootfs").stat().st_mode) == 0o700
    rootfs.unmount_root(member)


async def test_a_file_keeps_its_inode_number_when_it_is_first_written(places: Places, disks: PoolDisks, member: Path) -> None:
    image = layer(places, "image", {"file": "before"})
    rootfs.mount_root(member, [image], await disks.attach(new_id("sb"), 64))
    file = member / "rootfs" / "file"
    before = file.stat().st_ino
    file.write_text("after")
    assert file.stat().st_ino == before
    rootfs.unmount_root(member)


async def test_what_a_sandbox_makes_is_no_device_and_no_privileged_program_for_the_host(places: Places, disks: PoolDisks, member: Path) -> None:
    image = layer(places, "image", {"file": ""})
    shutil.copy("/usr/bin/id", image / "id")
    (image / "id").chmod(0o4755)
    rootfs.mount_root(member, [image], await disks.attach(new_id("sb"), 64))
    root = member / "rootfs"
    os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    with pytest.raises(PermissionError):
        (root / "null").read_bytes()
    shutil.chown(root, 65534)
    program = await asyncio.create_subprocess_exec(root / "id", "-u", user=65534, stdout=asyncio.subprocess.PIPE)
    said, _ = await program.communicate()
    assert said in (b"65534\n", b"")
    rootfs.unmount_root(member)


async def test_two_hundred_layers_and_not_endlessly_many(places: Places, disks: PoolDisks, member: Path) -> None:
    layers = [layer(places, f"layer-with-a-rather-long-name-{number}", {f"file{number}": "", "last": str(number)}) for number in range(300)]
    disk = await disks.attach(new_id("sb"), 64)
    rootfs.mount_root(member, layers[:200], disk)
    assert len(list((member / "rootfs").iterdir())) == 201
    assert (member / "rootfs" / "last").read_text() == "199"
    rootfs.unmount_root(member)
    with pytest.raises(Unsupported, match="300 layers"):
        rootfs.mount_root(member, layers, disk)


async def test_the_disk_of_one_sandbox_can_be_a_layer_of_others(places: Places, disks: PoolDisks, member: Path) -> None:
    image = layer(places, "image", {"kept": "image", "changed": "image", "deleted": "image"})
    first = new_id("sb")
    rootfs.mount_root(member, [image], await disks.attach(first, 64))
    (member / "rootfs" / "changed").write_text("first")
    (member / "rootfs" / "deleted").unlink()
    rootfs.unmount_root(member)
    await disks.detach(first)
    snapshot = places.layers / "snapshot.img"
    shutil.copyfile(places.disks / f"{first}.img", snapshot)
    other = places.members / "m-2" / "root"
    (other / "rootfs").mkdir(parents=True)
    for root in (member, other):
        rootfs.mount_root(root, [image, snapshot], await disks.attach(new_id("sb"), 64))
        assert sorted(path.name for path in (root / "rootfs").iterdir()) == ["changed", "kept"]
        assert (root / "rootfs" / "changed").read_text() == "first"
        (root / "rootfs" / "changed").write_text(str(root))
    assert (member / "rootfs" / "changed").read_text() == str(member)
    for root in (member, other):
        rootfs.unmount_root(root)


async def test_a_missing_layer_is_named(places: Places, disks: PoolDisks, member: Path) -> None:
    with pytest.raises(PlatformError, match="gone"):
        rootfs.mount_root(member, [places.layers / "gone"], await disks.attach(new_id("sb"), 64))


async def test_removing_a_disk_under_a_mounted_root_leaves_nothing(places: Places, disks: PoolDisks, member: Path) -> None:
    box = new_id("sb")
    rootfs.mount_root(member, [layer(places, "image", {"file": ""})], await disks.attach(box, 512))
    (member / "rootfs" / "big").write_bytes(os.urandom(50 << 20))
    await disks.remove(box)
    rootfs.unmount_root(member)
    # The kernel clears a loop device a moment after its last user has left.
    deadline = time.monotonic() + 10
    while any(box in trace for trace in backing_files()):
        assert time.monotonic() < deadline


def backing_files() -> list[str]:
    found: list[str] = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found.append(path.read_text())
    return found
