"""Providers' credentials are sealed for one name, under a pepper that is not in the database."""

import pytest

from meterhouse.providers.vault import Vault

SECRET = "sk-upstream-secret-1234567890"
OLD, NEW = b"o" * 43, b"n" * 43


def test_what_was_sealed_opens_and_is_never_the_same_twice():
    vault = Vault({1: OLD})
    first, second = vault.seal("openai", SECRET), vault.seal("openai", SECRET)
    assert first != second
    assert SECRET.encode() not in first
    assert vault.open("openai", first) == vault.open("openai", second) == SECRET


def test_it_opens_for_no_other_provider():
    vault = Vault({1: OLD})
    assert vault.open("evil", vault.seal("openai", SECRET)) is None


def test_a_newer_pepper_seals_and_the_older_still_opens():
    sealed = Vault({1: OLD}).seal("openai", SECRET)
    both = Vault({1: OLD, 2: NEW})
    assert both.open("openai", sealed) == SECRET
    again = both.seal("openai", SECRET)
    assert Vault({2: NEW}).open("openai", again) == SECRET
    assert Vault({2: NEW}).open("openai", sealed) is None
    assert Vault({1: NEW}).open("openai", sealed) is None


@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b[:20] + b"x" + b[21:], lambda _: b"", lambda b: b[:10]]
)
def test_what_was_changed_does_not_open(change):
    vault = Vault({1: OLD})
    assert vault.open("openai", change(vault.seal("openai", SECRET))) is None
