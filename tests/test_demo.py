"""The demo's chat without a browser: its health, and rooms that a client invents."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import exchange
from wsc_fast import HubConfig
from wsc_fast.demo import chat, create_hub, read_page
from wsc_fast.testing import TEXT, RawClient, eventually, running

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


async def say(raw: RawClient, **message: str) -> None:
    await raw.send(TEXT, json.dumps(message).encode())


async def heard(raw: RawClient, kind: str) -> dict[str, Any]:
    """The next message but for lists of rooms, which is of this kind."""
    while True:
        message: dict[str, Any] = json.loads((await raw.recv()).payload)
        if message["type"] != "room_list":
            assert message["type"] == kind, message
            return message


async def test_a_name_that_changes_all_the_time_is_told_once_in_an_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = create_hub(HubConfig())
    async with running(hub):
        with await RawClient.open(hub) as bob, await RawClient.open(hub) as ann:
            await say(bob, type="join_room", room="lobby", name="bob")
            await heard(bob, "joined")
            await say(ann, type="join_room", room="lobby", name="ann")
            await heard(ann, "joined")
            for number in range(20):
                await say(ann, type="join_room", room="lobby", name=f"ann{number}")
            await heard(ann, "joined")
            for kind, name in (
                ("user_joined", "ann"),
                ("user_left", "ann"),
                ("user_joined", "ann19"),
            ):
                assert (await heard(bob, kind))["name"] == name
            # To leave and to come back is a change as well.
            await say(ann, type="leave_room", room="lobby")
            await heard(ann, "user_left")
            await say(ann, type="join_room", room="lobby", name="back")
            assert (await heard(ann, "joined"))["name"] == "back"
            for kind, name in (("user_left", "ann19"), ("user_joined", "back")):
                assert (await heard(bob, kind))["name"] == name
            # Leaving gives up a change that waits.
            monkeypatch.setattr(chat, "CHANGE_INTERVAL", 60.0)
            await say(ann, type="leave_room", room="lobby")
            await heard(ann, "user_left")
            await say(ann, type="join_room", room="lobby", name="again")
            await say(ann, type="leave_room", room="lobby")
            await say(ann, type="leave_room", room="lobby")
            assert (await heard(ann, "error"))["message"] == "You are not in this room."


async def test_rooms_that_change_all_the_time_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "CHANGE_INTERVAL", 60.0)
    hub = create_hub(HubConfig())
    async with running(hub):
        with await RawClient.open(hub) as ann:
            for number in range(chat.MAX_CHANGES):
                await say(ann, type="join_room", room=f"r{number}", name="ann")
                await heard(ann, "joined")
                await say(ann, type="leave_room", room=f"r{number}")
                await heard(ann, "user_left")
            await say(ann, type="join_room", room="one more", name="ann")
            assert "too often" in (await heard(ann, "error"))["message"]
        await eventually(lambda: hub.connections == 0)


def test_a_page_gets_client_and_look_and_allows_exactly_these(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<link rel="stylesheet" href="look.css">\n<p>é</p>\n'
        '<script src="wsc-client.min.js"></script><script>wsc.connect("/ws")</script>',
        encoding="utf-8",
    )
    answer = read_page(page)
    html, policy = str(answer.body), (answer.headers or {})["Content-Security-Policy"]
    assert "<p>é</p>" in html
    assert "src=" not in html
    assert "href=" not in html
    for tag, part in (("style", "--accent:"), ("script", "var wsc="), ("script", "wsc.connect(")):
        (source,) = [each for each in html.split(f"<{tag}>")[1:] if part in each]
        digest = hashlib.sha256(source.partition(f"</{tag}>")[0].encode()).digest()
        assert f"'sha256-{base64.b64encode(digest).decode()}'" in policy
    with pytest.raises(FileNotFoundError):
        read_page(tmp_path / "nothing.html")
