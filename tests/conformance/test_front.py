"""Caddy before the edge, as in production: it ends the TLS of a wildcard name and speaks HTTP/2 with browsers."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from corral import Client, Sandbox
from corral.places import Places
from harness import fetched, homes, web
from harness.server import Server, free_port

CADDYFILE = """
{{
    admin off
    skip_install_trust
    auto_https disable_redirects
}}
*.{domain}:{port}, {domain}:{port} {{
    tls internal
    reverse_proxy 127.0.0.1:{edge}
}}
"""
DOMAIN = "boxes.test"


@dataclass
class Front:
    """How the world reaches the server. `authority`: what its certificates are signed by."""

    server: Server
    port: int
    authority: Path

    def curl(self, url: str, *words: str) -> subprocess.CompletedProcess[str]:
        """What it prints ends with the status and the protocol."""
        to = ["--resolve", f"{urlsplit(url).hostname}:{self.port}:127.0.0.1", "--cacert", str(self.authority)]
        return subprocess.run(
            ["curl", "-sS", "--max-time", "60", *to, "-w", "\n%{http_code} %{http_version}", *words, url], capture_output=True, text=True, check=True
        )


@pytest.fixture(scope="module")
def front(shared: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    program = fetched.debian(shared, "caddy", "caddy") / "usr/bin/caddy"
    home = homes.make("front")
    homes.furnish(Places(home), shared, ["base"])
    port, edge = free_port(), free_port()
    server = Server(home, extra={"CORRAL_POOL": "2", "CORRAL_EDGE_PORT": str(edge)})
    own = tmp_path_factory.mktemp("caddy")
    (own / "Caddyfile").write_text(CADDYFILE.format(domain=DOMAIN, port=port, edge=edge))
    with homes.running(server, "--domain", DOMAIN, "--edge-url", f"https://{DOMAIN}:{port}"):
        caddy = subprocess.Popen(
            [program, "run", "--config", own / "Caddyfile", "--adapter", "caddyfile"],
            env={"HOME": str(own), "XDG_DATA_HOME": str(own), "PATH": os.defpath},
            stderr=subprocess.PIPE,
        )
        try:
            assert caddy.stderr is not None
            for line in caddy.stderr:
                if b"serving initial configuration" in line:
                    break
            else:
                raise AssertionError("caddy has ended")
            yield Front(server, port, own / "caddy/pki/authorities/local/root.crt")
        finally:
            caddy.kill()
            caddy.communicate()


@pytest.fixture(scope="module")
def box(front: Front) -> Iterator[Sandbox]:
    with Client(url=front.server.url, key=front.server.key) as client, client.sandboxes.create("base") as sandbox:
        process = sandbox.exec("python3", "-c", web.SERVER, sandbox.id, "8000")
        assert next(iter(process.stdout)) == "listening\n"
        yield sandbox


def test_a_signed_link_is_followed_over_http_2_and_kept_as_a_secure_cookie(front: Front, box: Sandbox, tmp_path: Path) -> None:
    preview = box.preview(8000)
    assert preview.url == f"https://8000-{box.id}.{DOMAIN}:{front.port}"
    assert front.curl(preview.url).stdout.endswith("\n401 2")
    jar = tmp_path / "jar"
    signed = preview.signed(expires=600)
    answer = front.curl(signed, "-L", "-c", str(jar), "-H", "Accept: text/html")
    body, _, told = answer.stdout.rpartition("\n")
    assert told == "200 2"
    assert "\tTRUE\t" in next(line for line in jar.read_text().splitlines() if "corral_preview" in line), "the cookie goes over plain HTTP as well"
    seen = dict(json.loads(body)["headers"])
    assert (seen["x-forwarded-proto"], seen["x-forwarded-for"]) == ("https", "127.0.0.1")
    assert "corral_preview" not in json.dumps(seen)


def test_what_a_client_says_of_itself_is_not_believed(front: Front, box: Sandbox) -> None:
    body = front.curl(box.preview(8000).url, "-H", f"Corral-Token: {box.preview_token()}", "-H", "X-Forwarded-For: 6.6.6.6").stdout.rpartition("\n")[0]
    assert dict(json.loads(body)["headers"])["x-forwarded-for"] == "127.0.0.1"


def test_a_websocket_passes(front: Front, box: Sandbox) -> None:
    host = f"8000-{box.id}.{DOMAIN}"
    context = ssl.create_default_context(cafile=str(front.authority))
    head = f"GET / HTTP/1.1\r\nHost: {host}:{front.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nCorral-Token: {box.preview_token()}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", front.port), timeout=60) as plain, context.wrap_socket(plain, server_hostname=host) as line:
        line.sendall(head.encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += line.recv(4096)
        assert answer.startswith(b"HTTP/1.1 101 ")
        line.sendall(b"there")
        back = answer.partition(b"\r\n\r\n")[2]
        while len(back) < 5:
            back += line.recv(4096)
        assert back == b"there"


def test_the_api_is_reached_by_its_own_name(front: Front) -> None:
    listed = front.curl(f"https://api.{DOMAIN}:{front.port}/v1/sandboxes", "-H", f"Authorization: Bearer {front.server.key}")
    assert listed.stdout.endswith("\n200 2")
