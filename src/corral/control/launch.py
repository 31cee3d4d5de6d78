"""What the node is told to start a sandbox, with the secrets for it. Lives as long as the start takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from corral.control.ports import Node
from corral.node.interface import BoxSpec, Timing


@dataclass(frozen=True)
class Launch:
    """`secrets`: values by name, for the proxy."""

    node: Node
    spec: BoxSpec
    secrets: Mapping[str, str] = field(repr=False)

    async def create(self) -> Timing:
        return await self.node.create(self.spec, secrets=self.secrets)

    async def resume(self) -> Timing:
        return await self.node.resume(self.spec, secrets=self.secrets)

    async def start(self) -> Timing:
        return await self.node.start(self.spec, secrets=self.secrets)
