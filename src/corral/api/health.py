"""/healthz, /readyz and /metrics: for whoever watches the server. They need no key and tell nothing of anybody."""

from __future__ import annotations

from starlette.responses import Response

from corral.api.route import JSON, Services, may, router
from corral.schema.observe import Health
from corral.version import __version__

routes = router("health", key=False)


@routes.get("/healthz", response_model=Health)
@may(None)
async def healthz() -> Health:
    """The server answers."""
    return Health(ok=True, version=__version__)


@routes.get("/readyz", response_model=Health)
@may(None)
async def readyz(services: Services) -> Response:
    """200 when sandboxes can be created; else 503, and `checks` say what is the matter."""
    checks = services.readiness()
    health = Health(ok=all(text == "ok" for text in checks.values()), version=__version__, checks=checks)
    return Response(health.model_dump_json(), 200 if health.ok else 503, media_type=JSON)


@routes.get("/metrics", response_class=Response)
@may(None)
async def metrics(services: Services) -> Response:
    """Figures for Prometheus."""
    return Response(services.meter.text(), media_type="text/plain; version=1.0.0; charset=utf-8")
