"""Files as E2B describes them."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Mapping

from corral.errors import FileNotFound, InvalidArgument, NotADirectory
from corral.facades.e2b.envd.connect import Message
from corral.facades.e2b.inside import Inside, at
from corral.schema.file import Entry, Kind

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
    """A symbolic link is said to be of the type it leads to, and where that is."""
    kind, target = entry.type, None
    if kind is Kind.SYMLINK:
        kind, target = await _behind(inside, entry)
    shown: Message = {
        "name": entry.name,
        "path": entry.path,
        "type": _TYPES.get(kind, "FILE_TYPE_UNSPECIFIED"),
        "size": str(entry.size),
        "mode": entry.mode & 0o777,
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


async def _behind(inside: Inside, entry: Entry) -> tuple[Kind, str]:
    """What a link leads to; one that leads nowhere is itself."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(entry.path), entry.target or ""))
    try:
        return (await inside.files.stat(at(entry.path), follow=True)).type, target
    except (FileNotFound, NotADirectory, InvalidArgument):
        return Kind.SYMLINK, target
