"""Previews: ports of sandboxes as they are seen from outside."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from corral.schema.model import Answer, Request

PortNumber = Annotated[int, Field(ge=1, le=65_535)]
PublicPorts = Annotated[list[PortNumber], Field(max_length=256)] | Literal["all"]
LONGEST = 366 * 86_400.0


class Preview(Answer):
    """GET /v1/sandboxes/{id}/previews/{port}."""

    sandbox: str
    port: int
    url: str = Field(description="by host name")
    path_url: str = Field(description="the same by path, where names below the domain don't resolve; its pages can't keep cookies")
    tunnel_url: str = Field(description="a websocket for any TCP connection to the port: see docs/previews.md")
    public: bool = Field(description="whether anybody who has the URL may use it")
    host: str | None = Field(None, description="what the server inside is told as Host instead of the URL's")


class PreviewChange(Request):
    """PUT /v1/sandboxes/{id}/previews/{port}: only the fields given are changed."""

    public: bool | None = None
    host: str | None = Field(None, max_length=255, pattern=r"^[A-Za-z0-9.:\[\]-]*$", description="empty: the URL's own again")


class LinkCreate(Request):
    """POST /v1/sandboxes/{id}/previews/{port}/links: a URL that needs no key."""

    expires: float = Field(3600, gt=0, le=LONGEST, allow_inf_nan=False, description="seconds from now")
    path: str = Field("/", max_length=2048, pattern=r"^/[\x21-\x7e]*$", description="what it opens: this path and those below it")


class Link(Answer):
    """A signed link. It ends at `expires_at`, or when the sandbox's preview token is rotated."""

    url: str
    expires_at: datetime


class PreviewToken(Answer):
    """What opens every port of a sandbox, as the header `Corral-Token`; all its links hang on it."""

    token: str


class Hold(Request):
    """POST /v1/sandboxes/{id}/hold: keeps it awake and counts as activity for so many seconds."""

    seconds: float = Field(ge=0, le=86_400, allow_inf_nan=False, description="from now; 0 ends an earlier one")
    reason: str = Field("", max_length=256, description="for the event that tells of it")


class Held(Answer):
    until: datetime | None
