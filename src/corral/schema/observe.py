"""What can be seen of a sandbox: events, metrics, logs; and of a server: health and images."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from corral.schema.model import Answer


class Event(Answer):
    """Something that happened. `seq` grows within a server and is the id to resume a stream from."""

    seq: int
    at: datetime
    kind: str = Field(description="sandbox.created, sandbox.running, sandbox.stopped, process.started, process.exited, port.opened, …")
    project: str
    sandbox: str | None = None
    actor: str | None = Field(None, description="a key's id, `timeout`, `idle`, `guest` or `node`")
    data: dict[str, Any] = Field(default_factory=dict)


class Events(Answer):
    events: list[Event]


class Sample(Answer):
    """One reading of a sandbox's use."""

    at: datetime
    cpu_seconds: float = Field(description="used since it started")
    cpu: float = Field(description="cores in use since the reading before")
    memory: float = Field(description="MiB in use, guest and sandbox kernel together")
    memory_limit: int
    disk: float = Field(description="MiB written")
    disk_limit: int
    processes: int


class Metrics(Answer):
    samples: list[Sample] = Field(description="oldest first; the last is taken now")


class Port(Answer):
    """A TCP port that something in a sandbox listens on."""

    port: int
    address: str
    pid: int | None = Field(None, description="inside the sandbox; never an identity")
    process: str | None = Field(None, description="the program's name, as the sandbox says")


class Ports(Answer):
    """GET /v1/sandboxes/{id}/ports."""

    ports: list[Port]


class LogLine(Answer):
    at: datetime
    source: str = Field(description="`engine`, `agent`, or a process id")
    text: str


class Logs(Answer):
    lines: list[LogLine]


class Health(Answer):
    ok: bool
    version: str
    checks: dict[str, str] = Field(default_factory=dict)
