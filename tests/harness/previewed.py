"""A sandbox with a server on a port, and where it is seen from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from harness import web
from harness.api import Api
from harness.web import Answer, wire

PORT = 8000


@dataclass
class Site:
    """A sandbox with a server on a port, and where it is seen."""

    api: Api
    id: str
    edge: int

    @property
    def host(self) -> str:
        return f"{PORT}-{self.id}.corral.localhost:{self.edge}"

    @property
    def path(self) -> str:
        return f"/v1/sandboxes/{self.id}/previews/{PORT}"

    @property
    def key(self) -> str:
        return f"Corral-Key: {self.api.key}"

    def public(self, public: bool) -> None:
        self.api.ok("PUT", self.path, json={"public": public})

    def link(self, **fields: Any) -> str:
        """The path and query of a signed link."""
        parts = urlsplit(self.api.ok("POST", self.path + "/links", status=201, json=fields)["url"])
        return f"{parts.path}?{parts.query}"

    def get(self, target: str = "/", *fields: str, host: str | None = None, method: str = "GET") -> Answer:
        with wire(self.edge) as line:
            return line.ask(method, target, host or self.host, *fields)


def serve(api: Api, **fields: Any) -> Site:
    sandbox = api.create(image="base", **fields)["id"]
    command = ["python3", "-c", web.SERVER, sandbox, str(PORT)]
    process = api.ok("POST", f"/v1/sandboxes/{sandbox}/processes", status=201, json={"argv": command})["id"]
    with api.events("GET", f"/v1/sandboxes/{sandbox}/processes/{process}/output") as events:
        assert next(events)
    edge = urlsplit(api.ok("GET", f"/v1/sandboxes/{sandbox}/previews/{PORT}")["url"]).port
    assert edge is not None
    return Site(api, sandbox, edge)
