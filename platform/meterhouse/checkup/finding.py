"""What a look at one thing found. Not here: looking."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: how it is, what was looked at, and what was found or is to be done."""

    state: State
    subject: str
    text: str


def ok(subject: str, text: str) -> Finding:
    """Make a finding that is in order."""
    return Finding("ok", subject, text)


def warning(subject: str, text: str) -> Finding:
    """Make a finding that an operator should know of."""
    return Finding("warning", subject, text)


def failed(subject: str, text: str) -> Finding:
    """Make a finding with which nothing should go into production."""
    return Finding("failed", subject, text)
