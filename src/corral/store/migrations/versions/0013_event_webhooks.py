"""Where projects want to be told of events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.create_table(
        "event_webhooks",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("project", sa.String(63), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("kinds", sa.Text, nullable=False, comment="JSON list: of which events"),
        sa.Column("tags", sa.Text, nullable=False, comment="JSON object: of which sandboxes"),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("dialect", sa.String(16), nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False, comment="what requests are signed with, encrypted by the key ring"),
        sa.Column("position", sa.BigInteger, nullable=False, comment="seq of the newest event that it is done with"),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("created_by", sa.String(32), nullable=False),
    )
