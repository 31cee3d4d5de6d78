"""What differs between two file systems that sandboxes wrote, found out without trusting anything in them.

Both are looked at through read-only mounts that nobody changes, opened beneath their roots, through no link; only regular files are read. What both have from the
same layers is the same: so only paths that occur in a layer of one that the other has not are looked at, and the cost is that of the changes.
"""

from __future__ import annotations

import base64
import errno
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from corral import spawn
from corral.errors import Unsupported
from corral.node import syscalls
from corral.schema.snapshot import Change, Diff

LONGEST = 60.0
"""Seconds after which a comparison ends as incomplete."""
TEXT = 256 << 10
"""Bytes of the largest file whose lines are compared …"""
TEXTS = 4 << 20
"""… and of all differences of lines together."""
_READ = 1 << 20
_DIFF_TIMEOUT = 10.0
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)
Kind = Literal["file", "directory", "symlink", "fifo", "socket", "device"]
_KINDS: dict[int, Kind] = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}


@dataclass(frozen=True)
class Side:
    """One of the two: where it is mounted, and its layers' directories, from the lowest up."""

    root: Path
    layers: Sequence[Path]


def compare(before: Side, after: Side, *, settled: float, text: bool, limit: int) -> Diff:
    """Blocks. `settled`: a file that both have from copies of one disk is the same if it was last changed before this moment (seconds since 1970) and at the same time."""
    shared = 0
    while shared < min(len(before.layers), len(after.layers)) and before.layers[shared] == after.layers[shared]:
        shared += 1
    with ExitStack() as stack:
        one = _Tree(before.root, before.layers[shared:], stack)
        two = _Tree(after.root, after.layers[shared:], stack)
        return _Comparison(one, two, settled=settled, text=text, limit=limit).run()


class _Tree:
    """A mounted side, by descriptors."""

    def __init__(self, root: Path, own: Sequence[Path], stack: ExitStack) -> None:
        self.root = _open_root(root, stack)
        self._own = [_open_root(layer, stack) for layer in reversed(own)]

    def stat(self, path: bytes) -> os.stat_result | None:
        return _stat(self.root, path)

    def own(self, path: bytes) -> os.stat_result | None:
        """What the layers that only this side has say of a path, deletions included; None: nothing."""
        return next((found for layer in self._own if (found := _stat(layer, path)) is not None), None)

    def names(self, path: bytes) -> set[bytes]:
        descriptor = syscalls.open_beneath(self.root, path or b".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            return {os.fsencode(name) for name in os.listdir(descriptor)}  # noqa: PTH208  a descriptor has no path
        finally:
            os.close(descriptor)

    def link(self, path: bytes) -> bytes:
        descriptor = syscalls.open_beneath(self.root, path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.readlink(b"", dir_fd=descriptor)
        finally:
            os.close(descriptor)

    def pieces(self, path: bytes) -> Iterator[bytes]:
        """The content of a regular file."""
        descriptor = syscalls.open_beneath(self.root, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            while piece := file.read(_READ):
                yield piece


class _Comparison:
    def __init__(self, before: _Tree, after: _Tree, *, settled: float, text: bool, limit: int) -> None:
        self._before = before
        self._after = after
        self._settled = settled
        self._text = text
        self._text_left = TEXTS
        self._limit = limit
        self._deadline = time.monotonic() + LONGEST
        self._changes: list[Change] = []
        self._incomplete = False

    def run(self) -> Diff:
        # What is to be looked at; the flag: both have it, so that it may be the same unseen.
        todo: list[tuple[bytes, bool]] = [(b"", False)]
        while todo:
            if len(self._changes) >= self._limit or time.monotonic() > self._deadline:
                self._incomplete = True
                break
            path, both = todo.pop()
            try:
                todo += self._look(path, both=both)
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                self._incomplete = True
        return Diff(changes=self._changes, incomplete=self._incomplete)

    def _look(self, path: bytes, *, both: bool) -> list[tuple[bytes, bool]]:
        """Note what differs at a path; returns what is below it, the last first."""
        if both and self._before.own(path) is None and self._after.own(path) is None:
            return []
        before, after = self._before.stat(path), self._after.stat(path)
        if self._differ(path, before, after):
            self._note(path, before, after)
        one = self._before.names(path) if before is not None and stat.S_ISDIR(before.st_mode) else set[bytes]()
        two = self._after.names(path) if after is not None and stat.S_ISDIR(after.st_mode) else set[bytes]()
        # What only one has may be hidden in the other by a directory that was made anew, of which no layer says anything at that path.
        return [(path + b"/" + name if path else name, name in one and name in two) for name in sorted(one | two, reverse=True)]

    def _differ(self, path: bytes, before: os.stat_result | None, after: os.stat_result | None) -> bool:
        if before is None or after is None:
            return before is not after
        if (before.st_mode, before.st_uid, before.st_gid) != (after.st_mode, after.st_uid, after.st_gid):
            return True
        match stat.S_IFMT(after.st_mode):
            case stat.S_IFREG:
                return before.st_size != after.st_size or not (self._untouched(path) or self._same_content(path))
            case stat.S_IFLNK:
                return self._before.link(path) != self._after.link(path)
            case stat.S_IFCHR | stat.S_IFBLK:
                return before.st_rdev != after.st_rdev
            case _:
                return False

    def _untouched(self, path: bytes) -> bool:
        """The same inode of copies of one disk, unchanged since long before they parted: its time of change is the kernel's, not the guest's."""
        before, after = self._before.own(path), self._after.own(path)
        return (
            before is not None
            and after is not None
            and (before.st_ino, before.st_ctime_ns, before.st_size) == (after.st_ino, after.st_ctime_ns, after.st_size)
            and after.st_ctime < self._settled
        )

    def _same_content(self, path: bytes) -> bool:
        return all(one == two for one, two in zip(self._before.pieces(path), self._after.pieces(path), strict=True))

    def _note(self, path: bytes, before: os.stat_result | None, after: os.stat_result | None) -> None:
        what = after or before
        assert what is not None
        name = b"/" + path
        shown = name.decode(errors="replace")
        self._changes.append(
            Change(
                path=shown,
                path_b64=None if shown.encode() == name else base64.b64encode(name).decode(),
                change="added" if before is None else "removed" if after is None else "changed",
                type=_KINDS.get(stat.S_IFMT(what.st_mode), "device"),
                size_before=_size(before),
                size_after=_size(after),
                mode_before=_mode(before),
                mode_after=_mode(after),
                text=self._lines(path, before, after) if self._text else None,
            )
        )

    def _lines(self, path: bytes, before: os.stat_result | None, after: os.stat_result | None) -> str | None:
        """A unified diff, when both are text, or the one there is. By diff(1), in a time that no content can stretch."""
        contents: list[bytes] = []
        for tree, found in ((self._before, before), (self._after, after)):
            if found is None:
                contents.append(b"")
            elif not stat.S_ISREG(found.st_mode) or found.st_size > TEXT:
                return None
            else:
                contents.append(b"".join(tree.pieces(path)))
        if contents[0] == contents[1] or any(not _is_text(content) for content in contents):
            return None
        if self._text_left <= 0:
            self._incomplete = True
            return None
        name = path.decode(errors="replace").replace("\n", "?")
        labels = ("/dev/null" if before is None else f"a/{name}", "/dev/null" if after is None else f"b/{name}")
        with tempfile.TemporaryDirectory(prefix="corral-diff-") as directory:
            for side, content in zip("ab", contents, strict=True):
                Path(directory, side).write_bytes(content)
            argv = ["diff", "-u", "--label", labels[0], "--label", labels[1], "a", "b"]
            done = spawn.run(argv, timeout=_DIFF_TIMEOUT, cwd=directory, env={"LC_ALL": "C.UTF-8", "PATH": os.defpath})
        if done.code > 1:
            done.check()
        self._text_left -= len(done.stdout)
        return done.stdout.decode(errors="replace")


def _open_root(path: Path, stack: ExitStack) -> int:
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor


def _stat(root: int, path: bytes) -> os.stat_result | None:
    try:
        descriptor = syscalls.open_beneath(root, path or b".", os.O_PATH | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        if error.errno == errno.ENOSYS:
            raise Unsupported("this kernel can't open paths safely (openat2)", hint="Linux 5.6 or newer is needed to compare disks") from error
        raise
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _size(found: os.stat_result | None) -> int | None:
    return found.st_size if found is not None and stat.S_ISREG(found.st_mode) else None


def _mode(found: os.stat_result | None) -> int | None:
    return None if found is None else stat.S_IMODE(found.st_mode)


def _is_text(content: bytes) -> bool:
    if b"\0" in content:
        return False
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
