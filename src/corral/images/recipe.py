"""What a built-in image's module must offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

OnLine = Callable[[str], None]
"""Takes one line of progress, for a person."""


@dataclass(frozen=True)
class Defaults:
    """How processes start in an image unless told otherwise."""

    env: Mapping[str, str] = field(default_factory=dict[str, str])
    user: str | None = None
    workdir: str | None = None
    command: tuple[str, ...] | None = None


class Recipe(Protocol):
    """A module that makes one image."""

    def key(self, *, host_mirrors: bool) -> str:
        """A word that differs whenever `build` would make something different, save for newer packages."""
        ...

    def build(self, root: Path, *, cache: Path, on_line: OnLine, host_mirrors: bool) -> Defaults:
        """Fill the empty directory `root`. What was downloaded is kept in `cache`, from which a later build works without a network.

        Raises `SetupError` when a program is missing or nothing can be downloaded, `ProgramFailed` when a program failed.
        """
        ...
