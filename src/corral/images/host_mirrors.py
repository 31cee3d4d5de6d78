"""Where the host's pip and npm fetch from, to be handed into an image when the operator asks for it.

Only addresses are taken, never credentials files: no tokens of .npmrc, no netrc. An address that itself holds a password is left out.
"""

from __future__ import annotations

import configparser
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from corral.images.release import Release, Source, host_sources

MARK = "+"
"""What stands in the key of a recipe between what it is otherwise and the mirrors that it hands in."""
_PIP_KEYS = ("index-url", "extra-index-url", "trusted-host")


@dataclass(frozen=True)
class HostMirrors:
    """Settings for pip (of its section `global`) and npm's registry."""

    apt: tuple[Source, ...]
    pip: tuple[tuple[str, str], ...]
    npm_registry: str | None

    @classmethod
    def of_host(cls, release: Release) -> HostMirrors:
        return cls(host_sources(release), tuple(sorted(_pip().items())), _npm())

    def key(self) -> str:
        """A word that differs with every mirror."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    def write(self, root: Path) -> dict[str, str]:
        """Hand them into an image; returns environment variables for its processes, since npm has a global file for each prefix."""
        if self.pip:
            with (root / "etc/pip.conf").open("a") as file:
                file.writelines(f"{key} = {value}\n" for key, value in self.pip)
        return {"NPM_CONFIG_REGISTRY": self.npm_registry} if self.npm_registry else {}


def of_key(release: Release, *, host_mirrors: bool) -> str:
    """The end of a recipe's key: nothing, or the mirrors after their mark. Asks apt: 0.1 to 1 s, where there may be mirrors."""
    return MARK + HostMirrors.of_host(release).key() if host_mirrors else ""


def _pip() -> dict[str, str]:
    """In pip's own order: system file, user's file, environment."""
    found: dict[str, str] = {}
    for path in (Path("/etc/pip.conf"), Path.home() / ".pip/pip.conf", Path.home() / ".config/pip/pip.conf"):
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(path)
        if parser.has_section("global"):
            found |= {key: " ".join(value.split()) for key, value in parser.items("global") if key in _PIP_KEYS}
    for key in _PIP_KEYS:
        if value := os.environ.get("PIP_" + key.upper().replace("-", "_")):
            found[key] = value
    return {key: value for key, value in found.items() if not any(map(_has_password, value.split()))}


def _npm() -> str | None:
    registry = os.environ.get("NPM_CONFIG_REGISTRY") or os.environ.get("npm_config_registry")  # noqa: SIM112 - npm reads both
    for path in (Path.home() / ".npmrc", Path("/etc/npmrc"), Path("/usr/local/etc/npmrc"), Path("/usr/etc/npmrc")):
        if registry is None and path.is_file():
            for line in path.read_text().splitlines():
                key, _, value = line.partition("=")
                if key.strip() == "registry":
                    registry = value.strip()
    return registry if registry and not _has_password(registry) else None


def _has_password(address: str) -> bool:
    return urlsplit(address).password is not None
