"""Files as E2B describes them."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Mapping

from corral.errors import FileNotFound, InvalidArgument, NotADirectory
from corral.facades.e2b.envd.connect import Message
from corral.facades.e2b.inside import Inside, at
from corral.schema.file import Entry, Kind

_LINKS = 40
"""Links behind one another, as many as a kernel follows."""
_LETTERS = {Kind.DIRECTORY: "d", Kind.SYMLINK: "L", Kind.FIFO: "p", Kind.SOCKET: "S", Kind.DEVICE: "D", Kind.FILE: "-"}
_TYPES = {Kind.DIRECTORY: "FILE_TYPE_DIRECTORY", Kind.FILE: "FILE_TYPE_FILE"}


def permissions(kind: Kind, mode: int) -> str:
    """As in `-rw-r--r--`, with the letters of Go's os.FileMode."""
    special = "".join(letter for bit, letter in ((0o4000, "u"), (0o2000, "g"), (0o1000, "t")) if mode & bit)
    kinds = _LETTERS[kind] if kind is not Kind.FILE else ""
    head = (kinds + special) or "-"
    return head + "".join(letter if mode >> (8 - place) & 1 else "-" for place, letter in enumerate("rwxrwxrwx"))


async def described(inside: Inside, *entries: Entry) -> list[Message]:
    """These files, with what clients attached to them."""
    attached = await inside.services.node.metadata(inside.record.id, [entry.path for entry in entries])
    return await asyncio.gather(*(_described(inside, entry, metadata) for entry, metadata in zip(entries, attached, strict=True)))


async def _described(inside: Inside, entry: Entry, metadata: Mapping[str, str]) -> Message:
    """A symbolic link has the type and mode of what it leads to, and says where that is; one that leads nowhere has none, and itself as its target."""
    kind, mode, target = entry.type, entry.mode, None
    if kind is Kind.SYMLINK:
        kind, mode, target = await _behind(inside, entry)
    shown: Message = {
        "name": entry.name,
        "path": entry.path,
        "type": _TYPES.get(kind, "FILE_TYPE_UNSPECIFIED"),
        "size": str(entry.size),
        "mode": mode & 0o777,
        "permissions": permissions(entry.type, entry.mode),
        "owner": entry.user or str(entry.uid),
        "group": entry.group or str(entry.gid),
        "modifiedTime": entry.modified_at.isoformat().replace("+00:00", "Z"),
    }
    if target is not None:
        shown["symlinkTarget"] = target
    if metadata:
        shown["metadata"] = metadata
    return shown


async def _behind(inside: Inside, entry: Entry) -> tuple[Kind, int, str]:
    """What a link leads to at last."""
    at_last = entry
    try:
        for _ in range(_LINKS):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(at_last.path), at_last.target or ""))
            at_last = await inside.files.stat(at(path))
            if at_last.type is not Kind.SYMLINK:
                return at_last.type, at_last.mode, path
    except (FileNotFound, NotADirectory, InvalidArgument):
        pass
    return Kind.SYMLINK, 0, entry.path
