"""Changes of the tables, for Alembic."""
