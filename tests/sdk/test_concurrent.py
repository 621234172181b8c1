"""A hundred streams at once, each with its own canary: nobody reads another's answer."""

import asyncio

from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from fakes.words import answer_text

STREAMS = 100


async def test_every_stream_gets_its_own_answer_and_nobody_elses(gateway: Gateway, up: FakeUpstream) -> None:
    async with gateway.async_client() as client:

        async def read(number: int) -> str:
            stream = await client.chat.completions.create(
                # All of them are open at the same time before the first goes on.
                model=f"fake/normal?tokens=15&pace_ms=2&gate=5&count={STREAMS}",
                messages=[{"role": "user", "content": f"Hi marker=canary-{number}"}],
                stream=True,
                stream_options={"include_usage": True},
            )
            text = ""
            usage = None
            async for chunk in stream:
                text += chunk.choices[0].delta.content or "" if chunk.choices else ""
                usage = chunk.usage or usage
            assert usage is not None
            assert usage.completion_tokens == 15
            return text

        texts = await asyncio.gather(*(read(number) for number in range(STREAMS)))
    assert texts == [answer_text(f"canary-{number}", 15) for number in range(STREAMS)]
    assert len(set(texts)) == STREAMS
    assert all(len(up.truth.by_marker(f"canary-{number}")) == 1 for number in range(STREAMS))
