"""The bytes of one layer on their way from a blob to its tar file: counted, decompressed and digested as they pass, never held as a whole.

Reading and decompressing is done by a thread of its own, some blocks ahead of who takes them.
"""

from __future__ import annotations

import hashlib
import queue
import sys
import threading
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from corral.errors import CorralError, InvalidArgument

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor, ZstdError
else:
    from backports.zstd import ZstdDecompressor, ZstdError

BLOCK = 1 << 20
_AHEAD = 8
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class Readable(Protocol):
    """Gives up to so many bytes; none at its end."""

    def read(self, size: int, /) -> bytes: ...


class Layer:
    """A layer's tar file, to be read once from its beginning. What it is called may only be believed after `finish`."""

    def __init__(self, blob: Readable, stop: threading.Event) -> None:
        self._blob = _Counted(blob)
        self._tar = hashlib.sha256()
        self._blocks: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
        self._stop = stop
        self._rest = memoryview(b"")
        self._ended = False
        self._reader = threading.Thread(target=self._run, name="layer", daemon=True)
        self._reader.start()

    def read(self, size: int) -> bytes:
        """That many bytes, fewer only at the end. Raises what reading the blob raises, `InvalidArgument` when it can't be decompressed."""
        if size <= len(self._rest):
            piece, self._rest = bytes(self._rest[:size]), self._rest[size:]
            return piece
        parts = [self._rest]
        missing = size - len(self._rest)
        self._rest = memoryview(b"")
        while missing > 0 and (block := self._next()) is not None:
            parts.append(block[:missing])
            self._rest = block[missing:]
            missing -= len(parts[-1])
        return b"".join(parts)

    def finish(self, *, diff_id: str | None, digest: str | None, size: int | None) -> str:
        """Read what is left, and see that all of it is what it was said to be; the tar file's digest. Raises `InvalidArgument`."""
        while self._next() is not None:
            pass
        self._reader.join()
        found = "sha256:" + self._tar.hexdigest()
        if size is not None and self._blob.size != size:
            raise InvalidArgument(f"a layer has {self._blob.size} bytes, and its image speaks of {size}", hint="it was damaged on its way, or forged")
        if digest is not None and self._blob.digest != digest:
            raise InvalidArgument(f"a layer's digest is {self._blob.digest}, not {digest}", hint="it was damaged on its way, or forged")
        if diff_id is not None and found != diff_id:
            raise InvalidArgument(f"the digest of a layer's files is {found}, not {diff_id}", hint="the image is not what its configuration says")
        return found

    def _next(self) -> memoryview | None:
        if self._ended:
            return None
        block = self._blocks.get()
        if isinstance(block, BaseException):
            self._ended = True
            raise block
        if block is None:
            self._ended = True
            return None
        self._tar.update(block)
        return memoryview(block)

    def _run(self) -> None:
        try:
            for block in plain(self._blob):
                self._put(block)
            self._put(None)
        except (zlib.error, ZstdError, EOFError, MemoryError) as error:
            self._put(InvalidArgument(f"a layer can't be decompressed: {error or type(error).__name__}", hint="it was damaged on its way, or forged"))
        except (CorralError, OSError) as error:
            self._put(error)

    def _put(self, block: bytes | BaseException | None) -> None:
        while not self._stop.is_set():
            with suppress(queue.Full):
                self._blocks.put(block, timeout=1)
                return


@contextmanager
def opened(blob: Readable) -> Generator[Layer]:
    """The layer in a blob. Its thread ends with the block, however that ends."""
    stop = threading.Event()
    try:
        yield Layer(blob, stop)
    finally:
        stop.set()


class _Counted:
    """A blob, digested as it is read."""

    def __init__(self, blob: Readable) -> None:
        self._blob = blob
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        return "sha256:" + self._digest.hexdigest()

    def read(self, size: int) -> bytes:
        piece = self._blob.read(size)
        self._digest.update(piece)
        self.size += len(piece)
        return piece


def plain(blob: Readable) -> Iterator[bytes]:
    """What is in a blob, by how it begins: gzip or zstd (several streams one after the other too), else as it is. Pieces of bounded size."""
    head = blob.read(BLOCK)
    while 0 < len(head) < len(_ZSTD) and (more := blob.read(BLOCK)):
        head += more
    if head.startswith(_GZIP):
        return _gunzip(head, blob)
    if head.startswith(_ZSTD):
        return _unzstd(head, blob)
    return _as_it_is(head, blob)


def _as_it_is(piece: bytes, blob: Readable) -> Iterator[bytes]:
    while piece:
        yield piece
        piece = blob.read(BLOCK)


def _gunzip(piece: bytes, blob: Readable) -> Iterator[bytes]:
    while piece:
        stream = zlib.decompressobj(wbits=31)
        while not stream.eof:
            if out := stream.decompress(piece, BLOCK):
                yield out
            piece = stream.unconsumed_tail or (b"" if stream.eof else blob.read(BLOCK))
            if not piece and not stream.eof:
                raise EOFError("it ends in the middle")
        # Zeros may follow, as of a tape; another stream, as pigz writes; nothing else.
        piece = stream.unused_data.lstrip(b"\0")
        while not piece and (more := blob.read(BLOCK)):
            piece = more.lstrip(b"\0")


def _unzstd(piece: bytes, blob: Readable) -> Iterator[bytes]:
    while piece:
        stream = ZstdDecompressor()
        while not stream.eof:
            if out := stream.decompress(piece, BLOCK):
                yield out
            piece = b""
            if stream.needs_input and not stream.eof:
                piece = blob.read(BLOCK)
                if not piece:
                    raise EOFError("it ends in the middle")
        piece = stream.unused_data or blob.read(BLOCK)
