"""Network policy and secrets over everything that saves a sandbox: they hold in whatever comes of it, and the value of a secret is in nothing that is kept."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from corral import Sandbox, Secret
from corral.places import Places
from harness.fetch import fetch
from harness.internet import Internet
from harness.server import Server

VALUE = b"sk-live-Zq7Wn3XcB8mKd5Rt"
SEEN_INSIDE = b"what-a-program-inside-has-4f81c2"
BROKERED: dict[str, Any] = {"rules": [{"to": ["api.example.com"], "inject": {"Authorization": "Bearer {{STATE_TOKEN}}"}}, {"to": ["www.example.com"]}]}


@pytest.fixture(autouse=True)
def token(net: Server) -> Iterator[None]:
    Secret.create("STATE_TOKEN", VALUE.decode())
    yield
    Secret.delete("STATE_TOKEN")


def allows(sandbox: Sandbox, internet: Internet) -> None:
    """The allowed name, and no other, and with the secret where it belongs."""
    internet.seen.requests.clear()
    status, body, _ = fetch(sandbox, "https://api.example.com/echo")
    assert status == 200, body
    assert any(b"Authorization: Bearer " + VALUE in head for head in internet.seen.requests)
    assert VALUE.decode() not in body
    assert fetch(sandbox, "http://www.example.com/echo")[0] == 200
    assert fetch(sandbox, "http://db.example.com/")[0] in (0, 403)
    assert not any(b"db.example.com" in head for head in internet.seen.requests)


def denies(sandbox: Sandbox, internet: Internet) -> None:
    internet.seen.requests.clear()
    for url in ("https://api.example.com/echo", "http://www.example.com/echo"):
        assert fetch(sandbox, url)[0] in (0, 403)
    assert internet.seen.requests == []


def test_a_policy_holds_after_a_pause(net: Server, internet: Internet) -> None:
    with Sandbox.create("base", memory=256, egress=BROKERED) as sandbox:
        allows(sandbox, internet)
        sandbox.pause()
        sandbox.resume()
        allows(sandbox, internet)
        sandbox.pause()
        # By its next use, with a server that knows it from its files alone.
        net.kill()
        net.start()
        allows(sandbox, internet)
        sandbox.egress.set({"rules": []})
        sandbox.pause()
        sandbox.resume()
        denies(sandbox, internet)


def test_a_policy_holds_in_forks(net: Server, internet: Internet) -> None:
    with Sandbox.create("base", memory=256, egress=BROKERED) as sandbox:
        allows(sandbox, internet)
        same, other = sandbox.fork([{}, {"egress": {"rules": []}}])
        with same, other:
            allows(same, internet)
            denies(other, internet)
            allows(sandbox, internet)
            [grandchild] = same.fork()
            with grandchild:
                allows(grandchild, internet)
            net.kill()
            net.start()
            for one in (sandbox, same):
                allows(one, internet)
            denies(other, internet)


def test_a_sandbox_of_a_memory_has_the_policy_it_was_created_with(net: Server, internet: Internet) -> None:
    with Sandbox.create("base", memory=256, egress=BROKERED) as sandbox:
        allows(sandbox, internet)
        snapshot = sandbox.snapshot(memory=True)
        try:
            with Sandbox.create(snapshot, egress=BROKERED) as same, Sandbox.create(snapshot, egress={"rules": []}) as other:
                assert all("restore" in one.timing for one in (same, other))
                allows(same, internet)
                denies(other, internet)
            allows(sandbox, internet)
        finally:
            snapshot.delete()


@pytest.mark.parametrize("keep", [lambda box: box.snapshot(), lambda box: box.snapshot(memory=True), lambda box: box.pause()], ids=["disk", "memory", "pause"])
def test_no_value_of_a_secret_is_in_what_is_kept(net: Server, internet: Internet, keep: Callable[[Sandbox], Any]) -> None:
    places = Places(net.home)
    with Sandbox.create("base", memory=256, disk=512, egress=BROKERED) as sandbox:
        # What a program inside has is in it, so what is not found would have been.
        sandbox.run(f"echo {SEEN_INSIDE.decode()} | tee /tmp/inside > /var/tmp/inside; sync")
        allows(sandbox, internet)
        kept = keep(sandbox)
        files = [path for place in (places.memory, places.snapshots, places.disks, places.paused, places.spool) for path in place.rglob("*") if path.is_file()]
        assert [path for path in files if holds(path, SEEN_INSIDE)]
        assert [path for path in files if holds(path, VALUE)] == []
        if kept is not None:
            assert any(kept.id in str(path) and holds(path, SEEN_INSIDE) for path in files)
            kept.delete()


def holds(path: Path, value: bytes) -> bool:
    """Whether it is anywhere in a file, of which only what is there is read."""
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        at = 0
        while at < end:
            try:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # a hole up to the end
                return False
            at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            aligned = begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            with mmap.mmap(file.fileno(), at - aligned, offset=aligned, prot=mmap.PROT_READ) as data:
                if data.find(value) >= 0:
                    return True
    return False
