"""The hooks authorize_join and authorize_publish."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import TEXT, eventually, join, named, running
from wsc_fast import Client, Hub, PermissionDeniedError, SendFailureReason


async def test_only_who_may_join_joins() -> None:
    def allow(client: Client, room_id: str) -> bool:
        return client.user_id == room_id

    hub = Hub(authenticate=named, authorize_join=allow)
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        for room_id in ("ann", "bob"):
            hub.create_room(room_id)
        hub.join_room("a", "ann")
        with pytest.raises(PermissionDeniedError, match="'a' may not join room 'bob'"):
            hub.join_room("a", "bob")
        assert hub.get_client_rooms("a") == ["ann"]
        raw.close()


class Handler:
    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def handle_send_failure(self, *arguments: Any) -> None:
        self.heard.append(arguments[:3])


async def test_only_what_may_be_published_is_heard() -> None:
    seen: list[str | bytes] = []
    errors: list[Exception] = []

    def allow(client: Client, message: str | bytes) -> bool:
        if message == "bug":
            raise KeyError("bug")
        return message != "secret"

    hub = Hub(authenticate=named, authorize_publish=allow)
    hub.on_message_received(lambda client, message: seen.append(message))
    hub.on_error(lambda client, error: errors.append(error))
    handler = Handler()
    hub.add_send_failure_handler(handler)
    async with running(hub):
        raw, client = await join(hub, "a")
        for message in (b"one", b"secret", b"bug", b"two"):
            await raw.send(TEXT, message)
        await eventually(lambda: seen == ["one", "two"])
        assert client.is_connected()
        assert hub.get_stats().unauthorized == 2
        assert [type(error) for error in errors] == [KeyError]
        await eventually(lambda: len(handler.heard) == 2)
        assert handler.heard == [
            ("secret", "a", SendFailureReason.PERMISSION),
            ("bug", "a", SendFailureReason.PERMISSION),
        ]
        raw.close()
