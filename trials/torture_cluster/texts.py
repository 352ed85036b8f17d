"""The rooms of all scenarios, and the texts of their messages.

A text is words with a space between: the room, the publisher, and a number that grows with each
message of this publisher. In the plain room the publisher is a node; in kept rooms it is one of
publishers.py. A long message has a word more.
"""

from __future__ import annotations

from typing import NamedTuple

PLAIN = "plain"
# A kept room with the shortest history, which has to be gone at the end.
BRIEF = "brief"
BRIEF_TTL = 1.0
# The history of the other kept rooms: longer than all that a round publishes.
SIZE, TTL = 10_000, 600.0


class Text(NamedTuple):
    """The words of a message."""

    room: str
    publisher: str
    number: int


def kept_rooms(count: int) -> list[str]:
    """The ids of so many kept rooms."""
    return [f"kept{number}" for number in range(count)]


def text_of(payload: str) -> Text:
    """The words of a payload; ValueError: it is none of ours."""
    room, publisher, number, *_ = payload.split(" ", 3)
    return Text(room, publisher, int(number))


def short(payload: str) -> str:
    """A payload in a report."""
    return payload if len(payload) <= 60 else payload[:57] + "..."
