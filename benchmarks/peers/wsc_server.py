"""This project, as an application would write it: a hub with a Python callback for each message.

Its settings may be changed by the environment (WSC_OUTBOX_MESSAGES, ...), as `grow-queue` does.
"""

import asyncio
import os
from functools import partial
from itertools import count
from typing import Any

import uvloop
from _common import answer, arguments
from picows import ws_create_server

from wsc_fast import Client, Hub, HubConfig, Identity, Request, handle_websocket
from wsc_fast.listen.tls.context import tls_context

options = arguments()
numbers = count()


def authenticate(request: Request) -> Identity:
    return Identity(f"user{next(numbers)}")


hub = Hub(
    HubConfig.from_env(os.environ | {"WSC_ENABLE_COMPRESSION": str(options.deflate)}),
    authenticate=authenticate if options.authenticate else None,
)
receivers: dict[str, str] = {}
rooms: set[str] = set()


def broadcast(client: Client, message: str) -> None:
    hub.broadcast(message)


def echo(client: Client, message: str) -> None:
    client.send(message)


def reply(client: Client, message: str) -> None:
    client.send(answer(message))


def route(client: Client, message: str) -> None:
    match message[0]:
        case "r":
            hub.broadcast_to_room(message[:6], message)
        case "d":
            hub.send_to_client(receivers[message[:6]], message)
        case "a":
            hub.broadcast(message)
        case _:
            join(client, message.removeprefix("join "))


def join(client: Client, name: str) -> None:
    if name[0] == "d":
        receivers[name] = client.id
    else:
        if name not in rooms:
            rooms.add(name)
            hub.create_room(name)
        hub.join_room(client.id, name)
    client.send("joined")


handlers = {"fanout": broadcast, "echo": echo, "json": reply}
handle = handlers.get(options.mode, route)


def handle_all(client: Client, messages: list[str]) -> None:
    for message in messages:
        handle(client, message)


if options.lists:
    hub.on_messages_received(handle_all)
else:
    hub.on_message_received(handle)
cert, key = options.tls or (None, None)


async def serve_on_a_picows_server() -> None:
    await hub.attach()
    await ws_create_server(
        partial(handle_websocket, hub),
        "127.0.0.1",
        options.port,
        ssl=tls_context(cert, key) if cert else None,
        backlog=4096,
        enable_auto_pong=False,
        read_buffer_init_size=2_048,
    )
    await asyncio.Event().wait()


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """The application beside the hub on uvicorn's port, which nobody asks."""


if options.transport == "uvicorn":
    import uvicorn

    uvicorn.run(
        nothing,
        port=options.port,
        ws=hub.uvicorn(),
        loop="uvloop",
        lifespan="off",
        log_level="warning",
        backlog=4096,
        ssl_certfile=cert,
        ssl_keyfile=key,
    )
elif options.transport == "picows-server":
    uvloop.run(serve_on_a_picows_server())
else:
    hub.run("127.0.0.1", options.port, certfile=cert, keyfile=key, transport=options.transport)
