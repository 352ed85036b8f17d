"""A chat on two hubs that are one. README.md says how to run it.

    python hub.py              starts two hubs, on the ports 8081 and 8082
    python hub.py 8080         starts one

BUS is the URL of their Redis, and WSC_... are settings (HubConfig), such as WSC_TRUSTED_PROXIES.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from wsc_fast import Client, Hub, HubConfig, RedisBus, Request, Response

PAGE = (Path(__file__).parent / "page.html").read_text()
ROOM = "chat:lobby"


def create_hub(port: int) -> Hub:
    """The hub of one port: its clients hear of the messages of all hubs on the same bus."""
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
            hub.broadcast_to_room(ROOM, f"{port}: {message[:1000]}")

    @hub.route("/")
    def page(request: Request) -> Response:
        return Response(200, PAGE, content_type="text/html; charset=utf-8")

    @hub.route("/health")
    def health(request: Request) -> Response:
        return Response(200, "well")

    return hub


def serve_all(ports: list[int]) -> int:
    """Starts a process for each port, passes signals on, and ends once all have ended."""
    hubs = [
        # In sessions of their own: Ctrl-C reaches this process alone, which passes it on once.
        subprocess.Popen([sys.executable, __file__, str(port)], start_new_session=True)
        for port in ports
    ]

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in hubs:
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    return max(abs(process.wait()) for process in hubs)


def main() -> int:
    """Serves the ports that the command line names."""
    ports = [int(each) for each in sys.argv[1:]] or [8081, 8082]
    if len(ports) > 1:
        return serve_all(ports)
    create_hub(ports[0]).run(os.environ.get("HOST", "127.0.0.1"), ports[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
