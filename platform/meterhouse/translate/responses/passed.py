"""What of a request that is passed through cannot be sent as it came."""

import msgspec
from msgspec import Raw

_items_decoder = msgspec.json.Decoder(list[dict[str, Raw]])


def without_lost_thoughts(given: Raw) -> Raw:
    """Return the input without reasoning items that have no ``encrypted_content``.

    A provider finds such an item by its id in its store; nothing is stored for our tenants, so at best the answer would
    be an error, and at worst somebody else's item. An input without any comes back as it is.
    """
    if not bytes(given).startswith(b"["):
        return given
    items = _items_decoder.decode(given)
    kept = [item for item in items if not _is_lost(item)]
    return given if len(kept) == len(items) else Raw(msgspec.json.encode(kept))


def _is_lost(item: dict[str, Raw]) -> bool:
    kind = item.get("type")
    if kind is None or msgspec.json.decode(kind) != "reasoning":
        return False
    return not msgspec.json.decode(item.get("encrypted_content", Raw(b"null")))
