"""The IPv4 addresses of this machine, followed as they come and go: no sandbox may reach any of them, whatever its policy."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from corral.net import rtnetlink
from corral.net.netlink import RECEIVE, Netlink

OnChange = Callable[[frozenset[str], frozenset[str]], None]
"""Takes those that went and those that came."""


class HostAddresses:
    """Tells of changes on the event loop."""

    def __init__(self, on_change: OnChange) -> None:
        self._on_change = on_change
        self._known = frozenset[str]()
        self._events: socket.socket | None = None
        self._links: Netlink | None = None

    def open(self, known: frozenset[str]) -> None:
        """Begin; what differs from `known` is told at once."""
        # First the ear, then the look, so that nothing falls in between.
        self._events = rtnetlink.open_socket(groups=rtnetlink.GROUP_IPV4_IFADDR)
        self._events.settimeout(0)
        self._links = Netlink(rtnetlink.open_socket())
        self._known = known
        asyncio.get_running_loop().add_reader(self._events, self._changed)
        self._look()

    def close(self) -> None:
        if self._events is not None and self._links is not None:
            asyncio.get_running_loop().remove_reader(self._events)
            self._events.close()
            self._links.close()
            self._events = self._links = None

    def _changed(self) -> None:
        assert self._events is not None
        # An overflow (ENOBUFS) means no more than that there was too much to tell.
        with contextlib.suppress(OSError):
            while self._events.recv(RECEIVE):
                pass
        self._look()

    def _look(self) -> None:
        assert self._links is not None
        now = rtnetlink.addresses(self._links)
        gone, new, self._known = self._known - now, now - self._known, now
        if gone or new:
            self._on_change(gone, new)
