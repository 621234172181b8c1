"""The command ``tail``: its options, and where it finds a server and a key when none is named."""

import json
from pathlib import Path
from typing import Annotated

import typer
from dotenv import dotenv_values
from rich.console import Console

from meterhouse.settings import SettingsError
from meterhouse.tail import Follower, follow

DEV_FILE = "dev.env"


def tail(
    url: Annotated[
        str | None, typer.Option(envvar="OPENAI_BASE_URL", help="The server [default: that of --data]")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            envvar=["OPENAI_ADMIN_KEY", "OPENAI_API_KEY"],
            help="An admin key sees all requests, a key its own [default: that of --data]",
            show_envvar=True,
        ),
    ] = None,
    organization: Annotated[str, typer.Option(help="Only the requests of one")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON")] = False,
    data: Annotated[Path, typer.Option(help="Folder of an embedded installation")] = Path(".meterhouse"),
) -> None:
    """Follow the requests of a running server, of all its workers, until Ctrl-C."""
    known = dotenv_values(data / DEV_FILE, interpolate=False)
    url = url or known.get("OPENAI_BASE_URL") or "http://127.0.0.1:8000"
    key = key or known.get("OPENAI_ADMIN_KEY")
    if not key:
        raise SettingsError("tail needs an admin key, or a key: give it with OPENAI_ADMIN_KEY or --key.")
    events = follow(url, key, organization)
    try:
        if as_json:
            for event in events:
                print(json.dumps(event), flush=True)
        else:
            Follower(Console(highlight=False)).show(events)
    except (KeyboardInterrupt, BrokenPipeError):
        raise typer.Exit(130) from None
