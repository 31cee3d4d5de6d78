"""What the edge process knows of one sandbox, as the server tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from corral.schema.egress import EgressPolicy

ROUND = 1 << 31
"""Generations begin again after so many."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A sandbox in a slot, under one policy. The values of secrets are in no representation of it."""

    sandbox: str
    address: str
    """Of the slot: what its packets come from."""
    interface: str
    """The slot's end in the switch."""
    generation: int
    """The claim or change of policy that this is; what the kernel marks connections with. Grows, and is used again after a `ROUND` only."""
    policy: EgressPolicy
    secrets: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """Values by name."""
    decided: tuple[tuple[str, int, bool], ...] = ()
    """What was approved (or not) for the sandbox before: name or address, port, whether it may."""

    def message(self) -> dict[str, Any]:
        """For the wire."""
        return {
            "sandbox": self.sandbox,
            "address": self.address,
            "interface": self.interface,
            "generation": self.generation,
            "policy": self.policy.model_dump(mode="json", exclude_defaults=True),
            "secrets": dict(self.secrets),
            "decided": self.decided,
        }

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Tenant:
        return cls(
            sandbox=str(message["sandbox"]),
            address=str(message["address"]),
            interface=str(message["interface"]),
            generation=int(message["generation"]),
            policy=EgressPolicy.model_validate(message["policy"]),
            secrets={str(name): str(value) for name, value in message["secrets"].items()},
            decided=tuple((str(to), int(port), bool(allowed)) for to, port, allowed in message.get("decided", ())),
        )
