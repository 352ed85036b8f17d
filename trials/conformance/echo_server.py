"""The server under test: a hub that sends every message back.

    python -m trials.conformance.echo_server PORT [LOOP] [hub|picows|uvicorn] [CERTIFICATE KEY]

LOOP is uvloop or asyncio. With "uvicorn" it is the hub on uvicorn's port.

Prints "ready" once it listens; serves until it is terminated.
"""

import asyncio
import logging
import socket
import ssl
import sys
from functools import partial
from typing import Any

import uvicorn
import uvloop

from wsc_fast import Client, Hub, HubConfig

# The cases break the protocol on purpose: a warning for each would hide an error.
logging.getLogger("wsc_fast").setLevel(logging.ERROR)

# Cases 9.1.6 and 9.2.6 send messages of 16 MiB.
LARGEST = 16 << 20

hub = Hub(
    HubConfig(
        enable_compression=True,
        max_message_size=LARGEST,
        # Some cases send a 4 MiB message in 64-byte fragments.
        max_fragments=1 << 17,
        outbox_messages=4096,
        outbox_bytes=4 * LARGEST,
    )
)


@hub.on_message_received
def echo(client: Client, message: str | bytes) -> None:
    client.send(message)


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """The application of uvicorn's beside the hub, which no case asks."""


class Announced(uvicorn.Server):
    """Prints "ready" once it listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print("ready", flush=True)


async def serve_by_uvicorn(port: int, files: list[str]) -> None:
    certfile, keyfile = files or (None, None)
    config = uvicorn.Config(
        nothing,
        port=port,
        ws=hub.uvicorn(path="/"),
        lifespan="off",
        log_level="warning",
        ssl_certfile=certfile,
        ssl_keyfile=keyfile,
    )
    await Announced(config).serve()


async def serve(transport: Any, port: int, files: list[str]) -> None:
    context = None
    if files:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
    await hub.start("127.0.0.1", port, path="/", ssl=context, transport=transport)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    loop = sys.argv[2] if len(sys.argv) > 2 else "uvloop"
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        transport = sys.argv[3] if len(sys.argv) > 3 else "hub"
        serving = serve_by_uvicorn if transport == "uvicorn" else partial(serve, transport)
        runner.run(serving(int(sys.argv[1]), sys.argv[4:]))
