"""An image as an OCI archive that Docker, skopeo, podman and umoci take: an image layout, and the manifest.json by which `docker load` of any age finds its layers.

A layer here is a directory as overlayfs writes it; in the archive it is a tar file with whiteouts. The same directories make the same archive, to the byte.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from corral.errors import DiskFull, Unsupported
from corral.images.oci.documents import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Platform, digest_of
from corral.images.oci.job import Export
from corral.images.oci.layer import BLOCK
from corral.images.oci.tally import LOOK_EVERY, SPARE
from corral.images.oci.unpack import OPAQUE, OTHERS, WHITEOUT

_TAR_BLOCK = 512
_LONGEST_PATH = 4095
"""Bytes that the kernel takes."""
_NO_ROOM, _MAKE_ROOM = "the node has no room for the archive", "`corral image prune` makes room"
_LEVEL = 3
"""Of gzip: three quarters of what it can do, in a third of the time."""
_REF = "org.opencontainers.image.ref.name"


@dataclass(frozen=True)
class Exported:
    """`digest`: the manifest's. `size`: bytes of the archive."""

    digest: str
    size: int


def export(job: Export) -> Exported:
    """Write the archive. Raises `DiskFull` when there is no room for it, `Unsupported` for what can't be in one."""
    try:
        return _export(job)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(_NO_ROOM, hint=_MAKE_ROOM) from error
        raise


def _export(job: Export) -> Exported:
    with Path(job.path).open("xb") as file:
        archive = _Archive(file)
        archive.document("oci-layout", {"imageLayoutVersion": "1.0.0"})
        layers = [archive.layer(Path(layer)) for layer in job.layers]
        here = Platform.parse(None)
        config = archive.blob(
            _json(
                {
                    "created": job.created,
                    "architecture": here.architecture,
                    "os": here.os,
                    "config": job.config,
                    "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
                    "history": [{"created": job.created, "created_by": "corral"} for _ in layers],
                }
            )
        )
        manifest = archive.blob(
            _json(
                {
                    "schemaVersion": 2,
                    "mediaType": OCI_MANIFEST,
                    "config": {"mediaType": OCI_CONFIG, **config},
                    "layers": [{"mediaType": OCI_LAYER, "digest": layer.digest, "size": layer.size} for layer in layers],
                }
            )
        )
        annotations = (
            {} if job.name is None else {"annotations": {_REF: job.name.rpartition(":")[2], "io.containerd.image.name": f"docker.io/library/{job.name}"}}
        )
        chosen = {"mediaType": OCI_MANIFEST, **manifest, **annotations, "platform": {"architecture": here.architecture, "os": here.os}}
        archive.document("index.json", {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [chosen]})
        saved = {"Config": _place(config["digest"]), "RepoTags": [job.name] if job.name else None, "Layers": [_place(layer.digest) for layer in layers]}
        archive.document("manifest.json", [saved])
        return Exported(manifest["digest"], archive.end())


@dataclass(frozen=True)
class _Layer:
    diff_id: str
    digest: str
    size: int


class _Archive:
    """A tar file whose members get their names when they are written: a blob's is its digest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._has: set[str] = set()
        self._unlooked = LOOK_EVERY

    def document(self, name: str, content: Any) -> None:
        self._whole(name, _json(content))

    def blob(self, content: bytes) -> dict[str, Any]:
        """A small one; its digest and size."""
        digest = digest_of(content)
        self._whole(_place(digest), content)
        return {"digest": digest, "size": len(content)}

    def layer(self, directory: Path) -> _Layer:
        start = self._file.tell()
        self._file.write(bytes(_TAR_BLOCK))
        plain, packed, compressor = hashlib.sha256(), hashlib.sha256(), zlib.compressobj(_LEVEL, wbits=31)

        def put(piece: bytes) -> None:
            packed.update(piece)
            self._unlooked += len(piece)
            if self._unlooked >= LOOK_EVERY:
                self._unlooked = 0
                room = os.fstatvfs(self._file.fileno())
                if room.f_bavail * room.f_frsize < LOOK_EVERY + SPARE:
                    raise DiskFull(_NO_ROOM, hint=_MAKE_ROOM)
            self._file.write(piece)

        for piece in _Walk(directory).tar():
            plain.update(piece)
            put(compressor.compress(piece))
        put(compressor.flush())
        size = self._file.tell() - start - _TAR_BLOCK
        digest = f"sha256:{packed.hexdigest()}"
        if digest in self._has:
            self._file.seek(start)
            self._file.truncate()
        else:
            self._file.write(bytes(-size % _TAR_BLOCK))
            end = self._file.tell()
            self._file.seek(start)
            self._file.write(_member(_place(digest), size))
            self._file.seek(end)
            self._has.add(digest)
        return _Layer(f"sha256:{plain.hexdigest()}", digest, size)

    def end(self) -> int:
        self._file.write(bytes(2 * _TAR_BLOCK))
        return self._file.tell()

    def _whole(self, name: str, content: bytes) -> None:
        if name not in self._has:
            self._file.write(_member(name, len(content)) + content + bytes(-len(content) % _TAR_BLOCK))
            self._has.add(name)


class _Walk:
    """One layer's directory."""

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)
        self._links: dict[tuple[int, int], str] = {}

    def tar(self) -> Iterator[bytes]:
        """Its tar file, in the order of names."""
        yield from self._entry(self._root, "./")
        # Not by recursion: how deep it goes is a stranger's choice.
        levels = [(self._root, "", _names(self._root))]
        while levels:
            directory, path, names = levels[-1]
            if (name := next(names, None)) is None:
                levels.pop()
                continue
            at, inner = directory + b"/" + name, path + os.fsdecode(name)
            if len(at) > _LONGEST_PATH:
                raise Unsupported(f"{inner[:200]!a} is too deep for an archive")
            if name.startswith(os.fsencode(WHITEOUT)):
                raise Unsupported(
                    f"{inner[:200]!a} can't be exported", hint=f"in an archive of layers a name with {WHITEOUT} says that a file is taken away: rename it"
                )
            yield from self._entry(at, inner)
            if stat.S_ISDIR(os.lstat(at).st_mode):
                if _opaque(at):
                    yield _empty(f"{inner}/{OPAQUE}")
                levels.append((at, f"{inner}/", _names(at)))
        yield bytes(2 * _TAR_BLOCK)

    def _entry(self, at: bytes, path: str) -> Iterator[bytes]:
        found = os.lstat(at)
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            directory, _, name = path.rpartition("/")
            yield _empty(f"{directory}/{WHITEOUT}{name}" if directory else WHITEOUT + name)
            return
        info = tarfile.TarInfo(path)
        info.mode, info.uid, info.gid, info.mtime = stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns // 1_000_000_000
        info.pax_headers = _attributes(at)
        if (fraction := found.st_mtime_ns % 1_000_000_000) and info.mtime >= 0:
            info.pax_headers["mtime"] = f"{info.mtime}.{fraction:09}"
        match stat.S_IFMT(found.st_mode):
            case stat.S_IFDIR:
                info.type = tarfile.DIRTYPE
                yield _header(info)
            case stat.S_IFLNK:
                info.type, info.linkname = tarfile.SYMTYPE, os.fsdecode(os.readlink(at))  # noqa: PTH115
                yield _header(info)
            case stat.S_IFIFO:
                info.type = tarfile.FIFOTYPE
                yield _header(info)
            case stat.S_IFREG:
                known = self._links.setdefault((found.st_dev, found.st_ino), path) if found.st_nlink > 1 else path
                if known != path:
                    info.type, info.linkname = tarfile.LNKTYPE, known
                    yield _header(info)
                else:
                    info.size = found.st_size
                    yield _header(info)
                    yield from _content(at, found.st_size)
            case _:
                # A socket that nobody listens on any more, or a device: neither belongs into an image.
                return


def _names(directory: bytes) -> Iterator[bytes]:
    return iter(sorted(os.listdir(directory)))  # noqa: PTH208 - bytes


def _content(path: bytes, size: int) -> Iterator[bytes]:
    left = size
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0) as file:  # noqa: PTH123 - of a descriptor
        while left:
            piece = file.read(min(BLOCK, left))
            if not piece:
                raise Unsupported(f"{path!a} became shorter while it was read", hint="only what nobody writes any more can be exported")
            yield piece
            left -= len(piece)
    yield bytes(-size % _TAR_BLOCK)


def _attributes(path: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in os.listxattr(path, follow_symlinks=False):
        if name not in OTHERS and not name.startswith("trusted.overlay."):
            found[f"SCHILY.xattr.{name}"] = os.getxattr(path, name, follow_symlinks=False).decode("utf-8", "surrogateescape")
    return found


def _opaque(directory: bytes) -> bool:
    with suppress(OSError):
        return os.getxattr(directory, "trusted.overlay.opaque", follow_symlinks=False) == b"y"
    return False


def _empty(path: str) -> bytes:
    info = tarfile.TarInfo(path)
    info.mode = 0o600
    return _header(info)


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _member(name: str, size: int) -> bytes:
    """One block, whatever the size is."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def _place(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _json(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
