"""The way out of a switch on machines with firewalls and habits of their own: each machine is a network namespace."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.net import rtnetlink
from corral.net.dial import DIALLED
from corral.net.netlink import Netlink
from corral.node import netns
from corral.node.forwarding import switched_on
from corral.node.uplink import Uplink
from harness.internet import WEB, Internet
from harness.namespace import Namespace

pytestmark = pytest.mark.no_engine

TAG = f"ct{os.getpid()}up"
DROPPING = """
table ip filter {
  chain FORWARD { type filter hook forward priority 0; policy drop;
  }
}
"""


@pytest.fixture
def machine() -> Iterator[Namespace]:
    """One with an internet, that forwards nothing yet."""
    with tempfile.TemporaryDirectory(prefix="corral-internet-", dir="/var/tmp") as directory:
        outside = Namespace(f"{TAG}m")
        internet = Internet(f"{TAG}w", Path(directory))
        internet.open(outside, f"{TAG}c")
        outside.sysctl("net/ipv4/ip_forward", "0")
        try:
            yield outside
        finally:
            internet.close()
            outside.remove()


@pytest.fixture
def switch(machine: Namespace) -> Iterator[Namespace]:
    inside = Namespace(f"{TAG}s")
    inside.sysctl("net/ipv4/ip_forward", "1")
    yield inside
    inside.remove()


def lay(machine: Namespace, switch: Namespace, tag: str = TAG) -> str | None:
    links = Netlink(switch.run(rtnetlink.open_socket))
    try:
        return machine.run(lambda: Uplink(tag).lay(netns.Namespace(switch.fd), links))
    finally:
        links.close()


def forwards(machine: Namespace) -> str:
    return machine.run(lambda: Path("/proc/sys/net/ipv4/ip_forward").read_text().strip())


def rules(machine: Namespace) -> int:
    listed = json.loads(machine.program(["nft", "-j", "list", "chain", "ip", "filter", "FORWARD"]).stdout)
    return sum("rule" in item for item in listed["nftables"])


def test_what_was_switched_on_for_sandboxes_is_switched_off_after_them(machine: Namespace, switch: Namespace) -> None:
    other = Namespace(f"{TAG}t")
    try:
        assert (lay(machine, switch), lay(machine, other, f"{TAG}2"), forwards(machine)) == (None, None, "1")
        machine.run(Uplink(TAG).remove)
        assert forwards(machine) == "1", "another installation needs it"
        machine.run(Uplink(f"{TAG}2").remove)
        assert forwards(machine) == "0"
        assert not machine.run(switched_on).exists()
    finally:
        other.remove()


def test_what_was_on_already_stays_on(machine: Namespace, switch: Namespace) -> None:
    machine.sysctl("net/ipv4/ip_forward", "1")
    lay(machine, switch)
    machine.run(Uplink(TAG).remove)
    assert forwards(machine) == "1"


def test_a_firewall_that_drops_what_is_forwarded_lets_sandboxes_pass(machine: Namespace, switch: Namespace) -> None:
    """As Docker sets it up."""
    machine.program(["nft", "-f", "-"], input=DROPPING).check_returncode()
    assert lay(machine, switch) is None
    with switch.run(lambda: socket.create_connection((WEB, 7), timeout=10)) as line:
        line.sendall(b"x")
        assert line.recv(1) == b"x"
    # Again, as at each start of a server.
    assert lay(machine, switch) is None
    assert rules(machine) == 2
    machine.run(Uplink(TAG).remove)
    assert rules(machine) == 0


def test_what_the_proxy_dials_never_reaches_the_machine_itself(machine: Namespace, switch: Namespace) -> None:
    """Even where the check before it would have been passed."""
    lay(machine, switch)

    def dial(mark: int) -> bytes:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as line:
            line.settimeout(5)
            line.setsockopt(socket.SOL_SOCKET, 36, mark)
            line.connect(listener.getsockname())
            return b"reached"

    assert machine.run(lambda: dial(0)) == b"reached"
    with pytest.raises(ConnectionRefusedError):
        machine.run(lambda: dial(DIALLED))
    machine.run(Uplink(TAG).remove)
