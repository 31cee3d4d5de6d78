"""What sandboxes reached, were denied and wait for, as the egress process tells it: kept for those who ask, told as events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from corral.net import learn
from corral.node.flows import FlowBook
from corral.schema.egress import Approval, EgressPolicy, Flow, Flows, Verdict

OnEvent = Callable[[str, str, Mapping[str, Any]], None]
"""Told the sandbox's id, the kind of event and what is known of it."""


class Outward:
    """Of all sandboxes of a node. `alive` tells whether there is such a sandbox: of one that has been removed nothing is written any more."""

    def __init__(self, spool: Path, *, alive: Callable[[str], bool], on_event: OnEvent) -> None:
        self._spool = spool
        self._alive = alive
        self._on_event = on_event
        self._books: dict[str, FlowBook] = {}
        self._approvals: dict[str, Approval] = {}

    def on_flows(self, flows: list[Flow]) -> None:
        by_sandbox: dict[str, list[Flow]] = {}
        for flow in flows:
            by_sandbox.setdefault(flow.sandbox, []).append(flow)
        for id, some in by_sandbox.items():
            if not self._alive(id):
                continue
            for flow in self._book(id).append(some):
                if flow.verdict is Verdict.DENIED:
                    self._on_event(id, "egress.denied", flow.model_dump(mode="json", exclude={"sandbox"}, exclude_defaults=True))

    def on_approval(self, approval: Approval) -> None:
        if approval.decision is None:
            self._approvals[approval.id] = approval
        else:
            self._approvals.pop(approval.id, None)
        self._on_event(approval.sandbox, "egress.approval", approval.model_dump(mode="json", exclude={"sandbox"}, exclude_none=True))

    def flows(self, id: str, *, after: int, limit: int, denied: bool) -> Flows:
        return self._book(id).page(after=after, limit=limit, denied=denied)

    def proposal(self, id: str, policy: EgressPolicy) -> EgressPolicy:
        """The smallest policy that would have allowed what was used."""
        return learn.propose(policy, self._book(id).all())

    def approvals(self) -> list[Approval]:
        """Those that wait."""
        return list(self._approvals.values())

    def forget(self, id: str) -> None:
        """It has been removed, and its spool with it."""
        self._books.pop(id, None)

    def _book(self, id: str) -> FlowBook:
        if id not in self._books:
            self._books[id] = FlowBook(self._spool / id)
        return self._books[id]
