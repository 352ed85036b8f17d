"""Part 2: clients join rooms by name, and talk to the others there."""

import json
from contextlib import suppress

from wsc_fast import Client, Hub, RoomExistsError, WSCError

hub = Hub()


@hub.on_message_received
def received(client: Client, message: str | bytes) -> None:
    """{"join": "tea"}, or {"room": "tea", "text": "hello"}."""
    try:
        match json.loads(message):
            case {"join": str(room)}:
                with suppress(RoomExistsError):
                    hub.create_room(room)
                hub.join_room(client.id, room)
            case {"room": str(room), "text": str(text)} if room in client.rooms:
                hub.broadcast_to_room(room, json.dumps({"room": room, "text": text}))
            case _:
                client.send(json.dumps({"error": "join a room, or write to one that you are in"}))
    except (ValueError, WSCError) as error:  # no JSON, no name for a room, too many rooms, ...
        client.send(json.dumps({"error": str(error)}))


@hub.on_room_left
def left(client: Client, room: str) -> None:
    if not hub.get_room_clients(room):
        hub.delete_room(room)


if __name__ == "__main__":
    hub.run(port=8080)
