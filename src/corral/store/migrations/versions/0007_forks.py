"""Of which sandbox one was forked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("forked_from", sa.String(32)))
