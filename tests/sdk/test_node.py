"""OpenAI's package for Node, unchanged, against the gateway."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from fakes.gateway import Gateway
from fakes.words import answer_text

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder() -> Path:
    """Where the package is; ``infra/test`` has put it there, or it is put there now."""
    install = "source infra/setup.sh; source infra/clients/setup.sh; set_up_node_client"
    subprocess.run(["bash", "-euc", install], cwd=ROOT, check=True)
    return ROOT / ".venv-clients" / "node"


def test_the_package_for_node(gateway: Gateway, folder: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "OPENAI_BASE_URL": gateway.base_url,
        "OPENAI_API_KEY": gateway.key,
        "CLIENT_FOLDER": str(folder),
        "MARKER": "node",
    }
    script = Path(__file__).with_name("node_caller.cjs")
    ran = subprocess.run(["node", script], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    text = answer_text("node", 20)
    assert json.loads(ran.stdout) == {
        "chat": text,
        "stream": text,
        "usage": [20, 20],
        "calls": [["tool_0", {"text": text}]],
        "error": ["NotFoundError", 404, "model_not_found", "string"],
        "models": True,
    }
