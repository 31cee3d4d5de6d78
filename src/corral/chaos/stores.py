"""The invariants of what outlives sandboxes: every snapshot that was answered is there and whole, no half-made one is, and volumes hold what was written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from corral.aio import Client, Sandbox, Snapshot, Volume
from corral.chaos.deeds import check_file
from corral.chaos.kept import Kept, Store
from corral.chaos.patience import Hang, Patience
from corral.chaos.sharing import AT, check_shared
from corral.chaos.tally import Tally
from corral.errors import CorralError, NotFound, SandboxEnded
from corral.places import Places

SETTLE = 60.0
"""Seconds in which what was deleted must be gone from the disk."""


class Stores:
    """`client` reaches the server with no gate between."""

    def __init__(self, places: Places, client: Client, stores: Sequence[Store], *, patience: Patience, tally: Tally) -> None:
        self._places = places
        self._client = client
        self._stores = stores
        self._patience = patience
        self._tally = tally

    async def look(self, name: str, *, contents: bool) -> None:
        """What the server lists is what was answered, and what is on the disk. `contents`: start a sandbox of each snapshot, and one with each volume."""
        try:
            await self._patience.wait(self._snapshots(name), f"{name}: snapshots")
            for store in self._stores:
                for kept in list(store.snapshots.values()) if contents else ():
                    await self._patience.wait(self._snapshot(name, kept), f"{name}: {kept.id}")
                if contents and store.volume_made:
                    await self._patience.wait(self._volume(name, store), f"{name}: {store.volume}")
        except Hang as error:
            self._tally.violation("hang", name, str(error))
        except CorralError as error:
            self._tally.violation("wrong error", name, f"{type(error).__name__} [{error.code}] {error} with nobody killing anything")
        await self._disk(name)

    async def end(self) -> None:
        """Delete all; nothing of it may be left."""
        try:
            for snapshot in [one async for one in Snapshot.list(client=self._client)]:
                await self._patience.wait(_gone(snapshot), f"deleting {snapshot.id}")
            for volume in await Volume.list(client=self._client):
                await self._patience.wait(volume.delete(), f"deleting {volume.name}")
        except (CorralError, Hang) as error:
            self._tally.violation("delete failed", "end", str(error))
        await self._disk("end")
        if left := [path.name for path in self._places.volumes.iterdir()]:
            self._tally.violation("left behind", "end", f"volumes: {left}")

    async def _snapshots(self, name: str) -> None:
        listed = {one.id: one.name async for one in Snapshot.list(client=self._client)}
        expected = {id for store in self._stores for id in store.snapshots}
        doubtful = {ref for store in self._stores for ref in store.doubtful}
        for id in expected - listed.keys():
            self._tally.violation("lost snapshot", name, f"{id} was answered, nobody deleted it, and it is not there")
        for id in listed.keys() - expected:
            if not {id, listed[id]} & doubtful:
                self._tally.violation("came back", name, f"the snapshot {id} ({listed[id]}) was deleted, or nobody asked for it")
        self._tally.checked["snapshots there"] += len(expected & listed.keys())

    async def _snapshot(self, name: str, kept: Kept) -> None:
        async with await self._client.sandboxes.create(kept.id, memory=128, timeout=None, wait=60) as child:
            await check_kept(self._tally, name, kept, child, sorted(kept.files))
        self._tally.checked["snapshots started from"] += 1

    async def _volume(self, name: str, store: Store) -> None:
        async with await self._client.sandboxes.create("tiny", memory=128, timeout=None, wait=60, volumes={AT: store.volume}) as box:
            for file in sorted(store.shared):
                await check_shared(self._tally, name, store, box, file)

    async def _disk(self, name: str) -> None:
        """Files of snapshots are those of snapshots and checkpoints that there are, once what was deleted has had its time."""
        left: set[str] = set()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SETTLE
        while loop.time() < deadline:
            left = await self._ownerless()
            if not left:
                self._tally.checked["looks at the files of snapshots"] += 1
                return
            await asyncio.sleep(0.5)
        self._tally.violation("left behind", name, f"files of snapshots: {sorted(left)}")

    async def _ownerless(self) -> set[str]:
        listed = [one async for one in Snapshot.list(client=self._client)]
        there, warm = {one.id for one in listed}, {one.id for one in listed if one.memory is not None}
        async for sandbox in self._client.sandboxes.list():
            try:
                there |= {one.id for one in await sandbox.checkpoints()}
            except (SandboxEnded, NotFound):  # between the two questions
                pass
        expected = {f"{id}.{end}" for id in there for end in ("img", "json")}
        found = {path.name for path in self._places.snapshots.iterdir() if path.name != ".mounted"}
        memories = {path.name for path in self._places.memory.iterdir() if path.name.startswith(("sn-", ".new-sn-"))}
        return (found ^ expected) | {f"memory of {id}" for id in memories ^ warm}


async def check_kept(tally: Tally, step: str, kept: Kept, child: Sandbox, paths: Sequence[str]) -> None:
    """A sandbox of a snapshot has what there was when it was taken, and nothing of what came later."""
    for path in paths:
        await check_file(tally, step, kept.source, child, path, allowed=kept.files[path])
    for path in sorted(kept.source.files.keys() - kept.files.keys())[:3]:
        if await child.files.exists(path):
            tally.violation("wrong file", step, f"{path} was written after the snapshot {kept.id} was taken and is in it")


async def _gone(snapshot: Snapshot) -> None:
    try:
        await snapshot.delete(cascade=True)
    except NotFound:  # with the one it stood on
        pass
