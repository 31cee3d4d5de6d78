"""What can be seen of one sandbox from outside: its use of the machine, what the engine and its agent said, where it listens."""

from __future__ import annotations

from corral.api.route import Actor, Services, may, router
from corral.control.roles import Permission
from corral.schema.observe import Logs, Metrics, Port, Ports

routes = router("observe", 409, 410)


@routes.get("/v1/sandboxes/{sandbox}/metrics", response_model=Metrics)
@may(Permission.LOOK)
async def metrics(services: Services, actor: Actor, sandbox: str) -> Metrics:
    """Its use of cpu, memory, disk and processes: the last minutes, and now."""
    record = await services.sandboxes.use(actor.project, sandbox)
    return Metrics(samples=[*services.history.of(record.id), await services.node.sample_now(record.id)])


@routes.get("/v1/sandboxes/{sandbox}/logs", response_model=Logs)
@may(Permission.LOOK)
async def logs(services: Services, actor: Actor, sandbox: str) -> Logs:
    """The last lines that the engine and its guest agent said about it."""
    record = await services.sandboxes.use(actor.project, sandbox)
    return Logs(lines=services.node.logs(record.id))


@routes.get("/v1/sandboxes/{sandbox}/ports", response_model=Ports)
@may(Permission.LOOK)
async def ports(services: Services, actor: Actor, sandbox: str) -> Ports:
    """TCP ports that something inside listens on."""
    record = await services.sandboxes.use(actor.project, sandbox)
    found = await services.node.ports(record.id)
    return Ports(ports=[Port(port=one.port, address=one.address, pid=one.pid, process=one.process) for one in found])
