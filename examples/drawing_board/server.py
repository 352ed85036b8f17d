"""A drawing board that many share, with the cursors of all others.

Run it with `python server.py`, and open http://127.0.0.1:8080 in two windows.
"""

import argparse
from pathlib import Path
from typing import Annotated, Any

import msgspec

from wsc_fast import Client, Hub, HubConfig, MemoryBus, Request, Response
from wsc_fast.demo import read_page

PAGE = read_page(Path(__file__).with_name("page.html"))
BOARD = "board"
STROKES = 1_000  # on the board; the oldest give way
COLOURS = 6

# Points are per mille of the board, so that it fits any screen.
Coordinate = Annotated[int, msgspec.Meta(ge=0, le=1_000)]
Point = tuple[Coordinate, Coordinate]
Colour = Annotated[int, msgspec.Meta(ge=0, lt=COLOURS)]


class Cursor(msgspec.Struct, tag="cursor", forbid_unknown_fields=True):
    """Where a pointer is now."""

    at: Point
    colour: Colour


class Stroke(msgspec.Struct, tag="stroke", forbid_unknown_fields=True):
    """A piece of a line."""

    points: Annotated[list[Point], msgspec.Meta(min_length=2, max_length=200)]
    colour: Colour


class Clear(msgspec.Struct, tag="clear", forbid_unknown_fields=True):
    """Wipes the board."""


decoder = msgspec.json.Decoder(Cursor | Stroke | Clear)


def create_hub(file: Path | None) -> Hub:
    hub = Hub(
        HubConfig(max_message_size=8_192, message_rate=100.0, rate_limit_action="pause"),
        bus=MemoryBus(file),  # with a file, the drawing outlasts the server
    )
    hub.keep(BOARD, size=STROKES, ttl=86_400)  # the drawing is the history of this room
    hub.create_room("cursors")

    @hub.on_client_connected
    def connected(client: Client) -> None:
        hub.join_room(client.id, BOARD)
        hub.join_room(client.id, "cursors")

    @hub.on_client_disconnected
    def disconnected(client: Client) -> None:
        hub.broadcast_to_room("cursors", to_text({"type": "gone", "id": client.id}))

    @hub.on_message_received
    async def received(client: Client, message: str | bytes) -> None:
        try:
            drawn = decoder.decode(message)
        except msgspec.DecodeError as error:
            client.disconnect(1008, f"not understood: {error}")
            return
        match drawn:
            case Cursor():
                text = to_text({"id": client.id} | msgspec.to_builtins(drawn))
                # Only the newest place of a cursor counts: it replaces one that still waits.
                hub.broadcast_to_room("cursors", text, exclude=[client], key=client.id)
            case Stroke():
                hub.broadcast_to_room(BOARD, to_text(drawn))
            case Clear():
                # The pages hear that messages are missing, and load the drawing: an empty one.
                await hub.cluster.delete_room(BOARD)

    @hub.route("/")
    def page(request: Request) -> Response:
        return PAGE

    @hub.route("/drawing")
    async def drawing(request: Request) -> list[Any]:
        """All that is on the board: position and stroke of each."""
        entries = await hub.cluster.history(BOARD, limit=STROKES)
        return [[entry.position, msgspec.json.decode(str(entry.message))] for entry in entries]

    return hub


def to_text(message: Any) -> str:
    return msgspec.json.encode(message).decode()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--file", type=Path, help="keeps the drawing; without it, memory does")
    given = parser.parse_args()
    create_hub(given.file).run("127.0.0.1", given.port)
