"""socketify (uWebSockets) with its own publish and subscribe: the fastest broadcast of another
server that Python can call.

No idle timeout, and no compression unless asked for (then the shared compressor, its fastest); the
rest as in its examples.
"""

from _common import answer, arguments
from socketify import App, AppOptions, CompressOptions, OpCode

options = arguments()
receivers = {}


def on_open(ws):
    ws.subscribe("everybody")


def on_message(ws, message, opcode):
    if options.mode == "echo":
        ws.send(message, opcode)
    elif options.mode == "json":
        ws.send(answer(message), OpCode.TEXT)
    elif options.mode == "fanout" or message[0] == "a":
        app.publish("everybody", message, opcode, options.deflate)
    elif message[0] == "r":
        app.publish(message[:6], message, opcode)
    elif message[0] == "d":
        receivers[message[:6]].send(message, opcode)
    else:
        name = message[5:]
        if name[0] == "d":
            receivers[name] = ws
        else:
            ws.subscribe(name)
        ws.send("joined", OpCode.TEXT)


if options.tls:
    app = App(AppOptions(cert_file_name=options.tls[0], key_file_name=options.tls[1]))
else:
    app = App()
app.ws(
    "/ws",
    {
        "compression": CompressOptions.SHARED_COMPRESSOR
        if options.deflate
        else CompressOptions.DISABLED,
        "max_payload_length": 16 * 1024 * 1024,
        "idle_timeout": 0,
        "open": on_open,
        "message": on_message,
    },
)
app.listen({"host": "127.0.0.1", "port": options.port}, lambda config: None)
app.run()
