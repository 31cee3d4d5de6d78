"""Files of a volume from the host's side, for who has no sandbox with it. Sandboxes wrote what is in there: no link is followed, no device opened, nothing leaves the volume.

All of it blocks, and raises what the system said (`OSError`).
"""

from __future__ import annotations

import heapq
import os
import posixpath
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType

from corral.node import syscalls, trees

_WRITABLE = 0o777
"""Of directories nobody gave a mode: every user of a sandbox may write a volume's root, too."""
_LISTED = 100_000
"""Entries of one answer, and names that are in memory for it."""


@dataclass(frozen=True)
class VolumeEntry:
    """What `path`, relative to the volume's root, is. `target`: of a symbolic link."""

    path: str
    stat: os.stat_result
    target: str | None


@dataclass(frozen=True)
class Owner:
    """Who and what a file is to be of; None: as it is, or of root with an ordinary mode."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None

    def give(self, file: int) -> None:
        """`file` may be a descriptor that only says which one is meant (O_PATH)."""
        if self.uid is not None or self.gid is not None:
            os.chown(f"/proc/self/fd/{file}", -1 if self.uid is None else self.uid, -1 if self.gid is None else self.gid)
        if self.mode is not None:
            Path(f"/proc/self/fd/{file}").chmod(stat.S_IMODE(self.mode))


class VolumeFiles:
    """Below `root`, where the volume is mounted. Paths are relative to it, whether or not they begin with `/`."""

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> VolumeFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._root)

    def info(self, path: str) -> VolumeEntry:
        with _Opened(self._root, path, os.O_PATH | os.O_NOFOLLOW) as file:
            return _entry(_plain(path), file)

    def list(self, path: str, depth: int) -> list[VolumeEntry]:
        """What is in a directory, and in those in it down to `depth`, by path. Raises `OverflowError` when it is too much for one answer."""
        found, more = self.page(path, depth, limit=_LISTED)
        if more:
            raise OverflowError(f"there are more than {_LISTED} files in {path[:200]!r}")
        return found

    def page(self, path: str, depth: int, *, limit: int, after: str | None = None) -> tuple[list[VolumeEntry], bool]:
        """The first `limit` entries of such a list, or those that come after a path of it, and whether there are more."""
        place, behind = _parts(path), _parts(after or "")
        behind = behind[len(place) :] if behind[: len(place)] == place else []
        # Each level on the way keeps names of its own.
        many = max(1, min(limit + 1, _LISTED // depth))
        found = list(islice(self._walk(_plain(path), depth, behind, many), limit + 1))
        return found[:limit], len(found) > limit

    def _walk(self, path: str, depth: int, behind: Sequence[bytes], many: int) -> Iterator[VolumeEntry]:
        done = behind[0] if behind else b""
        for name in self._names(path, done, many):
            inner = posixpath.join(path, os.fsdecode(name))
            with suppress(FileNotFoundError, NotADirectoryError):  # it has just been removed or replaced
                entry = self.info(inner)
                if name != done:
                    yield entry
                if depth > 1 and stat.S_ISDIR(entry.stat.st_mode):
                    yield from self._walk(inner, depth - 1, behind[1:] if name == done else (), many)

    def _names(self, path: str, done: bytes, many: int) -> Iterator[bytes]:
        """From the one that is `done` on, at most so `many` at a time in memory: a sandbox can make millions."""
        if done:
            yield done
        while True:
            with _Opened(self._root, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) as directory, os.scandir(directory) as entries:
                names = heapq.nsmallest(many, (name for entry in entries if (name := os.fsencode(entry.name)) > done))
            yield from names
            if len(names) < many:
                return
            done = names[-1]

    def make_directory(self, path: str, owner: Owner, *, parents: bool) -> VolumeEntry:
        """With `parents` one that is there already is fine, as the root always is."""
        plain = _plain(path)
        if parents and not plain:
            return self.info(plain)
        if parents:
            self._make_parents(plain)
        with self._parent(plain) as (above, name):
            try:
                os.mkdir(name, dir_fd=above)
            except FileExistsError:
                if not parents or not stat.S_ISDIR(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
                    raise
                return self.info(plain)
        self._give(plain, Owner(owner.uid, owner.gid, _WRITABLE if owner.mode is None else owner.mode))
        return self.info(plain)

    def change(self, path: str, owner: Owner) -> VolumeEntry:
        self._give(_plain(path), owner)
        return self.info(path)

    def remove(self, path: str, *, recursive: bool = True) -> None:
        """With all that is in it; without `recursive` a directory must be empty."""
        plain = _plain(path)
        with self._parent(plain) as (above, name):
            if not stat.S_ISDIR(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=above)
            elif recursive:
                trees.remove(name, dir_fd=above)
            else:
                os.rmdir(name, dir_fd=above)

    def symlink(self, target: str, path: str) -> None:
        """Make `path` a link to `target`, which is kept as it is given. Raises `FileExistsError`."""
        with self._parent(_plain(path)) as (above, name):
            os.symlink(target, name, dir_fd=above)

    def open(self, path: str) -> int:
        """A descriptor for reading a regular file. Raises `IsADirectoryError`, and `FileNotFoundError` for what is neither."""
        with _Opened(self._root, path, os.O_PATH | os.O_NOFOLLOW) as file:
            mode = os.fstat(file).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(path)
            if not stat.S_ISREG(mode):
                raise FileNotFoundError(path)
            return os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)

    def new(self, path: str, *, parents: bool, overwrite: bool) -> NewFile:
        """A file that is to be at `path`. Raises `FileExistsError`, `IsADirectoryError`."""
        plain = _plain(path)
        if parents:
            self._make_parents(plain)
        with self._parent(plain) as (above, name):
            return NewFile(os.dup(above), name, _beside(above, name, overwrite=overwrite), overwrite=overwrite)

    def _make_parents(self, plain: str) -> None:
        parts = plain.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            with suppress(FileExistsError):
                self.make_directory("/".join(parts[:count]), Owner(), parents=False)

    def _parent(self, plain: str) -> _Parent:
        return _Parent(self._root, plain)

    def _give(self, plain: str, owner: Owner) -> None:
        with _Opened(self._root, plain, os.O_PATH | os.O_NOFOLLOW) as file:
            if stat.S_ISLNK(os.fstat(file).st_mode):
                raise PermissionError(f"{plain!r} is a symbolic link")
            owner.give(file)


class NewFile:
    """Written without any name, and so nobody's if it is given up or the server ends. It takes its place whole. `keep` or `discard` ends it."""

    def __init__(self, above: int, name: str, owner: Owner, *, overwrite: bool) -> None:
        self._above = above
        self._name = name
        self._owner = owner
        self._overwrite = overwrite
        try:
            self._file = os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o644, dir_fd=above)
        except BaseException:
            os.close(above)
            raise

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]

    def keep(self, owner: Owner) -> None:
        """Have it there, with owner and mode of the one that was, or those given; after a power cut too. When that fails it is discarded."""
        try:
            self._owner.give(self._file)
            owner.give(self._file)
            # Its bytes are safe before its name leads to them.
            os.fsync(self._file)
            self._take_place()
            os.fsync(self._above)
        finally:
            self._close()

    def discard(self) -> None:
        self._close()

    def _take_place(self) -> None:
        try:
            self._link(self._name)
        except FileExistsError:
            if not self._overwrite:
                raise
            # Only a name takes the place of a name.
            aside = f".new-{secrets.token_hex(8)}"
            self._link(aside)
            try:
                os.rename(aside, self._name, src_dir_fd=self._above, dst_dir_fd=self._above)
            except BaseException:
                os.unlink(aside, dir_fd=self._above)
                raise

    def _link(self, name: str) -> None:
        os.link(f"/proc/self/fd/{self._file}", name, dst_dir_fd=self._above)

    def _close(self) -> None:
        os.close(self._file)
        os.close(self._above)


class _Opened:
    """A descriptor of what is at a path, for as long as it is needed."""

    def __init__(self, root: int, path: str, flags: int) -> None:
        self._file = syscalls.open_beneath(root, os.fsencode(_plain(path) or "."), flags)

    def __enter__(self) -> int:
        return self._file

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._file)


class _Parent:
    """The directory that a path is in, and its name there. Raises `IsADirectoryError` for the volume's root."""

    def __init__(self, root: int, plain: str) -> None:
        above, _, self._name = plain.rpartition("/")
        if not plain:
            raise IsADirectoryError("the root of a volume stays as it is")
        self._opened = _Opened(root, above, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    def __enter__(self) -> tuple[int, str]:
        return self._opened.__enter__(), self._name

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.__exit__(kind, error, trace)


def _plain(path: str) -> str:
    """Without `.`, `..` and doubled slashes; above the root is the root."""
    return posixpath.normpath("/" + path).strip("/")


def _parts(path: str) -> list[bytes]:
    """Their order is that of lists. Not that of text, in which bytes that are no UTF-8 stand for others."""
    return [part for part in os.fsencode(_plain(path)).split(b"/") if part]


def _entry(plain: str, file: int) -> VolumeEntry:
    found = os.fstat(file)
    target = os.readlink("", dir_fd=file) if stat.S_ISLNK(found.st_mode) else None
    return VolumeEntry(plain, found, target)


def _beside(above: int, name: str, *, overwrite: bool) -> Owner:
    """Of the file that is to be replaced."""
    try:
        there = os.stat(name, dir_fd=above, follow_symlinks=False)
    except FileNotFoundError:
        return Owner()
    if stat.S_ISDIR(there.st_mode):
        raise IsADirectoryError(name)
    if not overwrite:
        raise FileExistsError(name)
    return Owner(there.st_uid, there.st_gid, there.st_mode) if stat.S_ISREG(there.st_mode) else Owner()
