"""What browsers are told before they let a page ask: any page may. What opens something here is a key, a token or a signature, and browsers send none of these by themselves."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import Message, Scope, Send

_ANSWERED = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "*"}
_BEFORE = {
    **_ANSWERED,
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
    # The star does not mean this one.
    "Access-Control-Allow-Headers": "Authorization, *",
    "Access-Control-Max-Age": "7200",
}

_SANDBOX = "e2b-sandbox-id"


def asked_before(scope: Scope, *, ours: bool) -> Response | None:
    """The answer to a browser that asks whether a page may ask. `ours`: what is asked for is E2B's; where all sandboxes have one address only the headers tell that the page would send."""
    if scope["method"] != "OPTIONS":
        return None
    ours = ours or _SANDBOX in Headers(scope=scope).get("access-control-request-headers", "").lower()
    return Response(status_code=204, headers=_BEFORE) if ours else None


def told(scope: Scope, send: Send) -> Send:
    """`send`, so that the page is given the answer."""
    if "origin" not in Headers(scope=scope):
        return send

    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(_ANSWERED)
        await send(message)

    return marked
