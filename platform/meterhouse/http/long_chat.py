"""A long chat completion request, read by its skeleton: each long text is decoded once, and the body not again.

Invariant: what is read is what ``body.parse_chat`` reads of the whole body, or nothing. Not here: what is left out of a
skeleton, and that it is good (``skeleton``, ``intake``).
"""

from meterhouse.asked import Asked, ask_chat
from meterhouse.errors import Malformed
from meterhouse.http.body import parse_chat
from meterhouse.http.skeleton import Skeleton
from meterhouse.message import Message


def ask_long_chat(skeleton: Skeleton) -> Asked | None:
    """Return what a chat completion request asks for; None: the whole body has to be read, or says what is wrong."""
    try:
        parsed = parse_chat(skeleton.data)
    except Malformed:
        return None
    if _put_back(parsed.request.messages, skeleton) != len(skeleton.texts):
        return None
    parsed.fields["messages"] = skeleton.find_whole(parsed.fields["messages"])
    return ask_chat(parsed)


def _put_back(messages: list[Message], skeleton: Skeleton) -> int:
    """Put long texts where their marks are, in the places where they usually are; returns how many there were."""
    found = 0
    for message in messages:
        content = message.content
        if isinstance(content, str):
            if (text := skeleton.find_text(content)) is not None:
                message.content = text
                found += 1
            continue
        for part in content or ():
            if part.text is not None and (text := skeleton.find_text(part.text)) is not None:
                part.text = text
                found += 1
            if part.image_url is not None and (text := skeleton.find_text(part.image_url.url)) is not None:
                part.image_url.url = text
                found += 1
    return found
