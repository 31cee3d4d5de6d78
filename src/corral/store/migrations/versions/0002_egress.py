"""What sandboxes may reach: their policies and secrets, and what was decided for whole projects."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("egress", sa.Text, nullable=False, server_default="{}"))
    op.add_column("sandboxes", sa.Column("secrets", sa.Text, nullable=False, server_default="[]"))
    op.create_table(
        "secrets",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("project", sa.String(63), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("changed_at", sa.Double, nullable=False),
        sa.Column("used_at", sa.Double),
    )
    op.create_index("secrets_name", "secrets", ["project", "name"], unique=True)
    op.create_table(
        "egress_rules",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("project", sa.String(63), nullable=False),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("created_by", sa.String(32), nullable=False),
    )
    op.create_index("egress_rules_project", "egress_rules", ["project"])
