"""The body of every error."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from corral.schema.model import Answer


class ErrorInfo(Answer):
    code: str = Field(description="a stable word: see corral.errors")
    message: str
    hint: str | None = None
    details: dict[str, Any] = Field(default_factory=dict)


class ErrorBody(Answer):
    error: ErrorInfo
