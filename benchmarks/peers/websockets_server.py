"""websockets with its own broadcast(), which its documentation recommends over a loop of sends.

uvloop, no compression, no keepalive pings, as its guide to memory and speed has it.
"""

import asyncio

import uvloop
from _limits import arguments
from websockets.asyncio.server import ServerConnection, broadcast, serve

MODE, PORT = arguments()
members: set[ServerConnection] = set()


async def handle(connection: ServerConnection) -> None:
    if MODE == "fanout":
        members.add(connection)
    try:
        async for message in connection:
            if MODE == "echo":
                await connection.send(message)
            elif MODE == "room" and message == "join bench":
                members.add(connection)
                await connection.send("joined")
            else:
                broadcast(members, message)
    finally:
        members.discard(connection)


async def main() -> None:
    options = {"compression": None, "ping_interval": None, "backlog": 4096}
    async with serve(handle, "127.0.0.1", PORT, **options) as server:
        await server.serve_forever()


uvloop.install()
asyncio.run(main())
