"""The way out of a switch, for what the kernel forwards: a cable to this machine's own namespace, routes, and addresses translated at both of its ends.

This machine sees one address for all sandboxes of an installation, so that installations beside each other may use the same addresses for theirs. Besides the device and its address it gets one
nftables table, of the installation's name, forwarding switched on, and where its own firewall drops what is forwarded, two rules in there (`corral.node.forwarding`).
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
from dataclasses import dataclass

from corral.errors import SetupError
from corral.net import rtnetlink
from corral.net.netlink import Netlink, is_missing
from corral.net.rtnetlink import End
from corral.node import forwarding, nft
from corral.node.netns import Namespace, sysctl
from corral.node.nft import UPLINK, UPLINKS

_POOL = ipaddress.IPv4Network(UPLINKS)
_SWITCH_INDEX = 2
_HOST_MAC = bytes.fromhex("020000000003")
_SWITCH_MAC = bytes.fromhex("020000000004")


@dataclass(frozen=True)
class Uplink:
    """Of the installation `tag`, which is the name of its device and of its table."""

    tag: str

    def lay(self, switch: Namespace, inside: Netlink) -> str | None:
        """Make it, unless it is there. Returns None, or why nothing will be forwarded."""
        outside = Netlink(rtnetlink.open_socket())
        try:
            there = {link.name for link in rtnetlink.links(outside)}
            if self.tag in there:
                # Whoever reloads the firewall of this machine may have removed our table with all others.
                ours = next(address for address in rtnetlink.addresses(inside) if ipaddress.IPv4Address(address) in _POOL)
                nft.load_host(self.tag, device=self.tag, address=ours)
            else:
                self._make(switch, outside, inside)
        finally:
            outside.close()
        try:
            forwarding.switch_on()
        except OSError as error:
            return f"forwarding can't be switched on (net.ipv4.ip_forward): {error.strerror}"
        return forwarding.open_chains(self.tag)

    def remove(self) -> None:
        """Remove the device and the table; what is missing already is no error. Takes some 20 ms."""
        nft.remove_host(self.tag)
        forwarding.close_chains(self.tag)
        outside = Netlink(rtnetlink.open_socket())
        try:
            for link in rtnetlink.links(outside):
                if link.name == self.tag:
                    with contextlib.suppress(OSError):  # its other end went at this moment
                        outside.request([rtnetlink.delete(link.index)])
            forwarding.put_back(lambda: not any(ipaddress.IPv4Address(address) in _POOL for address in rtnetlink.addresses(outside)))
        finally:
            outside.close()

    def _make(self, switch: Namespace, outside: Netlink, inside: Netlink) -> None:
        ours, theirs = self._addresses(rtnetlink.addresses(outside))
        # The table comes first: nothing gets out of the switch before it guards this machine.
        nft.load_host(self.tag, device=self.tag, address=theirs)
        near = End(self.tag, 0, _HOST_MAC, up=True)
        far = End(UPLINK, _SWITCH_INDEX, _SWITCH_MAC, namespace=switch.fd)
        try:
            outside.request([rtnetlink.veth(near, far)])
            sysctl(f"net/ipv6/conf/{self.tag}/disable_ipv6", "1")
            index = next(link.index for link in rtnetlink.links(outside) if link.name == self.tag)
            outside.request([rtnetlink.address(index, ours, 31), rtnetlink.neighbour(index, theirs, _SWITCH_MAC)])
            inside.request([rtnetlink.address(_SWITCH_INDEX, theirs, 31), rtnetlink.up(_SWITCH_INDEX)])
            inside.request([rtnetlink.neighbour(_SWITCH_INDEX, ours, _HOST_MAC), rtnetlink.route(_SWITCH_INDEX, "0.0.0.0", 0, gateway=ours)])
        except OSError as error:
            self.remove()
            if is_missing(error):
                raise
            raise SetupError(f"the sandboxes' way out can't be made: {error}", hint="run `corral doctor`") from error

    def _addresses(self, used: frozenset[str]) -> tuple[str, str]:
        """A pair of neighbours, ours and the switch's, that no other installation on this machine has."""
        pairs = list(_POOL.subnets(new_prefix=31))
        start = int.from_bytes(hashlib.sha256(self.tag.encode()).digest()[:4], "big")
        for offset in range(len(pairs)):
            ours, theirs = map(str, pairs[(start + offset) % len(pairs)])
            if ours not in used:
                return ours, theirs
        raise SetupError(f"every pair of addresses in {UPLINKS} is taken", hint="remove devices of installations that are gone (`ip link`)")
