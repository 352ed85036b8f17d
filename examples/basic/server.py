"""A hub with each kind of callback and handler that there is: it echoes, and logs what happens.

Run it with `python server.py`, and connect to ws://127.0.0.1:8080/ws?user=ann.
"""

import argparse
import logging

from wsc_fast import (
    Client,
    Hub,
    HubMessage,
    Identity,
    Request,
    SendFailureReason,
    WSCError,
)

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
log = logging.getLogger("basic")


def authenticate(request: Request) -> Identity | None:
    # For a trial the query is believed. Yours takes a token: wsc_fast.auth has ready-made ones.
    user = request.query.get("user")
    return Identity(user) if user else None  # None refuses with 401


hub = Hub(authenticate=authenticate)
hub.create_room("news")


@hub.on_startup
def starting() -> None:
    log.info("startup: nobody is connected yet")


@hub.on_client_connected
def connected(client: Client) -> None:
    log.info("%s connected from %s", client.user_id, client.remote_address)
    client.send(f"hello {client.user_id}")


@hub.on_message_received
def received(client: Client, message: str | bytes) -> None:
    """Binary messages are echoed. Texts are commands, or are for all."""
    if isinstance(message, bytes):
        client.send(message)
        return
    try:
        obey(client, message)
    except WSCError as error:  # base of all errors of the hub: no such room, nobody there
        client.send(f"that did not work: {error}")


def obey(client: Client, message: str) -> None:
    command, _, rest = message.partition(" ")
    match command:
        case "join":
            hub.join_room(client.id, rest)
        case "leave":
            hub.leave_room(client.id, rest)
        case "news":
            hub.broadcast_to_room("news", rest)
        case "tell":
            user, _, text = rest.partition(" ")
            hub.send_to_user(user, HubMessage(from_=client.user_id, content=text))
        case _:
            hub.broadcast(f"{client.user_id}: {message}")


@hub.on_room_joined
def joined(client: Client, room: str) -> None:
    log.info("%s joined %s", client.user_id, room)


@hub.on_room_left
def left(client: Client, room: str) -> None:
    log.info("%s left %s", client.user_id, room)


@hub.on_client_disconnected
def disconnected(client: Client) -> None:
    log.info("%s is gone, close code %s", client.user_id, client.close_code)


@hub.on_error
def failed(client: Client | None, error: BaseException) -> None:
    """Hears what callbacks raise, of faults of peers, and of connections that broke."""
    who = client.user_id if client else "no client"
    log.warning("error of %s: %s: %s", who, type(error).__name__, error)


@hub.on_shutdown
def stopping() -> None:
    hub.broadcast("the server stops")


class Failures:
    """One object may have all five methods. They run in a thread of the object's own."""

    def handle_send_failure(
        self, msg: HubMessage, recipient: str, reason: SendFailureReason, error: Exception
    ) -> None:
        log.warning("not delivered to %s: %s", recipient, reason)

    def handle_queue_full(
        self, msg: HubMessage, recipient: str, queue_type: str, error: Exception
    ) -> None:
        log.warning("the %s queue of %s is full", queue_type, recipient)

    def handle_user_offline(self, msg: HubMessage, user_id: str, error: Exception) -> None:
        log.warning("%s is offline and misses %r", user_id, msg.content)

    def handle_connection_error(self, msg: HubMessage, client_id: str, error: Exception) -> None:
        log.warning("the connection %s broke: %s", client_id, error)

    def handle_timeout(
        self, msg: HubMessage, recipient: str, timeout_type: str, duration: float, error: Exception
    ) -> None:
        log.warning("%s timeout of %s after %.1f s", timeout_type, recipient, duration)


failures = Failures()
hub.add_send_failure_handler(failures)
hub.add_queue_full_handler(failures)
hub.add_user_offline_handler(failures)
hub.add_connection_error_handler(failures)
hub.add_timeout_handler(failures)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    hub.run("127.0.0.1", parser.parse_args().port, path="/ws")  # until Ctrl-C or SIGTERM
