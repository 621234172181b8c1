"""What the code may not do, wherever it is. Each list of exceptions says why; one that is not used any more fails."""

import ast
from collections.abc import Iterator

from architecture.tree import nodes, place, sources

TASKS_ALLOWED = {
    "console/app.py": "the two sides of one passing-on, awaited before it returns",
    "limits/allowance.py": "the one writer of the file, awaited by close()",
    "limits/lane.py": "the one task that keeps a server connected, awaited by close(); it catches what can fail",
    "limits/link.py": "announcements and the map of slots, cancelled and awaited by close()",
    "limits/pool.py": "the one draw of a pool, awaited by close()",
    "http/connection.py": "one for each request; kept in the server's state, which is waited for, until it ends",
    "http/refusals.py": "the one writer; kept in _writing until it ends, and the last flush waits for it",
    "http/tasks.py": "the helper: keeps the reference, logs a failure, is awaited at shutdown",
    "limits/learning.py": "one operation for all who wait; kept in its flight until it ends",
    "limits/counters.py": "one reading of the ledger for all who wait; kept in _flights until it ends",
    "providers/http1/site.py": "one look-up of a name for all who ask; kept in _lookup until it ends, ended by close()",
    "keys/keyring.py": "one look-up of a key for all who wait; kept in _running until it ends",
    "keys/reader.py": "one query for all keys that wait; each task is kept until it ends, and awaited by close",
    "keys/mirror.py": "one writer for all that waits; kept in _writer until it ends, and ended by close",
}
BROAD_EXCEPT_ALLOWED = {
    "http/middleware.py": "the request edge: anything unforeseen is a 500 and pages",
    "http/tasks.py": "the supervisor of the loops: one that fails is logged and begun again",
}
MAX_BROAD_EXCEPTS = 3
ENVIRONMENT_ALLOWED = {"settings.py": "how this process runs is read once, here"}
FLOATS_ALLOWED: dict[str, str] = {}
MONEY_MODULES = ("money.py", "limits/", "ledger/")


def violations(found: Iterator[tuple[str, ast.AST]], allowed: dict[str, str]) -> tuple[list[str], set[str]]:
    """Return the places that are not allowed, and the exceptions that nothing needs."""
    places = list(found)
    unused = set(allowed) - {path for path, _ in places}
    return [place(path, node) for path, node in places if path not in allowed], unused


def called_name(node: ast.AST) -> str:
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def test_there_is_no_global_statement() -> None:
    found = [place(path, node) for path, node in nodes() if isinstance(node, ast.Global)]
    assert not found, (
        f"{found}: state lives in objects that composition makes, or two apps in one process would share it"
    )


def test_only_settings_reads_the_environment() -> None:
    def reads() -> Iterator[tuple[str, ast.AST]]:
        for path, node in nodes():
            names = {node.attr} if isinstance(node, ast.Attribute) else set()
            if isinstance(node, ast.ImportFrom) and node.module == "os":
                names = {alias.name for alias in node.names}
            if names & {"environ", "environb", "getenv"}:
                yield path, node

    found, unused = violations(reads(), ENVIRONMENT_ALLOWED)
    assert not found, f"{found}: settings are read once and passed, so that what a process does can be told from them"
    assert not unused, f"not needed any more: {unused}"


def test_tasks_are_started_where_their_reference_is_kept() -> None:
    starts = ((path, node) for path, node in nodes() if called_name(node) in {"create_task", "ensure_future"})
    found, unused = violations(starts, TASKS_ALLOWED)
    assert not found, (
        f"{found}: the event loop keeps only a weak reference to a task, so that a task nobody holds may vanish while "
        "it runs, and its failure with it; use http.tasks, or add the file here with the reason why it holds its own"
    )
    assert not unused, f"not needed any more: {unused}"


def test_everything_is_caught_in_few_named_places_only() -> None:
    def swallowing() -> Iterator[tuple[str, ast.AST]]:
        for path, node in nodes():
            is_handler = isinstance(node, ast.ExceptHandler) and is_broad(node.type) and not ends_in_raise(node)
            if is_handler or (called_name(node) == "suppress" and any(is_broad(argument) for argument in node.args)):
                yield path, node

    found, unused = violations(swallowing(), BROAD_EXCEPT_ALLOWED)
    assert not found, (
        f"{found}: catching everything hides what nobody thought of, which here means money; catch what can happen, or "
        "let it reach the request edge"
    )
    assert not unused, f"not needed any more: {unused}"
    assert len(list(swallowing())) <= MAX_BROAD_EXCEPTS, (
        "more than the request edge, the worker loop and the drain loop"
    )


def is_broad(kind: ast.expr | None) -> bool:
    if kind is None:
        return True
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(isinstance(one, ast.Name) and one.id in {"Exception", "BaseException"} for one in kinds)


def ends_in_raise(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.body[-1], ast.Raise)


def test_money_and_limits_hold_no_floats() -> None:
    def floats() -> Iterator[tuple[str, ast.AST]]:
        for path, module in sources().items():
            if path.startswith(MONEY_MODULES):
                seconds = {id(node) for node in seconds_of(module)}
                for node in ast.walk(module):
                    is_literal = isinstance(node, ast.Constant) and isinstance(node.value, float | complex)
                    if (is_literal and id(node) not in seconds) or called_name(node) == "float":
                        yield path, node

    found, unused = violations(floats(), FLOATS_ALLOWED)
    assert not found, (
        f"{found}: a float cannot hold every number of nanos, so that sums would depend on their order; only seconds "
        "(names that end in `seconds`, and `timeout`) may be floats here"
    )
    assert not unused, f"not needed any more: {unused}"


def seconds_of(module: ast.Module) -> Iterator[ast.expr]:
    """Find the literals that are numbers of seconds by the name that they are given to."""
    for node in ast.walk(module):
        if isinstance(node, ast.Assign):
            named = [(ast.unparse(target), node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            named = [(ast.unparse(node.target), node.value)]
        elif isinstance(node, ast.keyword):
            named = [(node.arg or "", node.value)]
        elif isinstance(node, ast.arguments):
            named = [(arg.arg, value) for arg, value in zip(node.kwonlyargs, node.kw_defaults, strict=True) if value]
            positional = [*node.posonlyargs, *node.args]
            named += [
                (arg.arg, value) for arg, value in zip(reversed(positional), reversed(node.defaults), strict=False)
            ]
        else:
            continue
        yield from (value for name, value in named if name.lower().endswith("seconds") or name == "timeout")
