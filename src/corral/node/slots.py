"""Slots: network devices for sandboxes, made once and used again.

    switch                                    a namespace of the slot's own
    sb<n>  198.18.1.0+n/32 by this device ⇄ eth0, a packet socket on it is the sandbox's

The guest's end has a namespace of its own, since 2024's runsc gives its packet sockets a number that is unique in one namespace only. Nobody asks for addresses of the other end (ARP): both are told.
A slot ends with the last descriptor of its namespace, which the server, the holder and the sentry's packet socket have, so one that nobody knows any more vanishes by itself.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections import deque
from dataclasses import dataclass, field

from corral.errors import Unavailable
from corral.net import rtnetlink
from corral.net.netlink import BUFFER, SO_RCVBUFFORCE, SO_SNDBUFFORCE, Netlink, is_missing
from corral.net.rtnetlink import End
from corral.node.netns import Namespace, sysctl
from corral.node.nft import GATEWAY
from corral.node.urpc import Nic

FIRST = ipaddress.IPv4Address("198.18.1.0")
LAST = 65_535 - 256
"""The last slot: 198.18.255.255."""
GATEWAY_MAC = bytes.fromhex("020000000001")
GUEST_MAC = bytes.fromhex("020000000002")
"""The same in every slot: nobody shares a link."""
PREFIX = "sb"
MTU = 1500

_INDEX = 1000
"""Added to a slot's number: the index of its device in the switch."""
_GUEST_INDEX = 2
_GROUP, _STRANGERS = 1, 2
"""Groups of links: slots, and those that are about to be removed."""
_SOL_PACKET, _VNET_HDR, _ETH_P_ALL = 263, 15, 3


@dataclass(frozen=True)
class Slot:
    """A device in the switch, and the other end of its cable."""

    index: int
    namespace: Namespace = field(compare=False)
    shaped: set[str] = field(default_factory=set[str], compare=False)
    """Which of its ends have a limit of bandwidth."""

    @property
    def interface(self) -> str:
        return f"{PREFIX}{self.index}"

    @property
    def address(self) -> str:
        return str(FIRST + self.index)

    @property
    def link(self) -> int:
        """The index of its device in the switch."""
        return _INDEX + self.index

    def nic(self) -> Nic:
        """For one sentry: the packet socket can't be given to a second. It takes segments of up to 64 KiB whole (PACKET_VNET_HDR), which makes uploads eight times faster."""
        return Nic(self.namespace.run(_packet_socket), self.address, GUEST_MAC, GATEWAY, GATEWAY_MAC, MTU)


class Slots:
    """All slots of a switch. Everything here takes from a tenth of a millisecond to a few; none of it is for the event loop. May be used from any thread, one at a time."""

    def __init__(self, switch: Namespace, links: Netlink) -> None:
        self._switch = switch
        self._links = links
        self._free: deque[Slot] = deque()
        self._taken: set[int] = set()
        self._next = 0

    def take(self) -> Slot:
        """One that was given back, else a new one (about a millisecond). Raises `Unavailable` when there are no more addresses."""
        if self._free:
            return self._free.popleft()
        namespace, guest = Namespace.make(_guest_end)
        try:
            while True:
                while self._next in self._taken:
                    self._next += 1
                slot = Slot(self._next, namespace)
                if slot.index > LAST:
                    raise Unavailable(f"all {LAST + 1} addresses for sandboxes are taken", hint="remove sandboxes")
                self._taken.add(slot.index)
                try:
                    self._make(slot, guest)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.EBUSY):
                        self._taken.discard(slot.index)
                        raise
                    # An earlier one of this number is still on its way out.
                    continue
                return slot
        except BaseException:
            namespace.close()
            raise
        finally:
            guest.close()

    def give_back(self, slot: Slot) -> None:
        """Its sentry is dead: it is the next one's."""
        self._free.append(slot)

    def adopt(self, index: int, namespace: int) -> Slot:
        """A slot of an earlier server, by the descriptor of its namespace that the holder has kept."""
        self._taken.add(index)
        return Slot(index, Namespace(namespace))

    def strangers(self) -> list[rtnetlink.Link]:
        """Devices in the switch that are slots of nobody."""
        return [link for link in rtnetlink.links(self._links) if link.name.startswith(PREFIX) and link.index - _INDEX not in self._taken]

    def sweep(self) -> int:
        """Remove the devices that are nobody's, in one step; returns how many there were."""
        found = self.strangers()
        for link in found:
            with contextlib.suppress(OSError):  # it has vanished by itself
                self._links.request([rtnetlink.set_group(link.index, _STRANGERS)])
        if found:
            try:
                self._links.request([rtnetlink.delete_group(_STRANGERS)])
            except OSError as error:
                if not is_missing(error):
                    raise
        return len(found)

    def shape(self, slot: Slot, *, upload: float | None, download: float | None) -> None:
        """Limit what a slot's sandbox sends and receives, in Mbit/s; None: not. Each end of the cable limits what leaves by it. Raises `OSError` where the kernel has no token buckets (sch_tbf)."""
        self._shape(slot, "download", self._links, slot.link, download)
        if upload is None and "upload" not in slot.shaped:
            return
        guest = Netlink(slot.namespace.run(rtnetlink.open_socket))
        try:
            self._shape(slot, "upload", guest, _GUEST_INDEX, upload)
        finally:
            guest.close()

    def close(self) -> None:
        """Forget the free ones, which end thereby."""
        while self._free:
            self._free.pop().namespace.close()

    def _make(self, slot: Slot, guest: Netlink) -> None:
        near = End(slot.interface, slot.link, GATEWAY_MAC, up=True, group=_GROUP)
        far = End("eth0", _GUEST_INDEX, GUEST_MAC, namespace=slot.namespace.fd)
        self._links.request([rtnetlink.veth(near, far)])
        self._links.request([rtnetlink.neighbour(slot.link, slot.address, GUEST_MAC), rtnetlink.route(slot.link, slot.address, source=GATEWAY)])
        guest.request([rtnetlink.up(_GUEST_INDEX)])

    def _shape(self, slot: Slot, end: str, links: Netlink, index: int, mbits: float | None) -> None:
        if mbits is not None:
            links.request([rtnetlink.shape(index, rate=max(1000, int(mbits * 125_000)))])
            slot.shaped.add(end)
        elif end in slot.shaped:
            links.request([rtnetlink.unshape(index)])
            slot.shaped.discard(end)


def _packet_socket() -> socket.socket:
    connection = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        connection.bind(("eth0", _ETH_P_ALL))
        connection.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
        for option in (SO_RCVBUFFORCE, SO_SNDBUFFORCE):
            connection.setsockopt(socket.SOL_SOCKET, option, BUFFER)
    except BaseException:
        connection.close()
        raise
    return connection


def _guest_end() -> Netlink:
    sysctl("net/ipv6/conf/default/disable_ipv6", "1")
    return Netlink(rtnetlink.open_socket())
