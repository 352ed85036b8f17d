"""The hooks authorize_join and authorize_publish."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import join, named
from wsc_fast import (
    Client,
    ClientNotFoundError,
    Hub,
    PermissionDeniedError,
    RoomNotFoundError,
    SendFailureReason,
    ValidationError,
)
from wsc_fast.testing import TEXT, eventually, running


async def test_a_client_that_may_not_join_does_not() -> None:
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


@pytest.mark.fault(number="F11")
async def test_a_client_that_goes_while_the_hook_decides_joins_no_room() -> None:
    def allow(client: Client, room_id: str) -> bool:
        if room_id == "leaving":
            hub.disconnect_user(client.user_id)
        else:
            hub.delete_room(room_id)
        return True

    hub = Hub(authenticate=named, authorize_join=allow)
    async with running(hub):
        raw, _ = await join(hub, "a")
        hub.create_room("leaving")
        hub.create_room("deleted")
        with pytest.raises(RoomNotFoundError):
            hub.join_room("a", "deleted")
        with pytest.raises(ClientNotFoundError):
            hub.join_room("a", "leaving")
        assert hub.get_room_clients("leaving") == []
        assert hub.broadcast_to_room("leaving", "x") == 0
        raw.close()


async def decide(client: Client, subject: object) -> bool:
    return False


def test_a_hook_must_be_plain() -> None:
    for hook in ("authorize_join", "authorize_publish"):
        with pytest.raises(ValidationError, match="decide must be a plain function, not async"):
            Hub(**{hook: decide})  # type: ignore[arg-type]


async def test_an_awaitable_allows_nothing() -> None:
    seen: list[str | bytes] = []
    errors: list[Exception] = []

    def later(client: Client, subject: object) -> Any:
        return decide(client, subject)

    hub = Hub(authenticate=named, authorize_join=later, authorize_publish=later)
    hub.on_message_received(lambda client, message: seen.append(message))
    hub.on_error(lambda client, error: errors.append(error))
    async with running(hub):
        raw, _ = await join(hub, "a")
        hub.create_room("r")
        with pytest.raises(TypeError, match="must return a bool"):
            hub.join_room("a", "r")
        assert hub.get_room_clients("r") == []
        await raw.send(TEXT, b"x")
        await eventually(lambda: hub.get_stats().unauthorized == 1)
        assert [type(error) for error in errors] == [TypeError]
        assert seen == []
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
        assert [(told.content, *rest) for told, *rest in handler.heard] == [
            ("secret", "a", SendFailureReason.PERMISSION),
            ("bug", "a", SendFailureReason.PERMISSION),
        ]
        raw.close()
