"""The same on a hub: rooms are asked for by requests, and events are fields of your JSON."""

import json

from wsc_fast import Client, Hub, Identity, Request


def authenticate(request: Request) -> Identity | None:
    user = request.query.get("user")  # a demonstration: it is believed
    return Identity(user) if user else None


hub = Hub(authenticate=authenticate)
hub.keep("chat:*")  # a client that comes back gets what it missed


@hub.on_join_request
def may_join(client: Client, room: str) -> bool:
    return room.startswith("chat:")


@hub.on_message_received
def say(client: Client, message: str | bytes) -> None:
    data = json.loads(message)
    if data["room"] in client.rooms:
        said = {"room": data["room"], "from": client.user_id, "text": data["text"]}
        hub.broadcast_to_room(data["room"], json.dumps(said))


if __name__ == "__main__":
    hub.run("127.0.0.1", 8080)
