"""What sandboxes may reach: policies are kept here, made whole with what was decided for their project and with secrets, and sent to the node, which holds them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping
from typing import Any

import structlog

from corral.control import lifecycle
from corral.control.decisions import answer, settled
from corral.control.denials import Denials
from corral.control.launch import Launch
from corral.control.ledger import Ledger
from corral.control.ports import Node, RuleRows
from corral.control.record import Record
from corral.control.registry import Living
from corral.control.roles import Actor
from corral.control.secrets import Secrets
from corral.errors import Conflict, InvalidArgument, InvalidState, NotFound, QuotaExceeded, SandboxEnded
from corral.net import policy as kernel
from corral.node.interface import ImageSpec
from corral.schema.egress import Approval, Decision, EgressPolicy, EgressView, Flow, Flows, KeptRule, Preset, Rule
from corral.schema.sandbox import State
from corral.schema.secret import Secret, SecretCreate

AT_ONCE = 16
"""Policies that are sent to the node at the same time."""
KEPT = 256
"""Rules that a project may have from decisions."""

FEW = 500
"""Ranges of a policy that are looked at in a millisecond."""
LONGEST_VARIABLES = 128 << 10
"""Bytes of NAME=value and its end, all together. One alone could not have more (Linux' MAX_ARG_STRLEN); the guest is told them in one message of 256 KiB."""

log = structlog.get_logger(__name__)


class Policies:
    """Those of the ledger's sandboxes."""

    def __init__(self, node: Node, ledger: Ledger, secrets: Secrets, rules: RuleRows, clock: Callable[[], float]) -> None:
        self._node = node
        self._ledger = ledger
        self._secrets = secrets
        self._rules = rules
        self._clock = clock
        self._kept: dict[str, list[KeptRule]] = {}
        self._denials = Denials(clock)

    @property
    def default(self) -> EgressPolicy:
        """Of a sandbox that asks for nothing."""
        return EgressPolicy(default=Preset.PUBLIC if self._node.networked else Preset.NONE)

    async def open(self, adopted: Iterable[Living]) -> None:
        """Load what was decided, and send policies and secrets anew for those that live on from an earlier server."""
        for project, kept in await self._rules.all():
            self._kept.setdefault(project, []).append(kept)
        await self._each(adopted, self._send_or_close)

    async def check(self, policy: EgressPolicy) -> None:
        """Raises `InvalidArgument` for a policy that is more than the node's tables can hold."""
        if sum(len(rule.to) * len(rule.ports or ".") for rule in policy.rules) < FEW:
            kernel.compile(policy)
        else:
            await asyncio.to_thread(kernel.compile, policy)

    async def launch(self, record: Record, image: ImageSpec) -> Launch:
        """What the node needs to start it, secrets included. Raises `NotFound` for one that there isn't, `InvalidArgument` for one that can't be used so."""
        policy = self._whole(record)
        values = await self._secrets.values(record.project, policy.secrets | {use.name for use in record.secrets})
        _check_headers(policy, values)
        exposed = {use.variable: values[use.name] for use in record.secrets}
        _check_variables(exposed)
        return Launch(self._node, record.spec(image, policy, exposed), {name: values[name] for name in policy.secrets})

    # Policies

    async def view(self, project: str, id_or_name: str) -> EgressView:
        """Of a sandbox, also of one that has ended a while ago."""
        living = self._ledger.find(project, id_or_name)
        record = living.record if living is not None else await self._ledger.ended(project, id_or_name)
        return await self._view(record)

    async def set(self, actor: Actor, id_or_name: str, policy: EgressPolicy) -> EgressView:
        """From now on, for open connections too. The answer is given when it holds and is on the disk."""
        living = await self._ledger.use(actor.project, id_or_name)
        await self.check(policy)
        async with living.changing:
            return await self._view(await self._set(living, policy, actor))

    async def learn(self, actor: Actor, id_or_name: str) -> EgressView:
        """Let it reach what the default allows, which is at least the public internet, and write down what it needs. Rules that deny go on denying."""
        living = await self._ledger.use(actor.project, id_or_name)
        async with living.changing:
            policy = living.record.egress
            default = Preset.PUBLIC if policy.default is Preset.NONE else policy.default
            policy = policy.model_copy(update={"learn": True, "default": default})
            await self.check(policy)
            return await self._view(await self._set(living, policy, actor))

    async def flows(self, project: str, id_or_name: str, *, after: int, limit: int, denied: bool) -> Flows:
        living = await self._ledger.use(project, id_or_name)
        return await self._node.flows(living.record.id, after=after, limit=limit, denied=denied)

    async def follow(self, project: str, id_or_name: str, *, after: int, denied: bool) -> AsyncGenerator[Flow, None]:
        """The same, and then what comes, until the sandbox is removed."""
        living = await self._ledger.use(project, id_or_name)
        return self._node.follow_flows(living.record.id, after=after, denied=denied)

    def worth_telling(self, id: str, kind: str, data: Mapping[str, Any]) -> bool:
        """Whether what the node tells becomes an event."""
        return kind != "egress.denied" or self._denials.fresh(id, (data.get("name") or data.get("address"), data.get("port")))

    def forget(self, id: str) -> None:
        """It has ended."""
        self._denials.forget(id)

    async def _set(self, living: Living, policy: EgressPolicy, actor: Actor) -> Record:
        record = living.record
        if record.state in lifecycle.ENDED:
            await self._ledger.use(record.project, record.id)  # raises: it has ended since
        wanted = settled(policy, self._answers(record.project))
        values = await self._secrets.values(record.project, wanted.secrets)
        _check_headers(wanted, values)
        if record.state in (State.RUNNING, State.FROZEN):
            await self._node.set_egress(record.id, wanted, values)
        told = {"default": policy.default, "rules": len(policy.rules), "learn": policy.learn}
        return await self._ledger.decree(living, actor=actor.key, kind="egress.changed", data=told, egress=policy)

    async def _send(self, living: Living) -> None:
        """As it is kept, with what was decided and with secrets as they are now."""
        record = living.record
        if record.state in (State.RUNNING, State.FROZEN):
            policy = self._whole(record)
            values = await self._secrets.values(record.project, policy.secrets)
            try:
                await self._node.set_egress(record.id, policy, values)
            except (InvalidState, SandboxEnded):
                log.debug("egress_not_sent", sandbox=record.id)  # it has just ended, of which the node is about to tell

    async def _send_or_close(self, living: Living) -> None:
        id = living.record.id
        try:
            await self._send(living)
        except Exception:
            # It must not go on with what nobody can vouch for any more.
            log.exception("egress_closed", sandbox=id)
            try:
                await self._node.set_egress(id, EgressPolicy(), {})
            except Exception:
                # The others must be served. What the node holds is what it was told last.
                log.exception("egress_not_closed", sandbox=id)

    async def _each(self, many: Iterable[Living], send: Callable[[Living], Any]) -> None:
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(living: Living) -> None:
            async with turns, living.changing:
                await send(living)

        for result in await asyncio.gather(*(one(living) for living in many), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def _whole(self, record: Record) -> EgressPolicy:
        return settled(record.egress, self._answers(record.project))

    def _answers(self, project: str) -> list[Rule]:
        return [kept.rule for kept in self._kept.get(project, ())]

    async def _view(self, record: Record) -> EgressView:
        if not self._node.running(record.id):
            return EgressView(policy=record.egress)
        sent, received = self._node.traffic(record.id)
        proposal = await self._node.proposal(record.id) if record.egress.learn else None
        return EgressView(policy=record.egress, sent=sent, received=received, proposal=proposal)

    # Questions

    def approvals(self, project: str, id: str | None = None) -> list[Approval]:
        """Connections of the project's sandboxes (or of that one) that wait for a decision."""
        return [one for one in self._node.approvals() if self._ledger.find(project, one.sandbox) is not None and id in (None, one.sandbox)]

    async def decide(self, actor: Actor, id: str, decision: Decision) -> Approval:
        """Let a waiting connection go on, or not. Raises `NotFound` when it does not wait (any more), `Conflict` when the policy would not ask any more."""
        asked = next((one for one in self.approvals(actor.project) if one.id == id), None)
        if asked is None:
            raise NotFound(
                f"no connection waits as {id[:80]}", hint="GET /v1/approvals lists those that wait; each has a deadline", details={"approval": id[:80]}
            )
        living = await self._ledger.use(actor.project, asked.sandbox)
        rule = None if decision.scope == "once" else answer(living.record.egress, asked, decision.decision)
        # What it means for other connections is said by policies alone.
        await self._node.decide(id, Decision(decision=decision.decision, scope="once"))
        told = {"approval": id, "name": asked.name, "address": asked.address, "port": asked.port, "decision": decision.decision, "scope": decision.scope}
        self._ledger.log.note("egress.decided", actor.project, sandbox=asked.sandbox, actor=actor.key, data=told)
        match decision.scope:
            case "sandbox" if rule is not None:
                async with living.changing:
                    await self._set(living, settled(living.record.egress, [rule]), actor)
            case "always" if rule is not None:
                await self._keep(actor, rule)
            case _:
                pass
        return asked.model_copy(update={"decision": decision.decision, "scope": decision.scope})

    def kept(self, project: str) -> list[KeptRule]:
        """What was decided for the project once and for all, the oldest first."""
        return list(self._kept.get(project, ()))

    async def unkeep(self, actor: Actor, id: str) -> None:
        """From now on the same question is asked again. Raises `NotFound`."""
        kept = self._kept.get(actor.project, [])
        gone = next((one for one in kept if one.id == id), None)
        if gone is None:
            raise NotFound(f"no rule is kept as {id[:80]}", hint="GET /v1/approvals/rules lists those that are")
        await self._rules.remove(actor.project, id)
        kept.remove(gone)
        self._ledger.log.note("egress.undecided", actor.project, actor=actor.key, data={"to": gone.rule.to, "ports": gone.rule.ports})
        await self._settled_anew(actor.project, gone.rule)

    async def _keep(self, actor: Actor, rule: Rule) -> None:
        kept = self._kept.setdefault(actor.project, [])
        if any(one.rule == rule for one in kept):
            return
        if len(kept) >= KEPT:
            raise QuotaExceeded(f"the project keeps {KEPT} rules from decisions, the most there can be", hint="DELETE /v1/approvals/rules/{rule} some of them")
        kept.append(await self._rules.add(actor.project, rule, at=self._clock(), by=actor.key))
        await self._settled_anew(actor.project, rule)

    async def _settled_anew(self, project: str, rule: Rule) -> None:
        """Send the policies that this rule makes a difference to."""
        await self._each((one for one in self._living(project) if settled(one.record.egress, [rule]) is not one.record.egress), self._send)

    # Secrets that sandboxes use

    async def change_secret(self, actor: Actor, wanted: SecretCreate) -> Secret:
        """Another value, which rules use from now on."""
        users = [one for one in self._living(actor.project) if wanted.name in self._whole(one.record).secrets]
        if users:
            _check_header(wanted.name, wanted.value.get_secret_value())
        secret = await self._secrets.change(actor, wanted)
        await self._each(users, self._send)
        return secret

    async def delete_secret(self, actor: Actor, name: str) -> None:
        """Raises `Conflict` while a living sandbox could not go on without it."""
        users = [one.record.id for one in self._living(actor.project) if name in self._names(one.record)]
        if users:
            raise Conflict(
                f"{len(users)} sandboxes use the secret {name}, such as {users[0]}",
                hint="change their policies or delete them first; a value that has leaked is replaced by PUT",
                details={"sandboxes": users[:100]},
            )
        await self._secrets.delete(actor, name)

    def project_removed(self, project: str) -> None:
        """What was decided for it holds for no later one of its name."""
        self._kept.pop(project, None)

    def _names(self, record: Record) -> Collection[str]:
        return self._whole(record).secrets | {use.name for use in record.secrets}

    def _living(self, project: str) -> list[Living]:
        return [one for one in self._ledger.registry if one.record.project == project]


def _check_headers(policy: EgressPolicy, values: Mapping[str, str]) -> None:
    for name in policy.secrets:
        _check_header(name, values[name])


def _check_header(name: str, value: str) -> None:
    if not value.isprintable() or not value.isascii():
        raise InvalidArgument(f"the value of the secret {name} can't be a header's: it has line breaks or other characters that no header has")


def _check_variables(variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        if "\0" in value:
            raise InvalidArgument(
                f"secrets: what {name} would hold has a NUL byte, which no environment variable can have", hint="write it into a file instead"
            )
    if sum(len(name) + len(value.encode()) + 2 for name, value in variables.items()) > LONGEST_VARIABLES:
        raise InvalidArgument(
            "secrets: they are too long for environment variables", hint=f"{LONGEST_VARIABLES} bytes are the most; write them into files instead"
        )
