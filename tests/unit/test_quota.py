"""Quotas: what counts, and that the refusal names the limit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.control import quota
from corral.control.quota import Limits, Use
from corral.errors import QuotaExceeded
from corral.schema.sandbox import State
from harness.records import record


def test_stopped_sandboxes_keep_their_disk_and_their_place_but_no_memory() -> None:
    running = record(cpu=2.0, memory=100, disk=1000)
    stopped = replace(running, state=State.STOPPED)
    ended = replace(running, state=State.TERMINATED)
    assert quota.use([running, stopped, ended]) == Use(sandboxes=2, cpu=2.0, memory=100, disk=2000)


counts = st.integers(0, 1000)


@given(st.none() | counts, counts, counts)
def test_a_limit_is_what_there_may_be_at_once(limit: int | None, used: int, wanted: int) -> None:
    fits = limit is None or wanted == 0 or used + wanted <= limit
    try:
        quota.check(Limits(memory=limit), Use(memory=used), Use(memory=wanted))
    except QuotaExceeded as error:
        assert not fits
        assert "memory" in error.message
        assert str(limit) in error.message
    else:
        assert fits


def test_the_refusal_says_which_and_how_much() -> None:
    with pytest.raises(QuotaExceeded, match=r"3 of sandboxes at once; it has 3 and this needs 1 more"):
        quota.check(Limits(sandboxes=3), Use(sandboxes=3), Use(sandboxes=1, cpu=1))
