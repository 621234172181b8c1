"""Answers of each provider of the catalog as its documentation and sources say they look, written by hand.

``ANSWERS`` has for every row what a good answer is, streamed and whole, with what must come of it; ``REFUSALS`` what
its errors are. Every oddity is one that a quirk of the row names, with its date and source (wire.md 2 and 3).
Not here: faults that any provider can have (faults, plan).
"""

from dataclasses import dataclass

from fakes import anthropic_cassettes as claude
from fakes.exchange import Exchange

HEAD = '"id":"c1","object":"chat.completion.chunk","created":1795132800,"model":"served"'
WHOLE = '"id":"c1","object":"chat.completion","created":1795132800,"model":"served"'


@dataclass(frozen=True)
class Answer:
    """A good answer of a row. Token counts are (input, cached input, output, reasoning)."""

    row: str
    stream: str
    whole: str
    tokens: tuple[int, int, int, int]
    text: str = "Hi there"
    reasoning: str = ""
    arguments: str = ""
    finish: str = "stop"
    name: str = "answer"
    content_type: str = "text/event-stream"

    @property
    def model(self) -> str:
        """The upstream model that gets this answer."""
        return f"{self.row}-{self.name}"

    async def play(self, x: Exchange) -> None:
        """Answer a request with it."""
        if not x.request.is_streamed:
            await x.whole(200, "application/json", self.whole.encode())
            return
        await x.head(200, {"content-type": self.content_type})
        for event in self.stream.split("\n\n"):
            await x.emit(event.encode() + (b"\n" if self.row == "ollama" else b"\n\n"))
        await x.flush()
        await x.end()


def chunk(delta: str, finish: str | None = None, more: str = "", inside: str = "") -> str:
    """Write one event; ``more`` goes behind the choices, ``inside`` into the choice."""
    reason = f'"{finish}"' if finish else "null"
    return f'data: {{{HEAD},"choices":[{{"index":0,"delta":{delta},"finish_reason":{reason}{inside}}}]{more}}}'


def alone(more: str) -> str:
    """Write the event that has no choices."""
    return f'data: {{{HEAD},"choices":[]{more}}}'


def whole(message: str, usage: str, finish: str = "stop", inside: str = "") -> str:
    """Write a body."""
    choice = f'{{"index":0,"message":{{"role":"assistant",{message}}},"finish_reason":"{finish}"{inside}}}'
    return f'{{{WHOLE},"choices":[{choice}]{usage}}}'


def stream(*events: str, done: bool = True) -> str:
    """Put events into a row."""
    return "\n\n".join([*events, *(["data: [DONE]"] if done else [])])


def usage(tokens_in: int, tokens_out: int, more: str = "") -> str:
    """Write a usage as a field behind others."""
    counts = f'"prompt_tokens":{tokens_in},"completion_tokens":{tokens_out},"total_tokens":{tokens_in + tokens_out}'
    return f',"usage":{{{counts}{more}}}'


ROLE = chunk('{"role":"assistant","content":""}')
HI = chunk('{"content":"Hi"}')
THERE = chunk('{"content":" there"}')
STOP = chunk("{}", "stop")
CACHED = ',"prompt_tokens_details":{"cached_tokens":4}'
THOUGHT = ',"completion_tokens_details":{"reasoning_tokens":3}'


def plain(row: str, counts: str, tokens: tuple[int, int, int, int], *, name: str = "answer") -> Answer:
    """Make an answer of OpenAI's own shape: the usage in a chunk without choices."""
    return Answer(
        row,
        stream(ROLE, HI, THERE, STOP, alone(counts)),
        whole('"content":"Hi there"', counts),
        tokens,
        name=name,
    )


def thinking(row: str, field: str, counts: str, tokens: tuple[int, int, int, int]) -> Answer:
    """Make an answer with thoughts under a name, and the usage in a chunk without choices."""
    return Answer(
        row,
        stream(ROLE, chunk(f'{{"{field}":"Let me"}}'), chunk(f'{{"{field}":" see"}}'), HI, THERE, STOP, alone(counts)),
        whole(f'"content":"Hi there","{field}":"Let me see"', counts),
        tokens,
        reasoning="Let me see",
        name="thinking",
    )


DEEPSEEK = usage(9, 5, ',"prompt_cache_hit_tokens":4,"prompt_cache_miss_tokens":5' + THOUGHT)
KIMI = usage(9, 2, ',"cached_tokens":4').removeprefix(",")
GROQ = usage(9, 2).removeprefix(",")
CALL_HEAD = '{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"f","arguments":""}}]}'
CALL_REST = '{"tool_calls":[{"index":0,"id":"","type":"function","function":{"arguments":"{\\"a\\":1}"}}]}'
CALL = (
    '"content":null,"tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{\\"a\\":1}"}}]'
)
OLLAMA_END = '"done":true,"done_reason":"stop","prompt_eval_count":9,"eval_count":2'
AZURE_FIRST = (
    'data: {"id":"","object":"","created":0,"model":"","choices":[],"prompt_filter_results":[{"prompt_index":0}]}'
)

ANSWERS = (
    plain("openai", usage(9, 2, CACHED), (9, 4, 2, 0)),
    plain("openai_compatible", usage(9, 2), (9, 0, 2, 0)),
    thinking("cerebras", "reasoning", usage(9, 5, THOUGHT), (9, 0, 5, 3)),
    # The usage is on the chunk with the finish_reason; comments come before it, and empty lines before a body.
    Answer(
        "deepseek",
        stream(
            ": keep-alive",
            ": keep-alive",
            chunk('{"role":"assistant","reasoning_content":"Let me"}', more=',"usage":null'),
            chunk('{"reasoning_content":" see"}', more=',"usage":null'),
            chunk('{"content":"Hi there"}', more=',"usage":null'),
            chunk('{"content":""}', "stop", DEEPSEEK),
        ),
        "\n\n\n" + whole('"content":"Hi there","reasoning_content":"Let me see"', DEEPSEEK),
        (9, 4, 5, 3),
        reasoning="Let me see",
    ),
    thinking("dashscope", "reasoning_content", usage(9, 5, THOUGHT), (9, 0, 5, 3)),
    # Later pieces of a tool call have the id "".
    Answer(
        "dashscope",
        stream(ROLE, chunk(CALL_HEAD), chunk(CALL_REST), chunk("{}", "tool_calls"), alone(usage(9, 5))),
        whole(CALL, usage(9, 5), "tool_calls"),
        (9, 0, 5, 0),
        text="",
        arguments='{"a":1}',
        finish="tool_calls",
        name="tools",
    ),
    # The usage is inside the choice, and the cached tokens are at its top.
    Answer(
        "moonshot",
        stream(ROLE, HI, THERE, chunk("{}", "stop", inside=f",{KIMI}")),
        whole('"content":"Hi there"', f",{KIMI}"),
        (9, 4, 2, 0),
    ),
    plain("moonshot", usage(9, 2, ',"cached_tokens":4' + CACHED), (9, 4, 2, 0), name="newer"),
    Answer(
        "groq",
        stream(ROLE, HI, THERE, chunk("{}", "stop", f',"x_groq":{{"id":"req_1",{GROQ}}}')),
        whole('"content":"Hi there"', usage(9, 2)),
        (9, 0, 2, 0),
    ),
    Answer(
        "openrouter",
        stream(
            ": OPENROUTER PROCESSING",
            chunk('{"role":"assistant","content":"","reasoning":"Let me see"}'),
            HI,
            THERE,
            STOP,
            alone(usage(9, 5, ',"cost":0.00012' + THOUGHT)),
        ),
        whole('"content":"Hi there","reasoning":"Let me see"', usage(9, 5, ',"cost":0.00012' + THOUGHT)),
        (9, 0, 5, 3),
        reasoning="Let me see",
    ),
    # The usage is on the last chunk with a choice, and the finish_reason has another name.
    Answer(
        "mistral",
        stream(ROLE, HI, chunk('{"content":" there"}', "model_length", usage(9, 2))),
        whole('"content":"Hi there"', usage(9, 2), "model_length"),
        (9, 0, 2, 0),
        finish="length",
    ),
    Answer(
        "together",
        stream(ROLE, HI, chunk('{"content":" there"}', "stop", usage(9, 2))),
        whole('"content":"Hi there"', usage(9, 2)),
        (9, 0, 2, 0),
    ),
    plain("gemini", usage(9, 2), (9, 0, 2, 0)),
    # The first event has no choices, no id and no model.
    Answer(
        "azure",
        stream(AZURE_FIRST, ROLE, HI, THERE, STOP, alone(usage(9, 2, CACHED))),
        whole('"content":"Hi there","content_filter_results":{}', usage(9, 2, CACHED)),
        (9, 4, 2, 0),
    ),
    # Every chunk has the running usage.
    Answer(
        "vllm",
        stream(
            chunk('{"role":"assistant","content":""}', more=usage(9, 0)),
            chunk('{"reasoning":"Let me see"}', more=usage(9, 3)),
            chunk('{"content":"Hi there"}', more=usage(9, 5)),
            chunk("{}", "stop", usage(9, 5)),
            alone(usage(9, 5)),
        ),
        whole('"content":"Hi there","reasoning":"Let me see"', usage(9, 5)),
        (9, 0, 5, 0),
        reasoning="Let me see",
    ),
    Answer(
        "sglang",
        stream(
            ROLE,
            chunk('{"reasoning_content":"Let me see"}'),
            HI,
            THERE,
            STOP,
            alone(usage(9, 5, ',"reasoning_tokens":3')),
        ),
        whole('"content":"Hi there","reasoning_content":"Let me see"', usage(9, 5, ',"reasoning_tokens":3')),
        (9, 0, 5, 3),
        reasoning="Let me see",
    ),
    Answer(
        "llamacpp",
        stream(ROLE, HI, THERE, STOP, alone(usage(9, 2, CACHED) + ',"timings":{"cache_n":4,"predicted_n":2}')),
        whole('"content":"Hi there"', usage(9, 2, CACHED) + ',"timings":{"cache_n":4,"predicted_n":2}'),
        (9, 4, 2, 0),
    ),
    # A model that thinks in its text, behind a server that does not know.
    Answer(
        "openai_compatible",
        stream(
            ROLE,
            chunk('{"content":"<thi"}'),
            chunk('{"content":"nk>Let me see</think>"}'),
            HI,
            THERE,
            STOP,
            alone(usage(9, 8)),
        ),
        whole('"content":"<think>Let me see</think>\\n\\nHi there"', usage(9, 8)),
        (9, 0, 8, 0),
        reasoning="Let me see",
        name="tags",
    ),
    # The usage is with the finish_reason, and there is no [DONE].
    Answer(
        "transformers",
        stream(ROLE, HI, THERE, chunk("{}", "stop", usage(9, 2)), done=False),
        whole('"content":"Hi there"', usage(9, 2)),
        (9, 0, 2, 0),
    ),
    Answer(
        "ollama",
        "\n\n".join(
            (
                '{"model":"served","message":{"role":"assistant","content":"","thinking":"Let me see"},"done":false}',
                '{"model":"served","message":{"role":"assistant","content":"Hi there"},"done":false}',
                f'{{"model":"served","message":{{"role":"assistant","content":""}},{OLLAMA_END}}}',
            )
        ),
        '{"model":"served","message":{"role":"assistant","content":"Hi there","thinking":"Let me see"},'
        + OLLAMA_END
        + "}",
        (9, 0, 2, 0),
        reasoning="Let me see",
        content_type="application/x-ndjson",
    ),
    Answer("anthropic", claude.PLAIN_STREAM, claude.PLAIN_WHOLE, (9, 4, 2, 0)),
    Answer(
        "anthropic",
        claude.THINKING_STREAM,
        claude.THINKING_WHOLE,
        (9, 4, 5, 3),
        reasoning="Let me see",
        finish="length",
        name="thinking",
    ),
    Answer(
        "anthropic",
        claude.CALL_STREAM,
        claude.CALL_WHOLE,
        (9, 4, 6, 0),
        text="",
        arguments='{"a":1}',
        finish="tool_calls",
        name="tools",
    ),
)


@dataclass(frozen=True)
class Refusal:
    """An error of a row before any data: its status and body, and what the caller gets."""

    row: str
    name: str
    status: int
    body: str
    expected: tuple[int, str | None]
    """Status and code."""

    @property
    def model(self) -> str:
        """The upstream model that gets this answer."""
        return f"{self.row}-{self.name}"

    async def play(self, x: Exchange) -> None:
        """Answer a request with it."""
        await x.whole(self.status, "application/json", self.body.encode())


def envelope(kind: str, code: str) -> str:
    """Write an error in OpenAI's envelope."""
    return f'{{"error":{{"message":"No","type":"{kind}","param":null,"code":"{code}"}}}}'


def flat(kind: str, code: str) -> str:
    """Write an error without an envelope."""
    return f'{{"object":"error","message":"No","type":"{kind}","param":null,"code":"{code}"}}'


BUSY = (503, "upstream_busy")
ACCOUNT = (502, "upstream_account")
DOWN = (502, "upstream_unavailable")

REFUSALS = (
    Refusal("openai", "spent", 429, envelope("insufficient_quota", "insufficient_quota"), ACCOUNT),
    Refusal("openai", "rate", 429, envelope("tokens", "rate_limit_exceeded"), BUSY),
    Refusal("openai_compatible", "detail", 422, '{"detail":[{"loc":["body","n"],"msg":"bad"}]}', (422, None)),
    Refusal("cerebras", "rate", 429, flat("too_many_requests_error", "request_quota_exceeded"), BUSY),
    Refusal("cerebras", "format", 400, flat("invalid_request_error", "wrong_api_format"), (400, "wrong_api_format")),
    Refusal("cerebras", "payment", 402, flat("payment_required_error", "payment_required"), ACCOUNT),
    Refusal("deepseek", "balance", 402, envelope("unknown_error", "invalid_request_error"), ACCOUNT),
    Refusal(
        "deepseek",
        "retired",
        400,
        envelope("invalid_request_error", "invalid_request_error"),
        (400, "invalid_request_error"),
    ),
    Refusal("dashscope", "arrears", 400, envelope("Arrearage", "Arrearage"), ACCOUNT),
    Refusal("moonshot", "quota", 429, '{"error":{"message":"No","type":"exceeded_current_quota_error"}}', ACCOUNT),
    Refusal("moonshot", "overload", 429, '{"error":{"message":"No","type":"engine_overloaded_error"}}', BUSY),
    Refusal("moonshot", "balance", 403, '{"error":{"message":"No","type":"permission_denied_error"}}', ACCOUNT),
    Refusal("groq", "capacity", 498, envelope("capacity", "flex"), DOWN),
    Refusal("openrouter", "credits", 402, '{"error":{"code":402,"message":"No","metadata":{}}}', ACCOUNT),
    Refusal(
        "mistral",
        "extra",
        422,
        '{"object":"error","message":{"detail":[{"type":"extra_forbidden",'
        '"loc":["body","x"],"msg":"Extra inputs are not permitted"}]},"type":"invalid_request_error",'
        '"param":null,"code":null}',
        (422, None),
    ),
    Refusal("together", "down", 503, envelope("server_error", "overloaded"), DOWN),
    Refusal("gemini", "list", 400, '[{"error":{"code":400,"message":"No","status":"INVALID_ARGUMENT"}}]', (400, "400")),
    Refusal("gemini", "exhausted", 429, '[{"error":{"code":429,"message":"No","status":"RESOURCE_EXHAUSTED"}}]', BUSY),
    Refusal("azure", "filtered", 400, envelope("invalid_request_error", "content_filter"), (400, "content_filter")),
    Refusal(
        "vllm",
        "missing",
        404,
        '{"error":{"message":"No","type":"NotFoundError","param":"model","code":404}}',
        (404, "404"),
    ),
    Refusal(
        "sglang",
        "bad",
        400,
        '{"object":"error","message":"No","type":"BadRequestError","param":null,"code":400}',
        (400, "400"),
    ),
    Refusal(
        "llamacpp", "loading", 503, '{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}', DOWN
    ),
    # llama-cpp-python's server, of a body that did not validate.
    Refusal(
        "llamacpp",
        "invalid",
        500,
        r"""{"error":{"message":"1 validation error:\n  {'loc': ('body', 'top_p'), 'msg': 'Input should be a number'}"""
        r"""\n\n  File \"/srv/llama_cpp/server/app.py\", line 376","type":"internal_server_error","code":null}}""",
        (400, None),
    ),
    Refusal("transformers", "fields", 422, '{"detail":"Unexpected fields in the request: {\'x\'}"}', (422, None)),
    Refusal("transformers", "dead", 503, '{"error":"the worker is gone"}', DOWN),
    Refusal("anthropic", "overloaded", 529, claude.error("overloaded_error"), BUSY),
    Refusal("anthropic", "rate", 429, claude.error("rate_limit_error"), BUSY),
    Refusal("anthropic", "key", 401, claude.error("authentication_error"), ACCOUNT),
    Refusal("anthropic", "billing", 402, claude.error("billing_error"), ACCOUNT),
    Refusal(
        "anthropic",
        "credit",
        400,
        claude.error("invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
        ACCOUNT,
    ),
    Refusal("anthropic", "bad", 400, claude.error("invalid_request_error"), (400, None)),
    Refusal("anthropic", "missing", 404, claude.error("not_found_error"), (404, None)),
    Refusal("anthropic", "large", 413, claude.error("request_too_large"), (413, None)),
    Refusal("anthropic", "down", 500, claude.error("api_error"), DOWN),
    Refusal("ollama", "missing", 404, '{"error":"model \'x\' not found"}', (404, None)),
)
