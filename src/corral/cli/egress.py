"""`corral egress`, `corral approvals`, `corral approve`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corral.cli import options, show

if TYPE_CHECKING:
    from corral import Egress
    from corral.schema.egress import Approval, Flow

egress = typer.Typer(help="What sandboxes may reach, and did reach.", no_args_is_help=True, rich_markup_mode=None)

Follow = Annotated[bool, typer.Option("-f", "--follow", help="Go on with those to come, until the sandbox is deleted.")]
Lines = Annotated[bool, typer.Option("--json", help="Print JSON, one flow a line.")]
After = Annotated[int, typer.Option(metavar="SEQ", help="Only those with a greater number.")]


@egress.command("show")
def show_policy(sandbox: options.Box, *, json: options.Json = False) -> None:
    """A sandbox's policy, as JSON that `corral egress set` takes, and its bytes so far."""
    from corral import Client

    with Client() as client:
        view = client.sandboxes.get(sandbox).egress.view()
    if json:
        show.as_json(view)
    else:
        _print_policy(view.policy.model_dump(mode="json", exclude_defaults=True))
        print(f"sent {show.size(view.sent)}, received {show.size(view.received)}")


@egress.command("set")
def set_policy(
    sandbox: options.Box,
    policy: Annotated[str, typer.Argument(metavar="none|public|all|allow:HOST,…|@FILE", help="What it may reach from now on.")],
    *,
    json: options.Json = False,
) -> None:
    """Change a sandbox's policy, also while it runs; connections that are no longer allowed are cut."""
    from corral import Client

    wanted = options.egress(policy)
    assert wanted is not None
    with Client() as client:
        _print(client.sandboxes.get(sandbox).egress.set(wanted), json=json)


@egress.command("flows")
def flows(sandbox: options.Box, *, after: After = 0, follow: Follow = False, json: Lines = False) -> None:
    """What a sandbox reached and tried to reach."""
    from corral import Client

    with Client() as client:
        _print_flows(client.sandboxes.get(sandbox).egress.flows(after=after, follow=follow), json=json)


@egress.command("denials")
def denials(sandbox: options.Box, *, after: After = 0, follow: Follow = False, json: Lines = False) -> None:
    """What a sandbox was denied, and why."""
    from corral import Client

    with Client() as client:
        _print_flows(client.sandboxes.get(sandbox).egress.denials(after=after, follow=follow), json=json)


@egress.command("learn")
def learn(
    sandbox: options.Box,
    *,
    show_proposal: Annotated[bool, typer.Option("--proposal", help="Print the smallest policy for what it used so far.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Make that its policy, which ends the learning.")] = False,
    json: options.Json = False,
) -> None:
    """Let a sandbox reach the public internet, and write down what it needs."""
    from corral import Client

    with Client() as client:
        box = client.sandboxes.get(sandbox)
        if not show_proposal and not apply:
            box.egress.learn()
            _print(box.egress.get(), json=json)
            return
        proposal = box.egress.proposal()
        if proposal is None:
            raise options.WrongUse(f"{sandbox} does not learn: `corral egress learn {sandbox}` begins it")
        _print(box.egress.set(proposal) if apply else proposal, json=json)


def approvals(
    *,
    rules: Annotated[bool, typer.Option("--rules", help="What was decided for the whole project instead.")] = False,
    forget: Annotated[str | None, typer.Option(metavar="ID", help="Take such a decision back.")] = None,
    webhook: Annotated[str | None, typer.Option(metavar="URL|none|show", help="Where signed requests tell of each, from now on.")] = None,
    json: options.Json = False,
) -> None:
    """Connections that wait for a decision."""
    from corral import Client

    if webhook is not None:
        _webhook(webhook, json=json)
        return
    if forget is not None:
        with Client() as client:
            client.approvals.forget(forget)
        return
    if rules:
        _rules(json=json)
        return
    with Client() as client:
        found = client.approvals.list()
    if json:
        show.as_json(found)
    else:
        show.table(("id", "sandbox", "to", "rule", "until"), [(one.id, one.sandbox, _asked(one), one.rule, f"{one.deadline:%H:%M:%S}Z") for one in found])


def approve(
    id: Annotated[str, typer.Argument(metavar="ID", help="As `corral approvals` lists it.")],
    *,
    deny: Annotated[bool, typer.Option("--deny", help="Refuse it.")] = False,
    scope: Annotated[str, typer.Option(metavar="once|sandbox|always", help="This connection, this sandbox, or the whole project from now on.")] = "once",
    json: options.Json = False,
) -> None:
    """Let a waiting connection go on."""
    from corral import Client

    with Client() as client:
        decide: Any = client.approvals.deny if deny else client.approvals.allow
        decided = decide(id, scope=scope)
    if json:
        show.as_json(decided)
    else:
        print(show.line(f"{decided.decision} {decided.scope}: {_asked(decided)}"))


def _webhook(wanted: str, *, json: bool) -> None:
    from corral import Client

    with Client() as client:
        if wanted == "none":
            client.approvals.remove_webhook()
            return
        found = client.approvals.webhook() if wanted == "show" else client.approvals.set_webhook(wanted)
    if json:
        show.as_json(found)
    elif found is None:
        print("none")
    else:
        show.fields(found.model_dump(exclude_none=True))


def _rules(*, json: bool) -> None:
    from corral import Client

    with Client() as client:
        found = client.approvals.rules()
    if json:
        show.as_json(found)
    else:
        rows = [(one.id, one.rule.action, ",".join(one.rule.to), ",".join(one.rule.ports or ()), show.ago(one.decided_at), one.decided_by) for one in found]
        show.table(("id", "decision", "to", "ports", "age", "by"), rows)


def _print(found: Egress, *, json: bool) -> None:
    if json:
        show.as_json(found.policy)
    else:
        _print_policy(found.policy.model_dump(mode="json", exclude_defaults=True))


def _print_policy(policy: dict[str, Any]) -> None:
    import json

    print(json.dumps({"default": "none", **policy}, indent=2, ensure_ascii=False))


def _print_flows(found: Iterable[Flow], *, json: bool) -> None:
    import json as codec

    for one in found:
        if json:
            print(codec.dumps(show.plain(one), ensure_ascii=False), flush=True)
            continue
        port = "" if one.port is None else f":{one.port}"
        request = f" {one.method} {one.path} {one.status or ''}".rstrip() if one.method else ""
        address = f" ({one.address})" if one.name and one.address else ""
        why = f": {one.reason}" if one.reason else f" by {one.rule}" if one.rule else ""
        text = f"{one.seq} {one.at:%Y-%m-%dT%H:%M:%S}Z {one.kind} {one.name or one.address}{port}{address}{request} {one.verdict}{why}, {one.sent}/{one.received} bytes"
        print(show.line(text))


def _asked(one: Approval) -> str:
    return f"{one.name or one.address}{'' if one.port is None else f':{one.port}'}{f' {one.method} {one.path}' if one.method else ''}"
