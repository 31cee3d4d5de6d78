"""`corral setup`: goes along the list of checks and mends what it can. Run again, it finds nothing to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from corral import images
from corral.errors import CorralError, SetupError
from corral.images import builtin
from corral.node import at_rest
from corral.places import Places
from corral.setup import systemd
from corral.setup.check import Check, Finding, Repair, Say
from corral.setup.checks import CHECKS
from corral.setup.machine import Machine, this_machine

IMAGES = ("tiny", "base")


def setup(
    places: Places,
    *,
    say: Say,
    image_names: Sequence[str] | None = None,
    host_mirrors: bool = False,
    unit: bool = False,
    checks: Sequence[Check] = CHECKS,
) -> None:
    """Ready this machine and make the images: those named, else `IMAGES` and what is here of an earlier version. `say` gets one line for each change and each thing that could be better.

    Raises `SetupError` (one sentence and its mend) when something needed is missing and can't be mended; what a person must mend is looked at before anything is changed.
    """
    machine = this_machine(places)
    for check in checks:
        if check.needed and check.repair is None:
            finding = check.probe(machine)
            if not finding.ok:
                raise SetupError(f"this machine can't run sandboxes yet: {finding.text}", hint=finding.mend)
    for check in checks:
        finding = check.probe(machine)
        if not finding.ok and check.repair is not None:
            finding = _mend(check, check.repair, finding, machine, say)
        if not finding.ok:
            if check.needed:
                raise SetupError(f"{check.name}: {finding.text}", hint=finding.mend)
            say(f"not needed, but better: {check.name}: {finding.text} ({finding.mend})")
    if image_names is None:
        image_names = tuple(dict.fromkeys((*IMAGES, *builtin.outdated(images.Catalog(places)))))
    if image_names:
        at_rest.refuse_closed(places)
        images.ensure(places, list(image_names), on_line=say, host_mirrors=host_mirrors)
        builtin.sweep(places, on_line=say)
    if unit:
        say(f"wrote {systemd.write_unit(places)}; start it with `systemctl daemon-reload && systemctl enable --now {systemd.UNIT}`")


def _mend(check: Check, repair: Repair, finding: Finding, machine: Machine, say: Say) -> Finding:
    """What is found after the repair. A repair that fails ends the setup only where the thing is needed."""
    try:
        repair(machine, say)
    except CorralError as error:
        if check.needed:
            raise
        return replace(finding, text=f"{finding.text}; {error.message}")
    return check.probe(machine)
