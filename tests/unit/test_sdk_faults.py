"""The server's words become the right exceptions, and those are Python's own where one expects them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral import errors
from corral.schema.process import Process
from corral.schema.sandbox import SandboxCreate
from corral.sdk import faults
from corral.sdk.result import Result


def body(code: str, **more: object) -> bytes:
    return json.dumps({"error": {"code": code, "message": "it failed", **more}}).encode()


@pytest.mark.parametrize("code", sorted(set(errors.BY_CODE) - {"command_failed"}))
def test_every_code_has_its_class(code: str) -> None:
    error = faults.from_answer(400, body(code, hint="do this", details={"n": 1}))
    assert type(error) is errors.BY_CODE[code]
    assert (error.message, error.details) == ("it failed", {"n": 1})
    assert str(error) == "it failed (do this)"


@pytest.mark.parametrize(
    ("code", "builtin"),
    [
        ("file_not_found", FileNotFoundError),
        ("file_exists", FileExistsError),
        ("is_a_directory", IsADirectoryError),
        ("not_a_directory", NotADirectoryError),
        ("access_denied", PermissionError),
        ("timeout", TimeoutError),
        ("unavailable", ConnectionError),
        ("disk_full", OSError),
        ("invalid_argument", ValueError),
    ],
)
def test_builtin_classes_are_mixed_in(code: str, builtin: type[Exception]) -> None:
    assert isinstance(faults.from_answer(400, body(code)), builtin)


@pytest.mark.parametrize(("status", "kind"), [(418, errors.RequestError), (599, errors.InternalError)])
def test_a_code_of_a_newer_server_keeps_its_family_and_is_named(status: int, kind: type[errors.CorralError]) -> None:
    error = faults.from_answer(status, body("of_tomorrow"))
    assert type(error) is kind
    assert "of_tomorrow" in str(error)


@given(st.integers(400, 599), st.binary(max_size=300))
def test_any_answer_is_an_error_of_ours(status: int, raw: bytes) -> None:
    assert isinstance(faults.from_answer(status, raw), errors.CorralError)


def test_a_proxy_that_finds_no_server_is_unavailable() -> None:
    assert isinstance(faults.from_answer(502, b"<html>Bad Gateway"), errors.Unavailable)


def test_a_missing_key_says_where_to_get_one() -> None:
    assert "CORRAL_API_KEY" in str(faults.from_answer(401, body("unauthenticated")))


@pytest.mark.parametrize(
    ("field", "value"), [("memory", -1), ("cpu", "many"), ("timeout", 0), ("name", "No Spaces"), ("env", {"A=B": ""}), ("cpu", float("nan"))]
)
def test_a_wrong_argument_is_named(field: str, value: object) -> None:
    with pytest.raises(errors.InvalidArgument, match=field):
        faults.build(SandboxCreate, **{field: value})


def test_text_that_is_no_unicode_is_refused_not_lost() -> None:
    with pytest.raises(errors.InvalidArgument):
        faults.encode(faults.build(SandboxCreate, tags={"a": "\udc80"}))


def test_an_answer_of_another_kind_is_the_platforms_fault() -> None:
    with pytest.raises(errors.InternalError):
        faults.decode(Process, b"[]")


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (4404, "not_found: no such process", errors.NotFound),
        (4410, "sandbox_ended: oom", errors.SandboxEnded),
        (4503, "unavailable: starting", errors.Unavailable),
        (1001, "the server is leaving", errors.Unavailable),
        (1006, "", errors.Unavailable),
    ],
)
def test_the_end_of_a_websocket_tells_why(code: int, reason: str, kind: type[errors.CorralError]) -> None:
    assert isinstance(faults.from_close(code, reason), kind)


@pytest.mark.parametrize("text", ["", ".", ".."])
def test_no_id_is_no_path(text: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        faults.segment(text)


def test_an_id_is_one_part_of_a_path() -> None:
    assert faults.segment("a/../b?c") == "a%2F..%2Fb%3Fc"


def test_check_raises_with_the_output_in_the_message() -> None:
    good = Result("true", b"", b"", 0, 0.1)
    assert good.check() is good
    bad = Result(["sh", "-c", "exit 3"], b"out", b"what went wrong\xff", 3, 0.1)
    with pytest.raises(errors.CommandFailed, match="ended with 3:\nwhat went wrong\ufffd") as caught:
        bad.check()
    assert caught.value.result is bad
    with pytest.raises(errors.CommandFailed, match="signal 9"):
        Result("x", b"", b"", 137, 0.1, signal=9).check()
