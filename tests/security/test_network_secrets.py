"""Secrets and approvals in real sandboxes: used from inside by programs that know nothing of it, and found nowhere."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from corral import Client, Sandbox, Secret
from corral.places import Places
from harness.fetch import fetch
from harness.internet import Internet
from harness.server import Server

VALUE = "sk-live-J4x9Qm2ZrT7vLw0e"
BROKERED: dict[str, Any] = {"rules": [{"to": ["api.example.com"], "inject": {"Authorization": "Bearer {{TOKEN}}"}}, {"to": ["www.example.com"]}]}


def holds(path: Path, value: bytes) -> bool:
    """Whether an ordinary file does; what the kernel makes up, and disks, don't count."""
    try:
        return path.is_file() and not path.is_symlink() and path.stat().st_size < 64 << 20 and value in path.read_bytes()
    except OSError:
        return False


@pytest.fixture
def token(net: Server) -> str:
    Secret.create("TOKEN", VALUE)
    return VALUE


def test_a_secret_is_used_from_inside_and_found_nowhere(net: Server, internet: Internet, token: str) -> None:
    try:
        with Sandbox.create("base", memory=256, egress=BROKERED) as sandbox:
            status, body, _ = fetch(sandbox, "https://api.example.com/echo")
            assert status == 200, body
            assert any(f"Authorization: Bearer {token}".encode() in head for head in internet.seen.requests), "the server got it"
            assert "placeholder" not in body
            assert token not in body
            internet.secret_echo = f"you said {token}".encode()
            status, body, headers = fetch(sandbox, "https://api.example.com/leak")
            assert body == "you said " + "*" * len(token)
            assert token not in headers
            # The other host gets what the program sent.
            assert fetch(sandbox, "http://www.example.com/echo")[1].count("Bearer placeholder") == 1
            assert fetch(sandbox, "http://api.example.com/echo")[0] == 403
            looked = sandbox.run(
                [
                    "sh",
                    "-c",
                    f"grep -rlF {token[:12]}'{token[12:]}' /etc /run /tmp /var /home /root /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null; true",
                ]
            )
            assert looked.stdout == ""
            assert token not in json.dumps([flow.model_dump(mode="json") for flow in sandbox.egress.flows()])
            assert token not in str(sandbox.egress.get())
            found = [path for path in (*net.home.rglob("*"), *Places(net.home).run.rglob("*")) if holds(path, token.encode())]
            assert found == []
    finally:
        Secret.delete("TOKEN")


def test_rules_on_content_can_come_later(net: Server) -> None:
    with Sandbox.create("base", memory=256, egress={"rules": [{"to": ["api.example.com"]}]}) as sandbox:
        # Spliced: of its certificate the sandbox knows nothing.
        assert "certificate" in fetch(sandbox, "https://api.example.com/")[1].lower()
        sandbox.egress.set({"rules": [{"to": ["api.example.com"], "http": {"methods": ["GET"], "path": "/v1/*"}}]})
        assert fetch(sandbox, "https://api.example.com/v1/x")[0] == 200
        status, body, _ = fetch(sandbox, "https://api.example.com/v2/x")
        assert status == 403
        assert json.loads(body)["error"]["code"] == "egress_denied"


def test_the_trust_is_in_the_systems_store_too(net: Server) -> None:
    with Sandbox.create("base", memory=256, egress={"rules": [{"to": ["api.example.com"], "inspect": True}]}) as sandbox:
        script = "import ssl, urllib.request; print(urllib.request.urlopen('https://api.example.com/', context=ssl.create_default_context(cafile='/etc/ssl/certs/ca-certificates.crt')).status)"
        assert sandbox.run(["env", "-u", "SSL_CERT_FILE", "python3", "-c", script]).stdout.strip() == "200"
        assert sandbox.run(["sh", "-c", "echo $NODE_EXTRA_CA_CERTS $GIT_SSL_CAINFO"]).stdout.split() == ["/etc/ssl/certs/ca-certificates.crt"] * 2


def test_a_connection_waits_until_somebody_allows_it(net: Server) -> None:
    with Sandbox.create("base", memory=256, egress={"rules": [{"to": ["www.example.com"], "action": "ask"}]}) as sandbox, Client() as client:
        answers: list[tuple[int, str, str]] = []
        waiting = threading.Thread(target=lambda: answers.append(fetch(sandbox, "http://www.example.com/x")))
        waiting.start()
        deadline = time.monotonic() + 30
        while not (approvals := sandbox.egress.approvals()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert (approvals[0].name, approvals[0].port, approvals[0].path) == ("www.example.com", 80, "/x")
        client.approvals.allow(approvals[0].id, scope="sandbox")
        waiting.join()
        assert answers[0][0] == 200
        assert fetch(sandbox, "http://www.example.com/y")[0] == 200
