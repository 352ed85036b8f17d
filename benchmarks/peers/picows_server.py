"""picows as its documentation shows it: a listener per client, and a loop of sends to broadcast.

uvloop, and picows' defaults (its own transport, aiofastnet, where that is installed).
"""

import asyncio

import uvloop
from _limits import arguments
from picows import (
    WSCloseCode,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    ws_create_server,
)

MODE, PORT = arguments()
members: set[WSTransport] = set()


class Peer(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        if MODE == "fanout":
            members.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        members.discard(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()
            return
        message = frame.get_payload_as_bytes()
        if MODE == "echo":
            transport.send(frame.msg_type, message)
        elif MODE == "room" and message == b"join bench":
            members.add(transport)
            transport.send(WSMsgType.TEXT, b"joined")
        else:
            for member in members:
                member.send(frame.msg_type, message)


def accept(request: WSUpgradeRequest) -> Peer:
    return Peer()


async def main() -> None:
    server = await ws_create_server(accept, "127.0.0.1", PORT, backlog=4096)
    await server.serve_forever()


uvloop.install()
asyncio.run(main())
