"""What answers at port 49983: who may come in, and which call is meant."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response

from corral.api.services import Services
from corral.control.record import Record
from corral.facades.e2b.envd import PORT, files, filesystem, process
from corral.facades.e2b.envd.watch import Watchers, watch_dir
from corral.facades.e2b.inside import Given, Homes, Inside, named_user
from corral.facades.e2b.ports import CLOSED, GONE
from corral.facades.e2b.refusal import JSON, Refused, body, compact
from corral.facades.e2b.tokens import Tokens, signature

Call = Callable[[Request, Inside], Awaitable[Response]]

_OPEN = frozenset({"/health"})
_UNAUTHORIZED = "unauthorized access, please provide a valid access token or method signing if supported"


class Desk:
    """Answers what a client asks of port 49983 of any sandbox."""

    def __init__(self, services: Services, tokens: Tokens) -> None:
        self._services = services
        self._tokens = tokens
        self._homes = Homes()
        self._given = Given()
        self._watchers = Watchers()
        self._calls: Mapping[tuple[str, str], Call] = {
            ("POST", "/process.Process/Start"): process.start,
            ("POST", "/process.Process/Connect"): process.connect,
            ("POST", "/process.Process/List"): process.listing,
            ("POST", "/process.Process/Update"): process.update,
            ("POST", "/process.Process/SendInput"): process.send_input,
            ("POST", "/process.Process/StreamInput"): process.stream_input,
            ("POST", "/process.Process/SendSignal"): process.send_signal,
            ("POST", "/process.Process/CloseStdin"): process.close_stdin,
            ("POST", "/filesystem.Filesystem/Stat"): filesystem.stat,
            ("POST", "/filesystem.Filesystem/MakeDir"): filesystem.make_dir,
            ("POST", "/filesystem.Filesystem/Move"): filesystem.move,
            ("POST", "/filesystem.Filesystem/ListDir"): filesystem.list_dir,
            ("POST", "/filesystem.Filesystem/Remove"): filesystem.remove,
            ("POST", "/filesystem.Filesystem/WatchDir"): watch_dir,
            ("POST", "/filesystem.Filesystem/CreateWatcher"): self._watchers.create,
            ("POST", "/filesystem.Filesystem/GetWatcherEvents"): self._watchers.events,
            ("POST", "/filesystem.Filesystem/RemoveWatcher"): self._watchers.remove,
            ("GET", "/files"): files.download,
            ("HEAD", "/files"): files.download,
            ("POST", "/files"): files.upload,
            ("POST", "/files/compose"): files.compose,
            ("GET", "/health"): _health,
            ("GET", "/envs"): _envs,
            ("GET", "/metrics"): _metrics,
        }

    async def answer(self, request: Request, record: Record) -> Response:
        """The answer for a running sandbox. Raises `Refused`."""
        path = request.url.path
        call = self._calls.get((request.method, path))
        if call is None:
            raise Refused(404, f"there is no {request.method} {path[:200]} at port {PORT} of a sandbox")
        user = self._admit(request, record, path)
        return await call(request, Inside(self._services, self._homes, self._given, record, user))

    def close(self) -> None:
        self._watchers.close()

    def _admit(self, request: Request, record: Record, path: str) -> str | None:
        """The user that is named. Raises `Refused` without a token that opens this sandbox, or an address signed with it."""
        if path not in _OPEN and record.facade.get("secure", True):
            token = request.headers.get("x-access-token")
            if path == "/files" and not token:
                self._check_signature(request, record.id)
            elif not self._tokens.matches(token, "envd", record.id):
                wrong = "access token present in header but does not match" if path == "/files" else _UNAUTHORIZED
                raise Refused(401, wrong)
        if path == "/files":
            return request.query_params.get("username") or named_user(request.headers.get("authorization"))
        return named_user(request.headers.get("authorization"))

    def _check_signature(self, request: Request, id: str) -> None:
        if (given := request.query_params.get("signature")) is None:
            raise Refused(401, "missing signature query parameter")
        if not self.signed(request, id, given):
            raise Refused(401, "invalid signature")
        files.check_expiry(request.query_params.get("signature_expiration"))

    def signed(self, request: Request, id: str, given: str) -> bool:
        """Whether an address of a file was signed with the token of this sandbox."""
        query = request.query_params
        operation = "write" if request.method == "POST" else "read"
        wanted = signature(self._tokens.of("envd", id), query.get("path", ""), operation, query.get("username", ""), query.get("signature_expiration"))
        return hmac.compare_digest(given.encode(), wanted.encode())


async def _health(_request: Request, _inside: Inside) -> Response:
    return Response(status_code=204)


async def _envs(_request: Request, inside: Inside) -> Response:
    return Response(compact(dict(inside.record.env)), media_type=JSON)


async def _metrics(_request: Request, inside: Inside) -> Response:
    sample = await inside.services.node.sample_now(inside.record.id)
    cores = max(1, round(inside.record.cpu))
    return Response(
        compact(
            {
                "ts": int(sample.at.timestamp()),
                "cpu_count": cores,
                "cpu_used_pct": round(100 * sample.cpu / cores, 2),
                "mem_total": sample.memory_limit << 20,
                "mem_used": int(sample.memory * (1 << 20)),
                "mem_total_mib": sample.memory_limit,
                "mem_used_mib": int(sample.memory),
                "disk_used": int(sample.disk * (1 << 20)),
                "disk_total": sample.disk_limit << 20,
            }
        ),
        media_type=JSON,
    )


def not_found(id: str) -> Response:
    """The answer when there is no such sandbox, or it does not run; the clients go by the words."""
    return body(502, GONE, sandboxId=id)


def port_closed(id: str, port: int) -> Response:
    """The answer when nothing listens at the port."""
    return body(502, CLOSED, sandboxId=id, port=port)
