"""What a guest is told of itself when it is claimed, and again when it comes back from a memory, perhaps as another."""

from __future__ import annotations

from corral.node.box import RunscBox
from corral.node.guest import Guest
from corral.node.interface import BoxSpec
from corral.node.nft import GATEWAY
from corral.wire import requests


def files(hostname: str, address: str | None) -> list[requests.GuestFile]:
    """What a guest must know of itself. Without a network device its host name is an address of its loopback."""
    hosts = f"127.0.0.1 localhost\n{address or '127.0.1.1'} {hostname}\n"
    contents = {"/etc/hostname": f"{hostname}\n", "/etc/hosts": hosts}
    if address is not None:
        # Two seconds are enough for a server next door; it is asked again before a program gives up.
        contents["/etc/resolv.conf"] = f"nameserver {GATEWAY}\noptions timeout:2 attempts:3\n"
    return [requests.GuestFile(path=path.encode(), content=content.encode(), mode=0o644) for path, content in contents.items()]


async def returned(guest: Guest, spec: BoxSpec, box: RunscBox, *, fork: bool) -> list[str]:
    """Say hello to a guest whose memory was restored, and tell it where and who it is; returns what failed hooks of a fork say."""
    await guest.hello()
    return await guest.restored(hostname=spec.hostname, files=files(spec.hostname, box.address), env=guest.defaults.env if fork else None, fork=fork)
