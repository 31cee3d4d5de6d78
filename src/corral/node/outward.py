"""What sandboxes reached, were denied and wait for, as the egress process tells it: kept for those who ask, told as events."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from corral.net import learn
from corral.node.flows import FlowBook
from corral.node.notice import Notice
from corral.schema.egress import Approval, EgressPolicy, Flow, Flows, Verdict

FED = 1000
"""Flows that wait for one who follows; of more, it reads in the log."""

OnEvent = Callable[[str, str, Mapping[str, Any]], None]
"""Told the sandbox's id, the kind of event and what is known of it."""


class Feed:
    """What one who follows has not taken yet."""

    def __init__(self) -> None:
        self._flows: deque[Flow] = deque()
        self._behind = True
        self.ended = False
        self.news = Notice()

    def put(self, flows: Sequence[Flow]) -> None:
        self._flows.extend(flows)
        if len(self._flows) > FED:
            self._flows.clear()
            self._behind = True
        self.news.set()

    def take(self) -> list[Flow] | None:
        """Those that came; None: read them in the log, from where you are (and take what comes after that the next time)."""
        if self._behind:
            self._behind = False
            self._flows.clear()
            return None
        taken = list(self._flows)
        self._flows.clear()
        return taken


class Outward:
    """Of all sandboxes of a node. `alive` tells whether there is such a sandbox: of one that has been removed nothing is written any more. `on_denied` is told of every denial."""

    def __init__(self, spool: Path, *, alive: Callable[[str], bool], on_event: OnEvent, on_denied: Callable[[Flow], None]) -> None:
        self._spool = spool
        self._alive = alive
        self._on_event = on_event
        self._on_denied = on_denied
        self._feeds: dict[str, set[Feed]] = {}
        self._books: dict[str, FlowBook] = {}
        self._approvals: dict[str, Approval] = {}

    def on_flows(self, flows: list[Flow]) -> None:
        by_sandbox: dict[str, list[Flow]] = {}
        for flow in flows:
            by_sandbox.setdefault(flow.sandbox, []).append(flow)
        for id, some in by_sandbox.items():
            if not self._alive(id):
                continue
            numbered = self._book(id).append(some)
            for feed in self._feeds.get(id, ()):
                feed.put(numbered)
            for flow in numbered:
                if flow.verdict is Verdict.DENIED:
                    self._on_denied(flow)
                    self._on_event(id, "egress.denied", flow.model_dump(mode="json", exclude={"sandbox"}, exclude_defaults=True))

    def on_approval(self, approval: Approval) -> None:
        if approval.decision is None:
            self._approvals[approval.id] = approval
        else:
            self._approvals.pop(approval.id, None)
        self._on_event(approval.sandbox, "egress.approval", approval.model_dump(mode="json", exclude={"sandbox"}, exclude_none=True))

    def flows(self, id: str, *, after: int, limit: int, denied: bool) -> Flows:
        return self._book(id).page(after=after, limit=limit, denied=denied)

    @contextmanager
    def following(self, id: str) -> Generator[Feed]:
        """From now on, what happens to one sandbox."""
        feed = Feed()
        self._feeds.setdefault(id, set()).add(feed)
        try:
            yield feed
        finally:
            self._feeds[id].discard(feed)
            if not self._feeds[id]:
                del self._feeds[id]

    def proposal(self, id: str, policy: EgressPolicy) -> EgressPolicy:
        """The smallest policy that would have allowed what was used."""
        return learn.propose(policy, self._book(id).all())

    def approvals(self) -> list[Approval]:
        """Those that wait."""
        return list(self._approvals.values())

    def forget(self, id: str) -> None:
        """It has been removed, and its spool with it."""
        self._books.pop(id, None)
        for feed in self._feeds.get(id, ()):
            feed.ended = True
            feed.news.set()

    def _book(self, id: str) -> FlowBook:
        if id not in self._books:
            self._books[id] = FlowBook(self._spool / id)
        return self._books[id]
