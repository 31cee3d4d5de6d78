"""The network of an installation's sandboxes: in which order what is done. Each part is in the module named for it.

open      namespace (the switch) → addresses → table → uplink → addresses of this machine → adopt → sweep
slot      one for each member, from its birth; closed, until `admit`
admit     one transaction in the table: at the claim, and at each change of the policy, which gives the slot a new generation
release   elements and connections removed; the slot is the next one's

A switch is a network namespace, mounted at `<run>/switch`. It outlives the server, as the sandboxes do, and holds their policies by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from corral.errors import CorralError, InternalError, SetupError, Unavailable, Unsupported
from corral.net import elements, nfnetlink, policy, rtnetlink
from corral.net.ceilings import Ceilings
from corral.net.elements import OF_PACKETS, OF_POLICY, OF_SANDBOX, SLOT, Switchboard
from corral.net.netlink import Netlink, is_missing
from corral.net.nfnetlink import Change, Element, Tables
from corral.net.policy import Compiled, Mode, Nat
from corral.net.tenant import ROUND, Tenant
from corral.node import nft
from corral.node.egress import Egress, OnApproval, OnFlows
from corral.node.holder_client import HolderClient
from corral.node.host_addresses import HostAddresses
from corral.node.netns import Namespace, made, sysctl, unmount
from corral.node.nft import GATEWAY, SERVICE
from corral.node.slots import Slot, Slots
from corral.node.uplink import Uplink
from corral.places import Places
from corral.schema.egress import Budget, EgressPolicy

GENERATIONS = 1 << 16
"""How many generations a server takes for itself at a time; the file that says so is written as often."""

_LOOPBACK = 1
_PARAMETERS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/conf/all/rp_filter": "1",
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/all/arp_ignore": "8",
    # A denial is told at once each time, not once a second.
    "net/ipv4/icmp_ratelimit": "0",
    # What listens here is told by which policy a connection came (SO_MARK), so that one of an earlier sandbox is never held for the next one's.
    "net/ipv4/tcp_fwmark_accept": "1",
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
    # Bytes of connections are counted, and told soon after their end.
    "net/netfilter/nf_conntrack_acct": "1",
    "net/netfilter/nf_conntrack_timestamp": "1",
    "net/netfilter/nf_conntrack_tcp_timeout_time_wait": "3",
    "net/netfilter/nf_conntrack_tcp_timeout_close": "3",
    "net/netfilter/nf_conntrack_tcp_timeout_established": "86400",
}

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Watcher:
    """Whom the network tells: of connections, denials and names asked for, in batches; of those that wait for a decision, and of the decision."""

    on_flows: OnFlows = lambda _flows: None
    on_approval: OnApproval = lambda _approval: None


@dataclass(frozen=True)
class Switch:
    """What there is once the network is open."""

    namespace: Namespace
    links: Netlink
    tables: Tables
    board: Switchboard
    slots: Slots
    ceilings: Ceilings
    unforwarded: str | None
    """Why the kernel forwards nothing."""


EARLIER = 64
"""Former policies of a tenancy whose idle connections are kept; those of older ones are ended."""


@dataclass
class Tenancy:
    """A slot's present user."""

    sandbox: str
    generation: int
    compiled: Compiled
    secrets: Mapping[str, str] = field(repr=False)
    """Values; of no use to anybody but the egress process."""
    opened: list[Change] = field(default_factory=list[Change])
    earlier: tuple[int, ...] = ()
    """Generations of its former policies: connections that have been idle since still carry them."""


class Network:
    """Of one installation. Lives on the event loop."""

    def __init__(self, places: Places, holder: HolderClient, *, resolvers: Sequence[str] = (), watcher: Watcher | None = None) -> None:
        """`resolvers`: DNS servers for sandboxes' names; none: this machine's. `watcher` is told what happens."""
        self._places = places
        watcher = watcher or Watcher()
        self.egress = Egress(places, holder, resolvers=resolvers, on_flows=watcher.on_flows, on_approval=watcher.on_approval)
        self._switch: Switch | None = None
        self._why_not: SetupError | None = None
        self._tenants: dict[Slot, Tenancy | None] = {}
        """Every slot in use; None: its member waits."""
        self._generation: int = 1
        self._reserved: int = 1
        self._host = HostAddresses(self._host_changed)
        self._going: set[asyncio.Task[None]] = set()
        """Slots that are being given back."""
        self._turn = threading.Lock()
        """Slots are made in worker threads, one at a time."""

    # Opening and leaving

    async def open(self) -> None:
        """Ready the switch. A machine that can't have one is no error here: `slot` then gives None, and `admit` says why."""
        try:
            self._switch = await asyncio.to_thread(self._open)
        except (SetupError, OSError) as error:
            self._why_not = error if isinstance(error, SetupError) else SetupError(f"no network for sandboxes: {error}", hint="run `corral doctor`")
            log.warning("sandboxes have no network", reason=str(self._why_not))
            return
        known = frozenset(socket.inet_ntoa(element.key) for element, _ in self._switch.tables.elements(elements.HOST))
        self._host.open(known)

    async def close(self) -> None:
        """Leave. Open slots go on by themselves, until the next server adopts them."""
        await self._gone()
        self._host.close()
        await self.egress.close()
        if self._switch is not None:
            self._switch.slots.close()
            for slot in self._tenants:
                slot.namespace.close()
            self._tenants.clear()
            self._switch.links.close()
            self._switch.tables.close()
            self._switch.namespace.close()
            self._switch = None

    async def shutdown(self) -> None:
        """Remove all of it; every member must be gone."""
        there = self._switch is not None
        await self.egress.shutdown()
        await self.close()
        if there or self._path.exists():
            await asyncio.to_thread(self._remove)

    @property
    def reason(self) -> str | None:
        """Why sandboxes have no network here, or None."""
        return None if self._why_not is None else self._why_not.message

    # Slots

    async def slot(self) -> Slot | None:
        """A closed slot for a member; None where there is no network."""
        switch = self._switch
        if switch is None:
            return None

        def take() -> Slot:
            with self._turn:
                slot = switch.slots.take()
            switch.tables.apply(elements.birth(slot.interface, slot.address))
            return slot

        slot = await made(take, switch.slots.give_back)
        self._tenants[slot] = None
        return slot

    async def release(self, slot: Slot) -> None:
        """Its member is dead: close it and keep it for another."""
        await self.close_slot(slot)
        self._tenants.pop(slot, None)
        if self._switch is not None:
            with self._turn:
                self._switch.slots.give_back(slot)

    def let_go(self, slot: Slot, sandbox: str) -> None:
        """`release` it when the caller has gone on: each change of the tables waits for the kernel, some 40 ms in all, and nobody sends anything there any more."""

        async def release() -> None:
            try:
                await self.release(slot)
            except (CorralError, OSError) as error:
                # It is swept by the next server.
                log.error("a network slot was not given back", sandbox=sandbox, error=str(error))

        task = asyncio.get_running_loop().create_task(release())
        self._going.add(task)
        task.add_done_callback(self._going.discard)

    async def _gone(self) -> None:
        """What was let go until now has been given back."""
        if self._going:
            await asyncio.wait(self._going)

    async def admit(self, slot: Slot | None, sandbox: str, wanted: EgressPolicy, secrets: Mapping[str, str]) -> int:
        """Open a slot for a sandbox, or change what it may reach: connections that are no longer allowed are cut. Returns the generation, to be written down (0: closed without a slot).

        Raises `Unsupported` where that can't be done.
        """
        if slot is None or self._switch is None:
            if wanted.closed:
                return 0
            raise Unsupported(
                f"this node has no network for sandboxes: {self.reason or 'the sandbox has no device'}", hint="ask for egress none, or run `corral doctor`"
            )
        compiled = await self.check(slot, wanted)
        if compiled.kernel.nat is not Nat.NONE:
            await self.egress.usable()
        before = self._tenants.get(slot)
        earlier = () if before is None else (*before.earlier, before.generation)
        tenancy = Tenancy(sandbox, self._next_generation(), compiled, secrets, earlier=earlier[-EARLIER:])
        tenancy.opened = self._switch.board.policy(slot.interface, tenancy.generation, compiled.kernel)
        ceilings = self._switch.ceilings
        ceilings.hold(wanted.budget)
        try:
            # It hears before the kernel opens anything, so that nothing is ever judged by an old policy. A closed one it hears of so that denials can be told.
            await self.egress.client.set(Tenant(sandbox, slot.address, slot.interface, tenancy.generation, wanted, secrets))
            if before is None:
                changes = [*elements.meters(slot.interface), *elements.limits(slot.interface, wanted.budget)]
            else:
                changes = [*elements.undo(before.opened), *self._other_limits(slot, before.compiled.policy.budget, wanted.budget)]
            self._switch.tables.apply([*changes, *tenancy.opened])
        except BaseException:
            ceilings.release(wanted.budget)
            raise
        if before is not None:
            ceilings.release(before.compiled.policy.budget)
        self._tenants[slot] = tenancy
        for generation in earlier[:-EARLIER]:
            await asyncio.to_thread(self._switch.tables.end_connections, generation)
        return tenancy.generation

    async def check(self, slot: Slot, wanted: EgressPolicy) -> Compiled:
        """Make what a policy needs that is nothing of the table: limits of bandwidth. Raises `Unsupported` for what this machine can't hold."""
        assert self._switch is not None
        compiled = policy.compile(wanted)
        forwards = compiled.kernel.allow or compiled.kernel.mode is not Mode.CLOSED
        if forwards and self._switch.unforwarded is not None:
            raise Unsupported(f"this node forwards nothing: {self._switch.unforwarded}", hint="ask for egress none, or for names on ports 80 and 443 only")
        if slot.shaped or wanted.budget.upload is not None or wanted.budget.download is not None:
            await self._shape(slot, wanted)
        return compiled

    async def close_slot(self, slot: Slot) -> None:
        """Nothing passes any more, and what was open is forgotten."""
        tenancy = self._tenants.get(slot)
        if tenancy is None or self._switch is None:
            return
        self._tenants[slot] = None
        await self.egress.client.drop(tenancy.generation)
        tables, ceilings, budget = self._switch.tables, self._switch.ceilings, tenancy.compiled.policy.budget

        def close() -> None:
            tables.apply(elements.undo([*tenancy.opened, *elements.meters(slot.interface), *elements.limits(slot.interface, budget)]))
            for generation in (*tenancy.earlier, tenancy.generation):
                tables.end_connections(generation)
            for left in elements.left_behind(slot.interface, budget):
                try:
                    tables.apply([left])
                except OSError as error:
                    if not is_missing(error):
                        raise
            ceilings.release(budget)

        await asyncio.to_thread(close)
        if slot.shaped:
            await self._shape(slot, EgressPolicy())

    def traffic(self, slot: Slot) -> tuple[int, int]:
        """Bytes sent and received by its sandbox so far, headers included; what was denied is not counted."""
        if self._switch is None:
            return 0, 0
        sent, received = (
            sum(nfnetlink.counted(state) for element, state in self._switch.tables.elements(name) if elements.interface_of(element.key) == slot.interface)
            for name in (elements.SENT, elements.RECEIVED)
        )
        return sent, received

    async def told(self) -> None:
        """Until the flows of all that is over by now have been told. Without the egress process they are when it is there again: nobody waits for that."""
        await self._gone()
        if self.egress.client.connected:
            with contextlib.suppress(Unavailable):
                await self.egress.client.settled()

    # Finding again

    def adopt(self, index: int, namespace: int) -> Slot | None:
        """The slot of a member that lives on from an earlier server."""
        if self._switch is None:
            return None
        slot = self._switch.slots.adopt(index, namespace)
        self._tenants[slot] = None
        return slot

    def readmit(self, slot: Slot, sandbox: str, wanted: EgressPolicy, generation: int) -> None:
        """What an earlier server admitted, and is in force."""
        if self._switch is None:
            raise InternalError("the network is not open")
        compiled = policy.compile(wanted)
        self._tenants[slot] = Tenancy(sandbox, generation, compiled, {}, self._switch.board.policy(slot.interface, generation, compiled.kernel))

    async def sweep(self) -> None:
        """After the last `readmit`: remove slots and elements that are nobody's, add what is missing, and see to the egress process."""
        if self._switch is not None:
            await asyncio.to_thread(self._sweep, self._switch)
            self.egress.open(self._switch.namespace, [tenancy.generation for tenancy in self._tenants.values() if tenancy is not None])

    def _sweep(self, switch: Switch) -> None:
        if gone := switch.slots.sweep():
            log.info("removed network devices that belonged to nobody", count=gone)
        wanted: dict[str, dict[tuple[bytes, bytes | None], Element]] = {name: {} for name in (SLOT, *OF_POLICY, *OF_SANDBOX)}
        for slot, tenancy in self._tenants.items():
            changes = elements.birth(slot.interface, slot.address)
            if tenancy is not None:
                switch.ceilings.hold(tenancy.compiled.policy.budget)
                changes += [*tenancy.opened, *elements.meters(slot.interface), *elements.limits(slot.interface, tenancy.compiled.policy.budget)]
            for change in changes:
                wanted[change.set].update({(element.key, element.end): element for element in change.elements})
        changes: list[Change] = []
        for name, ours in wanted.items():
            found = {(element.key, element.end) for element, _ in switch.tables.elements(name)}
            surplus = [Element(*key) for key in found - ours.keys() if not switch.board.is_canary(key[0])]
            changes += [Change(name, surplus, add=False), Change(name, [ours[key] for key in ours.keys() - found])]
        switch.tables.apply(changes)
        switch.ceilings.sweep()
        interfaces = {slot.interface for slot in self._tenants}
        for name in (*OF_PACKETS, *switch.ceilings.names()):
            left = [Element(element.key) for element, _ in switch.tables.elements(name) if elements.interface_of(element.key) not in interfaces]
            switch.tables.apply([Change(name, left, add=False)])
        self._find_earlier(switch)

    def _find_earlier(self, switch: Switch) -> None:
        """Connections of former policies, of which an earlier server knew: they end with the tenancy, and those of nobody now."""
        tenancies = {slot.address: tenancy for slot, tenancy in self._tenants.items()}
        earlier: dict[str, set[int]] = {}
        for source, mark in switch.tables.marks():
            tenancy = tenancies.get(source)
            if mark and source in tenancies and (tenancy is None or mark < tenancy.generation):
                earlier.setdefault(source, set()).add(mark)
        for source, marks in earlier.items():
            tenancy = tenancies[source]
            kept = () if tenancy is None else tuple(sorted(marks))[-EARLIER:]
            for mark in marks.difference(kept):
                switch.tables.end_connections(mark)
            if tenancy is not None:
                tenancy.earlier = kept

    # Parts

    @property
    def _path(self) -> Path:
        return self._places.switch

    def _open(self) -> Switch:
        tag = self._places.tag
        with contextlib.ExitStack() as undo:
            namespace = Namespace.find(self._path)
            if namespace is None:
                unmount(self._path)
                namespace, _ = Namespace.make(_configure)
                undo.callback(namespace.close)
                undo.callback(unmount, self._path)
                namespace.mount(self._path)
            else:
                undo.callback(namespace.close)
                namespace.run(_configure)
            links = Netlink(namespace.run(rtnetlink.open_socket))
            undo.callback(links.close)
            if GATEWAY not in rtnetlink.addresses(links):
                links.request([rtnetlink.up(_LOOPBACK), rtnetlink.address(_LOOPBACK, GATEWAY), rtnetlink.address(_LOOPBACK, SERVICE)])
            tables = Tables(namespace.run(nfnetlink.open_socket), tag)
            undo.callback(tables.close)
            nft.ready(namespace, tables)
            ceilings = Ceilings(tables)
            ceilings.hold(Budget())
            unforwarded = Uplink(tag).lay(namespace, links)
            switch = Switch(namespace, links, tables, Switchboard.of(tables), Slots(namespace, links), ceilings, unforwarded)
            undo.pop_all()
        return switch

    def _remove(self) -> None:
        Uplink(self._places.tag).remove()
        unmount(self._path)
        self._generations.unlink(missing_ok=True)

    def _other_limits(self, slot: Slot, before: Budget, after: Budget) -> list[Change]:
        """A limit that is as it was keeps its state; bytes that were used stay used."""
        if (before.connections, before.bytes) == (after.connections, after.bytes):
            return []
        used = sum(self.traffic(slot))
        return [*elements.undo(elements.limits(slot.interface, before)), *elements.limits(slot.interface, after, used=used)]

    async def _shape(self, slot: Slot, wanted: EgressPolicy) -> None:
        assert self._switch is not None
        try:
            await asyncio.to_thread(self._switch.slots.shape, slot, upload=wanted.budget.upload, download=wanted.budget.download)
        except OSError as error:
            raise Unsupported(
                f"this node can't limit bandwidth: {error.strerror}", hint="run `modprobe sch_tbf` on it, or give no upload and download limits"
            ) from error

    def _next_generation(self) -> int:
        """Marks of connections are numbers of 32 bits, of which 0 and 1 are nobody's."""
        if self._generation == self._reserved:
            with contextlib.suppress(FileNotFoundError):
                self._generation = int(self._generations.read_text())
            self._generation %= ROUND
            self._reserved = self._generation + GENERATIONS
            self._generations.write_text(str(self._reserved))
        self._generation += 1
        return self._generation

    @property
    def _generations(self) -> Path:
        """A file that says which generations may have been given."""
        return self._places.run / "generation"

    def _host_changed(self, gone: frozenset[str], new: frozenset[str]) -> None:
        if self._switch is not None:
            self._switch.tables.apply([elements.host(gone, add=False), elements.host(new)])


def _configure() -> None:
    for name, value in _PARAMETERS.items():
        sysctl(name, value)
