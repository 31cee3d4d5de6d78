"""image: what it costs to build again what was built before, and to build what has changed in its last step."""

from __future__ import annotations

import time
import uuid

from corral import Client, CorralError, Image
from corral.bench.figure import Figure, Floor
from corral.schema.image import BuildLog


def image(client: Client, n: int, name: str) -> Figure:
    """Milliseconds until an image of three steps is there that was built before. The floor is the whole question for its id alone: one round trip.

    Besides: how many steps those builds did (none), how many one did whose last step had changed (one), and both builds' seconds.
    """
    chain = Image.debian() if name == "debian" else Image.named(name).user("root")
    described = chain.apt_install("git").pip_install("requests")
    samples: list[float] = []
    asked: list[float] = []
    failures = again = 0
    first, steps_first, built = _build(client, described)
    for _ in range(n):
        try:
            took, steps, _ = _build(client, described)
        except CorralError:
            failures += 1
            continue
        again += steps
        samples.append(took * 1000)
        began = time.perf_counter()
        client.images.get(built)
        asked.append((time.perf_counter() - began) * 1000)
    # One that nobody has built, so that the figure is the same each time.
    changed, steps_changed, _ = _build(client, described.run(f": {uuid.uuid4().hex}"))
    more = {"image": name, "steps": again, "first_s": first, "first_steps": steps_first, "changed_s": changed, "changed_steps": steps_changed}
    return Figure("image", "ms", samples, failures, Floor("one request", asked), more)


def _build(client: Client, described: Image) -> tuple[float, int, str]:
    """Seconds, the steps that were done, and the image."""
    lines: list[BuildLog] = []
    began = time.perf_counter()
    built = described.build(client=client, on_log=lines.append)
    return time.perf_counter() - began, sum(line.stream == "step" for line in lines), built.id
