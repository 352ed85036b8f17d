"""The hub: each client hears of one order and of its user's, `/ws?order=17&user=ann`."""

import argparse
import os

from wsc_fast import ACKConfig, Client, Hub, Identity, RedisBus, Request


def authenticate(request: Request) -> Identity:
    # For a trial: yours takes a token, and looks whether the order is the user's.
    query = request.query
    return Identity(query.get("user", "somebody"), user_data={"order": query.get("order", "0")})


hub = Hub(
    bus=RedisBus(os.environ.get("BUS", "redis://127.0.0.1:6379/0")), authenticate=authenticate
)
hub.keep("order:*", size=20, ttl=3600)  # a client that comes back gets what it missed
hub.enable_ack(ACKConfig(enable_offline_messages=True))  # and so does a user who was away


@hub.on_client_connected
def connected(client: Client) -> None:
    hub.join_room(client.id, f"order:{client.get_user_data('order')}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    hub.run("127.0.0.1", parser.parse_args().port)
