"""Every known way to pass a JWT off as another one is refused, with one text for all of them."""

import base64
import json
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from fakes.issuer import (
    AUDIENCE,
    ISSUER,
    Issuer,
    b64,
    claims_at,
    ec_jwk,
    ec_key,
    rsa_jwk,
    rsa_key,
    sign,
)
from meterhouse.errors import InvalidKey, NotPermitted
from meterhouse.identity import Role
from meterhouse.issuer import source_of
from meterhouse.keys.jwks import KeySet
from meterhouse.keys.tokens import MAX_TOKEN_CHARACTERS, TokenPolicy, TokenVerifier

NOW = 1_790_000_000
HEADER = {"alg": "RS256", "typ": "JWT", "kid": "rsa-1"}
KEYS = [rsa_jwk("rsa-1", rsa_key()), ec_jwk("ec-1", ec_key(), alg="ES256"), rsa_jwk("rsa-2", rsa_key("second"))]


class StoppedClock:
    def now_ms(self) -> int:
        return NOW * 1000 + 999


@pytest.fixture(scope="module")
def issuer():
    with Issuer(*KEYS) as running:
        yield running


def policy(**changes: Any) -> TokenPolicy:
    plain: dict[str, Any] = {
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "algorithms": frozenset({"RS256", "ES256"}),
        "role_claim": "meterhouse_role",
        "organization_claim": "meterhouse_organization",
        "id_claim": "jti",
        "leeway_seconds": 30,
        "max_lifetime_seconds": 900,
    }
    return TokenPolicy(**{**plain, **changes})


REVOKED = {"token-revoked"}


async def is_revoked(token_id: str) -> bool:
    return token_id in REVOKED


@pytest.fixture
def verifier(issuer):
    def make(**changes: Any) -> TokenVerifier:
        made = policy(**changes)
        return TokenVerifier(
            made, KeySet(source_of(issuer.address), made.algorithms, time.monotonic), StoppedClock(), is_revoked
        )

    return make


def claims(**changes: Any) -> dict[str, Any]:
    return claims_at(NOW, **changes)


def public_forms() -> dict[str, bytes]:
    """Return the RSA public key in every form in which it could be taken for a shared secret."""
    key = rsa_key().public_key()
    spki, pkcs1 = serialization.PublicFormat.SubjectPublicKeyInfo, serialization.PublicFormat.PKCS1
    pem, der = serialization.Encoding.PEM, serialization.Encoding.DER
    ssh = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return {
        "pem": key.public_bytes(pem, spki),
        "pem without its end": key.public_bytes(pem, spki).strip(),
        "pkcs1 pem": key.public_bytes(pem, pkcs1),
        "der": key.public_bytes(der, spki),
        "pkcs1 der": key.public_bytes(der, pkcs1),
        "ssh": ssh,
        "jwk": json.dumps(KEYS[0]).encode(),
        "modulus": base64.urlsafe_b64decode(KEYS[0]["n"] + "=="),
        "empty": b"",
    }


def shared_secret_tokens():
    for name, secret in public_forms().items():
        for algorithm in ("HS256", "HS384", "HS512"):
            yield f"{algorithm} with {name}", sign({**HEADER, "alg": algorithm}, claims(), secret, algorithm)
        yield f"HS256 called RS256 with {name}", sign(HEADER, claims(), secret, "HS256")


def unsigned_tokens():
    for name in ("none", "None", "NONE", "nOnE", "", "null"):
        header = {**HEADER, "alg": name}
        yield f"alg {name!r}, no signature", sign(header, claims(), None, "none")
        yield f"alg {name!r}, empty last part kept", f"{b64(json.dumps(header).encode())}.{b64(b'{}')}.AA"
    yield "no signature", sign(HEADER, claims(), None, "none")
    good = sign(HEADER, claims(), rsa_key(), "RS256")
    head, body, signature = good.split(".")
    yield "signature of zeroes", f"{head}.{body}.{b64(bytes(256))}"
    yield "signature cut", f"{head}.{body}.{signature[:-8]}"
    yield "other claims under a good signature", f"{head}.{b64(json.dumps(claims(sub='root')).encode())}.{signature}"
    for value in (None, 5, ["RS256"], {"a": 1}, "RS256 ", "rs256", "RS384", "PS256", "ES384", "dir", "RSA-OAEP"):
        yield f"alg {value!r}", sign({**HEADER, "alg": value}, claims(), rsa_key(), "RS256")
    yield "no alg", sign({"typ": "JWT", "kid": "rsa-1"}, claims(), rsa_key(), "RS256")
    zero = b64(bytes(64))
    ec_head = b64(json.dumps({**HEADER, "alg": "ES256", "kid": "ec-1"}).encode())
    yield "ECDSA with r and s of 0", f"{ec_head}.{body}.{zero}"


def wrong_keys():
    yield "another's key under our id", sign(HEADER, claims(), rsa_key("stranger"), "RS256")
    yield "our second key under the first's id", sign(HEADER, claims(), rsa_key("second"), "RS256")
    yield "RS256 with the id of the EC key", sign({**HEADER, "kid": "ec-1"}, claims(), rsa_key(), "RS256")
    yield "ES256 with the id of the RSA key", sign({**HEADER, "alg": "ES256"}, claims(), ec_key(), "ES256")
    for key_id in (
        None,
        "",
        "rsa-1 ",
        "RSA-1",
        "rsa-3",
        "../rsa-1",
        "rsa-1\x00",
        1,
        ["rsa-1"],
        "x" * 300,
        "' OR 1=1 --",
    ):
        yield f"kid {key_id!r}"[:40], sign({**HEADER, "kid": key_id}, claims(), rsa_key(), "RS256")
    yield "no kid", sign({"alg": "RS256", "typ": "JWT"}, claims(), rsa_key(), "RS256")


def headers():
    stranger = rsa_jwk("rsa-1", rsa_key("stranger"))
    fields = {
        "jwk": stranger,
        "jku": "http://127.0.0.1:9/keys",
        "x5u": "http://127.0.0.1:9/cert",
        "x5c": ["MIIB"],
        "crit": ["exp"],
        "b64": False,
        "zip": "DEF",
        "enc": "A256GCM",
        "cty": "JWT",
    }
    for name, value in fields.items():
        yield f"header {name}", sign({**HEADER, name: value}, claims(), rsa_key(), "RS256")
        yield f"header {name}: null", sign({**HEADER, name: None}, claims(), rsa_key(), "RS256")
    yield "its own key in the header", sign({**HEADER, "jwk": stranger}, claims(), rsa_key("stranger"), "RS256")
    yield "empty crit", sign({**HEADER, "crit": []}, claims(), rsa_key(), "RS256")
    for kind in (None, "", "JWE", "JOSE", "secevent+jwt", "dpop+jwt", 1, ["JWT"]):
        yield f"typ {kind!r}", sign({**HEADER, "typ": kind}, claims(), rsa_key(), "RS256")
    yield "no typ", sign({"alg": "RS256", "kid": "rsa-1"}, claims(), rsa_key(), "RS256")
    doubled = '{"alg":"none","alg":"RS256","typ":"JWT","kid":"rsa-1"}'
    yield "alg twice", sign(doubled, claims(), rsa_key(), "RS256")
    yield "kid twice", sign('{"alg":"RS256","typ":"JWT","kid":"rsa-2","kid":"rsa-1"}', claims(), rsa_key(), "RS256")
    for text in ("[]", "null", '"RS256"', "{", "", "NaN"):
        yield f"header {text!r}", sign(text, claims(), rsa_key(), "RS256")
    utf16 = json.dumps(HEADER).encode("utf-16")
    yield "header in UTF-16", f"{b64(utf16)}.{b64(json.dumps(claims()).encode())}.AAAA"


def wrong_claims():
    changes = {
        "iss": (None, "", "https://login.example.com", ISSUER.upper(), [ISSUER], 1, "https://evil.example/"),
        "aud": (None, "", "other", ["other"], [AUDIENCE, 1], {"a": AUDIENCE}, AUDIENCE.upper(), [[AUDIENCE]], []),
        "sub": (None, "", 5, ["user-1"], "x" * 257, "user\x00", "user\n"),
        "jti": (None, "", 5, "x" * 257, "token-revoked"),
        "exp": (None, str(NOW + 600), NOW + 600.0, True, [NOW], NOW - 31, -1, 0, 2**63, NOW + 901, NOW + 10**9),
        "iat": (None, str(NOW), float(NOW), False, NOW + 31, NOW - 301, -1, NOW + 600),
        "nbf": (str(NOW), NOW + 0.5, True, NOW + 31, 2**70, "NaN", [NOW]),
    }
    for name, values in changes.items():
        for value in values:
            yield f"{name} {value!r}"[:50], sign(HEADER, claims(**{name: value}), rsa_key(), "RS256")
    text = json.dumps(claims())
    for number in ("NaN", "Infinity", "-Infinity", "1e400", "1e9"):
        yield f"exp {number}", sign(HEADER, text.replace(str(NOW + 600), number), rsa_key(), "RS256")
    yield "exp twice", sign(HEADER, text[:-1] + f', "exp": {NOW + 700}}}', rsa_key(), "RS256")
    yield "role twice", sign(HEADER, text[:-1] + ', "meterhouse_role": "reader"}', rsa_key(), "RS256")
    for body in ("[]", "null", "5", "", "{", '{"a":' * 500 + "1" + "}" * 500, b"\xff\xfe", b"\x00" * 10):
        yield f"claims {body!r}"[:30], sign(HEADER, body, rsa_key(), "RS256")


def shapes():
    good = sign(HEADER, claims(), rsa_key(), "RS256")
    head, body, signature = good.split(".")
    yield "five parts", f"{good}.AAAA.AAAA"
    yield "an encrypted token", ".".join([b64(b'{"alg":"dir","enc":"A256GCM"}'), "", "AAAA", "AAAA", "AAAA"])
    yield "two parts", f"{head}.{body}"
    yield "one part", head
    yield "four parts", f"{good}."
    yield "nothing", ""
    yield "dots", ".."
    yield "padding", f"{head}==.{body}.{signature}"
    yield "plain base64", f"{head}.{body}.{signature[:-2]}+/"
    yield "a line break", f"{good}\n"
    yield "a blank in front", f" {good}"
    yield "not canonical", f"{head}.{body}.{signature[:-1]}{'B' if signature[-1] != 'B' else 'C'}"
    yield "letters of another script", good.replace("e", "\u0435", 1)
    yield "a fullwidth dot", good.replace(".", "\uff0e")
    yield "longer than allowed", sign(HEADER, claims(more="x" * MAX_TOKEN_CHARACTERS), rsa_key(), "RS256")
    yield "a megabyte", "a" * 500_000 + "." + "b" * 500_000 + ".c"
    yield "a header that opens 2,000 lists", f"{b64(b'[' * 2000)}.{body}.{signature}"
    yield "JSON instead", json.dumps({"header": HEADER, "payload": claims(), "signature": signature})


TABLES = {
    table.__name__: dict(table())
    for table in (shared_secret_tokens, unsigned_tokens, wrong_keys, headers, wrong_claims, shapes)
}


async def refusal_of(verifier: TokenVerifier, name: str, token: str) -> InvalidKey:
    try:
        await verifier.verify(token)
    except InvalidKey as refusal:
        return refusal
    raise AssertionError(f"{name} opened")


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
async def test_every_attack_of_a_table_is_refused(verifier, issuer, table):
    one = verifier()
    asked = len(issuer.asked)
    for name, token in table.items():
        refusal = await refusal_of(one, name, token)
        assert refusal.message.startswith("This token is not valid here."), name
        assert refusal.detail.startswith("token: "), name
        assert len(refusal.detail) < 100, name
    # Where keys come from is ours to say: nothing in a token makes us ask anywhere else, or more than once.
    assert issuer.asked[asked:] in ([], ["/keys"])
    assert await one.verify(sign(HEADER, claims(), rsa_key(), "RS256"))


def test_the_tables_are_as_long_as_they_look():
    assert sum(map(len, TABLES.values())) > 200


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"aud": [AUDIENCE, "another"]},
        {"exp": NOW - 29, "iat": NOW - 600},
        {"iat": NOW + 30, "exp": NOW + 600},
        {"nbf": NOW + 30},
        {"iat": NOW, "exp": NOW + 900},
        {"at_hash": "MTIzNDU2Nzg5MDEyMzQ1Ng"},
        {"more": {"nested": [1.5, None, True]}},
    ],
    ids=str,
)
async def test_a_good_token_opens(verifier, changes):
    found = await verifier().verify(sign(HEADER, claims(**changes), rsa_key(), "RS256"))
    assert (found.subject, found.role, found.organization_id, found.token_id) == (
        "user-1",
        Role.OPERATOR,
        None,
        "token-1",
    )


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "AT+JWT"])
async def test_both_types_of_key_and_of_token_open(verifier, kind):
    for header, key in (
        ({**HEADER, "typ": kind, "x5t": "aGFzaA", "note": "unknown fields are ignored"}, rsa_key()),
        ({**HEADER, "typ": kind, "alg": "ES256", "kid": "ec-1"}, ec_key()),
    ):
        assert (await verifier().verify(sign(header, claims(), key, header["alg"]))).subject == "user-1"


async def test_an_algorithm_that_is_not_set_is_refused_whatever_the_issuer_has(verifier):
    only = verifier(algorithms=frozenset({"ES256"}))
    with pytest.raises(InvalidKey):
        await only.verify(sign(HEADER, claims(), rsa_key(), "RS256"))
    assert await only.verify(sign({**HEADER, "alg": "ES256", "kid": "ec-1"}, claims(), ec_key(), "ES256"))


async def test_two_tokens_that_begin_alike_are_never_the_same_identity(verifier):
    one = verifier()
    tokens = [sign(HEADER, claims(sub=f"user-{i}"), rsa_key(), "RS256") for i in range(20)]
    shared = min(len(token) for token in tokens)
    assert len({token[:64] for token in tokens}) < len(tokens), shared
    assert [(await one.verify(token)).subject for token in tokens] == [f"user-{i}" for i in range(20)]


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({"meterhouse_role": None}, {}),
        ({"meterhouse_role": "admin"}, {}),
        ({"meterhouse_role": "OPERATOR"}, {}),
        ({"meterhouse_role": ["operator", "reader"]}, {}),
        ({"meterhouse_role": ["operator", 5]}, {}),
        ({"meterhouse_role": {"operator": True}}, {}),
        ({"meterhouse_role": True}, {}),
        ({"meterhouse_role": "owner"}, {}),
        ({"meterhouse_role": "owner", "meterhouse_organization": ["org_1"]}, {}),
        ({"meterhouse_role": "reader", "meterhouse_organization": ""}, {}),
        ({"/realm_access/roles": "operator"}, {"role_claim": "/realm_access/roles"}),
        ({"realm_access": "operator"}, {"role_claim": "/realm_access/roles"}),
    ],
    ids=str,
)
async def test_a_good_token_without_a_role_here_may_do_nothing(verifier, given, settings):
    with pytest.raises(NotPermitted, match="gives no role here"):
        await verifier(**settings).verify(sign(HEADER, claims(**given), rsa_key(), "RS256"))


async def test_role_and_organization_come_from_the_claims_that_are_set(verifier):
    owner = {"meterhouse_role": ["staff", "owner"], "meterhouse_organization": "org_1"}
    found = await verifier().verify(sign(HEADER, claims(**owner), rsa_key(), "RS256"))
    assert (found.role, found.organization_id) == (Role.OWNER, "org_1")
    nested = {"realm_access": {"roles": ["x", "reader"]}, "https://example.com/org": "org_2", "meterhouse_role": None}
    one = verifier(role_claim="/realm_access/roles", organization_claim="https://example.com/org")
    found = await one.verify(sign(HEADER, claims(**nested), rsa_key(), "RS256"))
    assert (found.role, found.organization_id) == (Role.READER, "org_2")
    named = verifier(id_claim="uti")
    assert (await named.verify(sign(HEADER, claims(jti=None, uti="u-1"), rsa_key(), "RS256"))).token_id == "u-1"
