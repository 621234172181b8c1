"""The paths of OpenAI's wires, as most providers have them: rows pick those that they serve."""

from collections.abc import Mapping
from types import MappingProxyType

from meterhouse.providers.provider import EndpointName

PATHS: Mapping[EndpointName, str] = MappingProxyType(
    {
        "completions": "/completions",
        "embeddings": "/embeddings",
        "responses": "/responses",
        "messages": "/messages",
        "moderations": "/moderations",
        "images": "/images/generations",
        "transcriptions": "/audio/transcriptions",
        "translations": "/audio/translations",
        "speech": "/audio/speech",
    }
)


def serving(*names: EndpointName, **paths: str) -> Mapping[EndpointName, str]:
    """Return the endpoints of a row: some under their usual paths, others (``messages="..."``) under the row's own."""
    found: dict[EndpointName, str] = {name: PATHS[name] for name in names}
    for name in PATHS:
        if name in paths:
            found[name] = paths[name]
    return MappingProxyType(found)


OPENAI_ENDPOINTS = serving(
    "completions", "embeddings", "responses", "moderations", "images", "transcriptions", "translations", "speech"
)
AZURE_ENDPOINTS = serving(
    "completions", "embeddings", "responses", "images", "transcriptions", "translations", "speech"
)
