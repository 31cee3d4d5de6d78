"""What a new server must know of the sandboxes of the one before, on the tmpfs of /run, gone with the machine.

sb-….json     how to adopt one that runs
sb-….ended    why it has ended, or is being ended: written before anything of it is taken apart, and kept until it runs again or is no more, since the row that says so is stored later
sb-….still    its guest is about to be stopped for a moment
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from corral.node.interface import BoxSpec, ImageSpec, VolumeUse
from corral.node.memory import Needs
from corral.node.sentry import Identity
from corral.schema.egress import EgressPolicy
from corral.schema.sandbox import Reason

VERSION = 1


@dataclass(frozen=True)
class Record:
    """A claimed sandbox: which member it is, its processes, what it was asked to be."""

    member: str
    identity: Identity
    spec: BoxSpec
    claimed_at: float
    """Seconds since the epoch."""
    slot: int | None = None
    """Its network device's number."""
    generation: int = 0
    """Under which its egress policy is in force; 0: it has none."""
    needs: Needs | None = None
    """What its memory would need."""
    version: int = VERSION


def write(directory: Path, record: Record) -> None:
    """Whole or not at all, by renaming. No fsync: it lives as long as the machine's memory."""
    target = directory / f"{record.spec.id}.json"
    fresh = directory / f".{record.spec.id}.new"
    spec, image = dict(vars(record.spec)), dict(vars(record.spec.image))
    # Values of secrets. The guest knows them by now, and a later server has no use for them.
    del spec["exposed"]
    # Of no use for what runs.
    del image["warm"]
    fresh.write_text(json.dumps({**vars(record), "spec": {**spec, "image": image}}, default=_plain))
    fresh.rename(target)


def change(directory: Path, spec: BoxSpec) -> None:
    """It is asked to be something else from now on."""
    write(directory, replace(parse(json.loads((directory / f"{spec.id}.json").read_bytes())), spec=spec))


def remove(directory: Path, id: str) -> None:
    """It does not run any more. Why stays."""
    (directory / f"{id}.json").unlink(missing_ok=True)
    go_on(directory, id)


def end(directory: Path, id: str, reason: Reason, detail: str | None) -> None:
    """Write down why it ends: a server that is killed over it can't tell the next in another way."""
    fresh = directory / f".{id}.ended"
    fresh.write_text(json.dumps({"reason": reason, "detail": detail}))
    fresh.rename(_ended(directory, id))


def keep_on(directory: Path, id: str) -> None:
    """It runs, or is no more: nobody will ask why it has ended."""
    _ended(directory, id).unlink(missing_ok=True)


def why_ended(directory: Path, id: str) -> tuple[Reason, str | None] | None:
    """As `end` has it; None: nobody has ended it, or seen its end."""
    try:
        document = json.loads(_ended(directory, id).read_bytes())
    except FileNotFoundError:
        return None
    return Reason(document["reason"]), document["detail"]


def ended(directory: Path) -> list[str]:
    """Those of which it is known why they have ended."""
    return sorted(path.stem for path in directory.glob("sb-*.ended"))


def stand_still(directory: Path, id: str) -> None:
    """Write down that its guest is about to be stopped for a moment: a server that is killed in it leaves it stopped."""
    (directory / f"{id}.still").touch()


def go_on(directory: Path, id: str) -> None:
    """It goes on, or it is no more."""
    (directory / f"{id}.still").unlink(missing_ok=True)


def stands_still(directory: Path, id: str) -> bool:
    """Whether an earlier server may have left it so."""
    return (directory / f"{id}.still").exists()


def _ended(directory: Path, id: str) -> Path:
    return directory / f"{id}.ended"


def ids(directory: Path) -> list[str]:
    """Those that have one: they run, or are about to be no more."""
    return sorted(path.stem for path in directory.glob("sb-*.json"))


def read_all(directory: Path) -> Iterator[Record]:
    """Every record. Raises `ValueError` for one that can't be understood, which a later version may have written."""
    for path in sorted(directory.glob("*.json")):
        yield parse(json.loads(path.read_bytes()))


def parse(document: dict[str, Any]) -> Record:
    if document.get("version") != VERSION:
        raise ValueError(f"record of version {document.get('version')}, this server knows {VERSION}")
    spec = dict(document["spec"])
    image = dict(spec.pop("image"))
    layers = tuple(Path(layer) for layer in image.pop("layers"))
    command = image.pop("command")
    seed = image.pop("seed", None)
    whole = ImageSpec(**image, layers=layers, command=tuple(command) if command is not None else None, seed=None if seed is None else Path(seed))
    spec["egress"] = EgressPolicy.model_validate(spec.get("egress", {}))
    spec["volumes"] = tuple(VolumeUse(**use) for use in spec.get("volumes", ()))
    return Record(
        document["member"],
        Identity(**document["identity"]),
        BoxSpec(**spec, image=whole),
        float(document["claimed_at"]),
        slot=document.get("slot"),
        generation=document.get("generation", 0),
        needs=None if (needs := document.get("needs")) is None else Needs(needs["runsc"], needs["agent"], tuple(needs["cpu"])),
    )


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, EgressPolicy):
        return value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, (Identity, Needs, VolumeUse)):
        return vars(value)
    raise TypeError(f"{type(value).__name__} has no place in a record")
