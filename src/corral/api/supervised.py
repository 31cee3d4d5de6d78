"""/v1/sandboxes/{sandbox}/services: programs that are kept running. They are kept inside, so that whoever asks resumes a paused sandbox, as one who reads a file does."""

from __future__ import annotations

import re

from corral.api.route import Actor, Services, may, router
from corral.control.roles import Permission
from corral.errors import InvalidArgument
from corral.schema.service import NAME, Service, ServiceList, ServiceSet

routes = router("services", 409, 410, 429)


@routes.get("/v1/sandboxes/{sandbox}/services", response_model=ServiceList)
@may(Permission.LOOK)
async def listing(services: Services, actor: Actor, sandbox: str) -> ServiceList:
    """Its services by name. A paused sandbox is resumed."""
    return ServiceList(services=await services.supervisor.list(await services.sandboxes.use(actor.project, sandbox, wake=True)))


@routes.put("/v1/sandboxes/{sandbox}/services/{service}", response_model=Service)
async def put(services: Services, actor: Actor, sandbox: str, service: str, wanted: ServiceSet) -> Service:
    """Keep a program running from now on, also when the sandbox is started again; what ran by that name is stopped."""
    if re.fullmatch(NAME, service) is None:
        raise InvalidArgument("the name of a service is of a-z, 0-9 and -", hint="at most 63 characters, the first no -", details={"field": "service"})
    return await services.supervisor.put(await services.sandboxes.use(actor.project, sandbox, wake=True), service, wanted)


@routes.get("/v1/sandboxes/{sandbox}/services/{service}", response_model=Service)
@may(Permission.LOOK)
async def get(services: Services, actor: Actor, sandbox: str, service: str) -> Service:
    """One of them."""
    return await services.supervisor.get(await services.sandboxes.use(actor.project, sandbox, wake=True), service)


@routes.post("/v1/sandboxes/{sandbox}/services/{service}/start", response_model=Service)
async def start(services: Services, actor: Actor, sandbox: str, service: str) -> Service:
    """Start one that was stopped, has ended or has failed."""
    return await services.supervisor.start(await services.sandboxes.use(actor.project, sandbox, wake=True), service)


@routes.post("/v1/sandboxes/{sandbox}/services/{service}/stop", response_model=Service)
async def stop(services: Services, actor: Actor, sandbox: str, service: str) -> Service:
    """Stop it for good: it is not started again, until somebody starts it."""
    return await services.supervisor.stop(await services.sandboxes.use(actor.project, sandbox, wake=True), service)


@routes.delete("/v1/sandboxes/{sandbox}/services/{service}", status_code=204)
async def remove(services: Services, actor: Actor, sandbox: str, service: str) -> None:
    """Stop and forget it."""
    await services.supervisor.remove(await services.sandboxes.use(actor.project, sandbox, wake=True), service)
