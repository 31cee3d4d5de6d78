"""The programs that memories were made by: a sandbox comes back with the runsc and the guest agent it had, whatever is installed by then.

    <home>/engines/<version>/…          runsc, kept when the first memory is made by it, unless it is there anyway
    <home>/memory/agents/<digest>       guest agents

They are small, and kept for good.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

from corral.errors import Unsupported
from corral.node import memory, runsc
from corral.node.memory import Needs
from corral.node.runsc import BESIDE, Runsc
from corral.places import Places


class Programs:
    """Everything here blocks for some milliseconds at most, but the first `keep` of an engine."""

    def __init__(self, places: Places, current: Runsc, agent: Path) -> None:
        self._engines = places.engines
        self._agents = places.memory / "agents"
        self._current = current
        self._agent = agent
        self.needs = Needs(current.version, hashlib.sha256(agent.read_bytes()).hexdigest(), memory.cpu_features())
        """What the memory of a sandbox started now will need."""
        self._kept: set[Needs] = set()

    def keep(self, needs: Needs, agent: Path) -> None:
        """Before a memory that needs them counts: have them for as long as it may take. `agent`: where that agent can be read. Raises `Unsupported` when its engine is gone already."""
        if needs in self._kept:
            return
        if needs.runsc != self._current.version:
            self._older(needs.runsc)
        elif self._engines.resolve() not in self._current.path.parents:
            self._keep_engine()
        target = self._agents / needs.agent
        if not target.exists():
            self._agents.mkdir(mode=0o700, parents=True, exist_ok=True)
            _copy(agent, target)
        self._kept.add(needs)

    def find(self, needs: Needs) -> tuple[Runsc, Path]:
        """What brings a memory back. Raises `Unsupported` when something is missing here."""
        if missing := set(needs.cpu) - set(self.needs.cpu):
            raise Unsupported(
                f"the memory was saved on a processor that can do what this one can't: {', '.join(sorted(missing)[:10])}",
                hint="resume it on a machine like the one it was paused on, or stop it and start it without its memory",
            )
        program = self._current if needs.runsc == self._current.version else self._older(needs.runsc)
        agent = self._agent if needs.agent == self.needs.agent else self._agents / needs.agent
        if not agent.exists():
            raise Unsupported("the guest agent that the memory was saved with is missing", hint=f"put it back as {agent}, or stop the sandbox and start it")
        return program, agent

    def _keep_engine(self) -> None:
        source, target = self._current.path, self._home(self._current.version)
        if (target / "runsc").exists():
            return
        aside = target.with_name(f".new-{target.name}")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        shutil.copy2(source, aside / "runsc")
        if (beside := source.parent / BESIDE).is_dir():
            shutil.copytree(beside, aside / BESIDE)
        aside.rename(target)

    def _older(self, version: str) -> Runsc:
        path = self._home(version) / "runsc"
        if path.exists():
            found = runsc.probe(path)
            if found.version == version:
                return found
        for other in sorted(self._engines.glob("*/runsc")) if self._engines.is_dir() else []:
            found = runsc.probe(other)
            if found.version == version:
                return found
        raise Unsupported(
            f"the memory needs the engine {version}, which is not in {self._engines}; {self._current.version} is in use",
            hint="put that runsc back there, or stop the sandbox and start it without its memory",
        )

    def _home(self, version: str) -> Path:
        return self._engines / re.sub(r"[^A-Za-z0-9.-]", "_", version)


def share(places: Places, other: Places) -> None:
    """Let an installation use the engines of another by links of its own: what it keeps itself must not be put among those."""
    places.engines.mkdir()
    for engine in other.engines.glob("*"):
        (places.engines / engine.name).symlink_to(engine)


def _copy(source: Path, target: Path) -> None:
    aside = target.with_name(f".new-{target.name}")
    shutil.copyfile(source, aside)
    aside.chmod(0o755)
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.rename(target)
