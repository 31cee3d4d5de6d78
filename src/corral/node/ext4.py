"""The file system of a sandbox's disk: ext4 without a journal, in a sparse file.

It survives the death of its sandbox, of the server and of everything else but the kernel. After a power loss it is checked before it is used again, and what was written
last may be missing; a journal would cost every disk 64 MB and every write twice. Barriers are off for the same reason: they make each fsync wait for a medium whose
promise the missing journal can't keep.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from corral import spawn
from corral.errors import InvalidArgument, PlatformError, SetupError
from corral.node import loop, syscalls
from corral.node.syscalls import MountFlag

UPPER, WORK = "u", "w"
"""The two directories in every disk: what the sandbox wrote, and overlayfs' own."""

_OPTIONS = "nobarrier,noinit_itable,errors=remount-ro"
_DURABLE = "noinit_itable,errors=remount-ro"
# noinit_itable: the image is sparse, so its inode tables are zero; writing zeros over them would only fill the pool.


def make(image: Path, mib: int, *, volume: bool = False) -> None:
    """A new, empty file system of exactly `mib` MiB, sparse (2 MB on disk). A file for every 8 KiB: node_modules needs that many.

    `volume`: every user may write its upper directory, since they are of different sandboxes; and what is synced survives a power loss, by a journal, for a 64th of the size (4 MiB at least, 64 at most) and every change of names and sizes written twice.

    Nothing is reserved for root, since root in the sandbox is nobody special. Takes about 30 ms.
    """
    if not shutil.which("mkfs.ext4"):
        raise SetupError("mkfs.ext4 is not installed", hint="apt-get install e2fsprogs")
    aside = image.with_name(f".new-{image.name}")
    with tempfile.TemporaryDirectory(prefix="corral-ext4-") as content:
        for directory in (UPPER, WORK):
            Path(content, directory).mkdir(mode=0o755)
        if volume:
            Path(content, UPPER).chmod(0o777)
        with aside.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.truncate(mib << 20)
        features = ["-J", f"size={min(64, max(4, mib // 64))}"] if volume else ["-O", "^has_journal"]
        extended = "lazy_itable_init=1,nodiscard,root_owner=0:0"
        argv = ["mkfs.ext4", "-q", "-F", "-b", str(loop.BLOCK), "-i", "8192", "-m", "0", *features, "-E", extended, "-d", content, str(aside)]
        spawn.run(argv, timeout=120).check()
    aside.rename(image)


def mount(image: Path, target: Path, *, fresh: bool = False, read_only: bool = False, durable: bool = False) -> None:
    """Mount an image. `fresh`: it was made just now, so nothing else has it and it is clean. `durable`: a sync waits for the medium; it has a journal.

    No set-user-id program and no device that a sandbox makes counts on the host.
    """
    flags = MountFlag.NOATIME | MountFlag.SILENT | MountFlag.NODEV | MountFlag.NOSUID | (MountFlag.READ_ONLY if read_only else MountFlag.NONE)
    with loop.attached(image, fresh=fresh, read_only=read_only) as device:
        # A device that has the image already belongs to a mount that lives on: not clean by its mark, and not to be touched by e2fsck.
        if not (fresh or read_only or device.shared or is_clean(image)):
            check(image, device.path)
        syscalls.mount(device.path, target, "ext4", flags=flags, data="" if read_only else _DURABLE if durable else _OPTIONS)


def discard(target: Path) -> None:
    """Drop what the file system mounted at `target` has not written out yet. Nothing can be read or written there afterwards."""
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.shut_down_ext4(fd)
    finally:
        os.close(fd)


def warm(target: Path) -> None:
    """Make the file system read what its first change needs, so that the overlay's first mount takes 0.3 ms and not 1.5."""
    directory = target / WORK / "work"
    directory.mkdir()
    directory.rmdir()


def trim(target: Path) -> int:
    """Give the blocks of deleted files back to the pool; returns how many bytes (those given back earlier may be counted again)."""
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return syscalls.trim(fd)
    finally:
        os.close(fd)


def used(target: Path) -> int:
    """Bytes in files and directories of a mounted disk."""
    status = os.statvfs(target)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def is_clean(image: Path) -> bool:
    """Whether it was unmounted in order: `s_state` in the superblock is 1 then (kernel: Documentation/filesystems/ext4/super.rst)."""
    with image.open("rb") as file:
        file.seek(1024 + 58)
        clean, errors = 1, 2
        return int.from_bytes(file.read(2), "little") & (clean | errors) == clean


def declare_clean(image: Path) -> None:
    """Of a copy that was taken while its file system stood still and everything was written out: it is whole, and only lacks the mark of an orderly end.

    The superblock begins at 1024; `s_state` is at 58 in it, the feature bit `metadata_csum` in `s_feature_ro_compat` at 100, and at 1020 the CRC-32C of all before (kernel: Documentation/filesystems/ext4/super.rst).
    """
    with image.open("r+b", buffering=0) as file:
        block = bytearray(os.pread(file.fileno(), 1024, 1024))
        block[58] |= 1
        if int.from_bytes(block[100:104], "little") & 0x400:
            block[1020:] = _crc32c(bytes(block[:1020])).to_bytes(4, "little")
        os.pwrite(file.fileno(), block, 1024)


def _crc32c(data: bytes) -> int:
    """Castagnoli's, reflected, from all ones and not inverted at the end, as ext4 has it."""
    crc = 0xFFFF_FFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F6_3B78 if crc & 1 else 0)
    return crc


def check(image: Path, device: str | Path) -> None:
    """Repair a file system that the machine's end left half written. Raises `PlatformError` when that is beyond e2fsck."""
    done = spawn.run(["e2fsck", "-f", "-y", str(device)], timeout=600)
    uncorrected = 4
    if done.code >= uncorrected:
        raise PlatformError(f"the disk image {image} is damaged beyond repair: {done.stdout.decode(errors='replace').strip()[-1000:]}")


def resize(image: Path, mib: int) -> None:
    """Give an image that is nowhere mounted exactly `mib` MiB. Raises `InvalidArgument` when what is in it needs more."""
    has, wanted = image.stat().st_size, mib << 20
    check(image, image)
    if wanted == has:
        return
    if wanted > has:
        os.truncate(image, wanted)
    done = spawn.run(["resize2fs", str(image), f"{mib}M"], timeout=600)
    if done.code:
        why = (done.stderr or done.stdout).decode(errors="replace").strip()[-500:]
        raise InvalidArgument(f"disk: {mib} MiB are too few for what is in the snapshot", hint="ask for more", details={"field": "disk", "resize2fs": why})
    os.truncate(image, wanted)
