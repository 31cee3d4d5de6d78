"""State through the SDK, the blocking and the one with await, and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

from corral import Client, Sandbox, Snapshot, aio
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


def test_changes_are_told_and_taken_back(box: Sandbox) -> None:
    box.run("mkdir /w; echo one > /w/text; echo gone > /w/gone").check()
    base = box.snapshot()
    with Sandbox.create(base) as fork:
        fork.run("echo two > /w/text; chmod 600 /w/text; rm /w/gone; printf new > /w/new").check()
        changes = {change.path: change for change in fork.diff(text=True).changes if change.path.startswith("/w/")}
        assert {path: change.change for path, change in changes.items()} == {"/w/gone": "removed", "/w/new": "added", "/w/text": "changed"}
        text = changes["/w/text"]
        assert (text.size_before, text.size_after, text.mode_before, text.mode_after) == (4, 4, 0o644, 0o600)
        assert "-one\n+two\n" in str(text.text)
        point = fork.checkpoint("now")
        fork.run("echo later > /w/later").check()
        assert [change.path for change in fork.diff("now").changes] == ["/w/later"]
        assert [change.path for change in fork.diff(point, fork.checkpoint("after")).changes] == ["/w/later"]
        theirs = fork.snapshot()
    box.run("echo mine > /w/text").check()
    with pytest.raises(Conflict) as refused:
        box.merge(theirs)
    assert [one["path"] for one in refused.value.details["conflicts"]] == ["/w/text"]
    assert box.run("cat /w/text /w/gone; ls /w").stdout == "mine\ngone\ngone\ntext\n"
    done = box.merge(theirs, on_conflict="keep")
    assert [conflict.path for conflict in done.conflicts] == ["/w/text"]
    assert box.run("cat /w/text /w/new; ls /w").stdout == "mine\nnewlater\nnew\ntext\n"
    # What it was before is kept.
    assert done.checkpoint is not None
    box.rewind(done.checkpoint)
    assert box.run("ls /w").stdout == "gone\ntext\n"
    theirs.delete()
    base.delete()


def test_changes_on_the_command_line(server: Server, box: Sandbox) -> None:
    box.run("mkdir /w; echo one > /w/text").check()
    base = box.snapshot()
    with Sandbox.create(base) as fork:
        fork.run("echo two > /w/text; printf new > /w/new").check()
        told = corral(server, "diff", fork.id, "--text")
        assert "A /w/new" in told
        assert "M /w/text" in told
        assert "-one\n+two\n" in told
        assert {one["path"] for one in json.loads(corral(server, "diff", fork.id, "--json"))["changes"]} >= {"/w/new", "/w/text"}
        theirs = fork.snapshot()
    box.run("echo mine > /w/text").check()
    assert "C /w/text" in corral(server, "merge", box.id, theirs.id, "--dry-run")
    assert "A /w/new" in corral(server, "merge", box.id, theirs.id, "--on-conflict", "take")
    assert box.run("cat /w/text /w/new").stdout == "two\nnew"
    for one in (theirs, base):
        one.delete()


def test_a_snapshot_is_shared(server: Server, box: Sandbox) -> None:
    project = f"p-{uuid.uuid4().hex[:12]}"
    with Client() as admin:
        admin.projects.create(project)
        key = admin.keys.create("other", project=project).value
        box.files.write("/file", "shared")
        snapshot = box.snapshot()
        snapshot.share(project)
        assert snapshot.info.shared_with == [project]
        with pytest.raises(NotFound):
            snapshot.share("there-is-none")
        with Client(key=key) as other:
            assert [one.id for one in other.snapshots.list(shared=True)] == [snapshot.id]
            with other.sandboxes.create(snapshot.id) as theirs:
                assert theirs.files.read_text("/file") == "shared"
            corral(server, "snapshot", "share", snapshot.id)
            assert list(other.snapshots.list(shared=True)) == []
            with pytest.raises(NotFound):
                other.sandboxes.create(snapshot.id)
        snapshot.delete()
        admin.projects.delete(project)
