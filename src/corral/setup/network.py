"""Whether sandboxes can have a network here: a switch with one slot is made as the server makes it, under a name of its own, and removed."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from corral.errors import CorralError
from corral.node.holder_client import HolderClient
from corral.node.network import Network
from corral.places import Places
from corral.schema.egress import Budget, EgressPolicy, Preset
from corral.setup.check import Finding, ill, well
from corral.setup.machine import Machine

_OPEN = EgressPolicy(default=Preset.PUBLIC)


def probe_network(machine: Machine) -> Finding:
    """Needs root. Leaves nothing behind."""
    mend = "run as root with nftables and iproute2 installed, and load the kernel modules veth, nf_tables, nf_conntrack; without it sandboxes have no network"
    if not machine.root:
        return ill("only root can try the network of sandboxes", mend="run it with sudo")
    with tempfile.TemporaryDirectory(prefix="corral-probe-") as home:
        places = Places(Path(home))
        places.run.mkdir(mode=0o700)
        try:
            lacking = asyncio.run(_try(places))
        except (CorralError, OSError) as error:
            return ill(f"sandboxes can have no network: {error}", mend=mend)
        finally:
            shutil.rmtree(places.run)
    if lacking:
        return ill(
            f"sandboxes can have a network, but {lacking}", mend="run `modprobe sch_tbf`; in a container make /proc/sys writable; it works without for all else"
        )
    return well("network devices for sandboxes, rules, forwarding, limits of bandwidth")


async def _try(places: Places) -> str:
    """What is lacking though the rest works; raises when nothing does."""
    network = Network(places, HolderClient(on_lost=lambda: None))
    await network.open()
    try:
        slot = await network.slot()
        if slot is None:
            raise CorralError(network.reason or "no device could be made")
        slot.nic().packets.close()
        lacking: list[str] = []
        for policy in (_OPEN, EgressPolicy(budget=Budget(upload=100, download=100))):
            try:
                await network.check(slot, policy)
            except CorralError as error:
                lacking.append(error.message)
        await network.release(slot)
        return "; ".join(lacking)
    finally:
        await network.shutdown()
