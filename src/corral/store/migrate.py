"""Bringing a database's tables up to date. Importing Alembic takes a third of a second, so it is looked first whether there is anything to do."""

from __future__ import annotations

from pathlib import Path

import structlog
from sqlalchemy import Connection, Engine, inspect, text

from corral.errors import SetupError

MIGRATIONS = Path(__file__).parent / "migrations"
HEAD = "0015"
"""The newest revision in `migrations/versions`; a test holds it there."""

log = structlog.get_logger(__name__)


def migrate(engine: Engine) -> None:
    """Make the tables, or change those of an older Corral. Raises `SetupError` for a newer one's."""
    with engine.connect() as connection, connection.begin():
        found = revision(connection)
    if found == HEAD:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["engine"] = engine
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise SetupError(
            f"the database has the tables of another Corral (revision {found}): {error}", hint="install that version, or use another CORRAL_HOME"
        ) from error
    log.info("database_migrated", before=found, now=HEAD)


def revision(connection: Connection) -> str | None:
    """What the database has; None: nothing yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
