"""Alembic runs this for each command. The engine comes from `store.migrate`; a migration is one transaction."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Engine

from corral.store.tables import metadata

engine: Engine = context.config.attributes["engine"]
with engine.connect() as connection, connection.begin():
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True, transaction_per_migration=False)
    context.run_migrations()
