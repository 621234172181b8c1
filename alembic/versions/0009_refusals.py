"""Requests that were refused and have no record are counted by the hour."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

KEY = ("organization_id", "hour_ms", "project_id", "key_id", "model", "error_owner", "error_code")


def upgrade() -> None:
    op.create_table(
        "refusal_hour",
        *(
            sa.Column(name, sa.BigInteger if name == "hour_ms" else sa.Text, nullable=False, autoincrement=False)
            for name in KEY
        ),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint(*KEY),
    )
    op.create_index("refusal_hour_by_hour", "refusal_hour", ["hour_ms"])


def downgrade() -> None:
    op.drop_table("refusal_hour")
