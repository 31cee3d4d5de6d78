"""Taking the changes of one line of a disk's history over into another: what is to be done, and the archive that does it.

`theirs` and `ours` are what has changed since the base that both come from. What both changed, and not to the same, is a conflict; nothing of ours is lost by what is not one.
"""

from __future__ import annotations

import base64
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from corral.node.tree import Side, Tree
from corral.schema.snapshot import Change, MergeConflict

OWN = frozenset({b"/etc/hostname", b"/etc/hosts", b"/etc/resolv.conf"})
"""What each sandbox gets of its own."""
_BLOCK = 512
_PIECE = 1 << 18
_KINDS = ("file", "directory", "symlink")


@dataclass(frozen=True)
class Plan:
    """`removed`, the deepest first, then `written`, the outermost first; of both, which change it is. The rest is in conflict."""

    removed: Sequence[Change]
    written: Sequence[Change]
    conflicts: Sequence[MergeConflict]


def plan(theirs: Sequence[Change], ours: Sequence[Change], apart: Sequence[Change], *, take: bool) -> Plan:
    """`apart` is what differs between the two as they are. `take`: of what both changed, theirs is taken."""
    mine = {path_of(change): change for change in ours}
    different = {path_of(change) for change in apart}
    removed: list[Change] = []
    written: list[Change] = []
    conflicts: list[MergeConflict] = []
    for change in sorted(theirs, key=path_of):
        path = path_of(change)
        if path in OWN or path not in different:
            continue
        why = _why_not(change, path, mine)
        if why is not None:
            conflicts.append(MergeConflict(path=change.path, theirs=change.change, ours=mine[path].change if path in mine else None, why=why))
            if not take or change.type not in _KINDS:
                continue
        if change.change == "removed":
            removed.append(change)
        else:
            written.append(change)
    return Plan(removed[::-1], written, conflicts)


def path_of(change: Change) -> bytes:
    """Of the file system, not of the text."""
    return change.path.encode() if change.path_b64 is None else base64.b64decode(change.path_b64)


def archive(side: Side, paths: Sequence[bytes]) -> Iterator[bytes]:
    """A tar stream of these paths of a mounted side. Hard links become files of their own."""
    with ExitStack() as stack:
        tree = Tree(side, (), stack)
        for path in paths:
            relative = path.lstrip(b"/")
            if (found := tree.stat(relative)) is not None:
                yield from _member(tree, relative, found)
    yield bytes(2 * _BLOCK)


def _why_not(change: Change, path: bytes, mine: Mapping[bytes, Change]) -> str | None:
    if change.type not in _KINDS:
        return f"a {change.type} can't be taken over"
    if path in mine:
        return "both have changed it"
    for parent in _above(path):
        if parent in mine and (mine[parent].change == "removed" or mine[parent].type != "directory"):
            return f"{mine[parent].path} is no directory here any more"
    if change.type != "directory" or change.change == "removed":
        below = path + b"/"
        if any(other.startswith(below) and found.change != "removed" for other, found in mine.items()):
            return "there are changes below it here"
    return None


def _above(path: bytes) -> Iterator[bytes]:
    while (path := path.rpartition(b"/")[0]) != b"":
        yield path


def _member(tree: Tree, path: bytes, found: os.stat_result) -> Iterator[bytes]:
    info = tarfile.TarInfo(os.fsdecode(path))
    info.mode, info.uid, info.gid, info.mtime = stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime
    match stat.S_IFMT(found.st_mode):
        case stat.S_IFREG:
            info.size = found.st_size
            yield _header(info)
            yield from _content(tree, path, found.st_size)
            return
        case stat.S_IFDIR:
            info.type = tarfile.DIRTYPE
        case stat.S_IFLNK:
            info.type, info.linkname = tarfile.SYMTYPE, os.fsdecode(tree.link(path))
        case _:
            return
    yield _header(info)


def _content(tree: Tree, path: bytes, size: int) -> Iterator[bytes]:
    with os.fdopen(tree.open(path), "rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            yield piece
    if rest := size % _BLOCK:
        yield bytes(_BLOCK - rest)


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
