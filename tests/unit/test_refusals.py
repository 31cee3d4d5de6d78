"""What a guest's errno becomes: the class a Python user expects, a message with the name in question, and what to do next."""

from __future__ import annotations

import pytest

from corral.errors import CorralError
from corral.node.refusals import refusal, start_refusal
from corral.wire.messages import Problem


@pytest.mark.parametrize(
    ("code", "builtin", "word"),
    [
        ("ENOENT", FileNotFoundError, "file_not_found"),
        ("EEXIST", FileExistsError, "file_exists"),
        ("ENOTDIR", NotADirectoryError, "not_a_directory"),
        ("EISDIR", IsADirectoryError, "is_a_directory"),
        ("EACCES", PermissionError, "access_denied"),
        ("EROFS", PermissionError, "access_denied"),
        ("ELOOP", ValueError, "invalid_argument"),
        ("ENAMETOOLONG", ValueError, "invalid_argument"),
        ("ENOSPC", OSError, "disk_full"),
        ("EDQUOT", OSError, "disk_full"),
        ("ENOTEMPTY", CorralError, "conflict"),
    ],
)
def test_file_errors(code: str, builtin: type[Exception], word: str) -> None:
    error = refusal(Problem(code, "whatever", b"/w/\xff"), b"/other")
    assert isinstance(error, builtin)
    assert error.code == word
    assert "/w/\ufffd" in error.message
    assert error.details["errno"] == code
    assert "/asked" in refusal(Problem(code, "whatever"), b"/asked").message


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("EPROTO", "invalid_argument"),
        ("ENOUSER", "invalid_argument"),
        ("EAGAIN", "quota_exceeded"),
        ("ENOSYS", "unsupported"),
        ("ESRCH", "invalid_state"),
        ("EXXX", "platform"),
    ],
)
def test_other_errors_keep_what_the_guest_says(code: str, word: str) -> None:
    error = refusal(Problem(code, "the guest's own words"))
    assert error.code == word
    assert "the guest's own words" in error.message


@pytest.mark.parametrize(
    ("problem", "word", "says"),
    [
        (Problem("ENOENT", "", b"prog"), "not_executable", "`prog` was not found"),
        (Problem("EACCES", "", b"prog"), "not_executable", "may not be executed"),
        (Problem("ENOEXEC", "", b"prog"), "not_executable", "form"),
        (Problem("ENOENT", "", b"/cwd"), "file_not_found", "working directory `/cwd` does not exist"),
        (Problem("ENOTDIR", "", b"/cwd"), "not_a_directory", "working directory `/cwd` is not a directory"),
        (Problem("EACCES", "", b"/cwd"), "access_denied", "working directory `/cwd` may not be entered"),
        (Problem("ENOUSER", "no user x"), "invalid_argument", "no user x"),
        (Problem("E2BIG", "list too long"), "too_large", "list too long"),
        (Problem("ENOSPC", "full", b"/dev/shm"), "disk_full", "disk is full"),
    ],
)
def test_start_errors_tell_program_and_directory_apart(problem: Problem, word: str, says: str) -> None:
    error = start_refusal(problem, b"prog", b"/cwd")
    assert error.code == word
    assert says in error.message


def test_a_hostile_message_is_shortened() -> None:
    assert len(refusal(Problem("EIO", "x" * 60_000)).message) < 2200
    assert len(refusal(Problem("ENOENT", "", b"y" * 60_000)).message) < 300
