"""Takes migrations back and makes them again in one process: ``python -m failure.migrate_again URL REVISION``."""

import sys

from alembic.config import main as alembic

from meterhouse.cli import main as meterhouse

if __name__ == "__main__":
    database_url, revision = sys.argv[1:]
    alembic(["-x", f"url={database_url}", "downgrade", revision])
    sys.argv = ["meterhouse", "migrate"]
    sys.exit(meterhouse())
