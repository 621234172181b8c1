"""The issuer's keys over real HTTP: rotation, floods, outages, redirects, and keys that are too weak to be used."""

import asyncio
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from fakes.issuer import Issuer, b64, b64_int, ec_jwk, ec_key, rsa_jwk, rsa_key
from meterhouse.checkup.issuer import check_issuer
from meterhouse.errors import StoreDown
from meterhouse.issuer import MAX_JWKS_BYTES, open_token_verifier, source_of
from meterhouse.keys.jwks import AGAIN_SECONDS, REFRESH_SECONDS, STALE_SECONDS, KeySet, UnusableKeys, read_keys
from meterhouse.settings import Environment, SettingsError

ALGORITHMS = ("RS256", "ES256")
GOOD = rsa_jwk("rsa-1", rsa_key())


class Seconds:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def seconds():
    return Seconds()


@pytest.fixture
def issuer():
    with Issuer() as running:
        yield running


@pytest.fixture
def keys(issuer, seconds):
    return KeySet(source_of(issuer.address), ALGORITHMS, seconds)


async def test_keys_are_read_once_and_again_when_they_are_old(issuer, keys, seconds):
    for _ in range(20):
        assert await keys.find("rsa-1", "RS256") is not None
    assert await keys.find("rsa-1", "ES256") is None
    assert len(issuer.asked) == 1
    seconds.now += REFRESH_SECONDS + 1
    await asyncio.gather(*[keys.find("rsa-1", "RS256") for _ in range(20)])
    assert len(issuer.asked) == 2


async def test_a_new_key_is_found_and_a_withdrawn_one_is_gone(issuer, keys, seconds):
    assert await keys.find("rsa-1", "RS256") is not None
    issuer.keys = [rsa_jwk("rsa-2", rsa_key("second")), ec_jwk("ec-1", ec_key())]
    seconds.now += AGAIN_SECONDS
    assert await keys.find("rsa-2", "RS256") is not None
    assert await keys.find("ec-1", "ES256") is not None
    assert await keys.find("rsa-1", "RS256") is None
    assert len(issuer.asked) == 2


async def test_a_flood_of_unknown_ids_asks_the_issuer_once_in_ten_seconds(issuer, keys, seconds):
    for round_number in range(3):
        found = await asyncio.gather(*[keys.find(f"no-{round_number}-{i}", "RS256") for i in range(200)])
        assert set(found) == {None}
        seconds.now += AGAIN_SECONDS - 0.1
        assert await keys.find("no", "RS256") is None
        seconds.now += 0.1
    assert len(issuer.asked) == 3


async def test_an_outage_of_the_issuer_is_survived_for_a_day(issuer, keys, seconds):
    assert await keys.find("rsa-1", "RS256") is not None
    issuer.answer = lambda _: (503, {}, b"away")
    for _ in range(10):
        seconds.now += STALE_SECONDS / 11
        assert await keys.find("rsa-1", "RS256") is not None
    # It may be one that is new: nobody can tell, which is not the same as a wrong token.
    with pytest.raises(StoreDown):
        await keys.find("rsa-9", "RS256")
    seconds.now += STALE_SECONDS / 10
    with pytest.raises(StoreDown):
        await keys.find("rsa-1", "RS256")


async def test_before_the_first_read_nobody_can_tell(seconds):
    with Issuer() as gone:
        address = gone.address
    keys = KeySet(source_of(address), ALGORITHMS, seconds)
    with pytest.raises(StoreDown):
        await keys.find("rsa-1", "RS256")


async def test_one_slow_read_holds_up_nobody_who_is_known(issuer, keys, seconds):
    assert await keys.find("rsa-1", "RS256") is not None
    seconds.now += REFRESH_SECONDS + 1
    held = asyncio.get_running_loop().create_future()
    begun = asyncio.Event()

    async def fetch():
        begun.set()
        await held
        return json.dumps({"keys": [GOOD]}).encode()

    keys._fetch = fetch
    first = asyncio.ensure_future(keys.find("rsa-1", "RS256"))
    await begun.wait()
    async with asyncio.timeout(1):
        assert await keys.find("rsa-1", "RS256") is not None
    held.set_result(None)
    assert await first is not None


def redirect(target):
    return lambda path: (302, {"location": target}, b"") if path == "/keys" else (200, {}, b'{"keys": []}')


ANSWERS = {
    "a redirect": redirect("/elsewhere"),
    "a redirect to a file": redirect("file:///etc/passwd"),
    "no JSON": lambda _: (200, {}, b"<html>"),
    "no keys": lambda _: (200, {}, b'{"keys": []}'),
    "a list": lambda _: (200, {}, json.dumps([GOOD]).encode()),
    "too long": lambda _: (200, {}, json.dumps({"keys": [GOOD], "more": "x" * MAX_JWKS_BYTES}).encode()),
    "too many": lambda _: (200, {}, json.dumps({"keys": [{**GOOD, "kid": str(i)} for i in range(101)]}).encode()),
    "too deep": lambda _: (200, {}, b"[" * 100_000),
    "an error with keys": lambda _: (404, {}, json.dumps({"keys": [GOOD]}).encode()),
    "nothing": lambda _: (204, {}, b""),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_what_is_no_jwks_changes_nothing(issuer, keys, seconds, answer):
    assert await keys.find("rsa-1", "RS256") is not None
    issuer.answer = answer
    seconds.now += REFRESH_SECONDS + 1
    assert await keys.find("rsa-1", "RS256") is not None
    assert issuer.asked == ["/keys", "/keys"]


async def test_keys_come_from_a_file_too_and_are_taken_up_when_it_changes(tmp_path, seconds):
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [GOOD]}))
    keys = KeySet(source_of(str(path)), ALGORITHMS, seconds)
    assert await keys.find("rsa-1", "RS256") is not None
    path.write_text(json.dumps({"keys": [rsa_jwk("rsa-2", rsa_key("second"))]}))
    seconds.now += AGAIN_SECONDS
    assert await keys.find("rsa-2", "RS256") is not None
    path.unlink()
    seconds.now += REFRESH_SECONDS + 1
    assert await keys.find("rsa-2", "RS256") is not None


def weak_rsa():
    numbers = rsa_key().public_key().public_numbers()
    small = rsa_key("small", 1024).public_key().public_numbers()
    yield "1024 bits", {**GOOD, "n": b64_int(small.n)}
    yield "exponent 1", {**GOOD, "e": b64_int(1)}
    yield "exponent 3", {**GOOD, "e": b64_int(3)}
    yield "even exponent", {**GOOD, "e": b64_int(65_538)}
    yield "huge exponent", {**GOOD, "e": b64_int(2**33 + 1)}
    yield "even modulus", {**GOOD, "n": b64_int(numbers.n - 1)}
    yield "16,384 bits", {**GOOD, "n": b64_int(2**16_383 + 1)}
    yield "modulus 0", {**GOOD, "n": b64_int(0)}
    yield "no modulus", {name: value for name, value in GOOD.items() if name != "n"}
    yield "modulus of another type", {**GOOD, "n": 5}


def other_keys():
    private = rsa_key().private_numbers()
    yield "private", {**GOOD, "d": b64_int(private.d)}
    yield "half private", {**GOOD, "p": b64_int(private.p)}
    yield "symmetric", {"kty": "oct", "kid": "rsa-1", "k": b64(b"k" * 32), "alg": "HS256"}
    yield "symmetric, called RSA", {**GOOD, "kty": "oct"}
    yield "for encryption", {**GOOD, "use": "enc"}
    yield "only for signing", {**GOOD, "key_ops": ["sign"]}
    yield "operations of another type", {**GOOD, "key_ops": 5}
    yield "of an algorithm that is not allowed", {**GOOD, "alg": "RS512"}
    yield "of a symmetric algorithm", {**GOOD, "alg": "HS256"}
    yield "of no algorithm", {**GOOD, "alg": ["RS256"]}
    yield "of another curve", ec_jwk("rsa-1", ec_key("other", "P-384"))
    yield "of a curve's name that is wrong", {**ec_jwk("rsa-1", ec_key("other", "P-384")), "crv": "P-256"}
    yield "a point that is not on the curve", {**ec_jwk("rsa-1", ec_key()), "y": b64(b"\x01" * 32)}
    yield "RSA with a curve", {**GOOD, "crv": "P-256"}
    yield "EdDSA", {"kty": "OKP", "kid": "rsa-1", "crv": "Ed25519", "x": b64(b"x" * 32)}
    yield "without an id", {name: value for name, value in GOOD.items() if name != "kid"}
    yield "with an id of another type", {**GOOD, "kid": 1}
    yield "with an empty id", {**GOOD, "kid": ""}
    yield "no object", "key"
    yield "a certificate only", {"kty": "RSA", "kid": "rsa-1", "x5c": ["MIIB"]}


BAD_KEYS = dict([*weak_rsa(), *other_keys()])


@pytest.mark.parametrize("entry", BAD_KEYS.values(), ids=BAD_KEYS)
def test_a_key_that_is_not_good_is_not_used_and_spoils_no_other(entry):
    with pytest.raises(UnusableKeys):
        read_keys(json.dumps({"keys": [entry]}).encode(), ALGORITHMS)
    beside = {**rsa_jwk("good", rsa_key("second")), "alg": "RS256"}
    found = read_keys(json.dumps({"keys": [entry, beside]}).encode(), ALGORITHMS)
    assert set(found.keys) == {"good"}
    assert len(found.refused) == 1
    assert found.refused[0].startswith("key 1 ")


def test_two_keys_of_one_id_are_both_not_used():
    body = json.dumps({"keys": [GOOD, rsa_jwk("rsa-1", rsa_key("second")), ec_jwk("ec-1", ec_key())]}).encode()
    assert set(read_keys(body, ALGORITHMS).keys) == {"ec-1"}


def test_a_key_serves_the_algorithms_of_its_type_alone():
    body = json.dumps({"keys": [GOOD, ec_jwk("ec-1", ec_key()), ec_jwk("ec-2", ec_key("x", "P-521"))]}).encode()
    found = read_keys(body, ("RS256", "RS512", "ES256", "ES512")).keys
    assert {name: set(kinds) for name, kinds in found.items()} == {
        "rsa-1": {"RS256", "RS512"},
        "ec-1": {"ES256"},
        "ec-2": {"ES512"},
    }


def test_a_key_of_4096_bits_is_good():
    key: rsa.RSAPrivateKey = rsa_key("long", 3072)
    assert read_keys(json.dumps({"keys": [rsa_jwk("long", key)]}).encode(), ALGORITHMS).keys


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ISSUER": "https://i"}, "METERHOUSE_OIDC_AUDIENCE is not set"),
        ({"ISSUER": "https://i", "AUDIENCE": "a"}, "METERHOUSE_OIDC_JWKS is not set"),
        ({"AUDIENCE": "a", "JWKS": "https://i/keys"}, "METERHOUSE_OIDC_ISSUER is not set"),
        ({"ISSUER": "https://i", "AUDIENCE": "a", "JWKS": "http://example.com/keys"}, "expected an https address"),
        ({"ISSUER": "https://i", "AUDIENCE": "a", "JWKS": "http://127.0.0.1.example.com/"}, "expected an https"),
        ({"ISSUER": "https://i", "AUDIENCE": "a", "JWKS": "ftp://127.0.0.1/keys"}, "expected an https address"),
        ({"ALGORITHMS": "HS256"}, "METERHOUSE_OIDC_ALGORITHMS: expected any of"),
        ({"ALGORITHMS": "RS256,none"}, "METERHOUSE_OIDC_ALGORITHMS: expected any of"),
        ({"ALGORITHMS": ""}, None),
        ({"LEEWAY_SECONDS": "61"}, "METERHOUSE_OIDC_LEEWAY_SECONDS"),
        ({"MAX_LIFETIME_SECONDS": "0"}, "METERHOUSE_OIDC_MAX_LIFETIME_SECONDS"),
    ],
    ids=str,
)
def test_settings_that_would_let_anybody_in_are_refused(values, said):
    async def find(_name):
        return None

    def read():
        environment = Environment({f"METERHOUSE_OIDC_{name}": value for name, value in values.items()})
        return open_token_verifier(environment.settings(), None, find)

    if said is None:
        assert read() is None
        return
    with pytest.raises(SettingsError, match=said):
        read()


def look(*keys, algorithms="RS256", **values):
    with Issuer(*keys) as issuer:
        given = {"ISSUER": "https://i", "AUDIENCE": "a", "JWKS": issuer.address, "ALGORITHMS": algorithms, **values}
        environment = {f"METERHOUSE_OIDC_{name}": value for name, value in given.items()}
        return [(one.state, one.text) for one in check_issuer(Environment(environment).settings())]


def test_check_says_whether_anybody_can_sign_in():
    assert check_issuer(Environment({}).settings()) == []
    assert look(GOOD) == [("ok", "1 keys of https://i can be used.")]
    [(state, _), (second, why)] = look(GOOD, {**GOOD, "kid": "other", "use": "enc"})
    assert (state, second) == ("ok", "warning")
    assert why == "key 2 is not for signatures, and is not used."
    [(state, why)] = look(GOOD, algorithms="ES256")
    assert (state, "nobody can sign in" in why) == ("failed", True)
    [(state, why)] = look(GOOD, JWKS="/missing/jwks.json")
    assert (state, "jwks.json" in why) == ("failed", True)
    [(state, why)] = look(GOOD, AUDIENCE="")
    assert (state, why) == (
        "failed",
        "METERHOUSE_OIDC_AUDIENCE is not set: sign-in with tokens needs issuer, audience and JWKS.",
    )
