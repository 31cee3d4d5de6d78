"""Services: programs that a sandbox keeps running."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from corral.schema.image import Ready
from corral.schema.service import Restart, Service, ServiceList, ServiceSet
from corral.sdk import faults
from corral.sdk._async.transport import Transport

STOP_SECONDS = 60.0
"""How long one may take to end."""


class Supervised:
    """The services of one sandbox: `sb.services.set("web", "npm run dev")`."""

    def __init__(self, transport: Transport, sandbox: str) -> None:
        """`sandbox` is its path."""
        self._transport = transport
        self._path = sandbox + "/services"

    async def set(
        self,
        name: str,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        needs: Sequence[str] = (),
        ready: Ready | Mapping[str, Any] | None = None,
        restart: Restart | str = Restart.ALWAYS,
        http_port: int | None = None,
        enabled: bool = True,
    ) -> Service:
        """Keep a program running from now on: a text by the sandbox's shell, a sequence as it is. `ready` is how it is known that others may need it, as `{"port": 5432}`.
        With `http_port` it is started by the first request to the preview of that port."""
        words = {"command": command} if isinstance(command, str) else {"argv": list(command)}
        when = {"needs": list(needs), "ready": ready, "restart": Restart(restart), "http_port": http_port, "enabled": enabled}
        wanted = faults.build(ServiceSet, **words, env=dict(env or {}), cwd=cwd, user=user, **when)
        body = await self._transport.call("PUT", self._at(name), body=faults.encode(wanted), safe=True, seconds=STOP_SECONDS)
        return faults.decode(Service, body)

    async def list(self) -> list[Service]:
        """By name."""
        return faults.decode(ServiceList, await self._transport.call("GET", self._path)).services

    async def get(self, name: str) -> Service:
        return faults.decode(Service, await self._transport.call("GET", self._at(name)))

    async def start(self, name: str) -> Service:
        """Start one that was stopped, has ended or has failed."""
        return faults.decode(Service, await self._transport.call("POST", self._at(name) + "/start", safe=True))

    async def stop(self, name: str) -> Service:
        """Stop it; it stays so until somebody starts it."""
        return faults.decode(Service, await self._transport.call("POST", self._at(name) + "/stop", safe=True, seconds=STOP_SECONDS))

    async def remove(self, name: str) -> None:
        """Stop and forget it."""
        await self._transport.call("DELETE", self._at(name), seconds=STOP_SECONDS)

    def _at(self, name: str) -> str:
        return f"{self._path}/{faults.segment(name)}"
