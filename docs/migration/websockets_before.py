"""A chat on the library websockets: each message goes to everybody."""

import asyncio

from websockets.asyncio.server import ServerConnection, broadcast, serve

connections: set[ServerConnection] = set()


async def handler(connection: ServerConnection) -> None:
    connections.add(connection)
    try:
        async for message in connection:
            broadcast(connections, message)
    finally:
        connections.discard(connection)


async def main() -> None:
    async with serve(handler, "127.0.0.1", 8080) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
