"""Answers of local models that hold tool calls, as each family writes them (wire.md 4), and what they mean."""

from typing import Any, NamedTuple

from meterhouse.translate.tool_text.tools import Call

WEATHER = "get_weather"
NOTE = "write_note"
NOW = "now"
FUNCTIONS: list[dict[str, Any]] = [
    {
        "name": WEATHER,
        "description": "Says what the weather will be.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "celsius": {"type": "boolean"},
                "ratio": {"type": "number"},
                "near": {"type": "array", "items": {"type": "string"}},
                "options": {"type": "object"},
                "zip": {"type": ["string", "null"]},
            },
            "required": ["city"],
        },
    },
    {"name": NOTE, "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}},
    {"name": NOW},
]
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": function} for function in FUNCTIONS]
SCHEMAS: dict[str, Any] = {function["name"]: function.get("parameters") for function in FUNCTIONS}

PARIS = Call(WEATHER, '{"city":"Paris","days":3}')
NOTED = Call(NOTE, '{"text":"a </tool_call> b: \\"ü\\""}')
CLOCK = Call(NOW, "{}")


class Example(NamedTuple):
    """An answer: its format, its text, and the pieces that it is."""

    format: str
    text: str
    pieces: list[str | Call]


EXAMPLES = [
    # GLM-4: the bare name, a newline, JSON; turns of their own for several.
    Example("glm4", '\nget_weather\n{"city": "Paris", "days": 3}', [PARIS]),
    Example("glm4", 'get_weather \n{"city": "Paris",\n "days": 3}\n <|observation|>', [PARIS]),
    Example("glm4", 'get_weather\n{"city":"Paris","days":3}<|assistant|>now\n{}', [PARIS, CLOCK]),
    Example("glm4", 'get_weather\n{"city":"Paris","days":3}\nnow\n{}\n', [PARIS, CLOCK]),
    Example("glm4", "Let me see. \n<|assistant|>now\n{}", ["Let me see.", CLOCK]),
    Example("glm4", "\n It is  sunny.\n\n", ["It is  sunny."]),
    Example("glm4", "now is the time\n{}", ["now is the time\n{}"]),
    Example("glm4", "nothing\n{}", ["nothing\n{}"]),
    Example("glm4", "now\nand then", ["now\nand then"]),
    Example("glm4", 'now\n{"a": }', ['now\n{"a": }']),
    Example("glm4", "get_weath", ["get_weath"]),
    # GLM-4.5 and 4.6, 4.7 and 5: values as bare text.
    Example(
        "glm45",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
        [PARIS],
    ),
    Example(
        "glm45",
        "I look.\n<tool_call>get_weather\\n<arg_key>city</arg_key>\\n<arg_value>Paris</arg_value>\\n"
        "<arg_key>days</arg_key>\\n<arg_value>3</arg_value>\\n</tool_call>\n<tool_call>now</tool_call>\n",
        ["I look.\n", PARIS, CLOCK],
    ),
    Example(
        "glm45",
        '<tool_call>write_note<arg_key>text</arg_key><arg_value>a </tool_call> b: "ü"</arg_value></tool_call>',
        [NOTED],
    ),
    Example("glm45", "<tool_call>now</tool_call> Done.", [CLOCK, "Done."]),
    Example("glm45", "<tool_call>later</tool_call>", ["<tool_call>later</tool_call>"]),
    Example("glm45", "<tool_call>now<arg_key>a</arg_key>?", ["<tool_call>now<arg_key>a</arg_key>?"]),
    Example("glm45", "<tool_call>now<arg_key>a", ["<tool_call>now<arg_key>a"]),
    # Hermes and Qwen: JSON in a block; a closing tag inside a string closes nothing.
    Example(
        "hermes",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>',
        [PARIS],
    ),
    Example(
        "hermes",
        'Two:\n<tool_call>\n{"name":"write_note","arguments":{"text":"a </tool_call> b: \\"ü\\""}}\n</tool_call>\n'
        '<tool_call>{"name":"now","arguments":{}}',
        ["Two:\n", NOTED, CLOCK],
    ),
    Example(
        "hermes",
        '<think>I could <tool_call> now.</think>\n\n<tool_call>\n{"name": "now"}\n</tool_call>',
        ["<think>I could <tool_call> now.</think>", CLOCK],
    ),
    Example("hermes", "1 < 2, <b>, <tool_box>", ["1 < 2, <b>, <tool_box>"]),
    Example("hermes", '<tool_call>\n{"name": "later"}\n</tool_call>', ['<tool_call>\n{"name": "later"}\n</tool_call>']),
    Example("hermes", '<tool_call>\n{"name": "now", "arguments": [', ['<tool_call>\n{"name": "now", "arguments": [']),
    Example(
        "hermes",
        '<tool_call>{bad}</tool_call><tool_call>{"name":"now"}</tool_call>',
        ["<tool_call>{bad}</tool_call>", CLOCK],
    ),
    Example(
        "hermes",
        'So:\n```\n<tool_call>{"name":"now"}</tool_call>\n```\n<tool_call>{"name":"now"}</tool_call>',
        ['So:\n```\n<tool_call>{"name":"now"}</tool_call>\n```\n', CLOCK],
    ),
    # Qwen3-Coder: values as bare text, closers may be missing.
    Example(
        "qwen3_coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "</function>\n</tool_call>",
        [PARIS],
    ),
    Example(
        "qwen3_coder",
        "<function=get_weather>\n<parameter=city>\nParis\n<parameter=days>\n3\n</function>\n<function=now>\n</function>",
        [PARIS, CLOCK],
    ),
    Example("qwen3_coder", "Hm.\n<tool_call>\n<function=now>\n", ["Hm.\n", CLOCK]),
    Example(
        "qwen3_coder",
        '<tool_call><function=write_note><parameter=text>a </tool_call> b: "ü"</parameter></function></tool_call>',
        [NOTED],
    ),
    Example("qwen3_coder", "<tool_call>\n<functional>", ["<tool_call>\n<functional>"]),
    # Llama 3: JSON, bare or behind its tag.
    Example("llama3_json", '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}', [PARIS]),
    Example(
        "llama3_json",
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}; {"name": "now"}<|eom_id|>',
        [PARIS, CLOCK],
    ),
    Example("llama3_json", 'Well, <|python_tag|>{"type": "function", "name": "now"}', ["Well, ", CLOCK]),
    Example("llama3_json", ' {"arguments": {"city":"Paris","days":3}, "name": "get_weather"} ;', [PARIS]),
    Example("llama3_json", '{"weather": "sunny"}', ['{"weather": "sunny"}']),
    Example("llama3_json", '{"name": "Ada", "parameters": {}}', ['{"name": "Ada", "parameters": {}}']),
    # Llama 4 and LFM2: Python.
    Example("pythonic", '[get_weather(city="Paris", days=3)]', [PARIS]),
    Example("pythonic", " [get_weather(city='Paris', days = 3), now()]\n", [PARIS, CLOCK]),
    Example(
        "pythonic",
        '<|tool_call_start|>[write_note(text="a </tool_call> b: \\"ü\\"")]<|tool_call_end|>',
        [NOTED],
    ),
    Example(
        "pythonic",
        "[get_weather(city='x', near=['a', \"b\",], options={'k': (1, None)}, celsius=True, ratio=-1.5)]",
        [
            Call(
                WEATHER,
                '{"city":"x","near":["a","b"],"options":{"k":[1,null]},"celsius":true,"ratio":-1.5}',
            )
        ],
    ),
    Example("pythonic", "[1] says so", ["[1] says so"]),
    Example("pythonic", "[now(", ["[now("]),
    Example("pythonic", "[now(5)]", ["[now(5)]"]),
    # Mistral: an array, or name and arguments between marks.
    Example(
        "mistral",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}, {"name": "now"}]',
        [PARIS, CLOCK],
    ),
    Example(
        "mistral",
        'Sure.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 3}[TOOL_CALLS]now[CALL_ID]aBc123dEf[ARGS]{}',
        ["Sure.", PARIS, CLOCK],
    ),
    Example("mistral", "[TOOL_CALLS] none", ["[TOOL_CALLS] none"]),
    Example("mistral", "see [TOOLS]", ["see [TOOLS]"]),
    # DeepSeek V3 (fenced) and V3.1.
    Example(
        "deepseek_v3",
        "Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"  # noqa: RUF001 - its own bars
        '```json\n{"city": "Paris", "days": 3}\n```<｜tool▁call▁end｜>\n'  # noqa: RUF001
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",  # noqa: RUF001
        ["Hm.", PARIS, CLOCK],
    ),
    Example(
        "deepseek_v3",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris", "days": 3}'  # noqa: RUF001
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",  # noqa: RUF001
        [PARIS],
    ),
    Example("deepseek_v3", "<｜tool▁calls▁begin｜>?", ["<｜tool▁calls▁begin｜>?"]),  # noqa: RUF001
    # Kimi K2: the name is in the id, which may be a mere number.
    Example(
        "kimi_k2",
        "Ok.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Paris", "days": 3}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>'
        "{}<|tool_call_end|><|tool_calls_section_end|>",
        ["Ok.", PARIS, CLOCK],
    ),
    Example(
        "kimi_k2",
        "<|tool_calls_section_begin|><|tool_call_begin|>0<|tool_call_argument_begin|>"
        '{"text": "a </tool_call> b: \\"ü\\""}<|tool_call_end|><|tool_calls_section_end|>',
        [NOTED],
    ),
    Example(
        "kimi_k2",
        '<|tool_call_begin|>7<|tool_call_argument_begin|>{"what": 1}<|tool_call_end|>',
        ['<|tool_call_begin|>7<|tool_call_argument_begin|>{"what": 1}<|tool_call_end|>'],
    ),
]
