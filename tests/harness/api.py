"""The bare HTTP API of a server under test, with nothing of the SDK between."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import httpx2

from corral.sdk.sse import Event, Parser
from harness.server import Server


class Api:
    """Requests with one key. `ok` and `refused` say what is expected."""

    def __init__(self, server: Server, key: str | None = None) -> None:
        self.server = server
        self.key = server.key if key is None else key
        self.headers = {"Authorization": f"Bearer {self.key}"}
        self._client = httpx2.Client(base_url=server.url, headers=self.headers, timeout=60)

    def close(self) -> None:
        self._client.close()

    def request(self, method: str, path: str, **how: Any) -> httpx2.Response:
        return self._client.request(method, path, **how)

    def ok(self, method: str, path: str, *, status: int = 200, **how: Any) -> Any:
        """The JSON of an answer that must succeed (None without a body)."""
        answer = self.request(method, path, **how)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def refused(self, code: str, method: str, path: str, *, status: int | None = None, **how: Any) -> dict[str, Any]:
        """The error of an answer that must be refused with this code, in the one form that errors have."""
        answer = self.request(method, path, **how)
        assert answer.status_code >= 400, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        body = answer.json()
        assert set(body) == {"error"}
        assert set(body["error"]) == {"code", "message", "hint", "details"}
        assert body["error"]["code"] == code, body
        assert status is None or answer.status_code == status
        return body["error"]

    @contextlib.contextmanager
    def events(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **how: Any) -> Iterator[Iterator[Event]]:
        """The server-sent events of an answer. Leaving the block hangs up."""
        with self._client.stream(method, path, headers={"Accept": "text/event-stream", **(headers or {})}, **how) as answer:
            assert answer.status_code < 300, f"{answer.status_code} {answer.read().decode()}"
            assert answer.headers["content-type"].startswith("text/event-stream")
            yield _parsed(answer)

    def create(self, **fields: Any) -> dict[str, Any]:
        """A running sandbox of the smallest image."""
        return self.ok("POST", "/v1/sandboxes", status=201, json={"image": "tiny", **fields})

    def delete(self, sandbox: str) -> dict[str, Any]:
        return self.ok("DELETE", f"/v1/sandboxes/{sandbox}")

    def run(self, sandbox: str, command: str, **fields: Any) -> tuple[bytes, bytes, dict[str, Any]]:
        """Run a command to its end: standard output and error, and the process."""
        started = self.ok("POST", f"/v1/sandboxes/{sandbox}/processes", status=201, json={"command": command, **fields})
        path = f"/v1/sandboxes/{sandbox}/processes/{started['id']}"
        ended = self.ok("GET", f"{path}/wait", params={"timeout": 60})
        assert not ended["running"], f"{command} does not end"
        return self.request("GET", f"{path}/stdout").content, self.request("GET", f"{path}/stderr").content, ended


def _parsed(answer: httpx2.Response) -> Iterator[Event]:
    parser = Parser()
    for piece in answer.iter_bytes():
        yield from parser.feed(piece)


def data(event: Event) -> Any:
    """The JSON of an event."""
    return json.loads(event.data)


def raw(server: Server, request: bytes) -> bytes:
    """Send bytes as they are, hang up our half, and give all that comes back."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65_536):
                answer += piece
        return answer
