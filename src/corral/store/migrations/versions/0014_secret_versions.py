"""Versions and tags of secrets, and longer names."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    # SQLite changes no type of a column that is there: the table is made anew.
    with op.batch_alter_table("secrets") as table:
        table.alter_column("name", existing_type=sa.String(64), type_=sa.String(128), existing_nullable=False)
        table.add_column(sa.Column("version", sa.Integer, nullable=False, server_default="1"))
        table.add_column(sa.Column("tags", sa.Text, nullable=False, server_default="{}", comment="JSON object"))
