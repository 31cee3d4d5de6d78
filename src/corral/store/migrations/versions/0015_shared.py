"""Snapshots that other projects may use."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column("snapshots", sa.Column("shared_with", sa.Text, nullable=False, server_default="[]"))
