"""Workers say of which organizations they hold reservations that they cannot renew."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("worker", sa.Column("cut_off", sa.JSON, nullable=True))


def downgrade() -> None:
    op.drop_column("worker", "cut_off")
