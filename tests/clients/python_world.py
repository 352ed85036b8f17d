"""A world for a client in Python: a virtual clock, sockets, a storage, which note what it does.

It is the counterpart of clients/javascript/test/world.ts. The cases have milliseconds and the names
of JavaScript; the client has seconds and those of Python.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from wsc_client import (
    Bus,
    Client,
    CloseFrame,
    ErrorEvent,
    First,
    Gap,
    Joined,
    Message,
    Recovered,
    Refused,
    SendError,
    StateChange,
    Token,
)
from wsc_client.errors import RefusedError
from wsc_client.platform import Answer, Ears, Ending, Platform
from wsc_client.wire import Payload

# Turns of the loop in which all goes on that can.
_TURNS = 10


class Timer:
    """One of the virtual clock."""

    def __init__(self, at: int, fn: Callable[[], None]) -> None:
        self.at, self.fn, self.cancelled = at, fn, False

    def cancel(self) -> None:
        self.cancelled = True


class Socket:
    """A connection that notes what is sent."""

    buffered = 0
    writable = True
    taken = 0
    closed = CloseFrame(1000)

    def __init__(self, world: World, ears: Ears) -> None:
        self.world, self.ears, self.ended = world, ears, False

    def send(self, data: Payload) -> None:
        self.world.did.append({"sent": frame(data, self.world.aware)})

    def ping(self) -> bool:
        return False

    def close(self, code: int | None) -> None:
        if not self.ended:
            self.ended = True
            self.world.did.append({"closing": code})


def frame(data: Payload, aware: bool) -> dict[str, Any]:
    """A frame as cases.json has it."""
    payload = data.encode() if isinstance(data, str) else data
    seen: dict[str, Any] = {}
    if aware:
        head, _, payload = payload.partition(b"\n")
        seen["head"] = json.loads(head) if head else None
    if isinstance(data, bytes):
        return {**seen, "bytes": base64.b64encode(payload).decode()}
    text = payload.decode()
    return {**seen, "json": json.loads(text)} if text[:1] in ("{", "[") else {**seen, "text": text}


class World:
    """All that a client meets; `act` does one step of a case.

    Args:
        case: its options, and its number for chance.
        listens: whether there is a listener of messages.
    """

    def __init__(self, case: dict[str, Any], *, listens: bool = True) -> None:
        self._listens = listens
        self.did: list[Any] = []
        self.settled: list[Any] = []
        self.sockets: list[Socket] = []
        self.options: dict[str, Any] = case.get("options", {})
        self.aware: bool = self.options.get("recover", True)
        self._random = case.get("random", 0.5)
        self._now = 0
        self._timers: list[Timer] = []
        self._tokens: list[asyncio.Future[Any]] = []
        self._answers: list[asyncio.Future[Any]] = []
        storage = self.options.get("storage")
        self._stored: dict[str, str] = dict(storage) if isinstance(storage, dict) else {}
        self._throwing: str | None = None
        self.client = self._made()

    # --- what the client meets ---

    def get(self, key: str) -> str | None:
        return self._stored.get(key)

    def set(self, key: str, text: str) -> None:
        self._stored[key] = text
        self.did.append({"stored": {key: json.loads(text)}})

    def _open(self, url: str, protocols: Sequence[str], ears: Ears) -> Socket:
        self.did.append({"socket": {"url": url, "protocols": list(protocols)}})
        self.sockets.append(Socket(self, ears))
        return self.sockets[-1]

    async def _fetch(self, url: str, token: str | None) -> Answer:
        self.did.append({"status": {"url": url, "token": token}})
        self._answers.append(asyncio.get_running_loop().create_future())
        answer: Answer = await self._answers[-1]
        return answer

    def _call_later(self, delay: float, fn: Callable[[], None]) -> Timer:
        timer = Timer(self._now + round(delay * 1000), fn)
        self._timers.append(timer)
        return timer

    def _get_token(self) -> asyncio.Future[Any]:
        self.did.append({"getToken": True})
        self._tokens.append(asyncio.get_running_loop().create_future())
        return self._tokens[-1]

    def _made(self) -> Client:
        platform = Platform(
            open=self._open,
            fetch=self._fetch,
            now=lambda: self._now / 1000,
            wall=lambda: self._now / 1000,
            call_later=self._call_later,
            random=lambda: self._random,
            prefix="q",
        )
        given: dict[str, Any] = {}
        for name, value in self.options.items():
            if name == "getToken":
                given["get_token"] = self._get_token
            elif name == "storage":
                given["storage"] = self
            else:
                given[option_of(name)] = value / 1000 if name in IN_MS else value
        given["load"] = lambda room, why: self.did.append({"load": [room, why]})
        client = Client("ws://hub.test/ws", _platform=platform, **given)
        client.on(StateChange, lambda event: self.did.append({"state": state(event)}))
        for kind in (Joined, First, Gap):
            client.on(kind, self._heard_of_room)
        client.on(
            Recovered,
            lambda each: self.did.append({"recovered": {"room": each.room, "missed": each.missed}}),
        )
        client.on(Bus, lambda event: self.did.append({"bus": event.connected}))
        client.on(ErrorEvent, lambda event: self.did.append({"error": True}))
        client.on(
            Refused,
            lambda each: self.did.append({"refused": {"room": each.room, "code": each.error.code}}),
        )
        if self._listens:
            client.on(Message, self._heard)
        return client

    def _heard_of_room(self, event: Joined | First | Gap) -> None:
        self.did.append({type(event).__name__.lower(): {"room": event.room}})

    def _heard(self, message: Message) -> None:
        data = message.data
        shown = (
            {"bytes": base64.b64encode(data).decode()} if type(data) is bytes else {"data": data}
        )
        further = {"room": message.room, "pos": message.pos}
        named = {name: value for name, value in further.items() if value is not None}
        self.did.append({"message": {**shown, **named, "hub": message.hub}})
        if self._throwing is not None:
            raise RuntimeError(self._throwing)

    # --- steps ---

    async def act(self, step: dict[str, Any]) -> None:
        """Does a step, and all that follows of it at this time."""
        await getattr(self, f"_do_{step['do']}")(step)
        await settle()

    async def end(self) -> None:
        """Leaves nothing behind."""
        await self.client.aclose()
        for future in (*self._tokens, *self._answers):
            future.cancel()

    async def _do_connect(self, step: dict[str, Any]) -> None:
        self.client.connect()

    async def _do_close(self, step: dict[str, Any]) -> None:
        self.client.close()

    def _socket(self, step: dict[str, Any]) -> Socket:
        return self.sockets[step.get("on", 0) - 1]

    async def _do_open(self, step: dict[str, Any]) -> None:
        self._socket(step).ears.opened("wsc.1")

    async def _do_receive(self, step: dict[str, Any]) -> None:
        data = step["text"] if "text" in step else base64.b64decode(step["bytes"])
        self._socket(step).ears.received(data)

    async def _do_end(self, step: dict[str, Any]) -> None:
        self._socket(step).ended = True
        self._socket(step).ears.ended(Ending(step["code"]))

    async def _do_advance(self, step: dict[str, Any]) -> None:
        end = self._now + step["ms"]
        while True:
            self._timers = [timer for timer in self._timers if not timer.cancelled]
            due = sorted((each for each in self._timers if each.at <= end), key=lambda t: t.at)
            if not due:
                break
            self._timers.remove(due[0])
            self._now = max(self._now, due[0].at)
            due[0].fn()
            await settle()
        self._now = end

    async def _do_online(self, step: dict[str, Any]) -> None:
        self.client.network_back()

    async def _do_visible(self, step: dict[str, Any]) -> None:
        self.client.background = False
        self.client.network_back()

    async def _do_hidden(self, step: dict[str, Any]) -> None:
        self.client.background = True

    async def _do_away(self, step: dict[str, Any]) -> None:
        self.client.save()

    async def _do_reload(self, step: dict[str, Any]) -> None:
        self.sockets[-1].ended = True
        self._timers = []
        self.client = self._made()

    async def _do_token(self, step: dict[str, Any]) -> None:
        token = self._tokens.pop(0)
        if step.get("error"):
            token.set_exception(RuntimeError("no token"))
        elif step["value"] is None:
            token.set_result(None)
        else:
            ends = step.get("expires")
            token.set_result(Token(step["value"], None if ends is None else ends / 1000))

    async def _do_status(self, step: dict[str, Any]) -> None:
        answer = self._answers.pop(0)
        if step.get("error"):
            answer.set_exception(OSError("no network"))
        else:
            answer.set_result(Answer(step["code"], step.get("retryAfter", 0)))

    async def _do_send(self, step: dict[str, Any]) -> None:
        data = base64.b64decode(step["bytes"]) if "bytes" in step else step["data"]
        self._note(step, self.client.send(data))

    async def _do_request(self, step: dict[str, Any]) -> None:
        self._note(step, self.client.request(step["data"], retry=step.get("retry", False)))

    async def _do_room(self, step: dict[str, Any]) -> None:
        room = self.client.room(step["name"], join=step.get("join", True))
        if step.get("leave"):
            room.leave()

    async def _do_leave(self, step: dict[str, Any]) -> None:
        self.client.room(step["name"], join=False).leave()

    async def _do_held(self, step: dict[str, Any]) -> None:
        socket = self._socket(step)
        socket.buffered, socket.taken = step["bytes"], -step["bytes"]
        socket.writable = not socket.buffered

    async def _do_throw(self, step: dict[str, Any]) -> None:
        self._throwing = step["text"]

    async def _do_calm(self, step: dict[str, Any]) -> None:
        self._throwing = None

    def _note(self, step: dict[str, Any], future: asyncio.Future[Any]) -> None:
        def done(future: asyncio.Future[Any]) -> None:
            error = future.exception()
            if error is None:
                self.settled.append([step["as"], "resolved", future.result()])
            else:
                assert isinstance(error, SendError | RefusedError), error
                self.settled.append([step["as"], "rejected", error.code])

        future.add_done_callback(done)


IN_MS = {
    *("requestTimeout", "minDelay", "maxDelay", "connectTimeout", "stableAfter"),
    *("renewBefore", "heartbeatInterval", "heartbeatTimeout"),
}


def option_of(name: str) -> str:
    """An option of JavaScript, by its name in Python."""
    return re.sub("[A-Z]", lambda match: "_" + match[0].lower(), name)


def state(event: StateChange) -> dict[str, Any]:
    """The fields that the event has in the cases."""
    names = {"open": ("again",), "waiting": ("code", "delay"), "closed": ("code", "why")}
    seen = {name: getattr(event, name) for name in names.get(event.state, ())}
    if "delay" in seen:
        seen["delay"] = round(seen["delay"] * 1000, 6)
    return {"state": event.state, **seen}


async def settle() -> None:
    """Lets all tasks go on that can."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


def matches(seen: Any, expected: Any) -> bool:
    """Whether something is as expected; "*" stands for any text."""
    if expected == "*":
        return isinstance(seen, str)
    if isinstance(expected, dict):
        same = isinstance(seen, dict) and seen.keys() == expected.keys()
        return same and all(matches(seen[name], value) for name, value in expected.items())
    if isinstance(expected, list):
        same = isinstance(seen, list) and len(seen) == len(expected)
        return same and all(map(matches, seen, expected))
    return bool(seen == expected and isinstance(seen, bool) == isinstance(expected, bool))
