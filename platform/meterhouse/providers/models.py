"""The models of the catalog, as of 2026-11-20 (wire.md 2.1): those that are served, and the names that were.

Invariant: data only, and no price. Every name of the models that Meterhouse was asked to know is in here: one that its
provider refuses by now is a ``RetiredModel``, which names what serves in its place.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from types import MappingProxyType
from typing import Any

from meterhouse.providers.provider import Model
from meterhouse.providers.rows_anthropic import ANTHROPIC
from meterhouse.providers.rows_hosted import CEREBRAS, DASHSCOPE, DEEPSEEK, MOONSHOT, OPENAI
from meterhouse.providers.rows_local import HIDDEN_THINKING


@dataclass(frozen=True, slots=True, kw_only=True)
class RetiredModel:
    """A name that a provider served once, and what serves in its place."""

    name: str
    provider: str
    replacement: str
    since: date | None = None
    """The first day on which it was refused; None where nobody wrote it down."""
    body_defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """What makes the replacement behave like it."""


SIMULATOR = "simulator"
SIMULATED_PART_TOKENS = 85
"""What the simulator counts for an image, a sound or a file."""

_CLAUDE_IMAGE = 1_600
"""Models up to Claude 4.6 scale a picture down until it is no more than this; later ones look at larger ones."""
_LONG_INPUT = 922_000
"""A context of 1,050,000 tokens less the 128,000 of an answer."""
_OUTPUT = 128_000
_THINKING_OFF = MappingProxyType({"thinking": MappingProxyType({"type": "disabled"})})
_THINKING_ON = MappingProxyType({"thinking": MappingProxyType({"type": "enabled"})})


def _openai(
    name: str,
    context_tokens: int,
    max_output_tokens: int,
    image_tokens: int | None = None,
    shutdown: date | None = None,
) -> Model:
    return Model(
        name=name,
        provider=OPENAI,
        upstream_model=name,
        context_tokens=context_tokens,
        max_output_tokens=max_output_tokens,
        thinks_hidden=name.startswith(HIDDEN_THINKING),
        image_tokens_bound=image_tokens,
        shutdown=shutdown,
    )


def _simulated(name: str) -> Model:
    return Model(
        name=name,
        provider=SIMULATOR,
        upstream_model=name,
        context_tokens=1_000_000,
        max_output_tokens=16_384,
        image_tokens_bound=SIMULATED_PART_TOKENS,
        audio_tokens_bound=SIMULATED_PART_TOKENS,
    )


def _hosted(provider: str, rows: Iterable[tuple[str, int, int]]) -> Iterator[Model]:
    """Make rows of (name, context, answer), in tokens."""
    for name, context_tokens, max_output_tokens in rows:
        yield Model(
            name=name,
            provider=provider,
            upstream_model=name,
            context_tokens=context_tokens,
            max_output_tokens=max_output_tokens,
            thinks_hidden=True,
        )


def _anthropic(
    name: str,
    context_tokens: int,
    max_output_tokens: int,
    image_tokens: int | None = None,
    shutdown: date | None = None,
) -> Model:
    return Model(
        name=name,
        provider=ANTHROPIC,
        upstream_model=name,
        context_tokens=context_tokens,
        max_output_tokens=max_output_tokens,
        thinks_hidden=True,
        image_tokens_bound=image_tokens,
        shutdown=shutdown,
    )


def _retired(provider: str, replacement: str, names: str, since: date | None = None) -> Iterator[RetiredModel]:
    for name in names.split():
        yield RetiredModel(name=name, provider=provider, replacement=replacement, since=since)


# Images of gpt-4o: at most 8 tiles of 512 px (2048 x 768) at 170 tokens, and 85; of gpt-4o-mini at 5,667 and 2,833.
# No bound is known for the later models: their patches and multipliers differ by model, and were changed.
MODEL_ROWS = (
    _simulated("simulator"),
    _simulated("simulator-instant"),
    _openai("gpt-4o", 128_000, 16_384, 1_445, date(2027, 1, 14)),
    _openai("gpt-4o-mini", 128_000, 16_384, 48_169, date(2027, 1, 14)),
    _openai("gpt-6-astra", _LONG_INPUT, _OUTPUT),
    _openai("gpt-6.1-sol", _LONG_INPUT, _OUTPUT),
    _openai("gpt-6.1-terra", _LONG_INPUT, _OUTPUT),
    _openai("gpt-6-sol", _LONG_INPUT, _OUTPUT),
    _openai("gpt-6-luna", _LONG_INPUT, _OUTPUT),
    _openai("gpt-5.6-sol", _LONG_INPUT, _OUTPUT),
    _openai("gpt-5.6-terra", _LONG_INPUT, _OUTPUT),
    _openai("gpt-5.6-luna", _LONG_INPUT, _OUTPUT),
    _openai("gpt-5.5", _LONG_INPUT, _OUTPUT),
    _openai("gpt-5.4", _LONG_INPUT, _OUTPUT),
    _openai("gpt-5.4-mini", 272_000, _OUTPUT),
    _openai("gpt-5.4-nano", 272_000, _OUTPUT),
    _openai("gpt-5", 272_000, _OUTPUT, shutdown=date(2026, 12, 11)),
    _openai("gpt-5-mini", 272_000, _OUTPUT, shutdown=date(2026, 12, 11)),
    _openai("gpt-5-nano", 272_000, _OUTPUT, shutdown=date(2026, 12, 11)),
    # What writes nothing has an answer of 0 tokens at most.
    _openai("text-embedding-3-small", 8_191, 0),
    _openai("text-embedding-3-large", 8_191, 0),
    _openai("text-embedding-ada-002", 8_191, 0),
    _openai("omni-moderation-latest", 32_768, 0),
    *_hosted(
        CEREBRAS,
        (("gpt-oss-120b", 131_072, 32_768), ("qwen-3.8-27b", 65_536, 32_768), ("gemma-4-31b", 131_072, 40_960)),
    ),
    *_hosted(DEEPSEEK, (("deepseek-flash", 1_000_000, 384_000), ("deepseek-v4-pro", 1_000_000, 384_000))),
    *_hosted(
        DASHSCOPE,
        (
            ("qwen-plus", 129_024, 16_384),
            ("qwen-flash", 1_000_000, 32_768),
            ("qwen3.8-max", 992_000, 131_072),
            ("qwen3.8-flash", 992_000, 131_072),
            ("qwen3.7-max", 992_000, 131_072),
            ("qwen3.7-plus", 992_000, 131_072),
            ("qwen3.5-plus", 992_000, 131_072),
        ),
    ),
    *_hosted(
        MOONSHOT,
        (
            ("kimi-k3", 1_000_000, 262_144),
            ("kimi-k3.1-pro", 1_000_000, 262_144),
            ("kimi-k2.6", 262_144, 262_144),
            ("kimi-k2.7-code", 262_144, 262_144),
            ("kimi-k2.7-code-highspeed", 262_144, 262_144),
        ),
    ),
    *_hosted(
        "groq",
        (("openai/gpt-oss-120b", 131_072, 65_536), ("openai/gpt-oss-20b", 131_072, 65_536)),
    ),
    *_hosted("groq", (("qwen/qwen3.8-27b", 131_072, 65_536),)),
    *_hosted(
        "mistral",
        (
            ("mistral-large-4", 1_000_000, 128_000),
            ("mistral-large-2512", 262_144, 128_000),
            ("mistral-medium-3.5", 262_144, 128_000),
            ("mistral-small-2603", 262_144, 128_000),
            ("codestral-2508", 262_144, 128_000),
        ),
    ),
    *_hosted(
        "gemini",
        (
            ("gemini-3.8-flash", 1_048_576, 65_536),
            ("gemini-2.5-flash", 1_048_576, 65_536),
            ("gemini-2.5-flash-lite", 1_048_576, 65_536),
            ("gemini-4-argon", 1_048_576, 65_536),
        ),
    ),
    *(
        _anthropic(name, 1_000_000, 128_000)
        for name in (
            "claude-opus-5-5",
            "claude-sonnet-5-5",
            "claude-haiku-5-5",
            "claude-fable-5-2",
            "claude-fable-5-1",
            "claude-fable-5",
            "claude-opus-5",
            "claude-sonnet-5",
            "claude-opus-4-8",
            "claude-opus-4-7",
        )
    ),
    _anthropic("claude-opus-4-6", 1_000_000, 128_000, _CLAUDE_IMAGE),
    _anthropic("claude-sonnet-4-6", 1_000_000, 128_000, _CLAUDE_IMAGE),
    _anthropic("claude-haiku-4-5", 200_000, 64_000, _CLAUDE_IMAGE),
    _anthropic("claude-opus-4-5", 200_000, 64_000, _CLAUDE_IMAGE, date(2027, 1, 22)),
    _anthropic("claude-sonnet-4-5", 200_000, 64_000, _CLAUDE_IMAGE, date(2026, 11, 30)),
)

_K2_END = date(2026, 5, 25)
_QWEN_END = date(2026, 7, 13)
_BAILIAN_END = date(2026, 10, 11)
_DEEPSEEK_END = date(2026, 7, 24)

RETIRED = (
    *_retired(OPENAI, "gpt-5.6-sol", "gpt-4-turbo", date(2026, 10, 23)),
    *_retired(OPENAI, "gpt-5.6-terra", "gpt-3.5-turbo", date(2026, 10, 23)),
    *_retired(CEREBRAS, "gpt-oss-120b", "llama-3.3-70b", date(2026, 2, 16)),
    *_retired(CEREBRAS, "gpt-oss-120b", "qwen-3-32b", date(2026, 2, 16)),
    *_retired(CEREBRAS, "gpt-oss-120b", "llama-3.1-8b llama3.1-8b", date(2026, 5, 27)),
    *_retired(CEREBRAS, "gpt-oss-120b", "qwen-3-235b-a22b-instruct-2507", date(2026, 5, 27)),
    *_retired(CEREBRAS, "gpt-oss-120b", "qwen-3-coder-480b", date(2025, 11, 5)),
    *_retired(CEREBRAS, "gpt-oss-120b", "llama-3.1-70b llama-3.2-1b llama-3.2-3b"),
    *_retired(CEREBRAS, "qwen-3.8-27b", "qwen-2.5-coder-7b qwen-2.5-coder-14b qwen-2.5-coder-32b"),
    *_retired(CEREBRAS, "qwen-3.8-27b", "qwen-2.5-7b qwen-2.5-14b"),
    RetiredModel(
        name="deepseek-chat",
        provider=DEEPSEEK,
        replacement="deepseek-flash",
        since=_DEEPSEEK_END,
        body_defaults=_THINKING_OFF,
    ),
    RetiredModel(
        name="deepseek-reasoner",
        provider=DEEPSEEK,
        replacement="deepseek-flash",
        since=_DEEPSEEK_END,
        body_defaults=_THINKING_ON,
    ),
    RetiredModel(name="deepseek-coder", provider=DEEPSEEK, replacement="deepseek-flash", body_defaults=_THINKING_OFF),
    *_retired(DASHSCOPE, "qwen3.8-max", "qwen-max qwen-vl-max qwq-plus qvq-max", _QWEN_END),
    *_retired(DASHSCOPE, "qwen3.8-flash", "qwen-turbo qwen-vl-plus", _QWEN_END),
    *_retired(DASHSCOPE, "qwen3.8-max", "qwen3-max qwen3-max-preview qwen3-235b-a22b", _BAILIAN_END),
    *_retired(DASHSCOPE, "qwen3.8-max", "qwen-3-235b-a22b-thinking-2507 qwen3-235b-a22b-thinking-2507", _BAILIAN_END),
    *_retired(DASHSCOPE, "qwen3.8-flash", "qwen-3-32b qwen3-32b qwen3-30b-a3b", _BAILIAN_END),
    *_retired(DASHSCOPE, "qwen3.8-flash", "qwen3-next-80b-a3b-instruct", _BAILIAN_END),
    *_retired(DASHSCOPE, "qwen3.8-max", "qwen3-coder-plus qwen3-coder-480b", _BAILIAN_END),
    *_retired(DASHSCOPE, "qwen3.8-max", "qwen-3-350b"),
    *_retired(DASHSCOPE, "qwen3.8-flash", "qwen-3-14b qwen-3-7b qwen-2.5-coder-32b-instruct"),
    *_retired(MOONSHOT, "kimi-k2.6", "moonshot-v1-8k moonshot-v1-32k moonshot-v1-128k", date(2026, 8, 31)),
    *_retired(MOONSHOT, "kimi-k2.6", "kimi-k2.5", date(2026, 8, 31)),
    *_retired(MOONSHOT, "kimi-k2.6", "kimi-k2-0711-preview kimi-k2-0905-preview kimi-k2-turbo-preview", _K2_END),
    *_retired(MOONSHOT, "kimi-k2.6", "kimi-k2-thinking kimi-k2-thinking-turbo", _K2_END),
)
