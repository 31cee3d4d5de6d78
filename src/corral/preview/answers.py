"""What Corral itself answers: a page for people, JSON for programs. No I/O."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from corral.preview import head
from corral.preview.head import BadHead, Request

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>{refresh}<style>
body{{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:18vh auto 0;padding:0 1.5rem;color:#222;background:#fafaf8}}h1{{font-size:1.3rem;margin:0 0 .5rem}}
p{{margin:.4rem 0}}code{{background:#eee;padding:.1em .3em;border-radius:3px}}.c{{color:#888;font-size:.85rem;margin-top:1.5rem}}
@media(prefers-color-scheme:dark){{body{{color:#ddd;background:#1b1b1a}}code{{background:#333}}}}</style></head>
<body><h1>{title}</h1><p>{message}</p>{hint}<p class="c">{status} {code} · Corral</p></body></html>
"""


@dataclass(eq=False)
class Refusal(Exception):
    """A request that is answered here. `retry`: seconds after which it is worth another try."""

    status: int
    code: str
    message: str
    hint: str | None = None
    title: str | None = None
    retry: int | None = None
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: dict[str, Any] | None = None
    """In place of Corral's own words, for programs."""

    def __str__(self) -> str:
        return self.message


def of_bad_head(error: BadHead) -> Refusal:
    hint = "send well-formed HTTP/1.1" if error.status == 400 else None
    return Refusal(error.status, error.code, error.message, hint)


def encode(refusal: Refusal, asked: Request | None, *, close: bool) -> bytes:
    """The whole answer. People are those whose programs ask for HTML."""
    people = asked is not None and b"text/html" in b",".join(asked.names.get(b"accept", ()))
    body = _page(refusal) if people else _json(refusal)
    fields: list[tuple[bytes, bytes]] = [
        (b"Content-Type", b"text/html; charset=utf-8" if people else b"application/json"),
        (b"Content-Length", b"%d" % len(body)),
        (b"Cache-Control", b"no-store"),
        (b"Corral-Error", refusal.code.encode()),
        *refusal.headers,
    ]
    if people:
        fields.append((b"Content-Security-Policy", b"default-src 'none'; style-src 'unsafe-inline'"))
    if refusal.status == 401:
        fields.append((b"WWW-Authenticate", b"Bearer"))
    if refusal.retry is not None:
        fields.append((b"Retry-After", b"%d" % refusal.retry))
    if close:
        fields.append((b"Connection", b"close"))
    if asked is not None and asked.method == b"HEAD":
        body = b""
    return head.encode(_status_line(refusal.status), fields) + body


def redirect(location: bytes, fields: Sequence[tuple[bytes, bytes]], *, close: bool) -> bytes:
    every = [(b"Location", location), (b"Content-Length", b"0"), (b"Cache-Control", b"no-store"), (b"Referrer-Policy", b"no-referrer"), *fields]
    return head.encode(_status_line(302), [*every, (b"Connection", b"close")] if close else every)


def _status_line(status: int) -> bytes:
    return b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())


def _json(refusal: Refusal) -> bytes:
    if refusal.body is not None:
        return json.dumps(refusal.body, separators=(",", ":")).encode()
    told = {"code": refusal.code, "message": refusal.message, "hint": refusal.hint, "details": refusal.details}
    return json.dumps({"error": told}).encode()


def _page(refusal: Refusal) -> bytes:
    hint = f"<p>{html.escape(refusal.hint)}</p>" if refusal.hint else ""
    refresh = f'<meta http-equiv="refresh" content="{refusal.retry}">' if refusal.retry else ""
    title = refusal.title or HTTPStatus(refusal.status).phrase
    text = _PAGE.format(
        title=html.escape(title), message=html.escape(refusal.message), hint=hint, refresh=refresh, status=refusal.status, code=html.escape(refusal.code)
    )
    return text.encode()
