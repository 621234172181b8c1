"""Client tokens: what we wrote is read, and nothing else, whoever signed it and however."""

import base64
import hashlib
import hmac
import json

import msgspec
import pytest
from jose import jws

from meterhouse.errors import InvalidKey
from meterhouse.identity import Principal
from meterhouse.keys.client_tokens import AUDIENCE, ISSUER, ClientTokens, Grant, find_token, key_id_of, narrow
from meterhouse.keys.secret import Peppers

NOW = 1_800_000_000
PEPPER = b"p" * 43
GRANT = Grant(
    iss=ISSUER,
    aud=AUDIENCE,
    sub="key_1",
    org="org_1",
    jti="key_1.abc",
    iat=NOW,
    exp=NOW + 600,
    cap=5,
    models=("gpt",),
    origins=("https://a.example",),
)
TOKENS = ClientTokens(Peppers({1: PEPPER, 2: b"q" * 43}))
SECRET = hmac.digest(b"q" * 43, b"meterhouse client token 1", "sha256").hex()


def part(value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(header=None, claims=None, secret=SECRET, digest="sha256"):
    """Sign anything as HS256 would, without a library that might refuse."""
    head = {"alg": "HS256", "typ": "client+jwt", "kid": "2"} if header is None else header
    body = msgspec.to_builtins(GRANT) if claims is None else claims
    text = f"{part(head)}.{part(body)}"
    return f"{text}.{part(hmac.digest(secret.encode(), text.encode(), digest))}"


def changed(**claims):
    return {**msgspec.to_builtins(GRANT), **claims}


def test_what_was_made_is_read_until_it_expires_and_also_after_a_new_pepper():
    token = TOKENS.make(GRANT)
    assert TOKENS.read(token, NOW * 1000) == GRANT
    assert TOKENS.read(token, (NOW + 600) * 1000 - 1) == GRANT
    assert TOKENS.read(forged(), NOW * 1000) == GRANT
    old = ClientTokens(Peppers({1: PEPPER})).make(GRANT)
    assert TOKENS.read(old, NOW * 1000) == GRANT
    for late_ms in ((NOW + 600) * 1000, (NOW + 10**6) * 1000):
        with pytest.raises(InvalidKey):
            TOKENS.read(token, late_ms)


HEAD = {"alg": "HS256", "typ": "client+jwt", "kid": "2"}
ATTACKS = {
    "none": forged({**HEAD, "alg": "none"}),
    "none without a signature": f"{part({**HEAD, 'alg': 'none'})}.{part(changed())}.",
    "another algorithm": forged({**HEAD, "alg": "HS512"}, digest="sha512"),
    "an OIDC token": forged({**HEAD, "typ": "JWT"}),
    "no type": forged({"alg": "HS256", "kid": "2"}),
    "no key id": forged({"alg": "HS256", "typ": "client+jwt"}),
    "a key id that is a number": forged({**HEAD, "kid": 2}),
    "a key id of nobody": forged({**HEAD, "kid": "3"}),
    "the old pepper under the new one's name": forged(secret=hmac.digest(PEPPER, b"x", "sha256").hex()),
    "the pepper itself": forged(secret="q" * 43),
    "an empty secret": forged(secret=""),
    "crit": forged({**HEAD, "crit": ["exp"]}),
    "jku": forged({**HEAD, "jku": "https://evil.example/keys"}),
    "jwk": forged({**HEAD, "jwk": {"kty": "oct", "k": "AA"}}),
    "x5u": forged({**HEAD, "x5u": "https://evil.example"}),
    "an expiry that is text": forged(claims=changed(exp=str(NOW + 600))),
    "an expiry with a point": forged(claims=changed(exp=NOW + 600.5)),
    "an expiry that is no number": forged(claims=json.dumps(changed(exp=float("nan"))).encode()),
    "no expiry": forged(claims={name: value for name, value in changed().items() if name != "exp"}),
    "no audience": forged(claims={name: value for name, value in changed().items() if name != "aud"}),
    "another audience": forged(claims=changed(aud="meterhouse")),
    "several audiences": forged(claims=changed(aud=[AUDIENCE])),
    "another issuer": forged(claims=changed(iss="https://accounts.example")),
    "a lifetime of years": forged(claims=changed(exp=NOW + 10**8)),
    "an id of another key": forged(claims=changed(jti="key_2.abc")),
    "no cap": forged(claims=changed(cap=0)),
    "a negative cap": forged(claims=changed(cap=-1)),
    "a claim too many": forged(claims=changed(scope="admin")),
    "claims that are no object": forged(claims=[1]),
    "five parts": forged() + ".a.b",
    "a megabyte": forged(claims=changed(models=["m" * 1_000_000])),
    "no base64": "a.b!.c",
    "nothing": "..",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_else_is_read(name):
    with pytest.raises(InvalidKey):
        TOKENS.read(ATTACKS[name], NOW * 1000)


def test_no_bit_can_be_changed():
    token = TOKENS.make(GRANT)
    for place in range(0, len(token), 3):
        if token[place] != ".":
            other = "A" if token[place] != "A" else "B"
            # The last character of a part has bits that encode nothing; it is left out.
            if place + 1 < len(token) and token[place + 1] != ".":
                with pytest.raises(InvalidKey):
                    TOKENS.read(token[:place] + other + token[place + 1 :], NOW * 1000)


def test_tokens_that_begin_alike_are_of_different_people():
    one, other = (TOKENS.make(msgspec.structs.replace(GRANT, cap=cap)) for cap in (5, 6))
    assert one[:64] == other[:64]
    assert TOKENS.read(one, NOW * 1000).cap != TOKENS.read(other, NOW * 1000).cap


def test_a_public_library_reads_what_we_wrote():
    assert json.loads(jws.verify(TOKENS.make(GRANT), SECRET, ["HS256"]))["jti"] == "key_1.abc"
    assert hashlib.sha256(SECRET.encode()).digest()  # the secret is 64 hexadecimal characters of 32 derived bytes
    assert len(SECRET) == 64


def test_a_token_never_widens_its_key():
    key = Principal(
        "org_1", "proj_1", "key_1", "key_0", frozenset({"inference", "usage"}), frozenset({"a", "gpt"}), (), 9
    )
    narrowed = narrow(key, GRANT)
    assert (narrowed.models, narrowed.scopes, narrowed.key_id) == ({"gpt"}, {"inference"}, "key_1.abc")
    assert [limit.owner_and_token for limit in narrowed.limits] == [("key_0", "key_1.abc")]
    assert [limit.ends_at_ms for limit in narrowed.limits] == [GRANT.exp * 1000]
    assert narrow(key, msgspec.structs.replace(GRANT, models=("b",))).models == frozenset()
    assert narrow(key, msgspec.structs.replace(GRANT, models=None)).models == {"a", "gpt"}
    assert TOKENS.principal_of(GRANT, key) is TOKENS.principal_of(GRANT, key)


def test_what_is_no_token_is_left_to_the_keys():
    assert find_token("Bearer sk-mh-dev-abc-def") is None
    assert find_token("Basic a.b.c") is None
    assert find_token(None) is None
    assert find_token("bearer  a.b.c ") == "a.b.c"
    assert (key_id_of("key_1.abc"), key_id_of("key_1")) == ("key_1", "key_1")
