"""This project, as an application would write it: a hub with a Python callback for each message."""

from _limits import arguments

from wsc_fast import Client, Hub

MODE, PORT = arguments()
hub = Hub()

if MODE == "fanout":

    @hub.on_message_received
    def broadcast(client: Client, message: str | bytes) -> None:
        hub.broadcast(message)

elif MODE == "room":
    hub.create_room("bench")

    @hub.on_message_received
    def broadcast_to_room(client: Client, message: str | bytes) -> None:
        if message == "join bench":
            hub.join_room(client.id, "bench")
            client.send("joined")
        else:
            hub.broadcast_to_room("bench", message)

else:

    @hub.on_message_received
    def echo(client: Client, message: str | bytes) -> None:
        client.send(message)


hub.run("127.0.0.1", PORT)
