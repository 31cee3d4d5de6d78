"""What each sandbox shows to whom."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("previews", sa.Text, nullable=False, server_default="{}"))
