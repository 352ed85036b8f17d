"""Part 1: each client gets back what it sends."""

from wsc_fast import Client, Hub

hub = Hub()


@hub.on_message_received
def received(client: Client, message: str | bytes) -> None:
    client.send(message)


if __name__ == "__main__":
    hub.run(port=8080)
