"""The images `debian` and `ubuntu`, and `debian-trixie` and so on: a release's smallest system with Python and pip, for building on. Root is its user."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from pathlib import Path

from corral.images import base_files, certificates
from corral.images.base import install
from corral.images.host_mirrors import HostMirrors, of_key
from corral.images.recipe import Defaults, OnLine
from corral.images.release import Release, release

_PACKAGES = ("ca-certificates", "python-is-python3", "python3", "python3-pip", "python3-venv", "tzdata")
_NAME = re.compile(r"(debian|ubuntu)(?:-([a-z]+))?")


class Debian:
    """A `Recipe`."""

    def __init__(self, name: str, distribution: str, codename: str | None) -> None:
        self._name = name
        self._distribution = distribution
        self._codename = codename

    @classmethod
    def named(cls, name: str) -> Debian | None:
        """The recipe of an image's name, if it is one of these."""
        match = _NAME.fullmatch(name)
        return None if match is None else cls(name, match[1], match[2])

    def key(self, *, host_mirrors: bool) -> str:
        of = self._release()
        parts = {
            "version": 1,
            "release": [of.distribution, of.codename, platform.machine()],
            "packages": _PACKAGES,
            "files": base_files.VERSION,
            "certificates": sorted(certificates.host_extra()),
        }
        return "debian-" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16] + of_key(of, host_mirrors=host_mirrors)

    def build(self, root: Path, *, cache: Path, on_line: OnLine, host_mirrors: bool) -> Defaults:
        """See `Recipe.build`."""
        of = self._release()
        install(root, of, cache, on_line, name=self._name, packages=_PACKAGES)
        extra = base_files.finish(root, of, mirrors=HostMirrors.of_host(of) if host_mirrors else None, user=False)
        return Defaults(
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **extra},
            user="root",
            workdir="/root",
            command=("/bin/bash",),
        )

    def _release(self) -> Release:
        return release(self._distribution, self._codename)
