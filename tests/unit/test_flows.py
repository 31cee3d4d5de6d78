"""The flow log: numbered, paged, bounded, and read on by the next server."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from corral.node import flows
from corral.node.flows import FlowBook
from corral.schema.egress import Flow, Verdict

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def flow(port: int, verdict: Verdict = Verdict.ALLOWED) -> Flow:
    return Flow.model_validate({"seq": 0, "at": AT, "sandbox": "sb-aaaaaaaaaaaaaaaa", "kind": "tcp", "name": "example.com", "port": port, "verdict": verdict})


def test_flows_are_read_as_they_were_written(tmp_path: Path) -> None:
    book = FlowBook(tmp_path / "sb")
    assert book.page(after=0, limit=10, denied=False).flows == []
    written = book.append([flow(1), flow(2, Verdict.DENIED)]) + book.append([flow(3)])
    assert [one.seq for one in written] == [1, 2, 3]
    again = FlowBook(tmp_path / "sb")
    assert again.page(after=0, limit=10, denied=False).flows == written
    assert again.append([flow(4)])[0].seq == 4


def test_pages_follow_each_other(tmp_path: Path) -> None:
    book = FlowBook(tmp_path)
    book.append([flow(port, Verdict.DENIED if port % 3 == 0 else Verdict.ALLOWED) for port in range(1, 11)])
    first = book.page(after=0, limit=4, denied=False)
    assert ([one.port for one in first.flows], first.next) == ([1, 2, 3, 4], 4)
    last = book.page(after=8, limit=4, denied=False)
    assert ([one.port for one in last.flows], last.next) == ([9, 10], None)
    denied = book.page(after=3, limit=1, denied=True)
    assert ([one.port for one in denied.flows], denied.next) == ([6], 6)


def test_a_full_log_loses_its_oldest_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "SIZE", 4096)
    book = FlowBook(tmp_path)
    for port in range(1, 200):
        book.append([flow(port)])
        assert (tmp_path / flows.NAME).stat().st_size <= 4096
    kept = [one.seq for one in book.all()]
    assert kept == list(range(kept[0], 200))
    assert len(kept) > 10


def test_a_line_cut_off_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    FlowBook(tmp_path).append([flow(1), flow(2)])
    with (tmp_path / flows.NAME).open("ab") as file:
        file.write(b'{"seq":3,"sandbox":"sb-aa')
    book = FlowBook(tmp_path)
    assert [one.seq for one in book.all()] == [1, 2]
    book.append([flow(9)])
    assert [(one.seq, one.port) for one in book.all()] == [(1, 1), (2, 2), (3, 9)]
