"""Files by plain HTTP: GET and POST /files of E2B, with their signed addresses."""

from __future__ import annotations

import posixpath
import secrets
import time
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from corral import errors
from corral.api.body import pieces, read
from corral.api.files import send
from corral.facades.e2b.envd.connect import Message
from corral.facades.e2b.envd.multipart import Parts
from corral.facades.e2b.inside import Inside, UnknownUser, at
from corral.facades.e2b.refusal import JSON, Refused, answer, body, compact
from corral.schema.file import Entry, Kind, Move, Remove

_PIECE = 256 << 10
_METADATA = "x-metadata-"
_LONGEST_NAME = 246
"""What is left of 255 behind `user.e2b.`."""
_ATTRIBUTE = "user.e2b."
_METADATA_LIMIT = 4096
"""Bytes: as much as ext4 keeps beside a file."""
_COMPOSE = 1 << 20


async def download(request: Request, inside: Inside) -> Response:
    """The bytes of a file."""
    path = request.query_params.get("path", "")
    try:
        path = await inside.path(path)
        found = await inside.files.stat(at(path), follow=True)
        if found.type is Kind.DIRECTORY:
            raise Refused(400, f"path '{path}' is a directory")
        if found.type is not Kind.FILE:
            raise Refused(400, f"path '{path}' is not a regular file")
        response = await send(request, inside.services, inside.files, at(path))
    except (errors.FileNotFound, errors.NotADirectory):
        return body(404, f"path '{path}' does not exist")
    except UnknownUser as error:
        return body(401, _unknown(error))
    except Exception as error:
        return answer(error, inside.services.meter)
    name = found.name.encode("ascii", "replace").decode().replace('"', "_").replace("\\", "_")
    response.headers["Content-Disposition"] = f'inline; filename="{name}"'
    return response


async def upload(request: Request, inside: Inside) -> Response:
    """Write one file (`path`), or several: then each part's file name is its path."""
    try:
        metadata = given_metadata(request.headers)
        await inside.home()  # the user that is named has to be there, whatever the path
        written: list[Message] = []
        async for entry in _written(request, inside):
            inside.services.node.set_metadata(inside.record.id, entry.path, metadata)
            told = {"metadata": metadata} if metadata else {}
            written.append({"path": entry.path, "name": entry.name, "type": "file", **told})
    except UnknownUser as error:
        return body(401, _unknown(error))
    except Exception as error:
        return answer(error, inside.services.meter)
    return Response(compact(written), media_type=JSON)


async def compose(request: Request, inside: Inside) -> Response:
    """One file out of several, in their order, which are gone then; or all is as it was. For uploads in parts."""
    try:
        wanted = _Compose.model_validate_json(await read(request, limit=_COMPOSE))
    except ValidationError as error:
        return answer(error, inside.services.meter)
    inside = replace(inside, user=wanted.username or inside.user)
    try:
        await inside.home()
        if not wanted.source_paths:
            raise Refused(400, "source_paths: at least one file is needed")
        parts = [await inside.path(path) for path in wanted.source_paths]
        target = await inside.path(wanted.destination)
        for path in parts:
            await _regular(inside, path)
        half = f"{target}.e2b-compose.{secrets.token_hex(8)}.tmp"
        try:
            await inside.files.write(at(half), _joined(inside, parts), user=inside.username)
            await inside.files.move(Move(source=half, target=target, overwrite=True))
        except BaseException:
            await inside.files.remove(Remove(path=half, path_b64=None, recursive=False, missing_ok=True))
            raise
        for path in parts:
            if path != target:
                await inside.files.remove(Remove(path=path, path_b64=None, recursive=False, missing_ok=True))
    except UnknownUser as error:
        return body(401, _unknown(error))
    except Exception as error:
        return answer(error, inside.services.meter)
    return Response(compact({"path": target, "name": posixpath.basename(target), "type": "file"}), media_type=JSON)


class _Compose(BaseModel):
    """POST /files/compose."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source_paths: list[str] = Field(max_length=10_000)
    destination: str = Field(min_length=1)
    username: str | None = None


async def _regular(inside: Inside, path: str) -> None:
    """Raises `Refused` unless there is a file."""
    try:
        found = await inside.files.stat(at(path), follow=True)
    except (errors.FileNotFound, errors.NotADirectory):
        raise Refused(404, f"path '{path}' does not exist") from None
    if found.type is not Kind.FILE:
        raise Refused(400, f"path '{path}' is not a regular file")


async def _joined(inside: Inside, paths: Sequence[str]) -> AsyncIterator[bytes]:
    for path in paths:
        _, download = await inside.files.read(at(path))
        async for piece in download:
            yield piece


def _unknown(error: UnknownUser) -> str:
    return f"error looking up user '{error.name}': user: unknown user {error.name}"


async def _written(request: Request, inside: Inside) -> AsyncIterator[Entry]:
    kind = request.headers.get("content-type", "")
    path = request.query_params.get("path")
    content = _counted(inside, _decoded(request))
    if kind.partition(";")[0].strip() == "application/octet-stream":
        if not path:
            raise Refused(400, "path: which file is meant must be said when the body is its bytes")
        yield await _write(inside, path, content)
        return
    if not kind.strip().lower().startswith("multipart/"):
        raise Refused(400, f"unsupported content type: {kind[:80]}, expected multipart/form-data or application/octet-stream")
    parts, done = Parts(kind, content), set[str]()
    async for part in parts:
        if part.name != "file":
            continue
        target = path or part.filename
        if not target:
            raise Refused(400, "a file without a name, and no path")
        if (place := await inside.path(target)) in done:
            others = f", also the following files were uploaded: {', '.join(sorted(done - {place}))}" if len(done) > 1 else ""
            message = f"you cannot upload multiple files to the same path '{place}' in one upload request, only the first specified file was uploaded"
            raise Refused(400, message + others)
        done.add(place)
        yield await _write(inside, place, parts.content())


async def _write(inside: Inside, path: str, content: AsyncIterator[bytes]) -> Entry:
    place = await inside.path(path)
    try:
        # In place, as E2B does it: who watches sees a file that is created and written, and links to it stay.
        return await inside.files.write(at(place), content, user=inside.username, in_place=True)
    except errors.IsADirectory:
        raise Refused(400, f"path is a directory: {place}") from None


def given_metadata(headers: Mapping[str, str]) -> dict[str, str]:
    """What `X-Metadata-…` headers say of a file."""
    given: dict[str, str] = {}
    for name, value in headers.items():
        if name.startswith(_METADATA):
            given.setdefault(name[len(_METADATA) :], value)  # said twice, the first counts
    for name, value in given.items():
        if not name or len(name) > _LONGEST_NAME or not (value.isascii() and value.isprintable()):
            raise Refused(400, f"invalid metadata: {name[:80]!r}: names have 1 to {_LONGEST_NAME} characters, values are printable ASCII")
    if (size := sum(len(_ATTRIBUTE) + len(name) + len(value) for name, value in given.items())) > _METADATA_LIMIT:
        raise Refused(400, f"invalid metadata: it has {size} bytes, names counted with {_ATTRIBUTE!r} before them; all of a file's may have {_METADATA_LIMIT}")
    return given


async def _counted(inside: Inside, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for piece in content:
        inside.services.meter.uploaded.inc(len(piece))
        yield piece


async def _decoded(request: Request) -> AsyncIterator[bytes]:
    """The body, unpacked when it is packed; never more in memory than a piece."""
    match request.headers.get("content-encoding", "identity").strip().lower():
        case "identity" | "":
            async for piece in pieces(request):
                yield piece
        case "gzip" | "deflate":
            unzip = zlib.decompressobj(wbits=47)
            async for piece in pieces(request):
                rest = piece
                while rest:
                    try:
                        plain = unzip.decompress(rest, _PIECE)
                    except zlib.error:
                        raise Refused(400, "the body is not what its Content-Encoding says") from None
                    rest = unzip.unconsumed_tail
                    if plain:
                        yield plain
            if not unzip.eof:
                raise Refused(400, "the packed body ends before its end")
        case other:
            raise Refused(400, f"error decompressing request body: unsupported Content-Encoding: {other[:40]}, supported: [gzip]")


def check_expiry(expires: str | None) -> None:
    """Raises `Refused` for a signed address whose time has passed."""
    if expires is None:
        return
    if not expires.isdecimal() or len(expires) > 12:
        raise Refused(401, "signature_expiration is not a time in seconds since 1970")
    if int(expires) < time.time():
        raise Refused(401, "signature is already expired")
