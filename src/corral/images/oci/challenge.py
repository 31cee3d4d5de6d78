"""How a registry wants to be asked (distribution-spec, Docker's token authentication): its challenge, and where the token for it is to be had."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from corral.errors import Forbidden, Unsupported

_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9_-]*)(?:\s+|\s*(?:,|$))(?!\s*=)")
_OTHER = re.compile(r"[^\s,]+|[\s,]+")
_PAIR = re.compile(r'\s*([A-Za-z_][A-Za-z0-9_-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*(?:,|$)')


@dataclass(frozen=True)
class Challenge:
    """One of those in a `WWW-Authenticate` header."""

    scheme: str
    parameters: dict[str, str]

    @classmethod
    def parse(cls, header: str) -> Challenge:
        """The first that is `Basic`, or `Bearer` with a realm. Raises `Unsupported` where none is."""
        for one in cls._all(header):
            if one.scheme == "basic" or (one.scheme == "bearer" and one.parameters.get("realm")):
                return one
        raise Unsupported(f"the registry wants to be asked in a way that is not known: {header[:200]!r}")

    @classmethod
    def _all(cls, header: str) -> list[Challenge]:
        """In their order: words of which one without `=` begins the next challenge."""
        found: list[Challenge] = []
        at = 0
        while at < len(header):
            if (match := _PAIR.match(header, at)) is not None and found:
                value = re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
                found[-1].parameters.setdefault(match[1].lower(), value)
            elif (match := _SCHEME.match(header, at)) is not None:
                found.append(cls(match[1].lower(), {}))
            elif (match := _OTHER.match(header, at)) is None:
                break
            at = match.end()
        return found

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
