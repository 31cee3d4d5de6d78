# Generated from sdk/_async/volume_files.py by scripts/async_to_sync.py: edit that, not this.
"""The files of one volume, without a sandbox."""

from __future__ import annotations

import os
import stat
from base64 import b64decode
from contextlib import closing
from pathlib import Path as LocalPath

from corral.errors import Conflict
from corral.schema.file import Entry, Kind
from corral.schema.volume import VolumeMkdir, VolumeSymlink
from corral.sdk import faults
from corral.sdk._sync.plain_files import Content, PlainFiles, Progress, counted, pieces_of
from corral.sdk.place import Path, at, plain


class VolumeFiles(PlainFiles):
    """Paths begin at the volume's root. No symbolic link is followed. A volume knows no names of users: owners are numbers, root unless said.

    Sandboxes that have the volume see each change at once.
    """

    def write(self, path: Path, data: Content, *, mode: int | None = None, user: str | None = None, parents: bool = True, exclusive: bool = False) -> Entry:
        """Write a file whole, so that nobody sees half of it (or only if it is not there: `exclusive`).

        `data` is text, bytes, an open file, or an iterator of bytes. `mode` and `user` (`1000` or `1000:1000`) default to what they were, else 0o644 and root.
        """
        query = {**at(path), "mode": mode, "user": user, "parents": parents, "exclusive": exclusive or None}
        return self._write(query, data, safe=not exclusive)

    def mkdir(self, path: Path, *, mode: int | None = None, parents: bool = True, user: str | None = None) -> None:
        """Make a directory, which everybody may write unless `mode` says otherwise. With `parents` those above too, and it is no error if it is there."""
        self._do("mkdir", faults.build(VolumeMkdir, **at(path), mode=mode, parents=parents, user=user), safe=parents)

    def symlink(self, target: Path, path: Path) -> None:
        """Make `path` a symbolic link to `target`."""
        self._do("symlink", faults.build(VolumeSymlink, **at(path), target=plain(target)))

    def upload(self, local: str | os.PathLike[str], remote: Path, *, user: str | None = None, on_bytes: Progress | None = None) -> None:
        """Copy a local file, or what is in a local directory, to `remote`: a request for each file. Sockets and devices are left out; links stay links."""
        source = LocalPath(local)
        if source.is_dir():
            self.mkdir(remote, user=user)
            for name in sorted(os.listdir(source)):  # noqa: PTH208 - names are joined to paths of both sides
                inner, place = source / name, os.fsencode(remote).rstrip(b"/") + b"/" + os.fsencode(name)
                if inner.is_symlink():
                    self.remove(place, missing_ok=True)
                    self.symlink(inner.readlink(), place)
                elif inner.is_dir() or inner.is_file():
                    self.upload(inner, place, user=user, on_bytes=on_bytes)
            return
        with source.open("rb") as file:
            status = os.fstat(file.fileno())
            length = status.st_size if stat.S_ISREG(status.st_mode) else None
            body = counted(pieces_of(file, length), on_bytes)
            query = {**at(remote), "mode": stat.S_IMODE(status.st_mode) & 0o777, "user": user, "parents": True}
            (self._transport.stream("PUT", self._path, query=query, body=body, length=length)).read()

    def download(self, remote: Path, local: str | os.PathLike[str], *, on_bytes: Progress | None = None) -> None:
        """Copy a file, or what is in a directory, of the volume to `local`. Nothing is written outside of it, whatever is in the volume."""
        target, entry = LocalPath(local), self.stat(remote)
        if entry.type is Kind.DIRECTORY:
            target.mkdir(parents=True, exist_ok=True)
            self._download_tree(remote, target, on_bytes)
            return
        self._download_file(remote, target / entry.name if target.is_dir() else target, entry.mode, on_bytes)

    def _download_tree(self, remote: Path, target: LocalPath, on_bytes: Progress | None) -> None:
        for entry in self.list(remote):
            path = b64decode(entry.path_b64) if entry.path_b64 is not None else entry.path.encode()
            name = os.fsdecode(path.rpartition(b"/")[2])
            if name in ("", ".", ".."):
                raise Conflict(f"the volume has a file named {name!r}, which leaves the directory", hint="nothing outside was written")
            inner = target / name
            # Whatever is there by now: nothing is written through a link.
            if inner.is_symlink():
                inner.unlink()
            match entry.type:
                case Kind.DIRECTORY:
                    inner.mkdir(exist_ok=True)
                    self._download_tree(path, inner, on_bytes)
                case Kind.SYMLINK:
                    inner.unlink(missing_ok=True)
                    inner.symlink_to(entry.target or "")
                case Kind.FILE:
                    self._download_file(path, inner, entry.mode, on_bytes)
                case _:
                    pass

    def _download_file(self, remote: Path, target: LocalPath, mode: int, on_bytes: Progress | None) -> None:
        partial = target.with_name(target.name + ".part")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                with closing(counted(self.pieces(remote), on_bytes)) as pieces:
                    for piece in pieces:
                        file.write(piece)
            partial.chmod(mode & 0o777)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
