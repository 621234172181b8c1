"""Calls a gateway as an application on LlamaIndex does; run by the Python that has it. Prints what it got."""

import json
import os

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

MARKER = os.environ["MARKER"]


def tool_0(text: str) -> str:
    """Take a text."""
    return text


def model(name: str) -> OpenAILike:
    return OpenAILike(
        model=f"fake/{name}",
        api_base=os.environ["OPENAI_BASE_URL"],
        api_key=os.environ["OPENAI_API_KEY"],
        is_chat_model=True,
        is_function_calling_model=True,
        max_retries=0,
    )


def main() -> None:
    prompt = f"Hello marker={MARKER}"
    messages = [ChatMessage(role="user", content=prompt)]
    answer = model("normal").chat(messages)
    caller = model("tools")
    called = caller.chat_with_tools([FunctionTool.from_defaults(tool_0)], user_msg=prompt)
    calls = caller.get_tool_calls_from_response(called)
    print(
        json.dumps(
            {
                "chat": answer.message.content,
                "stream": "".join(piece.delta or "" for piece in model("normal").stream_chat(messages)),
                "usage": [answer.raw.usage.completion_tokens],
                "calls": [[call.tool_name, call.tool_kwargs] for call in calls],
            }
        )
    )


main()
