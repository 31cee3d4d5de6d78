"""The two base classes of every public type: requests refuse what they do not know, answers ignore it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Request(BaseModel):
    """Something a client sends. An unknown field is an error, since an option is enforced or rejected, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(BaseModel):
    """Something the server sends. Unknown fields are ignored, so that an older SDK can talk to a newer server."""

    model_config = ConfigDict(extra="ignore", frozen=True)
