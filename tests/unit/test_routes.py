"""Which deployments a name leads to, and what a name that leads nowhere is told."""

from dataclasses import replace

import pytest

from meterhouse.errors import UnknownModel
from meterhouse.money import Component, Meterable
from meterhouse.providers import routes
from meterhouse.providers.prices import PriceBook, make_price, simulator_prices
from meterhouse.providers.provider import ProviderSetting, RouteSetting, RouteTarget
from meterhouse.providers.routes import Routes, Snapshot, Wishes, build_snapshot

SECRET = "sk-upstream-secret-1234567890"
OPENAI = ProviderSetting(name="openai", credential=SECRET)
OLLAMA = ProviderSetting(name="ollama", base_url="http://127.0.0.1:11434")
LOCAL = ProviderSetting(name="local-vllm", base_url="http://127.0.0.1:9000/v1/")


def rate(provider: str, model: str, nanos: int, start: int = 0):
    return make_price(provider, model, (Component(Meterable.INPUT, nanos),), effective_from_ms=start, source="test")


def build(*settings: ProviderSetting, simulator: bool = False, prices=(), **discovered: list[str]) -> Snapshot:
    named = {name.replace("_", "-"): models for name, models in discovered.items()}
    return build_snapshot(
        settings,
        is_simulator_on=simulator,
        prices=PriceBook(prices),
        discovered=named,
        built_at_ms=1_795_132_800_000,
    )


def test_a_listed_model_leads_to_its_provider_with_credential_and_price():
    price = rate("openai", "gpt-4o", 2_500_000_000)
    route = build(OPENAI, prices=[price]).resolve("gpt-4o", 0)
    [deployment] = route.deployments
    assert (route.model, deployment.id, deployment.upstream_model) == ("gpt-4o", "openai/gpt-4o", "gpt-4o")
    assert deployment.base_url == "https://api.openai.com/v1"
    assert deployment.credential == SECRET
    assert deployment.price == price
    assert deployment.model.max_output_tokens == 16_384


def test_a_credential_is_never_shown():
    snapshot = build(OPENAI)
    shown = repr((OPENAI, snapshot.providers, snapshot.resolve("gpt-4o", 0)))
    assert SECRET not in shown


def test_a_model_that_may_think_unseen_says_so():
    snapshot = build(OPENAI, LOCAL)
    assert snapshot.resolve("gpt-6-luna", 0).deployments[0].model.thinks_hidden
    assert snapshot.resolve("openai/o3-mini", 0).deployments[0].model.thinks_hidden
    assert snapshot.resolve("local-vllm/openai/gpt-5", 0).deployments[0].model.thinks_hidden
    assert not snapshot.resolve("gpt-4o", 0).deployments[0].model.thinks_hidden
    assert snapshot.resolve("local-vllm/qwen3", 0).deployments[0].model.thinks_hidden, "nobody vouches for it"
    vouched = build(replace(LOCAL, shows_all_output=True))
    assert not vouched.resolve("local-vllm/qwen3", 0).deployments[0].model.thinks_hidden
    assert vouched.resolve("local-vllm/openai/gpt-5", 0).deployments[0].model.thinks_hidden


def test_any_model_of_a_provider_that_is_on_can_be_asked_for_by_prefix():
    price = rate("openai", "gpt-7", 9)
    snapshot = build(OPENAI, LOCAL, prices=[price])
    [priced] = snapshot.resolve("openai/gpt-7", 0).deployments
    assert (priced.upstream_model, priced.price) == ("gpt-7", price)
    [unpriced] = snapshot.resolve("openai/gpt-8", 0).deployments
    assert (unpriced.id, unpriced.price) == ("openai/gpt-8", None)
    [nested] = snapshot.resolve("local-vllm/meta/llama-4", 0).deployments
    assert (nested.provider.name, nested.upstream_model) == ("local-vllm", "meta/llama-4")


def test_a_name_that_is_not_listed_leads_to_the_same_route_each_time_and_to_its_price_of_the_moment():
    first, later = rate("openai", "gpt-7", 9), rate("openai", "gpt-7", 12, start=1_000)
    snapshot = build(OPENAI, prices=[first, later])
    route = snapshot.resolve("openai/gpt-7", 999)
    assert snapshot.resolve("openai/gpt-7", 0) is route
    assert route.deployments[0].price is first
    assert snapshot.resolve("openai/gpt-7", 1_000).deployments[0].price is later
    assert snapshot.pricing.reprice(route, 1_000) == snapshot.resolve("openai/gpt-7", 1_000)


def test_names_that_callers_make_up_do_not_pile_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(routes, "MAX_UNLISTED", 3)
    snapshot = build(OPENAI)
    for number in range(10):
        assert snapshot.resolve(f"openai/made-up-{number}", 0).model == f"openai/made-up-{number}"
    assert len(snapshot._unlisted) <= 3


def test_a_dated_snapshot_by_prefix_has_its_models_bounds():
    [deployment] = build(OPENAI).resolve("openai/gpt-4o-2024-11-20", 0).deployments
    assert deployment.model.context_tokens == 128_000
    assert deployment.upstream_model == "gpt-4o-2024-11-20"


@pytest.mark.parametrize(
    "name", ["gpt-9", "ollama/llama3", "openai/", "openai/a b", "openai/\x00", "openai/" + "x" * 300, ""]
)
def test_a_name_that_leads_nowhere_is_a_404_that_says_how_to_list(name):
    with pytest.raises(UnknownModel, match="GET /v1/models") as caught:
        build(OPENAI).resolve(name, 0)
    assert caught.value.status == 404
    assert caught.value.code == "model_not_found"
    assert len(caught.value.message) < 500
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(("name", "replacement"), [("gpt-4-turbo", "gpt-5.6-sol"), ("gpt-3.5-turbo", "gpt-5.6-terra")])
def test_a_retired_model_names_its_replacement(name, replacement):
    snapshot = build(OPENAI, simulator=True)
    with pytest.raises(UnknownModel, match=replacement) as caught:
        snapshot.resolve(name, 0)
    assert "2026-10-23" in caught.value.message
    assert snapshot.find_model(name) is None


def test_an_operator_can_route_a_retired_name_to_another_model():
    setting = ProviderSetting(name="openai", credential=SECRET, models=("gpt-4-turbo=gpt-5.6-sol", "gpt-4o"))
    snapshot = build(setting)
    [deployment] = snapshot.resolve("gpt-4-turbo", 0).deployments
    assert deployment.upstream_model == "gpt-5.6-sol"
    assert deployment.model.max_output_tokens == 128_000
    assert [model.name for model in snapshot.list_models()] == ["gpt-4-turbo", "gpt-4o"]


def test_several_providers_of_one_name_are_ordered_deployments():
    snapshot = build(replace(LOCAL, models=("gpt-4o", "qwen3")), OPENAI)
    assert [d.id for d in snapshot.resolve("gpt-4o", 0).deployments] == ["local-vllm/gpt-4o", "openai/gpt-4o"]
    listed = snapshot.find_model("gpt-4o")
    assert listed.provider == "local-vllm"
    assert [model.name for model in snapshot.list_models()].count("gpt-4o") == 1


def test_an_unknown_provider_with_an_address_is_an_openai_compatible_one_of_that_name():
    snapshot = build(LOCAL, local_vllm=["qwen3"])
    [deployment] = snapshot.resolve("qwen3", 0).deployments
    assert (deployment.provider.name, deployment.provider.wire) == ("local-vllm", "openai")
    assert deployment.base_url == "http://127.0.0.1:9000/v1"
    assert snapshot.find_model("qwen3").provider == "local-vllm"


def test_a_provider_without_credential_and_address_is_off():
    snapshot = build(ProviderSetting(name="openai"), ProviderSetting(name="ollama"))
    assert snapshot.providers == ()
    assert snapshot.list_models() == ()


def test_ollama_models_answer_with_and_without_their_default_tag():
    snapshot = build(OLLAMA, ollama=["llama3.2:latest", "qwen3:8b", "bad name", ""])
    assert [model.name for model in snapshot.list_models()] == ["llama3.2:latest", "qwen3:8b"]
    [deployment] = snapshot.resolve("llama3.2", 0).deployments
    assert deployment.upstream_model == "llama3.2:latest"
    assert snapshot.resolve("llama3.2", 0).model == "llama3.2:latest", "one model, one set of limits"
    assert snapshot.resolve("ollama/llama3.2:latest", 0).model == "llama3.2:latest"
    assert snapshot.resolve("ollama/llama3.2", 0).model == "llama3.2:latest"
    with pytest.raises(UnknownModel):
        snapshot.resolve("qwen3", 0)


def test_the_address_of_ollamas_v1_is_understood():
    setting = ProviderSetting(name="ollama", base_url="http://127.0.0.1:11434/v1/")
    assert build(setting).providers[0].base_url == "http://127.0.0.1:11434"


def test_the_price_is_the_one_in_force_at_admission():
    old, new = rate("openai", "gpt-4o", 5), rate("openai", "gpt-4o", 4, start=1_000)
    snapshot = build(OPENAI, prices=[new, old])

    def price(name: str, at_ms: int):
        return snapshot.resolve(name, at_ms).deployments[0].price

    assert [price("gpt-4o", at) for at in (0, 999, 1_000, 2_000)] == [old, old, new, new]
    assert [price("openai/gpt-4o", at) for at in (999, 1_000)] == [old, new]
    assert snapshot.resolve("gpt-4o", 5) is snapshot.resolve("gpt-4o", 6)


def test_the_simulator_is_on_only_when_asked_for():
    on, off = build(simulator=True, prices=simulator_prices()), build(OPENAI)
    assert [model.name for model in on.list_models()] == ["simulator", "simulator-instant"]
    assert on.find_model("simulator").provider == "simulator"
    assert on.resolve("simulator", 0).deployments[0].price.source == "simulator"
    with pytest.raises(UnknownModel):
        off.resolve("simulator", 0)


def test_a_swap_leaves_a_route_that_is_held_alone():
    routes = Routes(build(OPENAI))
    held = routes.resolve("gpt-4o", 0)
    routes.replace(build(simulator=True))
    assert held.deployments[0].credential == SECRET
    with pytest.raises(UnknownModel):
        routes.resolve("gpt-4o", 0)
    assert routes.find_model("simulator") in routes.list_models()


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (ProviderSetting(name="nowhere", credential="k"), "needs a base URL"),
        (ProviderSetting(name="openai_compatible", credential="k"), "needs a base URL"),
        (ProviderSetting(name="Bad Name", base_url="http://x"), "lower-case"),
        (ProviderSetting(name="x", base_url="ftp://x"), "no http"),
        (ProviderSetting(name="x", base_url="http://user:pw@x"), "no user"),
        (ProviderSetting(name="x", base_url="http://x", credential="a\nb"), "header"),
        (ProviderSetting(name="simulator", base_url="http://x"), "switched on or off"),
    ],
)
def test_a_setting_that_cannot_work_is_said_in_a_line(setting, text):
    with pytest.raises(ValueError, match=text):
        build(setting)


def test_a_provider_cannot_be_configured_twice():
    with pytest.raises(ValueError, match="twice"):
        build(OPENAI, OPENAI)


def test_a_name_that_begins_with_another_providers_is_listed_under_its_own():
    router = ProviderSetting(name="openrouter", credential=SECRET)
    snapshot = build(router, OPENAI, openrouter=["openai/gpt-4o", "qwen/qwen3"])
    assert snapshot.resolve("openai/gpt-4o", 0).deployments[0].provider.name == "openai"
    [through] = snapshot.resolve("openrouter/openai/gpt-4o", 0).deployments
    assert (through.provider.name, through.upstream_model) == ("openrouter", "openai/gpt-4o")
    assert {"openrouter/openai/gpt-4o", "qwen/qwen3"} <= {model.name for model in snapshot.list_models()}
    alone = build(router, openrouter=["openai/gpt-4o"])
    assert alone.resolve("openai/gpt-4o", 0).deployments[0].provider.name == "openrouter"
    named = build(replace(router, models=("openai/gpt-4o",)), OPENAI)
    assert named.resolve("openai/gpt-4o", 0).deployments[0].provider.name == "openrouter", "the operator says so"


def test_a_model_has_one_name_for_its_limits_under_every_alias_of_its_provider():
    snapshot = build(ProviderSetting(name="moonshot", credential=SECRET))
    for name, listed in (("kimi-k2.6", "kimi-k2.6"), ("kimi-k99", "moonshot/kimi-k99")):
        for asked in (f"kimi/{name}", f"moonshot/{name}"):
            assert snapshot.resolve(asked, 0).model == listed
            assert snapshot.listed_name(asked) == listed


def test_what_a_server_says_that_it_serves_is_no_fallback_of_a_model_in_the_catalog():
    snapshot = build(LOCAL, OPENAI, local_vllm=["gpt-4o", "own"])
    assert [row.id for row in snapshot.resolve("gpt-4o", 0).deployments] == ["openai/gpt-4o"]
    assert [row.id for row in snapshot.resolve("own", 0).deployments] == ["local-vllm/own"]
    assert [row.id for row in snapshot.resolve("local-vllm/gpt-4o", 0).deployments] == ["local-vllm/gpt-4o"]
    alone = build(LOCAL, local_vllm=["gpt-4o"])
    assert [row.id for row in alone.resolve("gpt-4o", 0).deployments] == ["local-vllm/gpt-4o"]


def test_a_server_that_answers_any_name_is_asked_only_for_what_it_is_known_to_serve():
    server = ProviderSetting(name="llamacpp", base_url="http://127.0.0.1:9000/v1")
    snapshot = build(server, LOCAL, llamacpp=["qwen3"], local_vllm=["qwen3"])
    for name in ("llamacpp/qwen3", "llama_cpp/qwen3"):
        assert snapshot.resolve(name, 0).deployments[0].id == "llamacpp/qwen3"
        assert snapshot.resolve(name, 0).model == "qwen3"
    for name in ("llamacpp/other", "llama_cpp/other"):
        with pytest.raises(UnknownModel):
            snapshot.resolve(name, 0)
    assert snapshot.resolve("local-vllm/other", 0).deployments[0].upstream_model == "other"
    named = build(replace(server, models=("small=qwen3",)))
    assert named.resolve("llamacpp/qwen3", 0).model == "small"
    with pytest.raises(UnknownModel):
        named.resolve("llamacpp/other", 0)
    assert build(server).resolve("llamacpp/qwen3", 0).deployments[0].id == "llamacpp/qwen3", "nothing is known yet"
    named_as_another = build(server, OPENAI, llamacpp=["gpt-4o"])
    assert named_as_another.resolve("llamacpp/gpt-4o", 0).deployments[0].id == "llamacpp/gpt-4o"


def test_what_is_switched_off_does_not_come_back_as_what_a_provider_serves_by_itself():
    """The route's other deployment is of a provider that is off by now."""
    targets = (
        RouteTarget(provider="gone", upstream_model="gpt-4o"),
        RouteTarget(provider="openai", upstream_model="gpt-4o", is_on=False),
    )
    snapshot = build_snapshot(
        [OPENAI],
        is_simulator_on=False,
        prices=PriceBook(()),
        built_at_ms=1_795_132_800_000,
        wishes=Wishes(routes=(RouteSetting(model="gpt-4o", targets=targets),)),
    )
    with pytest.raises(UnknownModel):
        snapshot.resolve("gpt-4o", 0)
    assert snapshot.find_model("gpt-4o") is None
    assert snapshot.switched_off == {"gpt-4o": targets[1:]}
    assert snapshot.resolve("gpt-4o-mini", 0).deployments
    assert [d.id for d in snapshot.resolve("openai/gpt-4o", 0).deployments] == ["openai/gpt-4o"], "asked for by name"
