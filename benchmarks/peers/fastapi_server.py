"""FastAPI (its WebSocket is Starlette's) on uvicorn, with the connection manager of its
documentation: a broadcast is a loop of awaited sends.

uvloop and httptools (the extra uvicorn[standard]), no access log, no keepalive pings, and no
compression unless asked for.
"""

import uvicorn
from _common import Audience, answer, arguments
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

options = arguments()
audience = Audience(options.mode)
app = FastAPI()


@app.websocket("/ws")
async def endpoint(ws: WebSocket) -> None:
    await ws.accept()
    audience.everybody.add(ws)
    try:
        while True:
            message = await ws.receive_text()
            if options.mode == "echo":
                await ws.send_text(message)
            elif options.mode == "json":
                await ws.send_text(answer(message))
            elif message.startswith("join "):
                audience.join(message[5:], ws)
                await ws.send_text("joined")
            else:
                for member in list(audience.of(message)):
                    await member.send_text(message)
    except WebSocketDisconnect:
        pass
    finally:
        audience.leave(ws)


cert, key = options.tls or (None, None)
uvicorn.run(
    app,
    host="127.0.0.1",
    port=options.port,
    loop="uvloop",
    http="httptools",
    ws="websockets-sansio",
    ws_ping_interval=None,
    ws_per_message_deflate=options.deflate,
    access_log=False,
    log_level="warning",
    backlog=4096,
    ssl_certfile=cert,
    ssl_keyfile=key,
)
