"""What the name of an image means, as `docker pull` has it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from corral.errors import InvalidArgument

DOCKER_HUB = "docker.io"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"(?P<path>{_PART}(?:/{_PART})*)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}))?(?:@(?P<digest>sha256:[0-9a-f]{{64}}))?")
_REGISTRY = re.compile(_HOST)


@dataclass(frozen=True)
class Reference:
    """An image of a registry. A digest counts more than a tag."""

    registry: str
    repository: str
    tag: str
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """`[REGISTRY/]NAME[:TAG][@sha256:…]`; without a registry it is Docker Hub's. Raises `InvalidArgument`."""
        head, slash, rest = text.partition("/")
        # As Docker has it: the first part is a host if it looks like one.
        known = bool(slash) and (head == "localhost" or any(sign in head for sign in ".:[") or head != head.lower())
        registry, name = (head, rest) if known else (DOCKER_HUB, text)
        found = _NAME.fullmatch(name)
        if found is None or not _REGISTRY.fullmatch(registry) or len(found["path"]) > 255:
            raise InvalidArgument(f"{text[:200]!r} names no image of a registry", hint="as in python:3.12-slim or ghcr.io/owner/name@sha256:…")
        if registry in ("index.docker.io", "registry-1.docker.io"):
            registry = DOCKER_HUB
        path = found["path"]
        if registry == DOCKER_HUB and "/" not in path:
            path = f"library/{path}"
        return cls(registry, path, found["tag"] or "latest", found["digest"])

    @property
    def wanted(self) -> str:
        """What a manifest is asked for by."""
        return self.digest or self.tag

    @property
    def host(self) -> str:
        """Where its registry is."""
        return "registry-1.docker.io" if self.registry == DOCKER_HUB else self.registry

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}" + (f"@{self.digest}" if self.digest else f":{self.tag}")
