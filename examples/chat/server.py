"""The room chat of the demo, started by hand: copy this file to begin a server of your own.

Run it with `python examples/chat/server.py`, then open http://127.0.0.1:8080 in two windows.
"""

import argparse

from wsc_fast import Client
from wsc_fast.demo import create_hub

# A Hub with the chat's callbacks, its page on "/" and "/health". All of it is made with the public
# API: wsc_fast/demo/chat.py shows how, and is free to copy.
hub = create_hub()


# Further routes, and further callbacks beside the chat's own, are one decorator each.
@hub.on_client_connected
def greet(client: Client) -> None:
    print(f"{client.id} connected from {client.remote_address}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    # Blocks, and says where it listens. Ctrl+C and SIGTERM stop it gracefully.
    hub.run("127.0.0.1", parser.parse_args().port, path="/ws")
