"""`corral code`: code executed in a sandbox, whose variables stay there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from corral.cli import options

if TYPE_CHECKING:
    from corral.sdk.code import Execution, Value


def code(
    sandbox: options.Box,
    text: Annotated[str | None, typer.Argument(metavar="[CODE]", help="What to execute [default: standard input].")] = None,
    *,
    language: Annotated[str | None, typer.Option("--language", "-l", help="python, bash, javascript, typescript, … [default: python].")] = None,
    context: Annotated[str | None, typer.Option(help="The context to execute it in [default: the language's own].")] = None,
    env: options.Env = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Interrupt it after this long.")] = None,
    json: options.Json = False,
) -> int:
    """Execute code in a sandbox; variables stay for the next time. Prints what it says and the value of the last expression; exits with 1 if it fails."""
    from corral import Client

    source = sys.stdin.read() if text is None else text
    with Client() as client:
        execution = client.sandboxes.get(sandbox).code.run(
            source,
            language=language,
            context=context,
            env=options.pairs(env, environment=True),
            timeout=timeout,
            on_stdout=None if json else _out,
            on_stderr=None if json else _err,
            on_result=None if json else _show,
        )
    if json:
        _print(execution)
    elif execution.error is not None:
        _err("\n".join(execution.error.traceback) or f"{execution.error.name}: {execution.error.value}")
        _err("\n")
    return 0 if execution.ok else 1


def _out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _err(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _show(value: Value) -> None:
    print(value.text if value.text is not None else f"<{', '.join(value.mime)}>", flush=True)


def _print(execution: Execution) -> None:
    from dataclasses import asdict
    from json import dumps

    fields = asdict(execution)
    fields["error"] = None if execution.error is None else execution.error.model_dump()
    print(dumps(fields))
