"""Images in a file: an OCI image layout as a tar file (image-spec, image-layout.md), or what `docker save` writes. Read where they are, by their index."""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import Field, RootModel

from corral.errors import InvalidArgument
from corral.images.oci import documents, headers
from corral.images.oci.documents import INDEXES, LARGEST, MANIFESTS, Found, Index, Layer, Manifest, Platform, digest_of, parse
from corral.images.oci.layer import Readable

_MOST = 100_000
_LINKS = 8
_NESTED = 3
_REF = "org.opencontainers.image.ref.name"


class _Saved(documents._Document):  # pyright: ignore[reportPrivateUsage] - one strictness for all documents
    config: str = Field(alias="Config")
    layers: list[str] = Field(alias="Layers", max_length=documents.MOST_LAYERS)
    tags: list[str] | None = Field(default=None, alias="RepoTags")


class _SavedList(RootModel[list[_Saved]]):
    pass


@dataclass(frozen=True)
class _Part:
    offset: int
    size: int


class Archive:
    """A file that is open while it is used. `wanted` says which of several platforms; several images are refused."""

    def __init__(self, path: Path, wanted: Platform) -> None:
        self._file = path.open("rb")
        self._wanted = wanted
        self._parts: dict[str, _Part] = {}
        self._links: dict[str, str] = {}
        try:
            self._index()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()

    def find(self) -> Found:
        """The image. Raises `InvalidArgument` for what holds none, or several."""
        if "index.json" in self._parts and "oci-layout" in self._parts:
            return self._layout()
        if "manifest.json" in self._parts:
            return self._saved()
        raise InvalidArgument(
            "the archive holds no image", hint="it is neither an OCI image layout nor what `docker save` writes; of a root file system say so"
        )

    @contextmanager
    def layer(self, layer: Layer) -> Generator[Readable]:
        """The blob of a layer."""
        part = self._part(layer.place)
        yield _Window(self._file, part.offset, part.size)

    def check(self, layer: Layer) -> None:
        """See that it has a layer that we have had."""
        self._part(layer.place)

    def another(self) -> bool:
        return False

    def _layout(self) -> Found:
        index = parse(Index, self._read("index.json"), "index")
        images = [one for one in index.manifests if one.media in (*MANIFESTS, *INDEXES)]
        platforms = [one.platform for one in images if one.platform is not None and one.platform.suits(self._wanted)]
        # One image may be here for several platforms, and by several names.
        several = {one.digest: one for one in images if one.platform in (None, *platforms[:1])}
        if len(several) > 1:
            names = ", ".join(one.annotations.get(_REF, one.digest) for one in several.values())
            raise InvalidArgument(f"the archive holds {len(several)} images", hint=f"write one with a single image: {names}"[:500])
        chosen = index.choose(self._wanted)
        for _ in range(_NESTED):
            raw = self._blob(chosen.digest)
            if chosen.media not in INDEXES:
                break
            chosen = parse(Index, raw, "index").choose(self._wanted)
        else:
            raise InvalidArgument("the image's index leads to nothing but indexes")
        manifest = parse(Manifest, raw, "manifest")
        found = documents.together(manifest, self._blob(manifest.config.digest), self._wanted)
        layers = [Layer(layer.diff_id, layer.digest, layer.size, _place(layer.digest or "")) for layer in found.layers]
        return Found(found.digest, found.config, tuple(layers))

    def _saved(self) -> Found:
        [*images] = _images(self._read("manifest.json"))
        if len(images) != 1:
            raise InvalidArgument(f"the archive holds {len(images)} images", hint="save one at a time")
        raw = self._read(images[0].config)
        config = documents.configuration(raw, self._wanted)
        if len(images[0].layers) != len(config.rootfs.diff_ids):
            raise InvalidArgument(f"the image has {len(images[0].layers)} layers, and its configuration speaks of {len(config.rootfs.diff_ids)}")
        pairs = zip(images[0].layers, config.rootfs.diff_ids, strict=True)
        return Found(digest_of(raw), config, tuple(Layer(diff_id, None, None, _clean(place)) for place, diff_id in pairs))

    def _blob(self, digest: str) -> bytes:
        raw = self._read(_place(digest))
        if digest_of(raw) != digest:
            raise InvalidArgument(f"the archive has {digest_of(raw)} for {digest}", hint="it was damaged, or forged")
        return raw

    def _read(self, name: str) -> bytes:
        part = self._part(name)
        if part.size > LARGEST:
            raise InvalidArgument(f"{name[:200]!r} of the archive is longer than {LARGEST >> 20} MiB")
        self._file.seek(part.offset)
        return self._file.read(part.size)

    def _part(self, name: str) -> _Part:
        at = _clean(name)
        for _ in range(_LINKS):
            if (found := self._parts.get(at)) is not None:
                return found
            if at not in self._links:
                break
            at = self._links[at]
        raise InvalidArgument(f"the archive lacks {name[:200]!r}", hint="is it whole?")

    def _index(self) -> None:
        size = self._file.seek(0, io.SEEK_END)
        self._file.seek(0)
        try:
            with tarfile.open(fileobj=self._file, mode="r:", tarinfo=headers.Header) as tar:
                for count, info in enumerate(headers.of(tar)):
                    if count >= _MOST:
                        raise InvalidArgument(f"the archive has more than {_MOST:,} entries")
                    self._take(info, size)
        except (tarfile.TarError, EOFError, UnicodeError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            if isinstance(error, InvalidArgument):
                raise
            raise InvalidArgument(
                f"the archive is no tar file: {error or type(error).__name__}", hint="give the file as it was written, not compressed"
            ) from None

    def _take(self, info: tarfile.TarInfo, size: int) -> None:
        name = _clean(info.name)
        if info.isdir():
            return
        if name in self._parts or name in self._links:
            raise InvalidArgument(f"the archive has {name[:200]!r} twice")
        if info.isreg() and not info.issparse():
            if info.offset_data + info.size > size:
                raise InvalidArgument(f"the archive ends in the middle of {name[:200]!r}")
            self._parts[name] = _Part(info.offset_data, info.size)
        elif info.issym() or info.islnk():
            # Docker wrote links for layers that two images had in common.
            directory = posixpath.dirname(name) if info.issym() else ""
            self._links[name] = _clean(posixpath.normpath(posixpath.join(directory, info.linkname)))
        else:
            raise InvalidArgument(f"the archive has {name[:200]!r}, which is neither a file nor a directory")


def _images(raw: bytes) -> list[_Saved]:
    """Those in the manifest.json of `docker save`."""
    try:
        return _SavedList.model_validate_json(raw).root
    except ValueError:
        raise InvalidArgument("the manifest.json of the archive can't be used") from None


class _Window:
    """A part of a file, read from its beginning."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._at, self._left = file, offset, size

    def read(self, size: int, /) -> bytes:
        self._file.seek(self._at)
        piece = self._file.read(min(size, self._left))
        self._at += len(piece)
        self._left -= len(piece)
        return piece


def _place(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _clean(name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise InvalidArgument(f"the archive has a file named {name[:200]!r}, which leaves it")
    return "/".join(parts)
