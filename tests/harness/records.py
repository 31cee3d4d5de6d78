"""Records of sandboxes for tests of what decides about them."""

from __future__ import annotations

from corral.control.record import Record
from corral.schema.sandbox import State


def record(state: State = State.RUNNING, **fields: object) -> Record:
    """One with these fields; the others have usual values."""
    values: dict[str, object] = {
        "id": "sb-aaaaaaaaaaaaaaaa",
        "project": "default",
        "name": None,
        "image": "tiny",
        "image_id": "im-aaaaaaaaaaaaaaaa",
        "cpu": 1.0,
        "memory": 512,
        "disk": 4096,
        "pids": 1024,
        "env": {},
        "tags": {},
        "user": None,
        "workdir": None,
        "hostname": "box",
        "sudo": True,
        "timeout": None,
        "idle_timeout": None,
        "on_timeout": "terminate",
        "created_at": 100.0,
        "created_by": "ke-aaaaaaaaaaaaaaaa",
        "started_at": 100.0,
    }
    return Record(state=state, **{**values, **fields})  # pyright: ignore[reportArgumentType]
