"""A trial of the engine with one runsc: a sentry is started as the server starts them, spoken to and ended, in a home that exists for this only."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from corral.agent_binary import agent_binary
from corral.errors import SetupError
from corral.node import holder_client, mounts, runsc
from corral.node.cgroup import Groups, find_hierarchies
from corral.node.holder_client import HolderClient
from corral.node.members import Members, runsc_root
from corral.node.network import Network
from corral.places import Places

PLATFORM = "systrap"


def self_test(program: Path) -> None:
    """Raises `SetupError` that tells what went wrong, or `PlatformError`. Needs root. Takes about a second and leaves nothing."""
    with _scratch() as places:
        asyncio.run(_one_sentry(places, program))


async def _one_sentry(places: Places, program: Path) -> None:
    groups = Groups(find_hierarchies(), places.tag)
    groups.open()
    holder = HolderClient(on_lost=lambda: None)
    network = Network(places, holder)
    try:
        await holder_client.start(places.holder_socket, places.logs / "holder.log")
        await holder.connect(places.holder_socket)
        # With a network device where this machine can have any.
        await network.open()
        members = Members(places, runsc=runsc.probe(program), agent=agent_binary(), platform=PLATFORM, groups=groups, holder=holder, network=network)
        member = await members.make(background=False, check=True)
        await members.destroy(member)
    finally:
        await network.shutdown()
        await holder.shutdown()
        if not groups.remove():
            raise SetupError(f"the control groups {places.tag} of the trial are still in use", hint="look into their cgroup.procs")


@contextmanager
def _scratch() -> Generator[Places]:
    with tempfile.TemporaryDirectory(prefix="corral-self-test-", dir="/var/tmp") as name:
        places = Places(Path(name))
        for directory in (places.run, places.members, runsc_root(places), places.logs):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            yield places
        finally:
            mounts.sweep(places.run)  # newer versions of runsc leave an empty network namespace mounted in their directory
            shutil.rmtree(places.run)
