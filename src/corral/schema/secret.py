"""Secrets: values used on a sandbox's behalf outside it. Their values are never told again."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field, SecretStr, model_validator

from corral.schema.model import Answer, Request

SecretName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
SecretTags = Annotated[dict[Annotated[str, Field(min_length=1, max_length=128)], Annotated[str, Field(max_length=1024)]], Field(max_length=32)]
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SecretCreate(Request):
    """POST /v1/secrets, and PUT /v1/secrets/{name} with the same name to change the value."""

    model_config = ConfigDict(hide_input_in_errors=True)

    name: SecretName
    value: SecretStr = Field(min_length=1, max_length=65_536)
    tags: SecretTags | None = Field(None, description="what you want to know of it, for all to read; null: none, or when it is changed those that it has")


class Secret(Answer):
    """A secret, without its value."""

    id: str
    name: str
    project: str
    version: int = Field(default=1, description="how many values it has had")
    tags: dict[str, str] = Field(default_factory=dict)
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

    @model_validator(mode="after")
    def _can_be_a_variable(self) -> SecretUse:
        if self.env is None and _VARIABLE.fullmatch(self.name) is None:
            raise ValueError(f"a variable can't be called {self.name}: say with env what it is called")
        return self

    @property
    def variable(self) -> str:
        return self.env or self.name
