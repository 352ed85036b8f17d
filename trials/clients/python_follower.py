"""A client in Python that writes down all that happens to it, as page.js does.

Takes orders as lines of JSON from its standard input, and ends with it:

    {"number": n, "do": "follow", "args": [url, rooms, options, seed, life]}
    {"number": n, "do": "ask_each", "args": [seconds]}
    {"number": n, "do": "keep_token", "args": []}
    {"number": n, "do": "look", "args": [from]}
    {"number": n, "do": "end", "args": []}

Answers each with a line, the number and a `value` or an `error`. The record has the entries of
page.js. The options have the names of JavaScript, and milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any

from wsc_client import (
    Bus,
    Client,
    ErrorEvent,
    Event,
    First,
    Gap,
    Joined,
    Message,
    Recovered,
    Refused,
    StateChange,
    Token,
)

from tests.clients.python_world import IN_MS, option_of


class Follower:
    """One client, and its record."""

    def __init__(self) -> None:
        self.record: list[list[Any]] = []
        self._client: Client | None = None
        self._life = 0.0  # of tokens, in seconds
        self._following: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._answers: set[asyncio.Task[None]] = set()
        self._asked = 0

    def _note(self, *entry: Any) -> None:
        self.record.append([round(time.time() * 1000), *entry])

    # --- orders ---

    async def follow(
        self, url: str, rooms: list[str], options: dict[str, Any], seed: int, life: float
    ) -> None:
        """Has a new client connect, and join rooms; tokens live for `life` seconds at least."""
        random.seed(seed)
        self.record = []
        given: dict[str, Any] = {
            option_of(name): value / 1000 if name in IN_MS else value
            for name, value in options.items()
        }
        self._life = life
        if life:

            async def get_token() -> str | Token:
                expires = time.time() + self._life * (1 + random.random())
                self._note("token", expires * 1000)
                # Half of them do not say when they end, so that the hub closes with 4401.
                return str(expires) if random.random() < 0.5 else Token(str(expires), expires)

            given |= {"get_token": get_token, "token_query": "token", "renew_before": life / 4}
        self._client = client = Client(url, **given)
        for room in rooms:
            client.room(room)
        client.connect()
        self._following = asyncio.create_task(self._write_down(client))

    async def _write_down(self, client: Client) -> None:
        async for event in client.events():
            self._event(event)

    def _event(self, event: Event) -> None:
        match event:
            case Message(data=data, room=room):
                self._note("message", room, data)
            case Recovered(room=room, missed=missed):
                self._note("recovered", room, missed)
            case Joined(room=room) | First(room=room) | Gap(room=room):
                self._note(type(event).__name__.lower(), room, 0)
            case StateChange(state=state, code=code, why=why):
                self._note("state", state, code, why or "")
            case Refused(room=room, error=refused):
                self._note("refused", room, refused.code)
            case Bus(connected=connected):
                self._note("bus", connected)
            case ErrorEvent(error=error):
                self._note("error", repr(error))

    async def keep_token(self) -> None:
        """The next tokens last."""
        self._life = 3_600.0

    async def ask_each(self, seconds: float) -> None:
        """Asks each so many seconds from now on; 0: asks no more."""
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        if seconds:
            self._asking = asyncio.create_task(self._ask_again(seconds))

    async def _ask_again(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            task = asyncio.create_task(self._ask(self._asked))
            self._asked += 1
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)

    async def _ask(self, number: int) -> None:
        assert self._client is not None
        self._note("asked", number)
        try:
            answer = await self._client.request({"number": number}, retry=True, timeout=120)
        except Exception as error:
            self._note("rejected", number, repr(error))
        else:
            self._note("answered", number, answer)

    async def look(self, begin: int) -> list[list[Any]]:
        """The record from this entry on."""
        return self.record[begin:]

    async def end(self) -> None:
        """Closes, and sees that nothing is left."""
        await self.ask_each(0)
        if self._client is not None and self._following is not None:
            await self._client.aclose()
            await self._following
        left = asyncio.all_tasks() - {asyncio.current_task()}
        names = [repr(task) for task in left if "wsc_client" in repr(task)]
        if names:
            raise AssertionError(f"tasks of the client are left: {names}")


async def obey() -> None:
    """Does all orders of standard input, one after the other."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    follower = Follower()
    async for line in reader:
        order = json.loads(line)
        answer: dict[str, Any] = {"number": order["number"]}
        try:
            answer["value"] = await getattr(follower, order["do"])(*order["args"])
        except Exception as error:
            answer["error"] = repr(error)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(obey())
