"""Who answers a request: which sandbox's port, or Corral itself. A table, read for each request; docs/previews.md describes it. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from corral.preview.head import BadHead, Request

PATH_PREFIX = b"/v1/sandboxes/"
TUNNELS = b"tunnels"
_LABEL = re.compile(rb"([1-9][0-9]{0,4})-([a-z0-9](?:[a-z0-9-]*[a-z0-9])?)\Z")
_ID = re.compile(rb"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\Z")
_HOST = re.compile(rb"([a-z0-9.\-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?\Z")
_EXPOSED = re.compile(rb"/v1/sandboxes/([a-z0-9-]{1,63})/exposed/([0-9]{1,5})/([a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?)(?:/([1-9][0-9]{0,9}))?\Z")
_BY_PATH = re.compile(rb"/v1/sandboxes/([a-z0-9-]{1,63})/(ports|tunnels)/([0-9]{1,5})(?=/|\Z)")


@dataclass(frozen=True)
class Door:
    """What Corral answers itself: names below the domain, or ports of any sandbox. Such requests go to the server unchanged but for the headers `Corral-Door`,
    `Corral-Sandbox` and `Corral-Port`; who they are from is for it to find out."""

    name: str
    hosts: frozenset[str] = frozenset()
    """Labels below the domain; the empty one is the domain itself."""
    ports: frozenset[int] = frozenset()
    """Ports of every sandbox."""
    sandbox_header: str | None = None
    port_header: str | None = None
    """Headers by which its clients name a sandbox and a port, besides Corral's own; for ports that are not the door's, too."""
    token_header: str | None = None
    """Header in which its clients give a sandbox's preview token."""


API = Door("api", hosts=frozenset({"", "api"}))
DOORS: tuple[Door, ...] = (API,)
"""The table. A facade adds its own row, and its application by that name to `Application.doors` of the server."""


class By(StrEnum):
    """How a request named its port. Pages of different sandboxes have the same origin when it is by path."""

    HOST = "host"
    HEADER = "header"
    PATH = "path"


@dataclass(frozen=True)
class Target:
    """Where a request goes. `door`: to Corral itself, and about that sandbox's port if one is named. `base`: how much of the path is not the guest's to see."""

    sandbox: str | None
    port: int
    by: By
    door: str | None = None
    base: bytes = b""
    tunnel: bool = False
    name: str | None = None
    """A tunnel the other way round: what the port has as a name inside."""
    connection: int | None = None
    """Of those to that name, the one that is accepted."""


@dataclass(frozen=True)
class Table:
    """`domains`: previews are at `{port}-{sandbox}.{domain}`."""

    domains: tuple[str, ...]
    doors: Sequence[Door] = DOORS

    def find(self, head: Request) -> Target:
        """Raises `BadHead` for a Host or header that names nothing."""
        # The host first: what a page of one sandbox asks its own host for never reaches another.
        if (label := self._label(head)) is not None and (preview := _LABEL.match(label)):
            return self._port(preview[2], preview[1], By.HOST)
        if head.path.startswith(PATH_PREFIX) and (target := self._by_path(head)) is not None:
            return target
        for sandbox, port in (("corral-sandbox", "corral-port"), *((door.sandbox_header, door.port_header) for door in self.doors)):
            if sandbox is not None and port is not None and sandbox.encode() in head.names:
                return self._by_header(head, sandbox.encode(), port.encode())
        return self._door(label, head)

    def token_headers(self) -> tuple[bytes, ...]:
        return (b"corral-token", *(door.token_header.encode() for door in self.doors if door.token_header))

    def own_headers(self) -> frozenset[bytes]:
        """What is said to Corral, and not to a guest."""
        named = [name.encode() for door in self.doors for name in (door.sandbox_header, door.port_header, door.token_header) if name is not None]
        return frozenset({b"corral-sandbox", b"corral-port", b"corral-token", b"corral-key", b"corral-door", b"corral-project", *named})

    def _by_path(self, head: Request) -> Target | None:
        if (outside := _EXPOSED.match(head.path)) is not None:
            target = self._port(outside[1], outside[2], By.PATH, base=outside[0], tunnel=True)
            return replace(target, name=outside[3].decode(), connection=None if outside[4] is None else int(outside[4]))
        found = _BY_PATH.match(head.path)
        if found is None:
            return None
        return self._port(found[1], found[3], By.PATH, base=found[0], tunnel=found[2] == TUNNELS)

    def _by_header(self, head: Request, sandbox: bytes, port: bytes) -> Target:
        given = [*head.names[sandbox], *head.names.get(port, ())]
        if len(given) != 2 or port not in head.names:
            raise BadHead(400, f"the headers {sandbox.decode()} and {port.decode()} are needed, each once")
        return self._port(given[0], given[1], By.HEADER)

    def _label(self, head: Request) -> bytes | None:
        """What stands before the domain in the Host; None when it is another's."""
        found = _HOST.match(head.host.lower())
        if found is None:
            raise BadHead(400, "the Host is malformed")
        name = found[1].removesuffix(b".")
        for domain in self.domains:
            end = domain.encode()
            if name == end or name.endswith(b"." + end):
                return name[: -len(end)].removesuffix(b".")
        return None

    def _door(self, label: bytes | None, head: Request) -> Target:
        if label is not None and (door := next((door for door in self.doors if label.decode() in door.hosts), None)):
            return Target(None, 0, By.HOST, door.name)
        hint = " or ".join(f"{{port}}-{{sandbox}}.{domain}" for domain in self.domains)
        host = head.host.decode("latin-1")
        raise BadHead(404, f"the host {host} is none of this server's: previews are at {hint}", code="not_found")

    def _port(self, sandbox: bytes, port: bytes, by: By, *, base: bytes = b"", tunnel: bool = False) -> Target:
        if _ID.match(sandbox) is None or not port.isdigit() or not 1 <= int(port[:6]) <= 65_535:
            raise BadHead(400, "the sandbox or the port is malformed")
        number = int(port)
        door = None if tunnel else next((door.name for door in self.doors if number in door.ports), None)
        return Target(sandbox.decode(), number, by, door, base, tunnel)


def as_message(doors: Sequence[Door]) -> list[dict[str, Any]]:
    """As the server tells the process."""
    return [{**asdict(door), "hosts": sorted(door.hosts), "ports": sorted(door.ports)} for door in doors]


def from_message(rows: Sequence[dict[str, Any]]) -> tuple[Door, ...]:
    made: list[Door] = []
    for row in rows:
        words = {name: row[name] for name in ("sandbox_header", "port_header", "token_header")}
        made.append(Door(row["name"], frozenset(row["hosts"]), frozenset(row["ports"]), **words))
    return tuple(made)
