"""The images `python` and `python-science`: `base`, and over it a virtual environment with today's pip and uv; with what is counted and plotted with, if asked for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from corral.images import base, venv
from corral.images.host_mirrors import MARK
from corral.images.recipe import Defaults, OnLine
from corral.images.venv import VENV

BENEATH = "base"
"""The image whose files they lie on."""
_VERSION = 1
"""Raise it with every change of this module that should reach images already built."""


class Python:
    """A `Recipe`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._packages = Path(__file__).with_name("packages") / f"{name}.txt"

    def key(self, *, host_mirrors: bool) -> str:
        below, mark, mirrors = base.key(host_mirrors=host_mirrors).partition(MARK)
        parts = [_VERSION, below, hashlib.sha256(self._packages.read_bytes()).hexdigest()]
        return f"{self._name}-" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16] + mark + mirrors

    def build(self, root: Path, *, cache: Path, on_line: OnLine, host_mirrors: bool) -> Defaults:  # noqa: ARG002 - one signature for all recipes
        """See `Recipe.build`. pip keeps what it downloads where it always does."""
        on_line(f"image {self._name}: downloading and unpacking Python packages")
        venv.own(venv.fill(root, self._packages, name=self._name))
        return Defaults(env={"VIRTUAL_ENV": str(VENV), "PATH": f"{VENV}/bin:"}, user="user", workdir="/home/user", command=("/bin/bash", "-l"))
