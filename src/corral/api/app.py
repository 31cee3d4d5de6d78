"""The ASGI application: the resources, what comes before them, and how errors leave."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from corral.api import (
    approvals,
    attach,
    builds,
    checkpoints,
    code,
    egress,
    errors,
    events,
    files,
    health,
    images,
    keys,
    observe,
    output,
    previews,
    processes,
    projects,
    sandboxes,
    secrets,
    snapshots,
    ssh,
    supervised,
    templates,
    tree,
    volume_files,
    volumes,
    webhooks,
)
from corral.api.auth import Authenticate
from corral.api.services import Services
from corral.errors import CorralError
from corral.version import __version__

# In this order they are looked through: what is asked for most comes first.
ROUTERS: tuple[APIRouter, ...] = (
    processes.routes,
    output.routes,
    attach.routes,
    sandboxes.routes,
    files.routes,
    tree.routes,
    code.routes,
    observe.routes,
    previews.routes,
    ssh.routes,
    supervised.routes,
    events.routes,
    health.routes,
    snapshots.routes,
    checkpoints.routes,
    volumes.routes,
    volume_files.routes,
    builds.routes,
    images.routes,
    templates.routes,
    secrets.routes,
    egress.routes,
    approvals.routes,
    webhooks.routes,
    projects.routes,
    keys.routes,
)


def build(services: Services) -> ASGIApp:
    """The application of one server."""
    app = FastAPI(title="Corral", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.services = services
    for router in ROUTERS:
        # Not include_router: that would look up each request in every router anew, which costs 0.25 ms.
        app.router.routes.extend(router.routes)
    for kind in (CorralError, ValidationError, HTTPException):
        app.add_exception_handler(kind, errors.handle)
    return Authenticate(app, services.accounts, services.meter)
