"""Directory trees as tar streams (POSIX pax), without network: packing a local tree, unpacking a hostile one."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from corral.errors import Conflict

PIECE = 256 * 1024
_BLOCK = 512


def pack(root: Path) -> Iterator[bytes]:
    """The tar stream of everything below `root`, names relative to it. Sockets and devices are left out; links stay links."""
    yield from _entries(root, "")
    yield bytes(2 * _BLOCK)


def _entries(directory: Path, prefix: str) -> Iterator[bytes]:
    with os.scandir(directory) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        info, status = tarfile.TarInfo(prefix + entry.name), entry.stat(follow_symlinks=False)
        info.mode, info.mtime = stat.S_IMODE(status.st_mode), status.st_mtime
        if entry.is_symlink():
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(entry)  # noqa: PTH115 - a DirEntry
            yield _header(info)
        elif entry.is_dir():
            info.type = tarfile.DIRTYPE
            yield _header(info)
            yield from _entries(Path(entry.path), prefix + entry.name + "/")
        elif entry.is_file():
            with Path(entry).open("rb") as file:
                info.size = os.fstat(file.fileno()).st_size
                yield _header(info)
                yield from _content(file, info.size)


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _content(file: io.BufferedReader, size: int) -> Iterator[bytes]:
    """Exactly `size` bytes, as the header promised, even when the file changes meanwhile; then the padding."""
    left = size
    while left:
        piece = file.read(min(PIECE, left)) or bytes(min(PIECE, left))
        left -= len(piece)
        yield piece
    yield bytes(-size % _BLOCK)


class Pulled(io.RawIOBase):
    """A file object for tarfile over pieces that are pulled one by one; an empty piece is the end."""

    def __init__(self, pull: Callable[[], bytes]) -> None:
        self._pull = pull
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride] - the stub's buffer is wider
        if not self._rest:
            self._rest = memoryview(self._pull())
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def unpack(pull: Callable[[], bytes], root: Path) -> int:
    """Write a tar stream below `root`, which is made if missing; returns the number of entries.

    The stream comes from a guest: names that leave `root` are refused, nothing is written through a link, devices are
    left out, and neither owners nor set-uid bits are taken over.
    """
    root.mkdir(parents=True, exist_ok=True)
    root = root.resolve()
    count = 0
    later: list[tuple[Path, tarfile.TarInfo]] = []
    with tarfile.open(fileobj=io.BufferedReader(Pulled(pull), PIECE), mode="r|") as archive:
        for info in archive:
            target = _below(root, info.name)
            if target == root:
                continue
            _one(archive, info, root, target)
            if info.isdir():
                later.append((target, info))
            count += 1
    for target, info in reversed(later):  # a directory's mode and time last, since filling it needs one and changes the other
        target.chmod(info.mode & 0o777)
        os.utime(target, (info.mtime, info.mtime))
    return count


def _below(root: Path, name: str) -> Path:
    """The place of an entry; refuses what is, or hides behind a link, outside."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or name.startswith("/"):
        raise Conflict(f"the sandbox sent a file named {name!r}, which leaves the directory", hint="nothing outside was written")
    target = root.joinpath(*parts)
    if parts and target.parent.resolve() != target.parent:
        raise Conflict(f"the sandbox sent {name!r}, which goes through a symbolic link", hint="nothing outside was written")
    return target


def _one(archive: tarfile.TarFile, info: tarfile.TarInfo, root: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if info.isdir():
        if target.is_symlink() or not target.is_dir():
            target.unlink(missing_ok=True)
            target.mkdir(mode=0o700)
        return
    if target.is_dir() and not target.is_symlink():
        raise Conflict(f"{target} is a directory and the sandbox has a file of that name")
    target.unlink(missing_ok=True)
    if info.issym():
        target.symlink_to(info.linkname)
    elif info.islnk():
        target.hardlink_to(_below(root, info.linkname))
    elif info.isfile():
        source = archive.extractfile(info)
        assert source is not None
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with source, os.fdopen(descriptor, "wb") as file:
            while piece := source.read(PIECE):
                file.write(piece)
            os.fchmod(file.fileno(), info.mode & 0o777)
        os.utime(target, (info.mtime, info.mtime))
