# Generated from sdk/_async/egress.py by scripts/async_to_sync.py: edit that, not this.
"""What one sandbox may reach and did reach, and connections that wait for a decision."""

from __future__ import annotations

import builtins
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import Any, Literal

from corral.errors import NotFound, SandboxEnded
from corral.schema.egress import Approval, Approvals, Decision, EgressPolicy, EgressView, Flow, Flows, KeptRule, KeptRules
from corral.schema.webhook import Webhook, WebhookSet
from corral.sdk import faults
from corral.sdk._sync import stream
from corral.sdk._sync.transport import Transport
from corral.sdk.egress import Egress, policy

Scope = Literal["once", "sandbox", "always"]


class SandboxEgress:
    """`sandbox.egress`."""

    def __init__(self, transport: Transport, path: str, sandbox: str) -> None:
        self._transport = transport
        self._path = path + "/egress"
        self._sandbox = sandbox

    def get(self) -> Egress:
        """Its policy."""
        return Egress((self.view()).policy)

    def view(self) -> EgressView:
        """Its policy, the bytes sent and received so far, and what a policy that learns proposes."""
        return faults.decode(EgressView, self._transport.call("GET", self._path))

    def set(self, egress: Egress | EgressPolicy | Mapping[str, Any] | str) -> Egress:
        """Another policy, from now on; connections that it does not allow are cut."""
        body = self._transport.call("PUT", self._path, body=faults.encode(policy(egress)), safe=True)
        return Egress(faults.decode(EgressView, body).policy)

    def learn(self) -> None:
        """Let it reach the public internet and write down what it needs; `proposal()` then tells the smallest policy for that."""
        self._transport.call("POST", self._path + "/learn", safe=True)

    def proposal(self) -> Egress | None:
        """The smallest policy that would have allowed what was used; None when it does not learn."""
        found = (self.view()).proposal
        return None if found is None else Egress(found)

    def flows(self, *, after: int = 0, follow: bool = False) -> Generator[Flow, None]:
        """What it reached and tried to reach, oldest first, from after the flow with this `seq`. Followed, they go on until the sandbox is deleted, and none is lost or told twice."""
        return self._follow("/flows", after) if follow else self._pages("/flows", after)

    def denials(self, *, after: int = 0, follow: bool = False) -> Generator[Flow, None]:
        """What was denied, with the reasons."""
        return self._follow("/denials", after) if follow else self._pages("/denials", after)

    def approvals(self) -> list[Approval]:
        """Its connections that wait for a decision; `client.approvals` decides."""
        return faults.decode(Approvals, self._transport.call("GET", "/v1/approvals", query={"sandbox": self._sandbox})).approvals

    def _pages(self, which: str, after: int) -> Generator[Flow, None]:
        position: int | None = after
        while position is not None:
            page = faults.decode(Flows, self._transport.call("GET", self._path + which, query={"after": position}))
            for flow in page.flows:
                yield flow
            position = page.next

    def _follow(self, which: str, after: int) -> Generator[Flow, None]:
        with closing(stream.follow(self._transport, self._path + which, {"after": after, "follow": True})) as parts:
            try:
                for part in parts:
                    yield faults.decode(Flow, part.data)
            except SandboxEnded:
                return


class ApprovalList:
    """Connections of the project's sandboxes that wait, since their policies say `ask`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> builtins.list[Approval]:
        return faults.decode(Approvals, self._transport.call("GET", "/v1/approvals")).approvals

    def allow(self, id: str, *, scope: Scope = "once") -> Approval:
        """Let it go on: this connection, this destination for its `sandbox`, or for the project's sandboxes `always`."""
        return self._decide(id, "allow", scope)

    def deny(self, id: str, *, scope: Scope = "once") -> Approval:
        """Fail it, with the reason."""
        return self._decide(id, "deny", scope)

    def rules(self) -> builtins.list[KeptRule]:
        """What was decided for the project's sandboxes `always`."""
        return faults.decode(KeptRules, self._transport.call("GET", "/v1/approvals/rules")).rules

    def set_webhook(self, url: str) -> Webhook:
        """Have a signed request sent there for each connection that begins to wait, and for each decision. Its `secret` is told this once."""
        body = faults.encode(faults.build(WebhookSet, url=url))
        return faults.decode(Webhook, self._transport.call("PUT", "/v1/approvals/webhook", body=body))

    def webhook(self) -> Webhook | None:
        """Where that is; None: nowhere."""
        try:
            return faults.decode(Webhook, self._transport.call("GET", "/v1/approvals/webhook"))
        except NotFound:
            return None

    def remove_webhook(self) -> None:
        self._transport.call("DELETE", "/v1/approvals/webhook")

    def forget(self, id: str) -> None:
        """Take such a decision back: the same question is asked again."""
        self._transport.call("DELETE", "/v1/approvals/rules/" + faults.segment(id))

    def _decide(self, id: str, decision: Literal["allow", "deny"], scope: Scope) -> Approval:
        request = faults.build(Decision, decision=decision, scope=scope)
        return faults.decode(Approval, self._transport.call("POST", "/v1/approvals/" + faults.segment(id), body=faults.encode(request)))
