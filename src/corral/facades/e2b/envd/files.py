"""Files by plain HTTP: GET and POST /files of E2B, with their signed addresses."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import AsyncIterator, Mapping

from starlette.requests import Request
from starlette.responses import Response

from corral import errors
from corral.api.body import pieces
from corral.api.files import send
from corral.facades.e2b.envd.connect import Message
from corral.facades.e2b.envd.multipart import Parts
from corral.facades.e2b.inside import Inside, UnknownUser, at
from corral.facades.e2b.refusal import JSON, Refused, answer, body
from corral.schema.file import Entry, Kind

_PIECE = 256 << 10
_METADATA = "x-metadata-"
_LONGEST_NAME = 246
"""What is left of 255 behind `user.e2b.`."""


async def download(request: Request, inside: Inside) -> Response:
    """The bytes of a file."""
    try:
        path = await inside.path(request.query_params.get("path", ""))
        found = await inside.files.stat(at(path), follow=True)
        if found.type is Kind.DIRECTORY:
            raise Refused(400, f"path '{path}' is a directory")
        if found.type is not Kind.FILE:
            raise Refused(400, f"path '{path}' is not a regular file")
        response = await send(request, inside.services, inside.files, at(path))
    except (errors.FileNotFound, errors.NotADirectory):
        return body(404, f"path '{request.query_params.get('path', '')}' does not exist")
    except UnknownUser as error:
        return body(401, str(error))
    except Exception as error:
        return answer(error, inside.services.meter)
    name = found.name.encode("ascii", "replace").decode().replace('"', "_").replace("\\", "_")
    response.headers["Content-Disposition"] = f'inline; filename="{name}"'
    return response


async def upload(request: Request, inside: Inside) -> Response:
    """Write one file (`path`), or several: then each part's file name is its path."""
    try:
        metadata = given_metadata(request.headers)
        written: list[Message] = []
        async for entry in _written(request, inside):
            inside.services.node.set_metadata(inside.record.id, entry.path, metadata)
            told = {"metadata": metadata} if metadata else {}
            written.append({"path": entry.path, "name": entry.name, "type": "file", **told})
    except UnknownUser as error:
        return body(401, str(error))
    except Exception as error:
        return answer(error, inside.services.meter)
    return Response(json.dumps(written), media_type=JSON)


async def _written(request: Request, inside: Inside) -> AsyncIterator[Entry]:
    kind = request.headers.get("content-type", "")
    path = request.query_params.get("path")
    content = _counted(inside, _decoded(request))
    if kind.partition(";")[0].strip() == "application/octet-stream":
        if not path:
            raise Refused(400, "path: which file is meant must be said when the body is its bytes")
        yield await _write(inside, path, content)
        return
    parts, any_file = Parts(kind, content), False
    async for part in parts:
        if part.name != "file":
            continue
        if any_file and path:
            raise Refused(400, "several files and one path: leave the path out, and name each file by its path")
        target = path or part.filename
        if not target:
            raise Refused(400, "a file without a name, and no path")
        any_file = True
        yield await _write(inside, target, parts.content())


async def _write(inside: Inside, path: str, content: AsyncIterator[bytes]) -> Entry:
    place = await inside.path(path)
    try:
        # In place, as E2B does it: who watches sees a file that is created and written, and links to it stay.
        return await inside.files.write(at(place), content, user=inside.username, in_place=True)
    except errors.IsADirectory:
        raise Refused(400, f"path is a directory: {place}") from None


def given_metadata(headers: Mapping[str, str]) -> dict[str, str]:
    """What `X-Metadata-…` headers say of a file."""
    given = {name[len(_METADATA) :]: value for name, value in headers.items() if name.startswith(_METADATA)}
    for name, value in given.items():
        if not name or len(name) > _LONGEST_NAME or not (value.isascii() and value.isprintable()):
            raise Refused(400, f"metadata {name[:80]!r}: names have 1 to {_LONGEST_NAME} characters, values are printable ASCII")
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
            raise Refused(415, f"Content-Encoding {other[:40]} is not known here; use gzip or none")


def check_expiry(expires: str | None) -> None:
    """Raises `Refused` for a signed address whose time has passed."""
    if expires is None:
        return
    if not expires.isdecimal() or len(expires) > 12:
        raise Refused(401, "signature_expiration is not a time in seconds since 1970")
    if int(expires) < time.time():
        raise Refused(401, "signature is already expired")
