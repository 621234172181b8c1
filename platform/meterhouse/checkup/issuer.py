"""Whether the identity provider's keys can be read, and which of them are not used. Changes nothing.

Not here: what makes a key good (``keys.jwks``).
"""

import asyncio

from meterhouse.checkup.finding import Finding, failed, ok, warning
from meterhouse.issuer import source_of, token_policy
from meterhouse.keys.jwks import UnusableKeys, read_keys
from meterhouse.settings import Settings, SettingsError

SUBJECT = "identity provider"


def check_issuer(settings: Settings) -> list[Finding]:
    """Look at it; nothing is found where none is set."""
    try:
        policy = token_policy(settings)
        if policy is None or settings.oidc_jwks is None:
            return []
        found = read_keys(asyncio.run(source_of(settings.oidc_jwks)()), policy.algorithms)
    except SettingsError as error:
        return [failed(SUBJECT, str(error))]
    except (OSError, UnusableKeys) as error:
        return [failed(SUBJECT, f"nobody can sign in with a token: {error}.")]
    text = f"{len(found.keys)} keys of {policy.issuer} can be used."
    return [ok(SUBJECT, text), *(warning(SUBJECT, f"{reason}, and is not used.") for reason in found.refused)]
