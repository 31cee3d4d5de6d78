"""Sandboxes through both clients, against the real server."""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Any

import pytest

from corral import Egress
from corral.errors import (
    CommandFailed,
    Conflict,
    DeadlineExceeded,
    ImageNotFound,
    InvalidArgument,
    InvalidState,
    NotExecutable,
    NotFound,
    SandboxEnded,
    Unauthenticated,
    Unavailable,
)
from harness.flavor import FLAVORS
from harness.server import Server


@pytest.fixture(params=FLAVORS)
def sdk(request: pytest.FixtureRequest, server: Server) -> Any:
    return FLAVORS[request.param]


def fresh() -> str:
    return f"t-{uuid.uuid4().hex[:12]}"


async def test_create_run_delete_without_arguments(sdk: Any) -> None:
    async with await sdk.Sandbox.create() as sb:
        result = await sb.run("echo hello; echo oops >&2")
        assert (result.stdout, result.stderr, result.exit_code, result.ok) == ("hello\n", "oops\n", 0, True)
        assert result.duration > 0
        id = sb.id
    ended = await sdk.Sandbox.get(id)
    assert (ended.state, ended.reason) == ("terminated", "requested")
    with pytest.raises(SandboxEnded, match="requested"):
        await ended.run("true")


async def test_it_is_found_by_id_name_tags_and_state(sdk: Any) -> None:
    name, tag = fresh(), fresh()
    async with await sdk.Sandbox.create("tiny", name=name, tags={"run": tag, "x": "1"}) as sb:
        for key in (sb.id, name):
            found = await sdk.Sandbox.get(key)
            assert (found.id, found.name, found.state, found.tags) == (sb.id, name, "running", {"run": tag, "x": "1"})
        assert [one.id async for one in sdk.Sandbox.list(tags={"run": tag})] == [sb.id]
        assert [one.id async for one in sdk.Sandbox.list(tags={"run": tag}, state=["stopped"])] == []
        assert [one.id async for one in sdk.Sandbox.list(tags={"run": tag, "x": "2"})] == []
    assert [one.id async for one in sdk.Sandbox.list(tags={"run": tag})] == []


async def test_options_reach_the_command(sdk: Any) -> None:
    async with await sdk.Sandbox.create("tiny", env={"A": "1", "B": "2"}, workdir="/tmp", memory=128, cpu=0.5, hostname="box") as sb:
        result = await sb.run("echo $A $B $C; pwd; hostname", env={"B": "3", "C": "4"})
        assert result.stdout == "1 3 4\n/tmp\nbox\n"
        assert (await sb.run("pwd", cwd="/")).stdout == "/\n"
        assert (await sb.run(["printf", "%s|", "a b", "$HOME", ""])).stdout == "a b|$HOME||"
        assert (sb.info.memory, sb.info.cpu) == (128, 0.5)
        assert sb.timing["total"] > 0


async def test_exit_codes_and_signals_are_results(sdk: Any) -> None:
    async with await sdk.Sandbox.create("tiny") as sb:
        result = await sb.run("echo why >&2; exit 7")
        assert result.exit_code == 7
        with pytest.raises(CommandFailed, match="why"):
            result.check()
        result = await sb.run("kill -9 $$")
        assert (result.exit_code, result.signal) == (137, 9)


async def test_output_is_bytes_of_any_kind(sdk: Any) -> None:
    async with await sdk.Sandbox.create("tiny") as sb:
        result = await sb.run(r"printf 'a\377\000b'")
        assert result.stdout_bytes == b"a\xff\x00b"
        assert result.stdout == "a\ufffd\x00b"


async def test_input_is_read_and_big_output_comes_whole(sdk: Any) -> None:
    data = bytes(range(256)) * 12_000
    async with await sdk.Sandbox.create("tiny") as sb:
        result = await sb.run("cat", input=data)
        assert result.stdout_bytes == data
        assert (await sb.run("cat", input="")).stdout == ""
        assert (await sb.run("head -c 5", input=data)).stdout_bytes == data[:5]
        assert (await sb.run("wc -c", input="hé")).stdout == "3\n"


async def test_callbacks_get_the_output_as_it_comes(sdk: Any) -> None:
    out: list[str] = []
    err: list[str] = []
    async with await sdk.Sandbox.create("tiny") as sb:
        result = await sb.run("echo 1; echo 2 >&2; echo 3", on_stdout=out.append, on_stderr=err.append)
    assert ("".join(out), "".join(err)) == ("1\n3\n", "2\n")
    assert result.stdout == "1\n3\n"


async def test_an_error_in_a_callback_ends_the_command(sdk: Any) -> None:
    def fail(text: str) -> None:
        raise ZeroDivisionError(text)

    async with await sdk.Sandbox.create("tiny") as sb:
        with pytest.raises(ZeroDivisionError, match="begun"):
            await sb.run("echo begun; sleep 987", on_stdout=fail)
        assert "987" not in (await sb.run("ps -o args")).stdout


async def test_a_timeout_kills_everything_and_keeps_the_output(sdk: Any) -> None:
    async with await sdk.Sandbox.create("tiny") as sb:
        with pytest.raises(TimeoutError) as caught:
            await sb.run("echo part; sleep 876 & sleep 876", timeout=0.5)
        assert isinstance(caught.value, DeadlineExceeded)
        assert caught.value.partial.stdout == "part\n"
        assert "876" not in (await sb.run("ps -o args")).stdout


async def test_what_can_not_be_run_is_an_error(sdk: Any) -> None:
    async with await sdk.Sandbox.create("tiny") as sb:
        for argv in (["no-such-program"], ["/etc/passwd"]):
            with pytest.raises(NotExecutable):
                await sb.run(argv)
        assert (await sb.run("no-such-program")).exit_code == 127
        with pytest.raises((NotFound, InvalidArgument)):
            await sb.run("true", cwd="/no/such/directory")
        with pytest.raises((NotFound, InvalidArgument)):
            await sb.run("true", user="nobody-by-that-name")


async def test_stop_and_start_keep_the_disk(sdk: Any) -> None:
    async with await sdk.Sandbox.create("tiny") as sb:
        await sb.files.write("/root/kept", "kept")
        await sb.stop()
        assert (sb.state, sb.reason) == ("stopped", "requested")
        with pytest.raises(InvalidState):
            await sb.run("true")
        await sb.start()
        assert sb.state == "running"
        assert await sb.files.read("/root/kept") == b"kept"


async def test_extend_and_update(sdk: Any) -> None:
    old, new = fresh(), fresh()
    async with await sdk.Sandbox.create("tiny", name=old, timeout=60, tags={"a": "1"}) as sb:
        before = sb.info.deadline
        await sb.extend(600)
        assert (sb.info.deadline - before).total_seconds() > 500
        await sb.update(name=new, tags={"b": "2"})
        assert (sb.name, sb.tags) == (new, {"b": "2"})
        await sb.update(timeout=None, name=None)
        assert (sb.name, sb.info.deadline, sb.tags) == (None, None, {"b": "2"})
        assert (await sb.refresh()).info.deadline is None


async def test_metrics_logs_and_events_tell_of_it(sdk: Any) -> None:
    async with await sdk.Sandbox.create("tiny", memory=128, disk=256) as sb:
        await sb.run("true")
        last = (await sb.metrics())[-1]
        assert (last.memory_limit, last.disk_limit) == (128, 256)
        assert 0 < last.memory < 128
        await sb.logs()
        kinds = [event.kind async for event in sb.events()]
        assert "sandbox.running" in kinds or "sandbox.created" in kinds
        async for event in sb.events(follow=True):
            assert event.sandbox == sb.id
            break


async def test_many_are_ended_at_once(sdk: Any) -> None:
    tag = fresh()
    async with sdk.Client() as client:
        made = {(await client.sandboxes.create("tiny", tags={"many": tag}, memory=64)).id for _ in range(3)}
        assert set(await client.sandboxes.delete(tags={"many": tag})) == made
        assert [one.id async for one in client.sandboxes.list(tags={"many": tag})] == []


async def test_cancelling_a_run_kills_the_process(sdk: Any) -> None:
    if sdk is not FLAVORS["async"]:
        pytest.skip("a thread can't be cancelled; tests/system/test_first_light.py interrupts a program")
    async with await sdk.Sandbox.create("tiny") as sb:
        begun = asyncio.Event()
        task = asyncio.create_task(sb.run("echo begun; sleep 765", on_stdout=lambda _: begun.set()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert "765" not in (await sb.run("ps -o args")).stdout


async def test_cancelling_a_create_leaves_none(sdk: Any) -> None:
    if sdk is not FLAVORS["async"]:
        pytest.skip("a thread can't be cancelled")
    tag = fresh()
    for _ in range(5):
        task = asyncio.create_task(sdk.Sandbox.create("tiny", tags={"cancelled": tag}))
        await asyncio.sleep(0)
        await asyncio.sleep(0.003)  # somewhere in its middle; wherever it is, none may be left
        task.cancel()
        try:
            await (await task).delete()
        except asyncio.CancelledError:
            pass
    assert [one.id async for one in sdk.Sandbox.list(tags={"cancelled": tag})] == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"image": "no-such-image"}, ImageNotFound),
        ({"memory": -1}, InvalidArgument),
        ({"cpu": 10**6}, InvalidArgument),
        ({"timeout": 0}, InvalidArgument),
        ({"name": "Not A Name"}, InvalidArgument),
        ({"egress": "nonesuch"}, InvalidArgument),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
async def test_bad_options_are_refused_and_leave_nothing(sdk: Any, options: dict[str, Any], error: Any) -> None:
    tag = fresh()
    with pytest.raises(error):
        await sdk.Sandbox.create(**{"image": "tiny", "tags": {"bad": tag}, **options})
    assert [one.id async for one in sdk.Sandbox.list(tags={"bad": tag})] == []


async def test_a_name_is_given_once(sdk: Any) -> None:
    name = fresh()
    async with await sdk.Sandbox.create("tiny", name=name):
        with pytest.raises(Conflict, match=re.escape(name)):
            await sdk.Sandbox.create("tiny", name=name)


async def test_keys_and_projects(sdk: Any, server: Server) -> None:
    project = fresh()
    async with sdk.Client() as admin:
        await admin.projects.create(project, max_sandboxes=1)
        assert (await admin.projects.get(project)).max_sandboxes == 1
        assert project in [one.name for one in await admin.projects.list()]
        key = await admin.keys.create("a test's", project=project)
        async with sdk.Client(server.url, key.value) as other, sdk.Client(project=project) as owner:
            sb = await other.sandboxes.create("tiny")
            with pytest.raises(NotFound):
                await admin.sandboxes.get(sb.id)
            assert key.id in [one.id for one in await owner.keys.list()]
            await owner.keys.delete(key.id)
            with pytest.raises(Unauthenticated):
                await other.sandboxes.get(sb.id)
            await (await owner.sandboxes.get(sb.id)).delete()
        await admin.projects.delete(project)


async def test_secrets_are_variables_only_when_asked(sdk: Any) -> None:
    name = f"S_{uuid.uuid4().hex[:10]}"
    made = await sdk.Secret.create(name, "pass ünd word\n")
    assert (made.name, made.info.used_at) == (name, None)
    assert name in [one.name for one in await sdk.Secret.list()]
    with pytest.raises(InvalidArgument, match="expose=True"):
        await sdk.Sandbox.create("tiny", secrets=[sdk.Secret.named(name)])
    async with await sdk.Sandbox.create("tiny", secrets=[sdk.Secret.named(name, expose=True, env="TOKEN")]) as sb:
        assert (await sb.run('printf %s "$TOKEN"')).stdout == "pass ünd word\n"
        assert [(use.name, use.env) for use in sb.info.secrets] == [(name, "TOKEN")]
        with pytest.raises(Conflict, match=sb.id):
            await sdk.Secret.delete(name)
    async with sdk.Client() as client:
        await client.secrets.change(name, "another")
    assert (await sdk.Secret.get(name)).info.used_at is not None
    await sdk.Secret.delete(name)
    with pytest.raises(NotFound, match="corral secret create"):
        await sdk.Secret.get(name)


async def test_a_policy_is_shown_kept_and_changed(sdk: Any) -> None:
    refusing = Egress.none().deny("*.example.com", ports=[443, "8000-8999"], name="no examples").budget(bytes=0)
    async with await sdk.Sandbox.create("tiny", egress=refusing) as sb:
        assert Egress(sb.info.egress) == refusing
        assert await sb.egress.get() == refusing
        assert (await sb.egress.view()).sent == 0
        assert await sb.egress.set("none") == Egress.none()
        await sb.egress.set(refusing.policy.model_dump())
        await sb.stop()
        await sb.start()
        assert await sb.egress.get() == refusing
        assert await sb.egress.proposal() is None
        assert await sb.egress.approvals() == []
    async with sdk.Client() as client:
        assert await client.approvals.list() == []
        with pytest.raises(NotFound):
            await client.approvals.allow("ap-none", scope="always")
        with pytest.raises(InvalidArgument):
            await client.approvals.deny("ap-none", scope="for ever")


async def test_images_and_health(sdk: Any) -> None:
    async with sdk.Client() as client:
        assert {"tiny", "base"} <= {image.name for image in await client.images.list()}
        assert (await client.health()).ok


async def test_a_wrong_key_and_a_wrong_url_say_so(sdk: Any, server: Server) -> None:
    async with sdk.Client(server.url, "ck_" + "0" * 40) as client:
        with pytest.raises(Unauthenticated):
            await client.images.list()
    async with sdk.Client("http://127.0.0.1:9", "ck_x") as client:
        with pytest.raises(Unavailable, match="corral up"):
            await client.images.list()
