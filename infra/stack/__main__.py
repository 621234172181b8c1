"""``infra/up``: the whole stack on one machine, in a folder of its own.

A start brings up what is missing and leaves alone what runs, so that it also mends a stack of which a part has died.
"""

import argparse
import signal
import sys
from pathlib import Path

from meterhouse import __version__
from stack import process
from stack.bring import is_running, make_keys, start_part
from stack.parts import make_roles, parts
from stack.place import FAVOURITE_PORTS, Place, prepare, read_place, turn
from stack.process import StackError

END_ORDER = ("console", "gateway", "nginx", "redis", "postgres")
UNWELL = 1
FAILED = 2
BODY = '{"model": "simulator", "stream": true, "messages": [{"role": "user", "content": "Hello!"}]}'


def main() -> int:
    """Do what the command line says."""
    options = read_options()
    place = read_place(options.data)
    try:
        if options.status:
            return print_status(place)
        with turn(place.folder):
            place = read_place(options.data)
            return bring_down(place) if options.down else bring_up(place, options)
    except StackError as error:
        print(f"infra/up: {error}", file=sys.stderr)
        return FAILED


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="infra/up",
        description="Run PostgreSQL, Redis, two workers of Meterhouse, nginx with TLS and the console on this machine.",
        epilog="Everything listens on 127.0.0.1. Ports that are not given are the first free ones from 8443, 8080, "
        "5440, 6380 and 8600 on, and stay the same from then on.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--status", action="store_true", help="say of each part whether it runs and is well; 1: not all")
    what.add_argument("--down", action="store_true", help="end everything; running streams may end first")
    folder = Path(".meterhouse-up")
    parser.add_argument("--data", type=Path, default=folder, metavar="DIR", help=f"folder of it all [{folder}]")
    for name in FAVOURITE_PORTS:
        parser.add_argument(f"--{name}-port", type=int, metavar="PORT", help=f"port of {name}")
    return parser.parse_args()


def bring_up(place: Place, options: argparse.Namespace) -> int:
    """Start what does not run, and say where everything is."""
    given = {name: getattr(options, f"{name}_port") for name in FAVOURITE_PORTS}
    asked = {name: port for name, port in given.items() if port is not None and port != place.ports.get(name)}
    if asked and any(started.is_running for started in place.started.values()):
        raise StackError(f"It runs on other ports ({', '.join(asked)}): infra/up --down comes first.")
    prepare(place, asked)
    had_keys = "admin_key" in place.secrets
    is_changed = False
    for part in parts():
        if is_running(place, part):
            continue
        is_changed = True
        start_part(place, part)
        if part.name == "postgres":
            make_roles(place)
        if part.name == "redis":
            make_keys(place)
    print_banner(place, is_changed=is_changed, has_new_keys=not had_keys)
    return 0


def bring_down(place: Place) -> int:
    """End everything: nginx takes nothing new while the gateway drains, and the stores end last."""
    running = [part for part in reversed(parts()) if is_running(place, part)]
    for part in running:
        if part.name in {"nginx", "gateway"}:
            process.tell(place.started[part.name], part.end_signal)
    # Streams pass through nginx, so it ends after the gateway, which says how long they may take.
    for part in sorted(running, key=lambda part: END_ORDER.index(part.name)):
        print(f"Ending {part.name} ...", file=sys.stderr)
        started = place.started[part.name]
        if part.name not in {"nginx", "gateway"}:
            process.tell(started, part.end_signal)
        if not process.await_end(started, part.patience_seconds):
            process.tell(started, signal.SIGTERM)
            process.await_end(started, part.patience_seconds)
    for started in place.started.values():
        process.kill(started)
    place.started.clear()
    if place.folder.joinpath("stack.json").exists():
        place.save()
    print("Everything has ended." if running else f"Nothing runs in {place.folder}.")
    return 0


def print_status(place: Place) -> int:
    """Say of each part how it is; returns 1 unless all are well."""
    is_all_well = True
    for part in parts():
        started = place.started.get(part.name)
        is_running = started is not None and started.is_running
        is_well = is_running and part.is_well(place)
        is_all_well = is_all_well and is_well
        where = f"127.0.0.1:{place.ports[part.port]}" if part.port in place.ports else str(place.socket)
        state = f"running  pid {started.pid:<8}" if started is not None and is_running else "stopped              "
        print(f"{part.name:<9} {state} {where if is_running else '':<24} {'well' if is_well else 'not well'}")
    return 0 if is_all_well else UNWELL


def print_banner(place: Place, *, is_changed: bool, has_new_keys: bool) -> None:
    """Say where everything is, as ``infra/run`` does; the keys only when they are new."""
    keys = place.folder / "keys.env"
    authority = place.folder / "tls" / "ca.pem"
    head = "runs" if is_changed else "runs already"
    print(
        f"\nMeterhouse {__version__} {head} with PostgreSQL, Redis, two workers, nginx and a console "
        "(infra/up --down ends it)\n"
    )
    for name, value in (
        ("Base URL", f"{place.base_url}/v1"),
        ("Console", place.console_url),
        ("API page", f"{place.base_url}/docs"),
        ("Health", f"{place.base_url}/health"),
        ("CA file", f"{authority} (clients: SSL_CERT_FILE)"),
        ("Data", str(place.folder)),
        ("Settings", f"{place.folder / 'gateway.env'} (kill -HUP {place.started['gateway'].pid} takes them up)"),
        ("Keys", f"{keys} (source it: set -a; . {keys}; set +a)"),
    ):
        print(f"  {name:<10} {value}")
    if has_new_keys:
        key = place.secrets["key"]
        print(f"\n  Key        {key}\n  Admin key  {place.secrets['admin_key']}")
        print(f"\nTry it:\n\ncurl --cacert {authority} --no-buffer {place.base_url}/v1/chat/completions \\")
        print(f"  -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{BODY}'")
    print()


if __name__ == "__main__":
    sys.exit(main())
