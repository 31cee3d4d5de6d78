"""The image `code-interpreter`: `base`, and over it a virtual environment with Jupyter kernels and what people who look at data expect."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from corral.images import base, venv
from corral.images.host_mirrors import MARK
from corral.images.recipe import Defaults, OnLine
from corral.images.venv import VENV

BENEATH = "base"
"""The image whose files it lies on."""
_PACKAGES = Path(__file__).with_name("packages") / "code-interpreter.txt"
_VERSION = 1
"""Raise it with every change of this module that should reach images already built."""

_KERNELS = {
    "bash": {"display_name": "Bash", "language": "bash", "argv": [f"{VENV}/bin/python", "-m", "bash_kernel", "-f", "{connection_file}"]},
    "deno": {
        "display_name": "Deno",
        "language": "typescript",
        "argv": [f"{VENV}/bin/deno", "jupyter", "--kernel", "--conn", "{connection_file}"],
        "env": {"DENO_NO_UPDATE_CHECK": "1"},
    },
}


def key(*, host_mirrors: bool) -> str:
    below, mark, mirrors = base.key(host_mirrors=host_mirrors).partition(MARK)
    parts = [_VERSION, below, hashlib.sha256(_PACKAGES.read_bytes()).hexdigest(), _KERNELS]
    return "code-interpreter-" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16] + mark + mirrors


def build(root: Path, *, cache: Path, on_line: OnLine, host_mirrors: bool) -> Defaults:  # noqa: ARG001 - one signature for all recipes
    """See `Recipe.build`. pip keeps what it downloads where it always does."""
    on_line("image code-interpreter: downloading and unpacking Python packages")
    made = venv.fill(root, _PACKAGES, name="code-interpreter")
    for name, spec in _KERNELS.items():
        directory = made / "share/jupyter/kernels" / name
        directory.mkdir(parents=True)
        (directory / "kernel.json").write_text(json.dumps(spec, indent=2) + "\n")
    venv.own(made)
    return Defaults(env={"VIRTUAL_ENV": str(VENV), "PATH": f"{VENV}/bin:"}, user="user", workdir="/home/user", command=("/bin/bash", "-l"))
