"""A sandbox as the API shows it, and what can be asked of it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from corral.schema.egress import Egress, EgressPolicy
from corral.schema.model import Answer, Request
from corral.schema.preview import PortNumber, PublicPorts
from corral.schema.secret import SecretUse
from corral.schema.volume import VolumeMount, VolumeMounts

Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
Tags = Annotated[dict[Annotated[str, Field(min_length=1, max_length=128)], Annotated[str, Field(max_length=256)]], Field(max_length=64)]
Env = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^=\x00]+$")], Annotated[str, Field(max_length=131_072, pattern=r"^[^\x00]*$")]],
    Field(max_length=1024),
]


class State(StrEnum):
    """Where a sandbox is in its life. `control/lifecycle.py` holds the table of transitions."""

    CREATING = "creating"
    RUNNING = "running"
    FROZEN = "frozen"
    PAUSED = "paused"
    STOPPED = "stopped"
    TERMINATED = "terminated"
    FAILED = "failed"


class Reason(StrEnum):
    """Why a sandbox left a state."""

    REQUESTED = "requested"
    FINISHED = "finished"
    TIMEOUT = "timeout"
    IDLE = "idle"
    OOM = "oom"
    PIDS = "pids"
    DISK = "disk"
    KILLED = "killed"
    CRASHED = "crashed"
    AGENT_DIED = "agent_died"
    AGENT_GARBAGE = "agent_garbage"
    NODE_LOST = "node_lost"
    IMAGE_ERROR = "image_error"
    ENGINE_ERROR = "engine_error"


class SandboxCreate(Request):
    """POST /v1/sandboxes. Everything has a default."""

    image: str = Field("base", min_length=1, max_length=512, description="name or id of an image on the node")
    name: Name | None = Field(None, description="unique among the project's living sandboxes")
    cpu: float = Field(1.0, gt=0, le=256, allow_inf_nan=False, description="cores; a fraction is a share of one")
    memory: int = Field(512, ge=64, le=1_048_576, description="MiB")
    disk: int = Field(4096, ge=64, le=4_194_304, description="MiB the sandbox may write")
    pids: int = Field(1024, ge=16, le=65_536, description="processes at once")
    timeout: float | None = Field(3600, gt=0, le=31_536_000, allow_inf_nan=False, description="seconds until `on_timeout`; null: never")
    idle_timeout: float | None = Field(None, gt=0, le=31_536_000, allow_inf_nan=False, description="seconds without activity until `on_timeout`")
    on_timeout: Literal["terminate", "stop", "pause"] = Field(
        "terminate", description="what happens then; `pause` keeps processes and memory, and the next use resumes it"
    )
    checkpoint_every: int | None = Field(None, ge=1, le=1_000_000, description="take a checkpoint by itself whenever so many more processes have ended")
    env: Env = Field(default_factory=dict)
    volumes: VolumeMounts = Field(default_factory=dict, description="by the path at which each appears")
    tags: Tags = Field(default_factory=dict)
    user: str | None = Field(None, max_length=256, description="default user of commands; null: the image's")
    workdir: str | None = Field(None, max_length=4095, pattern=r"^/[^\x00]*$", description="default directory of commands, absolute; null: the image's")
    hostname: Name | None = None
    egress: Egress | None = Field(None, description="a policy, or the name of a preset; null: `public` where sandboxes have a network, else `none`")
    secrets: list[SecretUse] = Field(default_factory=list[SecretUse], max_length=64, description="those that become plain environment variables inside")
    sudo: bool = Field(True, description="the image's user may become root inside the sandbox")
    ports: list[PortNumber] | None = Field(None, max_length=64, description="the only ports that previews and tunnels lead to, whoever asks; null: any")
    public_ports: PublicPorts = Field(default_factory=list[int], description="ports that anybody may reach who has their URL, or `all`")
    on_request: Literal["resume", "start"] = Field(
        "resume",
        description="what a request to a preview, by one who may see it, does while it does not run: `resume` it when it is paused; `start` it when it is stopped, too",
    )
    freeze: bool = Field(
        True,
        description="while nobody uses it, it may take no processor time; false: timers inside are never late, and an idle one costs some percent of a core with gVisor 20240729",
    )
    reserve: bool = Field(
        False,
        description="no sandbox is started on memory that this one has not used yet, up to its limit; else it takes what it uses, as long as there is some",
    )
    wait: float = Field(0, ge=0, le=600, description="seconds to wait for room when the node is full")

    @model_validator(mode="after")
    def _variables_once(self) -> SandboxCreate:
        names = [use.variable for use in self.secrets]
        for name in names:
            if name in self.env or names.count(name) > 1:
                raise ValueError(f"secrets: the variable {name} is given twice")
        return self

    @model_validator(mode="after")
    def _public_are_shown(self) -> SandboxCreate:
        if self.ports is not None and self.public_ports != "all" and (more := sorted({*self.public_ports} - {*self.ports})):
            raise ValueError(f"public_ports: {more[0]} is not among ports, so nobody could reach it")
        return self


class SandboxUpdate(Request):
    """PATCH /v1/sandboxes/{id}: only the fields given are changed."""

    name: Name | None = None
    tags: Tags | None = None
    timeout: float | None = Field(None, gt=0, le=31_536_000, allow_inf_nan=False, description="seconds from now")
    idle_timeout: float | None = Field(None, gt=0, le=31_536_000, allow_inf_nan=False)
    on_timeout: Literal["terminate", "stop", "pause"] | None = None
    on_request: Literal["resume", "start"] | None = None


class SandboxExtend(Request):
    """POST /v1/sandboxes/{id}/extend: moves the deadline to at least `seconds` from now."""

    seconds: float = Field(gt=0, le=31_536_000, allow_inf_nan=False)


class SandboxDelete(Request):
    """POST /v1/sandboxes/delete: ends many at once, those named or all with these tags. Answered with a `SandboxPage` of them."""

    sandboxes: list[Annotated[str, Field(min_length=1, max_length=63)]] | None = Field(None, min_length=1, max_length=10_000)
    tags: Tags | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_of(self) -> SandboxDelete:
        if (self.sandboxes is None) == (self.tags is None):
            raise ValueError("give either sandboxes or tags")
        return self


class NodeAccess(Answer):
    """Where to reach the node that runs a sandbox, and the token for it. On one machine the server itself (`url` is null: the URL already in use)."""

    url: str | None = None
    token: str | None = None


class Sandbox(Answer):
    """One sandbox."""

    id: str
    name: str | None
    project: str
    image: str
    state: State
    frozen: bool = Field(False, description="it is running and nobody uses it, so that it takes no processor time; any use wakes it in about a millisecond")
    freeze: bool = True
    reserve: bool = False
    reason: Reason | None = Field(None, description="why it left the running state")
    detail: str | None = Field(None, description="one sentence more on the reason")
    ended_by: str | None = Field(None, description="who asked: a key's id, `timeout`, `idle`, `guest` or `node`")
    cpu: float
    memory: int
    disk: int
    pids: int
    env: dict[str, str]
    tags: dict[str, str]
    user: str | None
    workdir: str | None
    timeout: float | None
    idle_timeout: float | None
    on_timeout: Literal["terminate", "stop", "pause"]
    forked_from: str | None = Field(None, description="the sandbox that it is a fork of")
    checkpoint_every: int | None = None
    volumes: dict[str, VolumeMount] = Field(default_factory=dict[str, VolumeMount])
    created_at: datetime
    started_at: datetime | None = None
    deadline: datetime | None = None
    ended_at: datetime | None = None
    timing: dict[str, float] | None = Field(
        None,
        description="seconds of each phase of its start (queue, claim, rootfs, start, ready, total; `cold` is 1 without a warm pool member), of its resume (with restore), or of its pause (quiet, save, sync, end, total)",
    )
    node: NodeAccess | None = None
    egress: EgressPolicy = Field(default_factory=EgressPolicy)
    secrets: list[SecretUse] = Field(default_factory=list[SecretUse], description="those that are environment variables inside; never their values")
    ports: list[int] | None = Field(None, description="the only ports that previews and tunnels lead to; null: any")
    public_ports: PublicPorts = Field(default_factory=list[int], description="ports whose previews need no key")
    on_request: Literal["resume", "start"] = Field("resume", description="whether a request to a preview starts it when it is stopped")
    held_until: datetime | None = Field(None, description="the last hold keeps it awake until then")


class SandboxPage(Answer):
    """GET /v1/sandboxes, newest first."""

    sandboxes: list[Sandbox]
    next: str | None = Field(None, description="`cursor` of the next page")
