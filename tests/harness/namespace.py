"""Network namespaces of a test, and code run inside one."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000


def enter(fd: int) -> None:
    """Move the calling thread."""
    if _libc.setns(fd, _CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "setns")


def ip(*arguments: str, namespace: str | None = None) -> None:
    subprocess.run(["ip", *(("-n", namespace) if namespace else ()), *arguments], check=True, capture_output=True, timeout=30)


class Namespace:
    """One with a name, which is gone after `remove`."""

    def __init__(self, name: str) -> None:
        self.name = name
        ip("netns", "add", name)
        self.fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        self.ip("link", "set", "dev", "lo", "up")

    def ip(self, *arguments: str) -> None:
        ip(*arguments, namespace=self.name)

    def sysctl(self, name: str, value: str) -> None:
        self.run(lambda: Path("/proc/sys", name).write_text(value))

    def program(self, argv: Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["ip", "netns", "exec", self.name, *argv], check=False, text=True, capture_output=True, timeout=60, **more)

    def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, done by a thread inside. Sockets that it makes stay there."""
        result: list[T] = []
        failure: list[BaseException] = []

        def inside() -> None:
            try:
                enter(self.fd)
                result.append(work())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return result[0]

    def remove(self) -> None:
        os.close(self.fd)
        ip("netns", "del", self.name)


def join(one: Namespace | None, one_name: str, other: Namespace, other_name: str) -> None:
    """A cable. `one` None: the machine's own namespace."""
    place = ("netns", one.name) if one else ()
    ip("link", "add", one_name, *place, "type", "veth", "peer", "name", other_name, "netns", other.name)
    for namespace, name in ((one, one_name), (other, other_name)):
        ip("link", "set", "dev", name, "up", namespace=namespace.name if namespace else None)
