"""granian with its own interface, RSGI, which its documentation calls faster than ASGI; a broadcast
is a loop of awaited sends.

uvloop, one worker with one runtime thread, as for the other servers here. It has no compression.
"""

from pathlib import Path

from _common import Audience, answer, arguments
from granian import Granian
from granian.constants import Interfaces, Loops
from granian.rsgi import ProtocolClosed, WebsocketMessageType

options = arguments()
audience = Audience(options.mode)


async def app(scope, protocol):
    ws = await protocol.accept()
    audience.everybody.add(ws)
    try:
        while (received := await ws.receive()).kind != WebsocketMessageType.close:
            message = received.data
            if options.mode == "echo":
                await ws.send_str(message)
            elif options.mode == "json":
                await ws.send_str(answer(message))
            elif message.startswith("join "):
                audience.join(message[5:], ws)
                await ws.send_str("joined")
            else:
                for member in list(audience.of(message)):
                    await member.send_str(message)
    except ProtocolClosed:
        pass
    finally:
        audience.leave(ws)


if __name__ == "__main__":
    cert, key = options.tls or (None, None)
    Granian(
        "granian_server:app",
        port=options.port,
        interface=Interfaces.RSGI,
        loop=Loops.uvloop,
        workers=1,
        runtime_threads=1,
        backlog=4096,
        log_enabled=False,
        ssl_cert=Path(cert) if cert else None,
        ssl_key=Path(key) if key else None,
        working_dir=Path(__file__).parent,
    ).serve()
