"""Forks of running sandboxes, and what can be asked of them."""

from __future__ import annotations

from pydantic import Field, model_validator

from corral.schema.egress import Egress
from corral.schema.error import ErrorInfo
from corral.schema.model import Answer, Request
from corral.schema.sandbox import Env, Name, Sandbox, Tags
from corral.schema.secret import SecretUse
from corral.schema.volume import VolumeMounts

MOST = 100
"""Forks that can be asked for at once."""


class ForkChild(Request):
    """What one fork has of its own; what is left out is the source's."""

    name: Name | None = None
    env: Env = Field(default_factory=dict, description="over the source's; commands started from now on have it, processes that run keep what they have")
    secrets: list[SecretUse] | None = Field(None, max_length=64, description="in place of the source's; commands started from now on have them")
    tags: Tags | None = None
    egress: Egress | None = Field(None, description="in place of the source's")
    volumes: VolumeMounts = Field(
        default_factory=dict,
        description="by paths at which the source has one: what this fork has there instead, as a copy of that volume, or the same to be read only; the others it shares with the source",
    )


class SandboxFork(Request):
    """POST /v1/sandboxes/{id}/fork: new sandboxes with its disk, memory and processes. Say how many, or what each has of its own."""

    count: int | None = Field(None, ge=1, le=MOST)
    children: list[ForkChild] | None = Field(None, min_length=1, max_length=MOST)

    @model_validator(mode="after")
    def _one_of(self) -> SandboxFork:
        if self.count is not None and self.children is not None:
            raise ValueError("give either count or children")
        return self

    @property
    def wanted(self) -> list[ForkChild]:
        """One for each fork; one if nothing was said."""
        return self.children if self.children is not None else [ForkChild.model_validate({}) for _ in range(self.count or 1)]


class Fork(Answer):
    """One fork: the sandbox, or why there is none."""

    sandbox: Sandbox | None = None
    error: ErrorInfo | None = None


class Forks(Answer):
    """In the order in which they were asked for."""

    forks: list[Fork]
    stopped: float = Field(description="seconds for which the source stood still")
