"""People of the poll: they come, vote, sometimes change their minds, and go.

Run it with `python people.py --people 1000`, beside server.py.
"""

import argparse
import asyncio
import json
import random

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

AT_ONCE = 100  # connections that are being made


class Person(WSListener):
    """One connection. It reads the choices from the first result, and each later result."""

    def __init__(self) -> None:
        self.result: dict[str, list[list[str | int]]] | None = None
        self.asked = asyncio.Event()
        self.answered = 0  # votes that the server has taken

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type != WSMsgType.TEXT:
            return
        message = json.loads(frame.get_payload_as_utf8_text())
        if message.get("type") == "answer":
            self.answered += "error" not in message
        else:
            self.result = message
            self.asked.set()

    async def vote(self) -> None:
        await self.asked.wait()
        assert self.result is not None
        choices = [choice for choice, _ in self.result["votes"]]
        data = {"vote": random.choices(choices, weights=range(len(choices), 0, -1))[0]}
        request = {"type": "request", "id": f"p-{self.answered}", "data": data}
        self.transport.send(WSMsgType.TEXT, json.dumps(request).encode())


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--people", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    limit = asyncio.Semaphore(AT_ONCE)

    async def come() -> Person:
        person = Person()
        async with limit:
            await ws_connect(lambda: person, f"ws://127.0.0.1:{given.port}/ws")
        await person.vote()
        return person

    try:
        people = list(await asyncio.gather(*(come() for _ in range(given.people))))
    except OSError as error:
        raise SystemExit(f"no server on port {given.port}: {error}") from None
    print(f"{len(people)} people have voted", flush=True)
    for _ in range(10):
        await asyncio.sleep(given.seconds / 10)
        for person in random.sample(people, len(people) // 50):  # they change their minds
            await person.vote()
    print(f"{sum(person.answered for person in people)} votes were taken", flush=True)
    print(json.dumps(people[0].result), flush=True)
    for person in people:
        person.transport.disconnect()


if __name__ == "__main__":
    uvloop.run(main())
