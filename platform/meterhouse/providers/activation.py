"""Switches providers on: from what an operator set to a row with an address and a credential.

Invariant: what cannot work is refused with a text that says what to change, and that shows no credential. Not here:
where the settings come from (the environment, the database), what a provider serves (``routes``).
"""

from dataclasses import replace
from urllib.parse import urlsplit

from yarl import URL

from meterhouse.providers.address import check_public
from meterhouse.providers.catalog import OPENAI_COMPATIBLE, PROVIDERS, SIMULATOR, find_provider, named_provider
from meterhouse.providers.provider import ActiveProvider, Provider, ProviderSetting
from meterhouse.providers.tool_text import read_formats, read_handling

_PLACE = "{workspace}"


def activate(setting: ProviderSetting) -> ActiveProvider | None:
    """Return the provider that a setting switches on, or None: it has neither a credential nor an address.

    Raises:
        ValueError: an unknown provider without a base URL, or a base URL that is none.
    """
    if SIMULATOR in {setting.name, setting.kind}:
        raise ValueError("the simulator is no provider to configure; it is switched on or off")
    if not is_provider_name(setting.name):
        raise ValueError(f"provider name {setting.name!r}: use lower-case letters, digits, hyphens and underscores")
    if setting.credential is None and setting.base_url is None and setting.region is None:
        return None
    row = _row_of(setting)
    if setting.shows_all_output:
        row = replace(row, shows_all_output=True)
    if setting.forwards_trace:
        row = replace(row, forwards_trace=True)
    if setting.credential is not None and not (setting.credential.isascii() and setting.credential.isprintable()):
        raise ValueError(f"provider {setting.name}: its credential has characters that no header can carry")
    base_url = setting.base_url or _region_url(row, setting) or row.base_url
    if base_url is None:
        raise ValueError(f"provider {setting.name} needs a base URL")
    normal = _normal_base_url(row, base_url)
    formats = read_formats(setting.name, setting.tool_call_format)
    if setting.is_public_only:
        check_public(normal)
    return ActiveProvider(
        provider=row,
        base_url=normal,
        credential=setting.credential,
        models=setting.models,
        is_public_only=setting.is_public_only,
        tool_call_formats=formats,
        tools=read_handling(setting.name, setting.tools, formats),
    )


def is_provider_name(name: str) -> bool:
    """Whether a name can be a provider's: it appears in settings, ids, metrics and before a slash."""
    return bool(name) and name.isascii() and name.replace("-", "").replace("_", "").isalnum() and name == name.lower()


def _row_of(setting: ProviderSetting) -> Provider:
    if setting.kind is not None:
        row = find_provider(setting.kind)
        if row is None:
            raise ValueError(f"provider {setting.name}: there is no kind {setting.kind!r}; these are known: {_known()}")
        return named_provider(PROVIDERS[row.row_name], setting.name)
    row = find_provider(setting.name)
    if row is not None:
        return row
    if setting.base_url is None:
        raise ValueError(f"provider {setting.name} needs a base URL; without one these are known: {_known()}")
    return named_provider(PROVIDERS[OPENAI_COMPATIBLE], setting.name)


def _known() -> str:
    return ", ".join(name for name in PROVIDERS if name not in {SIMULATOR, OPENAI_COMPATIBLE})


def _region_url(row: Provider, setting: ProviderSetting) -> str | None:
    if setting.region is None:
        return None
    url = row.regions.get(setting.region)
    if url is None:
        known = ", ".join(row.regions) or "none"
        raise ValueError(f"provider {row.name} has no region {setting.region!r}; it has: {known}")
    if _PLACE not in url:
        return url
    workspace = setting.workspace or ""
    if not (workspace.isascii() and workspace.replace("-", "").isalnum()):
        raise ValueError(f"provider {row.name}: the region {setting.region} needs the id of a workspace")
    return url.replace(_PLACE, workspace)


def _normal_base_url(row: Provider, base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"provider {row.name}: base URL {base_url!r} is no http(s) address")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"provider {row.name}: a base URL has no user, query or fragment")
    plain = _as_connected_to(row, base_url).rstrip("/")
    if row.base_url_suffix and not parts.path.rstrip("/"):
        return plain + row.base_url_suffix
    # People paste the address of Ollama's /v1; its native wire starts above it.
    return plain.removesuffix("/v1") if row.wire == "ollama" else plain


def _as_connected_to(row: Provider, base_url: str) -> str:
    """Return an address as the HTTP client reads it: what is checked here is what is connected to.

    Raises:
        ValueError: It could never be connected to.
    """
    try:
        url = URL(base_url)
        # As the look-up of a name encodes it: a label that is empty or too long fails here, not at the first request.
        (url.raw_host or "").encode("idna")
        return str(url)
    except ValueError:
        raise ValueError(
            f"provider {row.name}: base URL {base_url!r} has a host or port that there cannot be"
        ) from None
