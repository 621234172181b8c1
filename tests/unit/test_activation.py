"""What switches a provider on, and what is said when it cannot work."""

import pytest

from meterhouse.providers.activation import activate
from meterhouse.providers.provider import ProviderSetting
from meterhouse.settings import Environment
from meterhouse.supply import provider_settings

KEY = "sk-upstream-1234567890"


def address_of(name: str, **fields: str) -> str:
    active = activate(ProviderSetting(name=name, credential=KEY, **fields))
    assert active is not None
    return active.base_url


@pytest.mark.parametrize(
    ("name", "region", "address"),
    [
        ("moonshot", None, "https://api.moonshot.ai/v1"),
        ("moonshot", "cn", "https://api.moonshot.cn/v1"),
        ("kimi", "cn", "https://api.moonshot.cn/v1"),
        ("dashscope", None, "https://dashscope-intl.aliyuncs.com/compatible-mode/v1"),
        ("dashscope", "cn", "https://dashscope.aliyuncs.com/compatible-mode/v1"),
        ("qwen", "us", "https://dashscope-us.aliyuncs.com/compatible-mode/v1"),
    ],
)
def test_a_region_has_its_address(name, region, address):
    assert address_of(name, **({"region": region} if region else {})) == address


def test_a_workspace_has_its_own_host():
    url = address_of("dashscope", region="ap-southeast-1", workspace="ws-1a2b")
    assert url == "https://ws-1a2b.ap-southeast-1.maas.aliyuncs.com/compatible-mode/v1"
    for workspace in ("", "evil.example/", "a@b"):
        with pytest.raises(ValueError, match="needs the id of a workspace"):
            address_of("dashscope", region="ap-southeast-1", workspace=workspace)


def test_an_unknown_region_names_those_that_there_are():
    with pytest.raises(ValueError, match="it has: global, cn"):
        address_of("moonshot", region="mars")
    with pytest.raises(ValueError, match="it has: none"):
        address_of("openai", region="eu")


@pytest.mark.parametrize("endpoint", ["https://res.openai.azure.com", "https://res.openai.azure.com/openai/v1/"])
def test_azures_endpoint_is_completed(endpoint):
    assert address_of("azure", base_url=endpoint) == "https://res.openai.azure.com/openai/v1"


def test_a_second_account_is_a_provider_of_the_same_kind_under_its_own_name():
    active = activate(
        ProviderSetting(name="openai-eu", kind="openai", credential=KEY, base_url="https://eu.example/v1")
    )
    assert (active.name, active.provider.row_name) == ("openai-eu", "openai")
    assert active.provider.max_tokens_field == "max_completion_tokens"
    with pytest.raises(ValueError, match="there is no kind 'opnai'"):
        activate(ProviderSetting(name="x", kind="opnai", credential=KEY))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"KIMI_API_KEY": KEY}, "moonshot"),
        ({"MOONSHOT_API_KEY": KEY}, "moonshot"),
        ({"METERHOUSE_PROVIDER_KIMI_API_KEY": KEY}, "kimi"),
        ({"CEREBRAS_API_KEY": KEY}, "cerebras"),
        ({"DEEPSEEK_API_KEY": KEY}, "deepseek"),
        ({"DASHSCOPE_API_KEY": KEY}, "dashscope"),
        ({"GROQ_API_KEY": KEY}, "groq"),
        ({"OPENROUTER_API_KEY": KEY}, "openrouter"),
        ({"MISTRAL_API_KEY": KEY}, "mistral"),
        ({"TOGETHER_API_KEY": KEY}, "together"),
        ({"GEMINI_API_KEY": KEY}, "gemini"),
        ({"AZURE_OPENAI_ENDPOINT": "https://res.openai.azure.com", "AZURE_OPENAI_API_KEY": KEY}, "azure"),
        ({"METERHOUSE_PROVIDER_VLLM_BASE_URL": "http://gpu:8000/v1"}, "vllm"),
        ({"METERHOUSE_PROVIDER_CN_KIND": "moonshot", "METERHOUSE_PROVIDER_CN_API_KEY": KEY}, "cn"),
    ],
)
def test_a_provider_is_on_by_its_usual_variables(variables, expected):
    active = [found for setting in provider_settings(Environment(variables)) if (found := activate(setting))]
    assert [one.name for one in active] == [expected]
    assert active[0].credential == (KEY if KEY in variables.values() else None)


def test_a_key_of_ours_is_never_a_providers():
    ours = "sk-mh-dev-0123456789-" + "a" * 40
    settings = provider_settings(Environment({"OPENAI_API_KEY": ours, "METERHOUSE_PROVIDER_KIMI_API_KEY": ours}))
    assert [setting.name for setting in settings if setting.credential] == []


def test_a_credential_that_belongs_to_no_address_switches_nothing_on():
    assert [s.name for s in provider_settings(Environment({"AZURE_OPENAI_API_KEY": KEY})) if activate(s)] == []


@pytest.mark.parametrize(
    "address",
    [
        "https://host.example:99999/v1",
        "https://host.example:x/v1",
        "https://a..b.example",
        f"https://{'a' * 70}.example/v1",
        "https://foo\\bar.example",
        "https://host.example../v1",
    ],
)
def test_an_address_that_nobody_could_connect_to_is_refused(address):
    with pytest.raises(ValueError, match="has a host or port that there cannot be"):
        address_of("lab", base_url=address)


def test_a_private_address_in_other_digits_is_private():
    with pytest.raises(ValueError, match=r"10\.0\.0\.1 is a private address"):
        address_of("lab", base_url="https://\uff11\uff10.0.0.1/v1", is_public_only=True)
