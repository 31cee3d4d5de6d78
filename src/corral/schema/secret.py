"""Secrets: values used on a sandbox's behalf outside it. Their values are never told again."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field, SecretStr

from corral.schema.model import Answer, Request

SecretName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]


class SecretCreate(Request):
    """POST /v1/secrets, and PUT /v1/secrets/{name} with the same name to change the value."""

    model_config = ConfigDict(hide_input_in_errors=True)

    name: SecretName
    value: SecretStr = Field(min_length=1, max_length=65_536)


class Secret(Answer):
    """A secret, without its value."""

    id: str
    name: str
    project: str
    created_at: datetime
    changed_at: datetime
    used_at: datetime | None = Field(default=None, description="when a sandbox, or the proxy for one, was last given it")


class Secrets(Answer):
    """GET /v1/secrets."""

    secrets: list[Secret]


class SecretUse(Request):
    """A secret given to a sandbox as a plain environment variable: its programs can read it."""

    name: SecretName
    env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,255}$")] | None = Field(None, description="the variable; null: the secret's name")

    @property
    def variable(self) -> str:
        return self.env or self.name
