"""What an operator may say about a local server's tool calls, and what a deployment becomes by it."""

import re
from pathlib import Path

import pytest

from meterhouse.providers.prices import PriceBook
from meterhouse.providers.provider import Provider, ProviderSetting
from meterhouse.providers.routes import activate, build_snapshot
from meterhouse.providers.tool_text import TOOL_CALL_FORMATS, TOOLS_HANDLINGS
from meterhouse.settings import Environment
from meterhouse.translate.tool_text import GRAMMARS

URL = "http://127.0.0.1:8001/v1"


def row_of(tool_call_format: str, tools: str = "send", model: str = "m", name: str = "local") -> Provider:
    setting = ProviderSetting(
        name=name, base_url=URL, models=("m", "glm", "alias=qwen"), tool_call_format=tool_call_format, tools=tools
    )
    snapshot = build_snapshot([setting], is_simulator_on=False, prices=PriceBook([]), built_at_ms=0)
    return snapshot.resolve(model, 0).deployments[0].provider


def test_every_format_that_can_be_set_can_be_read() -> None:
    assert set(TOOL_CALL_FORMATS) == set(GRAMMARS)


def test_the_readme_explains_every_format_and_no_other() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = readme.split("### Local models that write their tool calls as text")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(TOOL_CALL_FORMATS)
    assert all(f"`{word}`" in section or f"={word}`" in section for word in TOOLS_HANDLINGS if word != "send")


def test_nothing_is_different_where_nothing_is_said() -> None:
    row = row_of("")
    assert row.tool_call_format is None
    assert not row.renders_tools
    assert not row.refuses_assistant_last
    assert row.default_max_tokens is None
    assert "tools" not in row.dropped_parameters


def test_a_format_holds_for_every_model_or_for_the_named_ones() -> None:
    assert row_of("hermes").tool_call_format == "hermes"
    text = "hermes, glm=glm4 ,qwen=qwen3_coder"
    assert [row_of(text, model=model).tool_call_format for model in ("m", "glm", "alias")] == [
        "hermes",
        "glm4",
        "qwen3_coder",
    ]
    assert row_of("glm=glm4").tool_call_format is None
    assert row_of("glm=glm4", model="local/glm").tool_call_format == "glm4"


def test_a_glm_4_answers_others_only_and_at_most_1024_tokens_unasked() -> None:
    row = row_of("glm=glm4", model="glm")
    assert (row.refuses_assistant_last, row.default_max_tokens) == (True, 1_024)
    assert not row_of("glm=glm4").refuses_assistant_last
    assert row_of("glm4", name="ollama").default_max_tokens == 512


def test_tools_are_kept_from_servers_that_choke_on_them() -> None:
    hidden = {"tools", "tool_choice", "parallel_tool_calls"}
    assert hidden <= row_of("hermes", "withhold").dropped_parameters
    assert hidden <= row_of("", "withhold").dropped_parameters
    assert hidden <= row_of("hermes", "prompt").dropped_parameters
    assert row_of("hermes", "prompt").renders_tools
    assert not row_of("hermes", "withhold").renders_tools
    # A model without a format gets its tools as they came.
    assert not row_of("glm=glm4", "prompt").dropped_parameters & hidden


@pytest.mark.parametrize(
    ("tool_call_format", "tools", "text"),
    [
        ("gpt", "send", "provider local: the tool call format 'gpt' is unknown; known are glm4, glm45, hermes,"),
        ("a=hermes,a=glm4", "send", "two tool call formats for a"),
        ("hermes,glm4", "send", "two tool call formats for every model"),
        ("hermes", "maybe", "provider local: tools 'maybe' is none of send, withhold, prompt"),
        ("", "prompt", "need a tool call format"),
    ],
)
def test_what_cannot_work_is_said_in_a_line(tool_call_format: str, tools: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        activate(ProviderSetting(name="local", base_url=URL, tool_call_format=tool_call_format, tools=tools))


def test_the_environment_says_it() -> None:
    values = {"METERHOUSE_PROVIDER_LOCAL_TOOL_CALL_FORMAT": "glm4", "METERHOUSE_PROVIDER_LOCAL_TOOLS": "prompt"}
    found = Environment(values).provider("local", ())
    assert (found.tool_call_format, found.tools) == ("glm4", "prompt")
    found = Environment({}).provider("local", ())
    assert (found.tool_call_format, found.tools) == ("", "send")
