"""A request of any wire once it is checked: what the path from the key to the record needs to know of it.

Invariant: pure. A wire's own request is read where the wire is (``http.wires``); from there on everything that holds,
sends, counts and records looks at ``Asked`` only, so that a new wire adds no branch to any of them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec
from msgspec import Raw

from meterhouse.errors import Malformed
from meterhouse.message import Message
from meterhouse.request import ChatRequest, InputSize, measure

_CALLERS_TOOLS = frozenset({"function", "custom"})
"""What runs at the caller. Tools of any other type run at the provider, who charges for them."""


class ParsedBody(msgspec.Struct):
    """A checked chat completion request and the raw fields that it came in."""

    request: ChatRequest
    fields: dict[str, Raw]
    stream_options: dict[str, object]
    length_bytes: int
    """Of the body that it was; of a long one that was read by its skeleton, of that."""
    defaulted: frozenset[str] = frozenset()
    """Fields that the caller left out and an endpoint filled in: no provider is to refuse the request for them."""


@dataclass(frozen=True, slots=True)
class Unpriced:
    """Something asked for that the provider runs and charges for, and that has no price here."""

    param: str
    message: str


@dataclass(frozen=True, slots=True)
class FormPart:
    """One field of a form: a text, or a file with its name and type."""

    name: str
    content: bytes
    filename: str | None = None
    content_type: str | None = None

    @property
    def text(self) -> str:
        """The content as a text."""
        return str(self.content, "utf-8", "replace")


class Asked(msgspec.Struct, kw_only=True):
    """What was asked for. A struct and no dataclass, because one is made for every request."""

    model: str
    size: InputSize
    is_streamed: bool = False
    choices: int = 1
    output_tokens: int | None = None
    """The bound of the answer that the client asked for, per choice; None: it asked for none, 0: it writes nothing."""
    service_tier: str | None = None
    unpriced: Unpriced | None = None
    request_units: int = 1
    """How often the price of a request can be charged at most: for each image of several."""
    input_name: str = "messages"
    """What the wire calls the field that the input is in, for errors."""
    chat: ParsedBody | None = None
    """The request as a chat completion; None where it has no such form, and can only be passed through."""
    chat_refusal: Malformed | None = None
    """Why it has no such form, to be said where nobody serves the wire itself; None: the wire never has one."""
    fields: dict[str, Raw] = {}
    """The body one level deep, on the wire that it came on: what is passed through is made of it."""
    form: tuple[FormPart, ...] = ()
    """The same of a body that is a form; the ``content-type`` that it goes out with is in ``headers``."""
    headers: Mapping[str, str] | None = None
    """What goes upstream with the body, beside what goes with every body."""
    texts: list[str] = []
    """The prompt, to be counted where nobody reports a usage and there is no ``chat``."""
    kept_messages: list[Message] = []
    """The same of what was a ``chat`` until its answer began."""
    packed: tuple[bytes, int] | None = None
    """The same of an answer that takes its time: all text of the messages as UTF-8, and how many they were."""

    @property
    def length_bytes(self) -> int:
        """How long what is written anew for a provider can be: the body as it came, or as a chat completion."""
        if self.chat is not None:
            return self.chat.length_bytes
        return sum(map(len, self.fields.values())) + sum(len(part.content) for part in self.form)

    @property
    def messages(self) -> list[Message]:
        """The prompt of a chat; empty where there is none, or it is longer than is kept."""
        return self.kept_messages if self.chat is None else self.chat.request.messages

    def let_go(self, kept_bytes: int) -> None:
        """Drop what nobody needs once an answer has begun; a prompt longer than stated is not counted any more."""
        chat, self.chat = self.chat, None
        # Tools and schemas go too: who searches an answer for calls has taken what it needs of them.
        if chat is not None and len(chat.fields.get("messages", b"")) <= kept_bytes:
            self.kept_messages = chat.request.messages
        self.fields = {}
        self.form = ()
        if sum(map(len, self.texts)) > kept_bytes:
            self.texts = []

    def pack(self) -> None:
        """Keep of the messages only what is counted: a message takes a few hundred bytes beside its text."""
        if self.kept_messages:
            text = "".join(texts_of(self.kept_messages))
            self.packed = text.encode("utf-8", "surrogatepass"), len(self.kept_messages)
            self.kept_messages = []


def texts_of(messages: Iterable[Message]) -> Iterator[str]:
    """Give what is counted of a prompt, piece by piece."""
    for message in messages:
        yield f"{message.role}\n"
        if isinstance(message.content, str):
            yield message.content
        else:
            yield from (part.text for part in message.content or () if part.text)
        for call in message.tool_calls or ():
            if call.function is not None:
                yield call.function.name
                yield call.function.arguments


def ask_chat(parsed: ParsedBody) -> Asked:
    """Return what a chat completion request asks for."""
    request = parsed.request
    return Asked(
        model=request.model,
        size=measure(request, parsed.fields),
        is_streamed=request.stream is True,
        choices=request.n or 1,
        output_tokens=request.max_completion_tokens or request.max_tokens,
        service_tier=request.service_tier,
        unpriced=find_unpriced(request) if request.tools or request.web_search_options is not None else None,
        chat=parsed,
    )


def find_unpriced(request: ChatRequest) -> Unpriced | None:
    """Return the first thing that a chat completion request asks for beside tokens."""
    if request.web_search_options is not None:
        return Unpriced("web_search_options", "Web search has no price here. Remove web_search_options.")
    if request.tools and any(tool.type not in _CALLERS_TOOLS for tool in request.tools):
        return Unpriced(
            "tools",
            "Tools that run at the provider have no price here. Use tools of the types function and custom.",
        )
    return None
