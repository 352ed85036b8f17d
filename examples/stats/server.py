"""Logs what the hub does, every ten seconds: rates, queues, drops, and its slowest clients.

Run it with `python server.py`, and load it with `wsc-fast bench ws://127.0.0.1:8080/ws`.
"""

import argparse
import asyncio
import logging

from wsc_fast import Client, Hub, HubStats

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
log = logging.getLogger("stats")
hub = Hub()


@hub.on_message_received
def received(client: Client, message: str | bytes) -> None:
    hub.broadcast(message)


async def report(interval: float) -> None:
    old = hub.get_stats()
    while True:
        await asyncio.sleep(interval)
        new = hub.get_stats()
        tell(old, new, interval)
        old = new


def tell(old: HubStats, new: HubStats, interval: float) -> None:
    log.info(
        "clients=%d rooms=%d in/s=%.1f delivered/s=%.1f bytes_out/s=%.0f waiting=%d dropped=%d "
        "errors=%d longest_flush_ms=%.1f",
        new.connected_clients,
        new.active_rooms,
        (new.messages_in - old.messages_in) / interval,
        (new.deliveries - old.deliveries) / interval,
        (new.bytes_out - old.bytes_out) / interval,
        new.queued_messages,
        sum(new.dropped.values()) - sum(old.dropped.values()),
        new.error_count - old.error_count,
        new.longest_flush * 1_000,
    )
    for client in hub.slowest_clients(3):
        log.info(
            "slow: %s of %s waits for %d messages, %d bytes",
            client.id,
            client.remote_address,
            client.queued_messages,
            client.queued_bytes,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--every", type=float, default=10.0, help="seconds")
    given = parser.parse_args()

    @hub.on_startup
    async def begin() -> None:
        hub.create_task(report(given.every))

    hub.run("127.0.0.1", given.port)
