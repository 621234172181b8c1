"""Which addresses a provider may have that was set through the API."""

import pytest

from meterhouse.providers.address import check_public, is_public

PRIVATE = [
    "127.0.0.1",
    "10.0.0.5",
    "172.16.3.4",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "192.0.0.192",
    "168.63.129.16",
    "::ffff:192.0.0.192",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fd00::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "fec0::1",
    "64:ff9b:1::a00:1",
    "::ffff:0:10.0.0.1",
    "::ffff:0:8.8.8.8",
    "2001:0:808:808::f5ff:fffe",  # Teredo: a public server, and 10.0.0.1 behind it
    "2001:0:808:808::f7f7:f7f7",
    "100:0:0:1::1",
    "200::1",
    "3fff::1",
    "5f00::1",
    "fe00::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::a00:1",
    "2002:7f00:1::",
]


@pytest.mark.parametrize("host", PRIVATE)
def test_what_is_not_of_the_public_internet(host):
    assert not is_public(host)
    bracketed = f"[{host}]" if ":" in host else host
    with pytest.raises(ValueError, match="is a private address"):
        check_public(f"https://{bracketed}/v1")


@pytest.mark.parametrize(
    "host",
    ["127.1", "0177.0.0.1", "127.0.0.1.", "0x7f.1", "0X7F.0.0.1", "2130706433", "8.8", "010.8.8.8", "db.internal."],
)
def test_an_address_in_another_form_than_the_plain_one_is_refused(host):
    with pytest.raises(ValueError, match="is a private address"):
        check_public(f"https://{host}/v1")


def test_a_host_that_only_becomes_an_address_when_it_is_normalized_is_refused():
    with pytest.raises(ValueError, match="ASCII"):
        check_public("https://\uff11\uff12\uff17.0.0.1/v1")


@pytest.mark.parametrize(
    "host", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::1", "2a00:1450::1"]
)
def test_what_is(host):
    assert is_public(host)


@pytest.mark.parametrize(
    "url", ["https://localhost/v1", "https://redis/v1", "https://db.internal", "https://a.localhost"]
)
def test_names_that_only_the_host_knows(url):
    with pytest.raises(ValueError, match="METERHOUSE_PRIVATE_PROVIDERS"):
        check_public(url)


def test_a_public_name_over_https_is_fine_and_plain_http_is_not():
    check_public("https://api.example.com/v1")
    check_public("https://4.example.com./v1")
    with pytest.raises(ValueError, match="https://"):
        check_public("http://api.example.com/v1")
