"""python-socketio on uvicorn, set up as fastapi_server.py is.

Socket.IO has a protocol of its own above WebSocket: a message is an event, 42["m","..."], which
both sides encode and decode as JSON. The load generator speaks it (transport websocket from the
start, no polling), so what is measured holds that work; a user of Socket.IO has to pay for it.
"""

import socketio
import uvicorn
from _common import arguments, total

options = arguments()
receivers = {}
sio = socketio.AsyncServer(
    async_mode="asgi",
    transports=["websocket"],
    ping_interval=300,
    max_http_buffer_size=16 << 20,
    async_handlers=False,
)


@sio.on("m")
async def message(sid, text):
    if options.mode == "echo":
        await sio.emit("m", text, to=sid)
    elif options.mode == "json":
        await sio.emit("m", total(text), to=sid)
    elif options.mode == "fanout" or text[0] == "a":
        await sio.emit("m", text)
    elif text[0] == "r":
        await sio.emit("m", text, room=text[:6])
    elif text[0] == "d":
        await sio.emit("m", text, to=receivers[text[:6]])
    else:
        name = text[5:]
        if name[0] == "d":
            receivers[name] = sid
        else:
            await sio.enter_room(sid, name)
        await sio.emit("m", "joined", to=sid)


cert, key = options.tls or (None, None)
uvicorn.run(
    socketio.ASGIApp(sio),
    host="127.0.0.1",
    port=options.port,
    loop="uvloop",
    http="httptools",
    ws="websockets-sansio",
    ws_ping_interval=None,
    ws_per_message_deflate=False,
    access_log=False,
    log_level="warning",
    backlog=4096,
    ssl_certfile=cert,
    ssl_keyfile=key,
)
