"""Network namespaces, held by descriptors. A socket stays for ever in the namespace of the thread that made it, so that one process has sockets in many."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from corral.node import syscalls
from corral.node.syscalls import MountFlag

T = TypeVar("T")
_OWN = "/proc/thread-self/ns/net"


class Namespace:
    """A network namespace. It lives as long as a descriptor, a mount, a process or a socket is in it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def make(cls, prepare: Callable[[], T]) -> tuple[Namespace, T]:
        """A new one, and what `prepare` returns, which is called inside it (its files under /proc/sys are those of the namespace)."""

        def unshare() -> tuple[Namespace, T]:
            syscalls.unshare_network()
            prepared = prepare()
            return cls(os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)), prepared

        return _in_a_thread(unshare)

    @classmethod
    def find(cls, path: Path) -> Namespace | None:
        """The one that `mount` has put there, if any."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        found = cls(fd)
        try:
            found.run(lambda: None)
        except OSError:  # the file is there, but nothing is mounted on it
            found.close()
            return None
        return found

    def run(self, function: Callable[[], T]) -> T:
        """Call a function in here; waits for it. Nothing but what it opens stays in here."""

        def enter() -> T:
            syscalls.enter_network(self.fd)
            return function()

        return _in_a_thread(enter)

    def mount(self, path: Path) -> None:
        """Keep it alive and findable at `path`."""
        path.touch(mode=0o600)
        syscalls.mount(f"/proc/self/fd/{self.fd}", path, "", flags=MountFlag.BIND)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def unmount(path: Path) -> None:
    """Take away what `Namespace.mount` has put at `path`, if anything."""
    with contextlib.suppress(FileNotFoundError):
        with contextlib.suppress(OSError):  # nothing is mounted on it
            syscalls.umount(path, lazy=True)
        path.unlink()


async def made(make: Callable[[], T], unmake: Callable[[T], None]) -> T:
    """Make something in a worker thread. A thread can't be stopped: when the caller is cancelled meanwhile, what it has made is unmade."""
    making = asyncio.ensure_future(asyncio.to_thread(make))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        making.add_done_callback(lambda done: unmake(done.result()) if not done.cancelled() and done.exception() is None else None)
        raise


def sysctl(name: str, value: str) -> None:
    """Set a kernel parameter (`net/ipv4/ip_forward`) of the calling thread's network namespace. One that this kernel does not have is passed over."""
    file = Path("/proc/sys", name)
    with contextlib.suppress(FileNotFoundError):
        if file.read_text().strip() != value:
            file.write_text(value)


def _in_a_thread(function: Callable[[], T]) -> T:
    """A thread of its own, since one that could not get back would be in the wrong namespace for whatever it did next."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=run, name="network namespace")
    thread.start()
    thread.join()
    return result.result()
