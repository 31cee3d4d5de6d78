"""E2B's own code interpreter client, unchanged, against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from e2b import NotFoundException, TimeoutException
from e2b_code_interpreter import AsyncSandbox, Sandbox

from corral import images
from corral.places import Places
from harness.server import Server

pytestmark = pytest.mark.timeout(900)  # the first run makes the image
GIVE_UP = 60


@pytest.fixture(scope="module")
def account(server: Server, shared: Places) -> dict[str, Any]:
    images.ensure(shared, ["code-interpreter"], on_line=print)
    images.share(Places(server.home), shared, ["code-interpreter"])
    return {"api_key": "e2b_" + server.key.removeprefix("ck_"), "api_url": server.url, "sandbox_url": server.url, "request_timeout": GIVE_UP}


@pytest.fixture(scope="module")
def box(account: dict[str, Any]) -> Iterator[Sandbox]:
    made = Sandbox.create(timeout=600, envs={"FLAVOR": "sour"}, **account)
    yield made
    made.kill()


def test_code_runs_and_says_what_it_does(box: Sandbox) -> None:
    box.run_code("x = 20")
    execution = box.run_code("x + 1")
    assert execution.text == "21"
    assert execution.execution_count == 2
    assert box.run_code("'quoted'").text == "quoted"
    out: list[str] = []
    execution = box.run_code("import sys\nprint('out')\nprint('err', file=sys.stderr)\n!pwd", on_stdout=lambda message: out.append(message.line))
    # How output is cut into messages is nobody's promise.
    assert ("".join(execution.logs.stdout).split(), "".join(execution.logs.stderr)) == (["out", "/home/user"], "err\n")
    assert "".join(out).split() == ["out", "/home/user"]
    failed = box.run_code("1/0")
    assert failed.error is not None
    assert (failed.error.name, failed.error.value) == ("ZeroDivisionError", "division by zero")
    assert "Traceback" in failed.error.traceback


def test_values_have_all_their_forms(box: Sandbox) -> None:
    (figure,) = box.run_code("import matplotlib.pyplot as plt\nplt.bar(['a', 'b'], [1, 2])\nplt.title('Bars')\nplt.show()").results
    assert figure.png is not None
    assert figure.chart is not None
    assert (figure.chart.type.value, figure.chart.title, not figure.extra) == ("bar", "Bars", True)
    (table,) = box.run_code("import pandas as pd\npd.DataFrame({'a': [1, 2, 3]})").results
    assert table.data == {"a": [1, 2, 3]}
    assert box.run_code("{'k': [1, 2]}").results[0].json == {"k": [1, 2]}
    assert box.run_code("from PIL import Image\nImage.new('RGB', (4, 4)).show()").results[0].png is not None
    (latex,) = box.run_code("from IPython.display import display\ndisplay({'text/latex': 'x'}, raw=True)").results
    assert latex.formats() == ["latex"]


def test_other_languages_and_environments(box: Sandbox) -> None:
    assert box.run_code("import { readFileSync } from 'fs'\nconsole.log(typeof readFileSync)", language="js").logs.stdout == ["function\n"]
    assert box.run_code("await Promise.resolve('Hello')", language="javascript").text == "Hello"
    assert box.run_code("const m: string = 'typed'; console.log(m)", language="ts").logs.stdout == ["typed\n"]
    codes = {"python": "import os; os.getenv('FLAVOR')", "javascript": "process.env.FLAVOR", "deno": "Deno.env.get('FLAVOR')", "bash": "echo $FLAVOR"}
    for language, code in codes.items():
        for envs, taste in (({"FLAVOR": "sweet"}, "sweet"), (None, "sour")):
            execution = box.run_code(code, language=language, envs=envs)
            assert (execution.text or "".join(execution.logs.stdout)).strip() == taste, language


def test_contexts(box: Sandbox) -> None:
    assert {context.language for context in box.list_code_contexts()} >= {"python", "javascript"}
    context = box.create_code_context(cwd="/tmp")
    last = box.list_code_contexts()[-1]
    assert (last.id, last.language, last.cwd) == (context.id, "python", "/tmp")
    box.run_code("x = 1", context=context)
    box.restart_code_context(context)
    error = box.run_code("x", context=context).error
    assert error is not None
    assert error.value == "name 'x' is not defined"
    box.remove_code_context(context)
    with pytest.raises(NotFoundException):
        box.run_code("1", context=context)
    made = box.create_code_context(cwd="/home/user/not/there")
    assert (made.cwd, box.run_code("import os; os.getcwd()", context=made).text) == ("/home/user/not/there", "/home/user/not/there")
    box.remove_code_context(made)


def test_a_client_that_gives_up_interrupts_the_code(box: Sandbox) -> None:
    with pytest.raises(TimeoutException):
        box.run_code("import time\ntime.sleep(300)", timeout=1)
    assert box.run_code("1 + 1", timeout=60).text == "2"


async def test_with_await_and_when_the_sandbox_is_killed(account: dict[str, Any]) -> None:
    box = await AsyncSandbox.create(timeout=600, **account)

    async def kill(_: object) -> None:
        await box.kill()

    with pytest.raises(TimeoutException, match="sandbox was killed"):
        await box.run_code("print('begun', flush=True)\nimport time\ntime.sleep(300)", timeout=120, on_stdout=kill)


def test_only_who_has_the_token_executes_code(box: Sandbox, server: Server) -> None:
    aimed = {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "49999"}
    with httpx.Client(base_url=server.url) as anybody:
        assert anybody.post("/execute", json={"code": "1"}, headers=aimed).status_code == 401
        assert anybody.post("/execute", json={"code": "1"}, headers={**aimed, "X-Access-Token": "0" * 64}).status_code == 401
        native = anybody.post("/v1/sandboxes", json={"image": "tiny"}, headers={"Authorization": f"Bearer {server.key}"}).json()["id"]
        assert anybody.get("/contexts", headers={**aimed, "E2b-Sandbox-Id": native}).status_code == 401
        anybody.delete(f"/v1/sandboxes/{native}", headers={"Authorization": f"Bearer {server.key}"})
