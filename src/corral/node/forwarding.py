"""What this machine must let through for sandboxes besides our own table: forwarding at all, and a firewall of its own that drops whatever it does not know (as Docker sets it up).

Both are put back when the last installation on the machine has gone, unless somebody else needs them by then.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corral import spawn
from corral.node.netns import sysctl

_RUN = Path("/run")
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_OWN = Path("/proc/thread-self/ns/net")
_DEVICES = Path("/proc/thread-self/net/dev")
_LEGACY = Path("/proc/thread-self/net/ip_tables_names")


def switched_on() -> Path:
    """A file that is there while forwarding is on, in this network namespace, because some installation has switched it on."""
    return _RUN / f"corral.forwarding-{_OWN.stat().st_ino}"


def switch_on() -> None:
    """Have the kernel forward, from when the way out of an installation is there. Raises `OSError` where that can't be done."""
    with _turn():
        if _FORWARD.read_text().strip() == "0":
            sysctl("net/ipv4/ip_forward", "1")
            switched_on().touch()


def put_back(alone: Callable[[], bool]) -> None:
    """Unless there is another installation. Where others have made bridges or tunnels meanwhile, forwarding stays on."""
    with _turn():
        if switched_on().exists() and alone():
            switched_on().unlink()
            if not any(_forwards(device) for device in _devices()):
                sysctl("net/ipv4/ip_forward", "0")


@contextmanager
def _turn() -> Generator[None]:
    """One installation at a time, so that none switches off what another is about to need."""
    directory = os.open(_RUN, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


@dataclass(frozen=True)
class Chain:
    """One of this machine's that drops what it does not know of all that is forwarded."""

    family: str
    table: str
    name: str

    @property
    def words(self) -> list[str]:
        return [self.family, self.table, self.name]


def open_chains(device: str) -> str | None:
    """Let pass what comes from a device and goes to it. Returns None, or why it does not pass all the same."""
    for chain in _dropping():
        if _ours(chain, device):
            continue
        for end in ("iifname", "oifname"):
            done = spawn.run(["nft", "insert", "rule", *chain.words, end, device, "accept", "comment", f'"{device}"'], timeout=20)
            if done.code:
                return f"the firewall drops what is forwarded, and its chain {' '.join(chain.words)} can't be changed: {done.stderr.decode(errors='replace').strip()[:200]}"
    return _legacy(device)


def close_chains(device: str) -> None:
    """Take the rules for a device away again."""
    for chain in _dropping():
        for handle in _ours(chain, device):
            spawn.run(["nft", "delete", "rule", *chain.words, "handle", str(handle)], timeout=20)


def _dropping() -> list[Chain]:
    chains = (item["chain"] for item in _listed("list", "chains") if "chain" in item)
    return [Chain(one["family"], one["table"], one["name"]) for one in chains if one.get("hook") == "forward" and one.get("policy") == "drop"]


def _ours(chain: Chain, device: str) -> list[int]:
    """Handles of the rules that we have put there."""
    rules = (item["rule"] for item in _listed("-a", "list", "chain", *chain.words) if "rule" in item)
    return [one["handle"] for one in rules if one.get("comment") == device]


def _listed(*words: str) -> list[dict[str, Any]]:
    done = spawn.run(["nft", "-j", *words], timeout=20)
    return [] if done.code else json.loads(done.stdout)["nftables"]


def _legacy(device: str) -> str | None:
    """The older kind of tables, which nft does not show."""
    try:
        there = "filter" in _LEGACY.read_text().split()
        rules = spawn.run(["iptables-legacy", "-S", "FORWARD"], timeout=20).stdout.decode(errors="replace").splitlines() if there else []
    except OSError:  # no such tables, or not the program for them
        return None
    if "-P FORWARD DROP" not in rules or f"-A FORWARD -i {device} -j ACCEPT" in rules:
        return None
    both = " && ".join(f"iptables-legacy -I FORWARD {end} {device} -j ACCEPT" for end in ("-i", "-o"))
    return f"the firewall (iptables-legacy) drops what is forwarded; as root: {both}"


def _devices() -> Iterator[str]:
    for line in _DEVICES.read_text().splitlines()[2:]:
        yield line.partition(":")[0].strip()


def _forwards(device: str) -> bool:
    """Whether it is a bridge or a tunnel."""
    return any(Path("/sys/class/net", device, kind).exists() for kind in ("bridge", "tun_flags"))
