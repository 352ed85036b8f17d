"""picows as its documentation shows it: a listener per client, and a loop of sends to broadcast.

uvloop, and picows' defaults (its own transport, aiofastnet, where that is installed). It has no
compression.
"""

import ssl

import uvloop
from _common import Audience, answer, arguments
from picows import (
    WSCloseCode,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    ws_create_server,
)

options = arguments()
audience = Audience(options.mode)


class Peer(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        audience.everybody.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        audience.leave(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()
            return
        if options.mode == "echo":
            transport.send(frame.msg_type, frame.get_payload_as_memoryview())
            return
        message = frame.get_payload_as_bytes()
        if options.mode == "json":
            transport.send(WSMsgType.TEXT, answer(message).encode())
        elif message.startswith(b"join "):
            audience.join(message[5:], transport)
            transport.send(WSMsgType.TEXT, b"joined")
        else:
            for member in audience.of(message):
                member.send(frame.msg_type, message)


def accept(request: WSUpgradeRequest) -> Peer:
    return Peer()


async def main() -> None:
    context = None
    if options.tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*options.tls)
    server = await ws_create_server(
        accept, "127.0.0.1", options.port, ssl=context, backlog=4096, max_frame_size=16 << 20
    )
    await server.serve_forever()


uvloop.run(main())
