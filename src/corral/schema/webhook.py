"""Where a project wants to be told of connections that wait for a decision."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from corral.schema.model import Answer, Request


def _url(text: str) -> str:
    parts = urlsplit(text)
    if (
        parts.scheme != "https"
        or not parts.hostname
        or parts.username is not None
        or parts.fragment
        or not text.isascii()
        or not text.isprintable()
        or " " in text
    ):
        raise ValueError("give an https URL without a user and a fragment, such as https://example.com/corral")
    _ = parts.port  # raises ValueError for one that is none
    return text


class WebhookSet(Request):
    """PUT /v1/approvals/webhook."""

    url: Annotated[str, Field(min_length=1, max_length=2048), AfterValidator(_url)] = Field(description="https, of a public address")


class Webhook(Answer):
    """GET and PUT /v1/approvals/webhook."""

    url: str
    created_at: datetime
    secret: str | None = Field(default=None, description="what requests are signed with; only told when it was made")
