"""What the endpoints work with, put together by `corral.server`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from corral.api.abandoned import Abandoned
from corral.api.lifelines import LifeLines
from corral.api.meter import Meter
from corral.api.stream import Streams
from corral.code.contexts import Contexts
from corral.control.accounts import Accounts
from corral.control.attachments import Attachments
from corral.control.builds import Builds
from corral.control.event_webhooks import EventWebhooks
from corral.control.events import EventLog
from corral.control.exports import Exports
from corral.control.history import History
from corral.control.idempotency import Replays
from corral.control.images import Images
from corral.control.logins import Logins
from corral.control.policies import Policies
from corral.control.ports import Node, Store
from corral.control.previews import Previews
from corral.control.sandboxes import Sandboxes
from corral.control.secrets import Secrets
from corral.control.snapshots import Snapshots
from corral.control.supervisor import Supervisor
from corral.control.templates import Templates
from corral.control.volumes import Volumes
from corral.control.webhooks import Webhooks


@dataclass(frozen=True)
class Services:
    """One server's."""

    sandboxes: Sandboxes
    policies: Policies
    secrets: Secrets
    snapshots: Snapshots
    volumes: Volumes
    attachments: Attachments
    webhooks: Webhooks
    event_webhooks: EventWebhooks
    code: Contexts
    previews: Previews
    logins: Logins
    supervisor: Supervisor
    images: Images
    templates: Templates
    builds: Builds
    exports: Exports
    accounts: Accounts
    events: EventLog
    replays: Replays
    store: Store
    node: Node
    meter: Meter
    history: History
    streams: Streams
    abandoned: Abandoned
    lifelines: LifeLines
    readiness: Callable[[], dict[str, str]]
    """What has to be in order to create a sandbox: `ok`, or what is the matter."""
    clock: Callable[[], float] = time.time
