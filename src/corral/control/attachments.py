"""Giving volumes to sandboxes that are there already, and taking them away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from corral.control.ports import Node
from corral.control.record import Record
from corral.control.roles import Actor
from corral.control.sandboxes import Sandboxes
from corral.control.volumes import Volumes
from corral.errors import Conflict, InvalidArgument, InvalidState, NotFound
from corral.node.interface import VolumeUse
from corral.schema.sandbox import State
from corral.schema.volume import MOST, VolumeMount

_CHANGEABLE = frozenset({State.RUNNING, State.FROZEN, State.STOPPED})


class Attachments:
    """A stopped sandbox has them at its next start; of a running one it is done when the answer comes, or not at all."""

    def __init__(self, *, sandboxes: Sandboxes, volumes: Volumes, node: Node) -> None:
        self._sandboxes = sandboxes
        self._volumes = volumes
        self._node = node

    async def attach(self, actor: Actor, sandbox: str, path: str, wanted: VolumeMount) -> Record:
        """Raises `NotFound` for the volume, `Conflict` for a path that has one, `InvalidArgument` for one that would hide another."""
        async with self._sandboxes.hold(actor.project, sandbox) as living:
            record = living.record
            _check_state(record)
            (use,) = self._volumes.uses(actor.project, {path: wanted})
            _check_place(record.volumes, path)
            running = record.state is not State.STOPPED
            if running:
                await self._node.attach_volume(record.id, use)
            try:
                # It may have been deleted meanwhile.
                self._volumes.get(actor.project, use.id)
                volumes = tuple(sorted((*record.volumes, use), key=lambda one: one.path))
                data = {"volume": use.id, "path": path, "read_only": use.read_only}
                return await self._sandboxes.ledger.decree(living, actor=actor.key, kind="volume.attached", data=data, volumes=volumes)
            except BaseException:
                if running:
                    await asyncio.shield(self._node.detach_volume(record.id, use))
                raise

    async def detach(self, actor: Actor, sandbox: str, path: str) -> Record:
        """Raises `NotFound` when there is no volume at that path."""
        async with self._sandboxes.hold(actor.project, sandbox) as living:
            record = living.record
            _check_state(record)
            if (use := next((one for one in record.volumes if one.path == path), None)) is None:
                raise NotFound(f"the sandbox {record.id} has no volume at {path[:80]!r}", hint="its `volumes` tell which it has")
            if record.state is not State.STOPPED:
                await self._node.detach_volume(record.id, use)
            left = tuple(one for one in record.volumes if one is not use)
            data = {"volume": use.id, "path": path}
            return await self._sandboxes.ledger.decree(living, actor=actor.key, kind="volume.detached", data=data, volumes=left)


def _check_state(record: Record) -> None:
    if record.state not in _CHANGEABLE:
        raise InvalidState(f"volumes of a sandbox that is {record.state} can't be changed", hint="resume it first", details={"state": record.state})


def _check_place(there: Sequence[VolumeUse], path: str) -> None:
    if any(use.path == path for use in there):
        raise Conflict(f"there is a volume at {path} already", hint="choose another path, or detach that one first", details={"path": path})
    if hidden := [use.path for use in there if use.path.startswith(f"{path}/")]:
        raise InvalidArgument(f"path: at {path} it would hide the volume at {hidden[0]}", hint="choose another path", details={"field": "path"})
    if len(there) >= MOST:
        raise InvalidArgument(f"a sandbox can have at most {MOST} volumes", hint="detach one first", details={"field": "path", "limit": MOST})
