"""The rows of servers that an operator runs: Ollama, vLLM, SGLang, llama.cpp, transformers serve, and any other.

Invariant: data only; every quirk has the day since which it is known and where it was read.
"""

from datetime import date
from types import MappingProxyType

from meterhouse.providers.endpoints import serving
from meterhouse.providers.provider import Provider, Quirk, Timeouts

OPENAI_COMPATIBLE = "openai_compatible"
OLLAMA = "ollama"

HIDDEN_THINKING = ("o1", "o3", "o4", "gpt-5", "gpt-6")
"""How the names of models begin that think without showing it."""
LOCAL_TIMEOUTS = Timeouts(first_token_seconds=600.0)
"""A local server may first have to load the model, or to work off a queue."""

LLAMA_CPP_PYTHON = "llama-cpp-python 0.3.36, run (tests/real_model)"
TRANSFORMERS = "transformers 5.24.0, run (tests/real_model)"

LOCAL_PROVIDERS = (
    Provider(
        name=OLLAMA,
        wire="ollama",
        shows_all_output=True,
        reads_think_tags=True,
        base_url="http://localhost:11434",
        credential_names=("OLLAMA_API_KEY",),
        chat_path="/api/chat",
        models_path="/api/tags",
        health_path="/api/tags",
        denied_parameters=frozenset({"functions", "function_call", "audio", "prediction", "web_search_options"}),
        dropped_parameters=frozenset({"logit_bias", "parallel_tool_calls", "service_tier", "user", "verbosity"}),
        default_max_tokens=512,
        assumed_max_output_tokens=8_192,
        sends_include_usage=False,
        discovers_models=True,
        timeouts=LOCAL_TIMEOUTS,
        endpoints=serving(embeddings="/api/embed", completions="/v1/completions"),
        quirks=(
            Quirk(
                date(2026, 8, 21),
                "Counts of zero are left out of the last line, so a fully cached prompt has no prompt_eval_count.",
                "ollama at fb307609",
            ),
            Quirk(
                date(2026, 8, 21),
                "The native wire is used and not its /v1, where a failure in mid-stream arrives as an empty delta and"
                " an end without finish_reason, and max_completion_tokens is ignored.",
                "ollama at fb307609",
            ),
        ),
    ),
    Provider(
        name="vllm",
        wire="openai",
        base_url=None,
        shows_all_output=True,
        reads_think_tags=True,
        assumed_max_output_tokens=16_384,
        sends_continuous_usage=True,
        discovers_models=True,
        timeouts=LOCAL_TIMEOUTS,
        endpoints=serving("completions", "embeddings", "messages", "transcriptions", "translations"),
        quirks=(
            Quirk(
                date(2026, 8, 21),
                "With continuous_usage_stats every chunk carries the running usage, so that a broken stream is charged"
                " exactly.",
                "vllm's chat protocol at 002032ee",
            ),
            Quirk(
                date(2026, 8, 21),
                "Thinking arrives as `reasoning` (older versions: reasoning_content); an error's code is the status as"
                " a number, and a failure in mid-stream is an error object before [DONE].",
                "vllm's chat protocol at 002032ee",
            ),
            Quirk(
                date(2026, 8, 21),
                "Without --enable-auto-tool-choice and a parser tool calls stay text, and tool_choice auto is a 400.",
                "vllm's tool_calling.md at 0064cc9c",
            ),
        ),
    ),
    Provider(
        name="sglang",
        wire="openai",
        base_url=None,
        shows_all_output=True,
        reads_think_tags=True,
        assumed_max_output_tokens=16_384,
        sends_continuous_usage=True,
        discovers_models=True,
        timeouts=LOCAL_TIMEOUTS,
        endpoints=serving("completions", "embeddings", "messages"),
        quirks=(
            Quirk(
                date(2026, 10, 30),
                "Errors have no envelope: {object: error, message, type, param, code}; in a stream they have one.",
                "sglang 0.5.23",
            ),
            Quirk(
                date(2026, 10, 30),
                "usage has reasoning_tokens beside completion_tokens_details; cached tokens only with"
                " --enable-cache-report.",
                "sglang 0.5.23",
            ),
        ),
    ),
    Provider(
        name="llamacpp",
        aliases=("llama_cpp",),
        wire="openai",
        base_url=None,
        health_path="/health",
        lists_models_once=True,
        answers_any_name=True,
        shows_all_output=True,
        reads_think_tags=True,
        renames=MappingProxyType({"repetition_penalty": "repeat_penalty"}),
        assumed_max_output_tokens=16_384,
        discovers_models=True,
        timeouts=LOCAL_TIMEOUTS,
        endpoints=serving("completions", "embeddings"),
        quirks=(
            Quirk(
                date(2026, 8, 21),
                "While it loads the model it answers 503 unavailable_error; an error's code is the status as a number.",
                "llama.cpp's tools/server/README.md at 00dc8057",
            ),
            Quirk(
                date(2026, 8, 21),
                "The penalty of repetition is called repeat_penalty.",
                "llama.cpp's tools/server/README.md at 00dc8057",
            ),
            Quirk(
                date(2026, 11, 28),
                "llama-cpp-python's server says in no stream what was used, whatever stream_options ask for.",
                LLAMA_CPP_PYTHON,
            ),
            Quirk(
                date(2026, 11, 28),
                "llama-cpp-python answers one request at a time. Unless it was started with --interrupt_requests false,"
                " the next one, be it for the list of models, ends a running stream with [DONE] and no finish_reason.",
                LLAMA_CPP_PYTHON,
            ),
            Quirk(
                date(2026, 11, 28),
                "llama-cpp-python answers what it cannot validate with a 500 that counts the errors and quotes the"
                " body, and any model's name with its own model.",
                LLAMA_CPP_PYTHON,
            ),
        ),
    ),
    Provider(
        name="transformers",
        wire="openai",
        base_url=None,
        shows_all_output=True,
        reads_think_tags=True,
        dropped_parameters=frozenset(
            {
                "frequency_penalty",
                "metadata",
                "parallel_tool_calls",
                "presence_penalty",
                "prompt_cache_key",
                "repetition_penalty",
                "safety_identifier",
                "service_tier",
                "store",
                "user",
                "verbosity",
            }
        ),
        denied_parameters=frozenset(
            {"audio", "functions", "function_call", "logprobs", "prediction", "response_format"}
        ),
        denied_values=MappingProxyType({"tool_choice": frozenset({"required"})}),
        default_max_tokens=1_024,
        assumed_max_output_tokens=8_192,
        sends_include_usage=False,
        discovers_models=True,
        timeouts=LOCAL_TIMEOUTS,
        endpoints=serving("completions", "transcriptions"),
        quirks=(
            Quirk(
                date(2026, 11, 13),
                "A field that it does not know is a 422; stream_options, tool_choice, response_format, n and others are"
                " ignored.",
                "transformers 5.23.0",
            ),
            Quirk(
                date(2026, 11, 13),
                "usage is in the chunk with the finish_reason, there is no [DONE], and an error in the stream is a"
                " string that may be no valid JSON.",
                "transformers 5.23.0",
            ),
            Quirk(
                date(2026, 11, 28),
                "frequency_penalty is taken for a penalty of repetition: 1 is added to it, so that -1 and less fail"
                " with a 500. Older versions did not add it, and 0 failed. repetition_penalty is a 422.",
                TRANSFORMERS,
            ),
            Quirk(
                date(2026, 11, 28),
                "The text of a stop sequence stays at the end of the answer.",
                TRANSFORMERS,
            ),
            Quirk(
                date(2026, 11, 28),
                "It generates an answer that is not streamed to its end, though nobody waits for it any more.",
                TRANSFORMERS,
            ),
            Quirk(
                date(2026, 11, 28),
                "A model that was given on the command line is the only one that is listed since 5.24.0; before, the"
                " list was what the hub's cache holds.",
                TRANSFORMERS,
            ),
        ),
    ),
    Provider(
        name=OPENAI_COMPATIBLE,
        wire="openai",
        base_url=None,
        reads_think_tags=True,
        assumed_max_output_tokens=16_384,
        discovers_models=True,
        hidden_thinking_prefixes=HIDDEN_THINKING,
        timeouts=LOCAL_TIMEOUTS,
        endpoints=serving(
            "completions", "embeddings", "moderations", "images", "transcriptions", "translations", "speech"
        ),
        quirks=(
            Quirk(
                date(2026, 11, 20),
                "A thinking model behind a server without a parser writes its thoughts as <think>...</think> before its"
                " answer.",
                "the sources of vLLM and SGLang, whose reasoning parsers do the same",
            ),
            Quirk(
                date(2026, 11, 20),
                "Servers disagree on max_completion_tokens (Ollama, Mistral and older ones refuse or ignore it);"
                " max_tokens is understood by all that were read.",
                "the sources of Ollama, vLLM, SGLang, llama.cpp; Mistral's API errors of 2025-12",
            ),
        ),
    ),
)
