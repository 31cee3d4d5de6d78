"""A sandbox's own network device, reached from inside its switch. Nothing outside reaches it; for a comparison its answers are let through for a while."""

from __future__ import annotations

import contextlib
import ipaddress
import subprocess
from collections.abc import Generator

from corral import Sandbox
from corral.errors import SetupError
from corral.node.netns import Namespace
from corral.node.slots import FIRST, PREFIX
from corral.places import Places

_ASK = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('192.0.2.1', 9)); print(s.getsockname()[0])"


@contextlib.contextmanager
def reached(places: Places, sandbox: Sandbox) -> Generator[tuple[Namespace, str]]:
    """The switch, and the sandbox's address there. Raises `SetupError` without root or without a network."""
    switch = Namespace.find(places.switch)
    if switch is None:
        raise SetupError("the sandboxes of this server have no network to compare with", hint="run it as the user and on the machine of the server")
    try:
        address = ipaddress.IPv4Address(sandbox.run(["python3", "-c", _ASK]).stdout.strip())
        device = f"{PREFIX}{int(address) - int(FIRST)}"
        chain = ["inet", places.tag, "input"]
        added = switch.run(lambda: _nft("--echo", "--handle", "insert", "rule", *chain, "iifname", device, "ct", "state", "established", "accept"))
        handle = added.rsplit("handle", 1)[1].split()[0]
        try:
            yield switch, str(address)
        finally:
            switch.run(lambda: _nft("delete", "rule", *chain, "handle", handle))
    finally:
        switch.close()


def _nft(*words: str) -> str:
    return subprocess.run(["nft", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=20).stdout
