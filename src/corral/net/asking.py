"""Connections that wait for somebody's decision."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from corral.net.occupant import Occupant
from corral.net.policy import Action
from corral.net.ranges import Protocol

WAITING = 100
"""Approvals of one sandbox at once; beyond it, the default holds at once."""


@dataclass(slots=True)
class _Question:
    occupant: Occupant
    key: tuple[str, int]
    told: dict[str, Any]
    answer: asyncio.Future[bool] = field(repr=False)
    timer: asyncio.TimerHandle = field(repr=False)


class Asking:
    """`tell` is given each approval (fields of `corral.schema.egress.Approval`) when it begins to wait and when it is decided."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell
        self._questions: dict[str, _Question] = {}

    @property
    def waiting(self) -> list[dict[str, Any]]:
        return [question.told for question in self._questions.values()]

    async def ask(
        self, occupant: Occupant, *, name: str | None, address: str, port: int, rule: str | None, method: str | None = None, path: str | None = None
    ) -> bool:
        """Whether it may go on. Connections to the same destination share one approval."""
        policy = occupant.tenant.policy
        key = (name or address, port)
        if (known := occupant.decided.get(key)) is not None:
            return known
        question = next(
            (q for q in self._questions.values() if q.occupant is occupant and q.key == key and (q.told["method"], q.told["path"]) == (method, path)), None
        )
        if question is None:
            if sum(q.occupant is occupant for q in self._questions.values()) >= WAITING:
                return policy.ask_default == "allow"
            now = datetime.now(UTC)
            told: dict[str, Any] = {
                "id": "ap-" + secrets.token_hex(8),
                "sandbox": occupant.sandbox,
                "name": name,
                "address": address,
                "port": port,
                "rule": rule,
                "method": method,
                "path": path,
                "asked_at": now.isoformat(),
                "deadline": (now + timedelta(seconds=policy.ask_timeout)).isoformat(),
            }
            loop = asyncio.get_running_loop()
            timer = loop.call_later(policy.ask_timeout, self._decided, told["id"], policy.ask_default == "allow", None)
            question = self._questions[told["id"]] = _Question(occupant, key, told, loop.create_future(), timer)
            self._tell(told)
        return await asyncio.shield(question.answer)

    def decide(self, id: str, *, allow: bool, scope: str) -> tuple[str, str, int] | None:
        """The sandbox, and the destination that was decided, as its name or address and its port; None when it does not wait (any more)."""
        if id not in self._questions:
            return None
        question = self._questions[id]
        if scope != "once":
            question.occupant.decided[question.key] = allow
        self._decided(id, allow, scope)
        return question.occupant.sandbox, *question.key

    def reconsider(self, occupant: Occupant) -> None:
        """Its policy has changed: what is no longer asked is decided."""
        for id, question in [(id, question) for id, question in self._questions.items() if question.occupant is occupant]:
            told = question.told
            ruling = occupant.compiled.connection(Protocol.TCP, told["port"], int(ipaddress.IPv4Address(told["address"])), told["name"])
            if ruling.action is not Action.ASK and not ruling.content:
                self._decided(id, ruling.action is Action.ALLOW, None)

    def forget(self, occupant: Occupant) -> None:
        """Its sandbox is gone."""
        for id in [id for id, question in self._questions.items() if question.occupant is occupant]:
            self._decided(id, False, None)  # noqa: FBT003

    def _decided(self, id: str, allow: bool, scope: str | None) -> None:  # noqa: FBT001
        question = self._questions.pop(id)
        question.timer.cancel()
        if not question.answer.done():
            question.answer.set_result(allow)
        self._tell({**question.told, "decision": "allow" if allow else "deny", "scope": scope})
