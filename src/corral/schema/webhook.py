"""Where a project wants to be told: of connections that wait for a decision, and of what happens to its sandboxes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field, SecretStr

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


WebhookUrl = Annotated[str, Field(min_length=1, max_length=2048, description="https, of a public address"), AfterValidator(_url)]


class WebhookSet(Request):
    """PUT /v1/approvals/webhook."""

    url: WebhookUrl


class Webhook(Answer):
    """GET and PUT /v1/approvals/webhook."""

    url: str
    created_at: datetime
    secret: str | None = Field(default=None, description="what requests are signed with; only told when it was made")


LifeKind = Literal[
    "sandbox.created",
    "sandbox.running",
    "sandbox.updated",
    "sandbox.frozen",
    "sandbox.thawed",
    "sandbox.paused",
    "sandbox.resumed",
    "sandbox.stopped",
    "sandbox.terminated",
    "sandbox.failed",
    "snapshot.created",
]
"""Kinds of events that webhooks can tell of."""
LIFE: tuple[LifeKind, ...] = get_args(LifeKind)
_USUAL: tuple[LifeKind, ...] = tuple(kind for kind in LIFE if kind not in ("sandbox.frozen", "sandbox.thawed"))

Kinds = Annotated[list[LifeKind], Field(min_length=1, max_length=len(LIFE))]
Tags = Annotated[dict[str, str], Field(max_length=64)]
WebhookSecret = Annotated[SecretStr, Field(min_length=1, max_length=256)]
WebhookName = Annotated[str, Field(max_length=128)]


class EventWebhookCreate(Request):
    """POST /v1/webhooks."""

    model_config = ConfigDict(hide_input_in_errors=True)

    url: WebhookUrl
    kinds: Kinds = Field(default_factory=lambda: [*_USUAL], description="of which events; left out: of all but `sandbox.frozen` and `sandbox.thawed`")
    tags: Tags = Field(default_factory=dict, description="only of sandboxes that have these")
    name: WebhookName = Field("", description="for people")
    enabled: bool = True
    secret: WebhookSecret | None = Field(None, description="what requests are signed with; null: one is made, and told in this answer only")


class EventWebhookUpdate(Request):
    """PATCH /v1/webhooks/{webhook}. What is left out stays."""

    model_config = ConfigDict(hide_input_in_errors=True)

    url: WebhookUrl | None = None
    kinds: Kinds | None = None
    tags: Tags | None = None
    name: WebhookName | None = None
    enabled: bool | None = Field(None, description="what happened while it was not is not told afterwards")
    secret: WebhookSecret | None = None


class EventWebhook(Answer):
    """Where signed requests tell of events."""

    id: str
    project: str
    name: str
    url: str
    kinds: list[str]
    tags: dict[str, str]
    enabled: bool
    dialect: str = Field(description="in whose form it is told: `corral`, or `e2b` of one that E2B's API made")
    position: int = Field(description="`seq` of the newest event that it was told of, or would have been")
    created_at: datetime
    secret: str | None = Field(default=None, description="only told when it was made here")


class EventWebhooks(Answer):
    """GET /v1/webhooks."""

    webhooks: list[EventWebhook]
