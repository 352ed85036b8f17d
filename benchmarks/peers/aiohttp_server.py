"""aiohttp, where a broadcast is a loop of awaited sends.

uvloop, no compression, no access log.
"""

import asyncio

import uvloop
from _limits import arguments
from aiohttp import WSMsgType, web

MODE, PORT = arguments()
members: set[web.WebSocketResponse] = set()


async def handle(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse(compress=False)
    await ws.prepare(request)
    if MODE == "fanout":
        members.add(ws)
    try:
        async for message in ws:
            if message.type is not WSMsgType.TEXT:
                break
            if MODE == "echo":
                await ws.send_str(message.data)
            elif MODE == "room" and message.data == "join bench":
                members.add(ws)
                await ws.send_str("joined")
            else:
                for member in list(members):
                    await member.send_str(message.data)
    finally:
        members.discard(ws)
    return ws


uvloop.install()
app = web.Application()
app.router.add_get("/ws", handle)
loop = asyncio.new_event_loop()
web.run_app(app, host="127.0.0.1", port=PORT, backlog=4096, access_log=None, print=None, loop=loop)
