"""socketify (uWebSockets) with its own publish and subscribe: the fastest broadcast of another
server that Python can call.

No compression and no idle timeout; the rest as in its examples.
"""

from _limits import arguments
from socketify import App, CompressOptions, OpCode

MODE, PORT = arguments()


def on_open(ws):
    if MODE == "fanout":
        ws.subscribe("bench")


def on_message(ws, message, opcode):
    if MODE == "echo":
        ws.send(message, opcode)
    elif MODE == "room" and message == "join bench":
        ws.subscribe("bench")
        ws.send("joined", OpCode.TEXT)
    else:
        app.publish("bench", message, opcode)


app = App()
app.ws(
    "/ws",
    {
        "compression": CompressOptions.DISABLED,
        "max_payload_length": 16 * 1024 * 1024,
        "idle_timeout": 0,
        "open": on_open,
        "message": on_message,
    },
)
app.listen({"host": "127.0.0.1", "port": PORT}, lambda config: None)
app.run()
