"""Tries every endpoint of a running Meterhouse, with the standard library alone; ``infra/smoke`` starts it.

Each try is one function, named in ``TRIES``, which raises Failed with what was wrong. A try that needs an admin key is
left out, and said to be, when there is none.
"""

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

DEV_ENV = Path(__file__).parents[1] / ".meterhouse" / "dev.env"
CHEAP_MODEL = "simulator-instant"
OUR_KEYS = "sk-mh-"
QUESTION = "Say hello in one short sentence."
RECEIPT_SECONDS = 10
OK, BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 200, 400, 401, 403, 404


class Failed(Exception):
    """A try went wrong; the text says how."""


Answer = tuple[int, Message, bytes]
"""Status, headers, body."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where to knock, and with which keys."""

    url: str
    key: str
    admin_key: str
    model: str
    timeout_seconds: float

    def send(self, method: str, path: str, body: object = None, key: str | None = None) -> Answer:
        """Send a request; returns status, headers and body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)  # noqa: S310 - http(s), checked
        request.add_header("Content-Type", "application/json")
        if key or key is None:
            request.add_header("Authorization", f"Bearer {self.key if key is None else key}")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_seconds) as answer:  # noqa: S310
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()
        except OSError as error:
            raise Failed(f"not reached: {getattr(error, 'reason', error)}") from None

    def get(self, path: str, key: str | None = None) -> Any:
        """GET a JSON document."""
        return decoded(expect(self.send("GET", path, key=key)))

    def post(self, path: str, body: object, content_type: str = "application/json") -> bytes:
        """POST; returns the body of a good answer of this type."""
        answer = self.send("POST", path, body)
        found = answer[1].get_content_type()
        text = expect(answer)
        if found != content_type:
            raise Failed(f"content type {found}, not {content_type}")
        return text


def expect(answer: Answer, status: int = OK) -> bytes:
    """Return the body of an answer with this status."""
    found, _, body = answer
    if found != status:
        raise Failed(f"status {found}: {reason_of(body)}")
    return body


def reason_of(body: bytes) -> str:
    """Say in a few words what an error's body says."""
    try:
        error = json.loads(body)["error"]
        code = error["code"] if "code" in error else error["details"]["error_code"]  # Anthropic's shape
        return f"{code}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace") or "no body"


def decoded(body: bytes) -> Any:
    """Decode a JSON body."""
    try:
        return json.loads(body)
    except ValueError:
        raise Failed(f"no JSON: {body[:80]!r}") from None


def need(condition: object, text: str) -> None:
    """Fail with a text unless the condition holds."""
    if not condition:
        raise Failed(text)


def datas(body: bytes) -> Iterator[str]:
    """Yield the data of each event, read line by line."""
    for line in body.decode().splitlines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def pieces(body: bytes, end: str = "[DONE]") -> list[Any]:
    """Return the decoded events of a stream that ended as it should."""
    found = list(datas(body))
    need(found and found[-1] == end, f"the stream does not end with {end}: {found[-1:] or 'nothing'}")
    return [decoded(data.encode()) for data in found[:-1]]


def _try_root(server: Server) -> str:
    found = server.get("/", key="")
    need(found["name"] == "Meterhouse", "it says that it is something else")
    return f"{found['name']} {found['version']}"


def _try_health(server: Server) -> str:
    found = server.get("/health", key="")
    away = "; ".join(found["degraded"])
    return f"{found['status']}, {found['models_count']} models" + (f" ({away})" if away else "")


def _try_live(server: Server) -> str:
    return str(server.get("/health/live", key="")["status"])


def _try_ready(server: Server) -> str:
    return str(server.get("/health/ready", key="")["status"])


def _try_docs(server: Server) -> str:
    need(b"/openapi.json" in expect(server.send("GET", "/docs", key="")), "no page")
    return f"{len(server.get('/openapi.json', key='')['paths'])} addresses described"


def _try_metrics(server: Server) -> str:
    need(b"meterhouse_requests_total" in expect(server.send("GET", "/metrics", key="")), "no counters")
    return "counters are there"


def _try_models(server: Server) -> str:
    found = server.get("/v1/models")["data"]
    need(found, "none is listed")
    need(server.get(f"/v1/models/{found[0]['id']}")["id"] == found[0]["id"], "one is not found by its name")
    return f"{len(found)} listed"


def _try_completion(server: Server) -> str:
    found = decoded(server.post("/v1/chat/completions", ask(server)))
    need(found["choices"][0]["message"]["content"], "an empty answer")
    return f"{found['usage']['total_tokens']} tokens"


def _try_streamed_completion(server: Server) -> str:
    asked = ask(server, stream=True, stream_options={"include_usage": True})
    chunks = pieces(server.post("/v1/chat/completions", asked, "text/event-stream"))
    failed = [chunk for chunk in chunks if "error" in chunk]
    need(not failed, f"an error inside the stream: {failed}")
    need(chunks[-1]["usage"], "no usage at the end")
    return f"{len(chunks)} chunks"


def _try_response(server: Server) -> str:
    found = decoded(server.post("/v1/responses", {"model": server.model, "input": QUESTION}))
    need(found["output"], "an empty answer")
    return f"{found['usage']['total_tokens']} tokens"


def _try_streamed_response(server: Server) -> str:
    asked = {"model": server.model, "input": QUESTION, "stream": True}
    events = [decoded(data.encode()) for data in datas(server.post("/v1/responses", asked, "text/event-stream"))]
    last = events[-1]["type"] if events else "nothing"
    need(last in {"response.completed", "response.incomplete"}, f"the stream ends with {last}")
    return f"{len(events)} events"


def _try_messages(server: Server) -> str:
    found = decoded(server.post("/v1/messages", ask(server, max_tokens=64)))
    need(found["content"][0]["text"], "an empty answer")
    return f"{found['usage']['output_tokens']} tokens"


def _try_streamed_messages(server: Server) -> str:
    body = server.post("/v1/messages", ask(server, max_tokens=64, stream=True), "text/event-stream")
    events = [decoded(data.encode()) for data in datas(body)]
    need(events and events[-1]["type"] == "message_stop", "the last event is not message_stop")
    return f"{len(events)} events"


def _try_count_tokens(server: Server) -> str:
    return f"{decoded(server.post('/v1/messages/count_tokens', ask(server)))['input_tokens']} tokens"


def _try_api_chat(server: Server) -> str:
    rows = pieces(server.post("/api/chat", ask(server), "text/event-stream"))
    need("".join(row["content"] for row in rows), "an empty answer")
    return f"{len(rows)} pieces"


def _try_chat(server: Server) -> str:
    found = decoded(server.post("/chat", {"message": QUESTION, "model": server.model}))
    need(found["response"], "an empty answer")
    return f"{len(found['response'])} characters"


def _try_stream(server: Server) -> str:
    body = server.post("/stream", {"message": QUESTION, "model": server.model}, "text/event-stream")
    rows = [decoded(data.encode()) for data in datas(body)]
    need(rows and rows[-1].get("done") is True, "the last event is not done")
    need("".join(row["content"] for row in rows), "an empty answer")
    return f"{len(rows)} events"


def _try_default_model(server: Server) -> str:
    decoded(server.post("/chat", {"message": QUESTION, "max_tokens": 32}))
    return "a model answers when none is named"


def _try_limits(server: Server) -> str:
    return f"{len(server.get('/v1/limits')['data'])} bind this key"


def _try_receipt(server: Server) -> str:
    answer = server.send("POST", "/v1/chat/completions", ask(server))
    expect(answer)
    path = f"/v1/receipts/{answer[1]['x-request-id']}"
    deadline = time.monotonic() + RECEIPT_SECONDS
    while (found := server.send("GET", path))[0] == NOT_FOUND and time.monotonic() < deadline:
        time.sleep(0.2)
    return f"{decoded(expect(found))['charge_usd']} USD"


def _try_errors(server: Server) -> str:
    for answer, status, code in (
        (server.send("POST", "/v1/chat/completions", ask(server), key="wrong"), UNAUTHORIZED, "invalid_api_key"),
        (server.send("POST", "/v1/chat/completions", ask(server, model="no-such-model")), NOT_FOUND, "model_not_found"),
        (server.send("POST", "/chat", {}), BAD_REQUEST, "missing_required_parameter"),
        (server.send("GET", "/v1/nothing"), NOT_FOUND, "unknown_url"),
    ):
        error = decoded(expect(answer, status))["error"]
        need(error["code"] == code, f"the code is {error['code']}, not {code}")
    return "four kinds have their shape"


def _try_admin(server: Server) -> str:
    for path in (
        "/admin/organizations",
        "/admin/projects",
        "/admin/keys",
        "/admin/prices",
        "/admin/providers",
        "/admin/routes",
    ):
        need("data" in server.get(path, key=server.admin_key), f"{path} is no list")
    need(expect(server.send("GET", "/admin/keys"), FORBIDDEN), "a tenant's key may administrate")
    return "lists, and refuses a tenant's key"


TRIES: Mapping[str, Callable[[Server], str]] = {
    "GET /": _try_root,
    "GET /health": _try_health,
    "GET /health/live": _try_live,
    "GET /health/ready": _try_ready,
    "GET /docs, /openapi.json": _try_docs,
    "GET /metrics": _try_metrics,
    "GET /v1/models": _try_models,
    "POST /v1/chat/completions": _try_completion,
    "POST /v1/chat/completions, streamed": _try_streamed_completion,
    "POST /v1/responses": _try_response,
    "POST /v1/responses, streamed": _try_streamed_response,
    "POST /v1/messages": _try_messages,
    "POST /v1/messages, streamed": _try_streamed_messages,
    "POST /v1/messages/count_tokens": _try_count_tokens,
    "POST /api/chat": _try_api_chat,
    "POST /chat": _try_chat,
    "POST /stream": _try_stream,
    "POST /chat, no model": _try_default_model,
    "GET /v1/limits": _try_limits,
    "GET /v1/receipts/...": _try_receipt,
    "errors": _try_errors,
}
ADMIN_TRIES: Mapping[str, Callable[[Server], str]] = {"GET /admin/...": _try_admin}


def ask(server: Server, **fields: object) -> dict[str, object]:
    """Return the body of a chat completion."""
    return {"model": server.model, "messages": [{"role": "user", "content": QUESTION}], **fields}


def run(server: Server) -> int:
    """Try everything; returns the exit status."""
    tries = {**TRIES, **(ADMIN_TRIES if server.admin_key else {})}
    width = max(len(name) for name in tries)
    failures = 0
    for name, attempt in tries.items():
        try:
            said = f"ok      {attempt(server)}"
        except Failed as failure:
            failures += 1
            said = f"FAILED  {failure}"
        except (KeyError, IndexError, TypeError) as failure:
            failures += 1
            said = f"FAILED  an answer of another shape: {type(failure).__name__} {failure}"
        print(f"{name:<{width}}  {said}", flush=True)
    if not server.admin_key:
        print(f"{'GET /admin/...':<{width}}  left out: no --admin-key")
    print(f"{len(tries) - failures} of {len(tries)} ok, model {server.model}")
    return 1 if failures else 0


def choose_model(server: Server) -> Server:
    """Take the simulator where there is one and no other was asked for: it costs nothing."""
    if server.model:
        return server
    names = [model["id"] for model in server.get("/v1/models")["data"]]
    need(names, "no model is listed; name one with --model")
    cheap = "simulator-instant"
    return Server(
        server.url, server.key, server.admin_key, cheap if cheap in names else names[0], server.timeout_seconds
    )


def read_dev_env(path: Path) -> dict[str, str]:
    """Return the lines of a file that ``meterhouse dev`` wrote, under what the environment says.

    A key that is not ours is left alone: OPENAI_API_KEY may well be a provider's.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    found.update({name: value for name, value in os.environ.items() if value.startswith(OUR_KEYS)})
    return found


def main() -> int:
    """Read the arguments and try everything."""
    known = read_dev_env(DEV_ENV)
    parser = argparse.ArgumentParser(prog="infra/smoke", description="Tries every endpoint of a running Meterhouse.")
    parser.add_argument("--base-url", default=known.get("OPENAI_BASE_URL", "http://127.0.0.1:8000"))
    parser.add_argument("--key", default=known.get("OPENAI_API_KEY", ""), help="a key of Meterhouse's")
    parser.add_argument("--admin-key", default=known.get("OPENAI_ADMIN_KEY", ""), help="tries the administration too")
    parser.add_argument("--model", default="", help="the simulator where it is on, else the first that is listed")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for each request")
    given = parser.parse_args()
    url = given.base_url.rstrip("/").removesuffix("/v1")
    if not url.startswith(("http://", "https://")):
        parser.error(f"{given.base_url} is no http(s) address")
    try:
        return run(choose_model(Server(url, given.key, given.admin_key, given.model, given.timeout)))
    except Failed as failure:
        print(f"GET /v1/models  FAILED  {failure}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
