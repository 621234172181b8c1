"""Frameworks that applications are built on, as callers: a chat, a stream, a call of a tool each."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream
from fakes.words import answer_text
from plugins.clients import VARIABLE

pytestmark = pytest.mark.clients
CALLERS = {"langchain": "langchain_caller", "llama-index": "llama_index_caller", "pydantic-ai": "pydantic_ai_caller"}
TOKENS = 20


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with (
        FakeUpstream() as up,
        Gateway(tmp_path_factory.mktemp("clients") / "data", provider_environment("fake", up.base_url)) as running,
    ):
        yield running


@pytest.mark.parametrize("name", CALLERS)
def test_a_framework_calls(name: str, gateway: Gateway, tmp_path: Path) -> None:
    script = Path(__file__).parent / "callers" / f"{CALLERS[name]}.py"
    python = Path(os.environ[VARIABLE]) / name / "bin" / "python"
    key_id, key = gateway.new_key_of()
    ran = subprocess.run(
        [python, script],
        env={"OPENAI_BASE_URL": gateway.base_url, "OPENAI_API_KEY": key, "MARKER": name, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    text = answer_text(name, TOKENS)
    assert (said["chat"], said["stream"]) == (text, text)
    assert said["calls"] == [["tool_0", {"text": text}]]
    assert set(said["usage"]) == {TOKENS}
    rows = [row for row in gateway.all_records() if row["key_id"] == key_id]
    assert [row["output_tokens"] for row in rows] == [TOKENS] * 3
