"""websockets with its own broadcast(), which its documentation recommends over a loop of sends.

uvloop, no keepalive pings, and no compression unless asked for, as its guide to memory and speed
has it.
"""

import asyncio
import ssl

import uvloop
from _common import Audience, answer, arguments
from websockets.asyncio.server import ServerConnection, broadcast, serve

options = arguments()
audience = Audience(options.mode)


async def handle(connection: ServerConnection) -> None:
    audience.everybody.add(connection)
    try:
        async for message in connection:
            if options.mode == "echo":
                await connection.send(message)
            elif options.mode == "json":
                await connection.send(answer(message))
            elif message.startswith("join "):
                audience.join(message[5:], connection)
                await connection.send("joined")
            else:
                broadcast(audience.of(message), message)
    finally:
        audience.leave(connection)


async def main() -> None:
    context = None
    if options.tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*options.tls)
    async with serve(
        handle,
        "127.0.0.1",
        options.port,
        ssl=context,
        compression="deflate" if options.deflate else None,
        ping_interval=None,
        max_size=16 << 20,
        backlog=4096,
    ):
        await asyncio.get_running_loop().create_future()


uvloop.run(main())
