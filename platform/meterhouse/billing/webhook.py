"""Signs what is posted to an organization's own address, as the Standard Webhooks specification says.

Three headers: an id that stays the same over all tries, the moment of this try, and ``v1,`` with the base64 of the
HMAC-SHA256 over ``id.timestamp.body``; so any of its libraries verifies them. The secret is derived from a pepper and
the webhook's id: it is shown once and stored nowhere. Not here: sending (``billing.outbound``).
"""

import base64
import hmac

from meterhouse.db.webhooks import Webhook
from meterhouse.keys.secret import Peppers

SECRET_PREFIX = "whsec_"  # noqa: S105 - the specification's prefix
_PURPOSE = b"meterhouse webhook 1"


class WebhookSigner:
    """Signs with the secrets of webhooks."""

    def __init__(self, peppers: Peppers) -> None:
        """Take the peppers; the newest makes new secrets, and each stays with what it has made."""
        self._roots = peppers.derive(_PURPOSE)

    @property
    def newest_version(self) -> int:
        """The version of the pepper that secrets of new webhooks are derived from."""
        return max(self._roots)

    def secret_of(self, webhook: Webhook) -> str | None:
        """Return a webhook's secret as its owner is shown it; None when its pepper is gone."""
        key = self._key_of(webhook)
        return None if key is None else SECRET_PREFIX + base64.b64encode(key).decode()

    def sign(self, webhook: Webhook, message_id: str, now_seconds: int, body: bytes) -> dict[str, str] | None:
        """Return the headers of a try; None when the webhook's pepper is gone."""
        key = self._key_of(webhook)
        if key is None:
            return None
        signature = hmac.digest(key, f"{message_id}.{now_seconds}.".encode() + body, "sha256")
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(now_seconds),
            "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
        }

    def _key_of(self, webhook: Webhook) -> bytes | None:
        root = self._roots.get(webhook.pepper_version)
        return None if root is None else hmac.digest(root, webhook.id.encode(), "sha256")
