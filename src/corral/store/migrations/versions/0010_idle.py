"""Sandboxes that are never frozen, and such whose memory is reserved."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("freeze", sa.Boolean, nullable=False, server_default=sa.true()))
    op.add_column("sandboxes", sa.Column("reserve", sa.Boolean, nullable=False, server_default=sa.false()))
