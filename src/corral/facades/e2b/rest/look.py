"""/sandboxes/{id}/metrics and /logs."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from corral.control.record import Record
from corral.control.roles import Permission
from corral.errors import InvalidState
from corral.facades.e2b.refusal import Refused
from corral.facades.e2b.rest.call import Call, living, told
from corral.facades.e2b.rest.shown import state
from corral.schema.observe import LogLine, Sample

_MOST = 100
_LATEST = 1 << 40


async def metrics(call: Call) -> Response:
    """What it used in the last minutes, or between two times."""
    call.actor.require(Permission.LOOK)
    record = await call.sandbox()
    start, end = call.number("start", 0, most=_LATEST), call.number("end", _LATEST, most=_LATEST)
    samples = call.services.history.of(record.id)
    if state(record) == "running":
        samples = [*samples, await living(record.id, call.services.node.sample_now(record.id))]
    return told([_metric(sample, record) for sample in samples if start <= sample.at.timestamp() <= end])


async def metrics_of_many(call: Call) -> Response:
    """The newest of each."""
    call.actor.require(Permission.LOOK)
    ids = [id for text in call.request.query_params.getlist("sandbox_ids") for id in text.split(",") if id]
    if len(ids) > _MOST:
        raise Refused(400, f"sandbox_ids: more than {_MOST}")
    found: dict[str, Any] = {}
    for id in ids:
        living = call.services.sandboxes.ledger.find(call.actor.project, id)
        if living is None or state(living.record) != "running":
            continue
        try:
            found[id] = _metric(await call.services.node.sample_now(id), living.record)
        except InvalidState:
            continue  # it has just ended
    return told({"sandboxes": found})


def _metric(sample: Sample, record: Record) -> dict[str, Any]:
    cores = max(1, round(record.cpu))
    return {
        "timestamp": sample.at.isoformat().replace("+00:00", "Z"),
        "timestampUnix": int(sample.at.timestamp()),
        "cpuCount": cores,
        "cpuUsedPct": round(100 * sample.cpu / cores, 2),
        "memUsed": int(sample.memory * (1 << 20)),
        "memTotal": sample.memory_limit << 20,
        "memCache": 0,
        "diskUsed": int(sample.disk * (1 << 20)),
        "diskTotal": sample.disk_limit << 20,
    }


async def logs(call: Call) -> Response:
    lines = await _lines(call)
    start = call.number("start", 0, most=_LATEST * 1000)
    lines = [line for line in lines if line.at.timestamp() * 1000 >= start][: call.number("limit", 1000, most=1000)]
    plain = [{"timestamp": line.at.isoformat().replace("+00:00", "Z"), "line": line.text} for line in lines]
    return told({"logs": plain, "logEntries": [_entry(line) for line in lines]})


async def logs_v2(call: Call) -> Response:
    """With a cursor in milliseconds, backward or forward from it, and with what is searched for."""
    lines = await _lines(call)
    backward = call.query("direction") == "backward"
    cursor = call.number("cursor", _LATEST * 1000 if backward else 0, most=_LATEST * 1000)
    search, level = call.query("search"), call.query("level")
    lines = [line for line in lines if (line.at.timestamp() * 1000 <= cursor if backward else line.at.timestamp() * 1000 >= cursor)]
    lines = [line for line in lines if (search is None or search in line.text) and level in (None, "debug", "info")]
    if backward:
        lines.reverse()
    return told({"logs": [_entry(line) for line in lines[: call.number("limit", 1000, most=1000)]]})


async def _lines(call: Call) -> list[LogLine]:
    call.actor.require(Permission.LOOK)
    return call.services.node.logs((await call.sandbox()).id)


def _entry(line: LogLine) -> dict[str, Any]:
    return {"timestamp": line.at.isoformat().replace("+00:00", "Z"), "level": "info", "message": line.text, "fields": {"source": line.source}}
