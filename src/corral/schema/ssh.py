"""SSH into a sandbox."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from corral.schema.model import Answer


class SshAccess(Answer):
    """POST /v1/sandboxes/{id}/ssh: `ssh -p {port} {user}@{host}`, with the token as the password."""

    host: str
    port: int
    user: str = Field(description="the sandbox's id; `id+name` is another user in it")
    host_key: str = Field(description="the server's public key, as in known_hosts")
    token: str = Field(description="a password that is good for one login")
    expires_at: datetime
