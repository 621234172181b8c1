"""The official SDK's embeddings, which it asks for in base64 unless told otherwise."""

import openai
import pytest

from fakes.endpoints import vector
from fakes.gateway import Gateway


@pytest.mark.parametrize("form", ["float", "reasoning_content"])
def test_embeddings_are_decoded_whatever_the_provider_gives(client: openai.OpenAI, form: str) -> None:
    made = client.embeddings.create(model=f"fake/normal?field={form}", input=["one", "two words"])
    assert [row.embedding for row in made.data] == [vector("one"), vector("two words")]
    assert [row.index for row in made.data] == [0, 1]
    assert made.usage.prompt_tokens == 3
    assert made.model == f"fake/normal?field={form}"


def test_embeddings_as_numbers_with_dimensions(client: openai.OpenAI) -> None:
    made = client.embeddings.create(model="fake/normal", input="one", encoding_format="float", dimensions=3)
    assert made.data[0].embedding == vector("one", 3)


async def test_embeddings_asynchronously_of_tokens(gateway: Gateway) -> None:
    async with gateway.async_client() as client:
        made = await client.embeddings.create(model="simulator", input=[[1, 2], [3]])
    assert len(made.data) == 2
    assert made.usage.total_tokens == 3


def test_an_error_is_the_sdks(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="fake/normal", input="")
    assert caught.value.param == "input"
