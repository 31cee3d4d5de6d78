"""A sandbox as the control plane keeps it: the row of the store, and more than the API shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from corral.node.interface import BoxSpec, ImageSpec, VolumeUse
from corral.schema.egress import EgressPolicy
from corral.schema.sandbox import Reason, Sandbox, State
from corral.schema.secret import SecretUse
from corral.schema.volume import VolumeMount

BUILD = "corral.build"
"""The tag of sandboxes in which an image is built."""


@dataclass(frozen=True)
class Exposure:
    """Who may see the ports of a sandbox. `hosts`: what a port's server is told as Host. `generation` of its preview token, which is derived, not kept.
    `starts`: a request starts it when it is stopped. `only`: no other ports are shown to anybody; None: any may be. `held_until`: it counts as used until then."""

    public: tuple[int, ...] = ()
    every: bool = False
    hosts: Mapping[int, str] = field(default_factory=dict[int, str])
    generation: int = 0
    starts: bool = False
    only: tuple[int, ...] | None = None
    held_until: float | None = None


@dataclass(frozen=True)
class Record:
    """Times are seconds since 1970; memory and disk MiB; cpu cores."""

    id: str
    project: str
    name: str | None
    image: str
    """As it was asked for."""
    image_id: str
    """What that was then; what a later start uses."""
    state: State
    cpu: float
    memory: int
    disk: int
    pids: int
    env: Mapping[str, str]
    """What was asked for, over the image's."""
    tags: Mapping[str, str]
    user: str | None
    workdir: str | None
    hostname: str
    sudo: bool
    timeout: float | None
    idle_timeout: float | None
    on_timeout: Literal["terminate", "stop", "pause"]
    created_at: float
    created_by: str
    forked_from: str | None = None
    """The sandbox that it is a fork of."""
    checkpoint_every: int | None = None
    """A checkpoint after so many processes have ended."""
    reason: Reason | None = None
    detail: str | None = None
    ended_by: str | None = None
    started_at: float | None = None
    deadline: float | None = None
    ended_at: float | None = None
    timing: Mapping[str, float] | None = field(default=None)
    removed: bool = False
    """Of an ended one: the node has nothing of it any more."""
    egress: EgressPolicy = field(default_factory=EgressPolicy)
    previews: Exposure = field(default_factory=Exposure)
    volumes: tuple[VolumeUse, ...] = ()
    secrets: tuple[SecretUse, ...] = ()
    """Those that are variables inside: which, not what they hold."""
    freeze: bool = True
    """It may be frozen while nobody uses it."""
    reserve: bool = False
    """All its memory is kept for it while it runs."""
    facade: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What a client of another protocol asked for and Corral's own API has no word for, by that protocol's name. JSON."""

    @property
    def reserves(self) -> int:
        """MiB that must be free for it to start."""
        return self.memory if self.reserve else 0

    def spec(self, image: ImageSpec, policy: EgressPolicy, exposed: Mapping[str, str]) -> BoxSpec:
        """What the node needs to start it. `policy`: its own with what was decided for the project; `exposed`: variables that hold secrets."""
        return BoxSpec(
            id=self.id,
            image=image,
            cpu=self.cpu,
            memory=self.memory,
            disk=self.disk,
            pids=self.pids,
            env={**image.env, **self.env},
            user=self.user,
            workdir=self.workdir,
            hostname=self.hostname,
            sudo=self.sudo,
            volumes=self.volumes,
            egress=policy,
            exposed=exposed,
            tmp_on_disk=BUILD in self.tags,
            freeze=self.freeze,
        )

    def show(self, *, frozen: bool = False) -> Sandbox:
        """As the API shows it. Whether it is frozen just now is known to the node alone."""
        return Sandbox(
            id=self.id,
            name=self.name,
            project=self.project,
            image=self.image,
            state=self.state,
            frozen=frozen,
            freeze=self.freeze,
            reserve=self.reserve,
            reason=self.reason,
            detail=self.detail,
            ended_by=self.ended_by,
            cpu=self.cpu,
            memory=self.memory,
            disk=self.disk,
            pids=self.pids,
            env=dict(self.env),
            tags=dict(self.tags),
            user=self.user,
            workdir=self.workdir,
            timeout=self.timeout,
            idle_timeout=self.idle_timeout,
            on_timeout=self.on_timeout,
            forked_from=self.forked_from,
            checkpoint_every=self.checkpoint_every,
            volumes={use.path: VolumeMount(volume=use.id, read_only=use.read_only, sub_path=use.sub_path) for use in self.volumes},
            created_at=moment(self.created_at),
            started_at=_moment(self.started_at),
            deadline=_moment(self.deadline),
            ended_at=_moment(self.ended_at),
            timing=None if self.timing is None else dict(self.timing),
            egress=self.egress,
            secrets=list(self.secrets),
            on_request="start" if self.previews.starts else "resume",
            ports=None if self.previews.only is None else list(self.previews.only),
            public_ports="all" if self.previews.every else list(self.previews.public),
            held_until=_moment(self.previews.held_until),
        )


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else moment(seconds)
