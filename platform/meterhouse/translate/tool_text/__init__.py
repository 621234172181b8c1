"""Tool calls that local models write as text (wire.md 4): one file per family, one parser for all of them.

``parser`` splits a text, ``answer`` does it to OpenAI's chunks and bodies, ``prompt`` tells a model of its tools where
its server does not. Pure: no input or output, no clock.
"""

from collections.abc import Mapping
from types import MappingProxyType

from meterhouse.translate.tool_text.deepseek_v3 import DeepseekV3
from meterhouse.translate.tool_text.glm4 import Glm4
from meterhouse.translate.tool_text.glm45 import Glm45
from meterhouse.translate.tool_text.grammar import Grammar
from meterhouse.translate.tool_text.hermes import Hermes
from meterhouse.translate.tool_text.kimi_k2 import KimiK2
from meterhouse.translate.tool_text.llama3_json import Llama3Json
from meterhouse.translate.tool_text.mistral import Mistral
from meterhouse.translate.tool_text.pythonic import Pythonic
from meterhouse.translate.tool_text.qwen3_coder import Qwen3Coder

GRAMMARS: Mapping[str, Grammar] = MappingProxyType(
    {
        "glm4": Glm4(),
        "glm45": Glm45(),
        "hermes": Hermes(),
        "qwen3_coder": Qwen3Coder(),
        "llama3_json": Llama3Json(),
        "pythonic": Pythonic(),
        "mistral": Mistral(),
        "deepseek_v3": DeepseekV3(),
        "kimi_k2": KimiK2(),
    }
)
"""The families by the name of their format."""
