"""aiohttp, where a broadcast is a loop of awaited sends.

uvloop, no access log, and no compression unless asked for.
"""

import asyncio
import ssl

import uvloop
from _common import Audience, answer, arguments
from aiohttp import WSMsgType, web

options = arguments()
audience = Audience(options.mode)


async def handle(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse(compress=options.deflate, max_msg_size=16 << 20)
    await ws.prepare(request)
    audience.everybody.add(ws)
    try:
        async for message in ws:
            if message.type is not WSMsgType.TEXT:
                break
            if options.mode == "echo":
                await ws.send_str(message.data)
            elif options.mode == "json":
                await ws.send_str(answer(message.data))
            elif message.data.startswith("join "):
                audience.join(message.data[5:], ws)
                await ws.send_str("joined")
            else:
                for member in list(audience.of(message.data)):
                    if not member.closed:
                        await member.send_str(message.data)
    finally:
        audience.leave(ws)
    return ws


context = None
if options.tls:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*options.tls)
asyncio.set_event_loop(loop := uvloop.new_event_loop())
app = web.Application()
app.router.add_get("/ws", handle)
web.run_app(
    app,
    host="127.0.0.1",
    port=options.port,
    ssl_context=context,
    backlog=4096,
    access_log=None,
    print=None,
    loop=loop,
)
