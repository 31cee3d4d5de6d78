"""What `Sandbox.create` takes, as a type, for functions that pass it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final, Literal, TypedDict

from corral.schema.egress import EgressPolicy
from corral.sdk.egress import Egress
from corral.sdk.secret import NamedSecret


class Keep(Enum):
    """The default of what can also be set to None: leave it as it is."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP


class CreateOptions(TypedDict, total=False):
    """See `Sandbox.create` for meanings and defaults."""

    name: str | None
    cpu: float
    memory: int
    disk: int
    pids: int
    timeout: float | None
    idle_timeout: float | None
    on_timeout: Literal["terminate", "stop", "pause"]
    checkpoint_every: int | None
    volumes: Mapping[str, Any] | None
    env: Mapping[str, str] | None
    tags: Mapping[str, str] | None
    user: str | None
    workdir: str | None
    hostname: str | None
    egress: Egress | EgressPolicy | Mapping[str, Any] | str | None
    secrets: Sequence[NamedSecret]
    ports: Sequence[int] | None
    public_ports: Sequence[int] | Literal["all"]
    on_request: Literal["resume", "start"]
    sudo: bool
    freeze: bool
    reserve: bool
    wait: float
