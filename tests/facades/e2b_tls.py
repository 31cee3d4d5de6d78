"""What a program written for E2B does that has been given E2B_API_KEY, E2B_DOMAIN and SSL_CERT_FILE alone."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from urllib.parse import urlsplit

from e2b import Sandbox, Volume


def get(url: str) -> bytes:
    """As a browser does, which knows where *.localhost is; not every system's resolver does."""
    parts = urlsplit(url)
    assert parts.scheme == "https"
    assert parts.hostname is not None
    connection = http.client.HTTPSConnection(parts.hostname, parts.port)
    connection.sock = ssl.create_default_context().wrap_socket(socket.create_connection(("127.0.0.1", parts.port or 443)), server_hostname=parts.hostname)
    connection.request("GET", f"{parts.path or '/'}?{parts.query}")
    answer = connection.getresponse()
    assert answer.status == 200, answer.status
    return answer.read()


with Sandbox.create("base", timeout=300) as box:
    assert box.is_running()
    assert box.commands.run("echo inside; hostname").stdout == f"inside\n{box.sandbox_id}\n"
    box.files.write("kept/note.txt", "by a name of its own")
    assert [entry.name for entry in box.files.list("kept")] == ["note.txt"]
    assert get(box.download_url("kept/note.txt")) == b"by a name of its own"
    assert urlsplit(box.download_url("x")).hostname == f"49983-{box.sandbox_id}.{os.environ['E2B_DOMAIN'].partition(':')[0]}"

    box.commands.run("python3 -m http.server 8123 --directory kept", background=True)
    box.commands.run("until (exec 3<>/dev/tcp/127.0.0.1/8123) 2>/dev/null; do sleep 0.05; done")
    assert get(f"https://{box.get_host(8123)}/note.txt") == b"by a name of its own"

    same = Sandbox.connect(box.sandbox_id)
    assert same.files.read("kept/note.txt") == "by a name of its own"
    assert same.pause()
    assert Sandbox.connect(box.sandbox_id).commands.run("cat kept/note.txt").stdout == "by a name of its own"

volume = Volume.create("by-name")
volume.write_file("note", "without a sandbox")
assert volume.read_file("note") == "without a sandbox"
assert Volume.destroy(volume.volume_id)
print("all of it")  # noqa: T201 - for the test
