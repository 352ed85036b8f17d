"""Orders of a shop: customers hear of theirs, the kitchen hears of all. The program under test.

SECRET=$(openssl rand -hex 32) python examples/testing/orders.py
"""

from __future__ import annotations

import json
import os
from typing import Any

from wsc_fast import (
    ACKConfig,
    ACKMessage,
    Client,
    Hub,
    HubConfig,
    OfflineStore,
    SQLiteOfflineStore,
)
from wsc_fast.auth import JWTAuthenticator

KITCHEN = "kitchen"


def make_hub(
    *, secret: str | None = None, store: OfflineStore | None = None, bus: Any = None
) -> Hub:
    """A hub whose customers log in by a JSON Web Token; the user `cook` joins the kitchen."""
    hub = Hub(
        HubConfig(heartbeat_interval=20, heartbeat_timeout=60, message_rate=5),
        authenticate=JWTAuthenticator(secret or os.environ["SECRET"], algorithms=["HS256"]),
        bus=bus,
    )
    if store is None and bus is None:
        store = SQLiteOfflineStore("orders.db")  # hubs on a bus have that of its server
    hub.enable_ack(
        ACKConfig(timeout=60, retry_interval=10, max_retries=5, enable_offline_messages=True),
        store=store,
    )
    hub.create_room(KITCHEN)

    @hub.on_client_connected
    def connected(client: Client) -> None:
        if client.user_id == "cook":
            hub.join_room(client.id, KITCHEN)

    @hub.on_message_received
    def received(client: Client, message: str | bytes) -> None:
        order = json.loads(message)
        if "ready" in order:
            ready(hub, order["for"], order["ready"])
        else:
            hub.broadcast_to_room(KITCHEN, json.dumps({**order, "from": client.user_id}))
            client.send(json.dumps({"taken": order["dish"]}))

    return hub


def ready(hub: Hub, user: str, dish: str) -> None:
    """Tells a customer, who may be away, that a dish is ready."""
    hub.send_ack_message_to_user(user, ACKMessage(content=f"{dish} is ready", type="ready"))


if __name__ == "__main__":
    make_hub().run("127.0.0.1", 8080)
