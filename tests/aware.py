"""A client that speaks wsc.1 on a bare socket."""

from __future__ import annotations

import json
from typing import Any

from tests.support import named
from wsc_fast import Client, Hub
from wsc_fast.testing import BINARY, TEXT, RawClient

AWARE = (("Sec-WebSocket-Protocol", "wsc.1"),)


class Aware:
    """A client that speaks wsc.1, with the positions that it has to remember."""

    def __init__(self, raw: RawClient) -> None:
        self.raw = raw
        self.positions: dict[str, str] = {}

    @classmethod
    async def open(
        cls, hub: Hub, name: str, positions: dict[str, str] | None = None, **options: Any
    ) -> Aware:
        headers = options.pop("headers", AWARE)
        raw = await RawClient.open(hub, f"/ws?id={name}", headers=headers, **options)
        client = cls(raw)
        await client.send_head({"hello": 1, "pos": positions or {}})
        return client

    async def send_head(self, head: dict[str, Any], payload: bytes = b"") -> None:
        await self.raw.send(TEXT, json.dumps(head).encode() + b"\n" + payload)

    async def recv(self) -> tuple[dict[str, Any], bytes]:
        """The next message: its head and its payload."""
        frame = await self.raw.recv()
        assert frame.opcode in (TEXT, BINARY), frame
        head, newline, payload = frame.payload.partition(b"\n")
        assert newline, frame
        fields: dict[str, Any] = json.loads(head) if head else {}
        room = fields.get("room", fields.get("gap"))
        if room is not None and "pos" in fields:
            self.positions[room] = fields["pos"]
        return fields, payload

    async def texts(self, count: int) -> list[bytes]:
        return [(await self.recv())[1] for _ in range(count)]

    def close(self) -> None:
        self.raw.close()


def keeping(pattern: str = "r*", hub: Hub | None = None, **options: Any) -> Hub:
    """A hub that keeps rooms, and makes each client a member of the room `r`."""
    hub = hub or Hub(authenticate=named)
    hub.keep(pattern, **options)

    @hub.on_client_connected
    def enter(client: Client) -> None:
        hub.join_room(client.id, "r")

    return hub
