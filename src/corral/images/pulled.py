"""Which images a project has imported from where, so that the same source need not be read again.

<home>/pulled/<project>.json      {source: image id}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from corral.places import Places


class Pulled:
    """One installation's."""

    def __init__(self, places: Places) -> None:
        self._directory = places.home / "pulled"

    def find(self, project: str, source: str) -> str | None:
        """The id of the image that a source was, the last time."""
        return self._read(project).get(source)

    def put(self, project: str, source: str, image: str) -> None:
        """Remember it."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = {**self._read(project), source: image}
        path = self._path(project)
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps(known, indent=1))
        aside.rename(path)

    def forget(self, image: str) -> None:
        """It is deleted."""
        for path in self._directory.glob("*.json"):
            known = self._read(path.stem)
            if image in known.values():
                aside = path.with_suffix(".new")
                aside.write_text(json.dumps({source: id for source, id in known.items() if id != image}, indent=1))
                aside.rename(path)

    def _read(self, project: str) -> dict[str, str]:
        try:
            return cast("dict[str, str]", json.loads(self._path(project).read_bytes()))
        except FileNotFoundError:
            return {}

    def _path(self, project: str) -> Path:
        return self._directory / f"{project}.json"
