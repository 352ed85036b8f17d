"""Draws the pictures of docs/concepts/.

`python docs/images/concepts.py` writes them beside this file, `... FOLDER` into that folder. Each
picture has its own background and both sets of colours, so that it reads well on a light page and
on a dark one.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

WIDTH = 760
STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1d2430; }
  .title { font-weight: 600; }
  .note { fill: #4a5568; font-size: 12px; }
  .card { fill: #ffffff; stroke: #d5dbe3; }
  .box { fill: #eef3f9; stroke: #8fa3bb; }
  .ours { fill: #fbe9e5; stroke: #c8442f; }
  .kept { fill: #e8f4ec; stroke: #2f855a; }
  .line { stroke: #4a5568; stroke-width: 1.5; fill: none; marker-end: url(#tip); }
  .tip { fill: #4a5568; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6e9ef; }
    .note { fill: #aab4c3; }
    .card { fill: #171b22; stroke: #39424f; }
    .box { fill: #222a36; stroke: #66788f; }
    .ours { fill: #3a211c; stroke: #e0705c; }
    .kept { fill: #1b2f23; stroke: #58b07f; }
    .line { stroke: #aab4c3; }
    .tip { fill: #aab4c3; }
  }
"""


class Picture:
    """A picture under construction.

    Args:
        title: read to people who do not see it.
        height: in pixels.
    """

    def __init__(self, title: str, height: int) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" '
            'orient="auto"><path class="tip" d="M0 0 L8 4 L0 8 z"/></marker></defs>',
            f'<rect class="card" x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="10"/>',
        ]

    def text(self, x: int, y: int, words: str, kind: str = "note", anchor: str = "start") -> None:
        """A line of text."""
        self._parts.append(
            f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def box(self, x: int, y: int, width: int, height: int, *lines: str, kind: str = "box") -> None:
        """A box with a title and lines below it."""
        self._parts.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
        )
        first = y + (height - 17 * len(lines)) // 2 + 13
        for number, line in enumerate(lines):
            kind_of_text = "note" if number else "title"
            self.text(x + width // 2, first + 17 * number, line, kind_of_text, "middle")

    def arrow(self, *points: tuple[int, int]) -> None:
        """A line through points, with a tip at its end."""
        path = " L".join(f"{x} {y}" for x, y in points)
        self._parts.append(f'<path class="line" d="M{path}"/>')

    def source(self) -> str:
        """The SVG."""
        return "\n".join([*self._parts, "</svg>", ""])


def message() -> Picture:
    """The way of a message in and out."""
    made = Picture("The way of a message in and out of a hub", 330)
    made.text(20, 30, "In", "title")
    for x, lines, kind in (
        (20, ("socket", "of a client"), "box"),
        (160, ("one read buffer", "for all clients"), "ours"),
        (310, ("parser", "unmask, UTF-8, inflate"), "ours"),
        (480, ("limits", "size, rate, turns"), "ours"),
        (620, ("your callback", "plain or async"), "kept"),
    ):
        made.box(x, 42, 120 if x < 300 or x > 450 else 150, 56, *lines, kind=kind)
    for start, end in ((140, 158), (280, 308), (460, 478), (600, 618)):
        made.arrow((start, 70), (end, 70))
    made.text(
        20,
        122,
        "An async callback has one message of a client at a time; the others wait in order.",
    )
    made.text(20, 160, "Out", "title")
    for x, width, lines, kind in (
        (20, 130, ("your call", "hub.broadcast(...)"), "kept"),
        (175, 120, ("one frame", "made once"), "ours"),
        (320, 130, ("outbox", "of each client"), "ours"),
        (475, 130, ("flush", "end of the tick"), "ours"),
        (630, 110, ("kernel", "of the server"), "box"),
    ):
        made.box(x, 172, width, 56, *lines, kind=kind)
    for start, end in ((150, 173), (295, 318), (450, 473), (605, 628)):
        made.arrow((start, 200), (end, 200))
    made.text(20, 254, "All clients share the bytes of the frame. An outbox holds references.")
    made.text(
        20, 276, "In a tick each client gets at most one send call, for all that waits for it."
    )
    made.text(
        20, 298, "A client that the kernel takes nothing for keeps its outbox, and delays nobody."
    )
    return made


def outbox() -> Picture:
    """An outbox, and the policies at its bound."""
    made = Picture("An outbox with its bounds, and the three policies at the bound", 330)
    made.text(20, 30, "The outbox of one client", "title")
    made.box(20, 44, 120, 56, "a message", "by your call", kind="kept")
    made.arrow((140, 72), (168, 72))
    for number in range(6):
        made.box(170 + 62 * number, 44, 56, 56, str(6 - number), kind="ours")
    made.arrow((540, 72), (578, 72))
    made.box(580, 44, 160, 56, "kernel", "as fast as the client reads")
    made.text(170, 122, "at most outbox_messages (1,024) and outbox_bytes (1 MiB)")
    made.text(20, 162, "It is full, and a broadcast comes: overflow decides", "title")
    made.box(
        20,
        176,
        230,
        74,
        '"disconnect" (default)',
        "drops the queue, closes with",
        "1013; others notice nothing",
    )
    made.box(
        265, 176, 230, 74, '"drop_oldest"', "drops the oldest messages", "of the lowest priority"
    )
    made.box(510, 176, 230, 74, '"drop_newest"', "drops the new message", "for this client")
    made.text(
        20, 276, "Each drop has a counter, a line in the log, and a call of the failure handlers."
    )
    made.text(20, 298, "A send to one client has a caller to tell: it raises QueueFullError.")
    made.text(
        20, 318, 'With key="EURUSD" a message replaces the one that still waits under that key.'
    )
    return made


def guarantees() -> Picture:
    """The three grades of delivery."""
    made = Picture("Three grades of delivery: plain, kept room, acknowledged", 340)
    for y, name, call, steps, kind in (
        (20, "plain", "broadcast, send", ("outbox", "client"), "box"),
        (120, "kept room", "publish", ("history", "outbox", "client"), "ours"),
        (220, "acknowledged", "send_ack_...", ("store", "outbox", "client", "confirmed"), "kept"),
    ):
        made.box(20, y, 150, 56, name, call, kind=kind)
        for number, step in enumerate(steps):
            x = 215 + 135 * number
            made.arrow((x - 45 if number == 0 else x - 30, y + 28), (x - 2, y + 28))
            made.box(x, y, 105, 56, step, kind=kind)
    made.text(20, 98, "At most once. In order, until the connection ends.")
    made.text(
        20,
        198,
        "A client that comes back gets what it missed, in order, or is told that it cannot.",
    )
    made.text(20, 298, "Sent again until the client confirms; stored while its user is away.")
    made.text(
        20,
        318,
        "Once accepted() has returned, kill -9 loses nothing. Clients drop copies by their id.",
    )
    return made


def cluster() -> Picture:
    """Several hubs on one bus."""
    made = Picture("Several hubs on one bus, with clients, a publisher and a store", 360)
    for x, name in ((40, "hub A"), (310, "hub B"), (580, "hub C")):
        made.box(x, 130, 140, 60, name, "rooms, users, queues", kind="ours")
        for number in range(3):
            made.box(x + 50 * number, 40, 40, 40, "·")
            made.arrow((x + 20 + 50 * number, 80), (x + 30 + 40 * number, 128))
        made.arrow((x + 55, 190), (310 + 20 * (x // 150), 248))
    made.text(20, 28, "clients, at any hub; no sticky sessions", "note")
    made.box(
        250, 250, 260, 64, "Redis or Valkey", "histories, presence, offline messages", kind="kept"
    )
    made.box(20, 258, 150, 50, "Publisher", "a task without a hub")
    made.arrow((170, 283), (248, 283))
    made.text(530, 275, "Each message of a kept room")
    made.text(530, 292, "names the one before it: a hub")
    made.text(530, 309, "that misses one reads it, or")
    made.text(530, 326, "tells its clients of the gap.")
    made.text(
        20, 344, "Plain messages reach the hub's own clients at once, and other hubs by the bus."
    )
    return made


PICTURES = {
    "message": message,
    "outbox": outbox,
    "guarantees": guarantees,
    "cluster": cluster,
}


def main(folder: Path) -> None:
    """Writes all pictures into a folder."""
    for name, draw in PICTURES.items():
        (folder / f"{name}.svg").write_text(draw().source())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
