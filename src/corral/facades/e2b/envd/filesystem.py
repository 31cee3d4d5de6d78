"""filesystem.Filesystem of E2B, without the watches (`watch`)."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from corral import errors
from corral.facades.e2b.envd import fields
from corral.facades.e2b.envd.connect import Code, Message, RpcError, unary
from corral.facades.e2b.envd.entry import described
from corral.facades.e2b.inside import Inside, at
from corral.schema.file import Entry, Kind, ListFiles, Mkdir, Move, Remove

_DEEPEST = 64


async def stat(request: Request, inside: Inside) -> Response:
    async def call(message: Message) -> Message:
        return {"entry": await _entry(inside, await inside.path(fields.text(message, "path")))}

    return await unary(request, call)


async def make_dir(request: Request, inside: Inside) -> Response:
    async def call(message: Message) -> Message:
        path = await inside.path(fields.text(message, "path"))
        try:
            there = await inside.files.stat(at(path), follow=True)
        except errors.FileNotFound:
            pass
        except errors.NotADirectory:
            raise RpcError(Code.INVALID_ARGUMENT, f"path is under a file: {path}") from None
        else:
            if there.type is Kind.DIRECTORY:
                raise RpcError(Code.ALREADY_EXISTS, f"directory already exists: {path}")
            raise RpcError(Code.INVALID_ARGUMENT, f"path already exists but it is not a directory: {path}")
        await inside.files.mkdir(_mkdir(path, inside))
        return {"entry": await _entry(inside, path)}

    return await unary(request, call)


async def move(request: Request, inside: Inside) -> Response:
    async def call(message: Message) -> Message:
        source = await inside.path(fields.text(message, "source"))
        target = await inside.path(fields.text(message, "destination"))
        files = inside.files
        try:
            await files.stat(at(source))
        except errors.FileNotFound:
            raise RpcError(Code.NOT_FOUND, f"source file not found: {source}") from None
        await files.mkdir(_mkdir(posixpath.dirname(target), inside))
        await files.move(Move(source=source, target=target, overwrite=True))
        return {"entry": await _entry(inside, target)}

    return await unary(request, call)


async def list_dir(request: Request, inside: Inside) -> Response:
    async def call(message: Message) -> Message:
        path = await inside.path(fields.text(message, "path"))
        await _check_directory(inside, path)
        depth = min(max(1, fields.number(message, "depth")), _DEEPEST)
        entries: list[Entry] = []
        behind: Mapping[str, str] = {}
        while True:
            page = await inside.files.list(ListFiles.model_validate({"path": path, "depth": depth, **behind}))
            entries += page.entries
            if not page.more:
                break
            behind = page.cursor
        return {"entries": await described(inside, *entries)}

    return await unary(request, call)


async def remove(request: Request, inside: Inside) -> Response:
    async def call(message: Message) -> Message:
        path = await inside.path(fields.text(message, "path"))
        await inside.files.remove(Remove(path=path, path_b64=None, recursive=True, missing_ok=True))
        return {}

    return await unary(request, call)


def _mkdir(path: str, inside: Inside) -> Mkdir:
    return Mkdir.model_validate({"path": path, "user": inside.username})


async def _entry(inside: Inside, path: str) -> Message:
    try:
        return (await described(inside, await inside.files.stat(at(path))))[0]
    except (errors.FileNotFound, errors.NotADirectory):
        raise RpcError(Code.NOT_FOUND, f"file not found: {path}") from None


async def _check_directory(inside: Inside, path: str) -> None:
    try:
        found = await inside.files.stat(at(path), follow=True)
    except (errors.FileNotFound, errors.NotADirectory):
        raise RpcError(Code.NOT_FOUND, f"path not found: {path}") from None
    if found.type is not Kind.DIRECTORY:
        raise RpcError(Code.INVALID_ARGUMENT, f"path is not a directory: {path}")
