"""The first tables: sandboxes, their tags, events, projects, keys, idempotency."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "sandboxes",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("project", sa.String(63), nullable=False),
        sa.Column("name", sa.String(63)),
        sa.Column("image", sa.Text, nullable=False),
        sa.Column("image_id", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(16)),
        sa.Column("detail", sa.Text),
        sa.Column("ended_by", sa.String(32)),
        sa.Column("cpu", sa.Double, nullable=False),
        sa.Column("memory", sa.Integer, nullable=False),
        sa.Column("disk", sa.Integer, nullable=False),
        sa.Column("pids", sa.Integer, nullable=False),
        sa.Column("env", sa.Text, nullable=False),
        sa.Column("tags", sa.Text, nullable=False),
        sa.Column("user", sa.Text),
        sa.Column("workdir", sa.Text),
        sa.Column("hostname", sa.Text, nullable=False),
        sa.Column("sudo", sa.Boolean, nullable=False),
        sa.Column("timeout", sa.Double),
        sa.Column("idle_timeout", sa.Double),
        sa.Column("on_timeout", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("created_by", sa.String(32), nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("deadline", sa.Double),
        sa.Column("ended_at", sa.Double),
        sa.Column("timing", sa.Text),
        sa.Column("removed", sa.Boolean, nullable=False),
    )
    living = sa.text("state NOT IN ('terminated', 'failed')")
    op.create_index("sandboxes_page", "sandboxes", ["project", "created_at", "id"])
    op.create_index("sandboxes_name", "sandboxes", ["project", "name"], unique=True, sqlite_where=living, postgresql_where=living)
    op.create_index("sandboxes_ended", "sandboxes", ["ended_at"])
    op.create_table(
        "sandbox_tags",
        sa.Column("sandbox", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("value", sa.String(256), nullable=False),
    )
    op.create_index("sandbox_tags_find", "sandbox_tags", ["name", "value", "sandbox"])
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("project", sa.String(63), nullable=False),
        sa.Column("sandbox", sa.String(32)),
        sa.Column("actor", sa.String(32)),
        sa.Column("data", sa.Text, nullable=False),
    )
    op.create_index("events_project", "events", ["project", "seq"])
    op.create_index("events_sandbox", "events", ["sandbox", "seq"])
    op.create_index("events_at", "events", ["at"])
    op.create_table(
        "projects",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("max_sandboxes", sa.Integer),
        sa.Column("max_cpu", sa.Double),
        sa.Column("max_memory", sa.BigInteger),
        sa.Column("max_disk", sa.BigInteger),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("project", sa.String(63), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("revoked_at", sa.Double),
    )
    op.create_table(
        "idempotency",
        sa.Column("project", sa.String(63), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("subject", sa.String(32)),
        sa.Column("status", sa.Integer),
        sa.Column("body", sa.LargeBinary),
    )
    op.create_index("idempotency_at", "idempotency", ["at"])
