"""cold: a create without a warm pool member, against the runsc program started by hand."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from corral import Client, CorralError, Sandbox, spawn
from corral.bench.figure import Figure, Floor, timed
from corral.errors import SetupError
from corral.images import Catalog
from corral.node import runsc
from corral.places import Places, default_home

_TRIES = 4
"""Creates for each cold sample wanted: warm members come first, and come back meanwhile."""


def cold(client: Client, n: int, image: str) -> Figure:
    """Create until the pool is empty; those that had to start a sentry are the samples. Run on the server's machine, as root."""
    samples: list[float] = []
    failures = warm = 0
    kept: list[Sandbox] = []
    try:
        while len(samples) < n and warm + failures < 200 + n * _TRIES:
            began = time.perf_counter()
            try:
                kept.append(sandbox := client.sandboxes.create(image, memory=128, wait=30))
            except CorralError:
                failures += 1
                continue
            took = (time.perf_counter() - began) * 1000
            if sandbox.timing.get("cold") == 1:
                samples.append(took)
            else:
                warm += 1
    finally:
        if kept:
            client.sandboxes.delete([sandbox.id for sandbox in kept])
    return Figure("cold", "ms", samples, failures, Floor("runsc run --detach", _by_hand(n)), {"image": image, "warm": warm})


def _by_hand(n: int) -> list[float]:
    places = Places(default_home())
    try:
        program = runsc.find(places).path
    except SetupError as error:
        raise SetupError(f"the floor of this figure needs runsc: {error.message}", hint="run it on the server's machine, as root") from None
    layer = Catalog(places).spec("tiny").layers[0]
    samples: list[float] = []
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as name:
        work = Path(name)
        for number in range(n):
            bundle = work / str(number)
            bundle.mkdir()
            (bundle / "config.json").write_text(json.dumps(_config(layer)))
            call = [str(program), f"--root={work}/state", "--network=none", "--ignore-cgroups", "--overlay2=root:memory"]
            # A pipe as the sentry's stderr would never close: all goes to a file.
            quiet = ["sh", "-c", 'exec "$@" </dev/null >"$0" 2>&1', str(bundle / "log"), *call]
            try:
                samples.append(
                    timed(
                        lambda quiet=quiet, bundle=bundle, number=number: spawn.run(
                            [*quiet, "run", "--detach", f"--bundle={bundle}", f"b{number}"], timeout=30
                        ).check()
                    )
                )
            finally:
                spawn.run([*quiet, "delete", "--force", f"b{number}"], timeout=30)
    return samples


def _config(root: Path) -> dict[str, object]:
    return {
        "ociVersion": "1.0.0",
        "root": {"path": str(root), "readonly": False},
        "process": {"args": ["/bin/sh", "-c", "sleep 60"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin:/usr/bin"]},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }
