"""The ports of sandboxes that E2B's clients made, as these expect them: which are resumed by a request, for how long, and what is said where nothing answers."""

from __future__ import annotations

from corral.api.services import Services
from corral.control.record import Record
from corral.control.registry import Living
from corral.control.roles import Actor
from corral.preview.keeper import Refused
from corral.schema.account import Role
from corral.schema.sandbox import SandboxUpdate

GONE = "The sandbox was not found"
CLOSED = "The sandbox is running but port is not open"
"""The clients go by these words."""
_LEAST_WOKEN = 300.0


class Ports:
    """Implements `control.previews.Guise`."""

    def __init__(self, services: Services) -> None:
        self._sandboxes = services.sandboxes

    def wakes(self, record: Record) -> bool:
        """Whether a request resumes it: only where that was asked for."""
        return bool(record.facade.get("auto_resume"))

    async def wake(self, living: Living) -> None:
        """Resume it for its timeout, and five minutes at least. That is said first: one of no time at all would be paused again before it could be."""
        if living.record.timeout is not None and living.record.timeout < _LEAST_WOKEN:
            wanted = SandboxUpdate.model_validate({"timeout": _LEAST_WOKEN})
            await self._sandboxes.update(Actor("traffic", living.record.project, Role.MEMBER), living.record.id, wanted)
        await self._sandboxes.pauses.wake(living)

    def gone(self, record: Record) -> Refused:
        body = {"sandboxId": record.id, "message": GONE, "code": 502}
        return Refused(502, "not_found", GONE, "it has ended, or sleeps", title="There is no such sandbox", body=body)

    def closed(self, record: Record, port: int) -> Refused:
        body = {"sandboxId": record.id, "message": CLOSED, "port": port, "code": 502}
        return Refused(502, "port_closed", CLOSED, f"start a server on port {port} inside", title=f"Nothing on port {port} yet", retry=2, body=body)
