"""Previews by TLS, with a server's own authority: what clients are told, and whom `corral trust` has believe it."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from corral import Client, Sandbox
from corral.places import Places
from harness import homes, web
from harness.server import Server
from harness.web import Wire


@dataclass
class Site:
    """A server in a sandbox, seen by TLS."""

    server: Server
    box: Sandbox
    port: int

    @property
    def name(self) -> str:
        return f"8000-{self.box.id}.corral.localhost"

    @property
    def host(self) -> str:
        return f"{self.name}:{self.port}"

    @property
    def authority(self) -> Path:
        return self.server.home / "keys" / "edge-ca.pem"

    def wire(self, context: ssl.SSLContext | None = None, name: str | None = None) -> Wire:
        return Wire(self.port, tls=context or ssl.create_default_context(cafile=str(self.authority)), name=name or self.name)


@pytest.fixture(scope="module")
def site(shared: Places) -> Iterator[Site]:
    home = homes.make("tls")
    homes.furnish(Places(home), shared, ["base"])
    server = Server(home, extra={"CORRAL_TLS_PORT": "0", "CORRAL_POOL": "2", "CORRAL_EDGE_PORT": "0"})
    with homes.running(server, "--tls"), Client(url=server.url, key=server.key) as client, client.sandboxes.create("base") as box:
        process = box.exec("python3", "-c", web.SERVER, box.id, "8000")
        assert process.stdout.readline() == "listening\n"
        url = box.preview(8000).url
        assert url.startswith("https://8000-")
        yield Site(server, box, int(url.rpartition(":")[2]))


def test_a_link_is_kept_as_a_cookie_that_goes_over_tls_only_and_the_server_is_told_of_it(site: Site) -> None:
    link = site.box.preview(8000).signed()
    line = site.wire()
    kept = line.ask("GET", link.partition(site.host)[2], site.host, "Accept: text/html")
    words = str(kept.header("set-cookie")).split("; ")
    assert (kept.status, "Secure" in words, "HttpOnly" in words) == (302, True, True)
    told = line.ask("GET", "/", site.host, f"Cookie: {words[0]}").json
    assert ["x-forwarded-proto", "https"] in told["headers"]
    line.close()


def test_a_websocket_passes_by_tls(site: Site) -> None:
    line = site.wire()
    token = f"Corral-Token: {site.box.preview_token()}"
    assert line.ask("GET", "/ws", site.host, token, "Connection: Upgrade", "Upgrade: websocket").status == 101
    line.say(b"there")
    assert line.some(5) == b"there"
    line.close()


def test_the_one_protocol_that_is_offered_is_spoken_and_the_certificate_is_for_this_domain_alone(site: Site) -> None:
    context = ssl.create_default_context(cafile=str(site.authority))
    context.set_alpn_protocols(["h2", "http/1.1"])
    line = site.wire(context)
    assert isinstance(line.socket, ssl.SSLSocket)
    assert line.socket.selected_alpn_protocol() == "http/1.1"
    line.close()
    for context, name in ((ssl.create_default_context(), site.name), (None, "corral.example")):
        with pytest.raises(ssl.SSLCertVerificationError):
            site.wire(context, name)


IN_PRIVATE = r"""
set -e
mount -t tmpfs none /usr/local/share/ca-certificates
cp -a /etc/ssl/certs "$WORK/certs" && mount --bind "$WORK/certs" /etc/ssl/certs
mount -t tmpfs none "$THEIRS"
ask() { curl -sS --max-time 60 -o /dev/null -w '%{http_code}\n' --resolve "$NAME:$PORT:127.0.0.1" -H "Corral-Token: $TOKEN" "https://$NAME:$PORT/" || echo "curl $?"; }
lists() { for at in "$HOME/.pki/nssdb" "$HOME/.mozilla/firefox/x.default" "$THEIRS/.pki/nssdb"; do certutil -L -d "sql:$at" | grep -c ' C,, *$' || true; done; }
new() { mkdir -p "$1" && certutil -N -d "sql:$1" --empty-password; }
new "$HOME/.pki/nssdb"; new "$HOME/.mozilla/firefox/x.default"; new "$THEIRS/.pki/nssdb"; chown -R "$SUDO_UID" "$THEIRS"
ask
"$PYTHON" -m corral trust --home "$CORRAL_HOME" --json >"$WORK/told"
ask; lists; stat -c %u "$THEIRS/.pki/nssdb/cert9.db"
"$PYTHON" -m corral trust >/dev/null
SUDO_UID=3999999999 "$PYTHON" -m corral trust >/dev/null
ask; lists
"$PYTHON" -m corral trust --remove >/dev/null
ask; lists
"""


@pytest.mark.skipif(shutil.which("certutil") is None or shutil.which("update-ca-certificates") is None, reason="libnss3-tools or ca-certificates are missing")
def test_whoever_is_told_to_trusts_it_and_their_browsers_and_then_no_more(site: Site, tmp_path: Path) -> None:
    """On this machine, with lists of certificates that only this test sees."""
    tmp_path.chmod(0o755)
    user = pwd.getpwnam("mail")
    given = {
        "WORK": str(tmp_path),
        "HOME": str(tmp_path / "home"),
        "THEIRS": user.pw_dir,
        "SUDO_UID": str(user.pw_uid),
        "NAME": site.name,
        "PORT": str(site.port),
        "TOKEN": site.box.preview_token(),
        "PYTHON": sys.executable,
        "CORRAL_HOME": str(site.server.home),
    }
    done = subprocess.run(["unshare", "-m", "sh", "-c", IN_PRIVATE], env={**os.environ, **given}, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    no, yes = "curl 60", "200"
    assert [word for word in done.stdout.splitlines() if word != "000"] == [
        no,
        *(yes, "1", "1", "1", str(user.pw_uid)),
        *(yes, "1", "1", "1"),
        *(no, "0", "0", "0"),
    ], done.stderr
    told = json.loads((tmp_path / "told").read_text())
    assert (told["trusted"], len(told["places"]), told["left"]) == (True, 4, [])
