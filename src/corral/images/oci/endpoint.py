"""One place that answers a registry's requests: a registry itself, or a mirror of it. Asks for tokens, follows redirects, and knows whom it may tell what."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urljoin, urlsplit

import httpx2

from corral.errors import Forbidden, Unauthenticated, Unavailable
from corral.images.oci.challenge import Challenge, basic, token_of
from corral.images.oci.documents import LARGEST

_REDIRECTS = 5
_MOVED = (301, 302, 303, 307, 308)


class Endpoint:
    """`base`: its address up to `/v2`. `username` and `password`: of the registry; a password without a name is a token. A mirror is given neither."""

    def __init__(self, base: str, repository: str, *, username: str | None = None, password: str | None = None) -> None:
        self.base = base
        self._repository = repository
        self._username = username
        self._password = password
        self._authorization = f"Bearer {password}" if password is not None and username is None else None

    def ask(self, client: httpx2.Client, method: str, path: str, headers: dict[str, str]) -> httpx2.Response:
        """An answer whose body is still to be read; the caller closes it. Raises `httpx2.TransportError`, `Forbidden`, `Unauthenticated`, `Unavailable`."""
        url = f"{self.base}/v2/{self._repository}/{path}"
        answer, whose = self._follow(client, method, url, headers)
        # Of somebody else to whom it led: the password is not theirs to ask for, nor for them to say where it is to go.
        if answer.status_code == 401 and _origin(whose) == _origin(url) and "www-authenticate" in answer.headers:
            asked = Challenge.parse(answer.headers["www-authenticate"])
            answer.close()
            self._authorization = self._answer_to(asked, client)
            answer, _ = self._follow(client, method, url, headers)
        return answer

    def _follow(self, client: httpx2.Client, method: str, url: str, headers: dict[str, str]) -> tuple[httpx2.Response, str]:
        """The last answer, and the address that gave it."""
        at = url
        for _ in range(_REDIRECTS + 1):
            answer = self._send(client, method, at, headers, own=_origin(at) == _origin(url))
            target = answer.headers.get("location")
            if answer.status_code not in _MOVED or target is None:
                return answer, at
            answer.close()
            at = urljoin(at, target)
            if urlsplit(at).scheme != "https" and urlsplit(url).scheme == "https":
                raise Forbidden(f"the registry leads to {at[:200]!r}, which has no TLS")
        raise Unavailable(f"the registry leads from one address to the next: {at[:200]!r}")

    def _send(self, client: httpx2.Client, method: str, url: str, headers: dict[str, str], *, own: bool) -> httpx2.Response:
        _refuse_inner(url)
        # A storage service that is led to has its own signature in the address, and refuses a second.
        given = headers if self._authorization is None or not own else {**headers, "Authorization": self._authorization}
        return client.send(client.build_request(method, url, headers=given), stream=True)

    def _answer_to(self, asked: Challenge, client: httpx2.Client) -> str | None:
        if asked.scheme == "basic":
            if self._password is None:
                return None
            return basic(self._username or "", self._password)
        if self._password is not None and self._username is None:
            # It was tried, and was not enough.
            return self._authorization
        url = asked.token_url(self._repository, plain=self.base.startswith("http://"))
        _refuse_inner(url)
        given = {} if self._password is None else {"Authorization": basic(self._username or "", self._password)}
        answer = client.get(url, headers=given)
        if answer.status_code in (401, 403):
            raise Unauthenticated(f"{urlsplit(url).netloc} gives no token for {self._repository}", hint="are the user name and the secret right?")
        if not answer.is_success or len(answer.content) > LARGEST or (token := token_of(answer.content)) is None:
            raise Unavailable(f"{urlsplit(url).netloc} answered with {answer.status_code} and no token", hint="try again later")
        return f"Bearer {token}"


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _refuse_inner(url: str) -> None:
    """Addresses at which no registry can be, and machines of clouds answer with their secrets. Raises `Forbidden`."""
    parts = urlsplit(url)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or parts.scheme, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        # A proxy may know it; who connects will say.
        return
    for *_, name in found:
        address = ipaddress.ip_address(str(name[0]).partition("%")[0])
        if address.is_link_local or address.is_multicast or address.is_unspecified:
            raise Forbidden(f"{parts.hostname} has the address {address}, at which no registry is asked")
