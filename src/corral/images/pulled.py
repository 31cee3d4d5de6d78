"""Which images a project has imported from where, so that the same source need not be read again.

<home>/pulled/<project>.json      {source: image id}
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from corral.ids import new_id
from corral.places import Places

log = structlog.get_logger(__name__)

_sources = TypeAdapter(dict[str, str])


class Pulled:
    """One installation's. Safe to use from several threads. A file that can't be read counts as empty, and is logged: its sources are read again."""

    def __init__(self, places: Places) -> None:
        self._directory = places.home / "pulled"
        self._changing = threading.Lock()

    def find(self, project: str, source: str) -> str | None:
        """The id of the image that a source was, the last time."""
        return self._read(project).get(source)

    def images(self, project: str) -> set[str]:
        """The ids of all that it has imported."""
        return set(self._read(project).values())

    def put(self, project: str, source: str, image: str) -> None:
        """Remember it."""
        with self._changing:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write(project, {**self._read(project), source: image})

    def forget(self, image: str) -> None:
        """It is deleted."""
        with self._changing:
            for path in self._directory.glob("*.json"):
                known = self._read(path.stem)
                if image in known.values():
                    self._write(path.stem, {source: id for source, id in known.items() if id != image})

    def sweep(self) -> None:
        """Remove what an earlier server did not write whole."""
        for left in self._directory.glob("*.new"):
            left.unlink()

    def _read(self, project: str) -> dict[str, str]:
        path = self._path(project)
        try:
            return _sources.validate_json(path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValidationError:
            log.warning("what a project has imported can't be read, and is imported again", file=str(path))
            return {}

    def _write(self, project: str, known: Mapping[str, str]) -> None:
        aside = self._directory / f"{new_id('im')}.new"
        try:
            with aside.open("x") as file:
                json.dump(known, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            aside.rename(self._path(project))
        finally:
            aside.unlink(missing_ok=True)

    def _path(self, project: str) -> Path:
        return self._directory / f"{project}.json"
