"""Calls a gateway as an application on langchain-openai does; run by the Python that has it. Prints what it got."""

import json
import os

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

MARKER = os.environ["MARKER"]


@tool
def tool_0(text: str) -> str:
    """Take a text."""
    return text


def model(name: str) -> ChatOpenAI:
    return ChatOpenAI(model=f"fake/{name}", max_retries=0, stream_usage=True)


def main() -> None:
    prompt = f"Hello marker={MARKER}"
    answer = model("normal").invoke(prompt)
    pieces = list(model("normal").stream(prompt))
    calls = model("tools").bind_tools([tool_0]).invoke(prompt).tool_calls
    print(
        json.dumps(
            {
                "chat": answer.content,
                "stream": "".join(piece.content for piece in pieces),
                "usage": [answer.usage_metadata["output_tokens"]]
                + [piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata],
                "calls": [[call["name"], call["args"]] for call in calls],
            }
        )
    )


main()
