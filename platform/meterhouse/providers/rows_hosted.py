"""The rows of companies that sell answers (wire.md 2). Data only; every quirk has its day and its source.

``on_client_gone`` follows OpenRouter's list of who stops billing when a stream is closed, as of 2026-11-20. None of
them is taken to show all that it charges (``shows_all_output``): each has a way to think unseen.
"""

from datetime import date
from types import MappingProxyType

from meterhouse.providers.endpoints import AZURE_ENDPOINTS, OPENAI_ENDPOINTS, serving
from meterhouse.providers.provider import ModelRule, Provider, Quirk, Timeouts
from meterhouse.providers.rows_local import HIDDEN_THINKING

OPENAI = "openai"
CEREBRAS = "cerebras"
DEEPSEEK = "deepseek"
DASHSCOPE = "dashscope"
MOONSHOT = "moonshot"

_REASONING = frozenset({"reasoning_content", "reasoning"})
_SLOW_START = Timeouts(first_token_seconds=600.0)
_QUEUE = Timeouts(first_token_seconds=620.0)
"""DeepSeek keeps a request in its queue for up to ten minutes."""
_MAAS = "https://{workspace}.%s.maas.aliyuncs.com/compatible-mode/v1"
_MAAS_REGIONS = ("ap-southeast-1", "ap-northeast-1", "cn-hongkong", "us-east-1")

HOSTED_PROVIDERS = (
    Provider(
        name=OPENAI,
        wire="openai",
        base_url="https://api.openai.com/v1",
        endpoints=OPENAI_ENDPOINTS,
        credential_names=("OPENAI_API_KEY",),
        dropped_message_fields=_REASONING,
        max_tokens_field="max_completion_tokens",
        assumed_max_output_tokens=128_000,
        hidden_thinking_prefixes=HIDDEN_THINKING,
        price_source="openai",
        timeouts=_SLOW_START,
        quirks=(
            Quirk(
                date(2026, 8, 21),
                "max_tokens is deprecated and refused by the o-series and later reasoning models, so the bound always"
                " goes out as max_completion_tokens; reasoning tokens count against it.",
                "openai-openapi 2.3.0",
            ),
            Quirk(
                date(2026, 10, 15),
                "The gpt-4o and gpt-4o-mini snapshots shut down on 2027-01-14; gpt-5, gpt-5-mini and gpt-5-nano end"
                " on 2026-12-11.",
                "OpenAI's deprecations page",
            ),
            Quirk(
                date(2026, 11, 20),
                "Closing the connection stops a stream; what was generated until then is billed, and no promise says"
                " more.",
                "OpenAI's documentation; OpenRouter's page on stream cancellation",
            ),
            Quirk(
                date(2026, 11, 12),
                "Messages have no reasoning_content: what another provider thought is not sent on.",
                "litellm 1.109.1",
            ),
        ),
    ),
    Provider(
        name=CEREBRAS,
        wire="openai",
        base_url="https://api.cerebras.ai/v1",
        credential_names=("CEREBRAS_API_KEY",),
        max_tokens_field="max_completion_tokens",
        default_max_tokens=8_192,
        assumed_max_output_tokens=32_768,
        denied_parameters=frozenset({"logit_bias"}),
        dropped_parameters=frozenset(
            {"frequency_penalty", "presence_penalty", "parallel_tool_calls", "service_tier", "user", "store"}
        ),
        dropped_message_fields=_REASONING,
        price_source="cerebras",
        quirks=(
            Quirk(
                date(2026, 11, 12),
                "Errors have no envelope: {message, type, param, code}; a property that it does not know, such as"
                " messages[].reasoning_content, is a 400 wrong_api_format.",
                "litellm 1.109.1; inference-docs.cerebras.ai, error page",
            ),
            Quirk(
                date(2026, 11, 12),
                "frequency_penalty, presence_penalty, logit_bias, parallel_tool_calls and service_tier were refused.",
                "litellm 1.109.1",
            ),
            Quirk(
                date(2026, 11, 12),
                "Tokens are taken from the quota when a request is admitted, by max_completion_tokens or 16,384, so a"
                " request without a bound gets one of 8,192.",
                "inference-docs.cerebras.ai, rate limits",
            ),
            Quirk(date(2026, 11, 12), "Thinking arrives as `reasoning`.", "litellm 1.109.1"),
        ),
    ),
    Provider(
        name=DEEPSEEK,
        wire="openai",
        base_url="https://api.deepseek.com",
        endpoints=serving(messages="/anthropic/v1/messages"),
        credential_names=("DEEPSEEK_API_KEY",),
        assumed_max_output_tokens=384_000,
        reasoning_replay="fill",
        price_source="deepseek",
        timeouts=_QUEUE,
        quirks=(
            Quirk(
                date(2026, 10, 17),
                "usage is always on the chunk with the finish_reason; include_usage only adds nulls to the others.",
                "DeepSeek's API documentation, quoted in macparakeet #1087",
            ),
            Quirk(
                date(2026, 10, 17),
                "While a request waits, a stream gets `: keep-alive` comments and a body empty lines, for ten minutes"
                " at most; streams were seen that send comments for ever.",
                "api-docs.deepseek.com, rate limit; deepseek-harness #6959",
            ),
            Quirk(
                date(2026, 10, 17),
                "Cached input is prompt_cache_hit_tokens, and also in prompt_tokens_details.",
                "api-docs.deepseek.com",
            ),
            Quirk(
                date(2026, 11, 12),
                "While it thinks (which is its default), each message of the assistant in the history must have"
                " reasoning_content, or it is a 400; a blank is enough.",
                "litellm 1.109.1",
            ),
            Quirk(date(2026, 10, 17), "402 is an empty account.", "api-docs.deepseek.com, error codes"),
        ),
    ),
    Provider(
        name=DASHSCOPE,
        aliases=("qwen",),
        wire="openai",
        base_url="https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
        regions=MappingProxyType(
            {
                "cn": "https://dashscope.aliyuncs.com/compatible-mode/v1",
                "intl": "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
                "us": "https://dashscope-us.aliyuncs.com/compatible-mode/v1",
                **{region: _MAAS % region for region in _MAAS_REGIONS},
            }
        ),
        endpoints=serving("embeddings"),
        embeddings_max_inputs=10,
        sends_floats_only=True,
        credential_names=("DASHSCOPE_API_KEY",),
        denied_parameters=frozenset({"enable_search", "search_options"}),
        assumed_max_output_tokens=131_072,
        unstreamed_body_defaults=MappingProxyType({"enable_thinking": False}),
        on_client_gone="drain",
        quirks=(
            Quirk(
                date(2026, 10, 13),
                "A key belongs to one region; newer ones have a host for each workspace.",
                "Alibaba Model Studio, compatibility page",
            ),
            Quirk(
                date(2026, 10, 13),
                "enable_thinking must be false where the answer is not streamed; some models only stream.",
                "Alibaba Model Studio, error codes",
            ),
            Quirk(
                date(2026, 11, 12),
                'Later pieces of a tool call carry the id "" where OpenAI leaves it out.',
                "litellm 1.109.1",
            ),
            Quirk(
                date(2026, 10, 13),
                "An account in arrears is a 400 with the code Arrearage.",
                "Alibaba Model Studio, error codes",
            ),
            Quirk(
                date(2026, 11, 28),
                "enable_search is charged per search, and what it finds is added to the input.",
                "Alibaba Model Studio, web search",
            ),
        ),
    ),
    Provider(
        name=MOONSHOT,
        aliases=("kimi",),
        wire="openai",
        base_url="https://api.moonshot.ai/v1",
        base_url_names=("MOONSHOT_API_BASE",),
        regions=MappingProxyType({"global": "https://api.moonshot.ai/v1", "cn": "https://api.moonshot.cn/v1"}),
        credential_names=("KIMI_API_KEY", "MOONSHOT_API_KEY"),
        denied_parameters=frozenset({"functions", "function_call"}),
        denied_values=MappingProxyType({"tool_choice": frozenset({"required"})}),
        model_rules=(
            ModelRule(
                ("kimi-k2.5", "kimi-k2.6", "kimi-k2.7", "kimi-k3"), dropped_parameters=frozenset({"temperature"})
            ),
        ),
        reasoning_replay="fill_for_calls",
        flattens_text_parts=True,
        assumed_max_output_tokens=262_144,
        price_source="moonshotai",
        quirks=(
            Quirk(
                date(2026, 11, 12),
                "usage is in choices[0].usage of the chunk with the finish_reason, newer models have it at the top;"
                " cached_tokens is at the top of usage, and inside prompt_tokens.",
                "litellm 1.109.1; bike4mind #1089 of 2026-07-29",
            ),
            Quirk(
                date(2026, 11, 12),
                "kimi-k2.5 and later refuse any temperature but 1.",
                "litellm 1.109.1; platform.kimi.com",
            ),
            Quirk(
                date(2026, 11, 12),
                "tool_choice required is not supported; a message with tool calls must have some reasoning_content;"
                " models for text want a string and no parts.",
                "litellm 1.109.1",
            ),
            Quirk(
                date(2026, 11, 12),
                "Keys of the two consoles (.ai and .cn) do not open the other; 403, or 429"
                " exceeded_current_quota_error, is an empty account.",
                "platform.kimi.com, errors",
            ),
        ),
    ),
    Provider(
        name="groq",
        wire="openai",
        base_url="https://api.groq.com/openai/v1",
        endpoints=serving("transcriptions", "translations", "speech"),
        credential_names=("GROQ_API_KEY",),
        max_tokens_field="max_completion_tokens",
        assumed_max_output_tokens=65_536,
        denied_parameters=frozenset({"logprobs", "top_logprobs", "logit_bias"}),
        dropped_message_fields=frozenset({"name"}),
        on_client_gone="drain",
        price_source="groq",
        quirks=(
            Quirk(
                date(2026, 11, 12),
                "logprobs, top_logprobs, logit_bias, messages[].name and n other than 1 are a 400.",
                "console.groq.com/docs/openai",
            ),
            Quirk(date(2026, 11, 12), "usage is in x_groq.usage of the last chunk, too.", "litellm 1.109.1"),
        ),
    ),
    Provider(
        name="openrouter",
        wire="openai",
        base_url="https://openrouter.ai/api/v1",
        endpoints=serving("completions", "embeddings"),
        credential_names=("OPENROUTER_API_KEY",),
        denied_parameters=frozenset({"models", "route", "plugins", "preset"}),
        doubtful_refusals=frozenset({402, 403}),
        assumed_max_output_tokens=128_000,
        sends_include_usage=False,
        discovers_models=True,
        hidden_thinking_prefixes=HIDDEN_THINKING,
        price_source="openrouter",
        quirks=(
            Quirk(
                date(2026, 11, 12),
                "usage is always in the last message; asking for it has no effect any more. Comments"
                " `: OPENROUTER PROCESSING` keep a stream open.",
                "OpenRouter's documentation, streaming",
            ),
            Quirk(
                date(2026, 11, 12),
                "An error in a stream is a chunk with `error` and the finish_reason error; 402 is an empty account.",
                "OpenRouter's documentation, errors",
            ),
            Quirk(
                date(2026, 11, 28),
                "402 is also said of a request whose max_tokens costs more than is left: smaller ones are answered.",
                "OpenRouter's documentation, errors and limits",
            ),
            Quirk(
                date(2026, 11, 28),
                "models, route and preset have another model answer than the one that was asked for and held; plugins"
                " (a web search, the reading of files) cost money of their own.",
                "OpenRouter's documentation, model routing, presets and plugins",
            ),
        ),
    ),
    Provider(
        name="mistral",
        wire="openai",
        base_url="https://api.mistral.ai/v1",
        endpoints=serving("embeddings", "moderations", "transcriptions"),
        credential_names=("MISTRAL_API_KEY",),
        renames=MappingProxyType({"seed": "random_seed"}),
        value_renames=MappingProxyType({"tool_choice": MappingProxyType({"required": "any"})}),
        denied_parameters=frozenset({"logit_bias", "logprobs", "top_logprobs", "functions", "function_call"}),
        dropped_parameters=frozenset(
            {"user", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity"}
        ),
        dropped_message_fields=_REASONING,
        finish_reasons=MappingProxyType({"model_length": "length"}),
        assumed_max_output_tokens=128_000,
        sends_include_usage=False,
        on_client_gone="drain",
        price_source="mistral",
        quirks=(
            Quirk(
                date(2025, 12, 1),
                "A key that it does not know is a 422 extra_forbidden, max_completion_tokens and stream_options too.",
                "litellm 1.109.1; GitHub issues of 2025-12",
            ),
            Quirk(
                date(2026, 11, 12),
                "seed is random_seed, tool_choice required is any, a finish_reason may be model_length; errors have no"
                " envelope.",
                "litellm 1.109.1",
            ),
        ),
    ),
    Provider(
        name="together",
        wire="openai",
        base_url="https://api.together.ai/v1",
        endpoints=serving("completions", "embeddings", "images", "transcriptions", "speech"),
        credential_names=("TOGETHER_API_KEY", "TOGETHERAI_API_KEY"),
        assumed_max_output_tokens=128_000,
        price_source="together",
        quirks=(
            Quirk(date(2026, 11, 12), "usage is in the last chunk that has a choice.", "litellm 1.109.1"),
            Quirk(date(2026, 11, 12), "The list of models is a bare JSON list.", "Together's API reference"),
        ),
    ),
    Provider(
        name="gemini",
        wire="openai",
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        endpoints=serving("embeddings", "images"),
        credential_names=("GEMINI_API_KEY",),
        denied_parameters=frozenset({"logit_bias"}),
        dropped_parameters=frozenset({"user", "store", "service_tier", "safety_identifier", "prompt_cache_key"}),
        dropped_message_fields=_REASONING,
        assumed_max_output_tokens=65_536,
        on_client_gone="drain",
        price_source="google",
        timeouts=_SLOW_START,
        quirks=(
            Quirk(
                date(2026, 11, 20),
                "An error is often a list with one object: [{error: {code, message, status}}].",
                "ai.google.dev/gemini-api/docs/openai; general knowledge",
            ),
            Quirk(
                date(2026, 11, 20),
                "Thoughts are billed as output and not shown, so a budget holds the whole answer; a tool call's"
                " signature comes in extra_content and must be sent back as it came.",
                "ai.google.dev/gemini-api/docs/openai; general knowledge",
            ),
        ),
    ),
    Provider(
        name="azure",
        wire="openai",
        base_url=None,
        base_url_names=("AZURE_OPENAI_ENDPOINT",),
        base_url_suffix="/openai/v1",
        endpoints=AZURE_ENDPOINTS,
        credential_names=("AZURE_OPENAI_API_KEY",),
        credential_header="api-key",
        credential_prefix="",
        dropped_message_fields=_REASONING,
        max_tokens_field="max_completion_tokens",
        assumed_max_output_tokens=128_000,
        hidden_thinking_prefixes=HIDDEN_THINKING,
        price_source="azure",
        timeouts=_SLOW_START,
        quirks=(
            Quirk(
                date(2026, 11, 20),
                "The v1 address needs no api-version; a deployment's name goes where the model's goes, so its models"
                " are named with _MODELS=name=deployment.",
                "learn.microsoft.com, Azure OpenAI v1",
            ),
            Quirk(
                date(2026, 11, 20),
                "The first chunk has no choices, no id and no model, but prompt_filter_results; a blocked prompt is a"
                " 400 with the code content_filter.",
                "litellm 1.109.1 and its issues",
            ),
        ),
    ),
)
