"""What clients of other protocols asked of a sandbox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("facade", sa.Text, nullable=False, server_default="{}"))
