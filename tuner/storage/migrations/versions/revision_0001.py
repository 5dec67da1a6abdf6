"""The tables of version 0.1: studies, workers and leases."""

import sqlalchemy as sql
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the three tables."""
    now = sql.func.now()
    op.create_table(
        "tuner_studies",
        sql.Column("study_id", sql.Integer, primary_key=True),
        sql.Column("state", sql.Text, nullable=False, server_default="running"),
        sql.Column("forgiven", sql.Integer, nullable=False, server_default="0"),
        sql.Column("active_seconds", sql.Float, nullable=False, server_default="0"),
        sql.Column("ticked_at", sql.DateTime(timezone=True), nullable=False, server_default=now),
    )
    op.create_table(
        "tuner_workers",
        sql.Column("worker_id", sql.Text, primary_key=True),
        sql.Column("number", sql.Integer, sql.Identity()),
        sql.Column("study_id", sql.Integer, nullable=False, index=True),
        sql.Column("host", sql.Text, nullable=False),
        sql.Column("process", sql.Integer, nullable=False),
        sql.Column("device", sql.Text, nullable=False),
        sql.Column("threads", sql.Integer, nullable=False),
        sql.Column("started_at", sql.DateTime(timezone=True), nullable=False, server_default=now),
        sql.Column("seen_at", sql.DateTime(timezone=True), nullable=False, server_default=now),
        sql.Column("trial", sql.Integer),
        sql.Column("doing", sql.Text, nullable=False, server_default=""),
        sql.Column("progress", sql.Float),
        sql.Column("tokens_per_second", sql.Float),
        sql.Column("memory_bytes", sql.BigInteger),
    )
    op.create_table(
        "tuner_leases",
        sql.Column("trial_id", sql.Integer, primary_key=True),
        sql.Column("study_id", sql.Integer, nullable=False, index=True),
        sql.Column("worker_id", sql.Text, nullable=False),
        sql.Column("attempt", sql.Integer, nullable=False),
        sql.Column("expires_at", sql.DateTime(timezone=True), nullable=False),
    )
