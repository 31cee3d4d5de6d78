"""/sandboxes of E2B: create, find, and end them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, unquote

from pydantic import Field
from starlette.responses import Response

from corral.api import pages
from corral.api.idempotent import idempotent
from corral.control.idempotency import Answer, Claim
from corral.control.record import Record
from corral.control.roles import Permission
from corral.errors import ImageNotFound
from corral.facades.e2b import interpreter
from corral.facades.e2b.body import Body
from corral.facades.e2b.network import Network, policy
from corral.facades.e2b.refusal import Refused
from corral.facades.e2b.rest.call import Call, living, shown_access, told
from corral.facades.e2b.rest.recipe import CPU, DISK, MEMORY, named
from corral.facades.e2b.rest.shown import detail, listed, state
from corral.schema.sandbox import SandboxCreate, State

LEAST = 0.001
"""Seconds that a sandbox lives whose timeout is 0."""
SIZE = {"cpu": 2, "memory": 512}
"""Of sandboxes whose template says nothing else, as there."""
_DISK = 4096
"""MiB that each may write at least."""
_PAGE = 100
_BOTH = frozenset({"running", "paused"})
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?")


class AutoResume(Body):
    enabled: bool | str = False


class Mount(Body):
    name: str
    path: str


class Identity(Body):
    tokens: dict[str, Any] | None = None


class NewSandbox(Body):
    """POST /sandboxes and /v2/sandboxes."""

    template_id: str
    timeout: int | None = None
    auto_pause: bool | None = None
    auto_pause_memory: bool | None = None
    auto_resume: AutoResume | None = None
    secure: bool | None = None
    allow_internet_access: bool | None = Field(default=None, alias="allow_internet_access")
    network: Network | None = None
    metadata: dict[str, str] | None = None
    env_vars: dict[str, str] | None = None
    mcp: dict[str, Any] | None = None
    iam: Identity | None = None
    volume_mounts: list[Mount] | None = None

    @property
    def resumes(self) -> bool:
        """Whether a request to it wakes it."""
        return self.auto_resume is not None and self.auto_resume.enabled not in (False, "off")


async def create(call: Call) -> Response:
    return await _create(call, timeout=15, secure=False)


async def create_v2(call: Call) -> Response:
    return await _create(call, timeout=300, secure=True)


async def _create(call: Call, *, timeout: int, secure: bool) -> Response:
    call.actor.require(Permission.USE)
    wanted = await call.body(NewSandbox)
    facade = _facade(wanted, secure=secure)
    if wanted.network is not None and wanted.network.allow_public_traffic is False and not facade["secure"]:
        raise Refused(400, "You cannot create a sandbox without public access unless you enable secure envd access via 'secure' flag.")
    _check_volumes(call, wanted.volume_mounts or [])
    native = _native(wanted, timeout, size(call, wanted.template_id), call.actor.project)
    services, actor = call.services, call.actor

    async def make(claim: Claim | None) -> Answer:
        record = await services.sandboxes.create(actor, native, claim=claim, facade=facade)
        if (mask := _mask(wanted)) is not None:
            try:
                await services.previews.mask(actor, record.id, mask)
            except BaseException:  # nobody would know of it
                await asyncio.shield(services.sandboxes.delete(actor, record.id))
                raise
        services.meter.created(record.timing or {})
        return _kept(record)

    async def again(id: str) -> Answer | None:
        return _kept(await services.sandboxes.get(actor.project, id))

    try:
        answer = await services.abandoned.watch(call.request, actor, idempotent(call.request, services, actor, make, again=again))
    except ImageNotFound:
        told_more = (
            "; a gateway for MCP servers does not ship with Corral: build a template of this name that has the program `mcp-gateway`" if wanted.mcp else ""
        )
        raise Refused(404, f"template '{wanted.template_id[:200]}' not found{told_more}") from None
    record = await call.sandbox(json.loads(answer.body)["id"])
    if record.image == interpreter.IMAGE:
        services.code.warm(record.id, interpreter.WARM)
    return told(await shown_access(call, record), 201)


def _kept(record: Record) -> Answer:
    # In Corral's own words: `abandoned` must find the sandbox in it.
    return Answer(201, record.show().model_dump_json().encode())


def size(call: Call, template: str) -> Mapping[str, float]:
    """Cores, MiB of memory and of disk: what was chosen when the template was built, since the clients can't say it later."""
    cores = call.services.sandboxes.cores
    ref = image(template, call.actor.project)
    if ref == interpreter.IMAGE:
        return {**interpreter.SIZE, "disk": _DISK, "cpu": min(cores, interpreter.SIZE["cpu"])}
    found = call.services.templates.image(call.actor.project, ref)
    labels: Mapping[str, str] = {} if found is None else found.settings.labels
    return {
        **SIZE,
        "cpu": min(cores, SIZE["cpu"]),
        **{name: int(labels[label]) for name, label in (("cpu", CPU), ("memory", MEMORY)) if labels.get(label, "").isdecimal()},
        "disk": max(_DISK, int(labels[DISK])) if labels.get(DISK, "").isdecimal() else _DISK,
    }


def _check_volumes(call: Call, mounts: Sequence[Mount]) -> None:
    """Raises `Refused` for volumes that are not there, all of them at once."""
    wrong = [f"\t- volume mount #{place}: volume '{mount.name[:80]}' not found" for place, mount in enumerate(mounts) if not _has_volume(call, mount.name)]
    if wrong:
        raise Refused(400, "invalid mounts:\n" + "\n".join(wrong))


def _has_volume(call: Call, name: str) -> bool:
    return any(record.name == name for record in call.services.volumes.of(call.actor.project))


def _native(wanted: NewSandbox, timeout: int, size: Mapping[str, float], project: str) -> SandboxCreate:
    if wanted.iam is not None and wanted.iam.tokens:
        raise Refused(400, "iam: sandboxes have no workload identity here; put secrets into the headers of network rules instead")
    if (mask := _mask(wanted)) is not None and _HOST.fullmatch(mask.replace("${PORT}", "1")) is None:
        raise Refused(400, f"maskRequestHost: {mask[:80]!r} is no host name with or without a port; ${{PORT}} stands for the port")
    if wanted.network is not None and wanted.network.https_ports:
        raise Refused(400, "httpsPorts: what serves TLS inside a sandbox can't be reached by a URL; let it serve plain HTTP, which is given TLS outside")
    given = timeout if wanted.timeout is None else wanted.timeout
    if given <= 0:
        raise Refused(400, "Timeout must be greater than 0")
    closed = wanted.network is not None or wanted.allow_internet_access is not None
    return SandboxCreate.model_validate(
        {
            "image": image(wanted.template_id, project),
            **size,
            "timeout": given,
            "on_timeout": on_timeout(wanted),
            "env": wanted.env_vars or {},
            "tags": wanted.metadata or {},
            "volumes": {mount.path: {"volume": mount.name} for mount in wanted.volume_mounts or []},
            "public_ports": "all" if wanted.network is None or wanted.network.allow_public_traffic is not False else [],
            "egress": policy(wanted.network or Network(), internet=wanted.allow_internet_access) if closed else None,
        }
    )


def _mask(wanted: NewSandbox) -> str | None:
    return wanted.network.mask_request_host if wanted.network is not None else None


def on_timeout(wanted: NewSandbox) -> Any:
    """What happens at its deadline. Raises `Refused`."""
    if not wanted.auto_pause:
        if wanted.auto_pause_memory is False:
            raise Refused(400, "autoPauseMemory=false only applies when autoPause is true.")
        if wanted.resumes:
            raise Refused(400, "autoResume: only a sandbox that is paused at its deadline can be resumed; set autoPause too")
        return "terminate"
    if wanted.auto_pause_memory is not False:
        return "pause"
    if wanted.resumes:
        raise Refused(400, "autoResume: a sandbox paused without its memory is not resumed by traffic; connect to it")
    return "stop"


def _facade(wanted: NewSandbox, *, secure: bool) -> Mapping[str, Any]:
    kept: dict[str, Any] = {"secure": secure if wanted.secure is None else wanted.secure}
    if wanted.allow_internet_access is not None:
        kept["internet"] = wanted.allow_internet_access
    if wanted.network is not None:
        kept["network"] = wanted.network.model_dump(exclude_none=True, by_alias=True)
    if wanted.volume_mounts:
        kept["volumes"] = [mount.model_dump() for mount in wanted.volume_mounts]
    if wanted.resumes:
        kept["auto_resume"] = True
    return kept


def image(template: str, project: str) -> str:
    """The image that a template's name or id means: `name:default` is `name`. Raises `Refused` for a name that is another's."""
    name = named(template, project).removesuffix(":default").removesuffix(":latest")
    return interpreter.IMAGE if name == interpreter.TEMPLATE else name


async def get(call: Call) -> Response:
    call.actor.require(Permission.LOOK)
    return told(detail(await call.sandbox(), call.tokens, call.domain))


async def kill(call: Call) -> Response:
    call.actor.require(Permission.USE)
    record = await call.sandbox()
    await living(record.id, call.services.sandboxes.delete(call.actor, record.id))
    return Response(status_code=204)


async def listing(call: Call) -> Response:
    """Version 1: those that run, all at once."""
    call.actor.require(Permission.LOOK)
    metadata = _metadata(call)
    found = [record for record in _records(call) if state(record) == "running" and _tagged(record, metadata)]
    return told([listed(record) for record in reversed(found)])


async def listing_v2(call: Call) -> Response:
    """In pages; `X-Next-Token` leads to the next one."""
    call.actor.require(Permission.LOOK)
    limit = call.number("limit", _PAGE, most=_PAGE) or _PAGE
    descending = _descending(call)
    states = _states(call)
    matching = _matching(call)
    running = [record for record in matching if state(record) == "running"]
    found = [record for record in matching if state(record) in states]
    if descending:
        found.reverse()
    if (before := pages.position(call.query("nextToken"))) is not None:
        found = [record for record in found if ((record.created_at, record.id) < before if descending else (record.created_at, record.id) > before)]
    headers = {"X-Total-Running": str(len(running))} if "running" in states else {}
    if len(found) > limit:
        headers["X-Next-Token"] = pages.cursor(found[limit - 1].created_at, found[limit - 1].id)
    return told([listed(record) for record in found[:limit]], headers=headers)


def _records(call: Call) -> list[Record]:
    """Those of the project that live, the oldest first."""
    found = [record for record in call.services.sandboxes.ledger.registry.of(call.actor.project) if record.state is not State.CREATING]
    return sorted(found, key=lambda record: (record.created_at, record.id))


def _matching(call: Call) -> list[Record]:
    """Those that are asked for by metadata, template and time; whatever their state. Raises `Refused`."""
    metadata, template, after = _metadata(call), call.query("template"), call.query("startedAfter")
    if template is not None and ":" in template:
        raise Refused(400, "Invalid template: tags are not supported here because sandboxes are not tag-scoped")
    begun = None if after is None else _moment(after)
    wanted = None if template is None else image(template, call.actor.project)
    return [
        record
        for record in _records(call)
        if _tagged(record, metadata)
        and (wanted is None or wanted in (record.image_id, record.image.partition(":")[0]))
        and (begun is None or (record.started_at or record.created_at) >= begun)
    ]


def _metadata(call: Call) -> list[tuple[str, str]]:
    # The clients encode names and values once before they encode the whole.
    return [(unquote(name), unquote(value)) for name, value in parse_qsl(call.query("metadata") or "", keep_blank_values=True)]


def _tagged(record: Record, metadata: Sequence[tuple[str, str]]) -> bool:
    return all(record.tags.get(name) == value for name, value in metadata)


def _states(call: Call) -> set[str]:
    given = {word for text in call.request.query_params.getlist("state") for word in text.split(",") if word}
    if unknown := given - _BOTH:
        raise Refused(400, f"state: {min(unknown)[:40]!r} is neither running nor paused")
    return given or set(_BOTH)


def _descending(call: Call) -> bool:
    if (order := call.query("order")) not in (None, "asc", "desc"):
        raise Refused(400, f"Invalid order parameter: unknown order {order[:40]!r}")
    return order != "asc"


def _moment(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise Refused(400, f"startedAfter: {text[:60]!r} is no time") from None
