"""Keys that log in by SSH."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("keys", sa.Column("public_key", sa.Text, comment="of SSH, without its comment"))
