"""The same chat on a hub."""

from wsc_fast import Client, Hub

hub = Hub()


@hub.on_message_received
def received(client: Client, message: str | bytes) -> None:
    hub.broadcast(message)


if __name__ == "__main__":
    hub.run("127.0.0.1", 8080, path="/")
