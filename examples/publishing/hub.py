"""The hub: each client hears of one order, `ws://127.0.0.1:8080/ws?order=17`."""

import os

from wsc_fast import Client, Hub, Identity, RedisBus, Request


def authenticate(request: Request) -> Identity:
    # Yours also looks whether the order is the user's.
    return Identity("somebody", user_data={"order": request.query.get("order", "0")})


hub = Hub(
    bus=RedisBus(os.environ.get("BUS", "redis://127.0.0.1:6379/0")), authenticate=authenticate
)
hub.keep("order:*", size=20, ttl=3600)  # a client that comes back gets what it missed


@hub.on_client_connected
def connected(client: Client) -> None:
    hub.join_room(client.id, f"order:{client.get_user_data('order')}")


if __name__ == "__main__":
    hub.run(port=int(os.environ.get("PORT", "8080")))
