"""Sandboxes of the image code-interpreter begin with a kernel that runs already, once there is a template of their shape."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from corral import Client, Sandbox, Snapshot, images
from corral.node import programs
from corral.places import Places
from harness import homes, leaks
from harness.server import Server

pytestmark = pytest.mark.timeout(900)  # the first run makes the image


@pytest.fixture
def ready(shared: Places) -> Iterator[Server]:
    """A server that makes such templates."""
    images.ensure(shared, ["code-interpreter"], on_line=print)
    home = homes.make("code")
    places = Places(home)
    images.share(places, shared, ["tiny", "code-interpreter"])
    programs.share(places, shared)
    server = Server(home, extra={"CORRAL_CODE_TEMPLATES": "1", "CORRAL_POOL": "2"})
    server.start()
    try:
        yield server
    finally:
        server.down()
    left = leaks.of_ended_home(places)
    shutil.rmtree(home)
    assert not left


def test_the_first_makes_a_template_and_those_after_begin_with_it(ready: Server) -> None:
    with Client(url=ready.url, key=ready.key) as client:

        def create(**options: object) -> Sandbox:
            return client.sandboxes.create("code-interpreter", memory=1024, **options)  # pyright: ignore[reportArgumentType]

        with create() as cold:
            assert "restore" not in cold.timing
            assert cold.code("seen = 1; seen").text == "1"
        while "restore" not in (first := create()).timing:  # until the template is there
            first.delete()
        boxes = [first, create()]
        drawn: set[str | None] = set()
        for box in boxes:
            assert "restore" in box.timing
            assert [context.language for context in box.code.contexts()] == ["python"]
            execution = box.code("import random; random.random()")
            assert execution.count == 1
            drawn.add(execution.text)
            assert box.code("'seen' in globals()").text == "False"
            assert box.code("import socket; socket.gethostname()").text == f"'{box.id}'"
        assert len(drawn) == 2, "each has random numbers of its own"
        with create(env={"FLAVOR": "sour"}) as other:
            assert "restore" not in other.timing, "its kernel must have the variable"
            assert other.code("import os; os.environ['FLAVOR']").text == "'sour'"

        # What it stands on is nobody's business.
        assert list(Snapshot.list(client=client)) == []
        snapshot = boxes[0].snapshot("mine")
        with client.sandboxes.create(snapshot) as copy:
            assert copy.code("1 + 1").text == "2"
        snapshot.delete()

        ready.kill()
        ready.start()
        assert boxes[1].code("random.random() >= 0").text == "True"
        with create() as again:
            assert "restore" in again.timing, "it outlives the server"
        for box in boxes:
            box.delete()
