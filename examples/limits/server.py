"""An echo server with limits on all that a client can take, and an end that loses nothing.

Run it with `python server.py`, then `curl http://127.0.0.1:8080/limits`.
"""

import argparse
import logging
from typing import Any

from wsc_fast import Client, Hub, HubConfig, ProtocolError, Request

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
log = logging.getLogger("limits")

hub = Hub(
    HubConfig(
        # Connections: one more gets 503, or 429 where the limit is that of its address.
        max_connections=100,
        max_connections_per_address=20,
        connection_rate_per_address=50.0,  # a second
        # Messages of clients: a longer one is closed with 1009, a faster client with 1008.
        max_message_size=16_384,  # bytes, of all fragments together
        max_fragments=64,
        message_timeout=30.0,  # seconds from the first byte of a message to its last
        message_rate=50.0,  # a second
        byte_rate=262_144.0,
        rate_limit_action="close",  # or "drop" the message, or "pause" the client
        # Messages to clients: one that does not read is closed with 1013.
        outbox_messages=256,
        outbox_bytes=1 << 20,
        overflow="disconnect",
        # Silence: a client is asked, then closed with 1001.
        heartbeat_interval=15.0,
        heartbeat_timeout=40.0,
    )
)


@hub.on_message_received
def received(client: Client, message: str | bytes) -> None:
    client.send(message)


@hub.on_error
def failed(client: Client | None, error: BaseException) -> None:
    if client and isinstance(error, ProtocolError) and error.limit:
        log.warning("%s met %s, closed with %d", client.id, error.limit, error.code)


@hub.route("/limits")
def limits(request: Request) -> dict[str, Any]:
    """How often each limit was met, and why upgrades were refused."""
    stats = hub.get_stats()
    return {
        "limited": {name: count for name, count in stats.limited.items() if count},
        "rejected": {name: count for name, count in stats.rejected.items() if count},
        "slow_consumers": stats.slow_consumer_disconnects,
        "connections": stats.connections,
    }


@hub.on_shutdown
def last_words() -> None:
    # It reaches the clients behind all that is queued for them, before the close with 1001.
    hub.broadcast("the server stops")
    log.info("stopping with %d clients", hub.get_connected_clients())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    hub.run("127.0.0.1", parser.parse_args().port)
    log.info("stopped, and lost %d messages", sum(hub.get_stats().dropped.values()))
