"""The official SDK's legacy completions: passed through (``fake``), and over a chat (the simulator)."""

import openai

from fakes.gateway import Gateway
from fakes.words import answer_text


def test_a_whole_completion(client: openai.OpenAI) -> None:
    made = client.completions.create(model="fake/normal?tokens=4", prompt="Hi marker=legacy", n=2, echo=False)
    assert [choice.text for choice in made.choices] == [answer_text("legacy", 4, index) for index in range(2)]
    assert made.object == "text_completion"
    assert made.usage is not None
    assert made.usage.completion_tokens == 8


def test_a_streamed_completion(client: openai.OpenAI) -> None:
    with client.completions.create(
        model="fake/normal?tokens=4",
        prompt="Hi marker=legacy-s",
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        *chunks, last = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer_text("legacy-s", 4)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 4


async def test_a_completion_of_the_simulator_asynchronously(gateway: Gateway) -> None:
    async with gateway.async_client() as client:
        stream = await client.completions.create(
            model="simulator-instant", prompt="Hello", stream=True, max_tokens=40, echo=True
        )
        text = "".join([chunk.choices[0].text async for chunk in stream])
    assert text.startswith("HelloThis is the Meterhouse simulator")
