"""Execution of input (CVE-2026-42271, CVE-2024-2952): nothing that a caller sends is a template, a command or code."""

import ast

import pytest

from api.asking import Capture, marked
from architecture.tree import nodes, place
from fakes.gateway import Gateway

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
FORBIDDEN_MODULES = {"subprocess", "pickle", "shelve", "marshal", "jinja2", "yaml", "pty", "code", "importlib.util"}
FORBIDDEN_METHODS = {"system", "popen", "spawnl", "spawnv", "execv", "execve", "fork", "create_subprocess_exec"}
BENCH = "cli.py"
"""`meterhouse bench` becomes the benchmark, of a checkout, for whoever types it."""
CONSOLE = "console/beside.py"
"""`meterhouse dev` starts the console beside itself, from no input of a request."""
KEEPER = "keeper.py"
"""`meterhouse serve` forks the clerk as it forks its workers: in the parent, which sees no request."""
TEMPLATES = [
    "{{7*7}}",
    "${7*7}",
    "#{7*7}",
    "<%= 7*7 %>",
    "{%raw%}{{7*7}}",
    "%(asctime)s",
    "{0.__class__}",
    "$(id)",
    "`id`",
]


def test_no_code_of_ours_runs_commands_or_what_it_was_given() -> None:
    found = []
    for path, node in nodes():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            found.append(f"{place(path, node)} {node.func.id}")
        if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_METHODS and isinstance(node.value, ast.Name):
            found += [f"{place(path, node)} {node.value.id}.{node.attr}"] * (
                node.value.id in {"os", "asyncio"} and path not in {BENCH, CONSOLE, KEEPER}
            )
        if isinstance(node, ast.Import):
            found += [f"{place(path, node)} {name.name}" for name in node.names if name.name in FORBIDDEN_MODULES]
        if isinstance(node, ast.ImportFrom) and node.module in FORBIDDEN_MODULES:
            found.append(f"{place(path, node)} {node.module}")
    assert not found, f"{found}: a caller who reaches one of these owns the host"


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_is_text(gateway: Gateway, capture: Capture, template: str) -> None:
    marker, messages = marked(template)
    fields = {"user": template, "metadata": {"a": template}, "stop": [template], "prompt_template": template}
    status, _, body = gateway.chat("fake/capture", messages=messages, **fields)
    assert status == 200, body
    sent = capture.body(marker)
    assert sent["messages"] == messages
    assert sent["metadata"] == {"a": template}
    assert b"49" not in gateway.chat(f"fake/{template}")[2]
