"""Which figures there are, and how they are shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from corral import Client
from corral.bench import bulk, cold, crowd, egress, hostile, image, latency, memory, preview, state, thaw
from corral.bench.figure import Figure
from corral.cli import show
from corral.cli.options import WrongUse


@dataclass(frozen=True)
class Plan:
    """How often a figure is taken when nobody says."""

    measure: Callable[[Client, int, str, int], Figure]
    n: int
    usual: bool = True
    image: str = "tiny"


FIGURES = {
    "tti": Plan(lambda client, n, image, _: latency.tti(client, n, image), 50),
    "exec": Plan(lambda client, n, image, _: latency.execute(client, n, image), 200),
    "echo": Plan(lambda client, n, image, _: latency.echo(client, n, image), 500),
    "files": Plan(bulk.files, 3),
    "cold": Plan(lambda client, n, image, _: cold.cold(client, n, image), 10),
    "snapshot": Plan(lambda client, n, image, _: state.snapshot(client, n, image), 10, usual=False),
    "pause": Plan(lambda client, n, image, _: memory.pause(client, n, image), 5, usual=False, image="base"),
    "fork": Plan(lambda client, n, image, _: memory.fork(client, n, image), 5, usual=False, image="base"),
    "burst": Plan(lambda client, n, image, _: crowd.burst(client, n, image), 100, usual=False),
    "hostile": Plan(lambda client, n, image, _: hostile.hostile(client, n, image), 200, usual=False),
    "image": Plan(lambda client, n, name, _: image.image(client, n, name), 100, usual=False, image="debian"),
    "egress": Plan(lambda client, n, image, _: egress.egress(client, n, image), 100, usual=False),
    "preview": Plan(lambda client, n, image, _: preview.preview(client, n, image), 4000, usual=False),
    "thaw": Plan(lambda client, n, image, _: thaw.thaw(client, n, image), 50, usual=False, image="base"),
    "density": Plan(lambda client, n, image, _: crowd.density(client, n, image), 500, usual=False),
}


_SHOWN = ("figure", "unit", "n", "failures", "min", "p50", "p90", "p99", "max")


def main(figure: str | None, *, n: int | None, image: str | None, size: int, json: bool) -> int:
    """Measure one figure, or all that don't load the machine; 1 when something failed meanwhile."""
    if figure is not None and figure not in FIGURES:
        raise WrongUse(f"no figure is named {figure!r}: there are {', '.join(FIGURES)}")
    failed = 0
    rows: list[list[object]] = []
    with Client() as client:
        for name in [figure] if figure else [name for name, plan in FIGURES.items() if plan.usual]:
            plan = FIGURES[name]
            document = plan.measure(client, n or plan.n, image or plan.image, size).document()
            failed += document["failures"]
            if json:
                show.as_json(document)
            else:
                floor: dict[str, object] = document["floor"] or {}
                rows.append([*(document[key] for key in _SHOWN), floor.get("name"), floor.get("p50"), document["ratio"]])
    if not json:
        show.table((*_SHOWN, "floor", "floor p50", "ratio"), rows)
    return 1 if failed else 0
