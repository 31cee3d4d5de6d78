"""Where a sentry writes a memory to and reads it from: three files (state, list of pages, pages), on the disk or in memory."""

from __future__ import annotations

import os
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


class InMemory:
    """Without a name, and gone with this process: for what is read at once and never again. The pages count for the group of whoever writes them, until `close`."""

    def __init__(self) -> None:
        self._fds = [os.memfd_create(f"corral-{name}", os.MFD_CLOEXEC) for name in FILES]

    @contextmanager
    def write(self) -> Generator[list[int]]:
        yield self._fds

    @contextmanager
    def read(self) -> Generator[list[int]]:
        # Opened anew: each reader has its own position.
        with _opened([Path(f"/proc/self/fd/{fd}") for fd in self._fds], os.O_RDONLY) as fds:
            yield fds

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


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
