"""What outlasts the server: one database, its rows by what they are of."""

from __future__ import annotations

from corral.store.accounts import AccountRows
from corral.store.database import Database
from corral.store.event_webhooks import EventWebhookRows
from corral.store.events import EventRows
from corral.store.idempotency import ReplayRows
from corral.store.images import ImageRows, TemplateRows
from corral.store.rules import RuleRows
from corral.store.sandboxes import SandboxRows
from corral.store.secrets import SecretRows
from corral.store.snapshots import SnapshotRows
from corral.store.volumes import VolumeRows
from corral.store.webhooks import WebhookRows


class Store:
    """Implements `control.ports.Store`."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.sandboxes = SandboxRows(self.database)
        self.snapshots = SnapshotRows(self.database)
        self.volumes = VolumeRows(self.database)
        self.images = ImageRows(self.database)
        self.templates = TemplateRows(self.database)
        self.events = EventRows(self.database)
        self.accounts = AccountRows(self.database)
        self.replays = ReplayRows(self.database)
        self.secrets = SecretRows(self.database)
        self.rules = RuleRows(self.database)
        self.webhooks = WebhookRows(self.database)
        self.event_webhooks = EventWebhookRows(self.database)

    def open(self) -> None:
        """Bring the tables up to date; then it can be used."""
        self.database.open()

    async def checkpoint(self) -> None:
        """Put to rest what was written; now and then."""
        await self.database.checkpoint()

    async def close(self) -> None:
        """Finish what was given to write."""
        await self.database.close()
