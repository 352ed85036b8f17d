"""The callbacks of the soak's hub: they call it again, take their time, and raise."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

from trials.soak.calls import Calls
from trials.soak.log import Log, ProvokedError
from trials.soak.messages import BYE, parse
from trials.soak.roster import Roster
from wsc_fast import Client, Hub, HubMessage, Identity, Request, ValidationError


class Callbacks:
    """One of each kind; `authenticate` is given to the hub when it is made."""

    def __init__(self, draw: random.Random, log: Log) -> None:
        self.draw = draw
        self.log = log

    def register(self, hub: Hub, calls: Calls) -> None:
        self.calls = calls
        self.roster: Roster = calls.roster
        hub.on_client_connected(self.connected)
        hub.on_client_disconnected(self.disconnected)
        hub.on_message_received(self.received)
        hub.on_error(self.error)
        hub.add_send_failure_handler(self)

    def authenticate(self, request: Request) -> Any:
        query = request.query
        if query["kind"] == "autherror":
            raise ProvokedError("authenticate")
        if query["kind"] == "refused":
            return None
        data = {"serial": int(query["n"]), "kind": query["kind"], "heard": 0}
        identity = Identity(query["user"], query.get("id"), data)
        if query["kind"] == "slowauth":

            async def later() -> Identity | None:
                await asyncio.sleep(self.draw.random() * 0.3)
                if self.draw.random() < 0.2:
                    raise ProvokedError("authenticate, later")
                return identity if self.draw.random() < 0.7 else None

            return later()
        return identity

    def connected(self, client: Client) -> Any:
        self.roster.enter(client)
        self.log.done["clients entered"] += 1
        if client.user_data["kind"] == "async":
            return asyncio.sleep(self.draw.random() * 0.02)
        if client.user_data["kind"] == "unwanted":
            self.roster.closed(client, 1011)
            raise ProvokedError("on_client_connected")
        if self.roster.rooms and self.draw.random() < 0.5:
            self.calls.join(client)
        return None

    def disconnected(self, client: Client) -> None:
        self.roster.forget(client)
        self.log("G", client.user_data["serial"], client.close_code)
        if self.calls.playing and self.draw.random() < 0.05:
            self.calls.room_broadcast()
        if self.draw.random() < 0.02:
            self.log.done["callbacks that raised"] += 1
            raise ProvokedError("on_client_disconnected")

    def received(self, client: Client, message: str | bytes) -> Any:
        if client.user_data["kind"] == "async":
            return self.take_later(client, message)
        return self.take(client, message)

    async def take_later(self, client: Client, message: str | bytes) -> None:
        if self.draw.random() < 0.5:
            await asyncio.sleep(self.draw.random() * 0.02)
        self.take(client, message)

    def take(self, client: Client, message: str | bytes) -> None:
        text = message if isinstance(message, str) else message.decode()
        data = client.user_data
        if text[1:2] != " ":
            return  # of those that misbehave
        what, count = text[0], int(text.split(" ", 2)[1])
        data["heard"] += 1
        if count != data["heard"]:
            self.log.violation(f"client {data['serial']} sent {count} as its {data['heard']}.")
        self.log("I", data["serial"], count)
        self.log.done["client messages heard"] += 1
        if what == "e" and client.is_connected():
            self.calls.direct(client)
        elif what == "o" and self.calls.playing:
            self.calls.step()
        elif what == "x":
            self.log.done["callbacks that raised"] += 1
            raise ProvokedError("on_message_received")
        elif what == "q" and client in self.roster and client.is_connected():
            self.calls.disconnect(client)
        elif what in "bB" and client.is_connected() and client in self.roster:
            if what == "B":
                client.send(BYE)
                self.log("S", -1, [data["serial"]])
            self.log("Y", data["serial"])

    def error(self, client: Client | None, error: BaseException) -> None:
        self.log.done[f"on_error: {type(error).__name__}"] += 1
        if self.draw.random() < 0.02:
            raise ProvokedError("on_error")

    async def handle_send_failure(
        self, message: HubMessage, recipient: str, reason: Any, error: Exception
    ) -> None:
        self.log.done[f"failures: {reason}"] += 1
        raw = message.type == "raw"
        content = message.data["bytes"] if raw and message.data else message.content
        if not isinstance(content, bytes | str):
            if not isinstance(error, ValidationError):  # of `misuse`
                self.log.violation(f"a failure of {message!r} for {recipient}: {reason}, {error!r}")
            return
        with contextlib.suppress(ValueError):
            number = parse(content if isinstance(content, bytes) else content.encode())
            if not raw:
                self.log("F", number, recipient, str(reason))
        if self.draw.random() < 0.01:
            raise ProvokedError("failure handler")
