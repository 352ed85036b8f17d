"""A chat on picows: each message goes to everybody."""

import asyncio

from picows import (
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    ws_create_server,
)

transports: set[WSTransport] = set()


class Chat(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        transports.add(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        elif frame.msg_type == WSMsgType.TEXT:
            payload = frame.get_payload_as_bytes()
            for other in transports:
                other.send(WSMsgType.TEXT, payload)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        transports.discard(transport)


def factory(request: WSUpgradeRequest) -> WSListener:
    return Chat()


async def main() -> None:
    server = await ws_create_server(factory, "127.0.0.1", 8080)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
