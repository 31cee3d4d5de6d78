"""One running sandbox on the node: its box, its guest, when it was last used, whether it is frozen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corral.node import trust
from corral.node.box import RunscBox
from corral.node.files import Files
from corral.node.guest import Guest
from corral.node.idler import Crowd, Idler
from corral.node.interface import BoxSpec
from corral.node.link import Link
from corral.node.processes import Defaults, ProcessBook
from corral.node.told_inside import ToldInside
from corral.schema.egress import EgressPolicy

OnEvent = Callable[[str, str, Mapping[str, Any]], None]
"""Told the sandbox's id, the kind of event and what is known of it."""


def defaults_of(spec: BoxSpec) -> Defaults:
    """What processes of this sandbox get unless asked otherwise: the sandbox's own wishes over its image's."""
    return Defaults(env={**spec.image.env, **spec.env, **spec.exposed}, user=spec.user or spec.image.user, workdir=spec.workdir or spec.image.workdir)


@dataclass(frozen=True)
class Hooks:
    """Whom a running sandbox tells."""

    on_event: OnEvent
    on_garbage: Callable[[str, str], None]
    on_silence: Callable[[str], None]


class Running:
    """Made for a claimed box. It is frozen while idle, as one of `crowd`; never without."""

    def __init__(self, spec: BoxSpec, box: RunscBox, spool: Path, *, crowd: Crowd | None, hooks: Hooks, book: ProcessBook | None = None) -> None:
        self.spec = spec
        self.box = box
        self._used_at = self._held_until = time.monotonic()
        self._in_use = False
        self.link = Link(box.control, lambda why: hooks.on_garbage(spec.id, why))
        self.guest = Guest(
            self.link,
            spool,
            spec.id,
            defaults=defaults_of(spec),
            on_event=lambda kind, data: hooks.on_event(spec.id, kind, data),
            activity=self._touch,
            book=book,
        )
        self.trust(spec.egress)
        # The end of the link is the first sign of a sandbox's end. Why it ended is known a moment later; only then, in `close`, callers who wait are told.
        self.link.on_end = lambda _error: hooks.on_silence(spec.id)
        defaults = self.guest.defaults
        self.files = Files(self.link, self.guest.processes.next_channel, user=defaults.user, workdir=defaults.workdir, root=box.root)
        self.denials = ToldInside(self.files)
        self._idler = None if crowd is None else self._make_idler(crowd, hooks)
        box.on_detach = lambda: self._rest(thaw=False)

    def trust(self, policy: EgressPolicy) -> None:
        """What processes are told of the installation's authority from now on; that it is there is `trust.install`'s work."""
        self.guest.processes.environment = trust.environment(policy, {**self.spec.env, **self.spec.exposed})

    @property
    def last_activity(self) -> float:
        """On the clock of `time.monotonic`; now while it is held or kept awake."""
        now = time.monotonic()
        return now if self._in_use else max(self._used_at, min(now, self._held_until))

    def keep_awake(self, *, on: bool) -> None:
        """Others use it: bytes to and from its ports do not pass here."""
        self._in_use = on
        self._touch()

    def hold(self, seconds: float) -> None:
        """It is used for so long from now, whatever happens in it."""
        self._held_until = time.monotonic() + seconds
        self._touch()

    @property
    def frozen(self) -> bool:
        return self._idler is not None and self._idler.frozen

    def close(self, *, thaw: bool) -> None:
        """Stop using the sandbox; its processes go on. `thaw`: leave it awake, since nobody watches it any more."""
        self._rest(thaw=thaw)
        self.guest.close()

    def suspend(self) -> ProcessBook:
        """It has been saved and is about to be ended; returns its processes, for `book` of the one that it comes back as."""
        self._rest(thaw=False)
        self.guest.suspend()
        return self.guest.processes

    def _rest(self, *, thaw: bool) -> None:
        """No more freezing and waking, and nothing more is told inside."""
        self.denials.close()
        if (idler := self._idler) is not None:
            self._idler = None
            idler.stop(thaw=thaw)
            self._listen(on=False)

    def _touch(self) -> None:
        self._used_at = time.monotonic()
        if self._idler is not None:
            self._idler.touch()

    def _make_idler(self, crowd: Crowd, hooks: Hooks) -> Idler:
        loop = asyncio.get_running_loop()
        return Idler(
            self.box,
            busy=lambda: self.link.busy or self._in_use or time.monotonic() < self._held_until,
            processes=lambda: self.guest.alive + self.guest.processes.running,
            clock=loop.time,
            call_later=loop.call_later,
            crowd=crowd,
            on_change=lambda: self._froze_or_thawed(hooks),
        )

    def _froze_or_thawed(self, hooks: Hooks) -> None:
        self._listen(on=self.frozen)
        hooks.on_event(self.spec.id, "sandbox.frozen" if self.frozen else "sandbox.thawed", {})

    def _listen(self, *, on: bool) -> None:
        """While it is frozen, a packet that arrives for it is a use that wakes it."""
        if (packets := self.box.packets) is not None:
            loop = asyncio.get_running_loop()
            if on:
                loop.add_reader(packets, self._touch)
            else:
                loop.remove_reader(packets)
