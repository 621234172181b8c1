"""The passage over chat completions: how every chat request goes, and what is translated into one.

What the provider speaks is behind ``wire``, quirks of its row behind ``body``; what the client speaks in place of chat
completions is the dialect that its wire gives to the outlet. Between the two an answer is chat completions always.
"""

from meterhouse.asked import Asked
from meterhouse.http.body import BodyEditor, Recipient
from meterhouse.http.call import Call
from meterhouse.http.chunk import Chunk, decode_chunk, decode_readable, is_failure
from meterhouse.http.passage import OpenAnswer, RelayParts, Whole, WholeBody
from meterhouse.http.relay import StreamRelay
from meterhouse.http.rewriting import RewritingRelay, find_rewriting, rewrite_whole
from meterhouse.http.whole import note_whole
from meterhouse.http.wire import UPSTREAM_WIRES, Reader
from meterhouse.providers.provider import Deployment, Provider
from meterhouse.providers.refusal import error_in_stream, no_answer
from meterhouse.translate.think_tags import TAG_END


class OverChat:
    """Asks for a chat completion on whatever wire the provider has."""

    def path(self, provider: Provider) -> str:
        """Return the row's path of chat completions."""
        return provider.chat_path

    def encode(self, asked: Asked, recipient: Recipient, editor: BodyEditor) -> bytes:
        """Return the chat completion request in the provider's own wire."""
        assert asked.chat is not None
        body = editor.edit(asked.chat, recipient)
        wire = UPSTREAM_WIRES[recipient.deployment.provider.wire]
        if wire.keeps_bodies:
            return body
        return wire.encode(body, recipient.deployment, is_streamed=asked.is_streamed)

    def event_stream_type(self, provider: Provider) -> str:
        """Return that of the provider's wire."""
        return UPSTREAM_WIRES[provider.wire].event_stream_type

    def open_reader(self, deployment: Deployment) -> Reader:
        """Return a reader that gives chat completion chunks."""
        return UPSTREAM_WIRES[deployment.provider.wire].open_reader(deployment)

    def check_first(self, payload: bytes, deployment: Deployment) -> Chunk:
        """Return the first payload as a chunk; raise the error that it is, if it is one."""
        chunk = decode_chunk(payload)
        if is_failure(chunk):
            raise error_in_stream(payload, deployment)
        return chunk

    def decode_whole(self, answer: WholeBody, deployment: Deployment) -> bytes:
        """Return the answer as a chat completion with a message in each choice."""
        body = UPSTREAM_WIRES[deployment.provider.wire].decode_whole(answer.body, deployment)
        answer.chunk = chunk = decode_chunk(body)
        if not chunk.choices or chunk.error or chunk.object == "error":
            if is_failure(chunk):
                raise error_in_stream(body, deployment)
            if not chunk.choices:
                raise no_answer("an answer without a message")
        for choice in chunk.choices:
            if choice.message is None:
                raise no_answer("an answer without a message")
        return body

    def open_relay(self, call: Call, opened: OpenAnswer, parts: RelayParts) -> StreamRelay:
        """Return the relay; the outlet translates what it writes where the client speaks something else."""
        dialect = call.wire.open_dialect(call.asked)
        if dialect is not None:
            call.outlet.speak(dialect)
        rewriting = find_rewriting(call, opened.first)
        if rewriting is None:
            relay = StreamRelay(call, opened, parts)
        else:
            relay = RewritingRelay(call, opened, parts).rewrite(rewriting)
        if dialect is not None:
            opened.first, relay.decode = None, decode_readable
        return relay

    def read_whole(self, call: Call, answer: WholeBody, parts: RelayParts) -> Whole:
        """Read a chat completion."""
        assert call.deployment is not None
        read = note_whole(call, answer)
        dialect = call.wire.open_dialect(call.asked)
        if dialect is not None:
            call.outlet.speak(dialect)
            decode_readable(answer.body)  # before the record: what is told of it is written behind that
        row = call.deployment.provider
        if (row.reads_think_tags and TAG_END in answer.body) or row.tool_call_format is not None:
            read.payload = rewrite_whole(call, answer.body, parts.metrics)
        return read


OVER_CHAT = OverChat()
