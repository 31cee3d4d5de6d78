"""The edge process: resolver and proxy of an installation's sandboxes, apart from the server so that neither can stall the other, and so that one outlives the other.

`python -I -m corral.net.edge SOCKET KEYS [--listener FD] [--resolver ADDRESS:PORT …]`. What is said over the socket: docs/egress-process.md. In order: the socket listens; a server connects
and hands over sockets of the switch; then sandboxes are served, as the server tells. Until then, and for every sandbox it was not told of, nothing passes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corral.errors import CorralError
from corral.net.asking import Asking
from corral.net.authority import Authority
from corral.net.edge_link import Link
from corral.net.egress_client import VERSION
from corral.net.flow_log import FlowLog
from corral.net.kernel_events import KernelEvents
from corral.net.occupant import KEPT, Occupant
from corral.net.proxy import Proxy
from corral.net.ranges import Protocol
from corral.net.resolver import LIFE, Resolver
from corral.net.tenant import Tenant
from corral.net.upstream import Server, Upstream, servers_of_machine
from corral.net.visit import Services

if TYPE_CHECKING:
    from corral.net.pins import Pins

DESCRIPTORS = 1 << 20


class Edge:
    """The process's state, and what the server may ask of it."""

    def __init__(self, keys: Path, servers: Callable[[], list[Server]]) -> None:
        self._server: Link | None = None
        self._occupants: dict[str, Occupant] = {}
        """By the slot's address."""
        self._latest: dict[str, int] = {}
        """The latest generation at each address."""
        self._pins: Pins | None = None
        self.stopped = asyncio.Event()
        self._log = FlowLog(self._send_flows)
        self._asking = Asking(self._send_approval)
        services = Services(Upstream(servers), Authority(keys), self._asking, self._log)
        self._resolver = Resolver(occupant_at=self.occupant_at, upstream=services.upstream, pin=self._pin, log=self._log)
        self._proxy = Proxy(services, self.occupant_at)
        self._kernel = KernelEvents(self.occupant_at, self._log)

    def occupant_at(self, address: str, mark: int | None) -> Occupant | None:
        """Who has sent what has come from an address with this mark (None: it is not known); None when it was a sandbox that is not there any more. 0 is nobody's mark.

        All that the server has sent is taken in first: it tells before it opens the kernel's part, so nothing of a sandbox is ever judged by an old policy.
        """
        if self._server is not None:
            self._server.poll()
        occupant = self._occupants.get(address)
        return occupant if occupant is not None and (mark is None or occupant.owns(mark)) else None

    def _pin(self, generation: int, ports: Sequence[tuple[Protocol, int, int]], addresses: Sequence[str], seconds: float) -> None:
        if self._pins is None:
            return
        try:
            self._pins.open(generation, ports, addresses, seconds)
        except OSError as error:
            # Fail closed: without its pin the kernel refuses the connection.
            complain("pins could not be set", error)

    # The server

    def accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        peer = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if peer[1] not in (0, os.geteuid()):
            connection.close()
            return
        if self._server is not None:
            # The newest server is the one that lives.
            self._server.close()
        self._server = Link(connection, self._message, self._lost)
        generations = [occupant.tenant.generation for occupant in self._occupants.values()]
        self._server.send({"edge": VERSION, "pid": os.getpid(), "sockets": self._pins is not None, "generations": generations})
        for approval in self._asking.waiting:
            self._server.send({"approval": approval})
        self._log.resume()

    def _lost(self) -> None:
        self._server = None

    def _send(self, message: dict[str, Any]) -> bool:
        if self._server is None or not self._server.open:
            return False
        try:
            self._server.send(message)
        except ConnectionResetError:
            return False
        return True

    def _send_flows(self, batch: int, flows: list[dict[str, Any]]) -> bool:
        return self._send({"batch": batch, "flows": flows})

    def _send_approval(self, approval: dict[str, Any]) -> None:
        self._send({"approval": approval})

    def _message(self, message: dict[str, Any], fds: list[int]) -> None:
        match message["op"]:
            case "sockets":
                self._take_over(dict(zip(message["names"], fds, strict=True)), str(message["table"]), int(message["log_group"]))
                return
            case "set":
                address, generation = str(message["address"]), int(message["generation"])
                before, self._latest[address] = self._latest.get(address, 0), generation
                try:
                    self._set(Tenant.of(message), before)
                except (ValueError, TypeError, KeyError, CorralError) as error:
                    # A policy that is not understood lets nothing through.
                    complain("a policy was not understood", error)
                    self._drop(lambda occupant: occupant.tenant.address == address)
            case "drop":
                self._drop(lambda occupant: occupant.tenant.generation == message["generation"])
            case "retain":
                kept = set(message["generations"])
                self._drop(lambda occupant: occupant.tenant.generation not in kept)
            case "settled":
                self._kernel.gather()
                self._log.flush()
            case "seen":
                self._log.seen(int(message["batch"]))
            case _:
                pass
        for fd in fds:
            os.close(fd)
        if "n" in message:
            self._send({"n": message["n"], **self._answer(message)})
        if message["op"] == "stop":
            self.stopped.set()

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        match message["op"]:
            case "decide":
                # What was decided, or null.
                return {"found": self._asking.decide(str(message["id"]), allow=message["decision"] == "allow", scope=str(message["scope"]))}
            case "approvals":
                return {"approvals": self._asking.waiting}
            case "totals":
                found = [occupant for occupant in self._occupants.values() if occupant.sandbox == message["sandbox"]]
                return {"sent": sum(occupant.sent for occupant in found), "received": sum(occupant.received for occupant in found)}
            case _:
                return {}

    def _set(self, tenant: Tenant, before: int) -> None:
        self._kernel.watch(anybody=True)
        occupant = self._occupants.get(tenant.address)
        if occupant is None or occupant.sandbox != tenant.sandbox:
            if occupant is not None:
                self._leave(occupant)
            self._occupants[tenant.address] = Occupant(tenant, after=before)
            return
        fresh = tenant.generation != occupant.tenant.generation
        occupant.change(tenant)
        self._asking.reconsider(occupant)
        if fresh:
            # The kernel's pins were of the generation before: names that the sandbox has resolved already go on being reachable.
            for name, addresses in occupant.pinned().items():
                if ports := occupant.compiled.pins(name):
                    self._pin(tenant.generation, ports, addresses, LIFE + KEPT)

    def _drop(self, gone: Callable[[Occupant], bool]) -> None:
        self._kernel.take_endings()
        for address, occupant in list(self._occupants.items()):
            if gone(occupant):
                del self._occupants[address]
                self._leave(occupant)
        self._kernel.watch(anybody=bool(self._occupants))

    def _leave(self, occupant: Occupant) -> None:
        self._asking.forget(occupant)
        occupant.leave()
        if self._pins is not None:
            try:
                self._pins.close(occupant.generations)
            except OSError as error:
                # They end by themselves, and nobody has their generation any more.
                complain("pins could not be taken back", error)

    def _take_over(self, fds: dict[str, int], table: str, log_group: int) -> None:
        """Sockets made inside the switch, ours from now on."""
        from corral.net.nfnetlink import Tables
        from corral.net.pins import Pins

        given = {name: socket.socket(fileno=fd) for name, fd in fds.items()}
        tables = Tables(given["nft"], table)
        self._pins = Pins(tables)
        self._resolver.listen(given["dns"], given["dns_stream"])
        self._proxy.listen(given["proxy"])
        if "conntrack" in given and "nflog" in given:
            self._kernel.listen(given["conntrack"], given["nflog"], log_group, tables)


def complain(what: str, error: BaseException | None) -> None:
    """One line to the log. Never the traceback's values: they may hold secrets."""
    where = ""
    if error is not None and (trace := error.__traceback__) is not None:
        while trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
    text = str(error) if isinstance(error, OSError) else ""
    sys.stderr.write(json.dumps({"event": what, "error": type(error).__name__, "text": text, "at": where}) + "\n")
    sys.stderr.flush()


def _failed(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    complain(str(context["message"]), context.get("exception"))


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old)
    listener.listen(8)
    return listener


async def serve(path: Path, keys: Path, servers: Callable[[], list[Server]], listener: socket.socket | None = None) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_failed)
    edge = Edge(keys, servers)
    listener = listener or _listen(path)
    listener.settimeout(0)
    loop.add_reader(listener, edge.accept, listener)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, edge.stopped.set)
    await edge.stopped.wait()
    path.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="corral.net.edge")
    parser.add_argument("socket", type=Path)
    parser.add_argument("keys", type=Path)
    parser.add_argument("--resolver", action="append", default=[], help="ADDRESS:PORT, instead of the machine's own")
    parser.add_argument("--listener", type=int, help="descriptor that listens at SOCKET already, so that whoever started this need not ask when it does")
    given = parser.parse_args()
    fixed = [(address, int(port or 53)) for address, _, port in (text.partition(":") for text in given.resolver)]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, DESCRIPTORS) if hard != resource.RLIM_INFINITY else DESCRIPTORS, hard))
    listener = None if given.listener is None else socket.socket(fileno=given.listener)
    # Nothing that was imported is garbage ever.
    gc.freeze()
    asyncio.run(serve(given.socket, given.keys, (lambda: fixed) if fixed else servers_of_machine, listener))


if __name__ == "__main__":
    main()
