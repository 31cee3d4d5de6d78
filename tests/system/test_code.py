"""The code interpreter under strain: huge values, floods, a hundred at once, kernels and programs that die, lies, a server that restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from corral import images
from corral.aio import Client, Sandbox
from corral.errors import InvalidState
from corral.places import Places
from corral.schema.code import Status
from harness.server import Server

pytestmark = pytest.mark.timeout(900)  # the first run makes the image
FLOOD = 30_000_000


@pytest.fixture
async def box(server: Server, shared: Places) -> AsyncIterator[Sandbox]:
    images.ensure(shared, ["code-interpreter"], on_line=print)
    images.share(Places(server.home), shared, ["code-interpreter"])
    async with Client(url=server.url, key=server.key) as client, await client.sandboxes.create("code-interpreter", cpu=2, memory=1024) as box:
        yield box


async def test_what_is_too_large_is_left_out_and_told_of(box: Sandbox) -> None:
    execution = await box.code("'x' * 20_000_000")
    assert execution.value is not None
    assert (execution.value.text, execution.value.omitted) == (None, {"text/plain": 20_000_002})
    flooded = await box.code(f"print('y' * {FLOOD})")
    assert flooded.ok
    assert set(flooded.stdout) <= {"y", "\n"}
    assert len(flooded.stdout) == FLOOD + 1 or (flooded.dropped > 0 and len(flooded.stdout) < FLOOD)
    assert (await box.code("1 + 1")).text == "2"


async def test_a_hundred_at_once_have_their_turns(box: Sandbox) -> None:
    await box.code("n = 0")
    executions = await asyncio.gather(*(box.code("n += 1\nprint('turn', n)\nn") for _ in range(100)))
    assert sorted(int(execution.text or 0) for execution in executions) == list(range(1, 101))
    assert all(execution.stdout == f"turn {execution.text}\n" for execution in executions)


async def test_who_leaves_the_queue_disturbs_nobody(box: Sandbox) -> None:
    began = asyncio.Event()
    first = asyncio.create_task(box.code("print('begun', flush=True)\nimport time\ntime.sleep(2)\n'whole'", on_stdout=lambda _: began.set()))
    await asyncio.wait_for(began.wait(), 60)
    before = await orders(box)
    waiting = asyncio.create_task(box.code("left = 1"))
    while await orders(box) == before:  # until it waits in there
        pass
    last = asyncio.create_task(box.code("'left' in globals()"))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await first).text == "'whole'"
    assert (await last).text == "False"


async def orders(box: Sandbox) -> int:
    """Bytes of orders that its one context was given."""
    (context,) = await box.code.contexts()
    return next(process.stdin_offset for process in await box.processes() if process.id == context.id)


async def test_a_program_that_is_killed_inside_is_replaced(box: Sandbox) -> None:
    execution = await box.code("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nimport time\ntime.sleep(60)")
    assert execution.status is Status.DIED
    assert (await box.code("2 + 2")).text == "4"
    assert len(await box.code.contexts()) == 1
    kernels = await box.run("pgrep -fc 'kernel[.]py -f'")
    assert kernels.stdout == "1\n", "the kernel of the killed one is gone"


@pytest.mark.parametrize(
    "says", ['yes \'{"t":"stdout","id":7}\'', "cat /dev/zero", 'yes \'{"t":"end","id":"ex-another","status":"ok","seconds":0}\' | head -c 100000; exit 3']
)
async def test_lies_are_not_believed(server: Server, says: str) -> None:
    async with Client(url=server.url, key=server.key) as client, await client.sandboxes.create("tiny") as box:
        await box.exec("sh", "-c", f"read order; {says}", tag="corral.code:python:default")
        try:
            assert (await box.code("1")).status is Status.DIED
            assert "exit" in says
        except InvalidState as error:
            assert "no sense" in error.message or "does not end" in error.message
            assert "exit" not in says


async def test_executions_outlive_the_server(box: Sandbox, server: Server) -> None:
    began = asyncio.Event()
    code = "import time\nfor i in range(40):\n    print(i, flush=True)\n    time.sleep(0.1)\n'end'"
    running = asyncio.create_task(box.code(code, on_stdout=lambda _: began.set()))
    await asyncio.wait_for(began.wait(), 60)
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    execution = await running
    assert (execution.text, execution.dropped) == ("'end'", 0)
    assert execution.stdout.split() == [str(i) for i in range(40)]
    assert (await box.code("i")).text == "39"


async def test_forks_have_the_variables_and_go_their_own_ways(box: Sandbox) -> None:
    await box.code("import os\nx = 1")
    one, two = await box.fork(2)
    async with one, two:
        assert [(await fork.code(f"x += {add}\nx")).text for fork, add in ((one, 10), (two, 20))] == ["11", "21"]
    assert (await box.code("x")).text == "1"


HURRIED = """
import os, pexpect
alive, looks = pexpect.spawn.isalive, []
def late(child):
    looks.append(child)
    if len(looks) == 2:  # the second look of its first read: by then everything happens
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    return alive(child)
pexpect.spawn.isalive = late
"""


async def test_what_a_shell_command_says_at_its_very_end_is_told(box: Sandbox) -> None:
    await box.code(HURRIED)
    assert (await box.code("!sleep 0.3; echo last words")).stdout.replace("\r", "") == "last words\n"
