"""The image `scratch`: an empty directory, for programs that bring everything along."""

from __future__ import annotations

from pathlib import Path

from corral.images.recipe import Defaults, OnLine


def key(*, host_mirrors: bool) -> str:  # noqa: ARG001 - one signature for all recipes
    """It is always the same."""
    return "scratch-1"


def build(root: Path, *, cache: Path, on_line: OnLine, host_mirrors: bool) -> Defaults:  # noqa: ARG001
    """See `Recipe.build`."""
    return Defaults(env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
