"""A small internet at the end of this machine's cable, and a server whose sandboxes' names it resolves."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral import Sandbox
from corral.places import Places
from harness import homes, leaks
from harness.internet import DNS, HERE, METADATA, OTHER, PRIVATE, WEB, Internet
from harness.namespace import ip
from harness.server import Server

NAMES = {"www.example.com": [WEB], "api.example.com": [OTHER], "db.example.com": [OTHER], "inside.example.com": [PRIVATE], "node.example.com": [HERE]}


@pytest.fixture(scope="module")
def internet() -> Iterator[Internet]:
    with tempfile.TemporaryDirectory(prefix="corral-internet-", dir="/var/tmp") as directory:
        device = f"ct{os.getpid()}"
        internet = Internet(f"{device}w", Path(directory))
        internet.zone.addresses.update(NAMES)
        internet.open(None, device, here=HERE)
        try:
            internet.namespace.ip("addr", "add", f"{METADATA}/32", "dev", "world")
            ip("route", "add", METADATA, "dev", device)
            yield internet
        finally:
            internet.close()


@pytest.fixture(scope="module")
def net(shared: Places, internet: Internet) -> Iterator[Server]:
    """A server whose sandboxes' names are resolved by that internet."""
    home = homes.make("net")
    places = Places(home)
    homes.furnish(places, shared, ["tiny", "base"])
    server = Server(home, extra={"CORRAL_RESOLVERS": f"{DNS}:53", "CORRAL_POOL": "2", "CORRAL_FREEZE": "always", "SSL_CERT_FILE": str(internet.authority.file)})
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORRAL_URL", server.url)
        patch.setenv("CORRAL_API_KEY", server.key)
        try:
            # One that needs the egress process waits for it; denials of others are told from then on.
            Sandbox.create("tiny", memory=128, egress="public").delete()
            yield server
        finally:
            server.down()
    left = leaks.of_ended_home(places)
    shutil.rmtree(home)
    assert not left
