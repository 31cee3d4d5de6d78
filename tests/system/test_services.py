"""Services of sandboxes: begun in the order of their needs, started again when they end, stopped for good when asked; whatever becomes of the server and the sandbox meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from corral import Client, Sandbox
from corral.errors import InvalidArgument, NotFound
from corral.schema.service import Service, ServiceState
from harness.server import Server

T = TypeVar("T")


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(url=server.url, key=server.key) as client:
        yield client


@pytest.fixture
def sandbox(client: Client) -> Iterator[Sandbox]:
    with client.sandboxes.create("tiny") as sandbox:
        yield sandbox


def eventually(sandbox: Sandbox, look: Callable[[], T | None]) -> T:
    """Look again whenever something has happened in the sandbox."""
    if (found := look()) is not None:
        return found
    for _ in sandbox.events(follow=True):
        if (found := look()) is not None:
            return found
    raise AssertionError("no more events")


def is_ready(sandbox: Sandbox, name: str, but: str | None = None) -> Callable[[], Service | None]:
    """`but`: not this process."""

    def look() -> Service | None:
        found = sandbox.services.get(name)
        return found if found.state is ServiceState.READY and found.process != but else None

    return look


def test_they_are_begun_in_order_and_kept_running(server: Server, sandbox: Sandbox) -> None:
    sandbox.services.set("db", "sleep 0.3; touch /tmp/db; exec sleep 1000", ready={"file": "/tmp/db"})
    sandbox.services.set("web", "test -e /tmp/db && exec sleep 1000", needs=["db"], restart="never")
    first = eventually(sandbox, is_ready(sandbox, "web"))
    with pytest.raises(InvalidArgument):
        sandbox.services.set("db", "true", needs=["web"])
    # Killed, it is started again.
    assert first.process is not None
    db = sandbox.services.get("db")
    assert db.process is not None
    sandbox.process(db.process).kill()
    again = eventually(sandbox, is_ready(sandbox, "db", but=db.process))
    assert (again.restarts, again.exit_code) == (1, 137)
    # Another server takes over what runs.
    server.kill()
    server.start()
    assert eventually(sandbox, is_ready(sandbox, "web")).process == first.process
    # Stopped it stays so, though the sandbox is started anew; the others are begun.
    assert sandbox.services.stop("web").state is ServiceState.STOPPED
    assert not any(one.running and one.tag == "service:web" for one in sandbox.processes())
    sandbox.stop()
    sandbox.start()
    eventually(sandbox, is_ready(sandbox, "db", but=again.process))
    assert sandbox.services.get("web").state is ServiceState.STOPPED
    assert sandbox.services.start("web").state is not ServiceState.STOPPED
    eventually(sandbox, is_ready(sandbox, "web"))
    sandbox.services.remove("web")
    with pytest.raises(NotFound):
        sandbox.services.get("web")
    assert [one.name for one in sandbox.services.list()] == ["db"]


def test_what_fails_waits_longer_each_time_and_says_why(sandbox: Sandbox) -> None:
    sandbox.services.set("bad", "exit 3", restart="on-failure")
    sandbox.services.set("once", "exit 0", restart="on-failure")
    sandbox.services.set("none", ["/no/such/program"])
    with pytest.raises(InvalidArgument, match="nobody"):
        sandbox.services.set("lonely", "true", needs=["nobody"])
    sandbox.services.set("slow", "exec sleep 1000", ready={"port": 9, "timeout": 0.2}, restart="never")
    seen = eventually(sandbox, lambda: found if (found := sandbox.services.get("bad")).restarts >= 2 else None)
    assert (seen.exit_code, seen.settings.command) == (3, "exit 3")
    assert eventually(sandbox, lambda: found if (found := sandbox.services.get("once")).state is ServiceState.ENDED else None).exit_code == 0
    for name, words in (("none", "/no/such/program"), ("slow", "0.2 s")):

        def failed(name: str = name) -> Service | None:
            found = sandbox.services.get(name)
            return found if found.state is ServiceState.FAILED else None

        assert words in (eventually(sandbox, failed).detail or "")


def test_those_of_a_snapshot_are_begun_in_what_is_made_from_it(client: Client, sandbox: Sandbox) -> None:
    sandbox.files.write("/etc/corral/services/box.json", '{"command": "exec sleep 1000"}')
    sandbox.files.write("/etc/corral/services/wrong.json", '{"command": 3}')
    snapshot = sandbox.snapshot("with-a-service")
    try:
        with client.sandboxes.create(snapshot.id) as other:
            eventually(other, is_ready(other, "box"))
            assert [one.name for one in other.services.list()] == ["box"]
    finally:
        snapshot.delete()
