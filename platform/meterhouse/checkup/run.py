"""All looks at a deployment, in the order in which an operator puts it up."""

import asyncio
from collections import Counter
from pathlib import Path

from rich.table import Table

from meterhouse.checkup.edge import check_edge
from meterhouse.checkup.finding import Finding
from meterhouse.checkup.host import check_host
from meterhouse.checkup.issuer import check_issuer
from meterhouse.checkup.stores import check_stores
from meterhouse.serve import check_parts, check_settings, default_workers, served_settings
from meterhouse.settings import Settings, SettingsError
from meterhouse.tables import print_table

FAILED_STATUS = 2
SUBJECT = "settings"


def check_deployment(
    settings: Settings, workers: int | None, conf: Path | None, certificate: Path | None
) -> list[Finding]:
    """Look at everything; nothing is changed.

    Args:
        settings: in force.
        workers: of a host; None: as many as `meterhouse serve` would start.
        conf: the nginx.conf in front of it.
        certificate: one that the conf does not name.
    """
    count = workers or default_workers(settings)
    return [
        _check_settings(settings, count),
        *asyncio.run(check_stores(settings, count)),
        *check_issuer(settings),
        *check_host(settings, count),
        *check_edge(conf, certificate, settings),
    ]


def print_findings(found: list[Finding]) -> int:
    """Print a line for each; returns the exit status of the command."""
    table = Table("", "", "", box=None, show_header=False)
    for finding in found:
        table.add_row(finding.state, finding.subject, finding.text)
    print_table(table)
    counts = Counter(finding.state for finding in found)
    print(f"{counts['ok']} ok, {counts['warning']} warnings, {counts['failed']} failed")
    return FAILED_STATUS if counts["failed"] else 0


def _check_settings(settings: Settings, workers: int) -> Finding:
    """Look whether `meterhouse serve`, or `meterhouse dev` where there is no database server, would start with them."""
    try:
        if settings.database_url is None:
            check_parts(settings)
            return Finding("ok", SUBJECT, "of the embedded form, for one process.")
        check_settings(served_settings(settings), workers)
    except SettingsError as error:
        return Finding("failed", SUBJECT, str(error))
    if settings.redis_url is None:
        return Finding("warning", SUBJECT, "METERHOUSE_REDIS_URL is not set: only one worker can serve.")
    return Finding("ok", SUBJECT, "they belong together.")
