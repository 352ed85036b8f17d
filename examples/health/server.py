"""Health checks for an orchestrator: is the process well, and may it get more clients?

Run it with `python server.py`, then `curl -i http://127.0.0.1:8080/health` and `/ready`.
"""

import argparse
import asyncio
import signal
from datetime import timedelta
from types import FrameType
from typing import Any

import msgspec

from wsc_fast import Client, Hub, HubConfig, Request, Response


class Health:
    """Knows whether the loop answers, and whether the process is on its way out."""

    def __init__(self, hub: Hub, most_lag: float = 0.5) -> None:
        self.hub = hub
        self.most_lag = most_lag
        self.lag = 0.0
        self.ends = False

    def end(self, number: int, frame: FrameType | None) -> None:
        """The first signal: load balancers are told before the clients are sent away."""
        self.ends = True

    async def measure_lag(self) -> None:
        """How late the loop is: above some 100 ms, clients notice."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 0.1
            await asyncio.sleep(0.1)
            self.lag = loop.time() - due

    def report(self) -> dict[str, Any]:
        stats = self.hub.get_stats()
        return {
            "status": "healthy",
            "uptime": str(timedelta(seconds=int(stats.uptime))),
            "connections": stats.connected_clients,
            "rooms": stats.active_rooms,
        }

    def why_not_ready(self) -> str | None:
        if self.ends:
            return "it stops"
        if self.lag > self.most_lag:
            return f"its loop is {self.lag:.1f} s late"
        if self.hub.get_stats().connections >= 0.9 * self.hub.config.max_connections:
            return "it is nearly full"
        return None


def create_hub(drain_period: float, max_connections: int) -> Hub:
    hub = Hub(HubConfig(drain_period=drain_period, max_connections=max_connections))
    health = Health(hub)
    # `run` calls handlers that were set before it, too, and then drains the hub.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, health.end)

    @hub.on_startup
    async def begin() -> None:
        hub.create_task(health.measure_lag())

    @hub.on_message_received
    def received(client: Client, message: str | bytes) -> None:
        client.send(message)

    @hub.route("/health")
    def live(request: Request) -> dict[str, Any]:
        """For restarts: it answers as long as the loop runs."""
        return health.report()

    @hub.route("/ready")
    def ready(request: Request) -> Response:
        """For load balancers: 503 keeps new clients away, and harms nobody who is here."""
        reason = health.why_not_ready()
        body = health.report() | ({"reason": reason} if reason else {})
        text = msgspec.json.encode(body)
        return Response(503 if reason else 200, text, content_type="application/json")

    return hub


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--drain", type=float, default=5.0, help="seconds to send clients away in")
    parser.add_argument("--max-connections", type=int, default=10_000)
    given = parser.parse_args()
    create_hub(given.drain, given.max_connections).run("127.0.0.1", given.port)
