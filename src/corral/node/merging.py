"""Carrying out a merge in a running sandbox: through its guest, who owns its files, so that no program there sees a file half written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Literal

from corral.errors import Unsupported
from corral.node import merge
from corral.node.differences import Differences
from corral.node.files import Files
from corral.node.interface import ImageSpec, Moment
from corral.node.merge import Plan
from corral.node.tree import Side
from corral.schema import file
from corral.schema.snapshot import Change, MergeConflict

OnConflict = Literal["refuse", "keep", "take"]


async def carry_out(
    differences: Differences,
    sandbox: str,
    image: ImageSpec,
    *,
    base: Moment,
    theirs: Moment,
    ours: Moment,
    on_conflict: OnConflict,
    into: Files | None,
) -> tuple[list[Change], list[MergeConflict], bool]:
    """What is taken over, what is in conflict, and whether it was done. `into`: the sandbox's files, as root; None: only tell. Raises `Unsupported` for too many changes."""
    async with differences.three(sandbox, image, base, theirs, ours) as (side, diffs):
        if any(diff.incomplete for diff in diffs):
            raise Unsupported("there are too many changes to be merged, or names too long", hint="merge earlier, or take over single files")
        plan = merge.plan(*(diff.changes for diff in diffs), take=on_conflict == "take")
        refused = on_conflict == "refuse" and bool(plan.conflicts)
        if into is not None and not refused:
            await _apply(plan, side, into)
        return [*plan.removed, *plan.written], list(plan.conflicts), into is not None and not refused


async def _apply(plan: Plan, side: Side, into: Files) -> None:
    for change in plan.removed:
        at = {"path": change.path} if change.path_b64 is None else {"path_b64": change.path_b64}
        await into.remove(file.Remove.model_validate({**at, "recursive": True, "missing_ok": True}))
    if plan.written:
        paths = [merge.path_of(change) for change in plan.written]
        await into.tar_in(file.At.model_validate({"path": "/"}), _pieces(merge.archive(side, paths)), parents=False)


async def _pieces(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece
