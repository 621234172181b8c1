import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from meterhouse.ids import BASE62
from meterhouse.keys.secret import MAX_LENGTH, Peppers, looks_like_ours, make, parse

ENVIRONMENTS = st.from_regex(r"[a-z][a-z0-9]{0,11}", fullmatch=True)
PEPPER = b"p" * 32
OTHER_PEPPER = b"q" * 32


@given(environment=ENVIRONMENTS)
def test_a_made_key_parses_to_what_it_was_made_of(environment):
    made = make(environment)
    parsed = parse(made.value)
    assert parsed is not None
    assert (parsed.environment, parsed.key_id, parsed.value) == (environment, made.key_id, made.value)
    assert made.value.startswith(f"sk-mh-{environment}-{made.key_id.removeprefix('key_')}-")
    assert parsed.is_admin == (environment == "admin")


@given(at=st.integers(0, 61), step=st.integers(1, 64))
def test_every_single_wrong_character_is_noticed(at, step):
    value, alphabet = make("live").value, BASE62 + "-_ "
    wrong = alphabet[(alphabet.index(value[at]) + step) % len(alphabet)]
    assert wrong != value[at]
    assert parse(value[:at] + wrong + value[at + 1 :]) is None


@given(at=st.integers(0, 53))
def test_two_swapped_neighbours_are_noticed(at):
    value = make("live").value
    swapped = value[:at] + value[at + 1] + value[at] + value[at + 2 :]
    assert swapped == value or parse(swapped) is None


@given(at=st.integers(0, 61), extra=st.sampled_from(BASE62))
def test_a_lost_or_an_added_character_is_noticed(at, extra):
    value = make("live").value
    assert parse(value[:at] + extra + value[at:]) is None
    assert parse(value[: min(at, 60)] + value[min(at, 60) + 1 :]) is None


@given(text=st.text(max_size=400))
def test_other_texts_are_no_keys(text):
    assert parse(text) is None


@pytest.mark.parametrize("around", [" {}", "{} ", "{}\n", "\n{}", "{}\x00", "Bearer {}"])
def test_nothing_may_stand_around_a_key(around):
    assert parse(around.format(make("live").value)) is None


def test_a_very_long_text_is_refused_before_it_is_read():
    assert parse("sk-mh-" + "a" * MAX_LENGTH) is None


def test_keys_have_one_length_a_safe_alphabet_and_differ():
    made = [make("live") for _ in range(200)]
    assert len({secret.value for secret in made}) == len({secret.key_id for secret in made}) == 200
    assert all(len(secret.value) == 62 for secret in made)
    assert set("".join(secret.value for secret in made)) <= set(string.ascii_letters + string.digits + "-")


def test_neither_the_redacted_form_nor_a_repr_shows_any_of_the_secret():
    made = make("live")
    secret = made.value[-38:]
    parsed = parse(made.value)
    shown = made.redacted + repr(made) + repr(parsed) + pretty_repr(parsed)
    assert made.redacted == made.value[:-38] + "..."
    assert not any(secret[i : i + 4] in shown for i in range(len(secret) - 3))


@pytest.mark.parametrize("environment", ["", "Live", "1a", "a-b", "a" * 13, "é", "a\n"])
def test_an_environment_is_a_short_lower_case_word(environment):
    with pytest.raises(ValueError, match="not a key environment"):
        make(environment)


def test_a_key_is_verified_with_the_pepper_it_was_hashed_with():
    value = make("live").value
    version, hashed = Peppers({1: PEPPER}).hash(value)
    rotated = Peppers({1: PEPPER, 2: OTHER_PEPPER})
    assert (version, len(hashed)) == (1, 64)
    assert value not in hashed
    assert rotated.verify(value, version, hashed)
    assert rotated.hash(value)[0] == 2
    assert not rotated.verify(value, 2, hashed)
    assert not rotated.verify(make("live").value, version, hashed)


def test_a_key_whose_pepper_is_gone_opens_nothing():
    value = make("live").value
    version, hashed = Peppers({1: PEPPER}).hash(value)
    assert not Peppers({2: PEPPER}).verify(value, version, hashed)


def test_an_older_pepper_can_be_kept_in_use():
    peppers = Peppers({1: PEPPER, 2: OTHER_PEPPER}, version=1)
    assert peppers.version == peppers.hash("value")[0] == 1
    with pytest.raises(ValueError, match="no pepper of version 3"):
        Peppers({1: PEPPER}, version=3)


def test_nothing_is_never_verified():
    assert not Peppers({1: PEPPER}).verify_nothing(make("live").value)


@pytest.mark.parametrize(("peppers", "message"), [({}, "at least one"), ({1: b"short"}, "32 bytes")])
def test_weak_peppers_are_refused(peppers, message):
    with pytest.raises(ValueError, match=message):
        Peppers(peppers)


def test_a_value_in_our_format_is_never_a_providers_credential():
    assert looks_like_ours(make("live").value)
    assert looks_like_ours(f' "{make("admin").value[:20]}')
    assert not looks_like_ours("sk-proj-abc")
    assert not looks_like_ours("")
