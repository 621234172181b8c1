"""What Prometheus scrapes."""

import time

from prometheus_client.parser import text_string_to_metric_families

from api.asking import marked
from fakes.gateway import Gateway


def samples(gateway: Gateway) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    status, headers, body = gateway.request("GET", "/metrics", key="")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_it_is_prometheus_text_with_our_names(gateway: Gateway) -> None:
    gateway.chat("fake/normal")
    names = {name for name, _ in samples(gateway)}
    assert any(name.startswith("meterhouse_") for name in names)


def test_requests_tokens_and_refusals_are_counted(gateway: Gateway) -> None:
    key = gateway.new_key("requests 1/hour")
    before = samples(gateway)
    assert gateway.chat("fake/normal?tokens=9", key=key)[0] == 200
    assert gateway.chat("fake/normal?tokens=9", key=key)[0] == 429

    def grown(name: str, **labels: str) -> float:
        return sum(
            value - before.get((found, given), 0)
            for (found, given), value in samples(gateway).items()
            if found == f"meterhouse_{name}_total" and labels.items() <= dict(given).items()
        )

    # A request is counted just after its answer has left.
    deadline = time.monotonic() + 60
    while grown("requests", route="/v1/chat/completions") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert grown("requests", route="/v1/chat/completions", status_class="2xx") == 1
    assert grown("refusals") == 1
    assert grown("tokens", provider="fake") >= 9


def test_no_label_holds_a_secret_or_an_address_that_a_client_made_up(gateway: Gateway) -> None:
    marker, _ = marked()
    gateway.request("GET", f"/made-up-{marker}")
    gateway.chat("fake/normal")
    text = gateway.request("GET", "/metrics", key="")[2].decode()
    assert f"made-up-{marker}" not in text
    assert gateway.key not in text
    assert "sk-" not in text
