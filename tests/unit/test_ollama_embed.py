"""OpenAI's embeddings as Ollama's: what a tenant may say there, and what is the operator's alone."""

import msgspec
from msgspec import Raw

from meterhouse.translate.ollama_embed import to_ollama_embed


def test_how_a_model_is_loaded_is_the_operators_alone() -> None:
    asked = {"input": "a", "dimensions": 8, "truncate": True, "keep_alive": -1, "options": {"num_ctx": 10**6}}
    fields = {name: Raw(msgspec.json.encode(value)) for name, value in asked.items()}
    body = msgspec.json.decode(to_ollama_embed(fields, upstream_model="m", has_tokens=False))
    assert body == {"model": "m", "input": "a", "dimensions": 8, "truncate": True}
