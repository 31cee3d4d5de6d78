"""Where a sentry writes a memory to and reads it from: three files (state, list of pages, pages), with names or without."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

FILES = ("state", "pages_meta", "pages")
"""In the order in which a sentry takes them."""


class Place(Protocol):
    """Descriptors for a sentry: one writes, then any number may read at once."""

    def write(self) -> AbstractContextManager[list[int]]: ...
    def read(self) -> AbstractContextManager[list[int]]: ...


class OnDisk:
    """In an empty directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextmanager
    def write(self) -> Generator[list[int]]:
        with _opened([self.directory / name for name in FILES], os.O_RDWR | os.O_CREAT | os.O_EXCL) as fds:
            yield fds

    @contextmanager
    def read(self) -> Generator[list[int]]:
        with _opened([self.directory / name for name in FILES], os.O_RDONLY) as fds:
            yield fds

    def size(self) -> int:
        """Bytes."""
        return sum((self.directory / name).stat().st_size for name in FILES)


class Nameless:
    """Without names in a directory, and gone with this process: for what is read at once and never again. The pages count for the group of whoever writes them, until `close`.

    They are in the page cache and seldom see the disk: the kernel begins to write out what is half a minute old, or when a tenth of the memory waits for it. Of memory alone (a memfd) writing
    takes twice as long and reading three times: it comes in pages of 4 KiB, where file systems take larger ones.
    """

    def __init__(self, directory: Path) -> None:
        with ExitStack() as stack:
            self._files = [stack.enter_context(tempfile.TemporaryFile(dir=directory, buffering=0)) for _ in FILES]
            self._stack = stack.pop_all()

    @contextmanager
    def write(self) -> Generator[list[int]]:
        yield [file.fileno() for file in self._files]

    @contextmanager
    def read(self) -> Generator[list[int]]:
        # Opened anew: each reader has its own position.
        with _opened([Path(f"/proc/self/fd/{file.fileno()}") for file in self._files], os.O_RDONLY) as fds:
            yield fds

    def close(self) -> None:
        self._stack.close()


@contextmanager
def _opened(paths: list[Path], flags: int) -> Generator[list[int]]:
    with ExitStack() as stack:
        yield [stack.enter_context(_descriptor(path, flags)) for path in paths]


@contextmanager
def _descriptor(path: Path, flags: int) -> Generator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)
