"""What the fake provider says and how it counts: deterministic text, one o200k token per word.

Invariant: ``answer_text(marker, n)`` is exactly n tokens of o200k_base, and two markers differ in their text, so that
an answer that reached the wrong client is seen.
Not here: how the words travel (wires), when (scripts).
"""

import re
import zlib
from collections.abc import Mapping
from typing import Any

_TEXT = """
apple river stone green table water light house music paper glass bread chair cloud dream earth field flame
forest garden gold grain grass heart honey horse island ivory jewel journey kettle king kitchen ladder lake lamp
leaf lemon letter lion market meadow metal mirror moon morning mountain night north ocean olive orange owl paint
palm pearl pepper piano pillow pine planet pocket queen quiet rain ribbon ring road robin rocket roof rose sail
salt sand school sea season seed shadow sheep ship shirt shoe silver sister sky sleep smile snow soap soil song
soup south space spice spoon spring square star steam steel stick storm story street sugar summer sun sweet
sword tail tea teacher temple thread thunder tiger time toast tower town trade train travel tree truck uncle
valley velvet village violin voice wagon walk wall watch wave west wheat wheel whisper white willow wind window
winter wolf wonder wood wool world yellow young zebra amber anchor angel arrow autumn badge baker ball bamboo
banana bank barn basket beach bean bear bell bench berry bird blanket blue boat bone book bottle bowl box branch
brass breeze brick bridge bright brother brown brush bucket butter button cabin cable cake camel camera camp
candle canoe canyon captain card carpet castle cat cave cedar cello cherry chest circle city clay clock cloth
coast coffee coin copper coral corn cotton cow crane cream creek crown crystal cup curtain dance dawn day deer
desert desk diamond dinner dish doctor dog door dragon drum duck dust
"""
WORDS = tuple(_TEXT.split())
"""251 words (a prime), each one token of o200k_base together with its leading blank."""

MARKER = re.compile(r"marker=([\w.-]+)")


def word(marker: str, index: int, choice: int = 0) -> str:
    """Return token ``index`` of the answer to ``marker``: a word with its leading blank."""
    seed = zlib.crc32(f"{marker}/{choice}".encode())
    step = 1 + seed // len(WORDS) % (len(WORDS) - 1)
    return " " + WORDS[(seed + index * step) % len(WORDS)]


def answer_text(marker: str, tokens: int, choice: int = 0) -> str:
    """Return the whole answer of ``tokens`` tokens that a request with this marker gets."""
    return "".join(word(marker, index, choice) for index in range(tokens))


def message_text(message: Mapping[str, Any]) -> str:
    """Return the text of a message whose content is a string or a list of parts."""
    content = message.get("content", message.get("output"))
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    return " ".join(part.get("text", "") for part in parts if isinstance(part, dict))


def _messages(body: Mapping[str, Any]) -> Any:
    """Return the messages of a chat completion, or the texts and messages of another wire's input."""
    said = body.get("messages") or body.get("input") or body.get("prompt") or ()
    rows = [said] if isinstance(said, str) else said
    return [row if isinstance(row, dict) else {"content": row} for row in rows]


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """Count a prompt: 3, plus 4 for each message, plus the blank-separated words of its text."""
    messages = _messages(body)
    return 3 + sum(4 + len(message_text(message).split()) for message in messages)


def find_marker(body: Mapping[str, Any]) -> str:
    """Return ``abc`` of ``marker=abc`` in the text of the last message, or an empty string."""
    messages = _messages(body)
    found = MARKER.search(message_text(messages[-1])) if messages else None
    return found[1] if found else ""
