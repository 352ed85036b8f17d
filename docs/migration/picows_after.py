"""The same chat on a hub, with picows as its transport."""

from wsc_fast import Client, Hub

hub = Hub()


@hub.on_message_received
def received(client: Client, message: str | bytes) -> None:
    if isinstance(message, str):
        hub.broadcast(message)


if __name__ == "__main__":
    hub.run("127.0.0.1", 8080, path="/", transport="picows")
