"""runsc on a mount of its own, for what it starts to hold that and no other.

A sentry is started with a copy of all mounts of this machine, in a user namespace of its own; there the kernel keeps what hangs on a mount together with it, for as long as anything uses
that. Newer runscs start their second program by its path in there, and so the file of the program that runs kept the copy of the root, and with it every disk that was mounted just
then, of this home and of others, until that sentry ended: minutes after `corral down`, or after a sandbox was deleted.
"""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import replace
from pathlib import Path

from corral.node import mounts, syscalls
from corral.node.runsc import BESIDE, Runsc


class Apart:
    """Binds of directories with a runsc, below `directory`. All of it blocks, the first time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._bound: set[Path] = set()
        self._binding = threading.Lock()

    def of(self, program: Runsc) -> Runsc:
        """The same program on a mount that nothing else is on, if it starts another one."""
        home = program.path.parent
        if not (home / BESIDE).is_dir():
            return program
        place = self._directory / hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
        with self._binding:
            if place not in self._bound:
                # An earlier server's may show a directory that was replaced since.
                mounts.sweep(place)
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
                syscalls.bind(home, place)
                self._bound.add(place)
        return replace(program, path=place / program.path.name)

    def remove(self) -> None:
        """When no member is left."""
        if self._directory.is_dir():
            mounts.sweep(self._directory)
            for place in self._directory.iterdir():
                place.rmdir()
            self._directory.rmdir()
