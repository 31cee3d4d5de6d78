"""Slots of a real switch without sandboxes: their ends driven by raw frames and by this machine's own network stack, which try what a sandbox' own stack would never send."""

from __future__ import annotations

import asyncio
import errno
import http.client
import os
import socket
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from corral.errors import Unsupported
from corral.net import elements
from corral.node import holder_client
from corral.node.holder_client import HolderClient
from corral.node.network import Network
from corral.node.slots import GATEWAY_MAC, GUEST_MAC, Slot
from corral.places import Places
from corral.schema.egress import EgressPolicy
from harness import leaks
from harness.engine import engine_home
from harness.internet import DNS, PRIVATE, WEB, Internet

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def internet() -> Iterator[Internet]:
    with tempfile.TemporaryDirectory(prefix="corral-internet-", dir="/var/tmp") as directory:
        internet = Internet(f"ct{os.getpid()}w", Path(directory))
        internet.open(None, f"ct{os.getpid()}", here="198.51.100.1")
        try:
            yield internet
        finally:
            internet.close()


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    """Open, with a holder of its own; nothing of it may be left."""
    with tempfile.TemporaryDirectory(prefix="corral-network-", dir="/var/tmp") as home:
        places = Places(Path(home))
        for directory in (places.run, places.logs):
            directory.mkdir(mode=0o700)
        holder = HolderClient(on_lost=lambda: None)
        await holder_client.start(places.holder_socket, places.logs / "holder.log")
        await holder.connect(places.holder_socket)
        network = Network(places, holder, resolvers=[f"{DNS}:53"])
        try:
            await network.open()
            await network.sweep()
            assert network.reason is None
            yield network
        finally:
            await network.shutdown()
            await holder.shutdown()
            places.run.rmdir()
        assert leaks.of_ended_home(places) == []


async def open_slot(network: Network, policy: object) -> Slot:
    slot = await network.slot()
    assert slot is not None
    await network.admit(slot, "sb-aaaaaaaaaaaaaaaa", EgressPolicy.model_validate(policy), {})
    return slot


def as_guest(slot: Slot) -> None:
    """Give the guest's end the addresses that the sandbox's own stack would have."""
    commands = (f"addr add {slot.address}/32 dev eth0", "route add 192.0.0.1 dev eth0", "route add default via 192.0.0.1")

    def configure() -> None:
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True)
        subprocess.run(["ip", "neigh", "add", "192.0.0.1", "lladdr", GATEWAY_MAC.hex(":"), "dev", "eth0"], check=True)

    slot.namespace.run(configure)


def udp(source: str, destination: str, port: int, *, ethertype: int = 0x0800) -> bytes:
    """A frame with a UDP packet, as PACKET_VNET_HDR wants it."""
    payload = struct.pack(">HHHH", 4000, port, 8 + 5, 0) + b"spoof"
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(destination))
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    return bytes(10) + GATEWAY_MAC + GUEST_MAC + struct.pack(">H", ethertype) + head + payload


async def test_a_slot_sends_by_its_own_address_only(network: Network, internet: Internet) -> None:
    slot, other = await open_slot(network, {"default": "public"}), await open_slot(network, {"default": "public"})
    with internet.namespace.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as server, slot.nic().packets as packets:
        server.bind((WEB, 0))
        server.settimeout(10)
        port = server.getsockname()[1]
        for spoofed in (other.address, "192.0.0.1", "192.0.0.8", "127.0.0.1", "198.51.100.1", "10.1.2.3", WEB):
            packets.send(udp(spoofed, WEB, port))
        packets.send(udp(slot.address, WEB, port, ethertype=0x86DD))
        packets.send(udp(slot.address, PRIVATE, port))
        packets.send(udp(slot.address, WEB, port))
        # Packets of one cable stay in order, so that this one is the first only if the others got nowhere.
        assert server.recv(100) == b"spoof"
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.recv(100)


async def test_a_closed_slot_is_refused_at_once_and_an_opened_one_is_not(network: Network, internet: Internet) -> None:
    slot = await network.slot()
    assert slot is not None
    as_guest(slot)

    def connect() -> str:
        try:
            socket.create_connection((WEB, 7), timeout=5).close()
        except OSError as error:
            return type(error).__name__ if isinstance(error, TimeoutError | ConnectionError) else os.strerror(error.errno or 0)
        return "connected"

    assert await asyncio.to_thread(slot.namespace.run, connect) == "No route to host"
    await network.admit(slot, "sb-aaaaaaaaaaaaaaaa", EgressPolicy.model_validate({"default": "public"}), {})
    assert await asyncio.to_thread(slot.namespace.run, connect) == "connected"
    sent, received = network.traffic(slot)
    assert sent > 100
    assert received > 50
    await network.close_slot(slot)
    assert await asyncio.to_thread(slot.namespace.run, connect) == "No route to host"


async def test_the_next_user_of_a_slot_has_nothing_of_the_last(network: Network, internet: Internet) -> None:
    slot = await open_slot(network, {"default": "public", "budget": {"connections": 2, "bytes": 10_000, "upload": 100}})
    as_guest(slot)
    held = [await asyncio.to_thread(slot.namespace.run, lambda: socket.create_connection((WEB, 7), timeout=5)) for _ in range(2)]
    await network.release(slot)
    again = await network.slot()
    assert again == slot
    await network.admit(again, "sb-bbbbbbbbbbbbbbbb", EgressPolicy.model_validate({"default": "public", "budget": {"connections": 2}}), {})
    assert network.traffic(again) == (0, 0)
    assert not slot.shaped
    more: list[socket.socket] = []
    async with asyncio.timeout(20):
        while len(more) < 2:  # the kernel takes connections that have ended out of its count at one of the next packets
            try:
                more.append(await asyncio.to_thread(slot.namespace.run, lambda: socket.create_connection((WEB, 7), timeout=5)))
            except OSError as error:
                if error.errno != errno.EHOSTUNREACH:
                    raise
    for connection in (*held, *more):
        connection.close()


async def test_connections_of_every_former_policy_end_with_the_tenancy(network: Network, internet: Internet) -> None:
    slot = await open_slot(network, {"default": "public"})
    as_guest(slot)
    with internet.namespace.run(lambda: socket.create_server((WEB, 0))) as listener:
        port = listener.getsockname()[1]
        line = await asyncio.to_thread(slot.namespace.run, lambda: socket.create_connection((WEB, port), timeout=5))
        far, _ = listener.accept()
    with line, far:
        await network.admit(slot, "sb-aaaaaaaaaaaaaaaa", EgressPolicy.model_validate({"default": "all"}), {})
        await network.release(slot)
        again = await network.slot()
        assert again == slot
        await network.admit(again, "sb-bbbbbbbbbbbbbbbb", EgressPolicy.model_validate({"default": "public"}), {})
        far.sendall(b"for the one before")
        line.settimeout(1)
        with pytest.raises(TimeoutError):
            line.recv(100)


async def test_a_direct_connection_to_the_web_ends_when_names_begin_to_count(network: Network, internet: Internet) -> None:
    slot = await open_slot(network, {"default": "public"})
    as_guest(slot)

    def connect(port: int) -> socket.socket:
        return slot.namespace.run(lambda: socket.create_connection((WEB, port), timeout=10))

    web, echo = await asyncio.to_thread(connect, 80), await asyncio.to_thread(connect, 7)
    with web, echo:
        policy = {"default": "public", "rules": [{"to": ["evil.example.net"], "action": "deny"}]}
        await network.admit(slot, "sb-aaaaaaaaaaaaaaaa", EgressPolicy.model_validate(policy), {})
        echo.sendall(b"x")
        assert await asyncio.to_thread(echo.recv, 1) == b"x"
        with pytest.raises(ConnectionResetError):
            web.sendall(b"GET / HTTP/1.1\r\nHost: evil.example.net\r\n\r\n")
            await asyncio.to_thread(web.recv, 1)


async def test_a_later_server_ends_connections_of_policies_that_it_never_knew(network: Network, internet: Internet) -> None:
    slot = await open_slot(network, {"default": "public"})
    as_guest(slot)
    with internet.namespace.run(lambda: socket.create_server((WEB, 0))) as listener:
        port = listener.getsockname()[1]
        line = await asyncio.to_thread(slot.namespace.run, lambda: socket.create_connection((WEB, port), timeout=5))
        far, _ = listener.accept()
    with line, far:
        policy = EgressPolicy.model_validate({"default": "all"})
        generation = await network.admit(slot, "sb-aaaaaaaaaaaaaaaa", policy, {})
        kept = os.dup(slot.namespace.fd)
        await network.close()
        await network.open()
        slot = network.adopt(slot.index, kept)
        assert slot is not None
        network.readmit(slot, "sb-aaaaaaaaaaaaaaaa", policy, generation)
        await network.sweep()
        await network.release(slot)
        again = await network.slot()
        assert again == slot
        await network.admit(again, "sb-bbbbbbbbbbbbbbbb", EgressPolicy.model_validate({"default": "public"}), {})
        far.sendall(b"for the one before")
        line.settimeout(1)
        with pytest.raises(TimeoutError):
            line.recv(100)


async def test_names_are_reached_through_the_process_by_each_sandbox_of_a_slot_in_its_turn(network: Network, internet: Internet) -> None:
    names = ("one.example.com", "two.example.com")
    internet.zone.addresses |= {name: [WEB] for name in names}
    index: set[int] = set()

    def get(name: str) -> int:
        connection = http.client.HTTPConnection(WEB, 80, timeout=20)
        try:
            connection.request("GET", "/", headers={"Host": name})
            return connection.getresponse().status
        finally:
            connection.close()

    for number, allowed in enumerate(names):
        slot = await network.slot()
        assert slot is not None
        if not index:
            as_guest(slot)
        index.add(slot.index)
        await network.admit(slot, "sb-" + "ab"[number] * 16, EgressPolicy.model_validate({"rules": [{"to": [allowed]}]}), {})
        for name in names:
            status = await asyncio.to_thread(slot.namespace.run, lambda name=name: get(name))
            assert status == (200 if name == allowed else 403)
        await network.release(slot)
    assert len(index) == 1, "the same slot"


async def test_five_hundred_slots_leave_nothing(network: Network, internet: Internet) -> None:
    slots: list[Slot] = []
    for number in range(500):
        budget = {"connections": 40 + number % 5, "bytes": 10_000_000} if number % 2 else {}
        rules = [{"to": ["10.0.0.0/8", "www.example.com", f"{WEB}/32"], "ports": ["7", "80", "8000-8999"]}]
        slots.append(await open_slot(network, {"default": "public", "rules": rules, "budget": budget}))
    assert len({slot.address for slot in slots}) == 500
    for slot in slots[:20]:
        as_guest(slot)
        await asyncio.to_thread(slot.namespace.run, lambda: socket.create_connection((WEB, 7), timeout=10).close())
        with pytest.raises(OSError):
            await asyncio.to_thread(slot.namespace.run, lambda: socket.create_connection((WEB, 81), timeout=0.2))
    switch = network._switch
    assert switch is not None
    assert {f"over_{connections}" for connections in (40, 41, 42, 43, 44, 1000)} == set(switch.ceilings.names())
    await network.admit(slots[1], "sb-aaaaaaaaaaaaaaaa", EgressPolicy.model_validate({"default": "public", "budget": {"connections": 7}}), {})
    for slot in slots:
        await network.release(slot)
    left = {name: [element for element, _ in switch.tables.elements(name)] for name in switch.tables.sets()}
    for of_the_machine in (elements.HOST, elements.SLOT, "never", "special"):
        del left[of_the_machine]
    assert {name: len(found) for name, found in left.items() if found} == {elements.ALLOW: 1}, "the canary alone"
    assert switch.ceilings.names() == ["over_1000"], "what is there for every sandbox without a budget"
    # A later server finds slots that are nobody's.
    switch.slots.close()
    await network.close()
    await network.open()
    await network.sweep()
    assert network._switch is not None
    assert network._switch.slots.strangers() == []
    assert network._switch.tables.elements(elements.SLOT) == []


async def test_changes_of_which_one_fails_are_none(network: Network) -> None:
    """Only the last of a batch is acknowledged: what fails before it must be told nevertheless."""
    switch = network._switch
    assert switch is not None
    made, missing = elements.meters("sbnone1"), elements.undo(elements.meters("sbnone2"))
    for batch in ([*made, *missing, *made], [*missing, *made], [*made, *missing]):
        with pytest.raises(OSError) as caught:
            switch.tables.apply(batch)
        assert caught.value.errno == errno.ENOENT
        with pytest.raises(OSError):
            switch.tables.apply(elements.undo(made))
    switch.tables.apply(made)
    switch.tables.apply(elements.undo(made))


async def test_a_later_server_removes_what_an_earlier_one_left_of_sandboxes_that_are_gone(network: Network, internet: Internet) -> None:
    gone, kept = [await open_slot(network, {"default": "public", "budget": {"connections": connections}}) for connections in (3, 4)]
    for slot in (gone, kept):
        as_guest(slot)
        await asyncio.to_thread(slot.namespace.run, lambda: socket.create_connection((WEB, 7), timeout=10).close())
    tenancy = network._tenants[kept]
    assert tenancy is not None
    descriptor = os.dup(kept.namespace.fd)
    await network.close()
    await network.open()
    adopted = network.adopt(kept.index, descriptor)
    assert adopted is not None
    network.readmit(adopted, "sb-aaaaaaaaaaaaaaaa", tenancy.compiled.policy, tenancy.generation)
    await network.sweep()
    switch = network._switch
    assert switch is not None
    assert set(switch.ceilings.names()) == {"over_4", "over_1000"}
    for name in switch.tables.sets():
        if name not in (elements.HOST, "never", "special"):
            assert gone.interface not in {elements.interface_of(element.key) for element, _ in switch.tables.elements(name)}, name
    held = [await asyncio.to_thread(adopted.namespace.run, lambda: socket.create_connection((WEB, 7), timeout=10)) for _ in range(4)]
    with pytest.raises(OSError, match="No route to host"):
        await asyncio.to_thread(adopted.namespace.run, lambda: socket.create_connection((WEB, 7), timeout=10))
    for connection in held:
        connection.close()
    await network.release(adopted)
    assert switch.ceilings.names() == ["over_1000"]


async def test_addresses_of_this_machine_are_followed(network: Network, internet: Internet) -> None:
    switch = network._switch
    assert switch is not None

    def known() -> set[str]:
        return {socket.inet_ntoa(element.key) for element, _ in switch.tables.elements(elements.HOST)}

    async def until(*, there: bool) -> None:
        async with asyncio.timeout(10):
            while ("198.51.100.77" in known()) is not there:
                await asyncio.sleep(0)

    assert {"127.0.0.1", "198.51.100.1"} <= known()
    device = f"ct{os.getpid()}"
    await asyncio.to_thread(subprocess.run, ["ip", "addr", "add", "198.51.100.77/32", "dev", device], check=True)
    await until(there=True)
    await asyncio.to_thread(subprocess.run, ["ip", "addr", "del", "198.51.100.77/32", "dev", device], check=True)
    await until(there=False)


async def test_without_nftables_sandboxes_live_without_a_network(shared: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "nft"
    broken.write_text("#!/bin/sh\necho no such table >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    async with engine_home(shared) as home:
        box = await home.claim()
        assert await box.run("ls /sys/class/net 2>/dev/null; echo ok") == (0, "ok\n")
        with pytest.raises(Unsupported, match="no such table"):
            await home.claim(replace(home.spec(), egress=EgressPolicy.model_validate({"default": "public"})))
        with pytest.raises(Unsupported, match="no such table"):
            await home.engine.set_egress(box.id, EgressPolicy.model_validate({"default": "public"}), {})
        await home.remove(box)
        monkeypatch.undo()
