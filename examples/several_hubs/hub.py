"""A chat on three hubs that are one. README.md says how to run it.

    python hub.py                  starts three hubs, on the ports 8081 to 8083
    python hub.py --port 8080      starts one

BUS is the URL of their Redis, and WSC_... are settings (HubConfig), such as WSC_TRUSTED_PROXIES.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from wsc_fast import Client, Hub, HubConfig, RedisBus, Request, Response
from wsc_fast.demo import read_page

PAGE = read_page(Path(__file__).with_name("page.html"))
ROOM = "chat:lobby"


def create_hub(name: str) -> Hub:
    """A hub whose clients hear of the messages of all hubs on the same bus."""
    bus = RedisBus(os.environ.get("BUS", "redis://127.0.0.1:6379/0"))
    hub = Hub(HubConfig.from_env(), bus=bus)
    hub.keep("chat:*", size=100, ttl=300)

    @hub.on_client_connected
    def enter(client: Client) -> None:
        # One that comes back gets what it missed, also from another hub.
        hub.join_room(client.id, ROOM)

    @hub.on_message_received
    def say(client: Client, message: str | bytes) -> None:
        if isinstance(message, str):
            hub.broadcast_to_room(ROOM, f"{name}: {message[:1000]}")

    @hub.route("/history")
    async def history(request: Request) -> Response:
        """A new page loads it; it is the same on all hubs."""
        entries = await hub.cluster.history(ROOM)
        lines = [[entry.position, entry.message] for entry in entries]
        return Response(200, json.dumps(lines), content_type="application/json")

    @hub.route("/")
    def page(request: Request) -> Response:
        return PAGE

    @hub.route("/health")
    def health(request: Request) -> Response:
        return Response(200, "well")

    return hub


def serve_all(ports: list[int]) -> int:
    """Starts a process for each port, passes signals on, and ends once all have ended."""
    hubs = [
        # In sessions of their own: Ctrl-C reaches this process alone, which passes it on once.
        subprocess.Popen([sys.executable, __file__, "--port", str(port)], start_new_session=True)
        for port in ports
    ]

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in hubs:
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    return max(abs(process.wait()) for process in hubs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, nargs="+", default=[8081, 8082, 8083])
    parser.add_argument("--name", help="of the hub, which its messages begin with; else its port")
    given = parser.parse_args()
    if len(given.port) > 1:
        return serve_all(given.port)
    hub = create_hub(given.name or str(given.port[0]))
    hub.run(os.environ.get("HOST", "127.0.0.1"), given.port[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
