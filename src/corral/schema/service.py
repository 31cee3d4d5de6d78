"""Services: programs that are kept running in a sandbox."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from corral.schema.image import Ready
from corral.schema.model import Answer, Request
from corral.schema.process import Arg
from corral.schema.sandbox import Env

NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
ServiceName = Annotated[str, Field(pattern=NAME)]


class Restart(StrEnum):
    """When a service whose process has ended is started again."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


class ServiceState(StrEnum):
    """`idle`: it waits for the first request to its `http_port`; `needs`: for another to be ready; `starting`: its probe does not say yet that it is ready; `waiting`: for its turn to be started again, after it ended or could not be started just now."""

    IDLE = "idle"
    NEEDS = "needs"
    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"
    STOPPED = "stopped"
    ENDED = "ended"
    FAILED = "failed"


class ServiceSet(Request):
    """PUT /v1/sandboxes/{id}/services/{name}. Either `argv`, or `command` for the image's shell. In a sandbox or image the same is the file /etc/corral/services/{name}.json."""

    argv: list[Arg] | None = Field(None, min_length=1, max_length=1024)
    command: Arg | None = Field(None, min_length=1, max_length=65_536)
    env: Env = Field(default_factory=dict)
    cwd: str | None = Field(None, max_length=4096)
    user: str | None = Field(None, max_length=256)
    needs: list[ServiceName] = Field(default_factory=list, max_length=64, description="services that must be ready before")
    ready: Ready | None = Field(
        None, description="without it a service is ready as soon as it runs; when its timeout is over it is stopped and counts as failed"
    )
    restart: Restart = Restart.ALWAYS
    http_port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="it is started by a request to the preview of this port while nothing listens there, and not before; without `ready`, it is ready when it does",
    )
    enabled: bool = Field(True, description="false: it is not started until it is asked to")

    @model_validator(mode="after")
    def _one_of(self) -> ServiceSet:
        if (self.argv is None) == (self.command is None):
            raise ValueError("give either argv or command")
        return self


class Service(Answer):
    """One of a sandbox's. Its output is that of its `process`."""

    name: str
    state: ServiceState
    settings: ServiceSet
    process: str | None = Field(None, description="the newest one it was")
    restarts: int = Field(0, description="since it was started by somebody, or this server was")
    exit_code: int | None = Field(None, description="of the process that ended last")
    detail: str | None = Field(None, description="why it failed")


class ServiceList(Answer):
    """GET /v1/sandboxes/{id}/services."""

    services: list[Service]
