"""``meterhouse console``: pages for operators and tenants, from a process of its own."""

import sys
from typing import Annotated

import typer


def console(
    url: Annotated[
        str, typer.Option(envvar="OPENAI_BASE_URL", help="Address of the gateway, with or without /v1")
    ] = "http://127.0.0.1:8000",
    bind: Annotated[str, typer.Option(help="HOST:PORT of the console")] = "127.0.0.1:8600",
    name: Annotated[
        list[str] | None, typer.Option(help="Host name under which browsers reach it, beside the one of --bind")
    ] = None,
    ca_file: Annotated[
        str | None, typer.Option(help="Certificates to trust at the gateway [default: the system's]")
    ] = None,
    trace_url: Annotated[
        str | None, typer.Option(help="Address of a page that shows a trace, with {trace_id} in it")
    ] = None,
    behind_tls: Annotated[
        bool, typer.Option(help="A proxy with TLS stands before it: the cookie goes only over https")
    ] = False,
    with_parent: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Serve the console, a client of the gateway: sign in with an admin key, an operator's token or a tenant's key."""
    from meterhouse.console.run import (  # noqa: PLC0415 - the other commands start without it
        ConsoleOrder,
        ConsoleRefused,
        run_console,
    )

    order = ConsoleOrder(
        url=url,
        bind=bind,
        names=tuple(name or ()),
        ca_file=ca_file,
        trace_url=trace_url,
        is_secure=behind_tls,
        ends_with_parent=with_parent,
    )
    said = f"Console on http://{bind} for the gateway at {url.removesuffix('/v1')}"
    try:
        run_console(order, lambda: None if with_parent else print(said, file=sys.stderr, flush=True))
    except ConsoleRefused as error:
        print(f"meterhouse: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
