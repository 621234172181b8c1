"""What commands share: common options, opening the stores, and reading times and amounts as operators write them.

Not here: any command (``cli``, ``cli_billing``, ``cli_ledger``).
"""

import asyncio
import os
import pwd
from collections.abc import Awaitable, Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from meterhouse.identity import Actor, ActorKind, Author, Role
from meterhouse.ledger.compare import parse_moment_ms
from meterhouse.money import NANOS_PER_USD
from meterhouse.settings import Environment, Settings, SettingsError
from meterhouse.stores import Stores, open_stores

Data = Annotated[Path | None, typer.Option(help="Folder of the embedded database [default: .meterhouse]")]
EnvFile = Annotated[Path, typer.Option(help="File with NAME=value lines; the environment wins over it")]
DEFAULT_ENV_FILE = Path(".env")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for another program instead of a table")]
Body = TypeVar("Body")
MAX_USD = 1_000_000_000
STATEMENT_SECONDS = 3_600
LOCK_SECONDS = 10


def read_settings(data: Path | None, env_file: Path, **overrides: object) -> tuple[Settings, Environment]:
    """Return the settings of a command; ``data`` and ``overrides`` win over the environment.

    Raises:
        SettingsError: A value cannot be used, or a file of settings that was named is not there.
    """
    # Without it the command would go on in another place: the embedded database of this folder.
    if env_file != DEFAULT_ENV_FILE and not env_file.exists():
        raise SettingsError(f"--env-file: there is no file {env_file}.")
    environment = Environment.read(env_file)
    given = overrides if data is None else {**overrides, "data": data}
    return environment.settings(**given), environment


def patient_settings(data: Path | None, env_file: Path) -> Settings:
    """Return the settings of a command that may take long, without the haste of a request."""
    patience: dict[str, object] = {
        "statement_timeout_seconds": STATEMENT_SECONDS,
        "lock_timeout_seconds": LOCK_SECONDS,
    }
    return read_settings(data, env_file, **patience)[0]


def user_name() -> str:
    """Return who runs the command, as the system knows them."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def author() -> Author:
    """Return who changes something by a command, for the audit log."""
    return Author(Actor(ActorKind.CLI, user_name(), Role.OPERATOR))


def run_with_stores(settings: Settings, work: Callable[[Stores], Awaitable[None]]) -> None:
    """Open the stores, do some work, and close them again."""

    async def run() -> None:
        async with open_stores(settings) as stores:
            await work(stores)

    asyncio.run(run())


def read_body(kind: type[Body], values: dict[str, Any]) -> Body:
    """Read a body as the administration API reads it.

    Raises:
        SettingsError: A value cannot be used.
    """
    from pydantic import ValidationError  # noqa: PLC0415 - as in dev

    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{where}: {first['msg']}.") from None


def read_moment_ms(text: str | None, option: str) -> int | None:
    """Read a day or a moment of UTC as Unix milliseconds; None stays None.

    Raises:
        SettingsError: It is neither.
    """
    if text is None:
        return None
    try:
        return parse_moment_ms(text)
    except (ValueError, OverflowError):
        raise SettingsError(
            f"{option}: expected a day or a moment, for example 2026-11-01 or 2026-11-01T12:00Z."
        ) from None


def read_decimal(text: str, option: str) -> Decimal:
    """Read a number exactly.

    Raises:
        SettingsError: It is none.
    """
    try:
        number = Decimal(text.strip().removesuffix("%").strip())
    except InvalidOperation:
        raise SettingsError(f"{option}: '{text}' is no number.") from None
    if not number.is_finite():
        raise SettingsError(f"{option}: '{text}' is no number.")
    return number


def read_nanos(text: str, option: str) -> int:
    """Read signed dollars as nanos, exactly.

    Raises:
        SettingsError: They are none, absurd, or finer than a nano.
    """
    usd = read_decimal(text.replace("$", ""), option)
    nanos = usd * NANOS_PER_USD if abs(usd) <= MAX_USD else Decimal("0.5")
    if nanos != nanos.to_integral_value():
        raise SettingsError(
            f"{option} lies between -{MAX_USD} and {MAX_USD} and is no finer than a billionth of a dollar."
        )
    return int(nanos)
