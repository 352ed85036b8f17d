"""python-socketio on uvicorn with its Redis manager, as its documentation has it.

python socketio_node.py PORT REDIS_PORT
"""

import asyncio
import sys

import socketio
import uvicorn
from _commands import obey, started

port, redis_port = int(sys.argv[1]), int(sys.argv[2])
sio = socketio.AsyncServer(
    async_mode="asgi",
    transports=["websocket"],
    ping_interval=3600,
    client_manager=socketio.AsyncRedisManager(f"redis://127.0.0.1:{redis_port}/0"),
)


@sio.event
async def connect(sid, environ):
    await sio.enter_room(sid, "room")


async def publish(text):
    await sio.emit("m", text, room="room")


async def main():
    config = uvicorn.Config(
        socketio.ASGIApp(sio),
        host="127.0.0.1",
        port=port,
        ws="websockets-sansio",
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        log_level="error",
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await started(server)
    await obey(publish)
    server.should_exit = True
    await serving


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
