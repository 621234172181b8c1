"""How this process runs: the environment and an optional ``.env`` file, read once into one frozen object.

No other module reads the environment (a test greps). What is sold and to whom is not here: that is the database.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from dotenv.main import DotEnv
from dotenv.parser import parse_stream
from limits import parse
from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "METERHOUSE_"
_PROVIDER_NAME = re.compile(r"^METERHOUSE_PROVIDER_(?P<name>[A-Z0-9_]+)_(?:BASE_URL|REGION|KIND)$")


def _check_rate(text: str) -> str:
    try:
        parse(text)
    except ValueError:
        raise ValueError("expected a rate, for example 300/minute") from None
    return text


def _check_address(schemes: Sequence[str], address: SecretStr) -> SecretStr:
    """Refuse what is no address of a store, without showing any of it: a part may be a password."""
    try:
        parts = urlsplit(address.get_secret_value())
        is_good = parts.scheme in schemes and bool(parts.netloc or parts.query) and (parts.port or 1) > 0
    except ValueError:
        is_good = False
    if not is_good:
        raise ValueError(
            f"expected {schemes[0]}://user:password@host:port/..., with characters such as / or @ in the password "
            "written as %2F or %40"
        )
    return address


def _check_origins(text: str) -> str:
    """Refuse what no browser sends as an origin, and the asterisk: who may use a key from a page is named."""
    for origin in text.split(","):
        parts = urlsplit(origin.strip())
        is_bare = not (parts.path or parts.query or parts.fragment or parts.username)
        if parts.scheme not in {"http", "https"} or not parts.hostname or not is_bare or "*" in origin:
            raise ValueError("expected origins as browsers send them, https://app.example.com,http://localhost:3000")
    return text


def _check_algorithms(text: str) -> str:
    """Refuse what is no signature by a private key: with a shared secret whoever checks a token can make one."""
    if not {name.strip() for name in text.split(",")} <= SIGNATURES:
        raise ValueError(f"expected any of {', '.join(sorted(SIGNATURES))}, separated by commas")
    return text


SIGNATURES = frozenset({"RS256", "RS384", "RS512", "ES256", "ES384", "ES512"})
REDIS_SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster")
DATABASE_SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")
RedisAddress = Annotated[SecretStr, AfterValidator(partial(_check_address, REDIS_SCHEMES))]
DatabaseAddress = Annotated[SecretStr, AfterValidator(partial(_check_address, DATABASE_SCHEMES))]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
Rate = Annotated[str, AfterValidator(_check_rate)]
Origins = Annotated[str, AfterValidator(_check_origins)]
Algorithms = Annotated[str, AfterValidator(_check_algorithms)]
Claim = Annotated[str, Field(min_length=1, max_length=256)]


class SettingsError(Exception):
    """The environment or the ``.env`` file cannot be used; the text says what to change."""


class Settings(BaseSettings):
    """Every setting, with its default. The variable is the name in capitals behind ``METERHOUSE_``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    data: Path = Field(Path(".meterhouse"), description="Folder of the embedded database, the journals and the keys")
    key_pepper: SecretStr | None = Field(
        None,
        description="`version:secret[,version:secret]`: what key hashes are made with; the highest version is used",
    )
    key_pepper_version: int | None = Field(
        None, description="The version that hashes keys, while a new one is brought to all hosts; unset: the highest"
    )
    redis_url: RedisAddress | None = Field(
        None,
        description="Redis of the meter: `redis://`, `rediss://`, or with `+cluster` behind either word; "
        "unset: a meter in memory, for one process",
    )
    database_url: DatabaseAddress | None = Field(
        None, description="`postgresql://user:password@host/name`; unset: the embedded SQLite in the data folder"
    )
    migration_database_url: DatabaseAddress | None = Field(
        None, description="The same database as the role that owns the schema; unset: `database_url`"
    )
    clerk: bool = Field(
        True, description="Whether `serve` has a process beside the workers that ships and seals for them"
    )
    database_connections: Count = Field(5, description="Most database connections of a worker")
    statement_timeout_seconds: Seconds = Field(2, description="Longest database statement of a request")
    lock_timeout_seconds: Seconds = Field(0.5, description="Longest wait for a lock in PostgreSQL")
    busy_timeout_seconds: Seconds = Field(10, description="Longest wait for others who write to the embedded SQLite")
    redis_timeout_seconds: Seconds = Field(0.1, description="Longest wait for Redis")
    hosts: Count = Field(1, description="Hosts that share the outage allowance of each budget and quota")
    outage_percent: Annotated[int, Field(ge=0, le=100)] = Field(
        2, description="Part of each budget and quota that may be used per period while Redis is away; 0 refuses"
    )
    simulator: bool | None = Field(None, description="Whether the simulator answers; unset: only in `dev`")
    default_model: str | None = Field(
        None,
        description="Who answers the simple endpoints when no model is named; unset: the first of `GET /v1/models`",
    )
    retired_models: Literal["refuse", "replace"] = Field(
        "refuse", description="`replace`: a retired model's name is answered by its replacement"
    )
    private_providers: bool = Field(
        False, description="Whether a provider that is set through the API may have a private address, or plain http"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least level that is logged"
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="`auto` is `console` on a terminal and `json` elsewhere"
    )
    otlp_endpoint: str | None = Field(None, description="OTLP/HTTP address for traces; unset: no traces")
    otlp_headers: SecretStr | None = Field(
        None, description="What the collector wants to be told with them: `name=value[,name=value]`"
    )
    trace_ratio: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="Part of the requests that are traced")
    trace_slow_seconds: Seconds = Field(
        10, description="A request that kept its client waiting for so long, while nothing streamed, is traced anyway"
    )
    max_requests: Count | None = Field(
        None, description="Most requests under way in a worker; unset: what its open files allow, at most 9,000"
    )
    max_lag_seconds: Seconds = Field(
        1, description="A worker whose event loop is late by more than this again and again refuses requests"
    )
    max_body_bytes: Count = Field(20 * 1_048_576, description="Longest request body")
    body_memory_bytes: Count = Field(
        256 * 1_048_576, description="Most bytes of request bodies that a worker holds; beyond it longer ones get 503"
    )
    journal_durability: Literal["fsync", "write"] = Field(
        "fsync", description="`write` survives a killed process, but not a loss of power"
    )
    journal_segment_bytes: Annotated[int, Field(ge=65_536)] = Field(
        16 * 1_048_576, description="Size of a journal segment"
    )
    journal_keep_bytes: Count = Field(8 * 1_073_741_824, description="Most bytes of shipped segments that are kept")
    journal_keep_seconds: Seconds = Field(48 * 3600, description="How long shipped segments are kept")
    journal_max_bytes: Count = Field(
        16 * 1_073_741_824, description="Most bytes that wait to be shipped; beyond it requests are refused with 503"
    )
    ship_seconds: Seconds = Field(0.2, description="How often the journal is shipped to the database")
    checkpoint_seconds: Seconds = Field(1.0, description="How often running streams are checkpointed")
    lease_seconds: Seconds = Field(60, description="How long a reservation stands without renewal")
    renew_seconds: Seconds = Field(15, description="How often leases are renewed")
    sweep_seconds: Seconds = Field(30, description="How often expired leases are looked for")
    reconcile_seconds: Seconds = Field(60, description="How often the meter is compared with the ledger")
    heartbeat_seconds: Seconds = Field(2, description="How often a worker says that it is alive")
    adopt_seconds: Seconds = Field(5, description="How often journals of dead workers are looked for")
    key_check_seconds: Seconds = Field(5, description="How often the keys of running requests are looked at again")
    key_fresh_seconds: Seconds = Field(10, description="How long a cached key is used without looking it up again")
    probe_seconds: Seconds = Field(30, description="How often providers are asked whether they are there")
    head_seconds: Seconds = Field(10, description="How long the 200 of a stream waits for the first data event")
    keep_alive_seconds: Seconds = Field(15, description="A comment is sent into a stream that is quiet for so long")
    tail_seconds: Seconds = Field(5, description="How long usage is waited for after the end of an answer")
    write_stall_seconds: Seconds = Field(30, description="A client that reads nothing for so long is dropped")
    drain_seconds: Seconds = Field(60, description="How long an answer is read on after its client left")
    drain_most: Count = Field(64, description="Most answers that are read on at a time after their clients left")
    shutdown_seconds: Seconds = Field(
        5, description="How long running streams may go on when the server stops; 120 in `serve` if unset"
    )
    graceful_seconds: Seconds | None = Field(
        None, description="A worker that is told to stop is killed after so long; unset: 15 s above twice the former"
    )
    worker_requests: Count | None = Field(
        None, description="A worker is replaced after so many requests, up to a tenth more; unset: never"
    )
    upstream_client: Literal["httptools", "aiohttp"] = Field(
        "httptools", description="Who speaks HTTP to providers: our lean client, or the library"
    )
    connect_timeout_seconds: Seconds | None = Field(None, description="Overrides every provider's connect timeout")
    first_token_timeout_seconds: Seconds | None = Field(None, description="Overrides the first-token timeout")
    idle_timeout_seconds: Seconds | None = Field(None, description="Overrides the timeout between two data events")
    total_timeout_seconds: Seconds | None = Field(None, description="Overrides the timeout of a whole answer")
    cors_origins: Origins | None = Field(
        None, description="Pages that may call from a browser: `https://app.example.com,http://localhost:3000`"
    )
    alert_seconds: Seconds = Field(15, description="How often spend alerts are looked at")
    private_webhooks: bool = Field(
        False, description="Whether webhooks may have private addresses, other ports than 443, and plain http"
    )
    smtp_host: str | None = Field(None, description="Mail server for spend alerts; unset: no e-mail")
    smtp_port: Annotated[int, Field(gt=0, lt=65_536)] = Field(587, description="Its port")
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="`tls` from the first byte (port 465); `none` only without a password"
    )
    smtp_sender: str | None = Field(None, description="Address that e-mail comes from")
    smtp_username: str | None = Field(None, description="Login at the mail server")
    smtp_password: SecretStr | None = Field(None, description="Password at the mail server")
    invoice_after_hours: Count | None = Field(
        None, description="Invoices of a month are issued so long after its end; unset: only when asked for"
    )
    cloudevents_url: str | None = Field(
        None, description="Where usage is sent as CloudEvents, such as OpenMeter's `/api/v1/events`; unset: nowhere"
    )
    cloudevents_token: SecretStr | None = Field(None, description="Bearer token for that address")
    cloudevents_seconds: Seconds = Field(10, description="How often usage is sent there")
    export_folder: Path | None = Field(None, description="Folder for signed exports of the ledger; unset: none")
    export_seconds: Seconds = Field(86_400, description="How often one is written there")
    key_failure_rate: Rate = Field(
        "20/minute", description="Requests with a wrong key per address; then only keys known to be good are let in"
    )
    client_token_rate: Rate = Field(
        "600/minute", description="Client tokens that a key may be traded for, counted by each worker"
    )
    admin_rate: Rate = Field("300/minute", description="Administration requests per address")
    admin_failure_rate: Rate = Field("20/minute", description="Failed sign-ins to the administration per address")

    oidc_issuer: str | None = Field(
        None, description="The `iss` of tokens that administrators may sign in with; unset: only admin keys"
    )
    oidc_audience: str | None = Field(None, description="What a token's `aud` must name")
    oidc_jwks: str | None = Field(
        None, description="The issuer's public keys: an https address, or a file; https is not needed on this machine"
    )
    oidc_algorithms: Algorithms = Field(
        "RS256,ES256", description="What tokens may be signed with: any of RS256, RS384, RS512, ES256, ES384, ES512"
    )
    oidc_role_claim: Claim = Field(
        "meterhouse_role",
        description="The claim that says `operator`, `owner` or `reader`; `/a/b` is the claim `b` inside `a`",
    )
    oidc_organization_claim: Claim = Field(
        "meterhouse_organization", description="The claim with the organization of an owner or a reader"
    )
    oidc_id_claim: Claim = Field("jti", description="The claim that tells one token from another, for revoking it")
    oidc_leeway_seconds: Annotated[int, Field(ge=0, le=60)] = Field(
        30, description="How far the issuer's clock may be off"
    )
    oidc_max_lifetime_seconds: Annotated[int, Field(gt=0, le=86_400)] = Field(
        900, description="A token that lives longer is refused"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values only from what ``Environment`` has read, so that a value has one source."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderValues:
    """What the environment says about one provider, unchecked; the credential never shows in a repr."""

    name: str
    kind: str | None = None
    base_url: str | None = None
    region: str | None = None
    workspace: str | None = None
    credential: str | None = field(default=None, repr=False)
    models: tuple[str, ...] = ()
    shows_all_output: bool = False
    forwards_trace: bool = False
    tool_call_format: str = ""
    tools: str = "send"


class Environment:
    """The environment as it was at start, over an optional ``.env`` file (the environment wins)."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    @classmethod
    def read(cls, env_file: Path | None = Path(".env")) -> Self:
        """Read the environment and the file.

        Raises:
            SettingsError: A line of the file is not ``NAME=value``, or the file cannot be read.
        """
        values: dict[str, str] = {}
        if env_file is not None and env_file.exists():
            values = _read_file(env_file)
        return cls({**values, **os.environ})

    def settings(self, **overrides: object) -> Settings:
        """Return the settings; ``overrides`` (from the command line) win.

        Raises:
            SettingsError: A value cannot be used.
        """
        given = {
            name: self._values[variable]
            for name in Settings.model_fields
            if (variable := PREFIX + name.upper()) in self._values and self._values[variable] != ""
        }
        try:
            return Settings(**{**given, **overrides})  # type: ignore[arg-type]  # validated right here
        except ValidationError as error:
            first = error.errors()[0]
            text = first["msg"].removeprefix("Value error, ")
            name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
            raise SettingsError(f"{name}: {text}.") from None

    def provider(
        self, name: str, credential_names: Sequence[str], base_url_names: Sequence[str] = ()
    ) -> ProviderValues:
        """Return what is set for a provider: ``METERHOUSE_PROVIDER_<NAME>_...`` before its usual variables."""
        stem = f"{PREFIX}PROVIDER_{name.upper().replace('-', '_')}_"
        return ProviderValues(
            name=name,
            kind=self._first(f"{stem}KIND"),
            base_url=self._first(f"{stem}BASE_URL", *base_url_names),
            region=self._first(f"{stem}REGION"),
            workspace=self._first(f"{stem}WORKSPACE"),
            credential=self._first(f"{stem}API_KEY", *credential_names),
            models=tuple(m.strip() for m in self._values.get(f"{stem}MODELS", "").split(",") if m.strip()),
            shows_all_output=self._is_on(f"{stem}SHOWS_ALL_OUTPUT"),
            forwards_trace=self._is_on(f"{stem}FORWARDS_TRACE"),
            tool_call_format=self._values.get(f"{stem}TOOL_CALL_FORMAT", ""),
            tools=self._values.get(f"{stem}TOOLS") or "send",
        )

    def named_providers(self) -> list[str]:
        """Return the names, in lower case, of all providers that have a base URL, a region or a kind set."""
        found = (_PROVIDER_NAME.match(name) for name, value in self._values.items() if value)
        return sorted({match["name"].lower() for match in found if match})

    def _is_on(self, name: str) -> bool:
        return self._values.get(name, "").lower() in {"1", "true", "yes", "on"}

    def _first(self, *names: str) -> str | None:
        return next((self._values[name] for name in names if self._values.get(name)), None)


def _read_file(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}.") from None
    for binding in parse_stream(StringIO(text)):
        if binding.error:
            raise SettingsError(f"{path}, line {binding.original.line}: expected NAME=value.")
    found = DotEnv(dotenv_path=None, stream=StringIO(text), interpolate=False).dict()
    return {name: value for name, value in found.items() if value is not None}
