"""The hub that `serve --workers` serves in the measure of several processes (workers.py).

A client that sends `join ROOM` becomes a member. `publish ROOM COUNT` sends so many messages to a
room in this turn of the loop. Anything else comes back. With BUS in the environment, the hub is on
that Redis.
"""

from __future__ import annotations

import os

from wsc_fast import Client, Hub, HubConfig, RedisBus

TEXT = "x" * 128
hub = Hub(
    HubConfig(
        outbox_messages=100_000,
        outbox_bytes=1 << 26,
        heartbeat_interval=3600,
        heartbeat_timeout=7200,
        max_connections=100_000,
    ),
    bus=RedisBus(os.environ["BUS"]) if "BUS" in os.environ else None,
)
hub.route("/pid")(lambda request: str(os.getpid()))


@hub.on_message_received
def received(client: Client, message: str) -> None:
    name, *words = message.split(" ")
    if name == "join":
        if hub.bus is None and words[0] not in hub.get_rooms():
            hub.create_room(words[0])
        hub.join_room(client.id, words[0])
    elif name == "publish":
        for _ in range(int(words[1])):
            hub.broadcast_to_room(words[0], TEXT)
    else:
        client.send(message)
