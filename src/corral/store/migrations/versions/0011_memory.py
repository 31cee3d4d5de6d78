"""Snapshots with memory."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("snapshots", sa.Column("memory", sa.BigInteger, nullable=False, server_default="0"))
