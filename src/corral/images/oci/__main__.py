"""The process of one import or export: `python -m corral.images.oci`, told what to do by a JSON object on its standard input.

Answers with JSON objects, a line each: {"note": text} as often as there is something to tell, and for each layer of an image {"layer": name}, at the end {"done": …} or {"error": {code, message, hint}}.
"""

from __future__ import annotations

import json
import resource
import sys
import traceback
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, assert_never

from corral.errors import CorralError
from corral.images.oci.job import Export, Job, Pull, Unpack, UnpackRootfs, read
from corral.node import syscalls

_MEMORY = 2 << 30
"""Bytes of address space: a header that claims to be larger ends this process' work, not the machine's."""


def _say(kind: str, value: Any) -> None:
    sys.stdout.write(json.dumps({kind: value}) + "\n")
    sys.stdout.flush()


def main() -> None:
    syscalls.die_with_parent()
    syscalls.unshare_mounts()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    try:
        _say("done", _do(read(sys.stdin.read())))
    except CorralError as error:
        _say("error", {"code": error.code, "message": error.message, "hint": error.hint, "details": error.details})
    except Exception as error:
        _say("error", {"code": "internal", "message": f"{type(error).__name__}: {error}", "hint": None, "details": {"trace": traceback.format_exc()}})


def _do(job: Job) -> dict[str, Any]:
    # Each needs other modules, and starts in a fraction of the time with only those.
    match job:
        case Pull():
            from corral.images.oci.importer import Importer
            from corral.images.oci.registry import Access, Registry

            access = Access(job.mirrors, job.username, job.password)
            with closing(Registry(job.reference, access, job.platform, note=_note)) as source:
                return asdict(Importer(Path(job.layers), job.aside, job.limits, _note, own=job.own, had=_had).image(source))
        case Unpack():
            from corral.images.oci.archive import Archive
            from corral.images.oci.importer import Importer

            with closing(Archive(Path(job.path), job.platform)) as source:
                return asdict(Importer(Path(job.layers), job.aside, job.limits, _note, own=job.own, had=_had).image(source))
        case UnpackRootfs():
            from corral.images.oci.importer import Importer

            with Path(job.path).open("rb") as source:
                return asdict(Importer(Path(job.layers), job.aside, job.limits, _note).rootfs(source))
        case Export():
            from corral.images.oci.exporter import export

            return asdict(export(job))
    assert_never(job)


def _had(name: str) -> None:
    _say("layer", name)


def _note(text: str) -> None:
    _say("note", text)


if __name__ == "__main__":
    main()
