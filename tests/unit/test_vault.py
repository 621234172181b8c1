"""Providers' credentials are sealed for one name and address, under a pepper that is not in the database."""

import pytest

from meterhouse.providers.vault import Vault

SECRET = "sk-upstream-secret-1234567890"
HERE = ("openai", None, "https://api.openai.com/v1", None, None)
OLD, NEW = b"o" * 43, b"n" * 43


def test_what_was_sealed_opens_and_is_never_the_same_twice():
    vault = Vault({1: OLD})
    first, second = vault.seal(HERE, SECRET), vault.seal(HERE, SECRET)
    assert first != second
    assert SECRET.encode() not in first
    assert vault.open(HERE, first) == vault.open(HERE, second) == SECRET


@pytest.mark.parametrize("part", range(5))
def test_it_opens_for_no_other_provider_and_no_other_address(part):
    vault = Vault({1: OLD})
    elsewhere = (*HERE[:part], "evil", *HERE[part + 1 :])
    assert vault.open(elsewhere, vault.seal(HERE, SECRET)) is None


def test_a_newer_pepper_seals_and_the_older_still_opens():
    sealed = Vault({1: OLD}).seal(HERE, SECRET)
    both = Vault({1: OLD, 2: NEW})
    assert both.open(HERE, sealed) == SECRET
    again = both.seal(HERE, SECRET)
    assert Vault({2: NEW}).open(HERE, again) == SECRET
    assert Vault({2: NEW}).open(HERE, sealed) is None
    assert Vault({1: NEW}).open(HERE, sealed) is None


@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b[:20] + b"x" + b[21:], lambda _: b"", lambda b: b[:10]]
)
def test_what_was_changed_does_not_open(change):
    vault = Vault({1: OLD})
    assert vault.open(HERE, change(vault.seal(HERE, SECRET))) is None
