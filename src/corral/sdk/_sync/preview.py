# Generated from sdk/_async/preview.py by scripts/async_to_sync.py: edit that, not this.
"""Ports of a sandbox as they are seen from outside: URLs, links, tunnels; and what is outside as it is seen from inside."""

from __future__ import annotations

from typing import Self

from corral.errors import CorralError
from corral.schema.preview import Link, LinkCreate, PreviewChange
from corral.schema.preview import Preview as PreviewInfo
from corral.sdk import faults
from corral.sdk._sync.transport import Transport
from corral.sdk.forward import Forward, route
from corral.sdk.offer import Offer


class Preview:
    """One port. It is private unless it is made public: see docs/previews.md."""

    def __init__(self, transport: Transport, sandbox: str, info: PreviewInfo) -> None:
        """`sandbox` is its path."""
        self._transport = transport
        self._path = f"{sandbox}/previews/{info.port}"
        self.info = info
        """What the server said last."""

    def __repr__(self) -> str:
        return f"<Preview {self.url}{' public' if self.public else ''}>"

    @property
    def port(self) -> int:
        return self.info.port

    @property
    def url(self) -> str:
        """Where it is, for those who may see it."""
        return self.info.url

    @property
    def public(self) -> bool:
        return self.info.public

    def signed(self, *, expires: float = 3600, path: str = "/") -> str:
        """A URL that needs no key for `expires` seconds: for `path` and what is below it."""
        request = faults.encode(faults.build(LinkCreate, expires=expires, path=path))
        return faults.decode(Link, self._transport.call("POST", self._path + "/links", body=request, safe=True)).url

    def set(self, *, public: bool | None = None, host: str | None = None) -> Self:
        """Make it public or private; have its server told another Host (empty: the URL's again). What is not given stays."""
        given = {name: value for name, value in {"public": public, "host": host}.items() if value is not None}
        request = faults.encode(faults.build(PreviewChange, **given))
        self.info = faults.decode(PreviewInfo, self._transport.call("PUT", self._path, body=request, safe=True))
        return self


class Tunnel:
    """A local TCP address of a port inside, as a context manager. Each connection to it is one to that port; each direction ends for itself."""

    def __init__(self, transport: Transport, sandbox: str, port: int, *, host: str, local_port: int) -> None:
        """`sandbox` is its path."""
        self._transport = transport
        self._path = f"{sandbox}/previews/{port}"
        self._local = host, local_port
        self._forward: Forward | None = None
        self.remote_port = port

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> Self:
        """Begin to listen. Raises `OSError` when the local port is taken."""
        info = faults.decode(PreviewInfo, self._transport.call("GET", self._path))
        forward = Forward(route(info, self._transport.connection), host=self._local[0], port=self._local[1])
        self._forward = forward.start()
        return self

    def close(self) -> None:
        """End it and its connections."""
        if self._forward is not None:
            self._forward.stop()
            self._forward = None

    @property
    def host(self) -> str:
        return self._listening.address[0]

    @property
    def port(self) -> int:
        """The local one."""
        return self._listening.address[1]

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{self.host}:{self.port}"

    @property
    def failure(self) -> CorralError | None:
        """Why the last connection could not be made or broke; such connections are reset."""
        return self._listening.failure

    @property
    def _listening(self) -> Forward:
        if self._forward is None:
            raise ValueError("the tunnel is not open")
        return self._forward


class Exposed:
    """A server outside, offered to a sandbox by a name, as a context manager: see `Sandbox.expose`."""

    def __init__(self, transport: Transport, sandbox: str, name: str, port: int, *, target: tuple[str, int]) -> None:
        """`sandbox` is its path; `target` is where the server is."""
        self._transport = transport
        self._path = f"{sandbox}/previews/{port}"
        self._target = target
        self._offer: Offer | None = None
        self.name, self.port = name, port
        """What it is called inside."""

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> Self:
        """Begin to offer it. Raises `Conflict` when the name and port are offered already."""
        info = faults.decode(PreviewInfo, self._transport.call("GET", self._path))
        offer = Offer(route(info, self._transport.connection, name=self.name), self._target)
        self._offer = offer.start()
        return self

    def close(self) -> None:
        """End it and its connections: the name is gone inside."""
        if self._offer is not None:
            self._offer.stop()
            self._offer = None

    def wait(self) -> None:
        """Until it ends by itself: when the sandbox is paused, stopped or gone, or the edge is."""
        self._open.ended.wait()

    @property
    def failure(self) -> CorralError | None:
        """Why it ended, or why the last connection could not be made."""
        return self._open.failure

    @property
    def _open(self) -> Offer:
        if self._offer is None:
            raise ValueError("nothing is offered")
        return self._offer
