"""State through the SDK, the blocking and the one with await, and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

from corral import Sandbox, Snapshot, aio
from corral.errors import Conflict, NotFound
from harness.server import Server


@pytest.fixture
def box(server: Server) -> Iterator[Sandbox]:
    with Sandbox.create("tiny") as box:
        yield box


def corral(server: Server, *words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "corral", *words], env=server.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"corral {' '.join(words)}: {done.returncode} {done.stderr}"
    return done.stdout


def test_a_snapshot_starts_others(box: Sandbox) -> None:
    name = f"s-{uuid.uuid4().hex[:12]}"
    box.files.write("/kept", "kept")
    snapshot = box.snapshot(name)
    assert snapshot.timing["stopped"] <= snapshot.timing["total"]
    with Sandbox.create(snapshot) as one, Sandbox.create(name) as two:
        assert [child.files.read_text("/kept") for child in (one, two)] == ["kept"] * 2
        with pytest.raises(Conflict):
            snapshot.delete()
    assert Snapshot.get(name).id == snapshot.id in [found.id for found in Snapshot.list(sandbox=box.id)]
    refreshed = snapshot.refresh().info.unshared
    assert refreshed is not None
    snapshot.delete()
    with pytest.raises(NotFound):
        Snapshot.get(name)


def test_a_sandbox_goes_back(box: Sandbox) -> None:
    box.files.write("/file", "1")
    first = box.checkpoint("first")
    box.files.write("/file", "2")
    box.rewind("first")
    assert box.files.read_text("/file") == "1"
    assert [one.name for one in box.checkpoints()] == ["first", "before-rewind-1"]
    first.delete()
    with pytest.raises(NotFound):
        box.rewind(first)


async def test_with_await(server: Server) -> None:
    async with await aio.Sandbox.create("tiny") as box:
        await box.files.write("/kept", "kept")
        snapshot = await box.snapshot()
        async with await aio.Sandbox.create(snapshot) as child:
            assert await child.files.read_text("/kept") == "kept"
        await snapshot.delete()


def test_on_the_command_line(server: Server, box: Sandbox) -> None:
    name = f"s-{uuid.uuid4().hex[:12]}"
    corral(server, "exec", box.id, "--", "sh", "-c", "echo 1 > /file")
    id = corral(server, "snapshot", "create", box.id, name).strip()
    assert corral(server, "run", "--image", name, "--", "cat", "/file") == "1\n"
    assert [one["id"] for one in json.loads(corral(server, "snapshot", "ls", "--sandbox", box.id, "--json"))] == [id]
    corral(server, "snapshot", "rm", name)
    corral(server, "checkpoint", "create", box.id, "first")
    corral(server, "exec", box.id, "--", "sh", "-c", "echo 2 > /file")
    corral(server, "rewind", box.id, "first")
    assert corral(server, "exec", box.id, "--", "cat", "/file") == "1\n"
    assert "before-rewind-1" in corral(server, "checkpoint", "ls", box.id)
    corral(server, "checkpoint", "rm", box.id, "first")
