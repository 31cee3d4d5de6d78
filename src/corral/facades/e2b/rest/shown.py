"""A sandbox as E2B's control plane shows it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from corral.code.start import IMAGE
from corral.control.record import Record
from corral.facades.e2b import envd
from corral.facades.e2b.tokens import Tokens
from corral.schema.sandbox import State

_NEVER = 365 * 86_400
_PAUSED = frozenset({State.PAUSED, State.STOPPED})
TEMPLATE = "code-interpreter-v1"
"""What the clients call the image of the code interpreter."""
CLIENT = "corral"
"""E2B's word for the machine; clients keep it and do nothing with it."""


def instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def template(image: str) -> str:
    """What the clients know an image by, which is asked for by this name: a template has no other id."""
    name = image.partition(":")[0]
    return TEMPLATE if name == IMAGE else name


def state(record: Record) -> str:
    return "paused" if record.state in _PAUSED else "running"


def access(record: Record, tokens: Tokens, domain: str | None, traffic: str) -> dict[str, Any]:
    """The answer to who creates or connects to one: where it is, and the tokens that open it. `traffic`: the one for its ports."""
    shown: dict[str, Any] = {
        "templateID": template(record.image),
        "alias": template(record.image),
        "sandboxID": record.id,
        "clientID": CLIENT,
        "envdVersion": envd.VERSION,
        "domain": domain,
    }
    if record.facade.get("secure", True):
        shown["envdAccessToken"] = tokens.of("envd", record.id)
    if closed(record):
        shown["trafficAccessToken"] = traffic
    return shown


def closed(record: Record) -> bool:
    """Whether its ports open only to who has the token."""
    network: Mapping[str, Any] = record.facade.get("network", {})
    return network.get("allowPublicTraffic") is False


def listed(record: Record) -> dict[str, Any]:
    """One line of a list."""
    started = record.started_at or record.created_at
    return {
        "templateID": template(record.image),
        "alias": template(record.image),
        "sandboxID": record.id,
        "clientID": CLIENT,
        "startedAt": instant(started),
        "endAt": instant(record.deadline if record.deadline is not None else started + _NEVER),
        "envdVersion": envd.VERSION,
        "cpuCount": max(1, round(record.cpu)),
        "memoryMB": record.memory,
        "diskSizeMB": record.disk,
        "metadata": dict(record.tags),
        "state": state(record),
        "volumeMounts": record.facade.get("volumes", []),
    }


def detail(record: Record, tokens: Tokens, domain: str | None) -> dict[str, Any]:
    """Everything."""
    asked = record.facade
    shown = {
        **listed(record),
        "domain": domain,
        "allowInternetAccess": asked.get("internet"),
        "lifecycle": {"autoResume": bool(asked.get("auto_resume")), "onTimeout": "kill" if record.on_timeout == "terminate" else "pause"},
    }
    if asked.get("network"):
        shown["network"] = asked["network"]
    if asked.get("secure", True):
        shown["envdAccessToken"] = tokens.of("envd", record.id)
    return shown
