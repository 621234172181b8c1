"""Which secrets are none: placeholders out of an example, and what everybody tries first. Knows no setting."""

import re

PLACEHOLDERS = ("changeme", "change-me", "change_me", "example", "placeholder", "replace-me", "your-")
"""Long enough that none occurs in what was made by chance."""
SHORT_PLACEHOLDER = re.compile(r"(?<![a-z0-9])todo(?![a-z0-9])")
"""One of 25,000 keys of 43 letters and digits has these four in a row."""
FIRST_TRIED = frozenset(
    {"admin", "default", "guest", "letmein", "meterhouse", "pass", "passw0rd", "password", "postgres", "qwerty"}
    | {"redis", "root", "secret", "test", "user", "welcome", "1234", "12345", "123456", "1234567", "12345678"}
)
LEAST_DIFFERENT = 10
"""Fewer different characters than these are a pattern; 48 hexadecimal digits by chance have 15 of 16."""


def is_guessable_key(secret: str) -> bool:
    """Whether a secret that was to be made by chance is a pattern or a placeholder."""
    return len(set(secret)) < LEAST_DIFFERENT or _is_placeholder(secret)


def is_guessable_password(password: str, user: str | None = None) -> bool:
    """Whether a password is the user's name, a placeholder, or among those that everybody tries first."""
    folded = password.lower()
    return folded in FIRST_TRIED or folded == (user or "").lower() or _is_placeholder(password)


def _is_placeholder(text: str) -> bool:
    folded = text.lower()
    return any(word in folded for word in PLACEHOLDERS) or SHORT_PLACEHOLDER.search(folded) is not None
