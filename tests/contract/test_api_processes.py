"""Processes over HTTP: every way to start them, to read them, to write to them and to end them."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from corral.sdk.sse import Event
from harness.api import Api, data
from harness.server import Server


@pytest.fixture(scope="module")
def api(server: Server) -> Iterator[Api]:
    api = Api(server)
    yield api
    api.close()


@pytest.fixture(scope="module")
def path(api: Api) -> Iterator[str]:
    """Where the processes of a sandbox of this module are."""
    box = api.create(name=f"processes-{uuid.uuid4().hex[:8]}")
    yield f"/v1/sandboxes/{box['id']}/processes"
    api.delete(box["id"])


def start(api: Api, path: str, command: str, **fields: Any) -> str:
    """The path of a new process."""
    return f"{path}/{api.ok('POST', path, status=201, json={'command': command, **fields})['id']}"


def gather(events: Iterable[Event]) -> tuple[bytes, bytes, dict[str, Any], list[str]]:
    """Standard output and error, the ended process, and the ids on the way. Offsets must follow one another."""
    out = {"stdout": b"", "stderr": b""}
    ids: list[str] = []
    for event in events:
        match event.name:
            case "output":
                piece = data(event)
                assert piece["offset"] == len(out[piece["stream"]])
                assert piece["dropped"] == 0
                out[piece["stream"]] += base64.b64decode(piece["data"])
                ids.append(event.id)
                assert event.id == f"{len(out['stdout'])}:{len(out['stderr'])}"
            case "exit":
                return out["stdout"], out["stderr"], data(event), ids
            case _:
                assert event.name == "process"
    raise AssertionError("the stream ended without an exit")


def test_starting_and_following_is_one_request(api: Api, path: str) -> None:
    with api.events("POST", path, json={"command": "echo out; echo err >&2; exit 7", "tag": "t"}) as events:
        first = next(events)
        assert first.name == "process"
        assert data(first)["tag"] == "t"
        out, err, ended, _ = gather(events)
    assert (out, err, ended["exit_code"], ended["running"], ended["lost"]) == (b"out\n", b"err\n", 7, False, False)
    assert ended["id"] == data(first)["id"]
    assert ended["duration"] > 0
    assert api.ok("GET", f"{path}/{ended['id']}") == ended
    assert ended in api.ok("GET", path)["processes"]


def test_output_resumes_at_the_last_event(api: Api, path: str) -> None:
    process = start(api, path, "i=0; while [ $i -lt 2000 ]; do echo $i; echo e$i >&2; i=$((i+1)); done")
    with api.events("GET", f"{process}/output") as events:
        out, err, ended, ids = gather(events)
    assert out == b"".join(b"%d\n" % number for number in range(2000))
    assert err == b"".join(b"e%d\n" % number for number in range(2000))
    assert (ended["stdout_offset"], ended["stderr_offset"]) == (len(out), len(err))
    middle = ids[len(ids) // 2]
    at_out, at_err = map(int, middle.split(":"))
    with api.events("GET", f"{process}/output", headers={"Last-Event-ID": middle}) as events:
        rest = [data(event) for event in events if event.name == "output"]
    assert b"".join(base64.b64decode(one["data"]) for one in rest if one["stream"] == "stdout") == out[at_out:]
    assert b"".join(base64.b64decode(one["data"]) for one in rest if one["stream"] == "stderr") == err[at_err:]
    for offset in (0, 7, len(out), len(out) + 10):
        answer = api.request("GET", f"{process}/stdout", params={"offset": offset})
        assert answer.content == out[offset:]
        assert answer.headers["corral-offset"] == str(offset)
    api.refused("invalid_argument", "GET", f"{process}/output", headers={"Last-Event-ID": "nonsense"})
    api.refused("invalid_argument", "GET", f"{process}/stdout", params={"offset": -1})


def test_what_there_is_now_can_be_read_without_waiting(api: Api, path: str) -> None:
    process = start(api, path, "echo first; read x; echo second", stdin=True)
    with api.events("GET", f"{process}/output") as events:
        assert base64.b64decode(data(next(events))["data"]) == b"first\n"
    assert api.request("GET", f"{process}/stdout", params={"follow": "false"}).content == b"first\n"
    with api.events("GET", f"{process}/output", params={"follow": "false"}) as events:
        assert [event.name for event in events] == ["output"]
    assert api.ok("GET", f"{process}/wait", params={"timeout": 0})["running"]
    api.ok("POST", f"{process}/stdin?eof=true", content=b"\n")
    assert not api.ok("GET", f"{process}/wait")["running"]


def test_output_that_is_not_text_comes_whole(api: Api, path: str) -> None:
    process = start(api, path, 'i=0; while [ $i -lt 256 ]; do printf "\\\\$(printf %03o $i)"; i=$((i+1)); done')
    assert api.request("GET", f"{process}/stdout").content == bytes(range(256))


def test_input_is_taken_once_however_often_it_is_sent(api: Api, path: str) -> None:
    process = start(api, path, "cat", stdin=True)
    assert api.ok("POST", f"{process}/stdin?offset=0", content=b"hello ")["offset"] == 6
    assert api.ok("POST", f"{process}/stdin?offset=0", content=b"hello ")["offset"] == 6
    assert api.ok("POST", f"{process}/stdin?offset=3", content=b"lo world")["offset"] == 11
    gap = api.refused("conflict", "POST", f"{process}/stdin?offset=50", content=b"x")
    assert gap["details"]["offset"] == 11
    for _ in range(2):
        assert api.ok("POST", f"{process}/stdin?offset=11&eof=true")["offset"] == 11
    assert api.ok("GET", f"{process}/wait")["exit_code"] == 0
    assert api.request("GET", f"{process}/stdout").content == b"hello world"
    api.refused("invalid_state", "POST", f"{process}/stdin", content=b"late")


def test_large_input_passes_through(api: Api, path: str) -> None:
    process = start(api, path, "md5sum", stdin=True)
    blob = bytes(range(256)) * 40_000
    assert api.ok("POST", f"{process}/stdin?offset=0&eof=true", content=blob)["offset"] == len(blob)
    import hashlib

    assert api.request("GET", f"{process}/stdout").content.split()[0].decode() == hashlib.md5(blob).hexdigest()


def test_a_process_without_input_has_none(api: Api, path: str) -> None:
    process = start(api, path, "cat; echo end; sleep 60")
    api.refused("invalid_state", "POST", f"{process}/stdin", content=b"x")
    api.ok("DELETE", process, status=204)


def test_signals_and_timeouts_end_it_and_say_so(api: Api, path: str) -> None:
    process = start(api, path, "sleep 1000")
    api.ok("POST", f"{process}/signal", status=204, json={"signal": 9, "to": "tree"})
    killed = api.ok("GET", f"{process}/wait")
    assert (killed["signal"], killed["exit_code"], killed["timed_out"]) == (9, 137, False)
    api.refused("invalid_state", "POST", f"{process}/signal", json={"signal": 15})
    late = api.ok("GET", f"{start(api, path, 'echo so far; sleep 1000', timeout=0.5)}/wait")
    assert (late["timed_out"], late["exit_code"]) == (True, 137)
    assert late["stdout_offset"] == 7
    api.refused("invalid_argument", "POST", f"{process}/signal", json={"signal": 99})
    api.refused("invalid_argument", "POST", f"{process}/signal", json={"signal": 9, "to": "everyone"})


def test_forgetting_kills_it_and_everything_it_started(api: Api, path: str) -> None:
    process = start(api, path, "echo $$; sleep 1234 & wait")
    with api.events("GET", f"{process}/output") as events:
        next(events)
    api.ok("DELETE", process, status=204)
    api.refused("not_found", "GET", process)
    api.refused("not_found", "DELETE", process)
    sandbox = path.split("/")[3]
    assert b"1234" not in api.run(sandbox, "ps | grep -v grep | grep 'sleep 1234'")[0]


@pytest.mark.parametrize("kill", [True, False])
def test_hanging_up_kills_only_what_was_started_like_that(api: Api, path: str, kill: bool) -> None:
    with api.events("POST", path, params={"kill_on_disconnect": "true"} if kill else {}, json={"command": "echo here; sleep 4"}) as events:
        process = f"{path}/{data(next(events))['id']}"
        assert next(events).name == "output"
    ended = api.ok("GET", f"{process}/wait", params={"timeout": 30})
    assert (ended["signal"], ended["exit_code"]) == ((9, 137) if kill else (None, 0))


def test_hanging_up_is_nothing_without_a_stream(api: Api, path: str) -> None:
    api.refused("invalid_argument", "POST", path, params={"kill_on_disconnect": "true"}, json={"command": "true"})


def test_one_key_starts_one_process(api: Api, path: str) -> None:
    word = uuid.uuid4().hex
    how: dict[str, Any] = {"json": {"command": "sleep 0.1", "tag": word}, "headers": {"Idempotency-Key": word}}
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: api.ok("POST", path, status=201, **how), range(5)))
    assert len({answer["id"] for answer in answers}) == 1
    assert [one["id"] for one in api.ok("GET", path)["processes"] if one["tag"] == word] == [answers[0]["id"]]
    api.refused("conflict", "POST", path, json={"command": "sleep 0.2"}, headers=how["headers"])


def test_a_terminal_has_its_size_and_a_pipe_has_none(api: Api, path: str) -> None:
    process = start(api, path, "stty size; read x; stty size", pty={"rows": 30, "cols": 100})
    with api.events("GET", f"{process}/output") as events:
        assert base64.b64decode(data(next(events))["data"]) == b"30 100\r\n"
    api.ok("POST", f"{process}/resize", status=204, json={"rows": 40, "cols": 120})
    api.ok("POST", f"{process}/stdin", content=b"\n")
    assert api.request("GET", f"{process}/stdout").content.endswith(b"40 120\r\n")
    pipe = start(api, path, "sleep 60")
    api.refused("invalid_state", "POST", f"{pipe}/resize", json={"rows": 1, "cols": 1})
    api.ok("DELETE", pipe, status=204)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, "invalid_argument"),
        ({"argv": []}, "invalid_argument"),
        ({"argv": ["true"], "command": "true"}, "invalid_argument"),
        ({"argv": ["a\0b"]}, "invalid_argument"),
        ({"argv": ["/nonesuch"]}, "not_executable"),
        ({"argv": ["nonesuch"]}, "not_executable"),
        ({"argv": ["/etc"]}, "not_executable"),
        ({"argv": ["/etc/hostname"]}, "not_executable"),
        ({"argv": ["true"], "cwd": "/nonesuch"}, "file_not_found"),
        ({"argv": ["true"], "cwd": "/etc/hostname"}, "not_a_directory"),
        ({"argv": ["true"], "user": "nonesuch"}, "invalid_argument"),
        ({"argv": ["true"], "timeout": -1}, "invalid_argument"),
        ({"argv": ["true"], "env": {"A=": "1"}}, "invalid_argument"),
        ({"argv": ["true"], "pty": {"rows": 0, "cols": 1}}, "invalid_argument"),
        ({"argv": ["echo", "x" * (1 << 20)]}, "too_large"),
        ({"argv": ["echo", *(["x" * 100] * 10_000)]}, "too_large"),
    ],
)
def test_what_can_not_be_started_is_refused_and_leaves_nothing(api: Api, path: str, fields: dict[str, Any], code: str) -> None:
    before = [process["id"] for process in api.ok("GET", path)["processes"]]
    error = api.refused(code, "POST", path, json=fields)
    assert len(error["message"]) < 500
    assert [process["id"] for process in api.ok("GET", path)["processes"]] == before
    # Asked for as a stream it is refused like that too, before the stream begins.
    api.refused(code, "POST", path, json=fields, headers={"Accept": "text/event-stream"})


def test_text_that_is_not_utf8_goes_in_as_it_is_written(api: Api, path: str) -> None:
    out = start(api, path, 'printf %s "$X" | od -An -tx1', env={"X": "é€"})
    assert api.request("GET", f"{out}/stdout").content.split() == [b"c3", b"a9", b"e2", b"82", b"ac"]


def test_processes_that_are_not_there(api: Api, path: str) -> None:
    for method, rest in (("GET", ""), ("GET", "/wait"), ("GET", "/output"), ("GET", "/stdout"), ("DELETE", ""), ("POST", "/stdin")):
        api.refused("not_found", method, f"{path}/pr-aaaaaaaaaaaaaaaa{rest}")
    api.refused("not_found", "POST", f"{path}/pr-aaaaaaaaaaaaaaaa/signal", json={})


def test_the_end_of_the_sandbox_ends_streams_and_processes(api: Api) -> None:
    box = api.create()
    with api.events("POST", f"/v1/sandboxes/{box['id']}/processes", json={"command": "echo here; sleep 1000"}) as events:
        assert next(events).name == "process"
        assert next(events).name == "output"
        api.delete(box["id"])
        last = next(events)
    assert last.name == "exit"
    ended = json.loads(last.data)
    assert (ended["lost"], ended["exit_code"], ended["running"]) == (True, None, False)
