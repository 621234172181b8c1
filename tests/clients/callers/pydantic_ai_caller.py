"""Calls a gateway as an application on Pydantic AI does; run by the Python that has it. Prints what it got."""

import asyncio
import json
import os

from pydantic_ai import Agent
from pydantic_ai.direct import model_request
from pydantic_ai.messages import ModelRequest, ToolCallPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition

MARKER = os.environ["MARKER"]
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


def model(name: str) -> OpenAIChatModel:
    provider = OpenAIProvider(base_url=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"])
    return OpenAIChatModel(f"fake/{name}", provider=provider)


async def main() -> None:
    prompt = f"Hello marker={MARKER}"
    agent = Agent(model("normal"))
    answer = await agent.run(prompt)
    async with agent.run_stream(prompt) as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
    tools = ModelRequestParameters(function_tools=[ToolDefinition(name="tool_0", parameters_json_schema=SCHEMA)])
    called = await model_request(
        model("tools"), [ModelRequest.user_text_prompt(prompt)], model_request_parameters=tools
    )
    calls = [part for part in called.parts if isinstance(part, ToolCallPart)]
    print(
        json.dumps(
            {
                "chat": answer.output,
                "stream": "".join(pieces),
                "usage": [answer.usage.output_tokens],
                "calls": [[call.tool_name, call.args_as_dict()] for call in calls],
            }
        )
    )


asyncio.run(main())
