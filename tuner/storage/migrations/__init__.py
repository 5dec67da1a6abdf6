"""The versions of our own tables: what brings a database from one to the next, as Alembic runs it."""
