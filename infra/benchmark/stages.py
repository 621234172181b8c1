"""``--stages``: where the CPU time of a request through Meterhouse goes, by stage, at 32 connections.

Two windows of each kind of answer: one undisturbed, which says what a request costs, and one in which py-spy looks at
the worker, which says in what shares. The kernel says how much each thread used; its samples, but for those in which it
waits, say for what. A sample belongs to the stage of its innermost frame that has one, so that what a library does for
a stage is counted there. What has none is the event loop's: uvloop and its sockets.
"""

import argparse
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from benchmark.gateway import Gateway
from benchmark.proc import read_thread_seconds
from benchmark.report import Outcome
from benchmark.servers import BenchError
from benchmark.session import Question, Session, open_session

CONNECTIONS = 32
RATE = 250
"""Samples per second: each stops the worker for a moment."""
LEAST_SAMPLES = 100
MILLION = 1_000_000
MOST_FUNCTIONS = 25
LOOP = "event loop, sockets"
KINDS = ("json", "stream")

STAGES = (
    (
        "HTTP server",
        (
            "/uvicorn/",
            "/http/again.py",
            "/http/connection.py",
            "/http/cycle.py",
            "/http/flow.py",
            "/http/head.py",
            "/http/patient.py",
            "/http/reading.py",
            "/starlette/",
        ),
    ),
    ("edge: id, head, errors", ("/http/middleware.py", "/http/client_origin.py", "/http/shedding.py", "/ids.py")),
    ("key", ("/meterhouse/keys/",)),
    ("body in", ("/http/intake.py", "/http/body.py", "/json/decoder.py", "/meterhouse/asked.py", "/http/wires/")),
    ("demand", ("/limits/demand.py", "/meterhouse/money.py", "/providers/routes.py", "/http/naming.py")),
    ("meter", ("/meterhouse/limits/", "/meterhouse/metering.py")),
    ("attempt, body out", ("/http/attempts.py", "/providers/breaker.py", "/http/adapt.py", "/http/over_chat.py")),
    ("upstream client", ("/meterhouse/providers/", "/aiohttp/", "/yarl/", "/multidict/")),
    (
        "answer",
        ("/http/relay.py", "/http/sse.py", "/http/chunk.py", "/http/tidy.py", "/http/whole.py", "/http/outlet.py"),
    ),
    (
        "answer",
        (
            "/http/alike.py",
            "/http/usage_reading.py",
            "/http/respond.py",
            "/http/passing.py",
            "/http/rewriting.py",
            "/translate/",
        ),
    ),
    ("path between the stages", ("/http/inference.py", "/http/guard.py", "/http/call.py", "/http/wire.py")),
    ("settlement", ("/ledger/settler.py", "/http/tokens.py", "/ledger/checkpointer.py")),
    ("journal", ("/ledger/journal.py", "/ledger/chain.py", "/ledger/segment.py", "/ledger/record.py")),
    ("journal", ("/ledger/waiters.py",)),
    ("journal: sync", ("/ledger/sync_watch.py", "/ledger/syncer.py", "/ledger/kernel_syncer.py", "/ledger/aio.py")),
    ("log line", ("/telemetry/logs.py", "/telemetry/sink.py", "/telemetry/redact.py")),
    ("metrics", ("/telemetry/metrics.py", "/telemetry/counts.py", "/telemetry/timings.py", "/telemetry/board.py")),
    ("metrics", ("/prometheus_client/",)),
    ("traces", ("/telemetry/traces.py", "/telemetry/spans.py", "/telemetry/otlp.py", "/opentelemetry/", "/google/")),
    ("traces", ("/requests/", "/urllib3/")),
    ("facts of log and traces", ("/http/exchange.py", "/telemetry/live.py")),
    ("shipping, seals", ("/meterhouse/ledger/", "/meterhouse/db/", "/sqlalchemy/", "/asyncpg/")),
    ("upkeep", ("/meterhouse/",)),
)
"""By parts of the paths of files; the first that fits counts."""
_THREAD = re.compile(r"^thread \((?P<tid>\d+)\)")
_WAITING = re.compile(r"(?:^|;)(?:_worker \([^;]*/concurrent/futures/thread\.py|Condition\.wait \()[^;]*$")
_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>[^()]*?)(?::\d+)?\)$")


def measure_stages(arguments: argparse.Namespace, folder: Path) -> Outcome:
    """Measure.

    Raises:
        BenchError: py-spy is not there, or saw too little.
    """
    spy = shutil.which("py-spy")
    if spy is None:
        raise BenchError("--stages needs py-spy (pip install py-spy) on the PATH, and the right to trace a process")
    found: dict[str, dict[str, float]] = {}
    functions: dict[str, dict[str, float]] = {}
    with open_session(folder) as session:
        gateway = session.start_gateway()
        for kind in KINDS:
            question = Question(kind, CONNECTIONS, arguments.seconds)
            session.ask(gateway, question)
            values = session.ask(gateway, question).values
            request_us = values["cpu_seconds"]["server"] / values["answers"] * 1_000_000
            stacks = _sample(spy, session, gateway, question)
            found[kind] = _scale(sum_stages(stacks), request_us)
            most = sum_functions(stacks).most_common(MOST_FUNCTIONS)
            functions[kind] = _scale(Counter(dict(most)), request_us * sum(us for _, us in most) / stacks.total())
        session.close_books(gateway)
    return Outcome(
        lines=[*format_stages(found), *format_functions(functions), session.books.describe()],
        figures={"stages": found, "functions": functions, "ledger": asdict(session.books)},
        void=session.books.find_void_reasons(),
    )


def _sample(spy: str, session: Session, gateway: Gateway, question: Question) -> Counter[str]:
    """Return how many microseconds were spent in each stack while a question was asked."""
    output = session.folder / f"stacks-{question.kind}"
    command = [spy, "record", "--pid", str(gateway.pid), "--format", "raw", "--output", str(output), "--full-filenames"]
    command += ["--function", "--threads", "--rate", str(RATE), "--duration", str(max(1, int(question.seconds)))]
    before = read_thread_seconds(gateway.pid)
    with (session.folder / "py-spy.log").open("wb") as log:
        watching = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    session.ask(gateway, question)
    used = {tid: seconds - before.get(tid, 0.0) for tid, seconds in read_thread_seconds(gateway.pid).items()}
    watching.wait(question.seconds * 10)
    samples: Counter[str] = Counter()
    for line in output.read_text(encoding="utf-8").splitlines() if output.exists() else ():
        stack, _, count = line.rpartition(" ")
        samples[stack] += int(count)
    if samples.total() < LEAST_SAMPLES:
        raise BenchError(f"py-spy saw {samples.total()} samples; what it said is in {session.folder}/py-spy.log")
    return weigh(samples, used)


def weigh(stacks: Counter[str], used_seconds: Mapping[int, float]) -> Counter[str]:
    """Turn numbers of samples into microseconds, by what each thread has used."""
    by_thread: dict[int, Counter[str]] = {}
    for stack, count in stacks.items():
        thread = _THREAD.match(stack)
        if thread is not None:
            by_thread.setdefault(int(thread["tid"]), Counter())[stack] += count
    found: Counter[str] = Counter()
    for tid, seen in by_thread.items():
        working = Counter({stack: count for stack, count in seen.items() if not _WAITING.search(stack)}) or seen
        for stack, count in working.items():
            found[stack] += round(used_seconds.get(tid, 0.0) * MILLION * count / working.total())
    return found


def sum_stages(stacks: Counter[str]) -> Counter[str]:
    """Add up folded stacks by stage."""
    found: Counter[str] = Counter()
    for stack, count in stacks.items():
        found[find_stage(stack)] += count
    return found


def find_stage(stack: str) -> str:
    """Return the stage of a folded stack: that of its innermost frame that has one."""
    for _, file in _frames(stack):
        for stage, parts in STAGES:
            if any(part in file for part in parts):
                # A worker's own frames lie under everything that runs on its loop.
                return LOOP if file.endswith("/meterhouse/worker.py") else stage
    return LOOP


def sum_functions(stacks: Counter[str]) -> Counter[str]:
    """Add up folded stacks by the function that was running."""
    found: Counter[str] = Counter()
    for stack, count in stacks.items():
        function, file = next(_frames(stack), ("?", "?"))
        found[f"{'/'.join(file.split('/')[-2:])} {function}"] += count
    return found


def _frames(stack: str) -> Iterator[tuple[str, str]]:
    """Yield function and file of each frame, the innermost first."""
    for text in reversed(stack.split(";")):
        frame = _FRAME.match(text)
        if frame is not None:
            yield frame["function"], frame["file"]


def _scale(counts: Counter[str], whole_us: float) -> dict[str, float]:
    total = counts.total()
    return {name: count * whole_us / total for name, count in counts.most_common()}


def format_stages(found: dict[str, dict[str, float]]) -> list[str]:
    """Write a table: microseconds of a request in each stage."""
    names = dict.fromkeys([*(name for name, _ in STAGES), LOOP])
    rows = [[name, *(f"{stages.get(name, 0.0):.1f}" for stages in found.values())] for name in names]
    sums = ["all", *(f"{sum(stages.values()):.1f}" for stages in found.values())]
    table = [["CPU of a request, us", *found], *rows, sums]
    return [f"{first:<26}" + "".join(f"{cell:>10}" for cell in cells) for first, *cells in table]


def format_functions(found: dict[str, dict[str, float]]) -> Iterable[str]:
    """Write for each kind which functions most of the time was spent in themselves."""
    for kind, functions in found.items():
        yield f"{kind}: in the functions themselves, us of a request"
        yield from (f"{us:>10.1f}  {name}" for name, us in functions.items())
