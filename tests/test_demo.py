"""The demo's chat without a browser: its health, and rooms that a client invents."""

from __future__ import annotations

import json

import pytest

from tests.support import TEXT, RawClient, exchange, running
from wsc_fast.demo import create_hub

ROOMS = ["nowhere", "", " ", "x" * 41, "\x00", "\u202e", "\u200d", "__proto__", "a\u2028x"]


async def test_the_health_has_the_keys_of_the_contract() -> None:
    hub = create_hub()
    async with running(hub):
        with await RawClient.open(hub):
            answer = await exchange(hub, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    health = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert health.pop("uptime").startswith("0:00:0")
    assert health == {"status": "healthy", "connections": 1, "rooms": 1}


@pytest.mark.parametrize("kind", ["join_room", "leave_room", "chat_message"])
async def test_a_room_that_a_client_invents_is_an_answer_and_no_traceback(
    kind: str, quiet_log: None
) -> None:
    hub = create_hub()
    async with running(hub):
        with await RawClient.open(hub) as raw:
            for room in ROOMS:
                request = {"type": kind, "room": room, "name": "ann", "text": "hello"}
                await raw.send(TEXT, json.dumps(request).encode())
                answer = json.loads((await raw.recv()).payload)
                while answer["type"] == "room_list":
                    answer = json.loads((await raw.recv()).payload)
                made = kind == "join_room" and room in ("nowhere", "__proto__")
                assert answer["type"] == ("joined" if made else "error")
                assert answer["room"] == room
        assert hub.get_stats().callback_errors == 0
