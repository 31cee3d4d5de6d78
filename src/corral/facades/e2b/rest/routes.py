"""Every path of the control plane that there is."""

from __future__ import annotations

from corral.facades.e2b.rest import events, forks, lives, look, sandboxes, secrets, snapshots, templates, volume_content, volumes, webhooks
from corral.facades.e2b.rest.builds import Builds
from corral.facades.e2b.rest.call import Endpoint

Routes = tuple[tuple[str, str, Endpoint], ...]

ROUTES: Routes = (
    ("POST", "/sandboxes", sandboxes.create),
    ("POST", "/v2/sandboxes", sandboxes.create_v2),
    ("GET", "/sandboxes", sandboxes.listing),
    ("GET", "/v2/sandboxes", sandboxes.listing_v2),
    ("GET", "/sandboxes/metrics", look.metrics_of_many),
    ("GET", "/sandboxes/{sandbox}", sandboxes.get),
    ("DELETE", "/sandboxes/{sandbox}", sandboxes.kill),
    ("POST", "/sandboxes/{sandbox}/timeout", lives.timeout),
    ("POST", "/sandboxes/{sandbox}/refreshes", lives.refresh),
    ("POST", "/sandboxes/{sandbox}/connect", lives.connect),
    ("POST", "/v2/sandboxes/{sandbox}/connect", lives.connect),
    ("POST", "/sandboxes/{sandbox}/pause", lives.pause),
    ("POST", "/sandboxes/{sandbox}/resume", lives.resume),
    ("POST", "/sandboxes/{sandbox}/fork", forks.fork),
    ("PUT", "/sandboxes/{sandbox}/network", lives.network),
    ("GET", "/sandboxes/{sandbox}/metrics", look.metrics),
    ("GET", "/sandboxes/{sandbox}/logs", look.logs),
    ("GET", "/v2/sandboxes/{sandbox}/logs", look.logs_v2),
    ("POST", "/sandboxes/{sandbox}/snapshots", snapshots.create),
    ("GET", "/snapshots", snapshots.listing),
    ("GET", "/templates", templates.listing),
    ("GET", "/v2/templates", templates.listing_v2),
    ("GET", "/templates/aliases/{alias}", templates.alias),
    ("POST", "/templates/tags", templates.assign),
    ("DELETE", "/templates/tags", templates.remove),
    ("GET", "/templates/{template}/tags", templates.tags),
    ("GET", "/templates/{template}", templates.get),
    ("PATCH", "/templates/{template}", templates.update),
    ("PATCH", "/v2/templates/{template}", templates.update),
    ("DELETE", "/templates/{template}", templates.delete),
    ("GET", "/volumes", volumes.listing),
    ("POST", "/volumes", volumes.create),
    ("GET", "/volumes/{volume}", volumes.get),
    ("DELETE", "/volumes/{volume}", volumes.delete),
    ("GET", "/events/sandboxes", events.listing),
    ("GET", "/events/sandboxes/{sandbox}", events.listing),
    ("GET", "/events/webhooks", webhooks.listing),
    ("POST", "/events/webhooks", webhooks.create),
    ("GET", "/events/webhooks/{webhook}", webhooks.get),
    ("PATCH", "/events/webhooks/{webhook}", webhooks.update),
    ("DELETE", "/events/webhooks/{webhook}", webhooks.delete),
    ("GET", "/secrets", secrets.listing),
    ("POST", "/secrets", secrets.create),
    ("GET", "/secrets/{secret}", secrets.get),
    ("POST", "/secrets/{secret}", secrets.change),
    ("DELETE", "/secrets/{secret}", secrets.delete),
)


def building(builds: Builds) -> Routes:
    """Those of template builds."""
    return (
        ("POST", "/v3/templates", builds.request),
        ("GET", "/templates/{template}/files/{hash}", builds.files),
        ("POST", "/v2/templates/{template}/builds/{build}", builds.start),
        ("GET", "/templates/{template}/builds/{build}/status", builds.status),
        ("GET", "/templates/{template}/builds/{build}/logs", builds.logs),
    )


def unlocked(builds: Builds) -> Routes:
    """Those that no key is needed for: the address is the permission, or a token."""
    return (("PUT", "/templates/uploads/{place}", builds.upload), *volume_content.ROUTES)
