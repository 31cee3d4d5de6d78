"""What the node is told to start a sandbox, with the secrets for it. Lives as long as the start takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from corral.control.ports import Network, Node
from corral.errors import Unsupported
from corral.node.interface import BoxSpec, Timing


@dataclass(frozen=True)
class Launch:
    """`secrets`: values by name, for the proxy."""

    node: Node
    spec: BoxSpec
    secrets: Mapping[str, str] = field(repr=False)

    async def create(self) -> Timing:
        if self.spec.egress.closed:
            return await self.node.create(self.spec)
        return await networked(self.node).create(self.spec, secrets=self.secrets)

    async def start(self) -> Timing:
        if self.spec.egress.closed:
            return await self.node.start(self.spec)
        return await networked(self.node).start(self.spec, secrets=self.secrets)


def networked(node: Node) -> Network:
    """Raises `Unsupported` for a node that has no network for sandboxes."""
    if not isinstance(node, Network):
        raise Unsupported("sandboxes of this version have no network", hint='leave egress out, or say "none"')
    return node
