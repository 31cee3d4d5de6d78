"""Every command and the function that does it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from corral.cli import (
    accounts,
    chaos,
    code,
    copy,
    egress,
    execute,
    image,
    life,
    look,
    machine,
    options,
    preview,
    run,
    secret,
    serve,
    service,
    snapshot,
    ssh,
    trust,
    volume,
    webhook,
)
from corral.version import __version__

app = typer.Typer(
    name="corral",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def corral(*, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Sandboxes for untrusted code, on this machine."""
    if version:
        print(__version__)
        raise typer.Exit


app.command()(serve.up)
app.command()(serve.down)
app.command(context_settings=options.PASS_ON)(run.run)
app.command()(life.create)
app.command("exec", context_settings=options.PASS_ON)(execute.execute)
app.command()(execute.shell)
app.command()(code.code)
app.command()(copy.cp)
app.command()(look.ls)
app.command()(look.ps)
app.command()(look.logs)
app.command()(look.inspect)
app.command()(look.events)
app.command("rm")(life.remove)
app.command()(life.stop)
app.command()(life.start)
app.command()(life.fork)
app.command()(life.pause)
app.command()(life.resume)
app.command()(life.extend)
app.command()(preview.preview)
app.command("port-forward")(preview.port_forward)
app.command("expose")(preview.expose)
app.command()(preview.hold)
app.command(context_settings=options.PASS_ON)(ssh.ssh)
app.command()(trust.trust)
app.add_typer(service.service, name="service")
app.add_typer(snapshot.snapshot, name="snapshot")
app.add_typer(snapshot.checkpoint, name="checkpoint")
app.add_typer(volume.volume, name="volume")
app.command()(snapshot.diff)
app.command()(snapshot.rewind)
app.command()(snapshot.merge)
app.add_typer(image.image, name="image")
app.add_typer(image.template, name="template")
app.add_typer(accounts.key, name="key")
app.add_typer(accounts.project, name="project")
app.add_typer(secret.secret, name="secret")
app.add_typer(egress.egress, name="egress")
app.add_typer(webhook.webhook, name="webhook")
app.command()(egress.approvals)
app.command()(egress.approve)
app.command()(machine.setup)
app.command()(machine.doctor)
app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(machine.quickstart)
app.command()(machine.bench)
app.command()(chaos.chaos)
app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(machine.test)


def help_for(words: list[str]) -> str | None:
    """The text for `COMMAND… --help`, without parsing: Typer reads even a flag's value by way of pydantic, which takes longer than all the rest."""
    if not words or words[-1] not in ("-h", "--help"):
        return None
    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name="corral")
    for word in words[:-1]:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            return None
        context = command.context_class(command, info_name=word, parent=context)
    return command.get_help(context)
