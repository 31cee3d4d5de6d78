"""Makings that are interrupted, or whose writing fails: memory, rows and node say the same afterwards, and a later server too."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from corral.errors import Conflict, NotFound
from corral.schema.fork import SandboxFork
from corral.schema.volume import VolumeCreate
from corral.store import Store
from harness.control import ME, BadDisk, control


def volume(name: str = "v", **fields: object) -> VolumeCreate:
    return VolumeCreate.model_validate({"name": name, **fields})


async def test_forks_whose_client_leaves_while_they_are_written_down_are_ended(store: Store, tmp_path: Path) -> None:
    server = await control(store, tmp_path)
    source = server.running()
    async with server.slow_store():
        forking = asyncio.create_task(server.sandboxes.forks.fork(ME, source, SandboxFork(count=3, children=None)))
        await server.node.forked.wait()
        while any(living.reserved for living in server.sandboxes.ledger.registry):
            await asyncio.sleep(0)
        assert len(server.node.boxes) == 3
        forking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forking
    await server.sandboxes.close()
    assert [living.record.id for living in server.sandboxes.ledger.registry] == [source]
    assert server.node.boxes == set()
    assert [row.id for row in await store.sandboxes.unfinished()] == []


async def test_a_volume_that_is_being_made_is_not_deleted_nor_used(store: Store, tmp_path: Path) -> None:
    server = await control(store, tmp_path)
    await server.volumes.create(ME, volume("source"))
    for source in (None, "source"):
        server.node.volumes.making.clear()
        server.node.volumes.begun.clear()
        making = asyncio.create_task(server.volumes.create(ME, volume(source=source)))
        await server.node.volumes.begun.wait()
        with pytest.raises(Conflict, match="being made"):
            await server.volumes.delete(ME, "v")
        with pytest.raises(Conflict, match="being made"):
            await server.volumes.create(ME, volume("copy", source="v"))
        server.node.volumes.making.set()
        made = await making
        assert (await server.volumes.delete(ME, "v")).id == made.id
    await server.volumes.delete(ME, "source")
    assert (await store.volumes.all(), server.node.volumes.list()) == ([], [])


async def test_a_volume_whose_making_is_interrupted_is_none(store: Store, tmp_path: Path) -> None:
    server = await control(store, tmp_path)
    async with server.slow_store():
        making = asyncio.create_task(server.volumes.create(ME, volume()))
        while not server.node.volumes.there:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
    await nothing_of_the_volume(store, tmp_path)


async def test_a_volume_that_the_disk_does_not_keep_is_none(store: Store, tmp_path: Path) -> None:
    server = await control(store, tmp_path, rows=BadDisk.of(store))
    with pytest.raises(OSError, match="Input/output"):
        await server.volumes.create(ME, volume())
    with pytest.raises(NotFound):
        server.volumes.get("default", "v")
    assert server.node.volumes.list() == []
    await nothing_of_the_volume(store, tmp_path)


async def nothing_of_the_volume(store: Store, home: Path) -> None:
    assert await store.volumes.all() == []
    later = await control(store, home)
    await later.volumes.load()
    with pytest.raises(NotFound):
        later.volumes.get("default", "v")


@pytest.mark.parametrize("way", ["the disk fails", "the client leaves"])
async def test_a_snapshot_that_displaces_another_leaves_one_of_the_name(store: Store, tmp_path: Path, way: str) -> None:
    server = await control(store, tmp_path)
    box = server.running()
    first, _ = await server.snapshots.create(ME, box, "kept")
    if way == "the disk fails":
        broken = await control(store, tmp_path, rows=BadDisk.of(store))
        broken.node.snapshots.there |= {first.id}
        await broken.snapshots.open()
        broken.running(id=box)
        with pytest.raises(OSError, match="Input/output"):
            await broken.snapshots.create(ME, box, "kept", displace=True)
        server = broken
    else:
        async with server.slow_store():
            making = asyncio.create_task(server.snapshots.create(ME, box, "kept", displace=True))
            while len(server.node.snapshots.there) < 2:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
    kept = server.shelf.get("default", "kept")
    assert [one.id for one in server.shelf.of("default")] == [kept.id]
    later = await control(store, tmp_path)
    later.node.snapshots.there |= server.node.snapshots.there
    await later.shelf.open()
    assert later.shelf.get("default", "kept").id == kept.id
    assert kept.id in later.node.snapshots.there
