"""The documents of an image (image-spec: image-index.md, manifest.md, config.md, and Docker's schema 2, which differs in names only), read strictly."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from corral.errors import InvalidArgument, Unsupported

LARGEST = 8 << 20
"""Bytes of one document. Registries refuse manifests above 4 MiB."""
MOST_LAYERS = 512

INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
OCI_INDEX, OCI_MANIFEST = INDEXES[0], MANIFESTS[0]
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_FOREIGN = ("application/vnd.docker.image.rootfs.foreign.diff", "application/vnd.oci.image.layer.nondistributable")

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


class _Document(BaseModel):
    """Fields that are not named here have no meaning for files."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


D = TypeVar("D", bound=_Document)


class Platform(_Document):
    architecture: str = ""
    os: str = ""
    variant: str = ""

    @classmethod
    def parse(cls, text: str | None) -> Platform:
        """`linux/amd64[/v2]`; None: this machine's. Raises `Unsupported` for what can't run here."""
        here = _MACHINES.get(platform.machine(), platform.machine())
        if text is None:
            return cls(os="linux", architecture=here)
        os, _, rest = text.partition("/")
        architecture, _, variant = rest.partition("/")
        if (os, architecture) != ("linux", here):
            raise Unsupported(f"an image for {text} can't run on this node", hint=f"the node is linux/{here}")
        return cls(os=os, architecture=architecture, variant=variant)

    def suits(self, wanted: Platform) -> bool:
        return (self.os, self.architecture) == (wanted.os, wanted.architecture) and wanted.variant in ("", self.variant)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(_Document):
    """Points at a blob. `size` in bytes."""

    media: str = Field(alias="mediaType")
    digest: Digest
    size: int = Field(ge=0)
    platform: Platform | None = None
    annotations: dict[str, str] = Field(default_factory=dict[str, str])


class Index(_Document):
    manifests: list[Descriptor] = Field(max_length=4096)

    def choose(self, wanted: Platform) -> Descriptor:
        """The manifest for a platform, of several the first. Raises `Unsupported`."""
        # Attestations carry the platform unknown/unknown.
        found = [one for one in self.manifests if one.media in (*MANIFESTS, *INDEXES)]
        for one in found:
            if one.platform is not None and one.platform.suits(wanted):
                return one
        if len({one.digest for one in found}) == 1 and found[0].platform is None:
            return found[0]
        there = ", ".join(sorted({str(one.platform) for one in found if one.platform is not None and one.platform.os not in ("", "unknown")}))
        raise Unsupported(f"there is no image for {wanted} here", hint=f"there are: {there or 'none with a platform'}"[:500])


class Manifest(_Document):
    config: Descriptor
    layers: list[Descriptor] = Field(max_length=MOST_LAYERS)


class RootFs(_Document):
    type: str
    diff_ids: list[Digest] = Field(max_length=MOST_LAYERS)


class Config(_Document):
    """What an image says of itself. `config`: how processes start in it."""

    architecture: str
    os: str
    variant: str = ""
    config: dict[str, Any] | None = None
    rootfs: RootFs


@dataclass(frozen=True)
class Layer:
    """A layer: `diff_id` is the digest of its tar file, `digest` and `size` (bytes) are those of the blob that holds it, as far as they are known."""

    diff_id: str
    digest: str | None
    size: int | None
    place: str = ""
    """Where an archive without digests has it."""


@dataclass(frozen=True)
class Found:
    """An image that can be imported. `digest` is its configuration's: what other programs call the image's id."""

    digest: str
    config: Config
    layers: tuple[Layer, ...]


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def parse(kind: type[D], data: bytes, what: str) -> D:
    """Raises `InvalidArgument` for what is no such document."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidArgument(f"the {what} of the image can't be used: {where + ': ' if where else ''}{first['msg']}") from None


def together(manifest: Manifest, raw: bytes, wanted: Platform) -> Found:
    """Manifest and configuration. Raises `InvalidArgument`, and `Unsupported` for another machine's image."""
    config = configuration(raw, wanted)
    if len(manifest.layers) != len(config.rootfs.diff_ids):
        raise InvalidArgument(f"the image has {len(manifest.layers)} layers, and its configuration speaks of {len(config.rootfs.diff_ids)}")
    for layer in manifest.layers:
        if layer.media.startswith(_FOREIGN):
            raise Unsupported("the image has a layer that is to be fetched from elsewhere", hint="push a copy of it that has all of its layers")
        if "encrypted" in layer.media:
            raise Unsupported("the image has an encrypted layer")
    pairs = zip(manifest.layers, config.rootfs.diff_ids, strict=True)
    return Found(manifest.config.digest, config, tuple(Layer(diff_id, layer.digest, layer.size) for layer, diff_id in pairs))


def configuration(raw: bytes, wanted: Platform) -> Config:
    config = parse(Config, raw, "configuration")
    if config.rootfs.type != "layers":
        raise InvalidArgument(f"the image's root file system is {config.rootfs.type[:40]!r}, not layers")
    if (config.os, config.architecture) != (wanted.os, wanted.architecture):
        raise Unsupported(f"the image is for {config.os[:40]}/{config.architecture[:40]}", hint=f"this node is {wanted.os}/{wanted.architecture}")
    return config


def chain(diff_ids: Sequence[str]) -> str:
    """One digest for layers in their order (image-spec, config.md, ChainID)."""
    found = diff_ids[0]
    for diff_id in diff_ids[1:]:
        found = digest_of(f"{found} {diff_id}".encode())
    return found
