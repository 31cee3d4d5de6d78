"""The tables. What they look like is also written, step by step, in `migrations/versions`. Plain SQL types only, so that SQLite and PostgreSQL both hold them."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, LargeBinary, MetaData, String, Table, Text, false, text, true

metadata = MetaData()

_LIVING = text("state NOT IN ('terminated', 'failed')")

sandboxes = Table(
    "sandboxes",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("project", String(63), nullable=False),
    Column("name", String(63)),
    Column("image", Text, nullable=False),
    Column("image_id", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(16)),
    Column("detail", Text),
    Column("ended_by", String(32)),
    Column("cpu", Double, nullable=False),
    Column("memory", Integer, nullable=False),
    Column("disk", Integer, nullable=False),
    Column("pids", Integer, nullable=False),
    Column("env", Text, nullable=False, comment="JSON object"),
    Column("tags", Text, nullable=False, comment="JSON object; sandbox_tags has the same to search in"),
    Column("user", Text),
    Column("workdir", Text),
    Column("hostname", Text, nullable=False),
    Column("sudo", Boolean, nullable=False),
    Column("timeout", Double),
    Column("idle_timeout", Double),
    Column("on_timeout", String(16), nullable=False),
    Column("checkpoint_every", Integer),
    Column("volumes", Text, nullable=False, server_default="[]", comment="JSON list"),
    Column("created_at", Double, nullable=False, comment="times: seconds since 1970"),
    Column("created_by", String(32), nullable=False),
    Column("started_at", Double),
    Column("deadline", Double),
    Column("ended_at", Double),
    Column("timing", Text, comment="JSON object"),
    Column("removed", Boolean, nullable=False),
    Column("egress", Text, nullable=False, server_default="{}", comment="JSON object: the policy"),
    Column("previews", Text, nullable=False, server_default="{}", comment="JSON object: who may see which port"),
    Column("forked_from", String(32)),
    Column("secrets", Text, nullable=False, server_default="[]", comment="JSON list: which secrets are which variables; never their values"),
    Column("facade", Text, nullable=False, server_default="{}", comment="JSON object"),
    Column("freeze", Boolean, nullable=False, server_default=true()),
    Column("reserve", Boolean, nullable=False, server_default=false()),
    Index("sandboxes_page", "project", "created_at", "id"),
    Index("sandboxes_name", "project", "name", unique=True, sqlite_where=_LIVING, postgresql_where=_LIVING),
    Index("sandboxes_ended", "ended_at"),
)

sandbox_tags = Table(
    "sandbox_tags",
    metadata,
    Column("sandbox", String(32), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("value", String(256), nullable=False),
    Index("sandbox_tags_find", "name", "value", "sandbox"),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("project", String(63), nullable=False),
    Column("name", String(63)),
    Column("sandbox", String(32), nullable=False),
    Column("image", Text, nullable=False),
    Column("parent", String(64), nullable=False),
    Column("checkpoint", Boolean, nullable=False),
    Column("automatic", Boolean, nullable=False),
    Column("disk", Integer, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("created_by", String(32), nullable=False),
    Column("removed", Boolean, nullable=False),
    Column("memory", BigInteger, nullable=False, server_default="0", comment="bytes; 0: it has none"),
    Column("shared_with", Text, nullable=False, server_default="[]", comment="JSON list: other projects that may start sandboxes of it"),
)

volumes = Table(
    "volumes",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("project", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    Column("size", Integer, nullable=False, comment="MiB"),
    Column("created_at", Double, nullable=False),
    Column("created_by", String(32), nullable=False),
    Index("volumes_name", "project", "name", unique=True),
)

images = Table(
    "images",
    metadata,
    Column("project", String(63), primary_key=True),
    Column("id", String(32), primary_key=True),
    Column("key", String(64), nullable=False),
    Column("node_image", String(32), nullable=False),
    Column("parent", String(64), nullable=False),
    Column("text", Text, nullable=False),
    Column("config", Text, nullable=False, comment="JSON object"),
    Column("size", BigInteger, nullable=False),
    Column("kept", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("created_by", String(32), nullable=False),
    Column("used_at", Double, nullable=False),
)

templates = Table(
    "templates",
    metadata,
    Column("project", String(63), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("tag", String(128), primary_key=True),
    Column("image", String(32), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("created_by", String(32), nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("project", String(63), nullable=False),
    Column("sandbox", String(32)),
    Column("actor", String(32)),
    Column("data", Text, nullable=False, comment="JSON object"),
    Index("events_project", "project", "seq"),
    Index("events_sandbox", "sandbox", "seq"),
    Index("events_at", "at"),
)

projects = Table(
    "projects",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("max_sandboxes", Integer),
    Column("max_cpu", Double),
    Column("max_memory", BigInteger),
    Column("max_disk", BigInteger),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("project", String(63), nullable=False),
    Column("role", String(16), nullable=False),
    Column("digest", String(64), nullable=False, unique=True, comment="SHA-256 of the key, in hexadecimal digits: the key itself is nowhere"),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
    Column("public_key", Text, comment="of SSH, without its comment"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("project", String(63), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("at", Double, nullable=False),
    Column("subject", String(32), comment="the sandbox it made"),
    Column("status", Integer),
    Column("body", LargeBinary),
    Index("idempotency_at", "at"),
)

secrets = Table(
    "secrets",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("project", String(63), nullable=False),
    Column("name", String(128), nullable=False),
    Column("sealed", LargeBinary, nullable=False, comment="the value, encrypted by the key ring"),
    Column("version", Integer, nullable=False, server_default="1"),
    Column("tags", Text, nullable=False, server_default="{}", comment="JSON object"),
    Column("created_at", Double, nullable=False),
    Column("changed_at", Double, nullable=False),
    Column("used_at", Double),
    Index("secrets_name", "project", "name", unique=True),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("project", String(63), primary_key=True),
    Column("url", Text, nullable=False),
    Column("sealed", LargeBinary, nullable=False, comment="what requests are signed with, encrypted by the key ring"),
    Column("created_at", Double, nullable=False),
    Column("created_by", String(32), nullable=False),
)

event_webhooks = Table(
    "event_webhooks",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("project", String(63), nullable=False),
    Column("name", String(128), nullable=False),
    Column("url", Text, nullable=False),
    Column("kinds", Text, nullable=False, comment="JSON list: of which events"),
    Column("tags", Text, nullable=False, comment="JSON object: of which sandboxes"),
    Column("enabled", Boolean, nullable=False),
    Column("dialect", String(16), nullable=False),
    Column("sealed", LargeBinary, nullable=False, comment="what requests are signed with, encrypted by the key ring"),
    Column("position", BigInteger, nullable=False, comment="seq of the newest event that it is done with"),
    Column("created_at", Double, nullable=False),
    Column("created_by", String(32), nullable=False),
)

egress_rules = Table(
    "egress_rules",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("project", String(63), nullable=False),
    Column("rule", Text, nullable=False, comment="JSON object"),
    Column("created_at", Double, nullable=False),
    Column("created_by", String(32), nullable=False),
    Index("egress_rules_project", "project"),
)
