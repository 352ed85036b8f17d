"""Uses of the public API, right and wrong, for type checkers; test_typing.py runs them.

Nothing here is executed. A line that a type checker has to refuse ends with "# refused".
"""

from __future__ import annotations

from wsc_fast import Client, Hub, HubMessage, Identity, NodeInfo, Request, RequestError, Response

hub = Hub()


# --- right ---


@hub.on_client_connected
def connected(client: Client) -> None:
    rooms: tuple[str, ...] = client.rooms
    print(rooms)


@hub.on_client_disconnected
async def disconnected(client: Client) -> None: ...


@hub.on_message_received
async def received(client: Client, message: str | bytes) -> int:
    client.send(HubMessage(content="x"))
    return hub.broadcast(HubMessage(content="x"))


@Hub().on_messages_received
async def received_all(client: Client, messages: list[str | bytes]) -> None:
    for message in messages:
        client.send(message)


@hub.on_error
def failed(client: Client | None, error: BaseException) -> None: ...


@hub.on_room_joined
async def joined(client: Client, room_id: str) -> None:
    users: list[str] = hub.get_room_users(room_id)
    size: int = hub.get_room_size(room_id)
    print(users, size)


@hub.on_room_left
def left(client: Client, room_id: str, extra: int = 0) -> None: ...


@hub.on_request
async def asked(client: Client, data: object) -> dict[str, object]:
    if data is None:
        raise RequestError("no-data", "say what")
    return {"you": client.user_id, "data": data}


@hub.on_join_request
def may_join(client: Client, room_id: str) -> bool:
    return room_id.startswith("chat:")


@hub.on_presence
async def present(room_id: str, come: set[str], gone: set[str]) -> None:
    users: list[str] = [each.user_id for each in await hub.cluster.members(room_id)]
    print(users, await hub.cluster.online(users) - come)


@hub.on_node
def other(node: NodeInfo, is_up: bool) -> None:
    print(node.name, node.clients, is_up)


@hub.route("/rooms/{room}", methods=("GET", "POST"))
async def route(request: Request) -> Response:
    return Response(body=request.body or request.path_params["room"])


@hub.route("/plain")
def plain(request: Request) -> dict[str, int]:
    return {}


hub.on_client_connected(lambda client: client.disconnect())
kept: int = len(plain(Request.__new__(Request)))  # a decorator keeps the type


async def authenticate(request: Request) -> Identity | None:
    return Identity("ann")


Hub(authenticate=authenticate, authorize_join=lambda client, room_id: True)


# --- wrong: how many arguments ---


def of_none() -> None: ...
def of_client(client: Client) -> None: ...
def of_two(client: Client, message: str | bytes) -> None: ...
def of_three(client: Client, room_id: str, more: int) -> None: ...


hub.on_client_connected(of_none)  # refused
hub.on_client_connected(of_two)  # refused
hub.on_client_disconnected(of_two)  # refused
hub.on_message_received(of_client)  # refused
hub.on_message_received(of_three)  # refused
hub.on_messages_received(of_client)  # refused
hub.on_error(of_client)  # refused
hub.on_room_joined(of_client)  # refused
hub.on_room_left(of_three)  # refused
hub.on_request(of_client)  # refused
hub.on_join_request(of_two)  # refused
hub.on_presence(of_client)  # refused
hub.on_node(of_client)  # refused
hub.route("/none")(of_none)  # refused
Hub(authenticate=of_none)  # refused
Hub(authorize_join=of_client)  # refused
Hub(authorize_publish=of_three)  # refused


# --- wrong: of which types ---


def of_text(client: Client, message: str) -> None: ...
def of_number(client: int) -> None: ...
def of_some_errors(client: Client, error: BaseException) -> None: ...
def of_identity(request: Request) -> str:
    return "ann"


hub.on_client_connected(of_number)  # refused
hub.on_message_received(of_text)  # refused
hub.on_messages_received(of_text)  # refused
hub.on_error(of_some_errors)  # refused
hub.route("/number")(of_number)  # refused
hub.route("/r", methods=3)  # refused
hub.broadcast(3)  # refused
hub.send_to_user("ann", "text")  # refused
Hub(authenticate=of_identity)  # refused


# --- completion: a client shows nothing of its transport, nor of picows ---


def shown(client: Client) -> None:
    client.get_buffer(-1)  # refused
    client.buffer_updated(0)  # refused
    client.connection_made()  # refused
    client.eof_received()  # refused
    client.pause_writing()  # refused
    client.on_ws_frame()  # refused
    client.send_user_specific_ping()  # refused
