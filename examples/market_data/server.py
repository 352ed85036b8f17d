"""Prices for very many subscribers: a slow one gets the newest price of each symbol, and no queue.

Run it with `python server.py`, and open http://127.0.0.1:8080. crowd.py makes subscribers.
"""

import argparse
import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

from wsc_fast import Client, Hub, HubConfig, Request, Response
from wsc_fast.demo import read_page

PAGE = read_page(Path(__file__).with_name("page.html"))
SYMBOLS = ("AAL", "BEX", "CORD", "DUNE", "EMBR", "FLUX", "GALE", "HALO", "IRIS", "JADE")
prices = {symbol: round(random.uniform(20.0, 400.0), 2) for symbol in SYMBOLS}

hub = Hub(
    HubConfig(
        max_rooms_per_client=len(SYMBOLS),
        message_rate=50.0,
        # Bytes in the kernel cannot be replaced any more: the less it takes, the newer the quotes.
        write_buffer_size=16_384,
    )
)
for symbol in SYMBOLS:
    hub.create_room(symbol)


def quote(symbol: str) -> str:
    return json.dumps({"symbol": symbol, "price": prices[symbol], "time": time.time()})


@hub.on_join_request
def may_join(client: Client, room_id: str) -> bool:
    return room_id in prices


@hub.on_room_joined
def joined(client: Client, room_id: str) -> None:
    client.send(quote(room_id), key=room_id)


async def market(updates: float) -> None:
    """Each symbol changes so many times a second."""
    while True:
        for symbol in SYMBOLS:
            prices[symbol] = max(1.0, round(prices[symbol] * random.uniform(0.997, 1.003), 2))
            # The key: a quote that still waits for a client gives way to this one.
            hub.broadcast_to_room(symbol, quote(symbol), key=symbol)
        await asyncio.sleep(1.0 / updates)


@hub.route("/")
def page(request: Request) -> Response:
    return PAGE


@hub.route("/symbols")
def symbols(request: Request) -> dict[str, Any]:
    return {"symbols": SYMBOLS}


@hub.route("/stats")
def stats(request: Request) -> dict[str, Any]:
    now = hub.get_stats()
    return {
        "subscribers": now.connected_clients,
        "delivered": now.deliveries,
        "conflated": now.conflated,
        "dropped": sum(now.dropped.values()),
        "waiting": now.queued_messages,
        "longest_flush": now.longest_flush,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--updates", type=float, default=2.0, help="of each symbol, a second")
    given = parser.parse_args()

    @hub.on_startup
    async def begin() -> None:
        hub.create_task(market(given.updates))

    hub.run("127.0.0.1", given.port)
