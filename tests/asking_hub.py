"""A hub for the tests of our clients: it keeps chats, answers requests and echoes messages."""

from __future__ import annotations

from typing import Any

from tests.support import named
from wsc_fast import Client, Hub, RequestError


def asking(hub: Hub | None = None) -> Hub:
    """A hub that keeps chats, lets clients into them, echoes messages and answers requests."""
    hub = hub or Hub(authenticate=named)
    hub.keep("chat:*", size=1000)
    hub.on_join_request(lambda client, room_id: room_id.startswith("chat:"))

    @hub.on_request
    async def answer(client: Client, data: Any) -> Any:
        if data == "nothing":
            raise RequestError("no-such", "there is nothing")
        return {"you": client.id, "asked": data}

    @hub.on_message_received
    def echo(client: Client, message: str | bytes) -> None:
        client.send(message)

    return hub
