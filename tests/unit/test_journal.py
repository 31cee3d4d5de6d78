"""The journal gives back what was written, whatever happened to its writer."""

from __future__ import annotations

from pathlib import Path

from structlog.testing import capture_logs

from corral.node.journal import Asked, Exited, Fact, Forgotten, Journal, Opened, TimedOut

FACTS: list[Fact] = [
    Opened(epoch=1, channels=4096),
    Asked("pr-a", 1, [b"sh", b"-c", b"\xff\n"], b"/w", "user", None, pty=False, stdin=True, at=1.5, timeout=None),
    TimedOut("pr-a"),
    Exited("pr-a", 7, 2.5, None, 9, 10, 20, 1.0, 0, timed_out=True, lost=False, closed=True),
    Forgotten("pr-a"),
]


def test_facts_come_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "sb" / "processes.jsonl")
    assert journal.read() == []
    for fact in FACTS:
        journal.append(fact)
    again = Journal(tmp_path / "sb" / "processes.jsonl")
    assert again.read() == FACTS
    assert again.size == journal.size


def test_a_line_that_was_cut_off_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "processes.jsonl"
    journal = Journal(path)
    for fact in FACTS:
        journal.append(fact)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    again = Journal(path)
    assert again.read() == FACTS[:-1]
    again.append(FACTS[-1])
    assert path.read_bytes() == whole


def test_a_line_that_makes_no_sense_is_reported_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "processes.jsonl"
    journal = Journal(path)
    journal.append(FACTS[0])
    with path.open("ab") as file:
        file.write(b'{"fact": "unheard of"}\n\xff\xfe\n')
    journal.append(FACTS[2])
    with capture_logs() as logs:
        assert Journal(path).read() == [FACTS[0], FACTS[2]]
    assert [entry["line"] for entry in logs] == [2, 3]


def test_rewriting_replaces_everything(tmp_path: Path) -> None:
    path = tmp_path / "processes.jsonl"
    journal = Journal(path)
    for fact in FACTS:
        journal.append(fact)
    journal.rewrite(FACTS[:2])
    journal.append(FACTS[4])
    assert Journal(path).read() == [*FACTS[:2], FACTS[4]]
    assert [file.name for file in tmp_path.iterdir()] == ["processes.jsonl"]
