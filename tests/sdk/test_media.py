"""The official SDK's moderations, images and sound, passed through."""

import openai
import pytest

from fakes.endpoints import PNG, SOUND
from fakes.gateway import Gateway


def test_moderations_and_images(client: openai.OpenAI) -> None:
    moderation = client.moderations.create(model="fake/normal", input="Hello")
    assert moderation.results[0].flagged is False
    image = client.images.generate(model="fake/normal", prompt="A cat")
    assert image.data is not None
    assert image.data[0].b64_json == PNG


def test_transcriptions_and_translations(client: openai.OpenAI) -> None:
    heard = client.audio.transcriptions.create(model="fake/normal", file=("a b.mp3", b"12345"))
    assert heard.text == "5 bytes of sound"
    with pytest.deprecated_call():  # by the SDK, which still has it
        translated = client.audio.translations.create(model="fake/normal", file=b"123")
    assert translated.text == "3 bytes of sound"


def test_speech_streamed_to_the_caller(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(model="fake/normal", voice="alloy", input="Hi") as answer:
        assert b"".join(answer.iter_bytes()) == SOUND


async def test_a_transcription_asynchronously(gateway: Gateway) -> None:
    async with gateway.async_client() as client:
        heard = await client.audio.transcriptions.create(model="fake/normal", file=("ä.wav", b"1"), language="en")
    assert heard.text == "1 bytes of sound"
