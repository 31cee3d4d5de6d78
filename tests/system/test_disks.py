"""Disks on real loop devices, XFS and ext4: limits that hold, clones that don't touch each other, nothing lost or left by a killed server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from corral.errors import NotFound, SetupError, Unavailable
from corral.ids import new_id
from corral.node import ext4, loop, mounts, syscalls
from corral.node.disk_pool import PoolKind
from corral.node.disks import PoolDisks
from corral.places import Places
from harness import homes

pytestmark = pytest.mark.no_engine

MIB = 1 << 20


def traces(places: Places) -> list[str]:
    """What the kernel holds for a home: mounts, and loop devices with a file of it."""
    mounted = [str(mount.target) for mount in mounts.table() if mount.target.is_relative_to(places.home) or mount.target.is_relative_to(places.run)]
    backing: list[str] = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            backing.append(path.read_text().strip())
    return mounted + [path for path in backing if path.startswith(str(places.home))]


async def vanished(places: Places, word: str = "") -> None:
    """Nothing with that word is left, or will be in a moment: the kernel clears a loop device just after its last user has left."""
    deadline = asyncio.get_running_loop().time() + 10
    while left := [trace for trace in traces(places) if word in trace]:
        assert asyncio.get_running_loop().time() < deadline, left
        await asyncio.sleep(0.001)


@pytest.fixture
def places() -> Iterator[Places]:
    with homes.without_engine("disks") as places:
        yield places


@pytest.fixture
async def disks(places: Places) -> AsyncIterator[PoolDisks]:
    disks = PoolDisks(places, default_mib=64, stock=2, pool_bytes=2 << 30)
    await disks.open(known=set())
    yield disks
    await disks.shutdown()
    await vanished(places)


def fill(file: Path) -> int:
    """Write until the disk is full; returns how many bytes went in."""
    written = 0
    with file.open("wb", buffering=0) as out:
        block = os.urandom(MIB)
        try:
            while True:
                written += out.write(block)
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return written


def exhaust_inodes(directory: Path) -> int:
    made = 0
    try:
        while True:
            (directory / str(made)).touch()
            made += 1
    except OSError as error:
        assert error.errno == errno.ENOSPC
    return made


async def test_a_full_disk_is_full_at_its_size_and_only_for_its_own_sandbox(disks: PoolDisks) -> None:
    full, other = new_id("sb"), new_id("sb")
    written = fill(await disks.attach(full, 64) / "u" / "fill")
    assert 55 * MIB < written <= 64 * MIB
    assert 55 * MIB < disks.used(full) <= 64 * MIB
    assert fill(await disks.attach(other, 32) / "u" / "fill") > 25 * MIB


async def test_running_out_of_inodes_hits_only_the_sandbox_that_made_the_files(disks: PoolDisks) -> None:
    crowd = await disks.attach(new_id("sb"), 32)
    made = exhaust_inodes(crowd / "u")
    assert 32 * MIB // 8192 * 0.9 < made <= 32 * MIB // 8192
    (await disks.attach(new_id("sb"), 32) / "u" / "file").touch()
    for name in range(made):
        (crowd / "u" / str(name)).unlink()
    (crowd / "u" / "again").touch()


async def test_disks_cloned_from_one_template_do_not_see_each_other(disks: PoolDisks) -> None:
    first, second = await disks.attach(new_id("sb"), 48), await disks.attach(new_id("sb"), 48)
    (first / "u" / "mine").write_bytes(b"1" * 5 * MIB)
    (second / "u" / "mine").write_bytes(b"2" * 5 * MIB)
    syscalls.syncfs(_opened := os.open(first, os.O_RDONLY))
    os.close(_opened)
    third = await disks.attach(new_id("sb"), 48)
    assert (first / "u" / "mine").read_bytes() == b"1" * 5 * MIB
    assert (second / "u" / "mine").read_bytes() == b"2" * 5 * MIB
    assert list((third / "u").iterdir()) == list((third / "w").iterdir()) == []


async def test_a_detached_disk_keeps_its_files_and_its_size(disks: PoolDisks, places: Places) -> None:
    box = new_id("sb")
    (await disks.attach(box, 40) / "u" / "kept").write_text("kept")
    await disks.detach(box)
    await vanished(places, box)
    assert disks.used(box) > 0
    again = await disks.attach(box, 99)
    assert (again / "u" / "kept").read_text() == "kept"
    assert fill(again / "u" / "fill") < 40 * MIB


async def test_any_size_and_no_size_twice_made(disks: PoolDisks) -> None:
    for mib in (16, 17, 1000, 4096, 100_000):
        disk = await disks.attach(new_id("sb"), mib)
        status = os.statvfs(disk)
        assert 0.85 * mib < status.f_blocks * status.f_frsize / MIB <= mib


async def test_a_removed_disk_gives_its_space_back_even_when_it_is_in_use_and_unwritten(disks: PoolDisks, places: Places) -> None:
    box = new_id("sb")
    disk = await disks.attach(box, 512)
    before = os.statvfs(places.pool).f_bfree
    (disk / "u" / "big").write_bytes(os.urandom(100 * MIB))
    with (disk / "u" / "held").open("wb") as held:
        await disks.remove(box)
        with pytest.raises(OSError):
            held.write(b"x" * MIB)
            held.flush()
            os.fsync(held.fileno())
    await vanished(places, box)
    assert before - os.statvfs(places.pool).f_bfree < 20 * MIB // 4096
    await disks.remove(box)
    with pytest.raises(NotFound):
        disks.used(box)


async def test_a_hundred_disks_come_and_go_without_a_trace(disks: PoolDisks, places: Places) -> None:
    async def life(number: int) -> None:
        box = new_id("sb")
        disk = await disks.attach(box, 64 if number % 2 else 32)
        (disk / "u" / "file").write_text(box)
        await disks.detach(box)
        assert (await disks.attach(box, 64) / "u" / "file").read_text() == box
        await disks.remove(box)

    await asyncio.gather(*(life(number) for number in range(100)))
    await vanished(places, "sb-")
    files = [path for directory in (places.disks, places.run / "disks") for path in directory.iterdir() if not path.name.startswith("stock-")]
    assert files == []


async def test_a_disk_attached_again_while_its_last_mount_lives_on_is_the_same_file_system(disks: PoolDisks) -> None:
    box = new_id("sb")
    disk = await disks.attach(box, 64)
    with (disk / "u" / "log").open("ab", buffering=0) as held:
        await disks.detach(box)
        disk = await disks.attach(box, 64)
        held.write(b"written through the old mount")
        assert (disk / "u" / "log").read_bytes() == b"written through the old mount"


async def test_whoever_has_a_copy_of_all_mounts_keeps_no_disk(places: Places) -> None:
    """As every runsc has that is just being started, of whatever home."""
    disks = PoolDisks(places, default_mib=64, stock=2, pool_bytes=2 << 30)
    await disks.open(known=set())
    box = new_id("sb")
    (await disks.attach(box, 64) / "u" / "file").touch()
    with subprocess.Popen(["unshare", "--mount", "--propagation", "slave", "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE) as copy:
        try:
            assert copy.stdout is not None
            assert copy.stdout.readline() == b"\n"
            assert str(places.pool) in Path(f"/proc/{copy.pid}/mountinfo").read_text()
            await disks.detach(box)
            await vanished(places, box)
            await disks.shutdown()
            await vanished(places)
        finally:
            copy.kill()


async def test_a_full_pool_refuses_new_disks_and_says_why(disks: PoolDisks, places: Places) -> None:
    old = await disks.attach(new_id("sb"), 64)
    hog = places.pool / "hog"
    with hog.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1850 * MIB)
    with pytest.raises(Unavailable, match="no room") as refusal:
        await disks.attach(new_id("sb"), 32)
    assert refusal.value.hint
    (old / "u" / "file").write_text("disks there are go on")
    hog.unlink()
    await room_again(places)
    await disks.attach(new_id("sb"), 32)


async def room_again(places: Places) -> None:
    """XFS frees a deleted file's blocks in the background."""
    async with asyncio.timeout(10):
        while os.statvfs(places.pool).f_bavail * 4096 < 1000 * MIB:
            await asyncio.sleep(0.001)


async def test_deleted_files_are_given_back_by_trimming(disks: PoolDisks, places: Places) -> None:
    box = new_id("sb")
    disk = await disks.attach(box, 512)
    (disk / "u" / "big").write_bytes(os.urandom(200 * MIB))
    os.sync()
    image = places.disks / f"{box}.img"
    assert image.stat().st_blocks * 512 > 190 * MIB
    (disk / "u" / "big").unlink()
    os.sync()
    ext4.trim(disk)
    assert image.stat().st_blocks * 512 < 20 * MIB
    assert disks.used(box) < MIB


async def test_a_disk_that_a_power_loss_left_half_written_is_repaired(disks: PoolDisks, places: Places) -> None:
    running, lost = new_id("sb"), new_id("sb")
    disk = await disks.attach(running, 64)
    (disk / "u" / "written").write_text("written out")
    os.sync()
    (disk / "u" / "late").write_text("not written out")
    # The image as the medium has it while the disk is in use: what a machine finds that lost its power.
    shutil.copyfile(places.disks / f"{running}.img", places.disks / f"{lost}.img")
    found = await disks.attach(lost, 64)
    assert (found / "u" / "written").read_text() == "written out"
    assert fill(found / "u" / "fill") > 50 * MIB


KILLED = """
import asyncio, sys
from pathlib import Path
from corral.node.disks import PoolDisks
from corral.places import Places

async def main():
    disks = PoolDisks(Places(Path(sys.argv[1])), default_mib=64, stock=2, pool_bytes=2 << 30)
    await disks.open(known=set())
    for box in sys.argv[2:]:
        disk = await disks.attach(box, 64)
        (disk / "u" / "file").write_text(box)
    await disks.detach(sys.argv[3])
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_after_a_killed_server_disks_are_found_again_and_strangers_are_removed(places: Places) -> None:
    living, stopped, stranger = new_id("sb"), new_id("sb"), new_id("sb")
    server = subprocess.Popen([sys.executable, "-c", KILLED, str(places.home), living, stopped, stranger], stdout=subprocess.PIPE)
    with server:
        assert server.stdout is not None
        assert b"ready\n" in server.stdout
        held = (places.run / "disks" / living / "m" / "u" / "file").open("r+")
        server.send_signal(signal.SIGKILL)
    with held:
        disks = PoolDisks(places, default_mib=64, stock=2, pool_bytes=2 << 30)
        await disks.open(known={living, stopped})
        await vanished(places, stranger)
        assert not (places.disks / f"{stranger}.img").exists()
        held.write("the mount went on")
        held.flush()
        disk = await disks.attach(living, 64)
        assert (disk / "u" / "file").read_text().startswith("the mount went on")
        assert (await disks.attach(stopped, 64) / "u" / "file").read_text() == stopped
    await disks.shutdown()
    await vanished(places)
    disks = PoolDisks(places, default_mib=64, stock=2)
    await disks.open(known={living})
    assert (await disks.attach(living, 64) / "u" / "file").read_text().startswith("the mount went on")
    assert not (places.disks / f"{stopped}.img").exists()
    await disks.shutdown()


async def test_stock_of_an_earlier_server_with_another_size_is_not_handed_out(places: Places) -> None:
    for mib in (64, 48):
        disks = PoolDisks(places, default_mib=mib, stock=3, pool_bytes=2 << 30)
        await disks.open(known=set())
        for _ in range(4):
            status = os.statvfs(await disks.attach(new_id("sb"), mib))
            assert 0.85 * mib < status.f_blocks * status.f_frsize / MIB <= mib
        await disks.close()
    disks = PoolDisks(places, default_mib=48, stock=3)
    await disks.open(known=set())
    await disks.shutdown()


async def test_a_home_whose_file_system_shares_blocks_needs_no_pool_file(places: Places) -> None:
    image = places.home / "disk.xfs"
    with image.open("wb") as file:
        file.truncate(1 << 30)
    subprocess.run(["mkfs.xfs", "-q", "-s", f"size={loop.BLOCK}", str(image)], check=True)
    inside = Places(places.home / "mounted")
    inside.home.mkdir()
    with loop.attached(image) as device:
        syscalls.mount(device.path, inside.home, "xfs")
    await _works_as(PoolKind.HOME, inside)
    assert not inside.pool_image.exists()
    await vanished(places, "pool/disks")
    syscalls.umount(inside.home)
    await vanished(places)


async def test_without_xfs_tools_disks_are_copies(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = places.home / "tools"
    tools.mkdir()
    for tool in ("mkfs.ext4", "e2fsck"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    monkeypatch.setenv("PATH", str(tools))
    await _works_as(PoolKind.COPIES, places)


async def _works_as(kind: PoolKind, places: Places) -> None:
    disks = PoolDisks(places, default_mib=64, stock=1)
    await disks.open(known=set())
    assert disks.pool.kind is kind
    first, second = await disks.attach(new_id("sb"), 64), await disks.attach(new_id("sb"), 64)
    (first / "u" / "file").write_text("first")
    assert list((second / "u").iterdir()) == []
    assert fill(second / "u" / "fill") <= 64 * MIB
    await disks.shutdown()


async def test_a_pool_that_cannot_fit_is_refused_with_a_mend(places: Places) -> None:
    disks = PoolDisks(places, pool_bytes=1 << 50)
    with pytest.raises(SetupError, match="free") as refusal:
        await disks.open()
    assert "CORRAL_HOME" in (refusal.value.hint or "")
    assert traces(places) == []


async def test_a_cancelled_attach_can_be_undone(disks: PoolDisks, places: Places) -> None:
    for mib in (64, 32, 64, 32, 64, 32):
        box = new_id("sb")
        attaching = asyncio.create_task(disks.attach(box, mib))
        await asyncio.sleep(0)
        attaching.cancel()
        await asyncio.gather(attaching, return_exceptions=True)
        await disks.remove(box)
        await vanished(places, box)
        assert not (places.disks / f"{box}.img").exists()
