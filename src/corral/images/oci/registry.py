"""Images of a registry (distribution-spec): documents by tag or digest, blobs as streams that go on where they were cut off.

Every document asked for by digest is checked against it here, every blob by who reads it to its end. Mirrors are asked first, in their order; what they can't give,
or give wrong, the registry itself is asked for. Passwords and tokens go to the registry and to its token server, and to nobody else.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import httpx2

from corral.errors import CorralError, Forbidden, ImageNotFound, InvalidArgument, Unauthenticated, Unavailable, Unsupported
from corral.images.oci.documents import INDEXES, LARGEST, MANIFESTS, Found, Index, Layer, Manifest, Platform, digest_of, parse, together
from corral.images.oci.endpoint import Endpoint
from corral.images.oci.layer import Readable
from corral.images.oci.pace import Pace
from corral.images.oci.reference import Reference

_TRIES = 6
"""Attempts of one request, and of one blob without a new byte between them."""
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 30.0
"""Seconds before the second attempt, doubled each time; at most."""
_NESTED = 3
_TIMEOUT = httpx2.Timeout(30, connect=10)


@dataclass(frozen=True)
class Access:
    """What registries are reached by. `mirrors`: addresses by registry."""

    mirrors: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    username: str | None = None
    password: str | None = None


class Registry:
    """One image of a registry."""

    def __init__(
        self,
        reference: Reference,
        access: Access,
        wanted: Platform,
        *,
        note: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reference = reference
        self._wanted = wanted
        self._note = note
        self._sleep = sleep
        self.clock = clock
        self._client = httpx2.Client(timeout=_TIMEOUT, headers={"User-Agent": "corral", "Accept-Encoding": "identity"})
        self._gave: set[Endpoint] = set()
        self._mirrors = [Endpoint(address.rstrip("/"), reference.repository) for address in access.mirrors.get(reference.registry, [])]
        self._own = Endpoint(_address(reference), reference.repository, username=access.username, password=access.password)

    def close(self) -> None:
        self._client.close()

    def find(self) -> Found:
        """The image for this platform. Raises `ImageNotFound`, `Unauthenticated`, `Forbidden`, `Unavailable`, and for what it finds as `documents` does."""
        while True:
            try:
                return self._find()
            except (InvalidArgument, Unavailable, Unsupported):
                if not self.another():
                    raise

    def another(self) -> bool:
        """Mirrors that gave something until now are left out from now on; whether there were any."""
        for mirror in self._gave:
            self._note(f"what the mirror {mirror.base} gives can't be used: going on without it")
        found = bool(self._gave)
        self._mirrors = [mirror for mirror in self._mirrors if mirror not in self._gave]
        self._gave.clear()
        return found

    def _find(self) -> Found:
        media, raw = self._document("manifests", self._reference.wanted)
        for _ in range(_NESTED):
            if media not in INDEXES:
                break
            media, raw = self._document("manifests", parse(Index, raw, "index").choose(self._wanted).digest)
        if media not in MANIFESTS:
            raise InvalidArgument(f"the registry gave a document of the kind {media[:100]!r}", hint="it is no image, or of a format that is no longer used")
        manifest = parse(Manifest, raw, "manifest")
        _, config = self._document("blobs", manifest.config.digest)
        return together(manifest, config, self._wanted)

    @contextmanager
    def layer(self, layer: Layer) -> Generator[Readable]:
        """The blob of a layer."""
        blob = _Blob(self, f"blobs/{layer.digest}", layer.size)
        try:
            yield blob
        finally:
            blob.close()

    def check(self, layer: Layer) -> None:
        """See that it would still give us a layer that we have had."""
        self.ask("HEAD", f"blobs/{layer.digest}").close()

    def _document(self, kind: str, wanted: str) -> tuple[str, bytes]:
        """Its media type and bytes, which are those of its digest if it was asked for by one."""
        accept = ", ".join((*INDEXES, *MANIFESTS)) if kind == "manifests" else "*/*"
        raw = bytearray()
        with closing(self.ask("GET", f"{kind}/{wanted}", {"Accept": accept})) as answer:
            try:
                for piece in Pace(self.clock).kept(answer.iter_raw()):
                    raw += piece
                    if len(raw) > LARGEST:
                        raise InvalidArgument(f"the registry's answer for {wanted} is longer than {LARGEST >> 20} MiB")
            except httpx2.HTTPError as error:
                raise Unavailable(f"the registry cut its answer for {wanted} off: {error}", hint="try again later") from error
            media = answer.headers.get("content-type", "").partition(";")[0].strip()
        whole = bytes(raw)
        if wanted.startswith("sha256:") and digest_of(whole) != wanted:
            raise InvalidArgument(f"the registry gave {digest_of(whole)} for {wanted}", hint="it was damaged on its way, or forged")
        return media, whole

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None) -> httpx2.Response:
        """A success: of the first mirror that has one, else of the registry. What fails for a moment is tried again. The caller closes it."""
        for mirror in self._mirrors:
            try:
                answer = mirror.ask(self._client, method, path, headers or {})
            except (httpx2.HTTPError, CorralError) as error:
                self._note(f"the mirror {mirror.base} can't be used: {error}")
                continue
            if answer.is_success:
                self._gave.add(mirror)
                return answer
            answer.close()
        wait = _FIRST_WAIT
        for attempt in range(1, _TRIES + 1):
            try:
                answer = self._own.ask(self._client, method, path, headers or {})
            except httpx2.TransportError as error:
                if attempt == _TRIES:
                    raise Unavailable(
                        f"the registry {self._reference.host} can't be reached: {error}", hint="is its name right, and the network there?"
                    ) from error
                self._note(f"the registry can't be reached ({error}): trying again")
                asked = None
            else:
                if answer.is_success:
                    return answer
                answer.close()
                if attempt == _TRIES or (answer.status_code != 429 and answer.status_code < 500):
                    raise self._refusal(answer.status_code)
                self._note(f"the registry answered with {answer.status_code}: trying again")
                asked = answer.headers.get("retry-after")
            self._sleep(min(float(asked) if asked is not None and asked.isdecimal() else wait, _LONGEST_WAIT))
            wait *= 2
        raise AssertionError("the last attempt returns or raises")

    def resume(self, at: int, failed: int) -> None:
        """A blob was cut off, so many times without a byte between them."""
        if self.another():
            return
        self._note(f"the registry cut a layer off after {at} bytes: going on from there")
        self._sleep(_FIRST_WAIT * (1 << failed))

    def _refusal(self, code: int) -> CorralError:
        name = str(self._reference)
        if code == 404:
            return ImageNotFound(f"the registry has no image {name}", hint="is it misspelt, or private?", details={"image": name})
        if code == 401:
            return Unauthenticated(f"the registry wants to know who asks for {name}", hint="give a user name, and a secret with the password or token")
        if code == 403:
            return Forbidden(f"the registry does not give {name} to this account")
        return Unavailable(f"the registry answered with {code} for {name}", hint="try again later")


class _Blob:
    """A blob that is read from its beginning to its end, by as many requests as that takes."""

    def __init__(self, registry: Registry, path: str, size: int | None) -> None:
        self._registry = registry
        self._path = path
        self._size = size
        self._at = 0
        self._failed = 0
        self._pace = Pace(registry.clock)
        self._answer: httpx2.Response | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        while not self._rest:
            if self._size is not None and self._at >= self._size:
                return b""
            try:
                if self._answer is None:
                    self._open()
                piece = next(self._pieces, b"")
            except httpx2.HTTPError as error:
                self._again(error)
                continue
            if piece:
                self._failed = 0
                self._at += len(piece)
                self._rest = piece
            elif self._size is None:
                return b""
            else:
                self._again(None)
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece

    def _open(self) -> None:
        at = self._at
        self._answer = self._registry.ask("GET", self._path, {"Range": f"bytes={at}-"} if at else {})
        # As they come: with a size, those that came before a cut would be lost.
        self._pieces = self._pace.kept(self._answer.iter_raw())
        if self._answer.status_code != 206:
            self._skip(at)

    def _skip(self, count: int) -> None:
        """It gives everything from the beginning again."""
        while count:
            piece = next(self._pieces, b"")
            if not piece:
                raise httpx2.ReadError("it is shorter than it was")
            if len(piece) > count:
                self._at += len(piece) - count
                self._rest = piece[count:]
            count -= min(count, len(piece))

    def _again(self, error: Exception | None) -> None:
        self.close()
        self._failed += 1
        if self._failed >= _TRIES:
            raise Unavailable(f"the registry cuts a layer off after {self._at} bytes", hint="try again later: layers that came whole are kept") from error
        self._registry.resume(self._at, self._failed)

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None


def _address(reference: Reference) -> str:
    """Of the registry itself: with TLS, unless it is on this machine."""
    host = reference.host
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    try:
        here = ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        here = name == "localhost"
    return f"{'http' if here else 'https'}://{host}"
