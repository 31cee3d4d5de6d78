"""How a sandbox is told that, why, and what to do: as an HTTP answer where it can read one, else as an alert of TLS."""

from __future__ import annotations

import json
import socket
import struct

from corral.net.policy import Ruling

HEADER = "x-corral-denied"
CODE = "egress_denied"
HINT = "This is a policy, not a fault: trying again does not help. Ask whoever runs this sandbox to allow it (corral egress set, or sandbox.egress.set)."
ACCESS_DENIED, NO_APPLICATION_PROTOCOL = 49, 120
"""Alerts of TLS (RFC 8446, 6.2; RFC 7301): clients say so."""
_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
"""A server's first frame of HTTP/2, which says nothing."""
_HTTP_1_1_REQUIRED = 13
_TOLD = 1000
"""Bytes of a reason at most."""


def body(ruling: Ruling, *, host: str | None, port: int, method: str | None = None, path: str | None = None) -> bytes:
    """The error in the form of Corral's API."""
    details = {"host": host, "port": port, "rule": ruling.title, "method": method, "path": path}
    error = {
        "code": CODE,
        "message": ruling.reason or "denied by the egress policy",
        "hint": HINT,
        "details": {k: v for k, v in details.items() if v is not None},
    }
    return json.dumps({"error": error}).encode() + b"\n"


def failure(reason: str, *, host: str | None, port: int) -> bytes:
    """For what was allowed and not reached."""
    error = {
        "code": "egress_failed",
        "message": reason,
        "hint": "The egress policy allows it; the other side did not answer.",
        "details": {"host": host, "port": port},
    }
    return json.dumps({"error": error}).encode() + b"\n"


def goaway(connection: socket.socket, reason: str) -> None:
    """End a connection that has begun with HTTP/2: use HTTP/1.1 (RFC 9113, 6.8 and 7), with the reason for whoever prints it."""
    told = reason.encode()[:_TOLD]
    frame = (8 + len(told)).to_bytes(3) + b"\x07\0" + bytes(8) + _HTTP_1_1_REQUIRED.to_bytes(4) + told
    _send_last(connection, _SETTINGS + frame)


def reset(connection: socket.socket) -> None:
    """Close with a reset, so that nobody waits."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass
    connection.close()


def alert(connection: socket.socket, description: int = ACCESS_DENIED) -> None:
    """End a connection that has begun with a TLS hello."""
    _send_last(connection, b"\x15\x03\x03\x00\x02\x02" + bytes([description]))


def _send_last(connection: socket.socket, data: bytes) -> None:
    try:
        connection.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        connection.shutdown(socket.SHUT_WR)
        # What was sent and never read would make the kernel reset the connection, and the alert be lost.
        while connection.recv(65536, socket.MSG_DONTWAIT):
            pass
    except OSError:
        pass
    connection.close()
