"""How a registry wants to be asked (distribution-spec, Docker's token authentication): its challenge, and where the token for it is to be had."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from corral.errors import Forbidden, Unsupported

_PAIR = re.compile(r'\s*([A-Za-z_][A-Za-z0-9_-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*(?:,|$)')


@dataclass(frozen=True)
class Challenge:
    """One of a `WWW-Authenticate` header."""

    scheme: str
    parameters: dict[str, str]

    @classmethod
    def parse(cls, header: str) -> Challenge:
        """Raises `Unsupported` for what is neither `Basic` nor `Bearer` with a realm."""
        scheme, _, rest = header.strip().partition(" ")
        found = {match[1].lower(): re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3] for match in _PAIR.finditer(rest)}
        scheme = scheme.lower()
        if scheme == "basic" or (scheme == "bearer" and found.get("realm")):
            return cls(scheme, found)
        raise Unsupported(f"the registry wants to be asked in a way that is not known: {header[:200]!r}")

    def token_url(self, repository: str, *, plain: bool) -> str:
        """Where a token for pulling is to be had. Raises `Forbidden` for one without TLS, unless the registry itself is such (`plain`)."""
        realm = self.parameters["realm"]
        parts = urlsplit(realm)
        if parts.scheme != "https" and not (plain and parts.scheme == "http"):
            raise Forbidden(f"the registry wants the password sent without TLS, to {realm[:200]!r}")
        query = {"service": self.parameters.get("service", ""), "scope": self.parameters.get("scope") or f"repository:{repository}:pull"}
        return f"{realm}{'&' if parts.query else '?'}{urlencode({name: value for name, value in query.items() if value})}"


def basic(username: str, password: str) -> str:
    """A header's value."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def token_of(body: bytes) -> str | None:
    """The token in a token server's answer."""
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    if not isinstance(answer, dict):
        return None
    found: object = answer.get("token") or answer.get("access_token")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return found if isinstance(found, str) and found.isprintable() else None
