"""What differs between two file systems that sandboxes wrote, found out without trusting anything in them.

Both are looked at through read-only mounts that nobody changes, opened beneath their roots, through no link; only regular files are read. What both have from the
same layers is the same: so only paths that occur in a layer of one that the other has not are looked at, and the cost is that of the changes.
"""

from __future__ import annotations

import base64
import errno
import os
import stat
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Literal

from corral import spawn
from corral.node.tree import Side, Tree
from corral.schema.snapshot import Change, Diff

LONGEST = 60.0
"""Seconds after which a comparison ends as incomplete."""
TEXT = 256 << 10
"""Bytes of the largest file whose lines are compared …"""
TEXTS = 4 << 20
"""… and of all differences of lines together."""
PENDING = 64 << 20
"""Bytes that the names still to be looked at may take; a directory for which there is no room any more is not looked into."""
_NAME = 200
"""Bytes that a pending name takes besides its own: two objects, a tuple, its places in a set and in a list."""
_READ = 1 << 20
_DIFF_TIMEOUT = 10.0
Kind = Literal["file", "directory", "symlink", "fifo", "socket", "device"]
_KINDS: dict[int, Kind] = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}


def compare(before: Side, after: Side, *, settled: float, text: bool, limit: int, given_up: threading.Event) -> Diff:
    """Blocks, until `given_up` is set. `settled`: a file that both have from copies of one disk is the same if it was last changed before this moment (seconds since 1970) and at the same time."""
    shared = 0
    while shared < min(len(before.layers), len(after.layers)) and before.layers[shared] == after.layers[shared]:
        shared += 1
    with ExitStack() as stack:
        one = Tree(before, before.layers[shared:], stack)
        two = Tree(after, after.layers[shared:], stack)
        return _Comparison(one, two, settled=settled, text=text, limit=limit, given_up=given_up).run()


class _Enough(Exception):
    """There are as many changes as were asked for, or the time is over."""


class _Comparison:
    def __init__(self, before: Tree, after: Tree, *, settled: float, text: bool, limit: int, given_up: threading.Event) -> None:
        self._before = before
        self._after = after
        self._settled = settled
        self._text = text
        self._text_left = TEXTS
        self._limit = limit
        self._given_up = given_up
        self._deadline = time.monotonic() + LONGEST
        self._changes: list[Change] = []
        self._incomplete = False
        # What is to be looked at; the flag: both have it, so that it may be the same unseen.
        self._todo: list[tuple[bytes, bool]] = [(b"", False)]
        self._pending = _NAME

    def run(self) -> Diff:
        try:
            while self._todo:
                if len(self._changes) >= self._limit:
                    raise _Enough
                self._check_time()
                path, both = self._todo.pop()
                self._pending -= len(path) + _NAME
                try:
                    self._look(path, both=both)
                except OSError as error:
                    if error.errno != errno.ENAMETOOLONG:
                        raise
                    self._incomplete = True
        except _Enough:
            self._incomplete = True
        return Diff(changes=self._changes, incomplete=self._incomplete)

    def _check_time(self) -> None:
        if self._given_up.is_set() or time.monotonic() > self._deadline:
            raise _Enough

    def _look(self, path: bytes, *, both: bool) -> None:
        """Note what differs at a path, and what is below it as yet to be looked at, the last first."""
        if both and self._before.own(path) is None and self._after.own(path) is None:
            return
        before, after = self._before.stat(path), self._after.stat(path)
        if self._differ(path, before, after):
            self._note(path, before, after)
        one = self._names(self._before, path, before)
        two = None if one is None else self._names(self._after, path, after, beside=len(one))
        if one is None or two is None:
            self._incomplete = True
            return
        # What only one has may be hidden in the other by a directory that was made anew, of which no layer says anything at that path.
        for name in sorted(one | two, reverse=True):
            below = path + b"/" + name if path else name
            self._todo.append((below, name in one and name in two))
            self._pending += len(below) + _NAME

    def _names(self, tree: Tree, path: bytes, found: os.stat_result | None, *, beside: int = 0) -> set[bytes] | None:
        """What is in a directory; nothing in anything else. None when that is more than there is room for; `beside` names of the other side have taken some."""
        names = set[bytes]()
        if found is None or not stat.S_ISDIR(found.st_mode):
            return names
        room = PENDING - self._pending - beside * _NAME
        for number, name in enumerate(tree.names(path)):
            if number % 1024 == 0:
                self._check_time()
            room -= len(path) + len(name) + _NAME
            if room < 0:
                return None
            names.add(name)
        return names

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
        """Of two files of one size. What is a hole in both is not read."""
        with ExitStack() as stack:
            files: list[int] = []
            for tree in (self._before, self._after):
                files.append(tree.open(path))
                stack.callback(os.close, files[-1])
            position = 0
            while (start := min((data for file in files if (data := _data_from(file, position)) is not None), default=None)) is not None:
                self._check_time()
                one, two = (os.pread(file, _READ, start) for file in files)
                if one != two:
                    return False
                if not one:
                    break
                position = start + len(one)
        return True

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
                contents.append(_content(tree, path))
        if contents[0] == contents[1] or any(not _is_text(content) for content in contents):
            return None
        if self._text_left <= 0:
            self._incomplete = True
            return None
        name = path.decode(errors="replace").replace("\n", "?")
        labels = ("/dev/null" if before is None else f"a/{name}", "/dev/null" if after is None else f"b/{name}")
        with _in_memory(contents[0]) as before_it, _in_memory(contents[1]) as after_it:
            argv = ["diff", "-u", "--label", labels[0], "--label", labels[1], before_it, after_it]
            done = spawn.run(argv, timeout=_DIFF_TIMEOUT, env={"LC_ALL": "C.UTF-8", "PATH": os.defpath})
        if done.code > 1:
            done.check()
        self._text_left -= len(done.stdout)
        return done.stdout.decode(errors="replace")


@contextmanager
def _in_memory(content: bytes) -> Generator[str]:
    """The name of a file that is on no disk: what sandboxes wrote is not to lie about in the host's /tmp, where it may be read later."""
    with os.fdopen(os.memfd_create("text"), "wb", buffering=0) as file:
        file.write(content)
        yield f"/proc/{os.getpid()}/fd/{file.fileno()}"


def _data_from(file: int, position: int) -> int | None:
    """Where a file has data from a position on; None: nowhere."""
    try:
        return os.lseek(file, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None


def _content(tree: Tree, path: bytes) -> bytes:
    with os.fdopen(tree.open(path), "rb") as file:
        return file.read(TEXT)


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
